"""Decode a part of an image with the statistics of the whole.

The group norms of an autoencoder subtract the mean of an image and divide by its deviation. A part
of an image has other statistics, so that its colours and contrasts change if it is decoded alone.
Tiled VAE (github.com/pkuliyi2015/multidiffusion-upscaler-for-automatic1111) avoids seams in the
same way.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

Statistics = list[tuple[Tensor, Tensor]]
"""Mean and reciprocal deviation, (1, groups, 1) float32, of each group norm in order of its call.
"""
_normalise = F.group_norm


@contextmanager
def record_statistics(statistics: Statistics) -> Iterator[None]:
    """Add the statistics of all group norms of one image inside the `with` block to a list."""

    def record(
        x: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        values = x.float().reshape(len(x), num_groups, -1)
        variance, mean = torch.var_mean(values, -1, correction=0, keepdim=True)
        statistics.append((mean, (variance + eps).rsqrt()))
        return _normalise(x, num_groups, weight, bias, eps)

    with _replace_group_norm(record):
        yield


@contextmanager
def apply_statistics(statistics: Statistics) -> Iterator[None]:
    """Normalise one image inside the `with` block with recorded statistics.

    If the whole was decoded in tiles, those of its first tile are used.
    """
    count = 0

    def apply(
        x: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        nonlocal count
        mean, factor = statistics[count % len(statistics)]
        count += 1
        values = (x.float().reshape(len(x), num_groups, -1) - mean) * factor
        normalised = values.reshape(x.shape)
        if weight is not None and bias is not None:
            normalised = normalised * weight.float()[:, None, None] + bias.float()[:, None, None]
        return normalised.to(x.dtype)

    with _replace_group_norm(apply):
        yield


@contextmanager
def _replace_group_norm(function: object) -> Iterator[None]:
    """Let all group norms inside the `with` block call another function."""
    F.group_norm = function  # type: ignore[assignment]
    try:
        yield
    finally:
        F.group_norm = _normalise
