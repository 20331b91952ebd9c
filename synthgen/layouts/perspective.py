"""Objects that stand on a ground plane: the farther, the smaller and the nearer to the horizon."""

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from synthgen.geometry import box_sides
from synthgen.layouts.base import InfeasibleLayoutError, Layout, Range
from synthgen.layouts.objects import Floats, ObjectsSpec, Size, SizeSpec
from synthgen.layouts.placement import most_placed, occluded, one_by_one

MAX_DRAWS = 6


class Spec(ObjectsSpec):
    """Objects on a ground plane seen from a camera: size falls with distance, nearer ones are drawn over farther ones.

    Pinhole camera with a level view: what stands at distance d has its foot f * camera_height / d below the horizon and
    is f * height / d tall, with the focal length f in px (Hoiem, Efros, Hebert, "Putting Objects in Perspective", 2006).
    """

    sampler: Literal["perspective"] = "perspective"
    size: Size = Field(
        SizeSpec(range=(0.45, 0.7)), description="height of an object in metres: [least, most]"
    )
    horizon: float = Field(
        0.3, ge=-1, lt=1, description="share of the canvas' height above the horizon"
    )
    focal: float = Field(1.2, gt=0, description="focal length in heights of the canvas")
    camera_height: float = Field(1.6, gt=0, description="metres above the ground")
    distance: Range = Field((3, 25), description="metres: [nearest, farthest]")
    max_iou: float = Field(
        0.2, ge=0, lt=1, description="overlap allowed between two boxes; 0: disjoint"
    )
    gap: float = Field(2, ge=0, description="px between two boxes if they are disjoint")
    least: float = Field(
        12, ge=1, description="shorter side of a box, px: what would be smaller is not placed"
    )

    @property
    def sizes_are_px(self) -> bool:
        return False

    @model_validator(mode="after")
    def ground_is_seen(self) -> "Spec":
        far = self.horizon + self.focal * self.camera_height / self.distance[1]
        if far >= 1:
            raise ValueError(
                f"distance: the ground at {self.distance[1]:g} m is below the canvas; look farther, or lower horizon"
            )
        return self

    @property
    def may_overlap(self) -> bool:
        return self.max_iou > 0

    def check_feasible(self) -> None:
        """Raise InfeasibleLayoutError, with the largest number found, if the asked number finds no room."""
        names = self.most_names()
        placed = most_placed(
            len(names), lambda n, k: self.place(names[:n], np.random.default_rng(k)) is not None
        )
        if placed < len(names):
            raise InfeasibleLayoutError(
                f"objects: {len(names)} boxes of {self.size.range[0]:g}-{self.size.range[1]:g} m at "
                f"{self.distance[0]:g}-{self.distance[1]:g} m with max_iou {self.max_iou:g} do not fit "
                f"{self.canvas[0]} x {self.canvas[1]}; the largest number found is {placed}"
            )

    def sample(self, rng: np.random.Generator, index: int = 0) -> Layout:
        """One layout with `depth` (metres) and `occluded`.

        Raises:
            InfeasibleLayoutError: some object found no place in bounded work.
        """
        names = self.draw_names(rng)
        for _ in range(MAX_DRAWS):
            found = self.place(names, rng)
            if found is not None:
                boxes, depth = found[:, :4].astype(np.float32), found[:, 4].astype(np.float32)
                hidden = occluded(boxes, depth, self.canvas)
                return Layout(
                    *self.canvas,
                    boxes,
                    tuple(names),
                    depth=depth,
                    occluded=hidden,
                    labelled=self.labelled(names),
                )
        raise InfeasibleLayoutError(f"no room for {len(names)} boxes after {MAX_DRAWS} draws")

    def place(self, names: list[str], rng: np.random.Generator) -> Floats | None:
        """Boxes (n, 5) xyxy and distance; None if some object found no place."""
        sides = self.draw_sides(names, rng)  # metres
        aspect = sides[:, 0] / np.maximum(sides[:, 1], 1e-9) if len(sides) else np.zeros(0)
        heights = sides.max(1, initial=0)

        def propose(k: int, count: int) -> Floats:
            # uniform over the ground that is seen: its width grows with the distance
            near, far = self.distance
            d = np.sqrt(rng.uniform(near**2, far**2, count))
            boxes = self.project(d, heights[k], aspect[k], rng)
            boxes[box_sides(boxes).min(1) < self.least] = -1e6
            outside = (
                (boxes[:, :2] < 0).any(1)
                | (boxes[:, 2] > self.canvas[0])
                | (boxes[:, 3] > self.canvas[1])
            )
            return boxes[~outside]

        boxes = one_by_one(len(names), propose, self.max_iou, self.gap)
        if boxes is None:
            return None
        foot = boxes[:, 3] / self.canvas[1] - self.horizon
        distances = self.focal * self.camera_height / np.maximum(foot, 1e-9)
        return np.concatenate([boxes, distances[:, None]], 1)

    def project(self, d: Floats, height: float, aspect: float, rng: np.random.Generator) -> Floats:
        """Boxes (n, 4) in whole px of one object at distances (n,)."""
        f = self.focal * self.canvas[1]
        foot = np.round(self.horizon * self.canvas[1] + f * self.camera_height / d)
        tall = np.maximum(np.round(f * height / d), 1)
        wide = np.maximum(np.round(tall * aspect), 1)
        x0 = np.floor(rng.random(len(d)) * (self.canvas[0] - wide + 1))
        return np.stack([x0, foot - tall, x0 + wide, foot], 1)
