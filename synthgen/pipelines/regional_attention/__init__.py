"""Regional attention over layouts: the recipe. The pipeline itself is in `pipeline.py`."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from synthgen.diffusion.models import LayoutModelSpec
from synthgen.layouts import SamplerSpec
from synthgen.pipelines import Numerics
from synthgen.scene import RegionPrompt, SceneSpec

if TYPE_CHECKING:
    from synthgen.diffusion.painter import LayoutPainter


class Spec(LayoutModelSpec):
    """One UNet pass a step whatever the number of boxes: each cell's cross-attention reads the prompt of its box."""

    method: Literal["regional_attention"] = "regional_attention"
    region_prompt: RegionPrompt = Field("{phrase}, {background}", description="of a box: {phrase} and {background} are replaced")
    margin: float = Field(0.0, ge=0, le=1, description="share of a box's side round it that reads its prompt too")
    tile: int | None = Field(None, ge=8, description="px; the canvas is denoised in tiles of this side; null: in one piece")
    overlap: float = Field(0.25, ge=0, le=0.9, description="share of a tile that the next one covers")

    def revision(self, sampler: SamplerSpec) -> int:
        return 2  # since every box without a cell gets one

    def load(self, scene: SceneSpec, numerics: Numerics) -> "LayoutPainter":
        from synthgen.diffusion.painter import LayoutPainter
        from synthgen.pipelines.regional_attention.pipeline import RegionalAttentionPipeline

        return LayoutPainter(RegionalAttentionPipeline, self, numerics)
