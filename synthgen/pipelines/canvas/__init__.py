"""The recipe of Mixture of Diffusers over free regions. The pipeline itself is in `pipeline.py`."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from PIL import Image
from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.diffusion.models import ModelSpec, SchedulerName, find_canvas_problems
from synthgen.pipelines.diffusion.sizes import compute_vae_factor, read_config
from synthgen.scenes.scene import SceneSpec, describe_damage
from synthgen.spec import SpecModel


class CanvasRegion(SpecModel):
    """A rectangle of the canvas, in px.

    Attributes:
        region_seed: seed of this region's own noise; None: the noise is sampled after that of the
            canvas, with the same generator.
        noise_eps: standard deviation of the region's own noise that is added to the canvas'
            initial noise here, which changes the region slightly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    row_init: int = Field(ge=0, description="First row in px.")
    row_end: int = Field(gt=0, description="Row after the last one, in px.")
    col_init: int = Field(ge=0, description="First column in px.")
    col_end: int = Field(gt=0, description="Column after the last one, in px.")
    region_seed: int | None = Field(
        None,
        ge=0,
        description="Seed of the region's own noise; null: the canvas' seed is used.",
    )
    noise_eps: float = Field(
        0.0,
        ge=0,
        description="Standard deviation of the region's own noise that is added to the canvas' "
        "initial noise.",
    )

    @model_validator(mode="after")
    def has_area(self) -> "CanvasRegion":
        for axis in ("row", "col"):
            first = getattr(self, f"{axis}_init")
            end = getattr(self, f"{axis}_end")
            if end <= first:
                raise ValueError(f"{axis}_end: {end} must be more than {axis}_init, {first}")
        return self


class TextRegion(CanvasRegion):
    """A region with its own prompt (`Text2ImageRegion`)."""

    kind: Literal["text"] = "text"
    prompt: str
    negative_prompt: str | None = Field(
        None, description="Negative prompt of the region; null: that of the canvas."
    )
    guidance_scale: float = Field(7.5, ge=0)
    mask_type: Literal["gaussian", "constant", "quartic"] = "gaussian"
    mask_weight: float = Field(1.0, gt=0)


def _check_reference(value: Any) -> Any:
    if isinstance(value, str | Path):
        if not Path(value).is_file():
            raise ValueError(f"{str(value)!r} is not a file")
        damage = describe_damage([Path(value)])
        if damage:
            raise ValueError(damage)
    return value


class ImageRegion(CanvasRegion):
    """A region that follows a reference image for the first `strength` of the steps.

    The reference image is stretched to the region (`Image2ImageRegion`).
    """

    kind: Literal["image"] = "image"
    reference_image: Annotated[str | Path | Image.Image, BeforeValidator(_check_reference)] = Field(
        description="Path of an image file."
    )
    strength: float = Field(
        0.8, ge=0, le=1, description="Share of the steps that follow the reference image."
    )


class RerollRegion(CanvasRegion):
    """A region whose initial noise is replaced, or changed by `noise_eps`."""

    kind: Literal["reroll"] = "reroll"
    reroll_mode: Literal["reset", "epsilon"] = "reset"


def _kind_of(value: Any) -> Any:
    if isinstance(value, dict):
        return value.get("kind", "text")
    return getattr(value, "kind", "text")


DiffusionRegion = Annotated[
    Annotated[TextRegion, Tag("text")] | Annotated[ImageRegion, Tag("image")],
    Discriminator(_kind_of),
]


AnyRegion = TypeVar("AnyRegion", bound=CanvasRegion)
REGION_ENDS = ("row_init", "row_end", "col_init", "col_end")


class Spec(ModelSpec):
    """Merge free regions of a canvas, each with a prompt or an image: images without boxes."""

    PAINTER: ClassVar[str] = "synthgen.pipelines.canvas.pipeline:CanvasPainter"

    method: Literal["canvas"] = "canvas"
    regions: tuple[DiffusionRegion, ...] = Field(
        min_length=1, description="Regions, each of kind text (the default) or image."
    )
    reroll_regions: tuple[RerollRegion, ...] = Field(
        (), description="Regions in which the initial noise is replaced or changed."
    )
    steps: int = Field(50, ge=1, le=1000)
    scheduler: SchedulerName | None = Field(
        "lms", description="Scheduler; null: that of the checkpoint."
    )
    eta: float = Field(0.0, ge=0, le=1, description="Noise that ddim adds at each step.")
    seed: int | None = Field(
        None,
        ge=0,
        description="Seed of the noise; null: derived from the job's seed and the image's index.",
    )
    cpu_vae: bool = Field(False, description="Decode on the CPU.")

    @property
    def follows_background_prompt(self) -> bool:
        return False

    def fingerprint(self) -> dict[str, Any]:
        files = {r.reference_image for r in self.regions if isinstance(r, ImageRegion)}
        hashes = {}
        for file in sorted(files, key=str):
            content = Path(str(file)).read_bytes()
            hashes[f"sha256:{file}"] = hashlib.sha256(content).hexdigest()
        return {**super().fingerprint(), **hashes}

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        problems = find_canvas_problems(self, sampler.canvas)
        if sampler.names():
            problems.append(
                "method: canvas generates no boxes; leave layout.objects empty, or use `mixture`"
            )
        if scene.backgrounds is not None:
            problems.append(
                "method: canvas generates nothing into scene.backgrounds; "
                "give the image as a region of kind image"
            )
        if problems:
            return problems
        factor = compute_vae_factor(read_config(self.folder(), "vae"))
        canvas = self.generation_canvas(sampler.canvas)
        regions = [*self.enlarge(self.regions, factor), *self.enlarge(self.reroll_regions, factor)]
        return find_region_problems(regions, canvas, factor)

    def enlarge(self, regions: Sequence[AnyRegion], factor: int) -> list[AnyRegion]:
        """Return regions in px of the canvas that the image is generated on.

        Args:
            regions: regions in px of the image.
            factor: px; at a scale above 1, the ends of regions are multiples of it.
        """
        scale = self.generation_scale()
        if scale == 1:
            return list(regions)
        enlarged = []
        for region in regions:
            ends = {}
            for end in REGION_ENDS:
                ends[end] = round(getattr(region, end) * scale / factor) * factor
            enlarged.append(region.model_copy(update=ends))
        return enlarged


def find_region_problems(
    regions: Sequence[CanvasRegion], canvas: tuple[int, int], factor: int
) -> list[str]:
    """Return why regions do not suit a canvas (width, height in px), each as `key: reason`."""
    problems = []
    sides = {"row": canvas[1], "col": canvas[0]}
    for i, region in enumerate(regions):
        key = "reroll_regions" if isinstance(region, RerollRegion) else "regions"
        for axis, side in sides.items():
            for end in (f"{axis}_init", f"{axis}_end"):
                value = getattr(region, end)
                if value % factor or value > side:
                    problems.append(
                        f"{key}: {end} {value} of number {i} must be a multiple of {factor} "
                        f"and at most {side}"
                    )
    return problems
