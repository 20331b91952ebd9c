"""Mixture of Diffusers over a grid of prompts, in batches.

This is `StableDiffusionTilingPipeline` of the source document.

Source: Jimenez, arXiv 2302.02412, and its repository's README (the arguments, their meaning and
order).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthgen.pipelines.base import IncompatibleLayoutError, Numerics, Painting
from synthgen.pipelines.diffusion import region_weights
from synthgen.pipelines.diffusion.mixture import Mixture, Region
from synthgen.pipelines.diffusion.pipeline import (
    Generators,
    Images,
    LatentPipeline,
    StepEnd,
    as_output,
    load_pipeline,
    make_generators,
)
from synthgen.pipelines.diffusion.prompts import Prompts
from synthgen.pipelines.diffusion.scaling import resize_images
from synthgen.pipelines.tiling import Reroll, Spec, find_multiples
from synthgen.randomness import make_torch_seed
from synthgen.scenes.scene import Scene, SceneSpec

Window = tuple[int, int, int, int]


class TilingPipeline(LatentPipeline):
    """Generate an image from a grid of prompts with any checkpoint in Stable Diffusion format."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[Sequence[str]],
        negative_prompt: str | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        eta: float = 0.0,
        seed: int | Sequence[int] | None = None,
        tile_height: int = 512,
        tile_width: int = 512,
        tile_row_overlap: int = 256,
        tile_col_overlap: int = 256,
        guidance_scale_tiles: Sequence[Sequence[float | None]] | None = None,
        seed_tiles: Sequence[Sequence[int | None]] | None = None,
        seed_tiles_mode: str | Sequence[Sequence[str]] = "full",
        seed_tiles_noise: str = "own",
        seed_reroll_regions: Sequence[Reroll] = (),
        cpu_vae: bool = False,
        chunk: int = 8,
        generator: Generators = None,
        callback_on_step_end: StepEnd | None = None,
        output_type: str = "pil",
    ) -> Images | Tensor:
        """Generate one image for each seed.

        Args:
            prompt: one prompt, or rows of equally many.
            negative_prompt: negative prompt of all tiles; None: none, which SDXL distinguishes
                from an empty one.
            eta: noise that DDIM adds at each step.
            seed: general seed, one or B; None: use `generator`.
            tile_height: px, as are `tile_width`, `tile_row_overlap` and `tile_col_overlap`.
            guidance_scale_tiles: guidance scale of each tile; None: `guidance_scale`.
            seed_tiles: seed of each tile's initial noise; None: the canvas' noise.
            seed_tiles_mode: "full": the seed sets the whole tile; "exclusive": the part that no
                other tile covers; for all tiles or for each.
            seed_tiles_noise: noise of exclusive tiles; "own": sampled in the shape of that part,
                as the published program does; "cut": cropped from the noise of a whole tile.
            seed_reroll_regions: (row0, row1, col0, col1, seed) in px; they are set last.
            cpu_vae: decode on the CPU.
            chunk: number of windows of the size that the checkpoint was trained at that go through
                the UNet together.
            generator: one CPU generator for each image, or one.
            output_type: "pil", "np" (B, H, W, 3) uint8, or "latent".

        Raises:
            ValueError: grids do not agree.
            IncompatibleLayoutError: this checkpoint cannot generate tiles of that size.
        """
        grid = Spec.model_validate(
            {
                "prompt": prompt,
                "tile_height": tile_height,
                "tile_width": tile_width,
                "tile_row_overlap": tile_row_overlap,
                "tile_col_overlap": tile_col_overlap,
                "guidance_scale_tiles": guidance_scale_tiles,
                "seed_tiles": seed_tiles,
                "seed_tiles_mode": seed_tiles_mode,
                "seed_tiles_noise": seed_tiles_noise,
            }
        )
        self.check_inputs(grid)
        tiles = self.list_tiles(grid)
        generators = make_generators(seed, generator)
        noises = [self.sample_noise(grid, g, tiles, seed_reroll_regions) for g in generators]
        noise = torch.stack(noises).to(self._execution_device)
        prompts = Prompts()
        regions = []
        for image in range(len(noise)):
            for row, column, window in tiles:
                prompt_row = prompts.row(grid.prompt[row][column])
                negative_row = prompts.row(negative_prompt)
                guidance = guidance_scale
                if guidance_scale_tiles is not None:
                    tile_guidance = guidance_scale_tiles[row][column]
                    guidance = guidance_scale if tile_guidance is None else tile_guidance
                x0, y0, x1, y1 = window
                weight = region_weights.gaussian(y1 - y0, x1 - x0)
                regions.append(Region(image, window, prompt_row, negative_row, guidance, weight))
        conditions = self.text_conditions(prompts.texts, guidance_scale)
        mixture = Mixture(regions, conditions, noise.shape, self.cells_at_once(chunk))
        steps = [mixture] * num_inference_steps
        latents = self.denoise(noise, steps, callback_on_step_end, generator=generators, eta=eta)
        if output_type == "latent":
            return latents
        return as_output(self.decode(latents, cpu_vae), output_type)

    def check_inputs(self, grid: Spec) -> None:
        """Raise IncompatibleLayoutError for tiles that this checkpoint cannot generate."""
        multiples = find_multiples(self.factor, self.factor * self.multiple)
        for key, multiple in multiples.items():
            value = getattr(grid, key)
            if value % multiple:
                raise IncompatibleLayoutError(
                    f"{key}: {value} must be a multiple of {multiple} for this checkpoint"
                )

    def list_tiles(self, grid: Spec) -> list[tuple[int, int, Window]]:
        """Return row, column and window (x0, y0, x1, y1 in latent cells) of each tile."""
        height = grid.tile_height // self.factor
        width = grid.tile_width // self.factor
        row_step = height - grid.tile_row_overlap // self.factor
        column_step = width - grid.tile_col_overlap // self.factor
        rows, columns = grid.shape
        tiles = []
        for row in range(rows):
            for column in range(columns):
                x0 = column * column_step
                y0 = row * row_step
                tiles.append((row, column, (x0, y0, x0 + width, y0 + height)))
        return tiles

    def find_exclusive_window(self, grid: Spec, row: int, column: int, window: Window) -> Window:
        """Return the part of a tile's window that no other tile covers; it may have no area."""
        x0, y0, x1, y1 = window
        rows, columns = grid.shape
        column_overlap = grid.tile_col_overlap // self.factor
        row_overlap = grid.tile_row_overlap // self.factor
        return (
            x0 + column_overlap * (column > 0),
            y0 + row_overlap * (row > 0),
            x1 - column_overlap * (column < columns - 1),
            y1 - row_overlap * (row < rows - 1),
        )

    def sample_noise(
        self,
        grid: Spec,
        generator: torch.Generator,
        tiles: list[tuple[int, int, Window]],
        reroll_regions: Sequence[Reroll],
    ) -> Tensor:
        """Return the initial noise (C, h, w) of one image.

        The noise of the canvas is set first, then that of the tiles, then the reroll regions.
        """
        width, height = (side // self.factor for side in grid.canvas)
        channels = self.vae.config.latent_channels
        noise = torch.randn((channels, height, width), generator=generator)
        if grid.seed_tiles is not None:
            for row, column, window in tiles:
                seed = grid.seed_tiles[row][column]
                if seed is not None:
                    self.set_tile_noise(noise, grid, row, column, window, seed)
        for row0, row1, col0, col1, seed in reroll_regions:
            y0, y1, x0, x1 = (side // self.factor for side in (row0, row1, col0, col1))
            part = noise[:, y0:y1, x0:x1]
            part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(seed)))
        return noise

    def set_tile_noise(
        self, noise: Tensor, grid: Spec, row: int, column: int, window: Window, seed: int
    ) -> None:
        """Replace the noise (C, h, w) of the canvas in a tile, or in its exclusive part."""
        mode = grid.seed_tiles_mode
        if not isinstance(mode, str):
            mode = mode[row][column]
        target = window
        if mode == "exclusive":
            target = self.find_exclusive_window(grid, row, column, window)
        x0, y0, x1, y1 = target
        if x1 <= x0 or y1 <= y0:
            return
        sampled = window if grid.seed_tiles_noise == "cut" else target
        shape = (len(noise), sampled[3] - sampled[1], sampled[2] - sampled[0])
        tile_noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        left = x0 - sampled[0]
        top = y0 - sampled[1]
        noise[:, y0:y1, x0:x1] = tile_noise[:, top : top + y1 - y0, left : left + x1 - x0]


class TilingPainter:
    """The loaded pipeline as the engine calls it."""

    def __init__(self, spec: Spec, scene: SceneSpec, numerics: Numerics) -> None:
        self.spec = spec
        self.chunk = numerics.chunk
        self.pipeline = load_pipeline(TilingPipeline, spec, spec.scheduler, numerics)
        self.pipeline.empty_is_none = True

    def use_chunk(self, chunk: int) -> None:
        """Change how many windows go through the UNet together, without loading anything."""
        self.chunk = chunk

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        factor = self.pipeline.factor
        spec = self.spec.enlarge(factor, factor * self.pipeline.multiple)
        images: Any = self.pipeline(
            spec.prompt,
            negative_prompt=spec.negative_prompt,
            num_inference_steps=spec.steps,
            guidance_scale=spec.guidance_scale,
            eta=spec.eta,
            seed=[make_torch_seed(seed) if spec.seed is None else spec.seed for seed in seeds],
            tile_height=spec.tile_height,
            tile_width=spec.tile_width,
            tile_row_overlap=spec.tile_row_overlap,
            tile_col_overlap=spec.tile_col_overlap,
            guidance_scale_tiles=spec.guidance_scale_tiles,
            seed_tiles=spec.seed_tiles,
            seed_tiles_mode=spec.seed_tiles_mode,
            seed_tiles_noise=spec.seed_tiles_noise,
            seed_reroll_regions=spec.seed_reroll_regions,
            cpu_vae=spec.cpu_vae,
            chunk=self.chunk,
            output_type="np",
        )
        size = (scenes[0].layout.width, scenes[0].layout.height)
        return [Painting(image) for image in resize_images(images, size)]
