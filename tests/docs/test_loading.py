"""The trainings of docs/how-to/loading.md run at toy size, with the real programs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from synthgen.engine.importing import ImportSpec, import_dataset
from synthgen.formats.source import Source
from tests.docs.commands import ROOT
from tests.formats.sources import write_rich_coco
from tests.formats.test_consumers import library, ultralytics_or_skip
from tests.tiny_detr import save_tiny_detr

PAGE = ROOT / "docs/how-to/loading.md"


def read_example(name: str, replacements: dict[str, str]) -> str:
    """Return the code of an example of the page, made small.

    Args:
        name: of the example.
        replacements: the new text by the old one, for settings that a reader would change. Every
            old text must occur in the code.
    """
    (code,) = re.findall(
        rf"<!-- example: {name} -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL
    )
    for old, new in replacements.items():
        assert old in code, old
        code = code.replace(old, new)
    return code.replace("range(10)", "range(2)")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder that contains the dataset of the examples."""
    source = Source("coco", write_rich_coco(tmp_path / "source"))
    import_dataset(ImportSpec(source, tmp_path / "out/100dogs", shard_size=4))
    return tmp_path


def run_example(code: str, folder: Path) -> str:
    """Run a program in a folder and return its output."""
    (folder / "example.py").write_text(code)
    paths = [str(ROOT)]
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
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


def check_losses(output: str) -> None:
    """Check that a training printed a finite loss for each of two epochs."""
    losses = re.findall(r"^\d+ (\d+\.\d+)$", output, re.MULTILINE)
    assert len(losses) == 2
    assert all(0 < float(loss) < 100 for loss in losses)


def test_transformers(folder: Path) -> None:
    save_tiny_detr(folder / "tiny", {i: str(i) for i in range(5)})
    small = {"PekingU/rtdetr_r18vd": "tiny", "num_workers=2": "num_workers=1"}
    check_losses(run_example(read_example("transformers", small), folder))


@pytest.mark.slow
def test_torchvision(folder: Path) -> None:
    library("torchvision")
    check_losses(run_example(read_example("torchvision", {}), folder))


@pytest.mark.slow
def test_ultralytics(folder: Path) -> None:
    ultralytics_or_skip()
    # Without `project`, Ultralytics writes to the folder of its settings.
    runs = folder / "runs"
    small = f"epochs=1, imgsz=64, workers=0, batch=4, plots=False, project={str(runs)!r}"
    run_example(read_example("ultralytics", {"epochs=10, imgsz=640": small}), folder)
    assert list(runs.rglob("best.pt"))
