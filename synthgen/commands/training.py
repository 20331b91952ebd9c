"""Commands that train."""

import argparse
import os
from pathlib import Path

from synthgen.commands import EXIT_INTERRUPTED, Commands, Result, Shares, again, progress_bar


def add(commands: Commands) -> None:
    """Add `train` and `benchmark`."""
    commands.add_job("train", train_command, "train a checkpoint, or go on with it", "steps=500 output.path=out/mine")
    sub = commands.add("benchmark", benchmark_command, "train a detector on real, synthetic and mixed pictures: do these help?")
    sub.add_argument("--real", type=Path, required=True, help="dataset of real pictures (synthgen import makes one)")
    sub.add_argument("--synthetic", type=Path, required=True, help="output folder of `synthgen run`")
    sub.add_argument("--test", type=Path, help="dataset of other real pictures; without one a part of --real is held out")
    sub.add_argument("--hold-out", type=int, default=5, metavar="N", help="that part: every N-th picture (default 5)")
    text = "shares of synthetic scenes when mixed (default 0.5)"
    sub.add_argument("--ratios", action=Shares, nargs="+", default=[0.5], help=text)
    sub.add_argument("--seeds", type=int, default=3, help="trainings of each (default 3)")
    sub.add_argument("--detector", default="train-detector", help="training job of the detector (default: train-detector)")
    sub.add_argument("--steps", type=int, help="steps of each training (default: the job's)")
    sub.add_argument("-o", "--output", type=Path, required=True, help="folder for the trainings, results.json and benchmark.png")
    sub.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="of the training job")


def train_command(args: argparse.Namespace) -> Result:
    """`--json`: {"output", "step", "loss", "seconds", "interrupted", "figures", "skipped"}."""
    from dataclasses import asdict

    from synthgen.config import load_training

    speaks = not int(os.environ.get("RANK", 0))  # the first of several processes, as accelerate and torchrun start them
    args.quiet, args.json = args.quiet or not speaks, args.json and speaks
    spec = load_training(args.job, args.overrides)
    from synthgen.train.loop import train

    with progress_bar(args, "step", spec.steps) as bar:

        def report(step: int, loss: float) -> None:
            if not bar.n:
                bar.n = bar.initial = step - 1  # what an earlier run did
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update(step - bar.n)

        result = train(spec, report)
    data = {"output": spec.output.path, **asdict(result)}
    figures = "".join(f", {name} {value:g}" for name, value in result.figures.items())
    if result.skipped:
        figures += f"; {result.skipped} entries of the data skipped, listed in {spec.output.path}/skipped.jsonl"
    if result.interrupted:
        text = f"stopped after step {result.step} of {spec.steps}. To go on: {again('train', args.job, *args.overrides)}"
        return EXIT_INTERRUPTED, data, [text] if speaks else []
    return 0, data, [f"{spec.output.path}/checkpoint: {result.step} steps, loss {result.loss:.4f}{figures}"] if speaks else []


def benchmark_command(args: argparse.Namespace) -> Result:
    """`--json`: what `synthgen.benchmark.run.benchmark` returns."""
    from synthgen.benchmark import Benchmark

    overrides = (*args.overrides, *([f"steps={args.steps}"] if args.steps is not None else []))
    spec = Benchmark(
        args.real, args.synthetic, args.output, args.test, args.hold_out, tuple(args.ratios), args.seeds, args.detector, overrides
    )
    spec.check()
    runs = list(spec.runs())
    total = len(runs) * spec.training(runs[0]).steps
    from synthgen.benchmark.run import benchmark
    from synthgen.benchmark.summary import table

    with progress_bar(args, "step", total) as bar:

        def step(name: str, done: int, loss: float) -> None:
            bar.set_description(name, refresh=False)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update(done - bar.n)

        data = benchmark(spec, step, (lambda text: None) if args.quiet else bar.write)
    if data.get("interrupted"):
        return (
            EXIT_INTERRUPTED,
            data,
            [f"stopped; {len(data['runs'])} of {len(runs)} trainings are done. The same command goes on"],
        )
    images = ", ".join(f"{count} {name}" for name, count in data["images"].items())
    tail = f"{spec.out}/results.json, benchmark.png: {data['steps']} steps each, {spec.seeds} seeds; pictures: {images}"
    return 0, data, [*table(data["rows"]), "", tail]
