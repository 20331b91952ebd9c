"""The trainings of docs/loading.md, as they stand there: at toy size, with the real programs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from synthgen.engine.importing import ImportSpec, import_dataset
from synthgen.formats.source import Source
from tests.formats.sources import write_rich_coco
from tests.formats.test_consumers import library, ultralytics_or_skip

PAGE = Path(__file__).parents[2] / "docs" / "loading.md"


def example(name: str, **exchanged: str) -> str:
    """The code of an example, with what the reader would change exchanged.

    Args:
        exchanged: values by what stands there, each of which must be found.
    """
    (code,) = re.findall(
        rf"<!-- example: {name} -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL
    )
    for old, new in {"range(10)": "range(2)", **exchanged}.items():
        if old in exchanged:
            assert old in code, old
        code = code.replace(old, new)
    return code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the dataset of the examples in it."""
    source = Source("coco", write_rich_coco(tmp_path / "source"))
    import_dataset(ImportSpec(source, tmp_path / "out/100dogs", shard_size=4))
    return tmp_path


def run(code: str, folder: Path) -> str:
    (folder / "example.py").write_text(code)
    paths = os.pathsep.join(filter(None, [str(PAGE.parent.parent), os.environ.get("PYTHONPATH")]))
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "YOLO_CONFIG_DIR": str(folder),
        "YOLO_OFFLINE": "true",
    }
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(printed: str) -> list[float]:
    found = [
        float(line.split()[1])
        for line in printed.splitlines()
        if re.fullmatch(r"\d+ \d+\.\d+", line)
    ]
    assert len(found) == 2
    return found


def test_transformers(folder: Path) -> None:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

    torch.manual_seed(0)
    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        out_features=["stage2"],
    )
    config = DetrConfig(
        backbone_config=backbone, d_model=32, num_queries=20, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, id2label={i: str(i) for i in range(5)},
    )  # fmt: skip
    DetrForObjectDetection(config).save_pretrained(folder / "tiny")
    DetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder / "tiny")
    code = example(
        "transformers", **{"PekingU/rtdetr_r18vd": "tiny", "num_workers=2": "num_workers=1"}
    )
    assert all(0 < loss < 100 for loss in losses(run(code, folder)))


@pytest.mark.slow
def test_torchvision(folder: Path) -> None:
    library("torchvision")
    assert all(0 < loss < 100 for loss in losses(run(example("torchvision"), folder)))


@pytest.mark.slow
def test_ultralytics(folder: Path) -> None:
    ultralytics_or_skip()
    runs = (
        folder / "runs"
    )  # by itself Ultralytics writes where its settings, or the test that it finds it is in, say
    small = f"epochs=1, imgsz=64, workers=0, batch=4, plots=False, project={str(runs)!r}"
    run(example("ultralytics", **{"epochs=10, imgsz=640": small}), folder)
    assert list(runs.rglob("best.pt"))
