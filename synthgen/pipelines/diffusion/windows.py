"""Windows of a canvas, in latent cells: one around each box, and tiles over the background."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from synthgen.geometry import box_centres, box_sides, clip_boxes

Windows = NDArray[np.int64]


def place_object_windows(
    boxes: NDArray[np.float32],
    canvas: tuple[int, int],
    factor: int,
    multiple: int,
    least: int,
    context: float,
) -> Windows:
    """Return the window of each box: the box and `context` of its side on each side.

    Args:
        boxes: (N, 4) xyxy in px.
        canvas: width, height in px.
        factor: px per latent cell (the downsampling of the VAE).
        multiple: window sides are multiples of this many cells (so that the UNet can halve them).
        least: smallest window side in cells: the size that the checkpoint was trained at.
        context: share of the box's side that is added on each side.

    Returns:
        (N, 4) x0, y0, x1, y1 in cells, inside the canvas.
    """
    cells = np.array(canvas) // factor
    centre = box_centres(boxes) / factor
    wanted = box_sides(boxes) * (1 + 2 * context) / factor
    sides = np.maximum(np.ceil(wanted / multiple).astype(np.int64) * multiple, least)
    sides = np.minimum(sides, cells // multiple * multiple)
    low = np.clip(np.round(centre - sides / 2).astype(np.int64), 0, cells - sides)
    return np.concatenate([low, low + sides], 1)


def extend_boxes(
    boxes: NDArray[np.float32], canvas: tuple[int, int], outset: Sequence[float]
) -> NDArray[np.float32]:
    """Move the edges of boxes outwards, at most to the edges of the canvas.

    Args:
        boxes: (N, 4) xyxy in px.
        canvas: width, height in px.
        outset: by which share of a box's width or height its left, top, right and bottom edges move
            outwards; inwards if negative.

    Returns:
        (N, 4) xyxy in px.
    """
    sides = np.tile(box_sides(boxes), 2)
    outwards = np.array([-1, -1, 1, 1])
    extended = boxes + sides * np.array(outset) * outwards
    return clip_boxes(extended, *canvas).astype(np.float32)


def place_background_windows(
    canvas: tuple[int, int], factor: int, multiple: int, side: int, overlap: float
) -> Windows:
    """Return equal, evenly spaced square windows that cover the canvas.

    Args:
        canvas: width, height in px.
        factor: the same as in `place_object_windows`.
        multiple: the same as in `place_object_windows`.
        side: window side in cells.
        overlap: least share of a window that its neighbour also covers, in [0, 1).

    Returns:
        (M, 4) x0, y0, x1, y1 in cells, row by row.
    """
    width, height = canvas
    columns = _split_axis(width // factor, multiple, side, overlap)
    rows = _split_axis(height // factor, multiple, side, overlap)
    windows = []
    for y0, y1 in rows:
        for x0, x1 in columns:
            windows.append((x0, y0, x1, y1))
    return np.array(windows, np.int64).reshape(-1, 4)


def _split_axis(cells: int, multiple: int, side: int, overlap: float) -> list[tuple[int, int]]:
    """Return the half-open ranges [start, stop) of the windows along an axis of the canvas."""
    side = min(side, cells // multiple * multiple)
    count = 1
    if side < cells:
        count += int(np.ceil((cells - side) / (side * (1 - overlap))))
    starts = np.round(np.linspace(0, cells - side, count)).astype(int).tolist()
    return [(start, start + side) for start in starts]
