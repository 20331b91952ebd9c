"""`synthgen train`: train a checkpoint."""

import argparse
import os

from synthgen.cli.command import EXIT_INTERRUPTED, Commands, Result, again, progress_bar


def add(commands: Commands) -> None:
    """Add `train`."""
    commands.add_job(
        "train",
        train_command,
        "train a checkpoint, or go on with it",
        "steps=500 output.path=out/mine",
    )


def train_command(args: argparse.Namespace) -> Result:
    """`--json`: {"output", "step", "loss", "seconds", "interrupted", "figures", "skipped"}."""
    from dataclasses import asdict

    from synthgen.config import load_training

    speaks = not int(
        os.environ.get("RANK", 0)
    )  # the first of several processes, as accelerate and torchrun start them
    args.quiet, args.json = args.quiet or not speaks, args.json and speaks
    spec = load_training(args.job, args.overrides)
    from synthgen.training.loop import train

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
    return (
        0,
        data,
        [f"{spec.output.path}/checkpoint: {result.step} steps, loss {result.loss:.4f}{figures}"]
        if speaks
        else [],
    )
