"""The recipe of grounded generation (GLIGEN) over layouts. The pipeline is in `pipeline.py`."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.diffusion.models import LayoutModelSpec
from synthgen.pipelines.diffusion.sizes import read_config
from synthgen.scenes.scene import COUNTS, Caption, SceneSpec


def _check_stages(value: tuple[float, float]) -> tuple[float, float]:
    if min(value) < 0 or sum(value) > 1:
        raise ValueError(
            f"[{value[0]:g}, {value[1]:g}] must be two shares of the steps, together at most 1"
        )
    return value


Stages = Annotated[tuple[float, float], AfterValidator(_check_stages)]


class Spec(LayoutModelSpec):
    """Give the boxes to a GLIGEN checkpoint as grounding tokens, in windows of its trained size.

    A window has no more boxes than the checkpoint was trained with.
    """

    PIPELINE: ClassVar[str] = "synthgen.pipelines.grounded.pipeline:GroundedPipeline"

    method: Literal["grounded"] = "grounded"
    caption: Caption = Field(
        COUNTS,
        description="Caption of each window: {counts}, {phrases} and {background} are replaced "
        "by those of the window.",
    )
    window: int | None = Field(
        None,
        ge=8,
        description="Side of a window in px; null: the size that the checkpoint was trained at.",
    )
    overlap: float = Field(
        0.25, ge=0, le=0.9, description="Share of a window that the next one covers."
    )
    max_boxes: int = Field(
        30,
        ge=1,
        description="Number of boxes that the checkpoint was trained with; "
        "windows with more are split.",
    )
    stages: Stages = Field(
        (0.3, 0.0),
        description="Shares of the steps in which grounding is fully on, and in which it then "
        "decreases linearly; it is off in the other steps.",
    )
    stages_rounding: Literal["down", "up"] = Field(
        "down",
        description="Rounding of the number of steps in which grounding is fully on; "
        "down: as diffusers.",
    )

    @property
    def reads_sdxl(self) -> bool:
        return False

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        problems = super().check(sampler, scene)
        if not problems and read_config(self.folder(), "unet").get("attention_type") != "gated":
            problems.append(
                f"model: {self.model} has no gated layers; "
                "use a GLIGEN checkpoint, or another method"
            )
        full = self.stages[0] * self.steps
        decreasing = self.stages[1] * self.steps
        if self.stages_rounding == "down" and 0 < full < 1 and decreasing <= 0.5:
            problems.append(
                f"stages: {self.stages[0]:g} of {self.steps} steps is less than a step, "
                "so no box would be read; give more steps, or stages_rounding: up"
            )
        return problems
