"""The recipe of annotations as tokens beside the prompt. The pipeline is in `pipeline.py`."""

from typing import ClassVar, Literal

from pydantic import Field

from synthgen.pipelines.diffusion.box_annotations import AnnotatedSpec


class Spec(AnnotatedSpec):
    """Give boxes to the cross-attention as text tokens beside the prompt.

    This needs a checkpoint that was trained for it.
    """

    PIPELINE: ClassVar[str] = (
        "synthgen.pipelines.annotation_tokens.pipeline:AnnotationTokensPipeline"
    )

    method: Literal["annotation_tokens"] = "annotation_tokens"
    form: Literal["auto", "literal", "compact"] = Field(
        "auto",
        description="Form of a box; literal: label_18_bbox_X_Y_W_H; compact: phrase and location "
        "tokens; auto: the form that the checkpoint knows.",
    )

    tile: int | None = Field(
        None,
        ge=8,
        description="Side in px of the tiles in which the canvas is denoised; null: no tiles.",
    )
    overlap: float = Field(
        0.25, ge=0, le=0.9, description="Share of a tile that the next one covers."
    )

    @property
    def reads_sdxl(self) -> bool:
        return False
