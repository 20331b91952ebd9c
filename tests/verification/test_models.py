"""Models of verifiers that cannot be loaded are refused before anything is written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from synthgen import cli
from synthgen.pipelines.diffusion.sources import EMBEDDED

WEIGHTS = "diffusion_pytorch_model.safetensors"


def truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000])


def replace_by_lfs_pointer(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n")


def rename(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model.fp16.safetensors")


def drop_processor(folder: Path) -> None:
    (folder / "config.json").write_text('{"id2label": {"0": "dog"}}')


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (truncate, "is cut short"),
        (replace_by_lfs_pointer, "git lfs pull"),
        (rename, "has only fp16 weights"),
        (drop_processor, "has no preprocessor_config.json"),
        (break_config, "config.json cannot be read as JSON"),
        (
            lambda folder: (folder / "config.json").unlink(),
            "no folder of that name holds a config.json",
        ),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused(
    change: Callable[[Path], None],
    phrase: str,
    job_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "models" / "detector"
    shutil.copytree(EMBEDDED / "centernet-tiny", folder)
    change(folder)
    monkeypatch.chdir(tmp_path)  # "models/detector" looks like an id of the Hub, and is a folder
    status = cli.main(["run", str(job_file), "verify={verifier: detector, model: models/detector}"])
    error = capsys.readouterr().err
    assert (status, error.count("\n")) == (2, 1), error
    assert "verify.model: " in error
    assert phrase in error
    assert not (tmp_path / "out").exists()
