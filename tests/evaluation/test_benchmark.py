"""`synthgen benchmark`: what each row trains on, what the runs say together, and that it goes on where it stopped."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scipy import stats

from synthgen import cli
from synthgen.config import load_job, load_training
from synthgen.engine.driver import run
from synthgen.evaluation.benchmark import Benchmark, Row
from synthgen.evaluation.benchmark.run import benchmark
from synthgen.evaluation.benchmark.summary import interval, summary, table
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
    """A folder with a real and a synthetic dataset, one of cats, and the detector's job."""
    folder = tmp_path_factory.mktemp("datasets")
    (folder / "job.yaml").write_text(
        json.dumps(SMALL_JOB | {"output": {"path": "x", "shard_size": 2}})
    )
    for name, seed, objects in (
        ("real", 3, "{dog: 4}"),
        ("synthetic", 4, "{dog: 4}"),
        ("cats", 5, "{cat: 2}"),
    ):
        run(
            load_job(
                str(folder / "job.yaml"),
                [f"seed={seed}", f"layout.objects={objects}", f"output.path={folder / name}"],
            )
        )
    (folder / "detector.yaml").write_text(json.dumps({**DETECTOR, **SMALL}))
    return folder


@pytest.fixture
def files(datasets: Path, tmp_path: Path) -> dict[str, str]:
    names = ("real", "synthetic", "cats", "detector.yaml")
    return {**{name: str(datasets / name) for name in names}, "out": str(tmp_path / "out")}


def command(files: dict[str, str], *more: str) -> list[str]:
    where = [
        "--real",
        files["real"],
        "--synthetic",
        files["synthetic"],
        "--detector",
        files["detector.yaml"],
        "-o",
        files["out"],
    ]
    return ["benchmark", *where, "--hold-out", "3", "--json", *more]


def spec_of(files: dict[str, str], **more: Any) -> Benchmark:
    real, synthetic, out = (Path(files[name]) for name in ("real", "synthetic", "out"))
    return Benchmark(real, synthetic, out, job=files["detector.yaml"], **more)


def test_it_compares_and_goes_on(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    def stop_at_once(name: str, done: int, loss: float) -> None:
        signal.raise_signal(signal.SIGINT)

    assert benchmark(spec_of(files, hold_out=3, seeds=1), stop_at_once, print) == {
        "interrupted": True,
        "runs": [],
    }
    assert [
        e["step"] for e in read_log(Path(files["out"]) / "runs" / "real-seed0" / "log.jsonl")
    ] == [1]
    assert cli.main(command(files, "--seeds", "1")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == {"real": 4, "synthetic": 6, "test": 2}
    assert [(row["name"], row["share"]) for row in told["rows"]] == [
        ("real", 0),
        ("synthetic", 1),
        ("mixed 0.5", 0.5),
    ]
    out = Path(files["out"])
    assert json.loads((out / "results.json").read_text()) == told
    assert Image.open(out / "benchmark.png").width > 400
    result = out / "runs" / "synthetic-seed0" / "result.json"
    marked = {**json.loads(result.read_text()), "ap": 0.875}
    result.write_text(json.dumps(marked))  # what is done is read, not done again
    assert cli.main([a for a in command(files, "--seeds", "1") if a != "--json"]) == 0
    text = capsys.readouterr()
    assert "| synthetic | 100% | 0.875 |" in text.out
    assert cli.main(command(files, "batch_size=1")) == 2
    assert "holds another benchmark: job.batch_size changed" in capsys.readouterr().err
    run_job = json.loads((out / "runs" / "mixed-0.5-seed0" / "job.json").read_text())
    assert run_job["data"]["mixed_with"] == files["synthetic"]
    assert run_job["data"]["hold_out"] == 3


def test_all_rows_have_one_job_but_for_their_data(files: dict[str, str]) -> None:
    spec = spec_of(files, ratios=(0.25, 0.5), seeds=2)
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
    with_test = spec_of(files, test=Path(files["cats"]))
    assert with_test.training(runs[0]).data.hold_out is None


def test_intervals_are_students() -> None:
    values = [0.5, 0.6, 0.65]
    told = interval(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (told["low"], told["high"]) == pytest.approx((low, high))
    assert told["mean"] == pytest.approx(0.58333333)
    assert interval([0.5])["low"] is None


def test_ratios_are_of_equal_seeds() -> None:
    def runs(name: str, *aps: float) -> list[dict[str, Any]]:
        return [
            {"row": name, "seed": k, "ap": ap, "ap50": 1.0, "ap75": 0.0} for k, ap in enumerate(aps)
        ]

    rows = [Row("real", 0), Row("synthetic", 1)]
    told = summary(rows, [*runs("real", 0.5, 0.4), *runs("synthetic", 0.25, 0.4)])
    assert told[1]["ratio"]["values"] == [0.5, 1.0]
    assert table(told)[2].startswith("| real | 0% | 0.450 ± ")
    nothing = summary(rows, [*runs("real", 0.0, 0.4), *runs("synthetic", 0.25, 0.4)])
    assert nothing[1]["ratio"] is None
    assert table(nothing)[3].endswith("| - |")


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
def test_mistakes_are_named(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert (
        cli.main(
            command(files, *(files[part.lower()] if part.isupper() else part for part in more))
        )
        == 2
    )
    assert message in capsys.readouterr().err
    assert not Path(files["out"]).exists()


def test_the_shipped_job_can_be_compared(files: dict[str, str]) -> None:
    assert load_training("train-detector").task == "detector"
    spec = Benchmark(Path(files["real"]), Path(files["synthetic"]), Path(files["out"]))
    assert spec.training(next(spec.runs())).steps == load_training("train-detector").steps
