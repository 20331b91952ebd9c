"""A sampler of clusters of boxes that may overlap, ordered by depth."""

from typing import Literal

import numpy as np
from pydantic import Field

from synthgen.layouts.base import InfeasibleLayoutError, Layout
from synthgen.layouts.objects import Counts, Floats, ObjectsSpec
from synthgen.layouts.placement import compute_occlusion, count_largest_placement, place_one_by_one

MAX_DRAWS = 6


class Spec(ObjectsSpec):
    """Clusters of boxes with bounded overlap; the lower a box is, the nearer it is."""

    sampler: Literal["crowd"] = "crowd"
    clusters: Counts = Field((3, 6), description="Number of clusters, or [least, most].")
    spread: float = Field(
        0.12,
        gt=0,
        le=1,
        description="Standard deviation of a cluster, relative to the canvas' shorter side.",
    )
    max_iou: float = Field(
        0.3, ge=0, lt=1, description="Largest IoU of two boxes; 0: boxes are disjoint."
    )
    gap: float = Field(
        2, ge=0, description="Minimum distance of two boxes in px, if boxes are disjoint."
    )

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
            width, height = self.canvas
            raise InfeasibleLayoutError(
                f"objects: {len(names)} boxes of {self.describe_sizes()} with max_iou "
                f"{self.max_iou:g} do not fit {width} x {height}; the largest number found is "
                f"{most}"
            )

    def sample(self, rng: np.random.Generator, index: int = 0) -> Layout:
        """Return a layout with `depth` (0 nearest to 1 farthest) and `occluded`.

        Raises:
            InfeasibleLayoutError: no placement was found in a bounded number of attempts.
        """
        names = self.sample_categories(rng)
        for _ in range(MAX_DRAWS):
            placed = self.place(names, rng)
            if placed is not None:
                boxes = placed.astype(np.float32)
                depth = 1 - boxes[:, 3] / np.float32(self.canvas[1])
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
        """Return random boxes (n, 4) xyxy in whole px; None if a box found no position."""
        sides = self.sample_sides(names, rng)
        canvas = np.array(self.canvas, float)
        clusters = max(1, int(rng.integers(*self.clusters, endpoint=True)))
        centres = rng.random((clusters, 2)) * canvas
        deviation = self.spread * canvas.min()

        def propose(k: int, count: int) -> Floats:
            # Later candidates are farther from the cluster, so that a full cluster grows.
            deviations = deviation * np.linspace(1, 4, count)[:, None]
            centre = centres[k % len(centres)] + rng.normal(0, 1, (count, 2)) * deviations
            corners = np.floor(reflect(centre - sides[k] / 2, canvas - sides[k]))
            return np.concatenate([corners, corners + sides[k]], 1)

        return place_one_by_one(len(names), propose, self.max_iou, self.gap)


def reflect(x: Floats, most: Floats) -> Floats:
    """Reflect points into [0, most], so that boxes do not gather at the border."""
    period = 2 * np.maximum(most, 1e-9)
    folded = np.mod(x, period)
    return np.where(folded > most, period - folded, folded)
