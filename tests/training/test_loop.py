"""`synthgen train`: it learns, it resumes to the same losses, and its result can be used."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from synthgen import cli
from synthgen.config import ConfigError, load_training
from synthgen.training.loop import ChangedTrainingError, name_sheet, read_log, train

VAE: dict[str, Any] = {
    "version": 1,
    "name": "small",
    "task": "vae",
    "steps": 6,
    "batch_size": 2,
    "warmup": 2,
    "data": {"side": 96, "scenes": 4, "fresh": 2},
    "channels": [8, 16],
    "latent_channels": 2,
    "crop": 32,
    "perceptual": 0,
}


@pytest.fixture
def training_file(tmp_path: Path) -> Path:
    """A small training job as a file, with its output folder beside it."""
    path = tmp_path / "training.yaml"
    path.write_text(json.dumps({**VAE, "output": {"path": str(tmp_path / "out"), "every": 3}}))
    return path


def test_an_interrupted_run_resumes_to_the_same_losses_and_weights(
    training_file: Path, tmp_path: Path
) -> None:
    whole = load_training(str(training_file), ["ema=0.9", f"output.path={tmp_path / 'whole'}"])
    assert train(whole).step == 6
    # the same number of steps, because the learning rate falls towards the last one
    resumed = load_training(str(training_file), ["ema=0.9"])

    def interrupt_after_four(step: int, loss: float, activity: str) -> None:
        if step == 4:
            signal.raise_signal(signal.SIGINT)

    result = train(resumed, interrupt_after_four)
    assert (result.step, result.interrupted) == (4, True)
    assert not (tmp_path / "out/checkpoint").exists()
    assert train(resumed).step == 6
    assert read_log(tmp_path / "out/log.jsonl") == read_log(tmp_path / "whole/log.jsonl")
    weights = "checkpoint/vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_a_killed_run_resumes_from_its_last_state(training_file: Path, tmp_path: Path) -> None:
    """After a kill or an error, no further state is saved, and a line can be cut."""

    def fail_after_five(step: int, loss: float, activity: str) -> None:
        if step == 5:
            raise RuntimeError

    spec = load_training(str(training_file), ["steps=12", "output.every=3"])
    with pytest.raises(RuntimeError):
        train(spec, fail_after_five)
    log = tmp_path / "out/log.jsonl"
    assert [entry["step"] for entry in read_log(log)] == [1, 2, 3, 4, 5]
    log.write_text(log.read_text() + '{"step": 6')
    steps: list[int] = []
    assert train(spec, lambda step, loss, activity: steps.append(step)).step == 12
    assert sorted(set(steps)) == list(range(3, 13))
    assert [entry["step"] for entry in read_log(log)] == list(range(1, 13))


def test_a_report_tells_what_is_done(training_file: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, str]] = []
    sheets: list[bool] = []

    def report(step: int, loss: float, activity: str) -> None:
        assert (loss > 0) == (step > 0)
        calls.append((step, activity))
        sheets.append(name_sheet(tmp_path / "out", step).is_file())

    train(load_training(str(training_file), ["steps=3", "output.every=2"]), report)
    assert calls == [
        (0, "training"),
        (1, "training"),
        (2, "measuring"),
        (2, "training"),
        (3, "measuring"),
        (3, "training"),
    ]
    assert sheets == [False, False, False, True, False, True]


def test_the_bar_tells_what_is_done(
    training_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", str(training_file), "steps=4"]) == 0
    shown = capsys.readouterr().err
    assert "training:   0%" in shown
    assert "measuring:" in shown
    assert shown.count("first samples: ") == 1
    assert str(name_sheet(tmp_path / "out", 3)) in shown
    assert cli.main(["train", str(training_file), "steps=5", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_two_processes_resume_and_stop_after_the_same_step(
    training_file: Path, tmp_path: Path
) -> None:
    options = ["ema=0.9", "steps=2000", "output.every=2000"]

    def interrupt_after_one(step: int, loss: float, activity: str) -> None:
        if step == 1:
            signal.raise_signal(signal.SIGINT)

    train(load_training(str(training_file), options), interrupt_after_one)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "synthgen", "train", str(training_file), *options]
    pipes: dict[str, Any] = {
        "env": {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "text": True,
    }
    log = tmp_path / "out/log.jsonl"
    with subprocess.Popen(command, **pipes) as process:
        deadline = time.time() + 100
        while len(read_log(log)) < 3 and time.time() < deadline:
            time.sleep(0.05)
        process.terminate()
        # a process that hangs is killed after 30 s, and then the output is empty
        output, _ = process.communicate(timeout=100)
    steps = [entry["step"] for entry in read_log(log)]
    assert steps == list(range(1, len(steps) + 1))
    again = f"synthgen train {training_file} {' '.join(options)}"
    assert output == f"stopped after step {len(steps)} of 2000. To continue: {again}\n"


def test_a_run_writes_sheets_plots_and_figures(
    training_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", str(training_file), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["step"], data["interrupted"]) == (6, False)
    assert set(data["figures"]) == {"psnr"}
    out = tmp_path / "out"
    assert {path.name for path in (out / "samples").iterdir()} == {"0000003.png", "0000006.png"}
    assert Image.open(out / "loss.png").width > 400
    assert list((out / "tensorboard").rglob("events.*"))
    assert [figures["step"] for figures in read_log(out / "figures.jsonl")] == [3, 6]


def test_another_training_in_the_folder_is_refused(
    training_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(load_training(str(training_file)))
    with pytest.raises(ChangedTrainingError, match=r"holds another training: seed: was 0, is 1"):
        train(load_training(str(training_file), ["seed=1"]))
    assert train(load_training(str(training_file), ["steps=7"])).step == 7
    assert cli.main(["train", str(training_file), "crop=16"]) == 2
    assert "crop: was 32, is 16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("crop=33", "crop: 33 px must be a multiple of 2"),
        ("crop=128", "crop: 128 px is larger than data.side, 96 px"),
        (
            "task=vea",
            "task: 'vea' is not a task; did you mean 'vae'?; there are: annotation_mask, "
            "annotation_tokens, detector, dreambooth, grounded, text_to_image, vae",
        ),
        ("data.shards=nowhere", "data.shards: 'nowhere' holds no shards/*.tar"),
        ("data.pasted=nowhere", "data.pasted: 'nowhere' is not train or heldout"),
        ("init=nowhere", "init: model 'nowhere': no folder of that name"),
        ("stepz=3", "stepz: unknown key; did you mean 'steps'?"),
    ],
)
def test_errors_of_a_job_name_the_key(training_file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_training(str(training_file), [override])
    assert message in str(caught.value)
    assert not (training_file.parent / "out").exists()


def test_run_and_train_refuse_jobs_of_each_other(
    training_file: Path, job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(training_file)]) == 2
    assert f"this is a training job; use: synthgen train {training_file}" in capsys.readouterr().err
    assert cli.main(["train", str(job_file)]) == 2
    assert "it names no task" in capsys.readouterr().err


def test_the_learning_rate_rises_stays_and_falls(training_file: Path) -> None:
    options = ["steps=100", "warmup=10", "decay=0.3", "learning_rate=1.0"]
    spec = load_training(str(training_file), options)
    rates = [round(spec.learning_rate_at(step), 3) for step in (0, 9, 50, 70, 85, 99)]
    assert rates == [0.1, 1.0, 1.0, 1.0, 0.5, 0.033]
    constant = load_training(str(training_file), ["decay=0", "learning_rate=1.0"])
    assert constant.learning_rate_at(5) == 1.0
