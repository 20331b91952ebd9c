"""The recipe of layered rendering with vision guidance. The pipeline is in `pipeline.py`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.diffusion.models import LayoutModelSpec
from synthgen.scenes.scene import COUNTS, Caption, RegionPrompt, SceneSpec

Channel = Annotated[int, Field(ge=0, le=255)]


class Spec(LayoutModelSpec):
    """Denoise a layer for each object, steered to its place by colour, and merge them (LRDiff).

    The merged layers are then denoised together to the finished image.
    """

    PIPELINE: ClassVar[str] = "synthgen.pipelines.layered.pipeline:LayeredPipeline"

    method: Literal["layered"] = "layered"
    steps: int = Field(50, ge=2, le=1000)
    scheduler: Literal["dpm++", "unipc", "ddim", "euler"] | None = Field(
        "ddim", description="Scheduler; null: that of the checkpoint."
    )
    caption: Caption = Field(
        COUNTS,
        description="Caption of the whole image: {counts}, {phrases} and {background} are "
        "replaced.",
    )
    layer_prompt: RegionPrompt = Field(
        "{phrase}", description="Prompt of a layer: {phrase} and {background} are replaced."
    )
    variant: Literal["paper", "mixed"] = Field(
        "paper",
        description="How layers take part; paper: they are denoised on their own at first; "
        "mixed: they are mixed into the predicted noise.",
    )
    vision_guidance: Literal["dynamic", "constant"] = Field(
        "dynamic",
        description="Colour that guides the layers; dynamic: a colour found by attention; "
        "constant: `colour`.",
    )
    colour: tuple[Channel, Channel, Channel] = Field(
        (255, 255, 255), description="Colour (RGB) of constant guidance."
    )
    lambda_1: float = Field(
        0.20, ge=0, description="Strength of guidance away from the colour, outside the object."
    )
    lambda_2: float = Field(
        0.05, ge=0, description="Strength of guidance towards the colour, inside the object."
    )
    layer_share: float = Field(
        0.3,
        gt=0,
        lt=1,
        description="Share of the steps in which layers are denoised on their own (t0).",
    )
    guided_steps: int = Field(
        5, ge=0, description="Number of steps at the start after which the guidance is added again."
    )
    top_k: int = Field(
        16,
        ge=1,
        description="Number of cells, those that attend most to the object's name, whose colour "
        "is used.",
    )
    gamma: float = Field(0.2, gt=0, le=1, description="Weight of the layers in variant mixed.")
    until: int = Field(
        900,
        ge=0,
        le=1000,
        description="Timestep below which the caption alone guides, in variant mixed.",
    )
    context: float | None = Field(
        None,
        ge=0,
        le=4,
        description="Crop each layer to its box, enlarged by this share on each side; "
        "null: do not crop.",
    )
    tile: int | None = Field(
        None,
        ge=8,
        description="Side in px of the tiles in which whole canvases are denoised; null: no tiles.",
    )

    @property
    def starts_within_schedule(self) -> bool:
        return True

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        problems = super().check(sampler, scene)
        if not 1 <= round(self.layer_share * self.steps) < self.steps:
            problems.append(
                f"layer_share: {self.layer_share:g} of {self.steps} steps must be at least 1 step "
                "and not all of them"
            )
        return problems
