"""`synthgen benchmark`: tell whether synthetic images help a detector."""

import argparse
from pathlib import Path

from synthgen.cli.command import EXIT_INTERRUPTED, Commands, Result, Shares, progress_bar


def add(commands: Commands) -> None:
    """Add `benchmark`."""
    sub = commands.add(
        "benchmark",
        benchmark_command,
        "train a detector on real, synthetic and mixed pictures: do these help?",
    )
    sub.add_argument(
        "--real",
        type=Path,
        required=True,
        help="dataset of real pictures (synthgen import makes one)",
    )
    sub.add_argument(
        "--synthetic", type=Path, required=True, help="output folder of `synthgen run`"
    )
    sub.add_argument(
        "--test",
        type=Path,
        help="dataset of other real pictures; without one a part of --real is held out",
    )
    sub.add_argument(
        "--hold-out",
        type=int,
        default=5,
        metavar="N",
        help="that part: every N-th picture (default 5)",
    )
    text = "shares of synthetic scenes when mixed (default 0.5)"
    sub.add_argument("--ratios", action=Shares, nargs="+", default=[0.5], help=text)
    sub.add_argument("--seeds", type=int, default=3, help="trainings of each (default 3)")
    sub.add_argument(
        "--detector",
        default="train-detector",
        help="training job of the detector (default: train-detector)",
    )
    sub.add_argument("--steps", type=int, help="steps of each training (default: the job's)")
    sub.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="folder for the trainings, results.json and benchmark.png",
    )
    sub.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="of the training job"
    )


def benchmark_command(args: argparse.Namespace) -> Result:
    """`--json`: what `synthgen.evaluation.benchmark.run.benchmark` returns."""
    from synthgen.evaluation.benchmark import Benchmark

    overrides = (*args.overrides, *([f"steps={args.steps}"] if args.steps is not None else []))
    spec = Benchmark(
        args.real,
        args.synthetic,
        args.output,
        args.test,
        args.hold_out,
        tuple(args.ratios),
        args.seeds,
        args.detector,
        overrides,
    )
    spec.check()
    runs = list(spec.runs())
    total = len(runs) * spec.training(runs[0]).steps
    from synthgen.evaluation.benchmark.run import benchmark
    from synthgen.evaluation.benchmark.summary import table

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
            [
                f"stopped; {len(data['runs'])} of {len(runs)} trainings are done. The same command goes on"
            ],
        )
    images = ", ".join(f"{count} {name}" for name, count in data["images"].items())
    tail = f"{spec.out}/results.json, benchmark.png: {data['steps']} steps each, {spec.seeds} seeds; pictures: {images}"
    return 0, data, [*table(data["rows"]), "", tail]
