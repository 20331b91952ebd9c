"""Mixture of Diffusers over free regions: `StableDiffusionCanvasPipeline` of the source document's package, in batches.

Source: Jimenez, arXiv 2302.02412, and the arguments of the package `mixdiff`.
"""

from collections.abc import Sequence
from math import floor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from synthgen.pipelines.base import IncompatibleLayoutError, Numerics, Painting
from synthgen.pipelines.canvas import (
    CanvasRegion,
    ImageRegion,
    RerollRegion,
    Spec,
    TextRegion,
    region_problems,
)
from synthgen.pipelines.diffusion import region_weights
from synthgen.pipelines.diffusion.blending import Reference
from synthgen.pipelines.diffusion.mixture import Mixture, Region
from synthgen.pipelines.diffusion.pipeline import (
    AfterStep,
    Generators,
    Images,
    LatentPipeline,
    StepEnd,
    as_output,
    generators_of,
    load_pipeline,
)
from synthgen.pipelines.diffusion.prompts import Prompts
from synthgen.pipelines.diffusion.scaling import enlarge_canvas, resize_images
from synthgen.scenes.scene import Scene, SceneSpec

Regions = Sequence[TextRegion | ImageRegion]


class CanvasPipeline(LatentPipeline):
    """Pictures from free regions, with any checkpoint in Stable Diffusion format."""

    @torch.no_grad()
    def __call__(
        self,
        canvas_height: int,
        canvas_width: int,
        regions: Regions | Sequence[Regions],
        num_inference_steps: int = 50,
        seed: int | Sequence[int] | None = None,
        reroll_regions: Sequence[RerollRegion] = (),
        negative_prompt: str | None = None,
        eta: float = 0.0,
        cpu_vae: bool = False,
        decode_steps: bool = False,
        chunk: int = 8,
        generator: Generators = None,
        callback_on_step_end: StepEnd | None = None,
        output_type: str = "pil",
    ) -> Any:
        """Paint one image a seed.

        Args:
            canvas_height, canvas_width: px.
            regions: of all images, or a list for each. Cells that no text region covers predict no noise.
            seed: general seed, one or B; None: `generator`.
            reroll_regions: where the initial noise is another; resets come first, then each region's `noise_eps`.
            negative_prompt: of the regions that have none of their own; None: none.
            eta: noise that DDIM adds at each step.
            cpu_vae: decode on the CPU.
            decode_steps: also return what is on the canvas after each step, a list of batches.
            chunk: windows of the size that the checkpoint was trained at that go through the UNet at once.
            generator: one CPU generator an image, or one.
            output_type: "pil", "np" (B, H, W, 3) uint8, or "latent".

        Returns:
            B images; with `decode_steps` these and a list of B images a step.

        Raises:
            IncompatibleLayoutError: a canvas or region that this checkpoint cannot paint.
        """
        generators, size = generators_of(seed, generator), (canvas_width, canvas_height)
        each: Any = (
            list(regions) if isinstance(regions[0], Sequence) else [regions] * len(generators)
        )
        self.check_inputs(each, reroll_regions, size, len(generators))
        noise = torch.stack(
            [
                self.canvas_noise(size, g, r, reroll_regions)
                for g, r in zip(generators, each, strict=True)
            ]
        )
        noise = noise.to(self._execution_device)
        prompts, parts = Prompts(), []
        for image, own in enumerate(each):
            for r in own:
                if isinstance(r, TextRegion):
                    negative = negative_prompt if r.negative_prompt is None else r.negative_prompt
                    rows, weight = (prompts.row(r.prompt), prompts.row(negative)), self.weight(r)
                    parts.append(Region(image, self.window(r), *rows, r.guidance_scale, weight))
        conditions = self.text_conditions(prompts.texts or [""], 7.5)
        mixture = Mixture(parts, conditions, noise.shape, self.cells_at_once(chunk))
        seen: list[Images] = []

        def look(z: Tensor, scheduler: Any, step: int, t: Tensor | None) -> Tensor:
            seen.append(as_output(self.decode(z, cpu_vae), output_type))
            return z

        after: list[AfterStep] = [
            *self.references(each, noise, num_inference_steps),
            *([look] if decode_steps else []),
        ]
        latents = self.denoise(
            noise, [mixture] * num_inference_steps, callback_on_step_end, after, generators, eta
        )
        images = (
            latents
            if output_type == "latent"
            else as_output(self.decode(latents, cpu_vae), output_type)
        )
        return (images, seen) if decode_steps else images

    def check_inputs(
        self,
        regions: Sequence[Regions],
        rerolls: Sequence[RerollRegion],
        canvas: tuple[int, int],
        images: int,
    ) -> None:
        """Raise IncompatibleLayoutError for a canvas or regions that this checkpoint cannot paint."""
        if len(regions) != images:
            raise IncompatibleLayoutError(
                f"regions: lists for {len(regions)} images, but {images} seeds or generators"
            )
        for name, side in zip(("canvas_width", "canvas_height"), canvas, strict=True):
            if side % self.factor or side <= 0:
                raise IncompatibleLayoutError(
                    f"{name}: {side} must be a multiple of {self.factor} for this checkpoint"
                )
        for problem in (
            p
            for own in [*regions, rerolls]
            for p in region_problems(list(own), canvas, self.factor)
        ):
            raise IncompatibleLayoutError(problem)

    def window(self, region: CanvasRegion) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 of a region in cells."""
        sides = (region.col_init, region.row_init, region.col_end, region.row_end)
        x0, y0, x1, y1 = (side // self.factor for side in sides)
        return x0, y0, x1, y1

    def weight(self, region: TextRegion) -> Tensor:
        """Weight (h, w) of a text region."""
        x0, y0, x1, y1 = self.window(region)
        return region_weights.WINDOW[region.mask_type](y1 - y0, x1 - x0) * region.mask_weight

    def canvas_noise(
        self,
        canvas: tuple[int, int],
        generator: torch.Generator,
        regions: Regions,
        rerolls: Sequence[RerollRegion],
    ) -> Tensor:
        """Initial noise (C, h, w): the canvas', reset where asked, then shifted by each region's own noise."""
        shape = (
            self.vae.config.latent_channels,
            canvas[1] // self.factor,
            canvas[0] // self.factor,
        )
        noise = torch.randn(shape, generator=generator)
        resets = [r for r in rerolls if r.reroll_mode == "reset"]
        shifts = [*regions, *(r for r in rerolls if r.reroll_mode == "epsilon")]
        for region, scale in [
            *((r, None) for r in resets),
            *((r, r.noise_eps) for r in shifts if r.noise_eps > 0),
        ]:
            x0, y0, x1, y1 = self.window(region)
            part, seed = noise[:, y0:y1, x0:x1], region.region_seed
            own = torch.randn(
                part.shape,
                generator=generator if seed is None else torch.Generator().manual_seed(seed),
            )
            part.copy_(own if scale is None else part + scale * own)
        return noise

    def references(self, regions: Sequence[Regions], noise: Tensor, steps: int) -> list[Reference]:
        """What the image regions follow, and for how many steps: their latents, noised as the canvas is.

        The package noises them to the level before the step that was just made; here it is the level after it.
        """
        found = []
        for image, own in enumerate(regions):
            for region in own:
                if isinstance(region, ImageRegion):
                    x0, y0, x1, y1 = self.window(region)
                    latents, mask = torch.zeros_like(noise), torch.zeros_like(noise[:, :1])
                    latents[image, :, y0:y1, x0:x1] = self.encode_pictures(picture(region)[None])[0]
                    mask[image, :, y0:y1, x0:x1] = 1
                    found.append(Reference(latents, noise, mask, steps_of(region.strength, steps)))
        return found


def picture(region: ImageRegion) -> np.ndarray:
    """The reference image (h, w, 3) uint8 of a region, stretched to it."""
    source = region.reference_image
    image = source if isinstance(source, Image.Image) else Image.open(source)
    size = (region.col_end - region.col_init, region.row_end - region.row_init)
    return np.array(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))


def steps_of(strength: float, steps: int) -> int:
    """Steps in which a picture is followed: all but the last floor(steps (1 - strength)), and never the last one."""
    return min(steps - floor(steps * (1 - strength) + 1e-9), steps - 1)


class CanvasPainter:
    """The loaded pipeline as the engine calls it."""

    def __init__(self, spec: Spec, scene: SceneSpec, numerics: Numerics) -> None:
        self.spec, self.chunk = spec, numerics.chunk
        self.pipeline = load_pipeline(CanvasPipeline, spec, spec.scheduler, numerics)
        self.pipeline.empty_is_none = True

    def use_chunk(self, chunk: int) -> None:
        """Go on with so many windows at once; what is loaded stays."""
        self.chunk = chunk

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        spec, factor = self.spec, self.pipeline.factor
        size = (scenes[0].layout.width, scenes[0].layout.height)
        width, height = enlarge_canvas(size, spec.generation_scale(), factor)
        images = self.pipeline(
            height,
            width,
            spec.enlarge(spec.regions, factor),
            num_inference_steps=spec.steps,
            seed=[
                int(seed.generate_state(1, np.uint64)[0] >> 1) if spec.seed is None else spec.seed
                for seed in seeds
            ],
            reroll_regions=spec.enlarge(spec.reroll_regions, factor),
            negative_prompt=scenes[0].negative,
            eta=spec.eta,
            cpu_vae=spec.cpu_vae,
            chunk=self.chunk,
            output_type="np",
        )
        return [Painting(image) for image in resize_images(images, size)]
