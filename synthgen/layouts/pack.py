"""Dense boxes: the canvas is cut into one rectangle a box, as in a treemap."""

from typing import Literal

import numpy as np
from pydantic import Field

from synthgen.geometry import box_sides
from synthgen.layouts.base import InfeasibleLayoutError, Layout
from synthgen.layouts.objects import Floats, ObjectsSpec

MAX_DRAWS = 12
FEASIBILITY_DRAWS = 4
FITTING_STEPS = 8
CLOSE = 0.005  # coverage is met this closely


class Spec(ObjectsSpec):
    """Boxes of varied sizes that cover an asked share of the canvas; sizes follow from the coverage."""

    sampler: Literal["pack"] = "pack"
    coverage: float = Field(0.6, gt=0, le=0.85, description="share of the canvas that boxes cover")
    variety: float = Field(
        0.6, ge=0, le=1.5, description="deviation of the logarithm of the boxes' areas"
    )
    gap: float = Field(2, ge=0, description="px between two boxes on the nearer axis")
    size: None = Field(None, description="not used: sizes follow from coverage and count")  # type: ignore[assignment]

    @property
    def may_overlap(self) -> bool:
        return False

    @property
    def sizes_are_px(self) -> bool:
        return False

    def check_feasible(self) -> None:
        """Raise InfeasibleLayoutError, with the largest coverage, if the asked one cannot be had."""
        n = len(self.most_names())
        if n == 0:
            return
        most = min(
            max(self._most(n, np.random.default_rng((k, j))) for j in range(3))
            for k in range(FEASIBILITY_DRAWS)
        )
        if most < self.coverage:
            raise InfeasibleLayoutError(
                f"objects: {n} boxes with gap {self.gap:g} and aspects {self.aspect[0]:g}-{self.aspect[1]:g} cover "
                f"{most:.0%} of {self.canvas[0]} x {self.canvas[1]} at most; {self.coverage:.0%} is asked"
            )

    def _most(self, n: int, rng: np.random.Generator) -> float:
        boxes = shrink(self.cells(n, rng), 1.0, self.aspect)
        return area(boxes) / (self.canvas[0] * self.canvas[1])

    def cells(self, n: int, rng: np.random.Generator) -> Floats:
        """Rectangles (n, 4) xyxy that fill the canvas but for the gaps."""
        cells = np.array(
            treemap(
                rng.lognormal(0, self.variety, n),
                (0.0, 0.0, self.canvas[0] + self.gap, self.canvas[1] + self.gap),
            )
        )
        cells[:, 2:] -= self.gap
        return cells

    def sample(self, rng: np.random.Generator, index: int = 0) -> Layout:
        """One layout with exactly the asked boxes and, to half a percent of the canvas, the asked coverage.

        Raises:
            InfeasibleLayoutError: no treemap of bounded many leaves room for it.
        """
        names = self.draw_names(rng)
        wanted = self.coverage * self.canvas[0] * self.canvas[1]
        for _ in range(MAX_DRAWS if names else 0):
            cells = self.cells(len(names), rng)
            boxes = fitted(cells, wanted, self.aspect, rng)
            real = (
                boxes[:, 2:] > boxes[:, :2]
            ).all()  # a very small weight makes a cell of less than a pixel
            if real and abs(area(boxes) - wanted) < CLOSE * self.canvas[0] * self.canvas[1]:
                return Layout(
                    *self.canvas,
                    boxes.astype(np.float32),
                    tuple(names),
                    labelled=self.labelled(names),
                )
        if names:
            raise InfeasibleLayoutError(
                f"no way to cover {self.coverage:.0%} with {len(names)} boxes in {MAX_DRAWS} draws"
            )
        return Layout(*self.canvas, np.zeros((0, 4), np.float32), (), labelled=self.labelled(names))


def treemap(weights: Floats, cell: tuple[float, float, float, float]) -> list[Floats]:
    """Rectangles whose areas are as the weights: the longer side is cut in two where the halves' weights say, and again."""
    out: list[Floats] = []
    todo = [(weights, np.array(cell))]
    while todo:
        w, box = todo.pop()
        if len(w) == 1:
            out.append(box)
            continue
        k = len(w) // 2
        axis = int(box[3] - box[1] > box[2] - box[0])
        at = box[axis] + (box[axis + 2] - box[axis]) * w[:k].sum() / w.sum()
        first, second = box.copy(), box.copy()
        first[axis + 2] = second[axis] = at
        todo += [(w[k:], second), (w[:k], first)]
    return out


def shrink(cells: Floats, share: float, aspect: tuple[float, float]) -> Floats:
    """Sides (n, 2) of boxes of an allowed aspect in the cells, scaled by `share`, in whole px, at least 1."""
    w, h = (np.maximum(box_sides(cells), 1e-6)).T
    w, h = np.minimum(w, h * aspect[1]), np.minimum(h, w / aspect[0])
    return np.maximum(np.floor(np.stack([w, h], 1) * share), 1)


def area(boxes: Floats) -> float:
    """Sum of the areas of sides (n, 2) or boxes (n, 4)."""
    sides = boxes if boxes.shape[1] == 2 else box_sides(boxes)
    return float(sides.prod(1).sum())


def fitted(
    cells: Floats, wanted: float, aspect: tuple[float, float], rng: np.random.Generator
) -> Floats:
    """Boxes (n, 4) in whole px, one in each cell, that cover `wanted` px² in all if the cells have the room."""
    share = 1.0
    for _ in range(
        FITTING_STEPS
    ):  # whole px make the area a step function: go on from where it falls short
        sides = shrink(cells, share, aspect)
        share = min(1.0, share * float(np.sqrt(wanted / max(area(sides), 1e-9))))
    low = np.ceil(cells[:, :2])
    room = np.maximum(np.floor(cells[:, 2:]) - low - sides, 0)
    corners = low + np.floor(rng.random(sides.shape) * (room + 1))
    return np.concatenate([corners, np.minimum(corners + sides, np.floor(cells[:, 2:]))], 1)
