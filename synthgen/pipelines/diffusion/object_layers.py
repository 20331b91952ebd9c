"""Layers of single objects: their vision guidance, and how they are composited.

Source: LRDiff (Qi et al., arXiv 2311.18435).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from synthgen.pipelines.diffusion.mixture import Conditions, Evaluate, Predict, select


@dataclass(frozen=True)
class Layer:
    """One object of one image.

    Attributes:
        image: index in the batch.
        window: x0, y0, x1, y1 in latent cells.
        mask: (h, w) in {0, 1}: 1 where the object is in its window.
        area: cells of the whole object.
        prompt: row of the tables of conditions.
        negative: row of the tables for the unconditional branch.
        tokens: True for each token of the prompt that names the object.
    """

    image: int
    window: tuple[int, int, int, int]
    mask: Tensor
    area: float
    prompt: int
    negative: int
    tokens: list[bool]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in cells."""
        return self.mask.shape[0], self.mask.shape[1]

    def of(self, z: Tensor) -> Tensor:
        """Return the view (C, h, w) of this layer in (B, C, H, W)."""
        x0, y0, x1, y1 = self.window
        return z[self.image, :, y0:y1, x0:x1]


class Group:
    """Layers of one size, of any images, and their vision guidance.

    Attributes:
        size: h, w in cells.
        noise: (n, C, h, w), the crop of each layer from its image's z_T.
        masks: (n, 1, h, w).
        xi: (n, C, h, w) vision guidance.
    """

    def __init__(self, layers: list[Layer], noise: Tensor) -> None:
        self.layers = layers
        self.size = layers[0].size
        self.noise = torch.stack([layer.of(noise) for layer in layers])
        masks = torch.stack([layer.mask for layer in layers])
        self.masks = masks[:, None].to(noise.device)
        self.xi = torch.zeros_like(self.noise)

    @property
    def cells(self) -> int:
        """The number of latent cells of all layers."""
        return self.noise[:, 0].numel()

    def set_guidance(self, delta: Tensor, lambda_1: float, lambda_2: float) -> None:
        """Set xi = -lambda_1 delta + M (lambda_1 + lambda_2) delta, as in the authors' code."""
        self.xi = (self.masks * (lambda_1 + lambda_2) - lambda_1) * delta.expand_as(self.noise)

    def add_guidance(
        self, z: Tensor, scheduler: Any, step: int, t: Tensor | None, last: int
    ) -> Tensor:
        """Return the latents after a step, with the guidance added in the first `last` steps.

        Schedulers that scale their latents hold z / scale, while the guidance applies to z itself.
        """
        if step >= last or t is None:
            return z
        scale = scheduler.scale_model_input(torch.ones(1, device=z.device), t)
        return z + self.xi / scale


class MixedLayers:
    """Merges the predictions of all layers with the unconditional prediction of the whole canvas.

    eps_cond = gamma sum_i a_i eps(z + xi_i, c_i) + (1 - gamma) eps_uncond, where a_i is the share
    of layer i in the area of all objects. With the guidance scale g this is
    eps = eps_uncond + g gamma sum_i a_i (eps_i - eps_uncond). Outside the window of a cropped
    layer, eps_i is eps_uncond.

    Args:
        uncond: predicts eps_uncond.
        weight: g gamma.
        at_once: latent cells that go through the network at once.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        conditions: Conditions,
        uncond: Evaluate,
        weight: float,
        at_once: int,
    ) -> None:
        self.groups = groups
        self.conditions = conditions
        self.uncond = uncond
        self.weight = weight
        self.at_once = at_once
        self.areas: dict[int, float] = {}
        for group in groups:
            for layer in group.layers:
                self.areas[layer.image] = self.areas.get(layer.image, 0.0) + layer.area

    @property
    def cells(self) -> int:
        """The number of latent cells that go through the network."""
        return self.uncond.cells + sum(group.cells for group in self.groups)

    def __call__(self, z: Tensor, predict: Predict) -> Tensor:
        """Return the merged prediction (B, C, H, W) for latents z."""
        uncond = self.uncond(z, predict)
        total = uncond.clone()
        for group in self.groups:
            n = max(1, self.at_once // (group.size[0] * group.size[1]))
            batches = split_into_batches(group.layers, n)
            for layers, xi in zip(batches, torch.split(group.xi, n), strict=True):
                latents = torch.stack([layer.of(z) for layer in layers]) + xi
                conditions = select(self.conditions, list_prompt_rows(layers))
                predictions = predict(latents, conditions).float()
                for layer, eps in zip(layers, predictions, strict=True):
                    share = layer.area / self.areas[layer.image]
                    layer.of(total).add_(self.weight * share * (eps - layer.of(uncond)))
        return total


def group_by_size(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Group layers of equal size, the smallest size first."""
    groups: dict[tuple[int, int], list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.size, []).append(layer)
    return [groups[size] for size in sorted(groups)]


def composite(below: Tensor, groups: Sequence[Group], rendered: Sequence[Tensor]) -> Tensor:
    """Return z = z (1 - M_i) + z_i M_i over the layers of each image, the largest layer first.

    Args:
        below: (B, C, H, W), latents under all layers.
        rendered: the latents (n, C, h, w) of the layers of each group.
    """
    z = below.clone()
    pairs: list[tuple[Layer, Tensor]] = []
    for group, batch in zip(groups, rendered, strict=True):
        pairs += zip(group.layers, batch, strict=True)
    for layer, latents in sorted(pairs, key=lambda pair: -pair[0].area):
        crop = layer.of(z)
        mask = layer.mask.to(z.device)
        crop.copy_(crop * (1 - mask) + latents * mask)
    return z


def list_prompt_rows(layers: Sequence[Layer]) -> Tensor:
    """Return the rows (n,) of the layers' prompts."""
    return torch.tensor([layer.prompt for layer in layers])


def split_into_batches(layers: Sequence[Layer], n: int) -> list[Sequence[Layer]]:
    """Split layers into batches of at most n."""
    return [layers[k : k + n] for k in range(0, len(layers), n)]
