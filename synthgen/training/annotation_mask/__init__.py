"""Train a checkpoint to read annotations as a mask: the recipe."""

from typing import ClassVar, Literal

from pydantic import Field

from synthgen.dataset.categories import category_ids
from synthgen.training.box_conditioning_spec import BoxedSpec
from synthgen.training.lora_spec import LoraSpec


class Spec(BoxedSpec):
    """A UNet with as many more input channels as latents have, in which it reads the boxes painted grey on black."""

    TRAINEE: ClassVar[str] = "synthgen.training.annotation_mask.trainee:AnnotationMaskTrainee"

    task: Literal["annotation_mask"] = "annotation_mask"
    windows: tuple[int, int] = Field(
        (96, 128), description="least and greatest side of a window, px"
    )
    max_boxes: int = Field(1000, ge=1, description="boxes that a window is told of at most")
    look: Literal[0] = Field(0, description="the mask is not attended to")
    label_range: int = Field(90, ge=1, description="category id that is painted white")
    lora: LoraSpec | None = Field(
        None, description="null: the weights of the UNet themselves change"
    )
    categories: dict[str, int] = Field(default={}, description="ids of names that COCO lacks")

    @property
    def reads_masks(self) -> bool:
        return True

    def check(self) -> list[str]:
        problems = super().check()
        try:
            beyond = {
                name: i
                for name, i in category_ids(self.categories, self.categories).items()
                if i > self.label_range
            }
            problems += [
                f"label_range: must be at least {i}, the category id of {name!r}"
                for name, i in beyond.items()
            ]
        except ValueError as error:
            problems.append(f"categories: {error}")
        return problems
