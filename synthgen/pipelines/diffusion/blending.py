"""Parts of a canvas that follow given pictures instead of what is painted.

Source: Avrahami, Lischinski, Fried, "Blended Diffusion" and "Blended Latent Diffusion" (arXiv 2111.14818, 2206.02779): after
each step the latents there are those of the picture, noised to the step's level; at the end the picture's own pixels come
back outside the windows. Mixture of Diffusers' image regions are the same, for the first steps alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from synthgen.pipelines.diffusion.mixture import Region

FULL = 0.5  # weight of a region from which its content is wholly the painted one


@dataclass(frozen=True)
class Reference:
    """Latents that a part of the canvas follows.

    Attributes:
        latents: (B, C, h, w) of pictures, without noise.
        noise: (B, C, h, w) standard normal.
        mask: (B, 1, h, w) in [0, 1]: 1 where the reference is followed, 0 where it has no say.
        steps: how many steps it is followed for; None: all.
    """

    latents: Tensor
    noise: Tensor
    mask: Tensor
    steps: int | None = None

    def __call__(self, z: Tensor, scheduler: Any, step: int, t: Tensor | None) -> Tensor:
        """Latents after step number `step`; t: the timestep that they are at, None at the end."""
        if self.steps is not None and step >= self.steps:
            return z
        noised = (
            self.latents
            if t is None
            else scheduler.add_noise(self.latents, self.noise, t.repeat(len(z)))
        )
        return (1 - self.mask) * z + self.mask * noised


def paste_back(
    painted: NDArray[np.uint8], pictures: NDArray[np.uint8], mask: Tensor, windows: Tensor
) -> NDArray[np.uint8]:
    """Painted pictures (B, H, W, 3) with the original pixels outside the windows, blended at the edge inside them.

    Args:
        mask: (B, 1, h, w) in [0, 1]: 1 where painted.
        windows: (B, 1, h, w) bool: inside some object's window.
    """
    size = painted.shape[1:3]
    alpha = F.interpolate(mask.cpu(), size, mode="bilinear") * F.interpolate(
        windows.float().cpu(), size, mode="nearest"
    )
    a = alpha.permute(0, 2, 3, 1).numpy()
    mixed: NDArray[np.uint8] = np.round(a * painted + (1 - a) * pictures).astype(np.uint8)
    return mixed


def masks_of(regions: Sequence[Region], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mask and windows, each (B, 1, h, w), of the objects' regions; shape: B, C, h, w of the latents."""
    mask, windows = (
        torch.zeros(shape[0], 1, *shape[2:]),
        torch.zeros(shape[0], 1, *shape[2:], dtype=torch.bool),
    )
    for region in regions:
        x0, y0, x1, y1 = region.window
        part = mask[region.image, 0, y0:y1, x0:x1]
        part.copy_(torch.maximum(part, (region.weight / FULL).clamp(0, 1)))
        windows[region.image, 0, y0:y1, x0:x1] = True
    return mask, windows
