"""Mixture of Diffusers over free regions, in batches.

This is `StableDiffusionCanvasPipeline` of the source document's package.

Source: Jimenez, arXiv 2302.02412, and the arguments of the package `mixdiff`.
"""

from collections.abc import Sequence
from math import floor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from synthgen.pipelines.base import IncompatibleLayoutError, Numerics, Painting
from synthgen.pipelines.canvas import (
    CanvasRegion,
    ImageRegion,
    RerollRegion,
    Spec,
    TextRegion,
    find_region_problems,
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
    load_pipeline,
    make_generators,
)
from synthgen.pipelines.diffusion.prompts import Prompts
from synthgen.pipelines.diffusion.scaling import enlarge_canvas, resize_images
from synthgen.randomness import make_torch_seed
from synthgen.scenes.scene import Scene, SceneSpec

Regions = Sequence[TextRegion | ImageRegion]


class CanvasPipeline(LatentPipeline):
    """Generate images from free regions with any checkpoint in Stable Diffusion format."""

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
        """Generate one image for each seed.

        Args:
            canvas_height: height of the canvas in px.
            canvas_width: width of the canvas in px.
            regions: regions of all images, or a list for each image. The predicted noise is 0 in
                cells that no text region covers.
            seed: general seed, one or B; None: use `generator`.
            reroll_regions: regions in which the initial noise is replaced or changed; resets come
                first, then each region's `noise_eps`.
            negative_prompt: negative prompt of the regions that have none of their own; None:
                none.
            eta: noise that DDIM adds at each step.
            cpu_vae: decode on the CPU.
            decode_steps: also return the canvas after each step, a list of batches.
            chunk: number of windows of the size that the checkpoint was trained at that go through
                the UNet together.
            generator: one CPU generator for each image, or one.
            output_type: "pil", "np" (B, H, W, 3) uint8, or "latent".

        Returns:
            B images; with `decode_steps` these and a list with B images for each step.

        Raises:
            IncompatibleLayoutError: this checkpoint cannot generate a canvas or a region.
        """
        generators = make_generators(seed, generator)
        size = (canvas_width, canvas_height)
        regions_per_image: list[Any] = [regions] * len(generators)
        if isinstance(regions[0], Sequence):
            regions_per_image = list(regions)
        self.check_inputs(regions_per_image, reroll_regions, size, len(generators))
        noises = []
        for own_generator, own_regions in zip(generators, regions_per_image, strict=True):
            noises.append(self.sample_noise(size, own_generator, own_regions, reroll_regions))
        noise = torch.stack(noises).to(self._execution_device)
        prompts = Prompts()
        mixture_regions = []
        for image, own_regions in enumerate(regions_per_image):
            for region in own_regions:
                if isinstance(region, TextRegion):
                    mixture_regions.append(
                        self.build_mixture_region(image, region, prompts, negative_prompt)
                    )
        conditions = self.text_conditions(prompts.texts or [""], 7.5)
        mixture = Mixture(mixture_regions, conditions, noise.shape, self.cells_at_once(chunk))
        decoded_steps: list[Images] = []

        def decode_step(z: Tensor, scheduler: Any, step: int, t: Tensor | None) -> Tensor:
            decoded_steps.append(as_output(self.decode(z, cpu_vae), output_type))
            return z

        after_step: list[AfterStep] = []
        after_step += self.build_references(regions_per_image, noise, num_inference_steps)
        if decode_steps:
            after_step.append(decode_step)
        steps = [mixture] * num_inference_steps
        latents = self.denoise(noise, steps, callback_on_step_end, after_step, generators, eta)
        images: Images | Tensor = latents
        if output_type != "latent":
            images = as_output(self.decode(latents, cpu_vae), output_type)
        return (images, decoded_steps) if decode_steps else images

    def check_inputs(
        self,
        regions: Sequence[Regions],
        reroll_regions: Sequence[RerollRegion],
        canvas: tuple[int, int],
        images: int,
    ) -> None:
        """Raise IncompatibleLayoutError for a canvas or regions that this checkpoint cannot use."""
        if len(regions) != images:
            raise IncompatibleLayoutError(
                f"regions: lists for {len(regions)} images, but {images} seeds or generators"
            )
        for name, side in zip(("canvas_width", "canvas_height"), canvas, strict=True):
            if side % self.factor or side <= 0:
                raise IncompatibleLayoutError(
                    f"{name}: {side} must be a multiple of {self.factor} for this checkpoint"
                )
        for own_regions in [*regions, reroll_regions]:
            problems = find_region_problems(own_regions, canvas, self.factor)
            if problems:
                raise IncompatibleLayoutError(problems[0])

    def build_mixture_region(
        self, image: int, region: TextRegion, prompts: Prompts, negative_prompt: str | None
    ) -> Region:
        """Return the region of the mixture that a text region stands for.

        Args:
            image: index of the image in the batch.
            region: the text region.
            prompts: table of prompts, to which the region's prompts are added.
            negative_prompt: negative prompt if the region has none of its own.
        """
        if region.negative_prompt is not None:
            negative_prompt = region.negative_prompt
        row = prompts.row(region.prompt)
        negative_row = prompts.row(negative_prompt)
        window = self.convert_to_cells(region)
        x0, y0, x1, y1 = window
        weight = region_weights.WINDOW[region.mask_type](y1 - y0, x1 - x0) * region.mask_weight
        return Region(image, window, row, negative_row, region.guidance_scale, weight)

    def convert_to_cells(self, region: CanvasRegion) -> tuple[int, int, int, int]:
        """Return the window x0, y0, x1, y1 of a region in latent cells."""
        sides = (region.col_init, region.row_init, region.col_end, region.row_end)
        x0, y0, x1, y1 = (side // self.factor for side in sides)
        return x0, y0, x1, y1

    def sample_noise(
        self,
        canvas: tuple[int, int],
        generator: torch.Generator,
        regions: Regions,
        reroll_regions: Sequence[RerollRegion],
    ) -> Tensor:
        """Return the initial noise (C, h, w) of one image.

        The noise of the canvas is replaced in the regions that reset it, then each region's own
        noise is added.
        """
        height = canvas[1] // self.factor
        width = canvas[0] // self.factor
        noise = torch.randn((self.vae.config.latent_channels, height, width), generator=generator)
        resets = [r for r in reroll_regions if r.reroll_mode == "reset"]
        epsilons = [r for r in reroll_regions if r.reroll_mode == "epsilon"]
        for reset in resets:
            noise_here = self.select_noise(noise, reset)
            noise_here.copy_(self.sample_region_noise(noise_here, reset, generator))
        for region in [*regions, *epsilons]:
            if region.noise_eps > 0:
                noise_here = self.select_noise(noise, region)
                own_noise = self.sample_region_noise(noise_here, region, generator)
                noise_here.copy_(noise_here + region.noise_eps * own_noise)
        return noise

    def select_noise(self, noise: Tensor, region: CanvasRegion) -> Tensor:
        """Return the view (C, h, w) of the canvas' noise in a region."""
        x0, y0, x1, y1 = self.convert_to_cells(region)
        return noise[:, y0:y1, x0:x1]

    def sample_region_noise(
        self, noise: Tensor, region: CanvasRegion, generator: torch.Generator
    ) -> Tensor:
        """Sample a region's own noise in the shape of `noise`, from its seed if it has one."""
        if region.region_seed is not None:
            generator = torch.Generator().manual_seed(region.region_seed)
        return torch.randn(noise.shape, generator=generator)

    def build_references(
        self, regions: Sequence[Regions], noise: Tensor, steps: int
    ) -> list[Reference]:
        """Return the references of the image regions: their latents and for how many steps.

        The package noises the latents to the level before the step that was just made; here it is
        the level after that step, as for the canvas.
        """
        references = []
        for image, own_regions in enumerate(regions):
            for region in own_regions:
                if isinstance(region, ImageRegion):
                    x0, y0, x1, y1 = self.convert_to_cells(region)
                    encoded = self.encode_images(load_reference(region)[None])[0]
                    latents = torch.zeros_like(noise)
                    latents[image, :, y0:y1, x0:x1] = encoded
                    mask = torch.zeros_like(noise[:, :1])
                    mask[image, :, y0:y1, x0:x1] = 1
                    count = count_reference_steps(region.strength, steps)
                    references.append(Reference(latents, noise, mask, count))
        return references


def load_reference(region: ImageRegion) -> NDArray[np.uint8]:
    """Return the reference image (h, w, 3) uint8 of a region, stretched to its size."""
    source = region.reference_image
    image = source if isinstance(source, Image.Image) else Image.open(source)
    size = (region.col_end - region.col_init, region.row_end - region.row_init)
    return np.array(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))


def count_reference_steps(strength: float, steps: int) -> int:
    """Return the number of steps that follow a reference image.

    These are all but the last floor(steps (1 - strength)); the last step is never one of them.
    """
    return min(steps - floor(steps * (1 - strength) + 1e-9), steps - 1)


class CanvasPainter:
    """The loaded pipeline as the engine calls it."""

    def __init__(self, spec: Spec, scene: SceneSpec, numerics: Numerics) -> None:
        self.spec = spec
        self.chunk = numerics.chunk
        self.pipeline = load_pipeline(CanvasPipeline, spec, spec.scheduler, numerics)
        self.pipeline.empty_is_none = True

    def use_chunk(self, chunk: int) -> None:
        """Change how many windows go through the UNet together, without loading anything."""
        self.chunk = chunk

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        spec = self.spec
        factor = self.pipeline.factor
        size = (scenes[0].layout.width, scenes[0].layout.height)
        width, height = enlarge_canvas(size, spec.generation_scale(), factor)
        images = self.pipeline(
            height,
            width,
            spec.enlarge(spec.regions, factor),
            num_inference_steps=spec.steps,
            seed=[make_torch_seed(seed) if spec.seed is None else spec.seed for seed in seeds],
            reroll_regions=spec.enlarge(spec.reroll_regions, factor),
            negative_prompt=scenes[0].negative,
            eta=spec.eta,
            cpu_vae=spec.cpu_vae,
            chunk=self.chunk,
            output_type="np",
        )
        return [Painting(image) for image in resize_images(images, size)]
