"""Mixture of Diffusers: a noise prediction merged from those of many regions of many images.

Source: Jimenez, "Mixture of Diffusers for scene composition and high resolution image generation"
(arXiv 2302.02412): eps = sum_i w_i eps_i / sum_i w_i, where eps_i is the classifier-free guided
prediction on region i of z_t.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

Conditions = Mapping[str, Any]
"""What the network reads besides latents and timestep: a table for each of its arguments, by name.

A table has one row per prompt. It is a tensor, or another object that can be indexed with a tensor
of row numbers.
"""
Predict = Callable[[Tensor, Conditions], Tensor]


class Evaluate(Protocol):
    """Maps latents to the prediction of a whole batch, with a function that calls the network."""

    @property
    def cells(self) -> int:
        """The number of latent cells that go through the network."""

    def __call__(self, z: Tensor, predict: Predict) -> Tensor:
        """Return the prediction (B, C, H, W) float32 for latents z."""


@dataclass(frozen=True)
class Region:
    """A rectangle of one image's latents with its own prompt.

    Attributes:
        image: index in the batch.
        window: x0, y0, x1, y1 in latent cells.
        prompt: row of the tables of conditions.
        negative: row of the tables for the unconditional branch.
        guidance: classifier-free guidance scale; 1 needs no unconditional branch, 0 no conditional
            branch.
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
    """A pass of the network over a region, which adds `weight * prediction` to the merged result.

    Attributes:
        prompt: row of the tables of conditions.
        separate: whether it may not be in one chunk with rows that are not separate.
    """

    image: int
    window: tuple[int, int, int, int]
    prompt: int
    weight: Tensor
    separate: bool

    @property
    def group(self) -> tuple[tuple[int, int], bool]:
        """Key of the evaluations that may be in one chunk: h, w in cells, and `separate`."""
        x0, y0, x1, y1 = self.window
        return (y1 - y0, x1 - x0), self.separate

    @property
    def cells(self) -> int:
        """The number of latent cells of the window."""
        x0, y0, x1, y1 = self.window
        return (y1 - y0) * (x1 - x0)

    def crop(self, z: Tensor) -> Tensor:
        """Return the view (C, h, w) of this region in (B, C, H, W)."""
        x0, y0, x1, y1 = self.window
        return z[self.image, :, y0:y1, x0:x1]


class Mixture:
    """Merges the predictions of regions; regions of equal size go through the network together.

    Guidance is linear, eps = (1 - g) eps_uncond + g eps_cond. Each branch is therefore an
    evaluation of its own with the weight w (1 - g) or w g, and a branch whose factor is 0 is not
    computed. A distilled network that reads the guidance scale as a condition (`timestep_cond`) has
    one branch.

    Args:
        regions: the regions of all images of the batch.
        conditions: tables with one row per prompt, on the device of the network.
        shape: B, C, H, W of the latents.
        cells: latent cells in one chunk, which goes through the network at once; a chunk has at
            least one region. Small chunks of large windows stay in a CPU's cache.
        apart: rows that must not be in one chunk with other rows, because a table has an entry of
            another kind for them.
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
        branches: list[_Evaluation] = []
        for region in regions:
            branches += _evaluate_branches(region, device, guided, apart)
        evaluations = _merge_equal(branches)
        self.cells = sum(evaluation.cells for evaluation in evaluations)
        self.chunks = []
        for chunk in _split_into_chunks(evaluations, cells):
            rows = torch.tensor([e.prompt for e in chunk], device=device)
            self.chunks.append((chunk, select(conditions, rows)))
        total = torch.zeros(shape[0], 1, *shape[2:], device=device)
        for evaluation in evaluations:
            evaluation.crop(total).add_(evaluation.weight)
        # Cells that no region covers predict 0.
        self.norm = torch.where(total > 0, 1 / total, torch.zeros_like(total))

    def __call__(self, z: Tensor, predict: Predict) -> Tensor:
        """Return the merged prediction (B, C, H, W) float32.

        Args:
            z: latents, (B, C or more, H, W).
            predict: maps latents (n, C or more, h, w) and their conditions to predictions
                (n, C, h, w).
        """
        merged = torch.zeros(self.shape, dtype=torch.float32, device=z.device)
        for chunk, conditions in self.chunks:
            latents = torch.stack([e.crop(z) for e in chunk])
            predictions = predict(latents, conditions).float()
            for evaluation, prediction in zip(chunk, predictions, strict=True):
                evaluation.crop(merged).addcmul_(evaluation.weight, prediction)
        return merged * self.norm


def find_guided_steps(interval: tuple[float, float], steps: int) -> range:
    """Return the steps with guidance (Kynkäänniemi et al., arXiv 2404.07724).

    Args:
        interval: shares [start, stop) of all steps.
        steps: the number of all steps.
    """
    return range(round(interval[0] * steps), round(interval[1] * steps))


def select(conditions: Conditions, rows: Tensor) -> Conditions:
    """Return the given rows of every table."""
    return {name: table[rows] for name, table in conditions.items()}


def _evaluate_branches(
    region: Region, device: torch.device, guided: bool, separate_rows: Container[int]
) -> list[_Evaluation]:
    """Return the evaluations of a region, without those whose weight is 0.

    Args:
        guided: whether guidance needs an unconditional branch.
    """
    weight = region.weight.to(device)
    guidance = region.guidance if guided else 1.0
    evaluations = []
    for prompt, factor in ((region.prompt, guidance), (region.negative, 1 - guidance)):
        if factor != 0:
            separate = prompt in separate_rows
            evaluations.append(
                _Evaluation(region.image, region.window, prompt, weight * factor, separate)
            )
    return evaluations


def _merge_equal(branches: Sequence[_Evaluation]) -> list[_Evaluation]:
    """Merge the evaluations of one window with one prompt into one with the sum of the weights."""
    merged: dict[tuple[int, tuple[int, int, int, int], int], _Evaluation] = {}
    for branch in branches:
        key = (branch.image, branch.window, branch.prompt)
        equal = merged.get(key)
        if equal is not None:
            branch = replace(equal, weight=equal.weight + branch.weight)
        merged[key] = branch
    return list(merged.values())


def _split_into_chunks(evaluations: Sequence[_Evaluation], cells: int) -> list[list[_Evaluation]]:
    """Split evaluations into chunks of one group and at most `cells` latent cells each."""
    groups: dict[tuple[tuple[int, int], bool], list[_Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(evaluation.group, []).append(evaluation)
    chunks = []
    for key in sorted(groups):
        (h, w), _ = key
        length = max(1, cells // (h * w))
        group = groups[key]
        for start in range(0, len(group), length):
            chunks.append(group[start : start + length])
    return chunks
