"""Every command with -q, with -v and with --json: none fails for it, and each says what these options promise."""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthgen import cli
from synthgen.config import load_job
from synthgen.engine.driver import run
from tests.conftest import SMALL_JOB
from tests.formats.sources import write_coco
from tests.speech.whisper import converted_whisper

WAV = Path(__file__).parents[1] / "speech/data/one-hundred-dogs.wav"
SMALL: dict[str, Any] = {
    "version": 1,
    "name": "x",
    "steps": 1,
    "batch_size": 2,
    "warmup": 1,
    "crop": 32,
}
DATA = {"side": 96, "scenes": 4, "fresh": 0}
VAE = {
    **SMALL,
    "task": "vae",
    "data": DATA,
    "channels": [8, 16],
    "latent_channels": 2,
    "perceptual": 0,
}
DETECTOR = {
    **SMALL,
    "task": "detector",
    "data": {"side": 128, "scenes": 4},
    "channels": [8, 8, 16, 16],
    "crop": 64,
}
BENCHMARK = "benchmark --real real --synthetic synthetic --detector detector.yaml --seeds 1 --hold-out 3 -o out/benchmark"

COMMANDS: dict[str, Callable[[], str]] = {
    "run": lambda: "run job.yaml output.path=out/run",
    "preview": lambda: "preview job.yaml -n 2",
    "plan": lambda: "plan job.yaml",
    "transcribe": lambda: f"transcribe one-hundred-dogs.wav --speech {converted_whisper()}",
    "train": lambda: "train vae.yaml output.path=out/train",
    "benchmark": lambda: BENCHMARK,
    "check": lambda: "check real",
    "finalize": lambda: "finalize real",
    "report": lambda: "report real",
    "evaluate": lambda: "evaluate real --limit 1",
    "repair": lambda: "repair damaged",
    "merge": lambda: "merge real synthetic --to out/merged",
    "import": lambda: "import coco out/imported --ids fox=101",
    "fit": lambda: "fit real -o out/fit.json",
    "export": lambda: "export real --to coco out/exported",
    "init": lambda: "init mine",
    "list": lambda: "list",
    "describe": lambda: "describe scatter",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small datasets, sources and jobs."""
    folder = tmp_path_factory.mktemp("place")
    job = SMALL_JOB | {"images": 4, "output": {"path": "x", "shard_size": 2}}
    files = {
        "job": job,
        "vae": VAE | {"output": {"path": "x"}},
        "detector": DETECTOR | {"output": {"path": "x"}},
    }
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(json.dumps(content))
    for name, seed in (("real", 3), ("synthetic", 4)):
        run(load_job(str(folder / "job.yaml"), [f"seed={seed}", f"output.path={folder / name}"]))
    shutil.copytree(folder / "real", folder / "damaged")
    write_coco(folder / "coco")
    shutil.copy(WAV, folder)
    return folder


def names() -> set[str]:
    """All commands that there are."""
    subparsers = next(a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    return set(subparsers.choices)


def test_every_command_is_here() -> None:
    assert set(COMMANDS) == names()


@pytest.mark.parametrize("option", ["-q", "-v", "--json"])
@pytest.mark.parametrize("name", COMMANDS)
def test_how_loud_a_command_is(
    name: str,
    option: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    argv = COMMANDS[name]().split()
    shutil.rmtree("jobs", ignore_errors=True)
    (place / "damaged/shards/000000.tar").write_bytes(b"cut")
    if name in ("run", "import"):  # the others take long, or find it done: -q comes first
        shutil.rmtree("out", ignore_errors=True)
    assert cli.main([*argv, option]) == 0
    said = capsys.readouterr()
    if option == "-q":
        assert (said.out, said.err) == ("", "")
    elif option == "--json":
        assert isinstance(json.loads(said.out), dict)
        assert said.out.count("\n") == 1
    else:
        assert said.out
    assert "Traceback" not in said.err


def test_a_job_that_is_run_to_be_evaluated_is_as_quiet(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert (
        cli.main(["evaluate", "job.yaml", "output.path=out/evaluated", "--limit", "1", "-q"]) == 0
    )
    assert capsys.readouterr() == ("", "")
