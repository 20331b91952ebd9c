"""Train an autoencoder: the recipe."""

from importlib.util import find_spec
from typing import ClassVar, Literal

from pydantic import Field

from synthgen.pipelines.base import ModelNotFoundError
from synthgen.pipelines.diffusion.checkpoint import find_input_problem
from synthgen.pipelines.diffusion.sources import find_checkpoint
from synthgen.pipelines.diffusion.weights import VariantNotFoundError
from synthgen.training.base import TaskSpec


class Spec(TaskSpec):
    """The autoencoder of a checkpoint (AutoencoderKL), on crops of scenes."""

    TRAINEE: ClassVar[str] = "synthgen.training.vae.trainee:VaeTrainee"

    task: Literal["vae"] = "vae"
    init: str | None = Field(
        None,
        description="Checkpoint whose autoencoder is trained further; null: a new autoencoder.",
    )
    train: Literal["all", "decoder"] = Field(
        "all",
        description="Weights that are trained; decoder: only those of the decoder, so that the "
        "latents stay the same; it needs `init`.",
    )
    channels: tuple[int, ...] = Field(
        (16, 48, 96),
        min_length=2,
        description="Channels of each level of a new autoencoder; its factor is 2^(levels - 1).",
    )
    latent_channels: int = Field(
        8, ge=1, description="Number of latent channels of a new autoencoder."
    )
    crop: int = Field(64, ge=16, description="Side of a training crop in px.")
    latent_noise: float = Field(
        0.02, ge=0, description="Noise that is added to latents, in their standard deviations."
    )
    perceptual: float = Field(
        1.0,
        ge=0,
        description="Weight of the distance of EfficientNet features; 0: it is not computed.",
    )

    def check(self) -> list[str]:
        problems = []
        if self.train == "decoder" and self.init is None:
            problems.append("train: decoder needs init: the checkpoint whose latents are kept")
        if self.perceptual and find_spec("efficientnet_lite_pytorch") is None:
            problems.append("perceptual: needs `pip install 'synthgen-layouts[train]'`; or give 0")
        factor = 2 ** (len(self.channels) - 1)
        if self.crop % factor:
            problems.append(
                f"crop: {self.crop} px must be a multiple of {factor}, the factor of the channels"
            )
        if self.crop > self.data.side:
            problems.append(f"crop: {self.crop} px is larger than data.side, {self.data.side} px")
        return problems + check_model("init", self.init)


def check_model(key: str, name: str | None, unet: bool = False, mask: bool = False) -> list[str]:
    """Return why the checkpoint that a key names cannot be trained on; nothing if it is null.

    Args:
        unet: whether its UNet is trained, which must read latents and the prompt of one text
            encoder.
        mask: whether the UNet may read the latents of a mask too.
    """
    if name is None:
        return []
    try:
        checkpoint = find_checkpoint(name)
    except VariantNotFoundError as error:
        reason = str(error).partition("; ")[0]
        return [
            f"{key}: model {name!r}: {reason}; training reads the plain weights, or fp16: write "
            "them with `save_pretrained`"
        ]
    except ModelNotFoundError as error:
        return [f"{key}: {error}"]
    problems = []
    problem = find_input_problem(checkpoint, mask) if unet else None
    if problem is not None:
        problems.append(f"{key}: {name}: {problem}")
    if unet and checkpoint.has_two_encoders:
        problems.append(f"{key}: {name} has two text encoders (SDXL); give a checkpoint with one")
    return problems
