"""Train a checkpoint to read annotations as tokens: the recipe."""

from typing import ClassVar, Literal

from pydantic import Field

from synthgen.dataset.categories import find_category_ids
from synthgen.training.box_conditioning_spec import BoxConditioningSpec
from synthgen.training.lora_spec import LoraSpec


class Spec(BoxConditioningSpec):
    """UNet, text encoder and location tokens, on windows whose boxes are texts after the prompt."""

    TRAINEE: ClassVar[str] = "synthgen.training.annotation_tokens.trainee:AnnotationTokensTrainee"

    task: Literal["annotation_tokens"] = "annotation_tokens"
    form: Literal["compact", "literal"] = Field(
        "compact",
        description="Form of a box; compact: phrase and location tokens; literal: "
        "label_18_bbox_X_Y_W_H.",
    )
    bins: int = Field(
        32,
        ge=2,
        le=128,
        description="Number of bins of each side that location tokens distinguish; there are "
        "bins x bins tokens.",
    )
    rehearse: int = Field(
        0,
        ge=0,
        description="Number of steps at the start with random boxes over pure noise, which train "
        "only attention.",
    )
    train: Literal["all", "attention"] = Field(
        "all",
        description="Weights of the UNet that are trained; attention: only those of "
        "cross-attention.",
    )
    train_text_encoder: bool = Field(
        True,
        description="Whether the whole text encoder is trained; false: only its token embeddings.",
    )
    lora: LoraSpec | None = Field(
        None, description="Keys of a LoRA; null: the weights of the UNet themselves are trained."
    )
    categories: dict[str, int] = Field(
        default={},
        description="Ids of categories that COCO does not have, for the literal form.",
    )

    def check(self) -> list[str]:
        problems = super().check()
        try:
            find_category_ids(self.categories, self.categories)
        except ValueError as error:
            problems.append(f"categories: {error}")
        return problems
