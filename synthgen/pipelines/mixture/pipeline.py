"""Mixture of Diffusers for layouts: a diffusers pipeline that generates a batch of images."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthgen.layouts.base import Layout
from synthgen.pipelines.diffusion import region_weights
from synthgen.pipelines.diffusion.blending import Reference, merge_masks, paste_back
from synthgen.pipelines.diffusion.mixture import Mixture, Region, find_guided_steps
from synthgen.pipelines.diffusion.pipeline import (
    Generators,
    Images,
    LatentPipeline,
    StepEnd,
    as_output,
)
from synthgen.pipelines.diffusion.prompts import Prompts, repeat_per_image
from synthgen.pipelines.diffusion.windows import extend_boxes, place_object_windows
from synthgen.pipelines.mixture import Mask
from synthgen.scenes.scene import build_region_prompt


class MixturePipeline(LatentPipeline):
    """Generate layouts with any checkpoint in Stable Diffusion format.

    Each box has its own window, which contains the box and some context. The window is denoised
    with the prompt of the box. The background is covered with windows of a low constant weight.
    Every step merges all predictions (`synthgen.pipelines.diffusion.mixture`).

    Examples:
        >>> checkpoint = Path(synthgen.__file__).parent / "weights" / "synthgen-tiny"
        >>> pipeline = MixturePipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
        >>> layout = Layout(96, 96, np.array([[8, 8, 88, 88]], np.float32), ("dog",))
        >>> images = pipeline([layout], background="a field of grass", num_inference_steps=2)
        >>> images[0].size
        (96, 96)
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
        outset: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
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
        """Generate one image for each layout.

        Args:
            layouts: B layouts with the same canvas size; their `phrases` are the prompts of the
                boxes.
            background: prompt of the background: one prompt for all images, or B prompts.
            negative_prompt: one prompt for all images, or B prompts. None: no negative prompt,
                which SDXL distinguishes from an empty prompt.
            guidance_scale: scale of classifier-free guidance in the windows of the boxes.
            background_guidance_scale: scale of classifier-free guidance in the windows of the
                background; None: the same as `guidance_scale`.
            guidance_interval: the steps with guidance, as shares [start, stop) of all steps. In the
                other steps the guidance scale is 1 and the unconditional branch is not computed
                (Kynkäänniemi et al., arXiv 2404.07724).
            context: see the key of the recipe (`synthgen describe mixture`), also for `outset`,
                `window`, `background_window`, `background_overlap`, `background_weight` and `mask`.
            pictures: (B, H, W, 3) uint8, images into which the objects are generated; they do not
                change outside the windows of the boxes.
            chunk: number of windows that go through the UNet together if they have the size that
                the checkpoint was trained at; larger windows are processed in smaller groups.
            generator: one CPU generator for each image, or one for all images.
            callback_on_step_end: called with the pipeline, the step, the timestep and
                {"latents": latents}; it may return new latents.
            output_type: "pil", "np" (B, H, W, 3) uint8, or "latent" (B, C, h, w) float32.

        Raises:
            IncompatibleLayoutError: this checkpoint cannot generate the canvas or a box.
        """
        self.check_layouts(layouts)
        self.check_pictures(layouts, pictures)
        least_window = window
        if least_window is None:
            least_window = self.unet.config.sample_size * self.factor
        tile_guidance = background_guidance_scale
        if tile_guidance is None:
            tile_guidance = guidance_scale
        prompts = Prompts()
        backgrounds = repeat_per_image(background, len(layouts))
        background_rows = [prompts.row(text) for text in backgrounds]
        negative_rows = [
            prompts.row(text) for text in repeat_per_image(negative_prompt, len(layouts))
        ]
        objects: list[Region] = []
        tiles: list[Region] = []
        for i, layout in enumerate(layouts):
            phrase_rows = []
            for phrase in layout.prompts:
                phrase_rows.append(prompts.row(build_region_prompt(phrase, backgrounds[i])))
            objects += self.build_object_regions(
                layout,
                i,
                phrase_rows,
                negative_rows[i],
                guidance_scale,
                least_window,
                context,
                outset,
                mask,
            )
            if pictures is not None:
                continue
            cover = self.cover(
                i,
                (layout.width, layout.height),
                (background_rows[i], negative_rows[i]),
                tile_guidance,
                background_window or least_window,
                background_overlap,
            )
            tiles += [replace(r, weight=r.weight * background_weight) for r in cover]
        noise = self.noise(layouts, generator)
        conditions = self.text_conditions(prompts.texts, guidance_scale)
        cells_at_once = self.cells_at_once(chunk)
        regions = objects + tiles
        unguided_regions = [replace(region, guidance=1.0) for region in regions]
        guided = Mixture(regions, conditions, noise.shape, cells_at_once)
        unguided = Mixture(unguided_regions, conditions, noise.shape, cells_at_once)
        guided_steps = find_guided_steps(guidance_interval, num_inference_steps)
        steps = []
        for step in range(num_inference_steps):
            steps.append(guided if step in guided_steps else unguided)
        if pictures is None:
            latents = self.denoise(noise, steps, callback_on_step_end, generator=generator)
            if output_type == "latent":
                return latents
            return as_output(self.decode(latents), output_type)
        generated_mask, windows = merge_masks(objects, noise.shape)
        generated_mask = generated_mask.to(noise.device)
        windows = windows.to(noise.device)
        reference = Reference(self.encode_images(pictures), noise, 1 - generated_mask)
        latents = self.denoise(noise, steps, callback_on_step_end, [reference], generator=generator)
        if output_type == "latent":
            return latents
        images = paste_back(self.decode(latents), pictures, generated_mask, windows)
        return as_output(images, output_type)

    def build_object_regions(
        self,
        layout: Layout,
        image: int,
        rows: Sequence[int],
        negative_row: int,
        guidance: float,
        least_window: int,
        context: float,
        outset: Sequence[float],
        mask: Mask,
    ) -> list[Region]:
        """Return a region for the window of each box of an image.

        Args:
            layout: the layout of the image.
            image: index of the image in the batch.
            rows: rows of the boxes' prompts in the table of conditions.
            negative_row: row of the negative prompt in this table.
            guidance: guidance scale.
            least_window: minimum side of a window in px.
            context: how far a window extends beyond its box on each side, as a share of the box's
                side.
            outset: shares of a box's sides by which its edges move outwards.
            mask: kind of the weights over a window.
        """
        size = (layout.width, layout.height)
        least_cells = self.cells(least_window)
        boxes = extend_boxes(layout.boxes, size, outset)
        windows = place_object_windows(
            boxes, size, self.factor, self.multiple, least_cells, context
        )
        regions = []
        for box, (x0, y0, x1, y1), row in zip(boxes, windows.tolist(), rows, strict=True):
            window = (x0, y0, x1, y1)
            weight = self.build_weight(box, window, mask)
            regions.append(Region(image, window, row, negative_row, guidance, weight))
        return regions

    def build_weight(self, box: NDArray[np.float32], window: Sequence[int], mask: Mask) -> Tensor:
        """Return the weights (h, w) over the window (x0, y0, x1, y1 in latent cells) of a box."""
        x0, y0, x1, y1 = window
        h = y1 - y0
        w = x1 - x0
        if mask == "box":
            box_x0, box_y0, box_x1, box_y1 = (float(v) / self.factor for v in box)
            return region_weights.box(h, w, box_x0 - x0, box_y0 - y0, box_x1 - x0, box_y1 - y0)
        return region_weights.WINDOW[mask](h, w)
