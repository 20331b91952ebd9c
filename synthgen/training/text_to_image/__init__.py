"""Train a text-to-image checkpoint: the recipe."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from synthgen.pipelines.diffusion.sources import EMBEDDED
from synthgen.training.base import TaskSpec
from synthgen.training.vae import check_model
from synthgen.verification.model_spec import find_weights_problem


class Spec(TaskSpec):
    """The UNet and text encoder of a checkpoint in Stable Diffusion format, on windows."""

    TRAINEE: ClassVar[str] = "synthgen.training.text_to_image.trainee:TextToImageTrainee"

    task: Literal["text_to_image"] = "text_to_image"
    vae: str = Field(
        description="Folder of an autoencoder, folder of a checkpoint with one, or an embedded "
        "checkpoint."
    )
    init: str | None = Field(
        None,
        description="Checkpoint whose UNet and text encoder are trained further; null: new ones.",
    )
    channels: tuple[int, ...] = Field(
        (48, 96, 160), min_length=2, description="Channels of each level of a new UNet."
    )
    text_dim: int = Field(96, ge=8, description="Width of a new text encoder.")
    gated: bool = Field(
        True, description="Whether a new UNet has GLIGEN's gated layers, untrained and closed."
    )
    prompt_dropout: float = Field(
        0.12, ge=0, lt=1, description="Share of captions that are replaced by the null prompt."
    )
    snr_gamma: float = Field(5.0, gt=0, description="Gamma of min-SNR weights (arXiv 2303.09556).")

    @property
    def vae_folder(self) -> Path | None:
        """The folder of the autoencoder; None if there is none."""
        for folder in (Path(self.vae), Path(self.vae) / "vae", EMBEDDED / self.vae / "vae"):
            if (folder / "config.json").is_file():
                return folder
        return None

    def check(self) -> list[str]:
        problems = check_model("init", self.init, unet=True)
        folder = self.vae_folder
        if folder is None:
            problems.append(
                f"vae: {self.vae!r} holds no config.json; train one first: "
                "synthgen train jobs/train-vae.yaml"
            )
            return problems
        reason = find_weights_problem(folder)
        if reason is not None:
            problems.append(f"vae: {reason}")
        return problems
