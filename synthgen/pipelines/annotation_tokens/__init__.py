"""Annotations as tokens beside the prompt: the recipe. The pipeline itself is in `pipeline.py`."""

from typing import ClassVar, Literal

from pydantic import Field

from synthgen.pipelines.diffusion.box_annotations import AnnotatedSpec


class Spec(AnnotatedSpec):
    """Boxes as text tokens that the cross-attention reads beside the prompt; needs a checkpoint trained for it."""

    PIPELINE: ClassVar[str] = (
        "synthgen.pipelines.annotation_tokens.pipeline:AnnotationTokensPipeline"
    )

    method: Literal["annotation_tokens"] = "annotation_tokens"
    form: Literal["auto", "literal", "compact"] = Field(
        "auto",
        description="literal: label_18_bbox_X_Y_W_H; compact: phrase and location tokens; auto: what the checkpoint knows",
    )

    tile: int | None = Field(
        None,
        ge=8,
        description="px; the canvas is denoised in tiles of this side; null: in one piece",
    )
    overlap: float = Field(
        0.25, ge=0, le=0.9, description="share of a tile that the next one covers"
    )

    @property
    def reads_sdxl(self) -> bool:
        return False
