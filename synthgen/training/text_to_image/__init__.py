"""Train a text-to-image checkpoint: the recipe."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from synthgen.pipelines.diffusion.models import EMBEDDED
from synthgen.training.base import TaskSpec
from synthgen.training.vae import model_problems
from synthgen.verification.model_spec import weights_problem


class Spec(TaskSpec):
    """The UNet and text encoder of a checkpoint in Stable Diffusion format, on windows of scenes."""

    TRAINEE: ClassVar[str] = "synthgen.training.text_to_image.trainee:TextToImageTrainee"

    task: Literal["text_to_image"] = "text_to_image"
    vae: str = Field(
        description="folder of a trained autoencoder or of a checkpoint that has one; or an embedded one"
    )
    init: str | None = Field(
        None, description="checkpoint whose UNet and text encoder are trained on; null: new ones"
    )
    channels: tuple[int, ...] = Field(
        (48, 96, 160), min_length=2, description="of a new UNet, a level"
    )
    text_dim: int = Field(96, ge=8, description="of a new text encoder")
    gated: bool = Field(
        True, description="a new UNet has GLIGEN's gated layers, untrained and shut"
    )
    prompt_dropout: float = Field(
        0.12, ge=0, lt=1, description="share of captions replaced by the null prompt"
    )
    snr_gamma: float = Field(5.0, gt=0, description="min-SNR weighting, arXiv 2303.09556")

    @property
    def vae_folder(self) -> Path | None:
        """Where the autoencoder is; None if it is nowhere."""
        folders = (Path(self.vae), Path(self.vae) / "vae", EMBEDDED / self.vae / "vae")
        return next((f for f in folders if (f / "config.json").is_file()), None)

    def check(self) -> list[str]:
        problems = model_problems("init", self.init, unet=True)
        if self.vae_folder is None:
            problems.append(
                f"vae: {self.vae!r} holds no config.json; train one first: synthgen train jobs/train-vae.yaml"
            )
        elif (reason := weights_problem(self.vae_folder)) is not None:
            problems.append(f"vae: {reason}")
        return problems
