"""Grounded generation (GLIGEN) over layouts: the recipe. The pipeline itself is in `pipeline.py`."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.diffusion.models import LayoutModelSpec, read_config
from synthgen.scenes.scene import COUNTS, Caption, SceneSpec


def _shares(value: tuple[float, float]) -> tuple[float, float]:
    if min(value) < 0 or sum(value) > 1:
        raise ValueError(
            f"[{value[0]:g}, {value[1]:g}] must be two shares of the steps, together at most 1"
        )
    return value


Stages = Annotated[tuple[float, float], AfterValidator(_shares)]


class Spec(LayoutModelSpec):
    """Boxes as grounding tokens of a GLIGEN checkpoint, in windows of the size and number of boxes that it was trained with."""

    PIPELINE: ClassVar[str] = "synthgen.pipelines.grounded.pipeline:GroundedPipeline"

    method: Literal["grounded"] = "grounded"
    caption: Caption = Field(
        COUNTS, description="of each window: {counts}, {phrases} and {background} of what is in it"
    )
    window: int | None = Field(
        None, ge=8, description="side of a window, px; null: what the checkpoint was trained at"
    )
    overlap: float = Field(
        0.25, ge=0, le=0.9, description="share of a window that the next one covers"
    )
    max_boxes: int = Field(
        30,
        ge=1,
        description="boxes that the checkpoint was trained with; windows of more are split",
    )
    stages: Stages = Field(
        (0.3, 0.0),
        description="shares of the steps: grounding on, then falling linearly; in the rest off",
    )
    stages_rounding: Literal["down", "up"] = Field(
        "down", description="of the steps with grounding on, where not whole; down as diffusers"
    )

    @property
    def reads_sdxl(self) -> bool:
        return False

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        problems = super().check(sampler, scene)
        if not problems and read_config(self.folder(), "unet").get("attention_type") != "gated":
            problems.append(
                f"model: {self.model} has no gated layers; use a GLIGEN checkpoint, or another method"
            )
        on, falling = (share * self.steps for share in self.stages)
        if self.stages_rounding == "down" and 0 < on < 1 and falling <= 0.5:
            few = f"{self.stages[0]:g} of {self.steps} steps is less than a step"
            problems.append(
                f"stages: {few}, so no box would be read; give more steps, or stages_rounding: up"
            )
        return problems
