"""The recipe of regional attention over layouts. The pipeline itself is in `pipeline.py`."""

from typing import ClassVar, Literal

from pydantic import Field

from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.diffusion.models import LayoutModelSpec
from synthgen.scenes.scene import RegionPrompt


class Spec(LayoutModelSpec):
    """Let each latent cell attend to the prompt of its box: one UNet pass a step for all boxes."""

    PIPELINE: ClassVar[str] = (
        "synthgen.pipelines.regional_attention.pipeline:RegionalAttentionPipeline"
    )

    method: Literal["regional_attention"] = "regional_attention"
    region_prompt: RegionPrompt = Field(
        "{phrase}, {background}",
        description="Prompt of a box: {phrase} and {background} are replaced.",
    )
    margin: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of a box's side by which the cells that read its prompt extend beyond "
        "the box.",
    )
    tile: int | None = Field(
        None,
        ge=8,
        description="Side in px of the tiles in which the canvas is denoised; null: no tiles.",
    )
    overlap: float = Field(
        0.25, ge=0, le=0.9, description="Share of a tile that the next one covers."
    )

    def method_revision(self, sampler: SamplerSpec) -> int:
        return 2  # gives a cell to every box that would have none
