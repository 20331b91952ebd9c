"""Images are decoded whole, in tiles where they must be, and again where float16 overflows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synthgen.pipelines.diffusion import image_coding
from synthgen.pipelines.mixture.pipeline import MixturePipeline

SIDE = 40  # cells, more than a tile of the tiny autoencoder


@pytest.fixture
def pipeline(checkpoint: Path) -> MixturePipeline:
    loaded: MixturePipeline = MixturePipeline.from_pretrained(checkpoint, use_safetensors=True)
    return loaded


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def decode_whole(pipeline: Any, latents: Tensor) -> np.ndarray:
    """Return the images that the autoencoder itself decodes, without tiles."""
    pipeline.vae.disable_tiling()
    pixels = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte()
    images: np.ndarray = levels.permute(0, 2, 3, 1).numpy()
    return images


@torch.no_grad()
def test_an_image_is_decoded_in_tiles_only_where_it_is_very_large(
    pipeline: Any, latents: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = decode_whole(pipeline, latents)
    np.testing.assert_array_equal(pipeline.decode(latents), whole)
    pipeline.tiled = True
    tiled = pipeline.decode(latents)
    assert (tiled != whole).any()
    pipeline.tiled = False
    monkeypatch.setattr(image_coding, "UNTILED_SIDE", 64)
    np.testing.assert_array_equal(pipeline.decode(latents), tiled)
    assert pipeline.encode_images(tiled).shape == latents.shape


class Overflowing:
    """Decodes as an autoencoder does, but overflows in float16 for chosen images."""

    def __init__(self, vae: Any, *chosen: int) -> None:
        self.vae = vae
        self.original = vae.decode
        self.chosen = chosen
        self.dtypes: list[torch.dtype] = []

    def __call__(self, z: Tensor) -> Any:
        number = len(self.dtypes)
        self.dtypes.append(z.dtype)
        decoded = self.original(z)
        if z.dtype == torch.float16 and number in self.chosen:
            decoded.sample.fill_(float("nan"))
        return decoded


@torch.no_grad()
def test_an_image_that_overflows_in_float16_is_decoded_again_in_float32(
    pipeline: Any, latents: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    exact = decode_whole(pipeline, latents.half().float())
    pipeline.vae.half()
    pipeline.vae.decode = decoder = Overflowing(pipeline.vae, 0, 3)
    first = pipeline.decode(latents)
    again = pipeline.decode(latents)
    half, single = torch.float16, torch.float32
    assert decoder.dtypes == [half, single, half, half, single, half]
    assert pipeline.vae.dtype == half
    np.testing.assert_array_equal(first, again)  # each image is decided alone
    assert np.abs(first[0].astype(int) - exact[0]).max() <= 2
    assert caplog.text.count("overflows in float16") == 1


@torch.no_grad()
def test_latents_that_are_not_finite_are_not_decoded_again(pipeline: Any, latents: Tensor) -> None:
    pipeline.vae.half()
    latents[0] = float("nan")
    pipeline.vae.decode = decoder = Overflowing(pipeline.vae)
    pipeline.decode(latents)
    assert len(decoder.dtypes) == 2


@torch.no_grad()
def test_an_image_that_needs_too_much_memory_is_decoded_in_tiles(
    pipeline: Any, latents: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.tiled = True
    tiled = pipeline.decode(latents)
    pipeline.tiled = False
    original = pipeline.vae.decode
    calls = []

    def decode(z: Tensor) -> Any:
        calls.append(pipeline.vae.use_tiling)
        if not pipeline.vae.use_tiling:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(z)

    pipeline.vae.decode = decode
    np.testing.assert_array_equal(pipeline.decode(latents), tiled)
    assert calls == [False, True, True]  # the second image is not tried whole
    assert pipeline.tiled
    assert "out of memory at 80 x 80 px; from now on in tiles" in caplog.text
    pipeline.vae.decode = lambda z: 1 / 0
    with pytest.raises(ZeroDivisionError):
        pipeline.decode(latents)
