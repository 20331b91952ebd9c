"""GLIGEN's gated layers: which boxes each window reads, and how strongly the layers act.

Source: Li et al., "GLIGEN: Open-Set Grounded Text-to-Image Generation" (arXiv 2301.07093).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import GatedSelfAttentionDense
from numpy.typing import NDArray

from synthgen.geometry import box_areas, shares_inside
from synthgen.layouts.base import MIN_SHARE_INSIDE, Layout
from synthgen.pipelines.diffusion.windows import place_background_windows


@dataclass(frozen=True)
class GroundedWindow:
    """A window of a canvas and the boxes that it reads.

    Attributes:
        window: x0, y0, x1, y1 in latent cells.
        indices: the indices of the boxes.
        boxes: (n, 4) float32, xyxy as shares of the window, clipped to it.
    """

    window: tuple[int, int, int, int]
    indices: tuple[int, ...]
    boxes: NDArray[np.float32]

    def layout(self, whole: Layout, factor: int) -> Layout:
        """Return the window's boxes in px of the window, with their names and phrases.

        Args:
            whole: the layout of the canvas.
            factor: px per latent cell.
        """
        x0, y0, x1, y1 = (factor * v for v in self.window)
        width = x1 - x0
        height = y1 - y0
        selected = whole.select(self.indices)
        boxes = self.boxes * np.array([width, height] * 2, np.float32)
        return Layout(width, height, boxes, selected.categories, selected.phrases)


def build_grounded_windows(
    boxes: NDArray[np.float32],
    canvas: tuple[int, int],
    factor: int,
    multiple: int,
    side: int,
    overlap: float,
    max_boxes: int,
) -> list[GroundedWindow]:
    """Return overlapping windows that cover a canvas, each with the boxes of which it holds half.

    A box of which no window holds half is assigned to the window that holds most of it. A window
    with more than `max_boxes` boxes is split in two across its longer side, as long as the UNet can
    halve the results. If it cannot be split further, only its largest boxes are kept.

    Args:
        boxes: (N, 4) xyxy in px.
        canvas: width, height in px.
        factor: px per latent cell.
        multiple: window sides are multiples of this many cells.
        side: side of a window in cells.
        overlap: least share of a window that its neighbour also covers.
        max_boxes: number of boxes that a window can read.
    """
    cells = boxes.astype(np.float64) / factor
    pending: list[tuple[int, ...]] = []
    for window in place_background_windows(canvas, factor, multiple, side, overlap).tolist():
        pending.append(tuple(window))
    windows = []
    while pending:
        candidate = pending.pop(0)
        count = (shares_inside(cells, [candidate])[:, 0] >= MIN_SHARE_INSIDE).sum()
        smaller = halves(candidate, multiple) if count > max_boxes else []
        if smaller:
            pending[:0] = smaller
        else:
            windows.append(candidate)
    shares = shares_inside(cells, windows)
    assigned = shares >= MIN_SHARE_INSIDE
    assigned[np.arange(len(boxes)), shares.argmax(1)] |= ~assigned.any(1)
    grounded = []
    for k, window in enumerate(windows):
        indices = np.flatnonzero(assigned[:, k])
        grounded.append(_ground_window(window, cells, indices, max_boxes))
    return grounded


def halves(window: Sequence[int], multiple: int) -> list[tuple[int, ...]]:
    """Return two windows that cover one, split across its longer side; [] if it is too small."""
    x0, y0, x1, y1 = window
    axis = 0 if x1 - x0 >= y1 - y0 else 1
    length = window[axis + 2] - window[axis]
    half = -(-length // 2 // multiple) * multiple
    if half >= length or half < 2 * multiple:
        return []
    first = list(window)
    second = list(window)
    first[axis + 2] = window[axis] + half
    second[axis] = window[axis + 2] - half
    return [tuple(first), tuple(second)]


def _ground_window(
    window: Sequence[int], cells: NDArray[np.float64], indices: NDArray[np.int64], max_boxes: int
) -> GroundedWindow:
    """Return a window with the largest of its boxes.

    Args:
        cells: (N, 4) all boxes, xyxy in latent cells.
        indices: the indices of the boxes that are assigned to the window.
    """
    areas = box_areas(cells[indices])
    largest = np.argsort(-areas, kind="stable")[:max_boxes]
    selected = np.sort(indices[largest])
    x0, y0, x1, y1 = window
    sides = np.array([x1 - x0, y1 - y0] * 2)
    shares = (cells[selected] - [x0, y0, x0, y0]) / sides
    clipped = shares.clip(0, 1).astype(np.float32)
    return GroundedWindow((x0, y0, x1, y1), tuple(selected.tolist()), clipped)


def compute_strengths(
    steps: int, stages: tuple[float, float], rounding: str = "down"
) -> list[float]:
    """Return how strongly the gated layers act at each step, in [0, 1].

    This is the scheduled sampling of section 3.3 of the paper.

    Args:
        stages: two shares of the steps. In the first the layers act fully, in the second their
            strength falls linearly to 0, and in the remaining steps they are off.
        rounding: how the first number of steps is rounded: "down" as in diffusers, or "up".
    """
    full_steps = stages[0] * steps
    falling_steps = stages[1] * steps
    if rounding == "down":
        full_steps = int(full_steps)
    values = []
    for i in range(steps):
        if i < full_steps:
            values.append(1.0)
        elif i < full_steps + falling_steps:
            values.append(max(0.0, 1 - (i + 0.5 - full_steps) / falling_steps))
        else:
            values.append(0.0)
    return values


class Gates:
    """The gates of a UNet's gated layers, which can be scaled."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.layers = [m for m in unet.modules() if isinstance(m, GatedSelfAttentionDense)]
        self.alphas = []
        for layer in self.layers:
            attention = layer.alpha_attn.detach().clone()
            dense = layer.alpha_dense.detach().clone()
            self.alphas.append((attention, dense))
        self.scale: float | None = None  # unknown: another pipeline may have closed the gates

    def set(self, scale: float) -> None:
        """Make the layers act `scale` times as strongly as trained.

        The output of a layer becomes x + scale tanh(alpha) f(x).

        Args:
            scale: the factor, in [0, 1].
        """
        if scale == self.scale:
            return
        self.scale = scale
        for layer, (attention, dense) in zip(self.layers, self.alphas, strict=True):
            layer.enabled = scale > 0
            layer.alpha_attn.data.copy_(_scale_alpha(attention, scale))
            layer.alpha_dense.data.copy_(_scale_alpha(dense, scale))


def _scale_alpha(alpha: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the parameter whose tanh is `scale` times the tanh of `alpha`."""
    if scale == 1:
        return alpha
    return torch.atanh(scale * torch.tanh(alpha.double()))


@contextmanager
def control_gates(unet: UNet2DConditionModel) -> Iterator[Gates]:
    """Yield the gates of a UNet, and reset them to their trained strength on exit."""
    controlled = Gates(unet)
    try:
        yield controlled
    finally:
        controlled.set(1.0)
