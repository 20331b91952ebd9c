"""A sampler of objects on a ground plane, whose size falls with their distance."""

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from synthgen.geometry import box_sides
from synthgen.layouts.base import InfeasibleLayoutError, Layout, Range
from synthgen.layouts.objects import Floats, ObjectsSpec, Size, SizeSpec
from synthgen.layouts.placement import compute_occlusion, count_largest_placement, place_one_by_one

MAX_DRAWS = 6
OUTSIDE = -1e6
"""A coordinate outside every canvas."""


class Spec(ObjectsSpec):
    """Objects on a ground plane: farther ones are smaller, and nearer ones may hide them.

    A pinhole camera with a level view: the foot of an object at distance d is
    f * camera_height / d below the horizon, and the object is f * height / d tall, with the focal
    length f in px (Hoiem, Efros, Hebert, "Putting Objects in Perspective", 2006).
    """

    sampler: Literal["perspective"] = "perspective"
    size: Size = Field(
        SizeSpec(range=(0.45, 0.7)), description="Height of an object in metres, [least, most]."
    )
    horizon: float = Field(
        0.3, ge=-1, lt=1, description="Share of the canvas' height above the horizon."
    )
    focal: float = Field(1.2, gt=0, description="Focal length, relative to the canvas' height.")
    camera_height: float = Field(1.6, gt=0, description="Height of the camera in metres.")
    distance: Range = Field(
        (3, 25), description="Distance of an object in metres, [nearest, farthest]."
    )
    max_iou: float = Field(
        0.2, ge=0, lt=1, description="Largest IoU of two boxes; 0: boxes are disjoint."
    )
    gap: float = Field(
        2, ge=0, description="Minimum distance of two boxes in px, if boxes are disjoint."
    )
    least: float = Field(12, ge=1, description="Minimum shorter side of a box in px.")

    @property
    def sizes_are_px(self) -> bool:
        return False

    @model_validator(mode="after")
    def ground_is_visible(self) -> "Spec":
        farthest = self.distance[1]
        if self.horizon + self.focal * self.camera_height / farthest >= 1:
            raise ValueError(
                f"distance: the ground at {farthest:g} m is below the canvas; increase the "
                "farthest distance, or lower horizon"
            )
        return self

    @property
    def may_overlap(self) -> bool:
        return self.max_iou > 0

    def check_feasible(self) -> None:
        """Raise InfeasibleLayoutError, with a number that fits, if the boxes do not fit."""
        names = self.most_names()

        def fits(n: int, attempt: int) -> bool:
            return self.place(names[:n], np.random.default_rng(attempt)) is not None

        most = count_largest_placement(len(names), fits)
        if most < len(names):
            least_size, most_size = self.size.range
            nearest, farthest = self.distance
            width, height = self.canvas
            raise InfeasibleLayoutError(
                f"objects: {len(names)} boxes of {least_size:g}-{most_size:g} m at "
                f"{nearest:g}-{farthest:g} m with max_iou {self.max_iou:g} do not fit "
                f"{width} x {height}; the largest number found is {most}"
            )

    def sample(self, rng: np.random.Generator, index: int = 0) -> Layout:
        """Return a layout with `depth` (metres) and `occluded`.

        Raises:
            InfeasibleLayoutError: no placement was found in a bounded number of attempts.
        """
        names = self.sample_categories(rng)
        for _ in range(MAX_DRAWS):
            placed = self.place(names, rng)
            if placed is not None:
                boxes = placed[:, :4].astype(np.float32)
                depth = placed[:, 4].astype(np.float32)
                return Layout(
                    *self.canvas,
                    boxes,
                    tuple(names),
                    depth=depth,
                    occluded=compute_occlusion(boxes, depth, self.canvas),
                    labelled=self.label_flags(names),
                )
        raise InfeasibleLayoutError(f"no room for {len(names)} boxes after {MAX_DRAWS} attempts")

    def place(self, names: list[str], rng: np.random.Generator) -> Floats | None:
        """Return random boxes and distances (n, 5): xyxy in px and metres.

        The result is None if a box found no position.
        """
        sides = self.sample_sides(names, rng)  # metres
        aspect = sides[:, 0] / np.maximum(sides[:, 1], 1e-9)
        heights = sides.max(1, initial=0)

        def propose(k: int, count: int) -> Floats:
            # Uniform over the visible ground, whose width grows with the distance.
            nearest, farthest = self.distance
            distances = np.sqrt(rng.uniform(nearest**2, farthest**2, count))
            boxes = self.project(distances, heights[k], aspect[k], rng)
            boxes[box_sides(boxes).min(1) < self.least] = OUTSIDE
            is_inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2:] <= self.canvas).all(1)
            return boxes[is_inside]

        boxes = place_one_by_one(len(names), propose, self.max_iou, self.gap)
        if boxes is None:
            return None
        foot = boxes[:, 3] / self.canvas[1] - self.horizon
        distances = self.focal * self.camera_height / np.maximum(foot, 1e-9)
        return np.concatenate([boxes, distances[:, None]], 1)

    def project(self, d: Floats, height: float, aspect: float, rng: np.random.Generator) -> Floats:
        """Return boxes (n, 4) in whole px of an object at several distances.

        Args:
            d: (n,) distances in metres.
            height: the height of the object in metres.
            aspect: width / height of the object.
        """
        f = self.focal * self.canvas[1]
        foot = np.round(self.horizon * self.canvas[1] + f * self.camera_height / d)
        tall = np.maximum(np.round(f * height / d), 1)
        wide = np.maximum(np.round(tall * aspect), 1)
        x0 = np.floor(rng.random(len(d)) * (self.canvas[0] - wide + 1))
        return np.stack([x0, foot - tall, x0 + wide, foot], 1)
