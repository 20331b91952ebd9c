"""Checkpoints that are trained on: every form of their weights, and refusal before training."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from synthgen.config import ConfigError, load_training
from synthgen.training.annotation_mask import Spec as MaskSpec
from synthgen.training.annotation_mask.trainee import AnnotationMaskTrainee
from synthgen.training.vae.trainee import read_vae
from tests.pipelines.diffusion.test_checkpoint import (
    UNET,
    VAE,
    WEIGHTS,
    Break,
    cut,
    tiny_sdxl,
    to_variant,
    widen,
)
from tests.training.test_annotations import settings

PIX2PIX = "StableDiffusionInstructPix2PixPipeline"


def give_two_encoders(folder: Path) -> None:
    """Replace a checkpoint by a tiny SDXL."""
    base = Path(shutil.copytree(folder, folder.with_name("base")))
    shutil.rmtree(folder)
    tiny_sdxl(base, folder)


@pytest.mark.parametrize(
    ("task", "change", "phrase"),
    [
        ("annotation-mask", cut, "unet/diffusion_pytorch_model.safetensors is cut short"),
        ("annotation-mask", widen(7, "StableDiffusionInpaintPipeline"), "unet.in_channels is 7"),
        ("annotation-mask", widen(6, PIX2PIX), "unet.in_channels is 6"),
        ("annotation-tokens", widen(6, "StableDiffusionPipeline"), "unet.in_channels is 6"),
        ("annotation-tokens", give_two_encoders, "has two text encoders"),
        (
            "annotation-mask",
            to_variant("bf16", *WEIGHTS),
            "has only bf16 weights; training reads the plain weights, or fp16",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_trained_on_is_refused(
    task: str, change: Break, phrase: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    change(folder)
    with pytest.raises(ConfigError) as caught:
        load_training(f"jobs/train-{task}.yaml", [f"init={folder}"])
    assert "init: " in str(caught.value)
    assert phrase in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fp16_weights_alone_and_a_widened_unet_are_trained_on(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    widen(6, "StableDiffusionPipeline")(folder)
    to_variant("fp16", UNET, VAE)(folder)
    options: dict[str, Any] = settings(folder)
    spec = MaskSpec.model_validate(options)
    assert spec.check() == []
    trainee = AnnotationMaskTrainee(spec)
    unet = load_file(checkpoint / UNET)
    vae = load_file(checkpoint / VAE)
    expected = unet["conv_out.weight"].half().float()
    assert torch.equal(trainee.unet.state_dict()["conv_out.weight"], expected)
    assert trainee.unet.config["in_channels"] == 6
    weight = read_vae(str(folder)).state_dict()["decoder.conv_in.weight"]
    assert torch.equal(weight.float(), vae["decoder.conv_in.weight"].half().float())
