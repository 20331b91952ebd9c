"""Annotations as tokens beside the prompt: the recipe. The pipeline itself is in `pipeline.py`."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from synthgen.diffusion.annotations import AnnotatedSpec
from synthgen.pipelines import Numerics
from synthgen.scene import SceneSpec

if TYPE_CHECKING:
    from synthgen.diffusion.painter import LayoutPainter


class Spec(AnnotatedSpec):
    """Boxes as text tokens that the cross-attention reads beside the prompt; needs a checkpoint trained for it."""

    method: Literal["annotation_tokens"] = "annotation_tokens"
    form: Literal["auto", "literal", "compact"] = Field(
        "auto", description="literal: label_18_bbox_X_Y_W_H; compact: phrase and location tokens; auto: what the checkpoint knows"
    )

    tile: int | None = Field(None, ge=8, description="px; the canvas is denoised in tiles of this side; null: in one piece")
    overlap: float = Field(0.25, ge=0, le=0.9, description="share of a tile that the next one covers")

    @property
    def reads_sdxl(self) -> bool:
        return False

    def load(self, scene: SceneSpec, numerics: Numerics) -> "LayoutPainter":
        from synthgen.diffusion.painter import LayoutPainter
        from synthgen.pipelines.annotation_tokens.pipeline import AnnotationTokensPipeline

        return LayoutPainter(AnnotationTokensPipeline, self, numerics)
