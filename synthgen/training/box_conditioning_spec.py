"""What the recipes have in common by which a UNet learns to put objects into boxes."""

from pydantic import Field

from synthgen.scenes.scene import Caption
from synthgen.training.base import TaskSpec
from synthgen.training.vae import model_problems


class BoxedSpec(TaskSpec):
    """Windows of scenes, and the boxes in them."""

    init: str = Field(description="checkpoint that is trained on: embedded, folder, or Hub id")
    windows: tuple[int, int] = Field(
        (112, 112), description="least and greatest side of a window, px"
    )
    at_boxes: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of windows laid over a random box; the others are anywhere",
    )
    max_boxes: int = Field(8, ge=1, description="boxes that a window is told of at most")
    caption: Caption = Field(
        "{background} with {phrases}",
        description="of a window; {counts}, {phrases}, {background} of it",
    )
    prompt_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of windows with the null prompt"
    )
    names_dropout: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="share of captions that name the background alone: boxes must do",
    )
    boxes_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of windows that are told of no box"
    )
    noisy: float = Field(
        0.25,
        gt=0,
        le=1,
        description="timesteps are 1000 u^noisy: in the noisy ones boxes decide; 1: uniform",
    )
    snr_gamma: float | None = Field(
        None, gt=0, description="of min-SNR weights (they leave out the noisy steps); null: none"
    )
    look: float = Field(
        0.1,
        ge=0,
        description="weight of where attention looks (at the boxes that hold a cell), beside the loss",
    )

    @property
    def reads_masks(self) -> bool:
        """Whether the UNet may read the latents of a mask beside its own."""
        return False

    def check(self) -> list[str]:
        problems = model_problems("init", self.init, unet=True, mask=self.reads_masks)
        if not 16 <= self.windows[0] <= self.windows[1] <= self.data.side:
            problems.append(
                f"windows: {list(self.windows)} must be two sides from 16 px to data.side, {self.data.side} px"
            )
        return problems
