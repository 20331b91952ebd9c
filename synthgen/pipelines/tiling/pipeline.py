"""Mixture of Diffusers over a grid of prompts: `StableDiffusionTilingPipeline` of the source document, in batches.

Source: Jimenez, arXiv 2302.02412, and its repository's README (the arguments, their meaning and order).
"""

from collections.abc import Iterator, Sequence
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
    generators_of,
    load_pipeline,
)
from synthgen.pipelines.diffusion.prompts import Prompts
from synthgen.pipelines.diffusion.scaling import resize_images
from synthgen.pipelines.tiling import Reroll, Spec
from synthgen.scenes.scene import Scene, SceneSpec

Window = tuple[int, int, int, int]


class TilingPipeline(LatentPipeline):
    """One picture from a grid of prompts, with any checkpoint in Stable Diffusion format."""

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
        """Paint one image a seed.

        Args:
            prompt: one, or rows of equally many.
            negative_prompt: None: none, which SDXL tells from an empty one.
            seed: general seed, one or B; None: `generator`.
            tile_height, tile_width, tile_row_overlap, tile_col_overlap: px.
            guidance_scale_tiles: of each tile; None: guidance_scale.
            seed_tiles: of each tile's initial noise; None: as the canvas has it.
            seed_tiles_mode: "full": the whole tile; "exclusive": what no other tile covers; for all or for each tile.
            seed_tiles_noise: of exclusive tiles; "own": drawn in the shape of what they set, as the published program
                does; "cut": from the noise of a whole tile.
            seed_reroll_regions: (row0, row1, col0, col1, seed) in px; set last.
            cpu_vae: decode on the CPU.
            generator: one CPU generator an image, or one.
            output_type: "pil", "np" (B, H, W, 3) uint8, or "latent".

        Raises:
            ValueError: grids that do not agree.
            IncompatibleLayoutError: tile sizes that this checkpoint cannot paint.
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
        tiles = list(self.tiles(grid))
        generators = generators_of(seed, generator)
        noise = torch.stack(
            [self.tile_noise(grid, g, tiles, seed_reroll_regions) for g in generators]
        )
        noise = noise.to(self._execution_device)
        prompts, regions = Prompts(), []
        for image in range(len(noise)):
            for row, column, (x0, y0, x1, y1) in tiles:
                own = None if guidance_scale_tiles is None else guidance_scale_tiles[row][column]
                texts = prompts.row(grid.prompt[row][column]), prompts.row(negative_prompt)
                weight = region_weights.gaussian(y1 - y0, x1 - x0)
                regions.append(
                    Region(
                        image,
                        (x0, y0, x1, y1),
                        *texts,
                        guidance_scale if own is None else own,
                        weight,
                    )
                )
        conditions = self.text_conditions(prompts.texts, guidance_scale)
        mixture = Mixture(regions, conditions, noise.shape, self.cells_at_once(chunk))
        steps = [mixture] * num_inference_steps
        latents = self.denoise(noise, steps, callback_on_step_end, generator=generators, eta=eta)
        return (
            latents
            if output_type == "latent"
            else as_output(self.decode(latents, cpu_vae), output_type)
        )

    def check_inputs(self, grid: Spec) -> None:
        """Raise IncompatibleLayoutError for tiles that this checkpoint cannot paint."""
        step = self.factor * self.multiple
        for key, of in (
            ("tile_height", step),
            ("tile_width", step),
            ("tile_row_overlap", self.factor),
            ("tile_col_overlap", self.factor),
        ):
            if getattr(grid, key) % of:
                raise IncompatibleLayoutError(
                    f"{key}: {getattr(grid, key)} must be a multiple of {of} for this checkpoint"
                )

    def tiles(self, grid: Spec) -> Iterator[tuple[int, int, Window]]:
        """Row, column and window (x0, y0, x1, y1 in cells) of each tile."""
        h, w = grid.tile_height // self.factor, grid.tile_width // self.factor
        down, right = (
            h - grid.tile_row_overlap // self.factor,
            w - grid.tile_col_overlap // self.factor,
        )
        for row in range(grid.shape[0]):
            for column in range(grid.shape[1]):
                yield row, column, (column * right, row * down, column * right + w, row * down + h)

    def exclusive(self, grid: Spec, row: int, column: int, window: Window) -> Window:
        """Return what of a tile's window no other tile covers; without area where that is nothing."""
        (x0, y0, x1, y1), (rows, columns) = window, grid.shape
        right, down = grid.tile_col_overlap // self.factor, grid.tile_row_overlap // self.factor
        return (
            x0 + right * (column > 0),
            y0 + down * (row > 0),
            x1 - right * (column < columns - 1),
            y1 - down * (row < rows - 1),
        )

    def tile_noise(
        self,
        grid: Spec,
        generator: torch.Generator,
        tiles: list[tuple[int, int, Window]],
        rerolls: Sequence[Reroll],
    ) -> Tensor:
        """Initial noise (C, h, w): the canvas', then the tiles', then the reroll regions'."""
        width, height = (side // self.factor for side in grid.canvas)
        channels = self.vae.config.latent_channels
        noise = torch.randn((channels, height, width), generator=generator)
        for row, column, window in tiles if grid.seed_tiles is not None else ():
            seed = grid.seed_tiles[row][column]  # type: ignore[index]  # not None in this loop
            if seed is None:
                continue
            mode = (
                grid.seed_tiles_mode
                if isinstance(grid.seed_tiles_mode, str)
                else grid.seed_tiles_mode[row][column]
            )
            x0, y0, x1, y1 = drawn = (
                self.exclusive(grid, row, column, window) if mode == "exclusive" else window
            )
            if x1 <= x0 or y1 <= y0:
                continue
            if grid.seed_tiles_noise == "cut":
                drawn = window
            shape = (channels, drawn[3] - drawn[1], drawn[2] - drawn[0])
            own = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            left, top = x0 - drawn[0], y0 - drawn[1]
            noise[:, y0:y1, x0:x1] = own[:, top : top + y1 - y0, left : left + x1 - x0]
        for row0, row1, col0, col1, seed in rerolls:
            y0, y1, x0, x1 = (v // self.factor for v in (row0, row1, col0, col1))
            part = noise[:, y0:y1, x0:x1]
            part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(seed)))
        return noise


class TilingPainter:
    """The loaded pipeline as the engine calls it."""

    def __init__(self, spec: Spec, scene: SceneSpec, numerics: Numerics) -> None:
        self.spec, self.chunk = spec, numerics.chunk
        self.pipeline = load_pipeline(TilingPipeline, spec, spec.scheduler, numerics)
        self.pipeline.empty_is_none = True

    def use_chunk(self, chunk: int) -> None:
        """Go on with so many windows at once; what is loaded stays."""
        self.chunk = chunk

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        factor = self.pipeline.factor
        spec = self.spec.enlarge(factor, factor * self.pipeline.multiple)
        numbers = [
            int(seed.generate_state(1, np.uint64)[0] >> 1) if spec.seed is None else spec.seed
            for seed in seeds
        ]
        images: Any = self.pipeline(
            spec.prompt,
            negative_prompt=spec.negative_prompt,
            num_inference_steps=spec.steps,
            guidance_scale=spec.guidance_scale,
            eta=spec.eta,
            seed=numbers,
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
