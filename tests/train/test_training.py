"""The training scripts: they learn, they stop and go on, and what they write loads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from synthgen.train.scenes import pasted_scenes
from synthgen.train.state import load_state, save_state, trapezoid
from synthgen.train.text_to_image import WINDOW_LEAST, WINDOW_MULTIPLE, Trainer, WindowPool, new_tokenizer
from synthgen.train.vae import new_vae, normalise_latents, reconstruction_loss, to_tensor


def test_scenes_are_a_function_of_the_seed() -> None:
    (scene, picture), (again, same), (_, other) = (next(pasted_scenes(160, seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(picture, same)
    assert scene.phrases == again.phrases
    assert not np.array_equal(picture, other)


def test_normalised_latents_decode_as_before() -> None:
    torch.manual_seed(0)
    vae = new_vae().eval()
    x = to_tensor(np.stack([next(pasted_scenes(128, seed))[1] for seed in range(3)]))
    with torch.no_grad():
        before = vae.decode(vae.encode(x).latent_dist.mode()).sample
        normalise_latents(vae, x)
        z = vae.encode(x).latent_dist.mode()
        torch.testing.assert_close(vae.decode(z).sample, before, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(8), atol=1e-3, rtol=0)


def test_reconstruction_loss_is_zero_only_for_equal_pictures() -> None:
    x = torch.rand(2, 3, 16, 16)
    assert reconstruction_loss(x, x) == 0
    assert reconstruction_loss(x + 0.1, x) > 0.1


@pytest.mark.parametrize("prompt", ["a white and black dog, a field of grass", "gravel"])
def test_caption_words_are_one_token_each(prompt: str) -> None:
    tokens = new_tokenizer().tokenize(prompt)
    assert [t.removesuffix("</w>") for t in tokens] == prompt.replace(",", " ,").split()


def test_trapezoid() -> None:
    factor = trapezoid(100, warm=10, decay=0.3)
    assert [round(factor(s), 3) for s in (0, 9, 50, 70, 85, 99)] == [0.1, 1.0, 1.0, 1.0, 0.5, 0.033]


def test_state_round_trip(tmp_path: Path) -> None:
    parts = {"net": nn.Linear(2, 2)}
    assert load_state(tmp_path / "state.pt", parts) == 0
    save_state(tmp_path / "state.pt", parts, 7)
    other = {"net": nn.Linear(2, 2)}
    assert load_state(tmp_path / "state.pt", other) == 7
    torch.testing.assert_close(parts["net"].weight, other["net"].weight)


def test_windows_are_those_that_the_pipeline_cuts(tmp_path: Path) -> None:
    new_vae().save_pretrained(tmp_path / "vae")
    trainer = Trainer(tmp_path, steps=4, lr=1e-3, seed=0)
    pool = WindowPool(trainer.vae)
    scenes = pasted_scenes(256, 0)
    while not (pool.windows and pool.grounds):
        pool.add(*next(scenes))
    for (h, w), windows in pool.windows.items():
        assert h % WINDOW_MULTIPLE == w % WINDOW_MULTIPLE == 0
        assert min(h, w) >= WINDOW_LEAST
        assert all("dog, " in prompt for *_, prompt in windows)
    x, prompts = pool.batch(np.random.default_rng(0), 3)
    assert (x.shape[:2], len(prompts)) == ((3, 8), 3)
    before = trainer.unet.conv_in.weight.clone()
    assert trainer.step(x, prompts, torch.Generator().manual_seed(0)) > 0
    assert not torch.equal(before, trainer.unet.conv_in.weight)
