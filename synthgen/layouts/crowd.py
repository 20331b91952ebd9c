"""Clusters of boxes that may overlap, nearer ones before farther ones."""

from typing import Literal

import numpy as np
from pydantic import Field

from synthgen.layouts.base import InfeasibleLayoutError, Layout
from synthgen.layouts.objects import Counts, Floats, ObjectsSpec
from synthgen.layouts.placement import most_placed, occluded, one_by_one

MAX_DRAWS = 6


class Spec(ObjectsSpec):
    """Clusters of boxes with bounded overlap: the lower a box stands, the nearer it is."""

    sampler: Literal["crowd"] = "crowd"
    clusters: Counts = Field((3, 6), description="how many: a number, or [least, most]")
    spread: float = Field(
        0.12, gt=0, le=1, description="deviation of a cluster, share of the canvas' shorter side"
    )
    max_iou: float = Field(0.3, ge=0, lt=1, description="largest overlap of two boxes; 0: disjoint")
    gap: float = Field(2, ge=0, description="px between two boxes if they are disjoint")

    @property
    def may_overlap(self) -> bool:
        return self.max_iou > 0

    def check_feasible(self) -> None:
        """Raise InfeasibleLayoutError, with a number that was found to fit, if the asked number finds no room."""
        names = self.most_names()
        placed = most_placed(
            len(names), lambda n, k: self.place(names[:n], np.random.default_rng(k)) is not None
        )
        if placed < len(names):
            raise InfeasibleLayoutError(
                f"objects: {len(names)} boxes of {self.describe_sizes()} with max_iou {self.max_iou:g} do not fit "
                f"{self.canvas[0]} x {self.canvas[1]}; the largest number found is {placed}"
            )

    def sample(self, rng: np.random.Generator, index: int = 0) -> Layout:
        """One layout with `depth` (0 nearest to 1 farthest) and `occluded`.

        Raises:
            InfeasibleLayoutError: some box found no place in bounded work.
        """
        names = self.draw_names(rng)
        for _ in range(MAX_DRAWS):
            found = self.place(names, rng)
            if found is not None:
                boxes = found.astype(np.float32)
                depth = 1 - boxes[:, 3] / np.float32(self.canvas[1])
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
        """Boxes (n, 4) xyxy in whole px; None if some box found no place."""
        sides, canvas = self.draw_sides(names, rng), np.array(self.canvas, float)
        middles = rng.random((max(1, int(rng.integers(*self.clusters, endpoint=True))), 2)) * canvas
        deviation = self.spread * canvas.min()

        def propose(k: int, count: int) -> Floats:
            # the later candidates are farther from the cluster: a full cluster grows
            wide = deviation * np.linspace(1, 4, count)[:, None]
            centre = middles[k % len(middles)] + rng.normal(0, 1, (count, 2)) * wide
            corners = np.floor(reflect(centre - sides[k] / 2, canvas - sides[k]))
            return np.concatenate([corners, corners + sides[k]], 1)

        return one_by_one(len(names), propose, self.max_iou, self.gap)


def reflect(x: Floats, most: Floats) -> Floats:
    """Points folded back into [0, most], so that the border attracts none."""
    period = 2 * np.maximum(most, 1e-9)
    folded = np.mod(x, period)
    return np.where(folded > most, period - folded, folded)
