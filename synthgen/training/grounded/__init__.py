"""Train gated layers that place objects: the recipe."""

from typing import ClassVar, Literal

from synthgen.pipelines.diffusion.models import find_model, read_config
from synthgen.training.box_conditioning_spec import BoxedSpec


class Spec(BoxedSpec):
    """The gated layers of a checkpoint (GLIGEN), on windows of scenes and the boxes in them; all else is kept."""

    TRAINEE: ClassVar[str] = "synthgen.training.grounded.trainee:GroundedTrainee"

    task: Literal["grounded"] = "grounded"

    def check(self) -> list[str]:
        problems = super().check()
        if (
            not problems
            and read_config(find_model(self.init), "unet").get("attention_type") != "gated"
        ):
            problems.append(
                f"init: {self.init} has no gated layers; train it with `gated: true`, or give a GLIGEN checkpoint"
            )
        return problems
