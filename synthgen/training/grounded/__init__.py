"""Train gated layers that place objects: the recipe."""

from typing import ClassVar, Literal

from synthgen.pipelines.diffusion.sizes import read_config
from synthgen.pipelines.diffusion.sources import find_model
from synthgen.training.box_conditioning_spec import BoxConditioningSpec


class Spec(BoxConditioningSpec):
    """The gated layers of a checkpoint (GLIGEN), on windows with boxes; all else is frozen."""

    TRAINEE: ClassVar[str] = "synthgen.training.grounded.trainee:GroundedTrainee"

    task: Literal["grounded"] = "grounded"

    def check(self) -> list[str]:
        problems = super().check()
        if problems:
            return problems
        if read_config(find_model(self.init), "unet").get("attention_type") != "gated":
            problems.append(
                f"init: {self.init} has no gated layers; train it with `gated: true`, or give a "
                "GLIGEN checkpoint"
            )
        return problems
