"""Disjoint boxes of random size, evenly spread over the canvas."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from synthgen.layouts import InfeasibleLayoutError, Layout, Range, SamplerSpec

Floats = NDArray[np.float64]
MAX_RELAXATIONS = 60
MAX_SPREADS = 3
MARGIN = 4.0
MAX_SIZE_DRAWS = 8
FEASIBILITY_DRAWS = 16


class Spec(SamplerSpec):
    """Disjoint boxes of random size and aspect, evenly spread, `gap` px apart."""

    sampler: Literal["scatter"] = "scatter"
    size: Range = Field((56, 88), description="longer side of a box, px: [least, most]")
    aspect: Range = Field((0.65, 1.7), description="width / height: [least, most], log-uniform")
    gap: float = Field(8, ge=0, description="px between two boxes on the nearer axis")

    @model_validator(mode="after")
    def fits_canvas(self) -> "Spec":
        if self.size[1] > min(self.canvas):
            raise ValueError(f"size: {self.size[1]:g} px is larger than the canvas ({self.canvas[0]} x {self.canvas[1]})")
        return self

    def check_feasible(self) -> None:
        """Raise InfeasibleLayoutError, with the largest number of boxes that fits, if the asked number does not."""
        asked = sum(self.objects.values())
        most = largest_feasible(self, asked)
        if most < asked:
            raise InfeasibleLayoutError(
                f"objects: {asked} boxes of {self.size[0]:g}-{self.size[1]:g} px with gap {self.gap:g} "
                f"do not fit {self.canvas[0]} x {self.canvas[1]}; the largest number that does is {most}"
            )

    def sample(self, rng: np.random.Generator) -> Layout:
        """One layout with exactly the asked boxes.

        Raises:
            InfeasibleLayoutError: no placement was found in bounded work.
        """
        categories = [name for name, count in self.objects.items() for _ in range(count)]
        for _ in range(MAX_SIZE_DRAWS):
            sides = draw_sides(self, rng, len(categories))
            corners = place(sides, np.array(self.canvas, float), self.gap, rng)
            if corners is not None:
                boxes = np.concatenate([corners, corners + sides], 1).astype(np.float32)
                shuffled = tuple(categories[i] for i in rng.permutation(len(categories)))
                return Layout(*self.canvas, boxes, shuffled)
        raise InfeasibleLayoutError(f"no room for {len(categories)} boxes after {MAX_SIZE_DRAWS} draws of their sizes")


def draw_sides(spec: Spec, rng: np.random.Generator, n: int) -> Floats:
    """Widths and heights (n, 2) in whole px: longer side uniform in `size`, aspect log-uniform in `aspect`."""
    u = rng.random((n, 2))  # row by row: the first boxes do not depend on how many follow
    longer = spec.size[0] + u[:, 0] * (spec.size[1] - spec.size[0])
    aspect = np.exp(np.log(spec.aspect[0]) + u[:, 1] * np.log(spec.aspect[1] / spec.aspect[0]))
    sides = np.stack([longer * np.minimum(aspect, 1), longer / np.maximum(aspect, 1)], 1)
    return np.maximum(np.floor(sides), 1)


def place(sides: Floats, canvas: Floats, gap: float, rng: np.random.Generator) -> Floats | None:
    """Top-left corners (n, 2) in whole px that keep boxes of `sides` (n, 2) inside and `gap` apart; None if none found."""
    if len(sides) == 0:
        return np.zeros((0, 2))
    for _ in range(MAX_SPREADS):
        corners = relax(spread(sides, canvas, rng), sides, canvas, gap)
        if corners is not None:
            return corners
    return shelves(sides, canvas, gap, rng)


def spread(sides: Floats, canvas: Floats, rng: np.random.Generator) -> Floats:
    """Stratified random corners (n, 2): one box a cell of a jittered grid that has at least n cells."""
    n = len(sides)
    columns = int(np.ceil(np.sqrt(n * canvas[0] / canvas[1])))
    rows = int(np.ceil(n / columns))
    cells = np.sort(rng.choice(columns * rows, n, replace=False))
    u = (np.stack([cells % columns, cells // columns], 1) + rng.random((n, 2))) / (columns, rows)
    return u * (canvas - sides)


def relax(corners: Floats, sides: Floats, canvas: Floats, gap: float) -> Floats | None:
    """Push boxes that are too near apart on their nearer axis, all pairs at once; None if some overlap stays.

    Boxes are pushed `MARGIN` px further than they need: without it the last overlaps only shrink by half a step.
    """
    (half_w, half_h), n = sides.T / 2, len(sides)
    need_x = half_w[:, None] + half_w[None] + gap + 1  # + 1: rounding to whole px at the end must not close the gap
    need_y = half_h[:, None] + half_h[None] + gap + 1
    np.fill_diagonal(need_x, -np.inf)
    tie = np.where(np.tri(n, dtype=bool), 1.0, -1.0)
    for _ in range(MAX_RELAXATIONS):
        x, y = (corners + sides / 2).T
        dx, dy = x[:, None] - x[None], y[:, None] - y[None]
        depth_x, depth_y = need_x - np.abs(dx), need_y - np.abs(dy)
        depth = np.minimum(depth_x, depth_y)
        if depth.max() <= 0:
            return np.floor(corners)
        push = np.maximum(depth + MARGIN, 0) / 2
        push_x = push * np.where(dx == 0, tie, np.sign(dx)) * (depth_x < depth_y)
        push_y = push * np.where(dy == 0, tie, np.sign(dy)) * (depth_x >= depth_y)
        corners = np.clip(corners + np.stack([push_x.sum(1), push_y.sum(1)], 1), 0, canvas - sides)
    return None


def shelves(sides: Floats, canvas: Floats, gap: float, rng: np.random.Generator) -> Floats | None:
    """Rows of boxes of falling height (next-fit decreasing height), the slack between them drawn at random."""
    rows = list(fill_rows(sides, canvas[0], gap))
    heights = np.array([sides[row, 1].max() for row in rows])
    slack_y = canvas[1] - heights.sum() - gap * (len(rows) - 1)
    if slack_y < 0:
        return None
    corners = np.zeros_like(sides)
    order = rng.permutation(len(rows))
    tops = np.cumsum(np.r_[0, heights[order][:-1] + gap]) + split(slack_y, len(rows), rng)
    for top, r in zip(tops, order, strict=True):
        row = rng.permutation(rows[r])
        widths = sides[row, 0]
        slack_x = canvas[0] - widths.sum() - gap * (len(row) - 1)
        corners[row, 0] = np.cumsum(np.r_[0, widths[:-1] + gap]) + split(slack_x, len(row), rng)
        corners[row, 1] = top + np.floor(rng.random(len(row)) * (heights[r] - sides[row, 1] + 1))
    return corners


def fill_rows(sides: Floats, width: float, gap: float) -> Iterator[list[int]]:
    """Indices of the boxes of each shelf, tallest first."""
    row: list[int] = []
    used = -gap
    for i in np.argsort(-sides[:, 1], kind="stable"):
        if row and used + gap + sides[i, 0] > width:
            yield row
            row, used = [], -gap
        row.append(int(i))
        used += gap + sides[i, 0]
    yield row


def split(slack: float, parts: int, rng: np.random.Generator) -> Floats:
    """Non-decreasing whole-px offsets (parts,) in [0, slack]."""
    return np.sort(np.floor(rng.random(parts) * (np.floor(slack) + 1)))


def largest_feasible(spec: Spec, most: int) -> int:
    """The largest number of boxes, up to `most`, that shelves hold in each of a few fixed draws of sizes.

    Never less than the grid of boxes of the largest size, which holds whatever is drawn.
    """
    width, height = spec.canvas
    cell = np.floor(spec.size[1]) + spec.gap
    sure = int((width + spec.gap) // cell) * int((height + spec.gap) // cell)
    if sure >= most:
        return most
    shorter = spec.size[0] / max(spec.aspect[1], 1 / spec.aspect[0])
    most = min(most, int((width + spec.gap) * (height + spec.gap) / (spec.size[0] * shorter)))  # by area alone
    fits = [shelf_count(draw_sides(spec, np.random.default_rng(k), most), spec) for k in range(FEASIBILITY_DRAWS)]
    return max(sure, min(fits))


def shelf_count(sides: Floats, spec: Spec) -> int:
    """How many of the first boxes of `sides` (n, 2) fit on shelves: bisection on the number."""
    canvas, low, high = np.array(spec.canvas, float), 0, len(sides)
    while low < high:
        middle = (low + high + 1) // 2
        if shelves(sides[:middle], canvas, spec.gap, np.random.default_rng(0)) is None:
            high = middle - 1
        else:
            low = middle
    return low
