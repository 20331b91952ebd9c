#!/usr/bin/env python3
"""Measure how much faster this tree is than an older commit, on this machine's CPU.

usage: benchmarks/speed.py [--old COMMIT] [--rows PREFIX …] [--repeats 3] [--images 8]
                           [--results FILE]

Each row is measured with the older commit and with this tree in turns, `--repeats` times, each time
in a new process; the figures are the medians in seconds. A row that is in the file of results is
not measured again.
rows:
  job, equal            `synthgen run 100dogs` with two workers, at the older commit's scale, steps
                        and windows
  job, equal, no AMX    the same with ONEDNN_MAX_CPU_ISA=AVX512_CORE
  job, shipped          the job as each of the two ships it
  METHOD                an image of 100 dogs with each method, without the start
  decode                latents of 1024 x 1024 px
  train, tiny           a training step of the embedded checkpoint's UNet
  train, 96 192 320     the same with a UNet of these channels, which has 37 million weights
Nothing else may run on the machine meanwhile.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "speed.json"
OLD = "6743d3b"
NO_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
EQUAL = ["pipeline.steps=9", "pipeline.context=0.13"]
# Keys that the older commit does not have.
EQUAL_NEW = ["pipeline.scale=1", "pipeline.outset=[0, 0, 0, 0]"]
METHODS = {
    "mixture": ["pipeline=mixture-tiny", *EQUAL],
    "layered": ["pipeline=layered-tiny", "pipeline.steps=12"],
    "grounded": ["pipeline=grounded-tiny", "pipeline.steps=9"],
    "regional_attention": ["pipeline=regional-attention-tiny", "pipeline.steps=9"],
    "annotation_mask": ["pipeline=annotation-mask-tiny"],
    "annotation_tokens": ["pipeline=annotation-tokens-tiny", "pipeline.steps=3"],
}
ROWS = (
    "job, equal",
    "job, equal, no AMX",
    "job, shipped",
    *METHODS,
    "decode",
    "train, tiny",
    "train, 96 192 320",
)

# These programs run with either version, and print seconds.
DECODE = """
import statistics, time, torch
from synthgen.pipelines.mixture import Spec
from synthgen.pipelines.mixture.pipeline import MixturePipeline
try:
    from synthgen.pipelines.base import Numerics
    from synthgen.pipelines.diffusion.pipeline import load_pipeline
    numerics = Numerics(dtype=Spec().choose_dtype("cpu"))
except ImportError:
    from synthgen.diffusion.pipeline import load_pipeline
    from synthgen.pipelines import Numerics
    numerics = Numerics()
torch.set_num_threads(1)
pipeline = load_pipeline(MixturePipeline, Spec(), None, numerics)
seconds = []
with torch.no_grad():
    for _ in range(4):
        start = time.perf_counter()
        pipeline.decode(torch.randn(1, 8, 256, 256))
        seconds.append(time.perf_counter() - start)
print(statistics.median(seconds[1:]))
"""
TRAIN = """
import statistics, sys, time, torch
try:
    from synthgen.config import load_training
    from synthgen.training.loop import Training
    step = Training.train_step
except ImportError:
    from synthgen.config import load_training
    from synthgen.train.loop import Training
    step = Training.step
torch.set_num_threads(1)
training = Training(load_training("jobs/train-tiny.yaml", sys.argv[1:]))
batches = training.trainee.batches(0, 0)
seconds = []
for number in range(12):
    batch = next(batches)
    start = time.perf_counter()
    step(training, batch, number)
    seconds.append(time.perf_counter() - start)
print(sum(seconds[2:]) / 10)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", default=OLD)
    parser.add_argument("--rows", nargs="+", default=[""], help="the first letters of rows")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=8, help="images of a job")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.results.is_file():
        rows = json.loads(args.results.read_text())
    measured = {row["row"] for row in rows}
    with TemporaryDirectory() as scratch:
        old = Path(scratch) / "old"
        archive = f"{scratch}/old.tar"
        subprocess.run(["git", "-C", ROOT, "archive", args.old, "-o", archive], check=True)
        shutil.unpack_archive(archive, old, filter="data")
        for name in ROWS:
            if name not in measured and name.startswith(tuple(args.rows)):
                rows.append(measure_row(name, old, Path(scratch), args))
                print(json.dumps(rows[-1]), flush=True)
                args.results.write_text(json.dumps(rows, indent=1) + "\n")


def measure_row(name: str, old: Path, scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return the median seconds of a row in both versions, and how many times faster this is."""
    seconds: dict[Path, list[float]] = {old: [], ROOT: []}
    for _ in range(args.repeats):
        for tree in (old, ROOT):
            with TemporaryDirectory(dir=scratch) as folder:
                seconds[tree].append(measure(name, tree, Path(folder), args.images))
    before = median(seconds[old])
    now = median(seconds[ROOT])
    return {
        "row": name,
        "old": args.old,
        "repeats": args.repeats,
        "before": round(before, 3),
        "now": round(now, 3),
        "times": round(before / now, 2),
    }


def measure(name: str, tree: Path, out: Path, images: int) -> float:
    """Return the seconds of one row with the version in a tree."""
    new_keys = EQUAL_NEW if tree == ROOT else []
    if name == "decode":
        return float(run_python(tree, ["-c", DECODE]))
    if name.startswith("train, "):
        changes = [f"vae={tree}/synthgen/{find_checkpoint(tree)}", f"output.path={out}"]
        changes += ["data.scenes=16", "data.fresh=0"]
        if name != "train, tiny":
            channels = name.removeprefix("train, ").replace(" ", ", ")
            changes.append(f"channels=[{channels}]")
        return float(run_python(tree, ["-c", TRAIN, *changes]))
    job = ["-m", "synthgen", "run", "100dogs", "-q", f"output.path={out}/data"]
    if name.startswith("job, "):
        changes = [f"images={images}", f"output.shard_size={images // 2}", "workers=2"]
        if name.startswith("job, equal"):
            changes += [*EQUAL, *new_keys]
        start = time.perf_counter()
        run_python(tree, [*job, *changes], NO_AMX if name.endswith("no AMX") else {})
        return time.perf_counter() - start
    changes = [*METHODS[name], "images=1", "workers=0"]
    if tree == ROOT:
        changes.append("pipeline.scale=1")
        if name == "mixture":
            changes.append("pipeline.outset=[0, 0, 0, 0]")
    run_python(tree, [*job, *changes])
    return float(json.loads((out / "data/shards/000000.json").read_text())["seconds"])


def find_checkpoint(tree: Path) -> str:
    """Return the folder of the embedded checkpoint in a tree's package."""
    return (
        "weights/synthgen-tiny" if (tree / "synthgen/weights").is_dir() else "models/synthgen-tiny"
    )


def run_python(tree: Path, arguments: list[str], variables: dict[str, str] | None = None) -> str:
    """Run Python with the package of a tree, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(tree), **(variables or {})}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


if __name__ == "__main__":
    main()
