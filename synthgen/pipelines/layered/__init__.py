"""Layered rendering with vision guidance (LRDiff): the recipe. The pipeline itself is in `pipeline.py`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.diffusion.models import LayoutModelSpec
from synthgen.scenes.scene import COUNTS, Caption, RegionPrompt, SceneSpec

Channel = Annotated[int, Field(ge=0, le=255)]


class Spec(LayoutModelSpec):
    """A layer for each object, steered by colour to its place, laid over each other and finished as one picture (LRDiff)."""

    PIPELINE: ClassVar[str] = "synthgen.pipelines.layered.pipeline:LayeredPipeline"

    method: Literal["layered"] = "layered"
    steps: int = Field(50, ge=2, le=1000)
    scheduler: Literal["dpm++", "unipc", "ddim", "euler"] | None = Field(
        "ddim", description="null: the checkpoint's"
    )
    caption: Caption = Field(
        COUNTS,
        description="of the whole picture: {counts}, {phrases} and {background} are replaced",
    )
    layer_prompt: RegionPrompt = Field(
        "{phrase}", description="of a layer: {phrase} and {background} are replaced"
    )
    variant: Literal["paper", "mixed"] = Field(
        "paper", description="mixed: layers are mixed into the noise, not rendered"
    )
    vision_guidance: Literal["dynamic", "constant"] = Field(
        "dynamic", description="colour found by attention, or `colour`"
    )
    colour: tuple[Channel, Channel, Channel] = Field(
        (255, 255, 255), description="of constant guidance, RGB"
    )
    lambda_1: float = Field(
        0.20, ge=0, description="guidance away from the colour, outside the object"
    )
    lambda_2: float = Field(0.05, ge=0, description="guidance towards the colour, inside it")
    layer_share: float = Field(
        0.3, gt=0, lt=1, description="share of the steps that the layers run alone (t0)"
    )
    guided_steps: int = Field(
        5, ge=0, description="first steps after which the guidance is added again"
    )
    top_k: int = Field(
        16, ge=1, description="cells that read the object's name most, whose colour is taken"
    )
    gamma: float = Field(0.2, gt=0, le=1, description="mixed: weight of the layers")
    until: int = Field(
        900, ge=0, le=1000, description="mixed: timestep below which the caption alone guides"
    )
    context: float | None = Field(
        None,
        ge=0,
        le=4,
        description="crop each layer to its box and this share more; null: whole canvas",
    )
    tile: int | None = Field(
        None,
        ge=8,
        description="px; whole canvases are denoised in tiles of this side; null: in one piece",
    )

    @property
    def starts_within(self) -> bool:
        return True

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        problems = super().check(sampler, scene)
        if not 1 <= round(self.layer_share * self.steps) < self.steps:
            problems.append(
                f"layer_share: {self.layer_share:g} of {self.steps} steps must be at least 1 step and not all of them"
            )
        return problems
