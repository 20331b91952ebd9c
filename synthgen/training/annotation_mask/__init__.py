"""Train a checkpoint to read annotations as a mask: the recipe."""

from typing import ClassVar, Literal

from pydantic import Field

from synthgen.dataset.categories import find_category_ids
from synthgen.training.box_conditioning_spec import BoxConditioningSpec
from synthgen.training.lora_spec import LoraSpec


class Spec(BoxConditioningSpec):
    """A UNet with additional input channels, in which it reads the boxes as grey on black."""

    TRAINEE: ClassVar[str] = "synthgen.training.annotation_mask.trainee:AnnotationMaskTrainee"

    task: Literal["annotation_mask"] = "annotation_mask"
    windows: tuple[int, int] = Field(
        (96, 128), description="Smallest and largest side of a window in px."
    )
    max_boxes: int = Field(
        1000, ge=1, description="Largest number of boxes that are given for a window."
    )
    look: Literal[0] = Field(
        0, description="Always 0, because the UNet does not attend to the mask."
    )
    label_range: int = Field(90, ge=1, description="Category id that the mask shows as white.")
    lora: LoraSpec | None = Field(
        None, description="Keys of a LoRA; null: the weights of the UNet themselves are trained."
    )
    categories: dict[str, int] = Field(
        default={}, description="Ids of categories that COCO does not have."
    )

    @property
    def reads_masks(self) -> bool:
        return True

    def check(self) -> list[str]:
        problems = super().check()
        try:
            ids = find_category_ids(self.categories, self.categories)
        except ValueError as error:
            return [*problems, f"categories: {error}"]
        for name, number in ids.items():
            if number > self.label_range:
                problems.append(
                    f"label_range: must be at least {number}, the category id of {name!r}"
                )
        return problems
