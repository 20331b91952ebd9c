"""Parts of a canvas that follow given images instead of what is generated.

Source: Avrahami, Lischinski, Fried, "Blended Diffusion" and "Blended Latent Diffusion" (arXiv
2111.14818, 2206.02779). After each step, the latents of such a part are replaced by those of the
image, noised to the level of the step. At the end, the image's own pixels are restored outside the
windows. The image regions of Mixture of Diffusers do the same for the first steps only.
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

FULL = 0.5  # weight of a region from which on its content is only the generated one


@dataclass(frozen=True)
class Reference:
    """Latents that a part of the canvas follows.

    Attributes:
        latents: (B, C, h, w) of the images, without noise.
        noise: (B, C, h, w) standard normal.
        mask: (B, 1, h, w) in [0, 1]: 1 where the reference is followed, 0 where it has no effect.
        steps: number of steps for which it is followed; None: all steps.
    """

    latents: Tensor
    noise: Tensor
    mask: Tensor
    steps: int | None = None

    def __call__(self, z: Tensor, scheduler: Any, step: int, t: Tensor | None) -> Tensor:
        """Return the latents after step number `step`, blended with the reference.

        Args:
            t: timestep of the latents; None after the last step.
        """
        if self.steps is not None and step >= self.steps:
            return z
        if t is None:
            noised = self.latents
        else:
            noised = scheduler.add_noise(self.latents, self.noise, t.repeat(len(z)))
        return (1 - self.mask) * z + self.mask * noised


def paste_back(
    generated: NDArray[np.uint8], originals: NDArray[np.uint8], mask: Tensor, windows: Tensor
) -> NDArray[np.uint8]:
    """Restore the original pixels outside the windows of generated images (B, H, W, 3).

    Inside the windows the two are blended by the mask.

    Args:
        generated: (B, H, W, 3), the decoded images.
        originals: (B, H, W, 3), the images into which the objects were generated.
        mask: (B, 1, h, w) in [0, 1]: 1 where the content is generated.
        windows: (B, 1, h, w) bool: True inside the window of an object.
    """
    size = generated.shape[1:3]
    smooth_mask = F.interpolate(mask.cpu(), size, mode="bilinear")
    inside = F.interpolate(windows.float().cpu(), size, mode="nearest")
    alpha = (smooth_mask * inside).permute(0, 2, 3, 1).numpy()
    blended = alpha * generated + (1 - alpha) * originals
    result: NDArray[np.uint8] = np.round(blended).astype(np.uint8)
    return result


def merge_masks(regions: Sequence[Region], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Merge the regions of objects into a mask and a map of their windows, each (B, 1, h, w).

    Args:
        shape: B, C, h, w of the latents.

    Returns:
        The mask (float32 in [0, 1], 1 where the content is generated) and the windows (bool).
    """
    mask = torch.zeros(shape[0], 1, *shape[2:])
    windows = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.bool)
    for region in regions:
        x0, y0, x1, y1 = region.window
        crop = mask[region.image, 0, y0:y1, x0:x1]
        crop.copy_(torch.maximum(crop, (region.weight / FULL).clamp(0, 1)))
        windows[region.image, 0, y0:y1, x0:x1] = True
    return mask, windows
