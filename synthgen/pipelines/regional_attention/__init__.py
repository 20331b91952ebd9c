"""Regional attention over layouts: the recipe. The pipeline itself is in `pipeline.py`."""

from typing import ClassVar, Literal

from pydantic import Field

from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.diffusion.models import LayoutModelSpec
from synthgen.scenes.scene import RegionPrompt


class Spec(LayoutModelSpec):
    """One UNet pass a step whatever the number of boxes: each cell's cross-attention reads the prompt of its box."""

    PIPELINE: ClassVar[str] = (
        "synthgen.pipelines.regional_attention.pipeline:RegionalAttentionPipeline"
    )

    method: Literal["regional_attention"] = "regional_attention"
    region_prompt: RegionPrompt = Field(
        "{phrase}, {background}", description="of a box: {phrase} and {background} are replaced"
    )
    margin: float = Field(
        0.0, ge=0, le=1, description="share of a box's side round it that reads its prompt too"
    )
    tile: int | None = Field(
        None,
        ge=8,
        description="px; the canvas is denoised in tiles of this side; null: in one piece",
    )
    overlap: float = Field(
        0.25, ge=0, le=0.9, description="share of a tile that the next one covers"
    )

    def revision(self, sampler: SamplerSpec) -> int:
        return 2  # since every box without a cell gets one
