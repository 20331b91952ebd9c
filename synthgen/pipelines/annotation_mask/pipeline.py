"""Annotations as a mask: boxes on black, at the size of the canvas, encoded by the autoencoder.

Source: "How to generate 100 dogs at distinct locations" (the project's document 001), in its
img2img form.

Denoising starts from the noised mask. A checkpoint whose UNet has twice as many input channels as
the latents was trained to read masks: it starts from noise and reads the mask's latents beside its
own at every step.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from synthgen.layouts.base import Layout
from synthgen.pipelines.diffusion.box_annotations import Corners, draw_annotations, list_corners
from synthgen.pipelines.diffusion.mixture import Mixture
from synthgen.pipelines.diffusion.pipeline import (
    Generators,
    Images,
    LatentPipeline,
    StepEnd,
    as_output,
)
from synthgen.pipelines.diffusion.prompts import fill_captions, repeat_per_image
from synthgen.scenes.scene import COUNTS


class AnnotationMaskPipeline(LatentPipeline):
    """Generate layouts with a checkpoint in Stable Diffusion format.

    Any such checkpoint works; one that was trained to read masks works better.
    """

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
        """Generate one image for each layout.

        Args:
            layouts: B layouts on one canvas size.
            background: prompt of the background, one or B.
            negative_prompt: one or B; None: no negative prompt, which SDXL distinguishes from an
                empty one.
            caption: prompt of the whole image, or a template for it (see
                `synthgen.scenes.scene.build_caption`).
            strength: share of the steps that run, in (0, 1]; a trained checkpoint runs all.
            label_range: category id that the mask shows as white.
            tile: side in px of the tiles in which the canvas is denoised, each with its crop of
                the mask; None: no tiles.
            categories: ids of names that COCO lacks.
            annotations: B sequences of (x0, y0, x1, y1, category id), read instead of the layouts'
                boxes.
            chunk: number of windows of the size that the checkpoint was trained at that go through
                the UNet together; fewer of larger windows.
            generator: one CPU generator for each image, or one for all.
            output_type: "pil", "np" (B, H, W, 3) uint8, or "latent" (B, C, h, w) float32.

        Raises:
            IncompatibleLayoutError: this checkpoint cannot generate a canvas or a box.
            ValueError: a category has no id, or one beyond the range; or the scheduler cannot
                start within its schedule.
        """
        self.check_inputs(layouts, strength, annotations)
        size = (layouts[0].width, layouts[0].height)
        captions = fill_captions(layouts, background, caption)
        if annotations is None:
            annotations = [list_corners(layout, categories) for layout in layouts]
        mask = self.encode_images(draw_annotations(annotations, size, label_range))
        negatives = repeat_per_image(negative_prompt, len(layouts))
        conditions = self.text_conditions([*captions, *negatives], guidance_scale)
        rows = [(i, len(layouts) + i) for i in range(len(layouts))]
        regions = self.covers(size, rows, guidance_scale, tile)
        noise = self.noise(layouts, generator)
        mixture = Mixture(regions, conditions, noise.shape, self.cells_at_once(chunk))
        first = 0
        if not self.trained:
            first = num_inference_steps - max(1, int(num_inference_steps * strength))
        self.scheduler.set_timesteps(num_inference_steps, device=noise.device)
        start = noise
        if first > 0:
            timesteps = self.scheduler.timesteps[first].repeat(len(noise))
            start = self.scheduler.add_noise(mask, noise, timesteps)
        latents = self.denoise(
            start,
            [mixture] * num_inference_steps,
            callback_on_step_end,
            generator=generator,
            first=first,
            beside=mask if self.trained else None,
        )
        if output_type == "latent":
            return latents
        return as_output(self.decode(latents), output_type)

    def check_inputs(
        self,
        layouts: Sequence[Layout],
        strength: float,
        annotations: Sequence[Sequence[Corners]] | None,
    ) -> None:
        """Raise IncompatibleLayoutError or ValueError for inputs that this pipeline cannot use."""
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
