"""Weights of a region: how much each of its cells counts where regions are merged.

Source: Mixture of Diffusers (arXiv 2302.02412); gaussian and quartic as in its reference code, the vertical gaussian
centred at (n - 1) / 2 like the horizontal one. All in float32: a gaussian's corner is 3e-11 of its centre.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

VARIANCE = 0.01  # of the gaussian, in units of the region's side


def constant(h: int, w: int) -> Tensor:
    """Weight 1 on (h, w) cells."""
    return torch.ones(h, w)


@cache
def gaussian(h: int, w: int) -> Tensor:
    """w(x) = exp(-(x - mu)^2 / (n^2 2 s^2)) / sqrt(2 pi s^2), mu = (n - 1) / 2, on both axes: (h, w)."""

    def axis(n: int) -> Tensor:
        x = torch.arange(n, dtype=torch.float64)
        return (
            torch.exp(-((x - (n - 1) / 2) ** 2) / (n * n * 2 * VARIANCE))
            / (2 * torch.pi * VARIANCE) ** 0.5
        )

    return torch.outer(axis(h), axis(w)).float()


@cache
def quartic(h: int, w: int) -> Tensor:
    """(15/16) (1 - u^2)^2 with u linear over [-0.995, 0.995], on both axes: (h, w)."""

    def axis(n: int) -> Tensor:
        return 15 / 16 * (1 - torch.linspace(-0.995, 0.995, n, dtype=torch.float64) ** 2) ** 2

    return torch.outer(axis(h), axis(w)).float()


def tile(h: int, w: int) -> Tensor:
    """Quartic, and 0.01 more: for windows that cover a canvas, whose own edge needs some weight too."""
    return quartic(h, w) + 0.01


def box(h: int, w: int, x0: float, y0: float, x1: float, y1: float, soft: float = 1.0) -> Tensor:
    """Weight 1 inside a box (in cells of the region), falling to 0 over about `soft` cells outside it: (h, w).

    A box's own place in its window: the other masks know the window alone and would let a flat object grow tall.
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
"""Masks that know a region's size alone, by name."""
