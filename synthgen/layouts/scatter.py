"""A sampler of disjoint boxes of random size, spread over the canvas."""

from typing import Literal

import numpy as np
from pydantic import Field

from synthgen.layouts.base import InfeasibleLayoutError, Layout
from synthgen.layouts.objects import Floats, ObjectsSpec
from synthgen.layouts.placement import place_on_shelves, relax

MAX_SPREADS = 3
MAX_SIZE_DRAWS = 8
FEASIBILITY_DRAWS = 16
BLUE_NOISE_CANDIDATES = 8


class Spec(ObjectsSpec):
    """Disjoint boxes of random size and aspect ratio, spread over the canvas, `gap` px apart."""

    sampler: Literal["scatter"] = "scatter"
    gap: float = Field(
        8, ge=0, description="Minimum distance of two boxes in px, horizontally or vertically."
    )
    spread: Literal["even", "blue-noise", "random"] = Field(
        "even",
        description="Distribution of the positions; even: at most one box in each cell of a "
        "jittered grid; blue-noise: boxes far from each other; random: independent positions.",
    )

    @property
    def may_overlap(self) -> bool:
        return False

    def check_feasible(self) -> None:
        """Raise InfeasibleLayoutError, with the largest number that fits, if the boxes do not."""
        names = self.most_names()
        most = count_feasible(self, names)
        if most < len(names):
            width, height = self.canvas
            raise InfeasibleLayoutError(
                f"objects: {len(names)} boxes of {self.describe_sizes()} with gap {self.gap:g} "
                f"do not fit {width} x {height}; the largest number that does is {most}"
            )

    def sample(self, rng: np.random.Generator, index: int = 0) -> Layout:
        """Return a layout with exactly the requested boxes.

        Raises:
            InfeasibleLayoutError: no placement was found in a bounded number of attempts.
        """
        names = self.sample_categories(rng)
        canvas = np.array(self.canvas, float)
        for _ in range(MAX_SIZE_DRAWS):
            sides = self.sample_sides(names, rng)
            corners = place(self, sides, canvas, rng)
            if corners is not None:
                boxes = np.concatenate([corners, corners + sides], 1).astype(np.float32)
                return Layout(*self.canvas, boxes, tuple(names), labelled=self.label_flags(names))
        raise InfeasibleLayoutError(
            f"no room for {len(names)} boxes after {MAX_SIZE_DRAWS} samples of their sizes"
        )


def place(spec: Spec, sides: Floats, canvas: Floats, rng: np.random.Generator) -> Floats | None:
    """Place boxes inside the canvas, at least the spec's gap apart.

    Args:
        sides: (n, 2) widths and heights, px.
        canvas: (2,) width and height, px.

    Returns:
        (n, 2) top-left corners in whole px; None if no placement was found.
    """
    if len(sides) == 0:
        return np.zeros((0, 2))
    spread = {"even": spread_evenly, "blue-noise": spread_blue_noise, "random": spread_randomly}
    for _ in range(MAX_SPREADS):
        corners = relax(spread[spec.spread](sides, canvas, rng), sides, canvas, spec.gap)
        if corners is not None:
            return corners
    return place_on_shelves(sides, canvas, spec.gap, rng)


def spread_evenly(sides: Floats, canvas: Floats, rng: np.random.Generator) -> Floats:
    """Return stratified random corners (n, 2): at most one in each cell of a jittered grid."""
    n = len(sides)
    columns = int(np.ceil(np.sqrt(n * canvas[0] / canvas[1])))
    rows = int(np.ceil(n / columns))
    cells = np.sort(rng.choice(columns * rows, n, replace=False))
    u = (np.stack([cells % columns, cells // columns], 1) + rng.random((n, 2))) / (columns, rows)
    return u * (canvas - sides)


def spread_blue_noise(sides: Floats, canvas: Floats, rng: np.random.Generator) -> Floats:
    """Return corners (n, 2) by Mitchell's best-candidate algorithm (1991).

    Each corner is the farthest from earlier ones among a few random candidates. Distances are
    measured on a torus, so that the border does not attract boxes.
    """
    n = len(sides)
    u = np.zeros((n, 2))
    for k in range(n):
        candidates = rng.random((BLUE_NOISE_CANDIDATES, 2))
        d = np.abs(candidates[:, None] - u[None, :k])
        d = np.minimum(d, 1 - d) * canvas
        u[k] = candidates[(d**2).sum(2).min(1, initial=np.inf).argmax()]
    return u * (canvas - sides)


def spread_randomly(sides: Floats, canvas: Floats, rng: np.random.Generator) -> Floats:
    """Return independent uniform corners (n, 2)."""
    return rng.random(sides.shape) * (canvas - sides)


def count_feasible(spec: Spec, names: list[str]) -> int:
    """Return how many of the boxes, from the first on, fit for certain.

    This is the largest number that fits on shelves in each of a few fixed samples of sizes, or the
    number of grid cells for boxes of the largest size, whichever is larger.
    """
    cell = np.floor(spec.longest_side(default=1.0)) + spec.gap
    width, height = spec.canvas
    grid_cells = int((width + spec.gap) // cell) * int((height + spec.gap) // cell)
    if grid_cells >= len(names):
        return len(names)
    counts = []
    for k in range(FEASIBILITY_DRAWS):
        sides = spec.sample_sides(names, np.random.default_rng(k))
        counts.append(count_on_shelves(sides, spec))
    return max(grid_cells, min(counts))


def count_on_shelves(sides: Floats, spec: Spec) -> int:
    """Return how many of the first boxes of `sides` (n, 2) fit on shelves, found by bisection."""
    canvas = np.array(spec.canvas, float)
    areas = np.cumsum((sides + spec.gap).prod(1))
    low = 0
    high = int(np.searchsorted(areas, (canvas + spec.gap).prod(), "right"))
    while low < high:
        middle = (low + high + 1) // 2
        if place_on_shelves(sides[:middle], canvas, spec.gap, np.random.default_rng(0)) is None:
            high = middle - 1
        else:
            low = middle
    return low
