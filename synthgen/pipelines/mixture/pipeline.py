"""Mixture of Diffusers over layouts: a diffusers pipeline that paints a batch, every image with its own layout."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthgen.layouts.base import Layout
from synthgen.pipelines.base import IncompatibleLayoutError
from synthgen.pipelines.diffusion import region_weights
from synthgen.pipelines.diffusion.blending import Reference, masks_of, paste_back
from synthgen.pipelines.diffusion.mixture import Mixture, Region
from synthgen.pipelines.diffusion.pipeline import (
    Generators,
    Images,
    LatentPipeline,
    StepEnd,
    as_output,
)
from synthgen.pipelines.diffusion.prompts import Prompts, per_image
from synthgen.pipelines.diffusion.windows import object_windows
from synthgen.pipelines.mixture import Mask
from synthgen.scenes.scene import region_prompt


class MixturePipeline(LatentPipeline):
    """Paints layouts with any checkpoint in Stable Diffusion format.

    Each box has a window of its own, the box plus context, denoised with the prompt of the box; the background is
    tiled with windows of constant low weight; every step merges all predictions (`synthgen.pipelines.diffusion.mixture`).
    """

    @torch.no_grad()
    def __call__(
        self,
        layouts: Sequence[Layout],
        background: str | Sequence[str] = "",
        negative_prompt: str | Sequence[str | None] | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        background_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        context: float = 0.1,
        window: int | None = None,
        background_window: int | None = None,
        background_overlap: float = 0.25,
        background_weight: float = 0.05,
        mask: Mask = "box",
        pictures: NDArray[np.uint8] | None = None,
        chunk: int = 32,
        generator: Generators = None,
        callback_on_step_end: StepEnd | None = None,
        output_type: str = "pil",
    ) -> Images | Tensor:
        """Paint one image a layout.

        Args:
            layouts: B layouts on one canvas size; their `phrases` are the prompts of the boxes.
            background: prompt of the background, one or B.
            negative_prompt: one or B; None: none, which SDXL tells from an empty one.
            guidance_scale, background_guidance_scale: classifier-free guidance; None: equal.
            guidance_interval: share of the steps, [from, to) in [0, 1], that are guided; in the others the guidance scale
                is 1 and the unconditional branch is not computed (Kynkäänniemi et al., arXiv 2404.07724).
            context, window, background_window, background_overlap, background_weight, mask: see the recipe's keys.
            pictures: (B, H, W, 3) uint8 to paint the objects into: outside the boxes' windows they stay as they are.
            chunk: windows of the size that the checkpoint was trained at that go through the UNet at once; of larger ones fewer.
            generator: one CPU generator an image, or one for all.
            callback_on_step_end: called with pipeline, step, timestep and {"latents"}; may return new latents.
            output_type: "pil", "np" (B, H, W, 3) uint8, or "latent" (B, C, h, w) float32.

        Raises:
            IncompatibleLayoutError: a canvas or a box that this checkpoint cannot paint.
        """
        self.check_inputs(layouts, pictures)
        prompts, least = (
            Prompts(),
            self.unet.config.sample_size * self.factor if window is None else window,
        )
        words = per_image(background, len(layouts))
        backgrounds = [prompts.row(text) for text in words]
        negatives = [prompts.row(text) for text in per_image(negative_prompt, len(layouts))]
        objects: list[Region] = []
        tiles: list[Region] = []
        for i, layout in enumerate(layouts):
            own = [prompts.row(region_prompt(phrase, words[i])) for phrase in layout.prompts]
            objects += self.objects(
                layout, i, own, negatives[i], guidance_scale, least, context, mask
            )
            low = guidance_scale if background_guidance_scale is None else background_guidance_scale
            size, rows = (layout.width, layout.height), (backgrounds[i], negatives[i])
            cover = self.cover(i, size, rows, low, background_window or least, background_overlap)
            tiles += (
                [replace(r, weight=r.weight * background_weight) for r in cover]
                if pictures is None
                else []
            )
        noise, conditions = (
            self.noise(layouts, generator),
            self.text_conditions(prompts.texts, guidance_scale),
        )
        plain = [replace(r, guidance=1.0) for r in objects + tiles]
        guided, unguided = (
            Mixture(r, conditions, noise.shape, self.cells_at_once(chunk))
            for r in (objects + tiles, plain)
        )
        first, last = (round(share * num_inference_steps) for share in guidance_interval)
        steps = [
            guided if first <= step < last else unguided for step in range(num_inference_steps)
        ]
        if pictures is None:
            latents = self.denoise(noise, steps, callback_on_step_end, generator=generator)
            return (
                latents if output_type == "latent" else as_output(self.decode(latents), output_type)
            )
        painted, windows = (m.to(noise.device) for m in masks_of(objects, noise.shape))
        reference = Reference(self.encode_pictures(pictures), noise, 1 - painted)
        latents = self.denoise(noise, steps, callback_on_step_end, [reference], generator=generator)
        if output_type == "latent":
            return latents
        return as_output(paste_back(self.decode(latents), pictures, painted, windows), output_type)

    def check_inputs(
        self, layouts: Sequence[Layout], pictures: NDArray[np.uint8] | None = None
    ) -> None:
        """Raise IncompatibleLayoutError for what this checkpoint cannot paint."""
        self.check_layouts(layouts)
        if pictures is not None and pictures.shape != (
            len(layouts),
            layouts[0].height,
            layouts[0].width,
            3,
        ):
            want = f"({len(layouts)}, {layouts[0].height}, {layouts[0].width}, 3)"
            raise IncompatibleLayoutError(
                f"pictures: shape {pictures.shape} must be {want}: one a layout, at its size"
            )

    def objects(
        self,
        layout: Layout,
        image: int,
        rows: Sequence[int],
        negative: int,
        guidance: float,
        least: int,
        context: float,
        mask: Mask,
    ) -> list[Region]:
        """The windows of an image's boxes, each with the row of its prompt."""
        size, cells = (layout.width, layout.height), self.cells(least)
        windows = object_windows(layout.boxes, size, self.factor, self.multiple, cells, context)
        return [
            Region(
                image,
                (x0, y0, x1, y1),
                row,
                negative,
                guidance,
                self.object_weight(box, (x0, y0, x1, y1), mask),
            )
            for box, (x0, y0, x1, y1), row in zip(layout.boxes, windows.tolist(), rows, strict=True)
        ]

    def object_weight(self, box: NDArray[np.float32], cells: Sequence[int], mask: Mask) -> Tensor:
        """Weight (h, w) of a box's window (x0, y0, x1, y1 in cells)."""
        x0, y0, x1, y1 = cells
        h, w = y1 - y0, x1 - x0
        if mask == "box":
            bx0, by0, bx1, by1 = (float(v) / self.factor for v in box)
            return region_weights.box(h, w, bx0 - x0, by0 - y0, bx1 - x0, by1 - y0)
        return region_weights.WINDOW[mask](h, w)
