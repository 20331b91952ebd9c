"""Training of gated layers: windows and their boxes, frozen weights, and learning."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from synthgen.config import ConfigError, load_training
from synthgen.layouts.base import MIN_SHARE_INSIDE, Layout
from synthgen.pipelines.mixture.pipeline import MixturePipeline
from synthgen.scenes.scene import Scene
from synthgen.training.grounded import Spec
from synthgen.training.grounded.trainee import GroundedTrainee
from tests.pipelines.diffusion.test_grounding import gated_unet
from tests.training.test_annotations import train_on


@pytest.fixture(scope="module")
def trainee(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> GroundedTrainee:
    path = tmp_path_factory.mktemp("gated")
    pipeline = MixturePipeline.from_pretrained(checkpoint, use_safetensors=True)
    pipeline.unet = gated_unet()
    pipeline.save_pretrained(path)
    job = {
        "version": 1,
        "name": "x",
        "steps": 1,
        "output": {"path": "x"},
        "init": str(path),
        "windows": [32, 64],
        "batch_size": 2,
        "data": {"side": 128, "scenes": 8},
    }
    return GroundedTrainee(Spec.model_validate(job))


def test_windows_have_the_boxes_that_are_inside(trainee: GroundedTrainee) -> None:
    rng = np.random.default_rng(0)
    for pair in islice(trainee.scenes.iterate_from(0), 8):
        scene = trainee.encode(*pair)
        window = trainee.sample_window(scene, 32, 24, rng)
        assert window.crop(scene.latents).shape[1:] == (32, 24)
        assert len(window.layout) <= trainee.spec.max_boxes
        shares = window.layout.boxes / ([window.layout.width, window.layout.height] * 2)
        assert ((shares >= 0) & (shares <= 1)).all()
        assert window.caption == "" or window.caption.startswith(scene.scene.background)
        if len(window.layout):
            areas = ((shares[:, 2:] - shares[:, :2]) * [24, 32]).prod(1)
            smallest = (scene.boxes[:, 2:] - scene.boxes[:, :2]).prod(1).min()
            assert (areas >= MIN_SHARE_INSIDE * smallest - 1e-3).all()


def contains(corner: tuple[int, int], y: float, x: float) -> bool:
    """Return whether a window of 16 x 16 cells with this corner contains a point."""
    top, left = corner
    return top <= y <= top + 16 and left <= x <= left + 16


def test_windows_can_be_placed_over_boxes(trainee: GroundedTrainee) -> None:
    layout = Layout(128, 128, np.array([[100, 4, 124, 28]], np.float32), ("dog",))
    scene = trainee.add_windows(Scene(layout, "grass"), torch.zeros(4, 64, 64))
    y, x = (scene.boxes[0, [1, 0]] + scene.boxes[0, [3, 2]]) / 2
    over_box = []
    anywhere = []
    for k in range(20):
        over_box.append(trainee.sample_corner(scene, 16, 16, np.random.default_rng(k), 1.0))
        anywhere.append(trainee.sample_corner(scene, 16, 16, np.random.default_rng(k), 0.0))
    assert len(set(over_box)) > 5
    assert all(contains(corner, y, x) for corner in over_box)
    assert not all(contains(corner, y, x) for corner in anywhere)


def test_only_the_gated_layers_are_trained(trainee: GroundedTrainee) -> None:
    trained = {name for name, p in trainee.named_parameters() if p.requires_grad}
    assert trained
    assert all("fuser" in name or "position_net" in name for name in trained)


def test_gated_layers_learn_one_batch(
    trainee: GroundedTrainee, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = next(trainee.batches(0, 0))
    monkeypatch.setattr(trainee, "held_out_batches", lambda: iter([batch]))
    losses = train_on(trainee, batch, 1e-2, 20)
    assert losses[-1] < 0.97 * losses[0]
    with torch.no_grad():
        figures = trainee.measure()
    assert set(figures) == {"heldout_loss", "heldout_loss_without_boxes"}


def test_recording_attention_does_not_change_the_prediction(trainee: GroundedTrainee) -> None:
    batch = next(trainee.batches(0, 0))
    with torch.no_grad():
        plain = trainee(batch)
        assert trainee.attention.maps == []
        processors = dict(trainee.unet.attn_processors)
        trainee.unet.set_attn_processor(AttnProcessor2_0())
        assert trainee(batch).item() == pytest.approx(plain.item(), rel=1e-5)
        trainee.unet.set_attn_processor(processors)
    assert trainee(batch).item() > plain.item()


def test_the_sheet_has_a_row_without_and_a_row_with_boxes(trainee: GroundedTrainee) -> None:
    trainee.options["num_inference_steps"] = 1
    assert trainee.render_sheet().size == (4 * 64, 2 * 64)


def test_a_checkpoint_without_gated_layers_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"init: .* has no gated layers"):
        load_training("train-grounded", [f"init={checkpoint}"])
    with pytest.raises(
        ConfigError,
        match=r"windows: \[300, 200\] must be two sides from 16 px to data.side, 512 px",
    ):
        load_training("train-grounded", ["windows=[300, 200]"])
