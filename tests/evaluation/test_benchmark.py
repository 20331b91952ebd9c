"""`synthgen benchmark`: the training data of each row, the summary of the runs, and resuming."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scipy import stats

from synthgen import cli
from synthgen.config import load_job, load_training
from synthgen.engine.generation import run
from synthgen.evaluation.benchmark import Benchmark, Row
from synthgen.evaluation.benchmark.run import benchmark
from synthgen.evaluation.benchmark.summary import build_summary, compute_interval, table
from synthgen.training.loop import read_log
from tests.conftest import SMALL_JOB

SMALL = {"channels": [8, 8, 16, 16], "crop": 64, "batch_size": 2, "steps": 2, "warmup": 1}
DETECTOR: dict[str, Any] = {
    "version": 1,
    "name": "x",
    "task": "detector",
    "data": {"side": 128, "scenes": 4},
    "output": {"path": "x"},
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real and a synthetic dataset, a dataset of cats, and the detector's job."""
    folder = tmp_path_factory.mktemp("datasets")
    job = folder / "job.yaml"
    job.write_text(json.dumps(SMALL_JOB | {"output": {"path": "x", "shard_size": 2}}))
    for name, seed, objects in (
        ("real", 3, "{dog: 4}"),
        ("synthetic", 4, "{dog: 4}"),
        ("cats", 5, "{cat: 2}"),
    ):
        output = f"output.path={folder / name}"
        run(load_job(str(job), [f"seed={seed}", f"layout.objects={objects}", output]))
    (folder / "detector.yaml").write_text(json.dumps({**DETECTOR, **SMALL}))
    return folder


@pytest.fixture
def files(datasets: Path, tmp_path: Path) -> dict[str, str]:
    files = {"out": str(tmp_path / "out")}
    for name in ("real", "synthetic", "cats", "detector.yaml"):
        files[name] = str(datasets / name)
    return files


def command(files: dict[str, str], *more: str) -> list[str]:
    paths = [
        "--real",
        files["real"],
        "--synthetic",
        files["synthetic"],
        "--detector",
        files["detector.yaml"],
        "-o",
        files["out"],
    ]
    return ["benchmark", *paths, "--hold-out", "3", "--json", *more]


def make_benchmark(files: dict[str, str], **more: Any) -> Benchmark:
    return Benchmark(
        Path(files["real"]),
        Path(files["synthetic"]),
        Path(files["out"]),
        job=files["detector.yaml"],
        **more,
    )


def test_an_interrupted_benchmark_is_resumed(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(name: str, done: int, loss: float) -> None:
        if done == 1:
            signal.raise_signal(signal.SIGINT)

    out = Path(files["out"])
    interrupted = benchmark(make_benchmark(files, hold_out=3, seeds=1), interrupt, print)
    assert interrupted == {"interrupted": True, "runs": []}
    log = read_log(out / "runs" / "real-seed0" / "log.jsonl")
    assert [entry["step"] for entry in log] == [1]
    assert cli.main(command(files, "--seeds", "1")) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["images"] == {"real": 4, "synthetic": 6, "test": 2}
    rows = [(row["name"], row["share"]) for row in results["rows"]]
    assert rows == [("real", 0), ("synthetic", 1), ("mixed 0.5", 0.5)]
    assert json.loads((out / "results.json").read_text()) == results
    assert Image.open(out / "benchmark.png").width > 400
    result = out / "runs" / "synthetic-seed0" / "result.json"
    marked = {**json.loads(result.read_text()), "ap": 0.875}
    result.write_text(json.dumps(marked))  # the result is read, and the training not repeated
    as_text = command(files, "--seeds", "1")
    as_text.remove("--json")
    assert cli.main(as_text) == 0
    assert "| synthetic | 100% | 0.875 |" in capsys.readouterr().out
    assert cli.main(command(files, "batch_size=1")) == 2
    assert "holds another benchmark: job.batch_size changed" in capsys.readouterr().err
    run_job = json.loads((out / "runs" / "mixed-0.5-seed0" / "job.json").read_text())
    assert run_job["data"]["mixed_with"] == files["synthetic"]
    assert run_job["data"]["hold_out"] == 3


def test_the_jobs_of_the_rows_differ_only_in_their_data(files: dict[str, str]) -> None:
    spec = make_benchmark(files, ratios=(0.25, 0.5), seeds=2)
    runs = list(spec.runs())
    assert [r.name for r in runs[:4]] == [
        "real-seed0",
        "synthetic-seed0",
        "mixed-0.25-seed0",
        "mixed-0.5-seed0",
    ]
    jobs = [spec.training(r).model_dump(exclude={"data", "seed", "name", "output"}) for r in runs]
    assert all(job == jobs[0] for job in jobs)
    assert jobs[0]["categories"] == ("dog",)
    data = [spec.training(r).data for r in runs[:4]]
    assert [(d.shards, d.mixed_with, d.hold_out) for d in data] == [
        (files["real"], None, 5),
        (files["synthetic"], None, None),
        (files["real"], files["synthetic"], 5),
        (files["real"], files["synthetic"], 5),
    ]
    assert [d.mixed_share for d in data] == [0, 1, 0.25, 0.5]
    with_test = make_benchmark(files, test=Path(files["cats"]))
    assert with_test.training(runs[0]).data.hold_out is None


def test_intervals_follow_students_t() -> None:
    values = [0.5, 0.6, 0.65]
    result = compute_interval(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (result["low"], result["high"]) == pytest.approx((low, high))
    assert result["mean"] == pytest.approx(0.58333333)
    assert compute_interval([0.5])["low"] is None


def test_ratios_compare_the_same_seeds() -> None:
    def make_runs(name: str, *aps: float) -> list[dict[str, Any]]:
        run = {"row": name, "ap50": 1.0, "ap75": 0.0}
        return [{**run, "seed": seed, "ap": ap} for seed, ap in enumerate(aps)]

    rows = [Row("real", 0), Row("synthetic", 1)]
    synthetic = make_runs("synthetic", 0.25, 0.4)
    results = build_summary(rows, [*make_runs("real", 0.5, 0.4), *synthetic])
    assert results[1]["ratio"]["values"] == [0.5, 1.0]
    assert table(results)[2].startswith("| real | 0% | 0.450 ± ")
    without_ratio = build_summary(rows, [*make_runs("real", 0.0, 0.4), *synthetic])
    assert without_ratio[1]["ratio"] is None
    assert table(without_ratio)[3].endswith("| - |")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--real", "nowhere"], "--real: 'nowhere' is not a dataset of synthgen"),
        (["--test", "REAL"], "--test: is trained on too"),
        (["--test", "CATS"], "--test: has none of the categories of --real (dog) but cat"),
        (["--ratios", "0.5", "1"], "--ratios: 1 is not between 0 and 1"),
        (["--seeds", "0"], "--seeds: 0 must be at least 1"),
        (["--detector", "train-vae"], "--detector: train-vae is a job of the task vae"),
        (["--steps", "0"], "steps: 0: input should be greater than or equal to 1"),
        (["cropp=3"], "cropp: unknown key; did you mean 'crop'?"),
    ],
)
def test_wrong_arguments_are_named(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    options = [files[part.lower()] if part.isupper() else part for part in more]
    assert cli.main(command(files, *options)) == 2
    assert message in capsys.readouterr().err
    assert not Path(files["out"]).exists()


def test_the_shipped_job_is_the_default(files: dict[str, str]) -> None:
    assert load_training("train-detector").task == "detector"
    spec = Benchmark(Path(files["real"]), Path(files["synthetic"]), Path(files["out"]))
    assert spec.training(next(spec.runs())).steps == load_training("train-detector").steps
