"""Mixture of Diffusers over a grid of prompts: the recipe. The pipeline itself is in `pipeline.py`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.diffusion.models import (
    ModelSpec,
    model_problems,
    read_config,
    unet_multiple,
    vae_factor,
)
from synthgen.pipelines.tiling.document import as_job
from synthgen.scenes.scene import SceneSpec
from synthgen.yamlfile import Document

Reroll = tuple[int, int, int, int, int]


def _one_as_grid(value: Any) -> Any:
    return [[value]] if isinstance(value, str) else value


Prompts = Annotated[tuple[tuple[str, ...], ...], BeforeValidator(_one_as_grid)]


class Spec(ModelSpec):
    """A grid of prompts, one diffusion process a tile, merged at every step: pictures without boxes."""

    PAINTER: ClassVar[str] = "synthgen.pipelines.tiling.pipeline:TilingPainter"

    method: Literal["tiling"] = "tiling"
    prompt: Prompts = Field(description="one prompt, or a list of rows of prompts")
    negative_prompt: str = Field("", description="what the picture must not show")
    steps: int = Field(50, ge=1, le=1000)
    scheduler: Literal["dpm++", "unipc", "ddim", "euler", "lms"] | None = Field(
        "lms", description="null: the checkpoint's"
    )
    eta: float = Field(0.0, ge=0, le=1, description="noise that ddim adds at each step")
    guidance_scale: float = Field(7.5, ge=0)
    guidance_scale_tiles: tuple[tuple[float | None, ...], ...] | None = Field(
        None, description="a tile; null: guidance_scale"
    )
    seed: int | None = Field(
        None, ge=0, description="of the noise; null: the job's seed and the image's index"
    )
    seed_tiles: tuple[tuple[int | None, ...], ...] | None = Field(
        None, description="of a tile's noise; null: the canvas'"
    )
    seed_tiles_mode: (
        Literal["full", "exclusive"] | tuple[tuple[Literal["full", "exclusive"], ...], ...]
    ) = Field(
        "full",
        description="full: a seed sets the whole tile; exclusive: only what no other tile covers",
    )
    seed_tiles_noise: Literal["own", "cut"] = Field(
        "own",
        description="of exclusive: drawn in the shape of what it sets, as published; cut: from a whole tile's",
    )
    seed_reroll_regions: tuple[Reroll, ...] = Field(
        (), description="row0, row1, col0, col1 in px, and seed; set last"
    )
    tile_height: int = Field(512, ge=8, description="px")
    tile_width: int = Field(512, ge=8, description="px")
    tile_row_overlap: int = Field(256, ge=0, description="px")
    tile_col_overlap: int = Field(256, ge=0, description="px")
    cpu_vae: bool = Field(False, description="decode on the CPU")

    @model_validator(mode="after")
    def grids_agree(self) -> "Spec":
        rows, columns = self.shape
        if not rows or not columns or any(len(row) != columns for row in self.prompt):
            raise ValueError("prompt: give one prompt, or rows of equally many prompts")
        for key in ("guidance_scale_tiles", "seed_tiles", "seed_tiles_mode"):
            grid = getattr(self, key)
            if isinstance(grid, tuple) and [len(r) for r in grid] != [columns] * rows:
                raise ValueError(f"{key}: must have {rows} rows of {columns}, as prompt has")
        for side, overlap in (("height", "row"), ("width", "col")):
            if getattr(self, f"tile_{overlap}_overlap") >= getattr(self, f"tile_{side}"):
                raise ValueError(
                    f"tile_{overlap}_overlap: must be less than tile_{side}, {getattr(self, f'tile_{side}')}"
                )
        return self

    @classmethod
    def read_document(cls, document: Document, name: str) -> Document | None:
        return as_job(document, name)

    @property
    def follows_words(self) -> bool:
        return False

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return len(self.prompt), len(self.prompt[0]) if self.prompt else 0

    @property
    def canvas(self) -> tuple[int, int]:
        """Width and height in px: a tile, and for each further one what it does not overlap."""
        rows, columns = self.shape
        width = self.tile_width + (columns - 1) * (self.tile_width - self.tile_col_overlap)
        return width, self.tile_height + (rows - 1) * (self.tile_height - self.tile_row_overlap)

    def enlarge(self, factor: int, step: int) -> "Spec":
        """Return the recipe in px of the canvas that the image is generated on.

        Args:
            factor: px of which overlaps are multiples at a scale above 1.
            step: px of which sides of tiles are.
        """
        scale = self.generation_scale()
        if scale == 1:
            return self
        multiples = {
            "tile_height": step,
            "tile_width": step,
            "tile_row_overlap": factor,
            "tile_col_overlap": factor,
        }
        sides: dict[str, Any] = {
            key: round(getattr(self, key) * scale / multiple) * multiple
            for key, multiple in multiples.items()
        }
        rerolled = []
        for *ends, seed in self.seed_reroll_regions:
            rerolled.append((*(round(end * scale / factor) * factor for end in ends), seed))
        return self.model_copy(update={**sides, "seed_reroll_regions": tuple(rerolled)})

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        problems = []
        if sampler.names():
            problems.append(
                "method: tiling paints no boxes; leave layout.objects empty, or use `mixture`"
            )
        if scene.backgrounds is not None:
            problems.append(
                "method: tiling paints nothing into your own images (scene.backgrounds); `mixture` and `paste` do"
            )
        if sampler.canvas != self.canvas:
            problems.append(
                f"prompt: these tiles make a canvas of {self.canvas[0]} x {self.canvas[1]}; set layout.canvas to it"
            )
        if unusable := model_problems(self):
            return [*problems, *unusable]
        folder = self.folder()
        factor = vae_factor(read_config(folder, "vae"))
        step = factor * unet_multiple(read_config(folder, "unet"))
        for key in ("tile_height", "tile_width"):
            if getattr(self, key) % step:
                problems.append(
                    f"{key}: {getattr(self, key)} must be a multiple of {step} for {self.model}"
                )
        for key in ("tile_row_overlap", "tile_col_overlap"):
            if getattr(self, key) % factor:
                problems.append(
                    f"{key}: {getattr(self, key)} must be a multiple of {factor} for {self.model}"
                )
        return problems
