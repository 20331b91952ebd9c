"""Train and evaluate what a benchmark compares, or what is missing of it."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from synthgen.dataset.info import read_info
from synthgen.errors import InputError
from synthgen.evaluation.benchmark import Benchmark, Run
from synthgen.evaluation.benchmark.plot import write_plot
from synthgen.evaluation.benchmark.summary import FIGURES, summary
from synthgen.evaluation.detection import DetectionFigures
from synthgen.evaluation.labelled_images import read_labelled_images
from synthgen.storage.local import digest, write_text
from synthgen.storage.location import open_store
from synthgen.storage.lock import Lock
from synthgen.storage.parquet import count_rows
from synthgen.training.dataset_scenes import is_held_out
from synthgen.training.loop import train
from synthgen.verification.detector import Spec as DetectorSpec
from synthgen.verification.detector.verifier import load_detector

LEAST_SCORE = 0.01  # of a detection that counts for the AP: what lies below is at the far end of the precision-recall curve
Step = Callable[[str, int, float], None]


class ChangedBenchmarkError(InputError):
    """The output folder holds another benchmark; the message names what differs."""


def benchmark(spec: Benchmark, step: Step, line: Callable[[str], None]) -> dict[str, Any]:
    """Run a benchmark; what is done already is not done again.

    Args:
        step: told of each training step: the run's name, the steps done of all runs, and the mean loss.
        line: told of each run that is done.

    Returns:
        what results.json holds: {"images": of each dataset, "steps", "rows": [see `summary`], "runs": [one a training]}; or
        {"interrupted": True, "runs"} after Ctrl-C.

    Raises:
        ConfigError: something is wrong with what was asked for.
        ChangedBenchmarkError: the folder holds another benchmark.
        LockedError: another process works in it.
    """
    spec.check()
    runs = list(spec.runs())
    steps = spec.training(runs[0]).steps
    done: list[dict[str, Any]] = []
    with Lock(open_store(spec.out)):
        refuse_changed(spec)
        for k, run in enumerate(runs):
            result = one_run(spec, run, partial(count_on, step, run.name, k * steps))
            if result is None:
                return {"interrupted": True, "runs": done}
            done.append(result)
            step(run.name, (k + 1) * steps, result["loss"])
            line(f"{run.name}: " + ", ".join(f"{name} {result[name]:.3f}" for name in FIGURES))
        results: dict[str, Any] = {
            "images": counts(spec),
            "steps": steps,
            "rows": summary(spec.rows(), done),
            "runs": done,
        }
        write_text(spec.out / "results.json", json.dumps(results, indent=1) + "\n")
        write_plot(spec.out / "benchmark.png", results["rows"])
    return results


def count_on(step: Step, name: str, before: int, done: int, loss: float) -> None:
    step(name, before + done, loss)


def one_run(
    spec: Benchmark, run: Run, report: Callable[[int, float], None]
) -> dict[str, Any] | None:
    """Train and evaluate one detector, or read what came of it before; None if it was interrupted."""
    training = spec.training(run)
    folder = Path(training.output.path)
    path = folder / "result.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    trained = train(training, report)
    if trained.interrupted:
        return None
    result = {
        "row": run.row.name,
        "seed": run.seed,
        "loss": trained.loss,
        **precision(spec, folder / "checkpoint"),
    }
    write_text(path, json.dumps(result) + "\n")
    return result


def precision(spec: Benchmark, checkpoint: Path) -> dict[str, float]:
    """COCO's AP, AP50 and AP75 of a detector on the real pictures that nothing was trained on."""
    detect = load_detector(
        DetectorSpec(model=str(checkpoint)),
        "cuda" if torch.cuda.is_available() else "cpu",
        LEAST_SCORE,
    )
    info = read_info(open_store(spec.real))
    assert info is not None
    seen = DetectionFigures(info.category_ids)
    for number, (_, image, layout) in enumerate(
        read_labelled_images(open_store(spec.test or spec.real))
    ):
        if spec.test is not None or is_held_out(number, spec.hold_out):
            known = layout.select(
                [i for i, name in enumerate(layout.categories) if name in info.category_ids]
            )
            seen.add(known, detect([image], [known.categories])[0].at_least(LEAST_SCORE))
    figures = seen.figures()
    return {name: figures[name] for name in FIGURES}


def counts(spec: Benchmark) -> dict[str, int]:
    """How many pictures are trained on, and how many are held out."""
    found = {name: count_rows(path / "manifest.parquet") for name, path in spec.datasets().items()}
    if spec.test is None:
        found["test"] = sum(is_held_out(number, spec.hold_out) for number in range(found["real"]))
        found["real"] -= found["test"]
    return found


def refuse_changed(spec: Benchmark) -> None:
    """Note what is compared, or raise ChangedBenchmarkError if the folder was begun with something else."""
    path = spec.out / "benchmark.json"
    here = identity(spec)
    there = json.loads(path.read_text()) if path.exists() else here
    if changed := [key for key in sorted({*here, *there}) if here.get(key) != there.get(key)]:
        raise ChangedBenchmarkError(
            f"{spec.out} holds another benchmark: {', '.join(changed)} changed. Give another -o"
        )
    write_text(path, json.dumps(here, indent=1) + "\n")


def identity(spec: Benchmark) -> dict[str, Any]:
    """What all rows and seeds have in common: the data, by hashes of their shards, and the training job."""
    job = spec.training(next(spec.runs())).model_dump(
        mode="json", exclude={"output", "seed", "name"}
    )
    data = {name: digest(path / "index.json") for name, path in spec.datasets().items()}
    return {
        **data,
        "hold_out": spec.hold_out if spec.test is None else None,
        **{f"job.{key}": job[key] for key in job},
    }
