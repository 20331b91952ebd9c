"""Pictures of the user's that stay as they are where nothing is painted.

Source: Avrahami, Lischinski, Fried, "Blended Diffusion" and "Blended Latent Diffusion" (arXiv 2111.14818, 2206.02779): after
each step the latents outside the mask are those of the picture, noised to the step's level; at the end the picture's own
pixels come back outside the windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from synthgen.diffusion.mixture import Region

FULL = 0.5  # weight of a region from which its content is wholly the painted one


@dataclass(frozen=True)
class KeptPictures:
    """A batch of pictures and where they may change.

    Attributes:
        pictures: (B, H, W, 3) uint8.
        latents: (B, C, h, w) of the pictures, without noise.
        noise: (B, C, h, w) standard normal.
        mask: (B, 1, h, w) in [0, 1]: 1 where painted, 0 where the picture stays.
        windows: (B, 1, h, w) bool: inside some object's window.
    """

    pictures: NDArray[np.uint8]
    latents: Tensor
    noise: Tensor
    mask: Tensor
    windows: Tensor

    def blend(self, z: Tensor, scheduler: Any, t: Tensor | None) -> Tensor:
        """Latents after a step, with the pictures' own outside the mask; t: the timestep they are at, None at the end."""
        reference = self.latents
        if t is not None:
            reference = scheduler.add_noise(self.latents, self.noise, t.repeat(len(z)))
        return self.mask * z + (1 - self.mask) * reference

    def paste_back(self, painted: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Painted pictures (B, H, W, 3) with the original pixels outside the windows, blended at the edge inside them."""
        size = painted.shape[1:3]
        alpha = F.interpolate(self.mask.cpu(), size, mode="bilinear")
        alpha = alpha * F.interpolate(self.windows.float().cpu(), size, mode="nearest")
        a = alpha.permute(0, 2, 3, 1).numpy()
        mixed: NDArray[np.uint8] = np.round(a * painted + (1 - a) * self.pictures).astype(np.uint8)
        return mixed


def masks_of(regions: Sequence[Region], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mask and windows, each (B, 1, h, w), of the objects' regions; shape: B, C, h, w of the latents."""
    mask, windows = torch.zeros(shape[0], 1, *shape[2:]), torch.zeros(shape[0], 1, *shape[2:], dtype=torch.bool)
    for region in regions:
        x0, y0, x1, y1 = region.window
        part = mask[region.image, 0, y0:y1, x0:x1]
        part.copy_(torch.maximum(part, (region.weight / FULL).clamp(0, 1)))
        windows[region.image, 0, y0:y1, x0:x1] = True
    return mask, windows
