"""Placement of boxes: disjoint ones by relaxation or on shelves, overlapping ones one by one."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from synthgen.geometry import box_areas, box_iou
from synthgen.layouts.base import Boxes

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
MAX_RELAXATIONS = 80
MARGIN = 0.06
"""The extra distance that boxes are pushed apart, relative to the mean side.

Without it the last overlaps would only halve with every step.
"""
ALL_PAIRS = 120
"""The largest number of boxes for which all pairs are compared."""
CANDIDATES = 48
"""How many positions are tested together for one box."""
FEASIBILITY_DRAWS = 3
MAX_ROUNDS = 12
"""How many times candidates are sampled for one box."""


def relax(corners: Floats, sides: Floats, canvas: Floats, gap: float) -> Floats | None:
    """Push boxes apart, all pairs at the same time, until they are disjoint.

    Each pair is pushed apart on the axis on which it overlaps less.

    Args:
        corners: (n, 2) top-left corners, px.
        sides: (n, 2) widths and heights, px.
        canvas: (2,) width and height, px.
        gap: the least distance of two boxes in px, on the axis on which they are farther apart.

    Returns:
        (n, 2) top-left corners in whole px; None if an overlap remains.
    """
    half_sides = sides / 2
    mean_side = float(sides.mean())
    slack = 0.5 * mean_side + gap
    margin = MARGIN * mean_side
    drift = np.inf  # the farthest that boxes may have moved since the pairs were determined
    i = j = np.zeros(0, np.intp)
    for _ in range(MAX_RELAXATIONS):
        if drift > slack / 2:
            i, j = find_near_pairs(corners, sides, gap + slack)
            drift = 0.0
            # + 1: rounding to whole px at the end must not close the gap
            min_distance = half_sides[i] + half_sides[j] + gap + 1
        offset = (corners + half_sides)[i] - (corners + half_sides)[j]
        overlap = min_distance - np.abs(offset)
        axis = (overlap[:, 0] >= overlap[:, 1]).astype(np.intp)
        rows = np.arange(len(i))
        least = overlap[rows, axis]
        if not (least > 0).any():
            if drift == 0.0 or len(corners) <= ALL_PAIRS:
                return np.floor(corners)
            drift = np.inf  # determine the pairs again before the result is accepted
            continue
        sign = np.where(offset[rows, axis] >= 0, 1.0, -1.0)
        push = np.where(least > -margin, (least + margin) / 2, 0.0) * sign
        push_x = _sum_pushes(i, j, np.where(axis == 0, push, 0.0), len(corners))
        push_y = _sum_pushes(i, j, np.where(axis == 1, push, 0.0), len(corners))
        moved = np.clip(corners + np.stack([push_x, push_y], 1), 0, canvas - sides)
        drift += float(np.abs(moved - corners).max())
        corners = moved
    return None


def _sum_pushes(i: Indices, j: Indices, push: Floats, n: int) -> Floats:
    """Return how far each of n boxes (n,) moves on one axis: box i by `push`, box j against it."""
    return np.asarray(np.bincount(i, push, n) - np.bincount(j, push, n), np.float64)


@lru_cache(maxsize=64)
def _all_pairs(n: int) -> tuple[Indices, Indices]:
    """Return all pairs of n boxes, each once."""
    i, j = np.triu_indices(n, 1)
    return i, j


def find_near_pairs(corners: Floats, sides: Floats, reach: float) -> tuple[Indices, Indices]:
    """Return the pairs of boxes that are less than `reach` px apart on both axes.

    For many boxes the pairs are searched in a grid of cells.

    Args:
        corners: (n, 2) top-left corners, px.
        sides: (n, 2) widths and heights, px.
    """
    n = len(corners)
    if n <= ALL_PAIRS:
        i, j = _all_pairs(n)
    else:
        i, j = _grid_pairs(corners + sides / 2, float(sides.max()) + reach)
    centres = corners + sides / 2
    gap = np.abs(centres[i] - centres[j]) - (sides[i] + sides[j]) / 2
    is_near = (gap < reach).all(1)
    return i[is_near], j[is_near]


def _grid_pairs(centres: Floats, cell: float) -> tuple[Indices, Indices]:
    """Return all pairs of points (n, 2) in the same or neighbouring cells, each once."""
    cells = np.floor(centres / cell).astype(np.int64)
    width = int(cells[:, 0].max()) + 3
    key = cells[:, 1] * width + cells[:, 0]
    order = np.argsort(key, kind="stable")
    sorted_key = key[order]
    firsts = []
    seconds = []
    for step in (0, 1, width - 1, width, width + 1):
        start = np.searchsorted(sorted_key, sorted_key + step, "left")
        stop = np.searchsorted(sorted_key, sorted_key + step, "right")
        if step == 0:
            start = np.arange(len(order)) + 1
        # List the range of points [start, stop) that each point forms pairs with.
        lengths = np.maximum(stop - start, 0)
        offsets = np.cumsum(lengths) - lengths
        i = np.repeat(np.arange(len(order)), lengths)
        j = np.arange(lengths.sum()) - np.repeat(offsets, lengths) + np.repeat(start, lengths)
        firsts.append(order[i])
        seconds.append(order[j])
    return np.concatenate(firsts), np.concatenate(seconds)


def place_on_shelves(
    sides: Floats, canvas: Floats, gap: float, rng: np.random.Generator
) -> Floats | None:
    """Place boxes in rows of falling height (next-fit decreasing height).

    Rows, the boxes of a row, and the free space between them are in random order.

    Args:
        sides: (n, 2) widths and heights, px.
        canvas: (2,) width and height, px.
        gap: the distance of two boxes, px.

    Returns:
        (n, 2) top-left corners in whole px; None if the rows do not fit the canvas.
    """
    rows = list(fill_rows(sides, canvas[0], gap))
    heights = np.array([sides[row, 1].max() for row in rows])
    free_y = canvas[1] - heights.sum() - gap * (len(rows) - 1)
    if free_y < 0:
        return None
    corners = np.zeros_like(sides)
    order = rng.permutation(len(rows))
    tops = np.cumsum(np.r_[0, heights[order][:-1] + gap]) + sample_offsets(free_y, len(rows), rng)
    for top, r in zip(tops, order, strict=True):
        row = rng.permutation(rows[r])
        widths = sides[row, 0]
        free_x = canvas[0] - widths.sum() - gap * (len(row) - 1)
        lefts = np.cumsum(np.r_[0, widths[:-1] + gap])
        corners[row, 0] = lefts + sample_offsets(free_x, len(row), rng)
        corners[row, 1] = top + np.floor(rng.random(len(row)) * (heights[r] - sides[row, 1] + 1))
    return corners


def fill_rows(sides: Floats, width: float, gap: float) -> Iterator[list[int]]:
    """Yield the indices of the boxes of each row, the tallest boxes first.

    Args:
        sides: (n, 2) widths and heights, px.
        width: the width of the canvas, px.
        gap: the distance of two boxes, px.
    """
    row: list[int] = []
    used = -gap
    for i in np.argsort(-sides[:, 1], kind="stable"):
        if row and used + gap + sides[i, 0] > width:
            yield row
            row = []
            used = -gap
        row.append(int(i))
        used += gap + sides[i, 0]
    yield row


def sample_offsets(free: float, count: int, rng: np.random.Generator) -> Floats:
    """Return random non-decreasing offsets (count,) in whole px, in [0, free]."""
    return np.sort(np.floor(rng.random(count) * (np.floor(free) + 1)))


def place_one_by_one(
    n: int, propose: Callable[[int, int], Floats], max_iou: float, gap: float
) -> Floats | None:
    """Place boxes in turn, each at its first candidate that overlaps no earlier box too much.

    Args:
        propose: a function of the index of a box and a number of candidates, which returns that
            many candidates (m, 4) xyxy, or fewer, in order of preference.
        max_iou: the largest IoU of two boxes; 0 means disjoint boxes that are `gap` px apart.

    Returns:
        (n, 4) xyxy; None if a box found no position after MAX_ROUNDS rounds.
    """
    placed = np.zeros((n, 4))
    growth = np.array([-gap, -gap, gap, gap]) if max_iou == 0 else np.zeros(4)
    for k in range(n):
        for _ in range(MAX_ROUNDS):
            candidates = propose(k, CANDIDATES)
            worst = box_iou(candidates + growth, placed[:k]).max(1, initial=0.0)
            allowed = np.flatnonzero(worst <= max_iou)
            if len(allowed):
                placed[k] = candidates[allowed[0]]
                break
        else:
            return None
    return placed


def count_largest_placement(n: int, fits: Callable[[int, int], bool]) -> int:
    """Return the largest number of boxes, up to n, that was found to fit.

    It is n if one of a few attempts with n boxes succeeds, else the result of a bisection.

    Args:
        fits: a function of a number of boxes and the number of the attempt, which returns whether
            they fit.
    """
    if n == 0 or any(fits(n, attempt) for attempt in range(FEASIBILITY_DRAWS)):
        return n
    low = 0
    high = n - 1
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle, 0):
            low = middle
        else:
            high = middle - 1
    return low


def compute_occlusion(
    boxes: Boxes, depth: NDArray[np.float32], canvas: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the share (N,) of each box that nearer boxes cover, counted in whole px.

    Args:
        boxes: (N, 4) xyxy, px.
        depth: (N,) distances; larger is farther.
        canvas: width and height, px.
    """
    owner = np.full((canvas[1], canvas[0]), -1, np.int32)
    corners = np.round(boxes).astype(int)
    for i in np.argsort(-depth, kind="stable"):
        x0, y0, x1, y1 = corners[i]
        owner[y0:y1, x0:x1] = i
    visible = np.zeros(len(boxes), int)
    for i, (x0, y0, x1, y1) in enumerate(corners):
        visible[i] = (owner[y0:y1, x0:x1] == i).sum()
    area = np.maximum(box_areas(corners), 1)
    return (1 - visible / area).astype(np.float32)
