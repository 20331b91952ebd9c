"""Every command respects -q, -v and --json."""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthgen import cli
from synthgen.config import load_job
from synthgen.engine.generation import run
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
BENCHMARK = (
    "benchmark --real real --synthetic synthetic --detector detector.yaml --seeds 1 --hold-out 3 "
    "-o out/benchmark"
)

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
    """Return a folder with small datasets, sources and jobs."""
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


def test_every_command_is_tested_here() -> None:
    for action in cli.parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert set(COMMANDS) == set(action.choices)
            return
    pytest.fail("the parser has no commands")


@pytest.mark.parametrize("option", ["-q", "-v", "--json"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_respects_the_options_of_its_output(
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
    # With the other commands the first option, -q, does the work, and the others find it done.
    if name in ("run", "import"):
        shutil.rmtree("out", ignore_errors=True)
    assert cli.main([*argv, option]) == 0
    printed = capsys.readouterr()
    if option == "-q":
        assert (printed.out, printed.err) == ("", "")
    elif option == "--json":
        assert isinstance(json.loads(printed.out), dict)
        assert printed.out.count("\n") == 1
    else:
        assert printed.out
    assert "Traceback" not in printed.err


def test_a_job_that_evaluate_runs_is_quiet_too(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    argv = ["evaluate", "job.yaml", "output.path=out/evaluated", "--limit", "1", "-q"]
    assert cli.main(argv) == 0
    assert capsys.readouterr() == ("", "")
