"""Train an autoencoder: the recipe."""

from importlib.util import find_spec
from typing import ClassVar, Literal

from pydantic import Field

from synthgen.pipelines.base import ModelNotFoundError
from synthgen.pipelines.diffusion.checkpoint import input_problem
from synthgen.pipelines.diffusion.models import find_checkpoint
from synthgen.pipelines.diffusion.weights import VariantNotFoundError
from synthgen.training.base import TaskSpec


class Spec(TaskSpec):
    """The autoencoder of a checkpoint (AutoencoderKL), on crops of scenes."""

    TRAINEE: ClassVar[str] = "synthgen.training.vae.trainee:VaeTrainee"

    task: Literal["vae"] = "vae"
    init: str | None = Field(
        None, description="checkpoint whose autoencoder is trained on; null: a new one"
    )
    train: Literal["all", "decoder"] = Field(
        "all", description="decoder: latents stay what a UNet was trained on; needs init"
    )
    channels: tuple[int, ...] = Field(
        (16, 48, 96), min_length=2, description="of a new one, a level; f = 2^(levels - 1)"
    )
    latent_channels: int = Field(8, ge=1, description="of a new one")
    crop: int = Field(64, ge=16, description="side of a training crop, px")
    latent_noise: float = Field(
        0.02, ge=0, description="noise added to latents, in their standard deviations"
    )
    perceptual: float = Field(
        1.0, ge=0, description="weight of the distance of EfficientNet features; 0: none"
    )

    def check(self) -> list[str]:
        problems = []
        if self.train == "decoder" and self.init is None:
            problems.append("train: decoder needs init: the checkpoint whose latents are kept")
        if self.perceptual and find_spec("efficientnet_lite_pytorch") is None:
            problems.append("perceptual: needs `pip install 'synthgen-layouts[train]'`; or give 0")
        if self.crop % 2 ** (len(self.channels) - 1):
            factor = 2 ** (len(self.channels) - 1)
            problems.append(
                f"crop: {self.crop} px must be a multiple of {factor}, the factor of the channels"
            )
        if self.crop > self.data.side:
            problems.append(f"crop: {self.crop} px is larger than data.side, {self.data.side} px")
        return problems + model_problems("init", self.init)


def model_problems(key: str, name: str | None, unet: bool = False, mask: bool = False) -> list[str]:
    """What stands against training on the checkpoint that a key names; nothing if it is null.

    Args:
        unet: whether its UNet is trained as it is, which reads latents and the words of one text encoder.
        mask: whether the UNet may read the latents of a mask too.
    """
    if name is None:
        return []
    try:
        checkpoint = find_checkpoint(name)
    except VariantNotFoundError as error:
        reason = str(error).partition("; ")[0]
        return [
            f"{key}: model {name!r}: {reason}; training reads the plain ones, or fp16: write it with `save_pretrained`"
        ]
    except ModelNotFoundError as error:
        return [f"{key}: {error}"]
    problem = input_problem(checkpoint, mask) if unet else None
    problems = [f"{key}: {name}: {problem}"] if problem is not None else []
    if unet and checkpoint.has_two_encoders:
        problems.append(f"{key}: {name} has two text encoders (SDXL); give a checkpoint with one")
    return problems
