"""The keys that the recipes of box-conditioned trainings have in common."""

from pydantic import Field

from synthgen.scenes.scene import Caption
from synthgen.training.base import TaskSpec
from synthgen.training.vae import check_model


class BoxConditioningSpec(TaskSpec):
    """A training on windows of scenes, and the boxes in them."""

    init: str = Field(
        description="Checkpoint to start from: an embedded one, a folder, or a Hugging Face id."
    )
    windows: tuple[int, int] = Field(
        (112, 112), description="Smallest and largest side of a window in px."
    )
    at_boxes: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of windows that are placed over a random box; the others are placed "
        "anywhere.",
    )
    max_boxes: int = Field(
        8, ge=1, description="Largest number of boxes that are given for a window."
    )
    caption: Caption = Field(
        "{background} with {phrases}",
        description="Caption of a window: {counts}, {phrases} and {background} are replaced.",
    )
    prompt_dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of windows with the null prompt."
    )
    names_dropout: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Share of captions that name only the background, so that the boxes are "
        "needed.",
    )
    boxes_dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of windows that are given no boxes."
    )
    noisy: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Exponent in the timesteps 1000 u^noisy with a uniform u; 1: uniform "
        "timesteps; below 1: noisy timesteps, in which boxes matter, are more frequent.",
    )
    snr_gamma: float | None = Field(
        None,
        gt=0,
        description="Gamma of min-SNR weights, which give noisy steps little weight; null: no "
        "weights.",
    )
    look: float = Field(
        0.1,
        ge=0,
        description="Weight of the attention loss, by which cells attend to the boxes that they "
        "lie in.",
    )

    @property
    def reads_masks(self) -> bool:
        """Whether the UNet may read the latents of a mask beside the latents of the image."""
        return False

    def check(self) -> list[str]:
        problems = check_model("init", self.init, unet=True, mask=self.reads_masks)
        if not 16 <= self.windows[0] <= self.windows[1] <= self.data.side:
            problems.append(
                f"windows: {list(self.windows)} must be two sides from 16 px to data.side, "
                f"{self.data.side} px"
            )
        return problems
