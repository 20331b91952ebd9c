"""Comparison with real images: encoders, sources, and messages if it is impossible."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    ResNetConfig,
    ResNetModel,
    ViTImageProcessor,
)

from synthgen import cli
from synthgen.dataset.shard import read_rows
from synthgen.evaluation.comparison import Comparison
from synthgen.evaluation.fidelity import FIGURES
from synthgen.evaluation.image_encoders import EfficientNetEncoder, Encoder
from synthgen.evaluation.reference_images import Reference
from synthgen.layouts.base import Layout
from synthgen.storage.location import open_store

NOISE = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), dtype=np.uint8)
IMAGES = [Image.fromarray(pixels) for pixels in NOISE]


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_features_are_pooled(resnet: Path, tmp_path: Path) -> None:
    processor = ViTImageProcessor.from_pretrained(resnet)
    model = ResNetModel.from_pretrained(resnet).eval()
    wanted = model(**processor(IMAGES, return_tensors="pt")).pooler_output.flatten(1)
    torch.testing.assert_close(Encoder(resnet, "cpu")(IMAGES), wanted, rtol=1e-4, atol=1e-5)
    size = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = CLIPVisionModel(CLIPVisionConfig(**size, image_size=32, patch_size=8)).eval()
    vision.save_pretrained(tmp_path)
    clip = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    clip.save_pretrained(tmp_path)
    wanted = vision(clip(IMAGES, return_tensors="pt").pixel_values).pooler_output
    torch.testing.assert_close(Encoder(tmp_path, "cpu")(IMAGES), wanted, rtol=1e-4, atol=1e-5)


def test_the_packaged_encoder_has_1280_features() -> None:
    encoder = EfficientNetEncoder("cpu")
    assert encoder(IMAGES[:3]).shape == (3, 1280)


def test_boxes_or_whole_images_are_encoded(resnet: Path, tmp_path: Path) -> None:
    image = np.asarray(IMAGES[0])
    corners = np.array([[0, 0, 20, 20], [20, 20, 40, 40]], np.float32)
    layout = Layout(64, 48, corners, ("dog", "dog"))
    whole = Comparison(Reference(tmp_path, str(resnet)), "cpu")
    boxes = Comparison(Reference(tmp_path, str(resnet), objects=True), "cpu")
    for comparison in (whole, boxes):
        comparison.add(image, layout)
        comparison.add(image, Layout(64, 48, layout.boxes[:0], ()))
        assert sum(map(len, comparison.features)) == 2
    crops = [Image.fromarray(image[:20, :20]), Image.fromarray(image[20:40, 20:40])]
    torch.testing.assert_close(boxes.features[0], boxes.encoder(crops))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in a folder and in a folder in it."""
    path = tmp_path_factory.mktemp("real")
    (path / "more").mkdir()
    for k, image in enumerate(IMAGES[:8]):
        image.save(path / ("more" if k % 2 else ".") / f"{k}.png")
    return path


def test_a_dataset_is_compared(
    job_file: Path, folder: Path, resnet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate(*options: str) -> dict[str, float | str]:
        command = ["evaluate", str(job_file), "images=8", "--encoder", str(resnet), "--json"]
        assert cli.main([*command, *options]) == 0
        figures: dict[str, float | str] = json.loads(capsys.readouterr().out)
        return figures

    without = evaluate()  # this runs the job, too
    assert {without[name] for name in FIGURES} == {"not measured here"}
    compared = evaluate("--reference", str(folder))
    assert all(isinstance(compared[name], float) for name in FIGURES)
    with_itself = evaluate("--reference", str(job_file.parent / "out"), "--objects")
    assert [with_itself[name] for name in ("nearest", "precision", "coverage")] == [0, 1, 1]
    few = evaluate("--reference", str(folder), "--limit", "3")
    assert few["fid"] == "not measured here: at least 6 are needed, of each"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--reference", "nowhere"],
            "--reference: 'nowhere' is neither a synthgen dataset nor a folder of images",
        ),
        (
            ["--reference", "{folder}", "--objects"],
            "is a folder of images; only a dataset has boxes",
        ),
        (
            ["--reference", "{folder}", "--encoder", "nothing"],
            "'nothing': no folder of that name holds a config.json",
        ),
    ],
)
def test_a_reference_that_cannot_be_compared_is_named(
    options: list[str],
    message: str,
    folder: Path,
    job_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["evaluate", str(job_file), *(o.format(folder=folder) for o in options)]) == 2
    assert message in capsys.readouterr().err


def test_one_command_generates_and_measures_captions_with_boxes_or_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "captions.py"
    subprocess.run(
        [sys.executable, script, tmp_path / "captions.jsonl", "--entries", "6"],
        check=True,
        capture_output=True,
    )
    entries = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert ["boxes" in entry for entry in entries] == [False, True] * 3
    monkeypatch.chdir(tmp_path)
    overrides = ["pipeline=paste", "images=6", "workers=0"]
    assert cli.main(["evaluate", "captions", *overrides, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["images"] == 6
    assert figures["boxes"] == sum(len(entry["categories"]) for entry in entries)
    assert figures["held"] > 0.5
    rows = read_rows(open_store(tmp_path / "out/captions"), 0)
    assert [row["prompt"] for row in rows] == [entry["caption"] for entry in entries]
