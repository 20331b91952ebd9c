"""Layers of single objects: their vision guidance, and how they come together (LRDiff, arXiv 2311.18435)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from synthgen.pipelines.diffusion.mixture import Conditions, Predict, select


@dataclass(frozen=True)
class Layer:
    """One object of one image.

    Attributes:
        image: index in the batch.
        window: x0, y0, x1, y1 in cells.
        mask: (h, w) in {0, 1}: the object in its window.
        area: cells of the whole object.
        prompt, negative: rows of the tables of conditions.
        tokens: which tokens of the prompt name the object.
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
        return self.mask.shape[0], self.mask.shape[1]

    def of(self, z: Tensor) -> Tensor:
        """This layer's view of (B, C, H, W): (C, h, w)."""
        x0, y0, x1, y1 = self.window
        return z[self.image, :, y0:y1, x0:x1]


class Group:
    """Layers of one size, of any images, and their vision guidance.

    Attributes:
        noise: (n, C, h, w), each layer's part of its image's z_T.
        masks: (n, 1, h, w).
        xi: (n, C, h, w) vision guidance.
    """

    def __init__(self, layers: list[Layer], noise: Tensor) -> None:
        self.layers, self.size = layers, layers[0].size
        self.noise = torch.stack([x.of(noise) for x in layers])
        self.masks = torch.stack([x.mask for x in layers])[:, None].to(noise.device)
        self.xi = torch.zeros_like(self.noise)

    def guide(self, delta: Tensor, lambda_1: float, lambda_2: float) -> None:
        """xi = -lambda_1 delta + M (lambda_1 + lambda_2) delta, as in the authors' code."""
        self.xi = (self.masks * (lambda_1 + lambda_2) - lambda_1) * delta.expand_as(self.noise)

    def guided(self, z: Tensor, scheduler: Any, step: int, t: Tensor | None, last: int) -> Tensor:
        """Latents after a step, with the guidance added if it is one of the first `last`.

        Schedulers that scale their latents hold z / scale: the guidance is meant for z itself.
        """
        if step >= last or t is None:
            return z
        scale = scheduler.scale_model_input(torch.ones(1, device=z.device), t)
        return z + self.xi / scale


class MixedLayers:
    """eps_cond = gamma sum_i a_i eps(z + xi_i, c_i) + (1 - gamma) eps_uncond, guided; a_i: share of the objects' area.

    With g the guidance scale that is eps = eps_uncond + g gamma sum_i a_i (eps_i - eps_uncond). Outside the window of a layer
    that is cropped to one, eps_i counts as eps_uncond.

    Args:
        uncond: what predicts eps_uncond.
        weight: g gamma.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        conditions: Conditions,
        uncond: Callable[[Tensor, Predict], Tensor],
        weight: float,
        at_once: int,
    ) -> None:
        self.groups, self.conditions, self.uncond, self.weight, self.at_once = (
            groups,
            conditions,
            uncond,
            weight,
            at_once,
        )
        self.areas: dict[int, float] = {}
        for layer in (x for group in groups for x in group.layers):
            self.areas[layer.image] = self.areas.get(layer.image, 0.0) + layer.area

    def __call__(self, z: Tensor, predict: Predict) -> Tensor:
        uncond = self.uncond(z, predict)
        total = uncond.clone()
        for group in self.groups:
            n = max(1, self.at_once // (group.size[0] * group.size[1]))
            for layers, xi in zip(
                in_batches(group.layers, n), torch.split(group.xi, n), strict=True
            ):
                x = torch.stack([layer.of(z) for layer in layers]) + xi
                for layer, eps in zip(
                    layers,
                    predict(x, select(self.conditions, prompts_of(layers))).float(),
                    strict=True,
                ):
                    share = layer.area / self.areas[layer.image]
                    layer.of(total).add_(self.weight * share * (eps - layer.of(uncond)))
        return total


def by_size(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Layers of equal size together."""
    return [[x for x in layers if x.size == size] for size in sorted({x.size for x in layers})]


def composite(below: Tensor, groups: Sequence[Group], rendered: Sequence[Tensor]) -> Tensor:
    """z = z (1 - M_i) + z_i M_i over the layers of each image, the largest first."""
    z = below.clone()
    pairs = [
        (x, latents)
        for group, batch in zip(groups, rendered, strict=True)
        for x, latents in zip(group.layers, batch, strict=True)
    ]
    for layer, latents in sorted(pairs, key=lambda pair: -pair[0].area):
        part, mask = layer.of(z), layer.mask.to(z.device)
        part.copy_(part * (1 - mask) + latents * mask)
    return z


def prompts_of(layers: Sequence[Layer]) -> Tensor:
    """Rows of the layers' prompts, (n,)."""
    return torch.tensor([x.prompt for x in layers])


def in_batches(layers: Sequence[Layer], n: int) -> list[Sequence[Layer]]:
    """Layers, n at a time."""
    return [layers[k : k + n] for k in range(0, len(layers), n)]
