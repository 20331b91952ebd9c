"""Train a checkpoint to read annotations as tokens: the recipe."""

from typing import ClassVar, Literal

from pydantic import Field

from synthgen.dataset.categories import category_ids
from synthgen.training.box_conditioning_spec import BoxedSpec
from synthgen.training.lora_spec import LoraSpec


class Spec(BoxedSpec):
    """UNet, text encoder and location tokens, on windows of scenes whose boxes are texts beside the prompt."""

    TRAINEE: ClassVar[str] = "synthgen.training.annotation_tokens.trainee:AnnotationTokensTrainee"

    task: Literal["annotation_tokens"] = "annotation_tokens"
    form: Literal["compact", "literal"] = Field(
        "compact", description="phrase and location tokens; or label_18_bbox_X_Y_W_H"
    )
    bins: int = Field(
        32,
        ge=2,
        le=128,
        description="parts of a side that location tokens, one for each cell, tell apart",
    )
    rehearse: int = Field(
        0,
        ge=0,
        description="first steps, in which attention learns where to look: random boxes on noise alone",
    )
    train: Literal["all", "attention"] = Field(
        "all", description="of the UNet; attention: its cross-attention alone"
    )
    train_text_encoder: bool = Field(
        True, description="all of it; false: its token embeddings alone"
    )
    lora: LoraSpec | None = Field(
        None, description="null: the weights of the UNet themselves change"
    )
    categories: dict[str, int] = Field(
        default={}, description="ids of names that COCO lacks, for the literal form"
    )

    def check(self) -> list[str]:
        problems = super().check()
        try:
            category_ids(self.categories, self.categories)
        except ValueError as error:
            problems.append(f"categories: {error}")
        return problems
