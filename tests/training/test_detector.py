"""Training of detectors: CenterNet and detectors of transformers."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.config import ConfigError, load_training
from synthgen.layouts.base import Layout
from synthgen.scenes.scene import Scene
from synthgen.training.detector import Spec
from synthgen.training.detector.centernet import (
    CenterNetTrainee,
    load_with_categories,
    make_targets,
    pad_image,
)
from synthgen.training.detector.trainee import (
    DetectorTrainee,
    Example,
    count_error,
    count_matches,
)
from synthgen.training.detector.transformers_detector import (
    TransformersTrainee,
    make_annotations,
)
from synthgen.training.loop import read_log, train
from synthgen.verification.centernet import CenterNet, boxes_at, find_peaks
from synthgen.verification.detections import Detections
from synthgen.verification.detector import Spec as DetectorSpec
from synthgen.verification.detector.verifier import load_detector
from tests.tiny_detr import save_tiny_detr

JOB: dict[str, Any] = {
    "version": 1,
    "name": "x",
    "task": "detector",
    "steps": 4,
    "batch_size": 2,
    "warmup": 1,
    "crop": 64,
    "categories": ["dog", "cat"],
    "channels": [8, 8, 16, 16],
    "data": {"side": 128, "scenes": 4, "fresh": 0},
    "output": {"path": "x"},
}


@pytest.fixture(scope="module")
def detr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random DETR with other categories."""
    folder = tmp_path_factory.mktemp("detr")
    save_tiny_detr(folder, {0: "hound", 1: "pony", 2: "zebra"})
    return folder


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_targets_decode_to_the_boxes(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    columns = rng.permutation(6)[:count]
    low = np.stack([columns * 40.0, rng.uniform(0, 100, count)], 1)
    boxes = np.concatenate([low, low + rng.uniform(20, 36, (count, 2))], 1).astype(np.float32)
    categories = rng.integers(0, 2, count).tolist()
    heat, distances, _ = make_targets(boxes, categories, 2, 64)
    scores, cells = find_peaks(torch.from_numpy(heat), count)
    assert (scores == 1).all()
    order = np.argsort(cells[:, 2].numpy())
    decoded = boxes_at(torch.from_numpy(distances), cells).numpy()[order]
    by_column = np.argsort(boxes[:, 0])
    np.testing.assert_allclose(decoded, boxes[by_column], atol=1e-3)
    assert cells[order, 0].tolist() == [categories[i] for i in by_column]


def train_on_one_batch(trainee: DetectorTrainee, rate: float, steps: int) -> list[float]:
    """Train on the first batch, and return the loss of each step."""
    batch = next(trainee.batches(0, 0))
    optimiser = torch.optim.AdamW(trainee.parameters(), rate)
    losses = []
    for _ in range(steps):
        loss = trainee(batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


def test_centernet_learns_one_batch() -> None:
    torch.manual_seed(0)
    losses = train_on_one_batch(CenterNetTrainee(Spec.model_validate(JOB)), 5e-3, 15)
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_detector_of_transformers_learns_one_batch(detr: Path, pretrained: bool) -> None:
    torch.manual_seed(0)
    trainee = Spec.model_validate({**JOB, "init": str(detr), "pretrained": pretrained}).load()
    assert isinstance(trainee, TransformersTrainee)
    assert trainee.net.config.id2label == {0: "dog", 1: "cat"}
    losses = train_on_one_batch(trainee, 3e-3, 25)
    assert losses[-1] < 0.7 * losses[0]


def test_labels_are_the_boxes_in_the_crop(detr: Path) -> None:
    trainee = Spec.model_validate({**JOB, "init": str(detr)}).load()
    assert isinstance(trainee, TransformersTrainee)
    boxes = np.array([[8, 16, 40, 48], [-20, 0, 10, 10], [60, 60, 90, 90]], np.float32)
    examples = [
        Example(np.zeros((64, 64, 3), np.uint8), boxes, [1, 0, 0]),
        Example(np.zeros((64, 32, 3), np.uint8), boxes[:0], []),
    ]
    first, second = trainee.collate(examples, np.random.default_rng(0))["labels"]
    assert first["class_labels"].tolist() == [1]  # less than half of the others is inside
    np.testing.assert_allclose(first["boxes"].numpy(), [[24 / 64, 32 / 64, 0.5, 0.5]], atol=1e-6)
    assert second["boxes"].shape == (0, 4)
    assert make_annotations(examples[0])[0]["bbox"] == [8, 16, 32, 32]


def test_an_interrupted_run_resumes_to_the_same_losses_and_its_result_can_be_named(
    detr: Path, tmp_path: Path
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps({**JOB, "init": str(detr), "ema": 0.9}))
    whole = load_training(str(path), [f"output.path={tmp_path / 'whole'}"])
    resumed = load_training(str(path), [f"output.path={tmp_path / 'resumed'}"])
    assert train(whole).step == 4

    def interrupt_after_two(step: int, loss: float, activity: str) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    assert train(resumed, interrupt_after_two).interrupted
    assert train(resumed).step == 4
    assert read_log(tmp_path / "resumed/log.jsonl") == read_log(tmp_path / "whole/log.jsonl")
    spec = DetectorSpec(model=str(tmp_path / "resumed/checkpoint"))
    assert spec.known() == ["dog", "cat"]
    (found,) = load_detector(spec, "cpu", 0.0)([np.zeros((96, 128, 3), np.uint8)], [["dog"]])
    assert len(found.boxes) == 20
    assert set(found.categories) <= {"dog", "cat"}


def test_centernet_keeps_the_weights_of_categories_that_it_has(tmp_path: Path) -> None:
    torch.manual_seed(0)
    CenterNet(("cat", "dog"), (8, 8, 16, 16)).save_pretrained(tmp_path)
    old = load_with_categories(tmp_path, ("cat", "dog")).eval()
    new = load_with_categories(tmp_path, ("dog", "owl")).eval()
    x = torch.rand(1, 3, 64, 64)
    old_heat, old_distances = old(x)
    new_heat, new_distances = new(x)
    torch.testing.assert_close(new_heat[:, 0], old_heat[:, 1])
    torch.testing.assert_close(new_distances, old_distances)
    assert not torch.allclose(new_heat[:, 1], old_heat[:, 0])
    trainee = Spec.model_validate({**JOB, "init": str(tmp_path)}).load()
    assert isinstance(trainee, CenterNetTrainee)
    assert tuple(trainee.net.config["channels"]) == (8, 8, 16, 16)


def test_small_images_are_padded() -> None:
    image = np.arange(48 * 32 * 3, dtype=np.uint8).reshape(48, 32, 3)
    padded = pad_image(image, 64)
    assert padded.shape == (64, 64, 3)
    np.testing.assert_array_equal(padded[:48, :32], image)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("crop=256", "crop: 256 px is larger than data.side, 128 px"),
        ("init=nowhere", "init: 'nowhere': no folder of that name holds a config.json"),
        (
            "init=HERE",
            "has no safetensors weights; pickled ones are not loaded; or set `pretrained: false`",
        ),
        ("init=HERE", "has no preprocessor_config.json, the settings of its image processor"),
        ("pretrained=false", "pretrained: false is for a detector of transformers"),
        ("data.mixed_with=nowhere", "data.mixed_with: 'nowhere' holds no shards/*.tar"),
        ("data.hold_out=5", "data.hold_out: is for `shards`"),
    ],
)
def test_errors_of_a_job_name_the_key(tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "detr"}')
    (tmp_path / "job.yaml").write_text(json.dumps(JOB))
    with pytest.raises(ConfigError) as caught:
        load_training(str(tmp_path / "job.yaml"), [override.replace("HERE", str(tmp_path))])
    assert message in str(caught.value)


def test_figures_count_matches_and_errors() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    scene = Scene(Layout(64, 64, boxes, ("dog", "cat")), "")
    found = Detections(boxes, np.array([0.9, 0.5], np.float32), ("dog", "dog"))
    held_out = [(scene, np.zeros(0, np.uint8))]
    assert count_matches(scene, found) == 1
    assert count_error(held_out, [found], 0.4) == 0
    assert count_error(held_out, [found], 0.6) == 0.5
