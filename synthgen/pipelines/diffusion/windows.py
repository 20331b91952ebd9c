"""Windows of a canvas, in latent cells: round each box, and tiled over the background."""

import numpy as np
from numpy.typing import NDArray

from synthgen.geometry import box_centres, box_sides

Windows = NDArray[np.int64]


def object_windows(
    boxes: NDArray[np.float32],
    canvas: tuple[int, int],
    factor: int,
    multiple: int,
    least: int,
    context: float,
) -> Windows:
    """The window of each box: the box and `context` of its side on each side.

    Args:
        boxes: (N, 4) xyxy in px.
        canvas: width, height in px.
        factor: px a latent cell (the VAE's downsampling).
        multiple: window sides are multiples of this many cells (what the UNet can halve).
        least: smallest window side in cells: what the checkpoint was trained at.
        context: share of the box's side added on each side.

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


def background_windows(
    canvas: tuple[int, int], factor: int, multiple: int, side: int, overlap: float
) -> Windows:
    """Equal square windows that cover the canvas, evenly spaced: (M, 4) x0, y0, x1, y1 in cells.

    Args:
        canvas: width, height in px.
        factor: as for object_windows.
        multiple: as for object_windows.
        side: window side in cells.
        overlap: least share of a window that its neighbour covers too, in [0, 1).
    """
    xs, ys = (_starts(n // factor, multiple, side, overlap) for n in canvas)
    return np.array([(x0, y0, x1, y1) for y0, y1 in ys for x0, x1 in xs], np.int64).reshape(-1, 4)


def _starts(cells: int, multiple: int, side: int, overlap: float) -> list[tuple[int, int]]:
    side = min(side, cells // multiple * multiple)
    count = 1 if side == cells else int(np.ceil((cells - side) / (side * (1 - overlap)))) + 1
    return [(int(s), int(s) + side) for s in np.round(np.linspace(0, cells - side, count))]
