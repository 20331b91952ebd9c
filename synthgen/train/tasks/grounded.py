"""Train gated layers that place objects: the recipe."""

from typing import Literal

from pydantic import Field

from synthgen.diffusion.models import find_model, read_config
from synthgen.scene import Caption
from synthgen.train import TaskSpec, Trainee
from synthgen.train.tasks.vae import missing_model


class Spec(TaskSpec):
    """The gated layers of a checkpoint (GLIGEN), on windows of scenes and the boxes in them; all else is kept."""

    task: Literal["grounded"] = "grounded"
    init: str = Field(description="checkpoint whose UNet has gated layers")
    windows: tuple[int, int] = Field((112, 112), description="least and greatest side of a window, px")
    max_boxes: int = Field(8, ge=1, description="boxes that a window is told of at most")
    caption: Caption = Field("{background} with {phrases}", description="of a window; {counts}, {phrases}, {background} of it")
    prompt_dropout: float = Field(0.1, ge=0, lt=1, description="share of windows with the null prompt")
    names_dropout: float = Field(0.5, ge=0, lt=1, description="share of captions that name the background alone: boxes must do")
    boxes_dropout: float = Field(0.1, ge=0, lt=1, description="share of windows that are told of no box")

    def check(self) -> list[str]:
        problems = missing_model("init", self.init)
        if not problems and read_config(find_model(self.init), "unet").get("attention_type") != "gated":
            problems.append(f"init: {self.init} has no gated layers; train it with `gated: true`, or give a GLIGEN checkpoint")
        if not 16 <= self.windows[0] <= self.windows[1] <= self.data.side:
            problems.append(f"windows: {list(self.windows)} must be two sides from 16 px to data.side, {self.data.side} px")
        return problems

    def load(self) -> Trainee:
        from synthgen.train.grounded import GroundedTrainee

        return GroundedTrainee(self)
