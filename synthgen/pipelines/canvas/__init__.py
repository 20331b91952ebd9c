"""Mixture of Diffusers over free regions: the recipe. The pipeline itself is in `pipeline.py`."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from PIL import Image
from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.diffusion.models import (
    ModelSpec,
    SchedulerName,
    canvas_problems,
    read_config,
    vae_factor,
)
from synthgen.scenes.scene import SceneSpec, describe_damage
from synthgen.spec import SpecModel


class CanvasRegion(SpecModel):
    """A rectangle of the canvas, in px.

    Attributes:
        region_seed: of this region's own noise; None: drawn after the canvas' noise, from the same generator.
        noise_eps: standard deviation of own noise that is added to the canvas' initial noise here: a slight reroll.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    row_init: int = Field(ge=0, description="px")
    row_end: int = Field(gt=0, description="px")
    col_init: int = Field(ge=0, description="px")
    col_end: int = Field(gt=0, description="px")
    region_seed: int | None = Field(
        None, ge=0, description="of the region's own noise; null: drawn"
    )
    noise_eps: float = Field(
        0.0, ge=0, description="deviation of own noise added to the canvas' initial noise"
    )

    @model_validator(mode="after")
    def has_area(self) -> "CanvasRegion":
        for axis in ("row", "col"):
            first, end = getattr(self, f"{axis}_init"), getattr(self, f"{axis}_end")
            if end <= first:
                raise ValueError(f"{axis}_end: {end} must be more than {axis}_init, {first}")
        return self


class TextRegion(CanvasRegion):
    """A region with its own prompt (`Text2ImageRegion`)."""

    kind: Literal["text"] = "text"
    prompt: str
    negative_prompt: str | None = Field(None, description="null: the canvas'")
    guidance_scale: float = Field(7.5, ge=0)
    mask_type: Literal["gaussian", "constant", "quartic"] = "gaussian"
    mask_weight: float = Field(1.0, gt=0)


def _picture(value: Any) -> Any:
    if isinstance(value, str | Path) and not Path(value).is_file():
        raise ValueError(f"{str(value)!r} is not a file")
    if isinstance(value, str | Path) and (damage := describe_damage([Path(value)])):
        raise ValueError(damage)
    return value


class ImageRegion(CanvasRegion):
    """A region that follows a picture, stretched to it, for the first `strength` of the steps (`Image2ImageRegion`)."""

    kind: Literal["image"] = "image"
    reference_image: Annotated[str | Path | Image.Image, BeforeValidator(_picture)] = Field(
        description="a picture file"
    )
    strength: float = Field(
        0.8, ge=0, le=1, description="share of the steps in which the picture is followed"
    )


class RerollRegion(CanvasRegion):
    """A region whose initial noise is drawn anew, or shifted by `noise_eps`."""

    kind: Literal["reroll"] = "reroll"
    reroll_mode: Literal["reset", "epsilon"] = "reset"


def _kind(value: Any) -> Any:
    return value.get("kind", "text") if isinstance(value, dict) else getattr(value, "kind", "text")


DiffusionRegion = Annotated[
    Annotated[TextRegion, Tag("text")] | Annotated[ImageRegion, Tag("image")], Discriminator(_kind)
]


AnyRegion = TypeVar("AnyRegion", bound=CanvasRegion)
REGION_ENDS = ("row_init", "row_end", "col_init", "col_end")


class Spec(ModelSpec):
    """Free regions of a canvas, each with a prompt or a picture of its own, merged: pictures without boxes."""

    PAINTER: ClassVar[str] = "synthgen.pipelines.canvas.pipeline:CanvasPainter"

    method: Literal["canvas"] = "canvas"
    regions: tuple[DiffusionRegion, ...] = Field(
        min_length=1, description="kind: text (default) or image"
    )
    reroll_regions: tuple[RerollRegion, ...] = Field(
        (), description="where the initial noise is another"
    )
    steps: int = Field(50, ge=1, le=1000)
    scheduler: SchedulerName | None = Field("lms", description="null: the checkpoint's")
    eta: float = Field(0.0, ge=0, le=1, description="noise that ddim adds at each step")
    seed: int | None = Field(
        None, ge=0, description="of the noise; null: the job's seed and the image's index"
    )
    cpu_vae: bool = Field(False, description="decode on the CPU")

    @property
    def follows_words(self) -> bool:
        return False

    def fingerprint(self) -> dict[str, Any]:
        files = {r.reference_image for r in self.regions if isinstance(r, ImageRegion)}
        hashes = {
            f"sha256:{f}": hashlib.sha256(Path(str(f)).read_bytes()).hexdigest()
            for f in sorted(files, key=str)
        }
        return {**super().fingerprint(), **hashes}

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        problems = canvas_problems(self, sampler.canvas)
        if sampler.names():
            problems.append(
                "method: canvas paints no boxes; leave layout.objects empty, or use `mixture`"
            )
        if scene.backgrounds is not None:
            problems.append(
                "method: canvas paints nothing into scene.backgrounds; give the image as a region of kind image"
            )
        if problems:
            return problems
        factor = vae_factor(read_config(self.folder(), "vae"))
        canvas = self.generation_canvas(sampler.canvas)
        regions = [*self.enlarge(self.regions, factor), *self.enlarge(self.reroll_regions, factor)]
        return region_problems(regions, canvas, factor)

    def enlarge(self, regions: Sequence[AnyRegion], factor: int) -> list[AnyRegion]:
        """Return regions in px of the canvas that the image is generated on.

        Args:
            factor: px of which their ends are multiples at a scale above 1.
        """
        scale = self.generation_scale()
        if scale == 1:
            return list(regions)
        larger = []
        for region in regions:
            ends = {
                end: round(getattr(region, end) * scale / factor) * factor for end in REGION_ENDS
            }
            larger.append(region.model_copy(update=ends))
        return larger


def region_problems(regions: list[Any], canvas: tuple[int, int], factor: int) -> list[str]:
    """What stands against regions on a canvas of width x height px, each as `key: reason`."""
    problems = []
    for i, region in enumerate(regions):
        for axis, side in (("row", canvas[1]), ("col", canvas[0])):
            for end in ("init", "end"):
                value = getattr(region, f"{axis}_{end}")
                if value % factor or value > side:
                    name = f"{'reroll_' if region.kind == 'reroll' else ''}regions: {axis}_{end} {value}"
                    problems.append(
                        f"{name} of number {i} must be a multiple of {factor} and at most {side}"
                    )
    return problems
