"""Encode images to latents, and decode latents to images."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from synthgen.heartbeat import begin_activity, record_beat
from synthgen.memory import free_memory, is_out_of_memory

log = logging.getLogger(__name__)

DECODE_COST = 2  # passes of the UNet that take as long as decoding the same latents, about
UNTILED_SIDE = 2048  # px; larger images are encoded and decoded in overlapping tiles


class ImageCoding:
    """What the pipelines do with an autoencoder."""

    vae: AutoencoderKL
    text_encoder_2: Any
    factor: int
    tiled: bool
    _execution_device: torch.device
    has_warned_of_overflow = False

    def encode_images(self, images: NDArray[np.uint8]) -> Tensor:
        """Return the latents (B, C, h, w) float32 of images (B, H, W, 3)."""
        dtype = self.vae.dtype
        if self._needs_upcast:
            self.vae.to(dtype=torch.float32)
        channels_first = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        pixels = channels_first.to(self._execution_device, self.vae.dtype) / 127.5 - 1
        modes = []
        for image in pixels:
            modes.append(self._in_tiles_if_needed(image[None], images.shape[1:3], self._encode))
        if self.vae.dtype != dtype:
            self.vae.to(dtype=dtype)
        latents = torch.cat(modes).float()
        shift, spread = self._latent_statistics(latents)
        return (latents - shift) / spread * self.vae.config.scaling_factor

    def decode(
        self,
        latents: Tensor,
        cpu_vae: bool = False,
        norms: Sequence[AbstractContextManager[None]] | None = None,
    ) -> NDArray[np.uint8]:
        """Return the images (B, H, W, 3) of latents.

        They are decoded one at a time, in overlapping tiles if they are very large or if memory
        runs out. An image that overflows in float16 is decoded again in float32.

        Args:
            cpu_vae: decode on the CPU, in float32.
            norms: a context for each image, in which it is decoded
                (`synthgen.pipelines.diffusion.norm_statistics`).
        """
        device = self._execution_device
        dtype = self.vae.dtype
        if cpu_vae:
            self.vae.to("cpu", torch.float32)
        elif self._needs_upcast:
            self.vae.to(dtype=torch.float32)
        shift, spread = self._latent_statistics(latents)
        scaled = latents / self.vae.config.scaling_factor * spread + shift
        begin_activity("decoding")
        decoded = []
        for k, z in enumerate(scaled.to("cpu" if cpu_vae else device)):
            with nullcontext() if norms is None else norms[k]:
                decoded.append(self._decode_image(z[None]))
            record_beat(cost=DECODE_COST * count_cells(z[None]))
        pixels = torch.cat(decoded)
        if cpu_vae:
            self.vae.to(device)
        if self.vae.dtype != dtype:
            self.vae.to(dtype=dtype)
        pixels = torch.nan_to_num((pixels.clamp(-1, 1) + 1) * 127.5).round().byte()
        images: NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        return images

    def _decode_image(self, z: Tensor) -> Tensor:
        """Return the pixels (1, 3, H, W) float32 of latents (1, C, h, w), on the CPU."""
        size = [side * self.factor for side in z.shape[2:]]
        dtype = self.vae.dtype
        pixels = self._in_tiles_if_needed(z.to(dtype), size, self._decode)
        overflows = dtype == torch.float16 and not pixels.isfinite().all()
        if not overflows or not z.isfinite().all():
            return pixels
        if not self.has_warned_of_overflow:
            self.has_warned_of_overflow = True
            log.warning(
                "the autoencoder overflows in float16; such images are decoded again in float32 "
                "(pipeline.dtype=bfloat16 is faster, if the GPU has it)"
            )
        self.vae.to(dtype=torch.float32)
        try:
            return self._in_tiles_if_needed(z.float(), size, self._decode)
        finally:
            self.vae.to(dtype=dtype)

    def _in_tiles_if_needed(
        self, values: Tensor, size: Sequence[int], code: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Encode or decode one image, in tiles if it is very large or if memory runs out.

        Args:
            values: (1, C, h, w), what is encoded or decoded.
            size: height, width of the image in px.
            code: encodes or decodes the values.
        """
        if not self.tiled and max(size) <= UNTILED_SIDE:
            self.vae.disable_tiling()
            try:
                return code(values)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            free_memory()
            self.tiled = True
            log.warning("out of memory at %d x %d px; from now on in tiles", size[1], size[0])
        self.vae.enable_tiling()
        return code(values)

    def _encode(self, image: Tensor) -> Tensor:
        """Return the latents of an image; the tiny autoencoder encodes no distribution."""
        encoded = self.vae.encode(image)
        mode: Tensor = (
            encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        )
        return mode

    def _decode(self, z: Tensor) -> Tensor:
        pixels: Tensor = self.vae.decode(z).sample
        return pixels.float().cpu()

    @property
    def _needs_upcast(self) -> bool:
        """Whether the autoencoder overflows in float16, as SDXL's does.

        Other checkpoints have the same setting by default, but their autoencoders do not overflow.
        """
        if self.text_encoder_2 is None:
            return False
        return bool(self.vae.config.force_upcast) and self.vae.dtype == torch.float16

    def _latent_statistics(self, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Return the shift and the scale of the autoencoder's latents.

        Each is a tensor (1, C, 1, 1) with a value per channel, or a number for all channels.
        """
        config = self.vae.config
        mean = getattr(config, "latents_mean", None)
        std = getattr(config, "latents_std", None)
        if mean is not None and std is not None:
            shift = latents.new_tensor(mean)[None, :, None, None]
            spread = latents.new_tensor(std)[None, :, None, None]
            return shift, spread
        return getattr(config, "shift_factor", None) or 0.0, 1.0


def count_cells(latents: Tensor) -> int:
    """Return the number of cells of latents (n, C, h, w)."""
    return len(latents) * latents[0, 0].numel()
