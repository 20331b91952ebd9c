"""Mixture of Diffusers: one noise prediction merged from those of many regions of many images.

Source: Jimenez, "Mixture of Diffusers for scene composition and high resolution image generation" (arXiv 2302.02412):
eps = sum_i w_i eps_i / sum_i w_i, with eps_i the classifier-free guided prediction on region i of z_t.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Conditions = Mapping[str, Any]
"""What the network reads beside latents and timestep, each by the name of its argument: tables with a row a prompt.

A table is a tensor, or something else that a tensor of row numbers indexes.
"""
Predict = Callable[[Tensor, Conditions], Tensor]


@dataclass(frozen=True)
class Region:
    """A rectangle of one image's latents with its own prompt.

    Attributes:
        image: index in the batch.
        window: x0, y0, x1, y1 in latent cells.
        prompt: row of the tables of conditions.
        negative: row of the tables for the unconditional branch.
        guidance: classifier-free guidance scale; 1 needs no unconditional branch, 0 no conditional one.
        weight: (h, w) float32, at least 0.
    """

    image: int
    window: tuple[int, int, int, int]
    prompt: int
    negative: int
    guidance: float
    weight: Tensor


@dataclass(frozen=True)
class _Evaluation:
    """One pass of the network over one region: its share of the merged prediction is `weight * prediction`."""

    image: int
    window: tuple[int, int, int, int]
    prompt: int
    weight: Tensor

    @property
    def size(self) -> tuple[int, int]:
        x0, y0, x1, y1 = self.window
        return y1 - y0, x1 - x0

    def of(self, z: Tensor) -> Tensor:
        """This region's view of (B, C, H, W): (C, h, w)."""
        x0, y0, x1, y1 = self.window
        return z[self.image, :, y0:y1, x0:x1]


class Mixture:
    """Merges the regions' predictions; all regions of equal size go through the network together.

    Guidance is linear, eps = (1 - g) eps_uncond + g eps_cond, so each branch is an evaluation of its own with the
    weight w (1 - g) or w g, and a branch whose factor is 0 is not computed. A distilled network that takes the guidance
    scale as a condition (`timestep_cond`) has one branch.

    Args:
        regions: of all images of the batch.
        conditions: tables with a row a prompt, on the device of the network.
        shape: B, C, H, W of the latents.
        cells: latent cells that go through the network at once; at least one region does. Small chunks of large
            windows stay in a CPU's cache.
        apart: rows that do not go through the network with others, because a table gives them something of another kind.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        conditions: Conditions,
        shape: Sequence[int],
        cells: int,
        apart: Container[int] = (),
    ) -> None:
        self.shape = tuple(shape)
        device = next(table.device for table in conditions.values() if isinstance(table, Tensor))
        guided = "timestep_cond" not in conditions
        evaluations = [e for region in regions for e in _branches(region, device, guided)]
        kinds = sorted({(e.size, e.prompt in apart) for e in evaluations})
        groups = [[e for e in evaluations if (e.size, e.prompt in apart) == kind] for kind in kinds]
        parts = [part for group in groups for part in _parts(group, cells)]
        rows = [torch.tensor([e.prompt for e in part], device=device) for part in parts]
        self.chunks = [
            (part, select(conditions, own)) for part, own in zip(parts, rows, strict=True)
        ]
        total = torch.zeros(shape[0], 1, *shape[2:], device=device)
        for e in evaluations:
            e.of(total).add_(e.weight)
        self.norm = torch.where(
            total > 0, 1 / total, torch.zeros_like(total)
        )  # uncovered cells predict 0

    def __call__(self, z: Tensor, predict: Predict) -> Tensor:
        """The merged prediction (B, C, H, W) float32.

        Args:
            z: latents, (B, C or more, H, W).
            predict: (n, C or more, h, w) latents and their conditions to predictions (n, C, h, w).
        """
        merged = torch.zeros(self.shape, dtype=torch.float32, device=z.device)
        for chunk, conditions in self.chunks:
            latents = torch.stack([e.of(z) for e in chunk])
            predictions = predict(latents, conditions).float()
            for e, prediction in zip(chunk, predictions, strict=True):
                e.of(merged).addcmul_(e.weight, prediction)
        return merged * self.norm


def select(conditions: Conditions, rows: Tensor) -> Conditions:
    """The rows of every table."""
    return {name: table[rows] for name, table in conditions.items()}


def _parts(group: list[_Evaluation], cells: int) -> list[list[_Evaluation]]:
    h, w = group[0].size
    n = max(1, cells // (h * w))
    return [group[k : k + n] for k in range(0, len(group), n)]


def _branches(region: Region, device: torch.device, guided: bool) -> list[_Evaluation]:
    weight, g = region.weight.to(device), region.guidance if guided else 1.0
    branches = [(region.prompt, g), (region.negative, 1 - g)]
    return [
        _Evaluation(region.image, region.window, prompt, weight * factor)
        for prompt, factor in branches
        if factor != 0
    ]
