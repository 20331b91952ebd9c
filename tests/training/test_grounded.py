"""Training of gated layers: windows and their boxes, what is frozen, and that it learns."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from synthgen.config import ConfigError, load_training
from synthgen.layouts.base import HELD, Layout
from synthgen.pipelines.mixture.pipeline import MixturePipeline
from synthgen.scenes.scene import Scene
from synthgen.training.grounded import Spec
from synthgen.training.grounded.trainee import GroundedTrainee
from tests.pipelines.diffusion.test_grounding import gated_unet


@pytest.fixture(scope="module")
def trainee(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> GroundedTrainee:
    path = tmp_path_factory.mktemp("gated")
    pipeline = MixturePipeline.from_pretrained(checkpoint, use_safetensors=True)
    pipeline.unet = gated_unet()
    pipeline.save_pretrained(path)
    base = {
        "version": 1,
        "name": "x",
        "steps": 1,
        "output": {"path": "x"},
        "init": str(path),
        "windows": [32, 64],
    }
    return GroundedTrainee(
        Spec.model_validate({**base, "batch_size": 2, "data": {"side": 128, "scenes": 8}})
    )


def test_windows_come_with_the_boxes_they_hold(trainee: GroundedTrainee) -> None:
    rng = np.random.default_rng(0)
    for pair in islice(trainee.scenes.from_number(0), 8):
        scene = trainee.encode(*pair)
        window = trainee.window(scene, 32, 24, rng)
        assert window.of(scene.latents).shape[1:] == (32, 24)
        assert len(window.layout) <= trainee.spec.max_boxes
        shares = window.layout.boxes / ([window.layout.width, window.layout.height] * 2)
        assert ((shares >= 0) & (shares <= 1)).all()
        assert window.caption == "" or window.caption.startswith(scene.scene.background)
        if len(window.layout):
            sizes = (shares[:, 2:] - shares[:, :2]) * [24, 32]
            assert (
                sizes.prod(1)
                >= HELD * (scene.boxes[:, 2:] - scene.boxes[:, :2]).prod(1).min() - 1e-3
            ).all()


def test_windows_can_be_laid_over_boxes(trainee: GroundedTrainee) -> None:
    one = Layout(128, 128, np.array([[100, 4, 124, 28]], np.float32), ("dog",))
    scene = trainee.with_windows(Scene(one, "grass"), torch.zeros(4, 64, 64))
    y, x = (scene.boxes[0, [1, 0]] + scene.boxes[0, [3, 2]]) / 2
    at = [trainee.corner(scene, 16, 16, np.random.default_rng(k), 1.0) for k in range(20)]
    assert len(set(at)) > 5
    assert all(top <= y <= top + 16 and left <= x <= left + 16 for top, left in at)
    anywhere = [trainee.corner(scene, 16, 16, np.random.default_rng(k), 0.0) for k in range(20)]
    assert not all(top <= y <= top + 16 and left <= x <= left + 16 for top, left in anywhere)


def test_only_the_gated_layers_are_trained(trainee: GroundedTrainee) -> None:
    trained = {n for n, p in trainee.named_parameters() if p.requires_grad}
    assert trained
    assert all("fuser" in n or "position_net" in n for n in trained)


def test_it_learns_one_batch(trainee: GroundedTrainee, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = next(trainee.batches(0, 0))
    monkeypatch.setattr(trainee, "held_out", lambda: iter([batch]))
    optimiser = torch.optim.AdamW([p for p in trainee.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(20):
        loss = trainee(batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]
    with torch.no_grad():
        figures = trainee.measure()
    assert set(figures) == {"heldout_loss", "heldout_loss_without_boxes"}


def test_looks_are_watched_but_change_nothing(trainee: GroundedTrainee) -> None:
    batch = next(trainee.batches(0, 0))
    with torch.no_grad():
        plain = trainee(batch)
        assert trainee.attention.seen == []
        usual = dict(trainee.unet.attn_processors)
        trainee.unet.set_attn_processor(AttnProcessor2_0())
        assert trainee(batch).item() == pytest.approx(plain.item(), rel=1e-5)
        trainee.unet.set_attn_processor(usual)
    assert trainee(batch).item() > plain.item()


def test_the_sheet_shows_boxes(trainee: GroundedTrainee) -> None:
    trainee.options["num_inference_steps"] = 1
    assert trainee.sheet().size == (4 * 64, 2 * 64)


def test_a_checkpoint_without_gated_layers_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"init: .* has no gated layers"):
        load_training("train-grounded", [f"init={checkpoint}"])
    with pytest.raises(
        ConfigError,
        match=r"windows: \[300, 200\] must be two sides from 16 px to data.side, 512 px",
    ):
        load_training("train-grounded", ["windows=[300, 200]"])
