"""The recipe of Mixture of Diffusers over a grid of prompts. The pipeline is in `pipeline.py`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.diffusion.models import ModelSpec, find_model_problems
from synthgen.pipelines.diffusion.sizes import (
    compute_unet_multiple,
    compute_vae_factor,
    read_config,
)
from synthgen.pipelines.tiling.document import read_grid_job
from synthgen.scenes.scene import SceneSpec
from synthgen.yamlfile import Document

Reroll = tuple[int, int, int, int, int]


def _as_grid(value: Any) -> Any:
    return [[value]] if isinstance(value, str) else value


Prompts = Annotated[tuple[tuple[str, ...], ...], BeforeValidator(_as_grid)]


class Spec(ModelSpec):
    """Run one diffusion process for each prompt of a grid of tiles: images without boxes.

    The predictions of all tiles are merged at every step.
    """

    PAINTER: ClassVar[str] = "synthgen.pipelines.tiling.pipeline:TilingPainter"

    method: Literal["tiling"] = "tiling"
    prompt: Prompts = Field(description="One prompt, or a list of rows of prompts.")
    negative_prompt: str = Field("", description="What the image must not show.")
    steps: int = Field(50, ge=1, le=1000)
    scheduler: Literal["dpm++", "unipc", "ddim", "euler", "lms"] | None = Field(
        "lms", description="Scheduler; null: that of the checkpoint."
    )
    eta: float = Field(0.0, ge=0, le=1, description="Noise that ddim adds at each step.")
    guidance_scale: float = Field(7.5, ge=0)
    guidance_scale_tiles: tuple[tuple[float | None, ...], ...] | None = Field(
        None, description="Guidance scale of each tile; null: `guidance_scale`."
    )
    seed: int | None = Field(
        None,
        ge=0,
        description="Seed of the noise; null: derived from the job's seed and the image's index.",
    )
    seed_tiles: tuple[tuple[int | None, ...], ...] | None = Field(
        None, description="Seed of each tile's noise; null: the canvas' noise."
    )
    seed_tiles_mode: (
        Literal["full", "exclusive"] | tuple[tuple[Literal["full", "exclusive"], ...], ...]
    ) = Field(
        "full",
        description="Area whose noise a tile's seed sets; full: the whole tile; exclusive: only "
        "the area that no other tile covers.",
    )
    seed_tiles_noise: Literal["own", "cut"] = Field(
        "own",
        description="Noise of exclusive tiles; own: sampled in the shape of that area, as "
        "published; cut: cropped from the noise of a whole tile.",
    )
    seed_reroll_regions: tuple[Reroll, ...] = Field(
        (), description="Regions (row0, row1, col0, col1 in px, and seed) whose noise is set last."
    )
    tile_height: int = Field(512, ge=8, description="Height of a tile in px.")
    tile_width: int = Field(512, ge=8, description="Width of a tile in px.")
    tile_row_overlap: int = Field(256, ge=0, description="Overlap of adjacent rows in px.")
    tile_col_overlap: int = Field(256, ge=0, description="Overlap of adjacent columns in px.")
    cpu_vae: bool = Field(False, description="Decode on the CPU.")

    @model_validator(mode="after")
    def grids_agree(self) -> "Spec":
        rows, columns = self.shape
        if not rows or not columns or any(len(row) != columns for row in self.prompt):
            raise ValueError("prompt: give one prompt, or rows of equally many prompts")
        for key in ("guidance_scale_tiles", "seed_tiles", "seed_tiles_mode"):
            grid = getattr(self, key)
            if isinstance(grid, tuple) and [len(row) for row in grid] != [columns] * rows:
                raise ValueError(f"{key}: must have {rows} rows of {columns}, as prompt has")
        if self.tile_row_overlap >= self.tile_height:
            raise ValueError(f"tile_row_overlap: must be less than tile_height, {self.tile_height}")
        if self.tile_col_overlap >= self.tile_width:
            raise ValueError(f"tile_col_overlap: must be less than tile_width, {self.tile_width}")
        return self

    @classmethod
    def read_document(cls, document: Document, name: str) -> Document | None:
        return read_grid_job(document, name)

    @property
    def follows_background_prompt(self) -> bool:
        return False

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return len(self.prompt), len(self.prompt[0]) if self.prompt else 0

    @property
    def canvas(self) -> tuple[int, int]:
        """Width and height in px of all tiles together, less their overlaps."""
        rows, columns = self.shape
        width = self.tile_width + (columns - 1) * (self.tile_width - self.tile_col_overlap)
        height = self.tile_height + (rows - 1) * (self.tile_height - self.tile_row_overlap)
        return width, height

    def enlarge(self, factor: int, step: int) -> "Spec":
        """Return the recipe in px of the canvas that the image is generated on.

        Args:
            factor: px; at a scale above 1, overlaps are multiples of it.
            step: px; at a scale above 1, sides of tiles are multiples of it.
        """
        scale = self.generation_scale()
        if scale == 1:
            return self

        def enlarge_side(side: int, multiple: int) -> int:
            return round(side * scale / multiple) * multiple

        rerolls = []
        for *ends, seed in self.seed_reroll_regions:
            rerolls.append((*(enlarge_side(end, factor) for end in ends), seed))
        update: dict[str, Any] = {"seed_reroll_regions": tuple(rerolls)}
        for key, multiple in find_multiples(factor, step).items():
            update[key] = enlarge_side(getattr(self, key), multiple)
        return self.model_copy(update=update)

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        problems = []
        if sampler.names():
            problems.append(
                "method: tiling generates no boxes; leave layout.objects empty, or use `mixture`"
            )
        if scene.backgrounds is not None:
            problems.append(
                "method: tiling generates nothing into your own images (scene.backgrounds); "
                "`mixture` and `paste` do"
            )
        if sampler.canvas != self.canvas:
            problems.append(
                f"prompt: these tiles make a canvas of {self.canvas[0]} x {self.canvas[1]}; "
                "set layout.canvas to it"
            )
        checkpoint_problems = find_model_problems(self)
        if checkpoint_problems:
            return [*problems, *checkpoint_problems]
        folder = self.folder()
        factor = compute_vae_factor(read_config(folder, "vae"))
        step = factor * compute_unet_multiple(read_config(folder, "unet"))
        for key, multiple in find_multiples(factor, step).items():
            if getattr(self, key) % multiple:
                problems.append(
                    f"{key}: {getattr(self, key)} must be a multiple of {multiple} for {self.model}"
                )
        return problems


def find_multiples(factor: int, step: int) -> dict[str, int]:
    """Return the number of px that each side of a tile and each overlap must be a multiple of.

    Args:
        factor: px a latent cell.
        step: px of the smallest window that the UNet can process.
    """
    return {
        "tile_height": step,
        "tile_width": step,
        "tile_row_overlap": factor,
        "tile_col_overlap": factor,
    }
