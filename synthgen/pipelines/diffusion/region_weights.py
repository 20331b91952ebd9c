"""Weights of a region: how much each of its cells contributes where regions are merged.

Source: Mixture of Diffusers (arXiv 2302.02412). The gaussian and quartic weights are those of its
reference code, except that the vertical gaussian is centred at (n - 1) / 2 like the horizontal one.
All weights are float32; the corner of a gaussian is 3e-11 of its centre.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

VARIANCE = 0.01  # variance of the gaussian, in units of the region's side


def constant(h: int, w: int) -> Tensor:
    """Return the weight 1 on (h, w) cells."""
    return torch.ones(h, w)


@cache
def gaussian(h: int, w: int) -> Tensor:
    """Return gaussian weights (h, w), the product of one factor per axis.

    w(x) = exp(-(x - mu)^2 / (n^2 2 s^2)) / sqrt(2 pi s^2), where mu = (n - 1) / 2.
    """

    def axis(n: int) -> Tensor:
        x = torch.arange(n, dtype=torch.float64)
        exponent = -((x - (n - 1) / 2) ** 2) / (n * n * 2 * VARIANCE)
        return torch.exp(exponent) / (2 * torch.pi * VARIANCE) ** 0.5

    return torch.outer(axis(h), axis(w)).float()


@cache
def quartic(h: int, w: int) -> Tensor:
    """Return quartic weights (h, w), the product of one factor per axis.

    w(u) = (15/16) (1 - u^2)^2, where u is linear over [-0.995, 0.995].
    """

    def axis(n: int) -> Tensor:
        u = torch.linspace(-0.995, 0.995, n, dtype=torch.float64)
        return 15 / 16 * (1 - u**2) ** 2

    return torch.outer(axis(h), axis(w)).float()


def tile(h: int, w: int) -> Tensor:
    """Return quartic weights (h, w) plus 0.01, for windows that cover a canvas.

    The addition gives some weight to the cells at the edge of the canvas.
    """
    return quartic(h, w) + 0.01


def box(h: int, w: int, x0: float, y0: float, x1: float, y1: float, soft: float = 1.0) -> Tensor:
    """Return weights (h, w) that are 1 inside a box and fall to 0 over about `soft` cells outside.

    The box is x0, y0, x1, y1 in cells of the region. The other weights depend on the window only;
    with them, the object of a flat box could grow as tall as the window.
    """

    def axis(n: int, low: float, high: float) -> Tensor:
        centre = torch.arange(n, dtype=torch.float64) + 0.5
        outside = torch.maximum(low - centre, centre - high).clamp(min=0)
        return torch.exp(-0.5 * (outside / soft) ** 2)

    return torch.outer(axis(h, y0, y1), axis(w, x0, x1)).float()


WINDOW: dict[str, Callable[[int, int], Tensor]] = {
    "constant": constant,
    "gaussian": gaussian,
    "quartic": quartic,
}
"""Weights that depend only on the size of a region, by name."""
