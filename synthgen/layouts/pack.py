"""A sampler of dense boxes: the canvas is divided into one rectangle for each box (a treemap)."""

from typing import Literal

import numpy as np
from pydantic import Field

from synthgen.geometry import box_sides
from synthgen.layouts.base import InfeasibleLayoutError, Layout
from synthgen.layouts.objects import Floats, ObjectsSpec

MAX_DRAWS = 12
FEASIBILITY_DRAWS = 4
TREEMAPS_PER_DRAW = 3
FITTING_STEPS = 8
COVERAGE_TOLERANCE = 0.005
"""The largest difference of the requested and the real coverage."""


class Spec(ObjectsSpec):
    """Boxes of varied sizes that cover a given share of the canvas; it determines the sizes."""

    sampler: Literal["pack"] = "pack"
    coverage: float = Field(0.6, gt=0, le=0.85, description="Share of the canvas that boxes cover.")
    variety: float = Field(
        0.6, ge=0, le=1.5, description="Standard deviation of the logarithm of a box's area."
    )
    gap: float = Field(
        2, ge=0, description="Minimum distance of two boxes in px, horizontally or vertically."
    )
    size: None = Field(  # type: ignore[assignment]
        None, description="Not used: the coverage and the number of boxes determine the sizes."
    )

    @property
    def may_overlap(self) -> bool:
        return False

    @property
    def sizes_are_px(self) -> bool:
        return False

    def check_feasible(self) -> None:
        """Raise InfeasibleLayoutError, with the largest coverage, if the coverage is too high."""
        n = len(self.most_names())
        if n == 0:
            return
        most = min(self._largest_coverage(n, draw) for draw in range(FEASIBILITY_DRAWS))
        if most < self.coverage:
            width, height = self.canvas
            raise InfeasibleLayoutError(
                f"objects: {n} boxes with gap {self.gap:g} and aspects "
                f"{self.aspect[0]:g}-{self.aspect[1]:g} cover at most {most:.0%} of {width} x "
                f"{height}; {self.coverage:.0%} is requested"
            )

    def _largest_coverage(self, n: int, draw: int) -> float:
        """Return the largest share of the canvas that n boxes cover in a few treemaps."""
        coverages = []
        for k in range(TREEMAPS_PER_DRAW):
            cells = self.sample_cells(n, np.random.default_rng((draw, k)))
            sides = fit_into_cells(cells, 1.0, self.aspect)
            coverages.append(total_area(sides) / (self.canvas[0] * self.canvas[1]))
        return max(coverages)

    def sample_cells(self, n: int, rng: np.random.Generator) -> Floats:
        """Return random rectangles (n, 4) xyxy that fill the canvas except for the gaps."""
        width, height = self.canvas
        weights = rng.lognormal(0, self.variety, n)
        cells = np.array(divide(weights, (0.0, 0.0, width + self.gap, height + self.gap)))
        cells[:, 2:] -= self.gap
        return cells

    def sample(self, rng: np.random.Generator, index: int = 0) -> Layout:
        """Return a layout with exactly the requested boxes.

        Its coverage differs from the requested one by less than COVERAGE_TOLERANCE.

        Raises:
            InfeasibleLayoutError: no treemap had room for it in a bounded number of attempts.
        """
        names = self.sample_categories(rng)
        if not names:
            no_boxes = np.zeros((0, 4), np.float32)
            return Layout(*self.canvas, no_boxes, (), labelled=self.label_flags(names))
        requested = self.coverage * self.canvas[0] * self.canvas[1]
        tolerance = COVERAGE_TOLERANCE * self.canvas[0] * self.canvas[1]
        for _ in range(MAX_DRAWS):
            cells = self.sample_cells(len(names), rng)
            boxes = sample_boxes(cells, requested, self.aspect, rng)
            # A very small weight results in a cell of less than one pixel.
            have_area = (boxes[:, 2:] > boxes[:, :2]).all()
            if have_area and abs(total_area(box_sides(boxes)) - requested) < tolerance:
                return Layout(
                    *self.canvas,
                    boxes.astype(np.float32),
                    tuple(names),
                    labelled=self.label_flags(names),
                )
        raise InfeasibleLayoutError(
            f"{len(names)} boxes did not cover {self.coverage:.0%} in {MAX_DRAWS} attempts"
        )


def divide(weights: Floats, cell: tuple[float, float, float, float]) -> list[Floats]:
    """Divide a rectangle into one for each weight, with areas in proportion to the weights.

    The longer side is cut in two in proportion to the weights of both halves, and so on.

    Args:
        weights: (n,) positive numbers.
        cell: the rectangle, xyxy.

    Returns:
        n rectangles (4,) xyxy.
    """
    rectangles: list[Floats] = []
    stack = [(weights, np.array(cell))]
    while stack:
        w, box = stack.pop()
        if len(w) == 1:
            rectangles.append(box)
            continue
        half = len(w) // 2
        axis = int(box[3] - box[1] > box[2] - box[0])
        cut = box[axis] + (box[axis + 2] - box[axis]) * w[:half].sum() / w.sum()
        first = box.copy()
        first[axis + 2] = cut
        second = box.copy()
        second[axis] = cut
        stack.append((w[half:], second))
        stack.append((w[:half], first))
    return rectangles


def fit_into_cells(cells: Floats, scale: float, aspect: tuple[float, float]) -> Floats:
    """Return sides (n, 2) of the largest boxes of an allowed aspect in the cells, times a scale.

    They are whole numbers of px, at least 1.
    """
    cell_width, cell_height = np.maximum(box_sides(cells), 1e-6).T
    width = np.minimum(cell_width, cell_height * aspect[1])
    height = np.minimum(cell_height, cell_width / aspect[0])
    return np.maximum(np.floor(np.stack([width, height], 1) * scale), 1)


def total_area(sides: Floats) -> float:
    """Return the sum of the areas of boxes with these sides (n, 2)."""
    return float(sides.prod(1).sum())


def sample_boxes(
    cells: Floats, requested: float, aspect: tuple[float, float], rng: np.random.Generator
) -> Floats:
    """Return boxes (n, 4) in whole px, each at a random position in its cell.

    Args:
        requested: the area in px² that all boxes cover together, if the cells have the room.
        aspect: the range of width / height.
    """
    scale = 1.0
    # With whole px the area is a step function of the scale: continue from where it falls short.
    for _ in range(FITTING_STEPS):
        sides = fit_into_cells(cells, scale, aspect)
        scale = min(1.0, scale * float(np.sqrt(requested / max(total_area(sides), 1e-9))))
    low = np.ceil(cells[:, :2])
    high = np.floor(cells[:, 2:])
    room = np.maximum(high - low - sides, 0)
    corners = low + np.floor(rng.random(sides.shape) * (room + 1))
    return np.concatenate([corners, np.minimum(corners + sides, high)], 1)
