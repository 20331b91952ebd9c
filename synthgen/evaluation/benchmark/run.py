"""The run of a benchmark: training and evaluating all detectors that are not finished yet."""

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
from synthgen.evaluation.benchmark.summary import FIGURES, build_summary
from synthgen.evaluation.detection import DetectionFigures
from synthgen.evaluation.labelled_images import read_labelled_images
from synthgen.storage.local import hash_file, write_text
from synthgen.storage.location import open_store
from synthgen.storage.lock import Lock
from synthgen.storage.parquet import count_rows
from synthgen.training.dataset_scenes import is_held_out
from synthgen.training.loop import Report, train
from synthgen.verification.detector import Spec as DetectorSpec
from synthgen.verification.detector.verifier import load_detector

LEAST_SCORE = 0.01
"""Score from which a detection counts for the AP; lower ones hardly change it."""
Step = Callable[[str, int, float], None]


class ChangedBenchmarkError(InputError):
    """The output folder holds another benchmark; the message names the differences."""


def benchmark(spec: Benchmark, step: Step, line: Callable[[str], None]) -> dict[str, Any]:
    """Run a benchmark; trainings that are finished are not repeated.

    Args:
        step: called after each training step with the name of the run, the steps done in all
            runs, and the mean loss.
        line: called with a summary of each run that is done.

    Returns:
        The content of results.json: {"images": of each dataset, "steps", "rows": [see
        `build_summary`], "runs": [one per training]}. After Ctrl-C: {"interrupted": True, "runs"}.

    Raises:
        ConfigError: a dataset, a number or the job is wrong.
        ChangedBenchmarkError: the folder holds another benchmark.
        LockedError: another process works in the folder.
    """
    spec.check()
    runs = list(spec.runs())
    steps = spec.training(runs[0]).steps
    results: list[dict[str, Any]] = []
    with Lock(open_store(spec.out)):
        refuse_changed(spec)
        for k, run in enumerate(runs):
            result = run_one(spec, run, partial(report_step, step, run.name, k * steps))
            if result is None:
                return {"interrupted": True, "runs": results}
            results.append(result)
            step(run.name, (k + 1) * steps, result["loss"])
            figures = ", ".join(f"{name} {result[name]:.3f}" for name in FIGURES)
            line(f"{run.name}: {figures}")
        data: dict[str, Any] = {
            "images": count_images(spec),
            "steps": steps,
            "rows": build_summary(spec.rows(), results),
            "runs": results,
        }
        write_text(spec.out / "results.json", json.dumps(data, indent=1) + "\n")
        write_plot(spec.out / "benchmark.png", data["rows"])
    return data


def report_step(
    step: Step, name: str, previous_steps: int, done: int, loss: float, activity: str
) -> None:
    """Report a training step of one run as a step of all runs, in whatever activity."""
    step(name, previous_steps + done, loss)


def run_one(spec: Benchmark, run: Run, report: Report) -> dict[str, Any] | None:
    """Train and evaluate one detector, or read its result if it is finished.

    Returns:
        {"row", "seed", "loss", "ap", "ap50", "ap75"}, or None if the training was interrupted.
    """
    training = spec.training(run)
    folder = Path(training.output.path)
    path = folder / "result.json"
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text())
        return stored
    trained = train(training, report)
    if trained.interrupted:
        return None
    result = {
        "row": run.row.name,
        "seed": run.seed,
        "loss": trained.loss,
        **measure_precision(spec, folder / "checkpoint"),
    }
    write_text(path, json.dumps(result) + "\n")
    return result


def measure_precision(spec: Benchmark, checkpoint: Path) -> dict[str, float]:
    """Return COCO's AP, AP50 and AP75 of a detector on the real images that are held out."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    detect = load_detector(DetectorSpec(model=str(checkpoint)), device, LEAST_SCORE)
    info = read_info(open_store(spec.real))
    assert info is not None
    detection = DetectionFigures(info.category_ids)
    samples = read_labelled_images(open_store(spec.test or spec.real))
    for number, (_, image, layout) in enumerate(samples):
        if spec.test is None and not is_held_out(number, spec.hold_out):
            continue
        names = layout.categories
        known = layout.select([i for i, name in enumerate(names) if name in info.category_ids])
        (detections,) = detect([image], [known.categories])
        detection.add(known, detections.at_least(LEAST_SCORE))
    figures = detection.figures()
    return {name: figures[name] for name in FIGURES}


def count_images(spec: Benchmark) -> dict[str, int]:
    """Return how many images each dataset has, and how many are held out as "test"."""
    counts = {}
    for name, path in spec.datasets().items():
        counts[name] = count_rows(path / "manifest.parquet")
    if spec.test is None:
        held_out = sum(is_held_out(number, spec.hold_out) for number in range(counts["real"]))
        counts["test"] = held_out
        counts["real"] -= held_out
    return counts


def refuse_changed(spec: Benchmark) -> None:
    """Write benchmark.json, which says what is compared.

    Raises:
        ChangedBenchmarkError: the folder holds another benchmark.
    """
    path = spec.out / "benchmark.json"
    new = describe_inputs(spec)
    old = json.loads(path.read_text()) if path.exists() else new
    changed = [key for key in sorted({*new, *old}) if new.get(key) != old.get(key)]
    if changed:
        raise ChangedBenchmarkError(
            f"{spec.out} holds another benchmark: {', '.join(changed)} changed. Give another -o"
        )
    write_text(path, json.dumps(new, indent=1) + "\n")


def describe_inputs(spec: Benchmark) -> dict[str, Any]:
    """Return what all rows and seeds share: hashes of the datasets, and the training job."""
    inputs: dict[str, Any] = {}
    for name, path in spec.datasets().items():
        inputs[name] = hash_file(path / "index.json")
    inputs["hold_out"] = spec.hold_out if spec.test is None else None
    training = spec.training(next(spec.runs()))
    job = training.model_dump(mode="json", exclude={"output", "seed", "name"})
    for key, value in job.items():
        inputs[f"job.{key}"] = value
    return inputs
