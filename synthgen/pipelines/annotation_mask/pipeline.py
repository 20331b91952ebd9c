"""Annotations as a mask: boxes painted on black, at the canvas' size, encoded by the autoencoder.

Source: "How to generate 100 dogs at distinct locations" (the project's document 001), img2img form: denoising starts from the
noised mask. A checkpoint whose UNet has twice the latent channels was trained for it: it starts from noise and reads the mask's
latents beside its own at every step.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from synthgen.layouts.base import Layout
from synthgen.pipelines.diffusion.box_annotations import Corners, corners_of, paint_annotations
from synthgen.pipelines.diffusion.mixture import Mixture
from synthgen.pipelines.diffusion.pipeline import (
    Generators,
    Images,
    LatentPipeline,
    StepEnd,
    as_output,
)
from synthgen.pipelines.diffusion.prompts import captions_of, per_image
from synthgen.scenes.scene import COUNTS


class AnnotationMaskPipeline(LatentPipeline):
    """Paints layouts with any checkpoint in Stable Diffusion format, better with one trained for it."""

    @torch.no_grad()
    def __call__(
        self,
        layouts: Sequence[Layout],
        background: str | Sequence[str] = "",
        negative_prompt: str | Sequence[str | None] | None = None,
        caption: str = COUNTS,
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        strength: float = 0.75,
        label_range: int = 90,
        tile: int | None = None,
        categories: Mapping[str, int] = MappingProxyType({}),
        annotations: Sequence[Sequence[Corners]] | None = None,
        chunk: int = 32,
        generator: Generators = None,
        callback_on_step_end: StepEnd | None = None,
        output_type: str = "pil",
    ) -> Images | Tensor:
        """Paint one image a layout.

        Args:
            layouts: B layouts on one canvas size.
            background: prompt of the background, one or B.
            negative_prompt: one or B; None: none, which SDXL tells from an empty one.
            caption: of the whole picture, or a template for it (see `synthgen.scenes.scene.caption`).
            strength: share of the steps that run, in (0, 1]; a trained checkpoint runs all.
            label_range: category id that is painted white.
            tile: px; the canvas is denoised in tiles of this side, each with its part of the mask; None: in one piece.
            categories: ids of names that COCO lacks.
            annotations: B sequences of (x0, y0, x1, y1, category id), read instead of the layouts' boxes.
            chunk: windows of the size that the checkpoint was trained at that go through the UNet at once; of larger ones fewer.
            generator: one CPU generator an image, or one for all.
            output_type: "pil", "np" (B, H, W, 3) uint8, or "latent" (B, C, h, w) float32.

        Raises:
            IncompatibleLayoutError: a canvas or a box that this checkpoint cannot paint.
            ValueError: a category without an id or beyond the range, or a scheduler that cannot start within its schedule.
        """
        self.check_inputs(layouts, strength, annotations)
        size, captions = (
            (layouts[0].width, layouts[0].height),
            captions_of(layouts, background, caption),
        )
        boxes = (
            [corners_of(layout, categories) for layout in layouts]
            if annotations is None
            else annotations
        )
        mask = self.encode_pictures(paint_annotations(boxes, size, label_range))
        conditions = self.text_conditions(
            [*captions, *per_image(negative_prompt, len(layouts))], guidance_scale
        )
        regions = self.covers(
            size, [(i, len(layouts) + i) for i in range(len(layouts))], guidance_scale, tile
        )
        noise = self.noise(layouts, generator)
        steps = [
            Mixture(regions, conditions, noise.shape, self.cells_at_once(chunk))
        ] * num_inference_steps
        first = (
            0 if self.trained else num_inference_steps - max(1, int(num_inference_steps * strength))
        )
        self.scheduler.set_timesteps(num_inference_steps, device=noise.device)
        start = (
            noise
            if first == 0
            else self.scheduler.add_noise(
                mask, noise, self.scheduler.timesteps[first].repeat(len(noise))
            )
        )
        latents = self.denoise(
            start,
            steps,
            callback_on_step_end,
            generator=generator,
            first=first,
            beside=mask if self.trained else None,
        )
        return latents if output_type == "latent" else as_output(self.decode(latents), output_type)

    def check_inputs(
        self,
        layouts: Sequence[Layout],
        strength: float,
        annotations: Sequence[Sequence[Corners]] | None,
    ) -> None:
        """Raise IncompatibleLayoutError or ValueError for what this pipeline cannot paint."""
        self.check_layouts(layouts)
        self.check_schedule()
        if not 0 < strength <= 1:
            raise ValueError(f"strength: {strength:g} must be in (0, 1]")
        if annotations is not None and len(annotations) != len(layouts):
            raise ValueError(
                f"annotations: {len(annotations)} sequences given for {len(layouts)} layouts"
            )

    @property
    def trained(self) -> bool:
        """Whether the UNet reads the mask's latents beside its own."""
        return bool(self.unet.config.in_channels == 2 * self.vae.config.latent_channels)
