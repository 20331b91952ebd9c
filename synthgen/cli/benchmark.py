"""`synthgen benchmark`: measure whether synthetic images help a detector."""

import argparse
from pathlib import Path

from synthgen.cli.command import (
    EXIT_INTERRUPTED,
    Commands,
    NumbersAction,
    Result,
    make_progress_bar,
)


def add(commands: Commands) -> None:
    """Add `benchmark`."""
    sub = commands.add(
        "benchmark",
        benchmark_command,
        "train a detector on real, synthetic and mixed images, and compare the results",
    )
    sub.add_argument(
        "--real",
        type=Path,
        required=True,
        help="dataset of real images (create one with `synthgen import`)",
    )
    sub.add_argument(
        "--synthetic", type=Path, required=True, help="output folder of `synthgen run`"
    )
    sub.add_argument(
        "--test",
        type=Path,
        help="dataset of other real images to test on (default: images held out from --real)",
    )
    sub.add_argument(
        "--hold-out",
        type=int,
        default=5,
        metavar="N",
        help="without --test, hold out every N-th image of --real (default 5)",
    )
    sub.add_argument(
        "--ratios",
        action=NumbersAction,
        nargs="+",
        default=[0.5],
        help="shares of synthetic images in mixed trainings (default 0.5)",
    )
    sub.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="number of trainings, with a seed each, on each mixture of data (default 3)",
    )
    sub.add_argument(
        "--detector",
        default="train-detector",
        help="training job of the detector (default: train-detector)",
    )
    sub.add_argument(
        "--steps", type=int, help="steps of each training (default: as in the training job)"
    )
    sub.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="folder for the trainings, results.json and benchmark.png",
    )
    sub.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="new values for keys of the training job",
    )


def benchmark_command(args: argparse.Namespace) -> Result:
    """Run the command.

    `--json`: what `synthgen.evaluation.benchmark.run.benchmark` returns.
    """
    from synthgen.evaluation.benchmark import Benchmark

    overrides = list(args.overrides)
    if args.steps is not None:
        overrides.append(f"steps={args.steps}")
    spec = Benchmark(
        args.real,
        args.synthetic,
        args.output,
        args.test,
        args.hold_out,
        tuple(args.ratios),
        args.seeds,
        args.detector,
        tuple(overrides),
    )
    spec.check()
    runs = list(spec.runs())
    total = len(runs) * spec.training(runs[0]).steps
    from synthgen.evaluation.benchmark.run import benchmark
    from synthgen.evaluation.benchmark.summary import table

    with make_progress_bar(args, "step", total) as bar:

        def report(name: str, done: int, loss: float) -> None:
            bar.set_description(name, refresh=False)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update(done - bar.n)

        def write(text: str) -> None:
            if not args.quiet:
                bar.write(text)

        data = benchmark(spec, report, write)
    if data.get("interrupted"):
        text = (
            f"stopped; {len(data['runs'])} of {len(runs)} trainings are done. "
            "Run the same command again to continue"
        )
        return EXIT_INTERRUPTED, data, [text]
    images = ", ".join(f"{count} {name}" for name, count in data["images"].items())
    summary = (
        f"{spec.out}/results.json, benchmark.png: {data['steps']} steps each, "
        f"{spec.seeds} seeds; images: {images}"
    )
    return 0, data, [*table(data["rows"]), "", summary]
