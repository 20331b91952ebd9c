"""GLIGEN's gated layers: which boxes a window is told of, and how strongly they act (Li et al., arXiv 2301.07093)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import GatedSelfAttentionDense
from numpy.typing import NDArray

from synthgen.geometry import box_areas, shares_inside
from synthgen.layouts.base import HELD, Layout
from synthgen.pipelines.diffusion.windows import background_windows


@dataclass(frozen=True)
class GroundedWindow:
    """A window of a canvas and the boxes that it is told of.

    Attributes:
        window: x0, y0, x1, y1 in latent cells.
        indices: of the boxes.
        boxes: (n, 4) float32, xyxy as shares of the window, clipped to it.
    """

    window: tuple[int, int, int, int]
    indices: tuple[int, ...]
    boxes: NDArray[np.float32]

    def layout(self, whole: Layout, factor: int) -> Layout:
        """Its boxes in px of the window, with their names and phrases; factor: px a latent cell."""
        x0, y0, x1, y1 = (factor * v for v in self.window)
        own = whole.select(self.indices)
        sides = np.array([x1 - x0, y1 - y0] * 2, np.float32)
        return Layout(x1 - x0, y1 - y0, self.boxes * sides, own.categories, own.phrases)


def grounded_windows(
    boxes: NDArray[np.float32],
    canvas: tuple[int, int],
    factor: int,
    multiple: int,
    side: int,
    overlap: float,
    most: int,
) -> list[GroundedWindow]:
    """Overlapping windows that cover a canvas, each with the boxes of which it holds at least half.

    A box of which no window holds half counts for the one that holds most of it. A window of more than `most` boxes is
    split in two, across its longer side, as long as its parts can be halved by the UNet; beyond that its largest ones count.

    Args:
        boxes: (N, 4) xyxy in px.
        canvas: width, height in px.
        factor: px a latent cell.
        multiple: window sides are multiples of this many cells.
        side: of a window, in cells.
        overlap: least share of a window that its neighbour covers too.
        most: boxes that a window can be told of.
    """
    todo = [tuple(w) for w in background_windows(canvas, factor, multiple, side, overlap).tolist()]
    cells, found = boxes.astype(np.float64) / factor, []
    while todo:
        window = todo.pop(0)
        inside = shares_inside(cells, [window])[:, 0] >= HELD
        if inside.sum() <= most or not (parts := halves(window, multiple)):
            found.append(window)
        else:
            todo[:0] = parts
    shares = shares_inside(cells, found)
    told = shares >= HELD
    told[np.arange(len(boxes)), shares.argmax(1)] |= ~told.any(1)
    return [
        _grounded(window, cells, np.flatnonzero(told[:, k]), most) for k, window in enumerate(found)
    ]


def halves(window: Sequence[int], multiple: int) -> list[tuple[int, ...]]:
    """Two windows that cover one, split across its longer side; none if it is too small for that."""
    x0, y0, x1, y1 = window
    axis = 0 if x1 - x0 >= y1 - y0 else 1
    length = (x1 - x0, y1 - y0)[axis]
    half = -(-length // 2 // multiple) * multiple
    if half >= length or half < 2 * multiple:
        return []
    first, second = list(window), list(window)
    first[axis + 2], second[axis] = window[axis] + half, window[axis + 2] - half
    return [tuple(first), tuple(second)]


def _grounded(
    window: Sequence[int], cells: NDArray[np.float64], indices: NDArray[np.int64], most: int
) -> GroundedWindow:
    areas = box_areas(cells[indices])
    kept = np.sort(indices[np.argsort(-areas, kind="stable")[:most]])
    x0, y0, x1, y1 = window
    sides = np.array([x1 - x0, y1 - y0] * 2)
    shares = ((cells[kept] - [x0, y0, x0, y0]) / sides).clip(0, 1).astype(np.float32)
    return GroundedWindow((x0, y0, x1, y1), tuple(kept.tolist()), shares)


def strengths(steps: int, stages: tuple[float, float], rounding: str = "down") -> list[float]:
    """Return how strongly the gated layers act at each step: scheduled sampling, section 3.3 of the paper.

    Args:
        stages: shares of the steps: fully on, then falling linearly to 0; in the rest they are off.
        rounding: of the steps that are fully on, where their number is not whole; "down" as diffusers, or "up".
    """
    on, falling = stages[0] * steps, stages[1] * steps
    if rounding == "down":
        on = int(on)
    return [
        1.0 if i < on else max(0.0, 1 - (i + 0.5 - on) / falling) if i < on + falling else 0.0
        for i in range(steps)
    ]


class Gates:
    """The gates of a UNet's gated layers, which can be scaled."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.layers = [m for m in unet.modules() if isinstance(m, GatedSelfAttentionDense)]
        self.alphas = [
            (m.alpha_attn.detach().clone(), m.alpha_dense.detach().clone()) for m in self.layers
        ]
        self.scale: float | None = None  # not known: another pipeline may have shut them

    def set(self, scale: float) -> None:
        """Let the layers act `scale` times as strongly as trained, in [0, 1]: x + scale tanh(alpha) f(x)."""
        if scale == self.scale:
            return
        self.scale = scale
        for layer, alphas in zip(self.layers, self.alphas, strict=True):
            layer.enabled = scale > 0
            for parameter, alpha in zip((layer.alpha_attn, layer.alpha_dense), alphas, strict=True):
                parameter.data.copy_(
                    alpha if scale == 1 else torch.atanh(scale * torch.tanh(alpha.double()))
                )


@contextmanager
def gates(unet: UNet2DConditionModel) -> Iterator[Gates]:
    """The gates of a UNet, as trained again afterwards."""
    found = Gates(unet)
    try:
        yield found
    finally:
        found.set(1.0)
