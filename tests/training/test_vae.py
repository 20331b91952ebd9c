"""Training of the autoencoder: its loss, and latents of mean 0 and deviation 1."""

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
    new_vae,
    normalise_latents,
    reconstruction_loss,
    to_pixels,
    to_tensor,
)


def spec(**changes: object) -> Spec:
    base = {
        "version": 1,
        "name": "x",
        "steps": 1,
        "output": {"path": "x"},
        "channels": (8, 16, 16),
        "latent_channels": 3,
    }
    return Spec.model_validate(
        {**base, "perceptual": 0, "data": {"side": 64, "scenes": 4}, "crop": 32, **changes}
    )


def test_normalised_latents_decode_as_before() -> None:
    torch.manual_seed(0)
    vae = new_vae(spec()).eval()
    scenes = PastedScenes(128, 0)
    x = to_tensor(np.stack([scenes[k][1] for k in range(3)]))
    with torch.no_grad():
        before = vae.decode(vae.encode(x).latent_dist.mode()).sample
        normalise_latents(vae, [p[None] for p in x])
        z = vae.encode(x).latent_dist.mode()
        torch.testing.assert_close(vae.decode(z).sample, before, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_reconstruction_loss_is_zero_only_for_equal_pictures() -> None:
    x = torch.rand(2, 3, 16, 16)
    assert reconstruction_loss(x, x) == 0
    assert reconstruction_loss(x + 0.1, x) > 0.1


def test_pixels_round_trip() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(to_pixels(to_tensor(pixels)), pixels)


def test_perceptual_distance_grows_with_blur() -> None:
    x = to_tensor(PastedScenes(64, 0)[0][1][None])
    soft, softer = (torch.nn.functional.avg_pool2d(x, k, 1, k // 2) for k in (3, 7))
    features = Features()
    assert features.distance(x, x) == 0
    assert 0 < features.distance(soft, x) < features.distance(softer, x)


def test_decoder_alone_keeps_the_latents() -> None:
    trainee = VaeTrainee(spec(init="synthgen-tiny", train="decoder"))
    names = {n for n, p in trainee.named_parameters() if p.requires_grad}
    assert names
    assert all(n.startswith(("vae.decoder", "vae.post_quant_conv")) for n in names)
    x = to_tensor(PastedScenes(64, 0)[0][1][None])
    before = trainee.vae.encode(x).latent_dist.mode()
    trainee(next(trainee.batches(0, 0))).backward()
    torch.optim.SGD(trainee.parameters(), 0.1).step()
    torch.testing.assert_close(trainee.vae.encode(x).latent_dist.mode(), before)


@pytest.mark.parametrize("train", ["all", "decoder"])
def test_export_of_decoder_alone_does_not_move_the_latents(tmp_path: Path, train: str) -> None:
    trainee = VaeTrainee(spec(init="synthgen-tiny", train=train))
    x = to_tensor(PastedScenes(64, 0)[0][1][None])
    before = trainee.vae.encode(x).latent_dist.mode()
    trainee.export(tmp_path)
    after = AutoencoderKL.from_pretrained(tmp_path / "vae").encode(x).latent_dist.mode()
    assert torch.allclose(before, after) == (train == "decoder")
