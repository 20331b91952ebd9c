"""Where boxes go: disjoint ones by relaxation or on shelves, overlapping ones one after another."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from synthgen.geometry import box_areas, box_iou
from synthgen.layouts.base import Boxes

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
MAX_RELAXATIONS = 80
MARGIN = 0.06  # of a side: boxes are pushed further than they need, or the last overlaps would only shrink by half a step
ALL_PAIRS = 120  # boxes up to which all pairs are looked at
CANDIDATES = 48  # places that are tried at once for one box
FEASIBILITY_DRAWS = 3
MAX_ROUNDS = 12  # of candidates for one box


def relax(corners: Floats, sides: Floats, canvas: Floats, gap: float) -> Floats | None:
    """Push boxes that are too near apart on their nearer axis, all pairs at once; None if some overlap stays.

    Args:
        corners: (n, 2) top-left corners, px.
        sides: (n, 2) widths and heights, px.
        canvas: width, height, px.
        gap: px that two boxes keep between them on the nearer axis.
    """
    need, slack, margin = sides / 2, 0.5 * float(sides.mean()) + gap, MARGIN * float(sides.mean())
    far = np.inf  # how far boxes may have moved since the pairs were looked for
    i = j = np.zeros(0, np.intp)
    for _ in range(MAX_RELAXATIONS):
        if far > slack / 2:
            i, j = near_pairs(corners, sides, gap + slack)
            far = 0.0
            apart = (
                need[i] + need[j] + gap + 1
            )  # + 1: rounding to whole px at the end must not close the gap
        d = (corners + need)[i] - (corners + need)[j]
        depth = apart - np.abs(d)
        axis = (depth[:, 0] >= depth[:, 1]).astype(
            np.intp
        )  # the nearer axis is the one with less depth
        rows = np.arange(len(i))
        least = depth[rows, axis]
        touching = least > 0
        if not touching.any():
            if far == 0.0 or len(corners) <= ALL_PAIRS:
                return np.floor(corners)
            far = np.inf  # look again for pairs before saying so
            continue
        sign = np.where(d[rows, axis] >= 0, 1.0, -1.0)
        push = np.where(least > -margin, (least + margin) / 2, 0.0) * sign
        moved = np.stack(
            [_pushed(i, j, np.where(axis == k, push, 0.0), len(corners)) for k in (0, 1)], 1
        )
        new = np.clip(corners + moved, 0, canvas - sides)
        far += float(np.abs(new - corners).max())
        corners = new
    return None


def _pushed(i: Indices, j: Indices, push: Floats, n: int) -> Floats:
    return np.asarray(np.bincount(i, push, n) - np.bincount(j, push, n), np.float64)


@lru_cache(maxsize=64)
def _all_pairs(n: int) -> tuple[Indices, Indices]:
    i, j = np.triu_indices(n, 1)
    return i, j


def near_pairs(corners: Floats, sides: Floats, reach: float) -> tuple[Indices, Indices]:
    """Pairs of boxes that may be nearer than `reach` px on both axes: at least those, from a grid of cells."""
    n = len(corners)
    if n <= ALL_PAIRS:
        i, j = _all_pairs(n)
    else:
        i, j = _grid_pairs(corners + sides / 2, float(sides.max()) + reach)
    gap = np.abs((corners + sides / 2)[i] - (corners + sides / 2)[j]) - (sides[i] + sides[j]) / 2
    near = (gap < reach).all(1)
    return i[near], j[near]


def _grid_pairs(centres: Floats, cell: float) -> tuple[Indices, Indices]:
    """All pairs of points in equal or neighbouring cells, each once."""
    c = np.floor(centres / cell).astype(np.int64)
    width = int(c[:, 0].max()) + 3
    key = c[:, 1] * width + c[:, 0]
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    first, second = [], []
    for step in (0, 1, width - 1, width, width + 1):
        start = np.searchsorted(ordered, ordered + step, "left")
        stop = np.searchsorted(ordered, ordered + step, "right")
        if step == 0:
            start = np.arange(len(order)) + 1
        lengths = np.maximum(stop - start, 0)
        i = np.repeat(np.arange(len(order)), lengths)
        j = (
            np.arange(lengths.sum())
            - np.repeat(np.cumsum(lengths) - lengths, lengths)
            + np.repeat(start, lengths)
        )
        first.append(order[i])
        second.append(order[j])
    return np.concatenate(first), np.concatenate(second)


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


def one_by_one(
    n: int, propose: Callable[[int, int], Floats], max_iou: float, gap: float
) -> Floats | None:
    """Place boxes in turn, each at the first of its candidates that overlaps no earlier box by more than `max_iou`.

    Args:
        propose: (number of the box, how many) to candidates (how many, 4) xyxy, in order of preference.
        max_iou: 0: disjoint, `gap` px apart.

    Returns:
        (n, 4) xyxy; None if a box found no place in bounded work.
    """
    placed = np.zeros((n, 4))
    grown = np.array([-gap, -gap, gap, gap]) if max_iou == 0 else np.zeros(4)
    for k in range(n):
        for _ in range(MAX_ROUNDS):
            candidates = propose(k, CANDIDATES)
            worst = box_iou(candidates + grown, placed[:k]).max(1, initial=0.0)
            free = np.nonzero(worst <= max_iou)[0]
            if len(free):
                placed[k] = candidates[free[0]]
                break
        else:
            return None
    return placed


def most_placed(n: int, fits: Callable[[int, int], bool]) -> int:
    """The largest number of boxes, up to n, found to fit: n in one of a few draws, else by bisection.

    Args:
        fits: (number of boxes, number of the draw) to whether they found room.
    """
    if n == 0 or any(fits(n, k) for k in range(FEASIBILITY_DRAWS)):
        return n
    low, high = 0, n - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle, 0) else (low, middle - 1)
    return low


def occluded(
    boxes: Boxes, depth: NDArray[np.float32], canvas: tuple[int, int]
) -> NDArray[np.float32]:
    """Share (N,) of each box that nearer boxes cover when they are drawn from far to near, counted in px."""
    owner = np.full((canvas[1], canvas[0]), -1, np.int32)
    corners = np.round(boxes).astype(int)
    for i in np.argsort(-depth, kind="stable"):
        x0, y0, x1, y1 = corners[i]
        owner[y0:y1, x0:x1] = i
    visible = np.array(
        [(owner[y0:y1, x0:x1] == i).sum() for i, (x0, y0, x1, y1) in enumerate(corners)]
    )
    area = np.maximum(box_areas(corners), 1)
    return (1 - visible / area).astype(np.float32)
