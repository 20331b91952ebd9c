"""Disjoint boxes of random size, spread over the canvas."""

from typing import Literal

import numpy as np
from pydantic import Field

from synthgen.layouts.base import InfeasibleLayoutError, Layout
from synthgen.layouts.objects import Floats, ObjectsSpec
from synthgen.layouts.placement import relax, shelves

MAX_SPREADS = 3
MAX_SIZE_DRAWS = 8
FEASIBILITY_DRAWS = 16
BLUE_NOISE_CANDIDATES = 8


class Spec(ObjectsSpec):
    """Disjoint boxes of random size and aspect, spread over the canvas, `gap` px apart."""

    sampler: Literal["scatter"] = "scatter"
    gap: float = Field(8, ge=0, description="px between two boxes on the nearer axis")
    spread: Literal["even", "blue-noise", "random"] = Field(
        "even",
        description="even: one box a cell of a jittered grid; blue-noise: far from each other; random: anywhere",
    )

    @property
    def may_overlap(self) -> bool:
        return False

    def check_feasible(self) -> None:
        """Raise InfeasibleLayoutError, with the largest number of boxes that fits, if the asked number does not."""
        names = self.most_names()
        most = largest_feasible(self, names)
        if most < len(names):
            raise InfeasibleLayoutError(
                f"objects: {len(names)} boxes of {self.describe_sizes()} with gap {self.gap:g} "
                f"do not fit {self.canvas[0]} x {self.canvas[1]}; the largest number that does is {most}"
            )

    def sample(self, rng: np.random.Generator, index: int = 0) -> Layout:
        """One layout with exactly the asked boxes.

        Raises:
            InfeasibleLayoutError: no placement was found in bounded work.
        """
        names, canvas = self.draw_names(rng), np.array(self.canvas, float)
        for _ in range(MAX_SIZE_DRAWS):
            sides = self.draw_sides(names, rng)
            corners = place(self, sides, canvas, rng)
            if corners is not None:
                boxes = np.concatenate([corners, corners + sides], 1).astype(np.float32)
                return Layout(*self.canvas, boxes, tuple(names), labelled=self.labelled(names))
        raise InfeasibleLayoutError(
            f"no room for {len(names)} boxes after {MAX_SIZE_DRAWS} draws of their sizes"
        )


def place(spec: Spec, sides: Floats, canvas: Floats, rng: np.random.Generator) -> Floats | None:
    """Top-left corners (n, 2) in whole px that keep boxes of `sides` (n, 2) inside and apart; None if none found."""
    if len(sides) == 0:
        return np.zeros((0, 2))
    first = {"even": even, "blue-noise": blue_noise, "random": anywhere}[spec.spread]
    for _ in range(MAX_SPREADS):
        corners = relax(first(sides, canvas, rng), sides, canvas, spec.gap)
        if corners is not None:
            return corners
    return shelves(sides, canvas, spec.gap, rng)


def even(sides: Floats, canvas: Floats, rng: np.random.Generator) -> Floats:
    """Stratified random corners (n, 2): one box a cell of a jittered grid that has at least n cells."""
    n = len(sides)
    columns = int(np.ceil(np.sqrt(n * canvas[0] / canvas[1])))
    rows = int(np.ceil(n / columns))
    cells = np.sort(rng.choice(columns * rows, n, replace=False))
    u = (np.stack([cells % columns, cells // columns], 1) + rng.random((n, 2))) / (columns, rows)
    return u * (canvas - sides)


def blue_noise(sides: Floats, canvas: Floats, rng: np.random.Generator) -> Floats:
    """Corners (n, 2), each the farthest of some random candidates from those before (Mitchell's best candidate, 1991).

    Distances are taken on a torus, so that nothing is drawn to the border.
    """
    n, u = len(sides), np.zeros((len(sides), 2))
    for k in range(n):
        candidates = rng.random((BLUE_NOISE_CANDIDATES, 2))
        d = np.abs(candidates[:, None] - u[None, :k])
        d = np.minimum(d, 1 - d) * canvas
        u[k] = candidates[(d**2).sum(2).min(1, initial=np.inf).argmax()]
    return u * (canvas - sides)


def anywhere(sides: Floats, canvas: Floats, rng: np.random.Generator) -> Floats:
    """Independent uniform corners (n, 2)."""
    return rng.random(sides.shape) * (canvas - sides)


def largest_feasible(spec: Spec, names: list[str]) -> int:
    """The largest number of the boxes, from the first on, that shelves hold in each of a few fixed draws of sizes.

    Never less than the grid of boxes of the largest size, which holds whatever is drawn.
    """
    (width, height), longest = spec.canvas, max(
        ((o.size or spec.size).longest(o.aspect or spec.aspect) for o in spec.objects.values()), default=1.0
    )  # fmt: skip
    cell = np.floor(longest) + spec.gap
    sure = int((width + spec.gap) // cell) * int((height + spec.gap) // cell)
    if sure >= len(names):
        return len(names)
    draws = (spec.draw_sides(names, np.random.default_rng(k)) for k in range(FEASIBILITY_DRAWS))
    return max(sure, min(shelf_count(sides, spec) for sides in draws))


def shelf_count(sides: Floats, spec: Spec) -> int:
    """How many of the first boxes of `sides` (n, 2) fit on shelves: bisection on the number."""
    canvas, low = np.array(spec.canvas, float), 0
    high = int(
        np.searchsorted(np.cumsum((sides + spec.gap).prod(1)), (canvas + spec.gap).prod(), "right")
    )  # by area
    while low < high:
        middle = (low + high + 1) // 2
        if shelves(sides[:middle], canvas, spec.gap, np.random.default_rng(0)) is None:
            high = middle - 1
        else:
            low = middle
    return low
