"""Training of the autoencoder: its loss, and latents with mean 0 and standard deviation 1."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from synthgen.training.scenes import PastedScenes
from synthgen.training.vae import Spec
from synthgen.training.vae.trainee import (
    Features,
    VaeTrainee,
    compute_reconstruction_loss,
    make_vae,
    normalise_latents,
    to_pixels,
    to_tensor,
)


def make_spec(**changes: object) -> Spec:
    job = {
        "version": 1,
        "name": "x",
        "steps": 1,
        "output": {"path": "x"},
        "channels": (8, 16, 16),
        "latent_channels": 3,
        "perceptual": 0,
        "data": {"side": 64, "scenes": 4},
        "crop": 32,
    }
    return Spec.model_validate({**job, **changes})


def make_image() -> torch.Tensor:
    """Return an image (1, 3, 64, 64) in [-1, 1]."""
    return to_tensor(PastedScenes(64, 0)[0][1][None])


def test_normalised_latents_decode_to_the_same_images() -> None:
    torch.manual_seed(0)
    vae = make_vae(make_spec()).eval()
    scenes = PastedScenes(128, 0)
    x = to_tensor(np.stack([scenes[k][1] for k in range(3)]))
    with torch.no_grad():
        before = vae.decode(vae.encode(x).latent_dist.mode()).sample
        normalise_latents(vae, [image[None] for image in x])
        z = vae.encode(x).latent_dist.mode()
        torch.testing.assert_close(vae.decode(z).sample, before, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_the_reconstruction_loss_is_zero_only_for_equal_images() -> None:
    x = torch.rand(2, 3, 16, 16)
    assert compute_reconstruction_loss(x, x) == 0
    assert compute_reconstruction_loss(x + 0.1, x) > 0.1


def test_pixels_are_the_same_after_conversion_to_tensors_and_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(to_pixels(to_tensor(pixels)), pixels)


def test_the_perceptual_distance_grows_with_blur() -> None:
    x = make_image()
    soft = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    softer = torch.nn.functional.avg_pool2d(x, 7, 1, 3)
    features = Features()
    assert features.distance(x, x) == 0
    assert 0 < features.distance(soft, x) < features.distance(softer, x)


def test_training_the_decoder_alone_keeps_the_latents() -> None:
    trainee = VaeTrainee(make_spec(init="synthgen-tiny", train="decoder"))
    names = {name for name, p in trainee.named_parameters() if p.requires_grad}
    assert names
    assert all(name.startswith(("vae.decoder", "vae.post_quant_conv")) for name in names)
    x = make_image()
    before = trainee.vae.encode(x).latent_dist.mode()
    trainee(next(trainee.batches(0, 0))).backward()
    torch.optim.SGD(trainee.parameters(), 0.1).step()
    torch.testing.assert_close(trainee.vae.encode(x).latent_dist.mode(), before)


@pytest.mark.parametrize("train", ["all", "decoder"])
def test_exporting_the_decoder_alone_keeps_the_latents(tmp_path: Path, train: str) -> None:
    trainee = VaeTrainee(make_spec(init="synthgen-tiny", train=train))
    x = make_image()
    before = trainee.vae.encode(x).latent_dist.mode()
    trainee.export(tmp_path)
    after = AutoencoderKL.from_pretrained(tmp_path / "vae").encode(x).latent_dist.mode()
    assert torch.allclose(before, after) == (train == "decoder")
