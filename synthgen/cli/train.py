"""`synthgen train`: train a checkpoint."""

import argparse
import os

from synthgen.cli.command import (
    EXIT_INTERRUPTED,
    Commands,
    Result,
    format_command,
    make_progress_bar,
)


def add(commands: Commands) -> None:
    """Add `train`."""
    commands.add_job(
        "train",
        train_command,
        "train a checkpoint, or resume its training",
        "steps=500 output.path=out/mine",
    )


def train_command(args: argparse.Namespace) -> Result:
    """Run the command.

    `--json`: {"output", "step", "loss", "seconds", "interrupted", "figures", "skipped"}.
    """
    from dataclasses import asdict

    from synthgen.config import load_training

    # If accelerate or torchrun start several processes, only the first one prints.
    is_first = int(os.environ.get("RANK", 0)) == 0
    if not is_first:
        args.quiet = True
        args.json = False
    spec = load_training(args.job, args.overrides)
    from synthgen.training.loop import train

    with make_progress_bar(args, "step", spec.steps) as bar:

        def report(step: int, loss: float) -> None:
            if not bar.n:
                bar.n = bar.initial = step - 1  # steps of an earlier run
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update(step - bar.n)

        result = train(spec, report)
    data = {"output": spec.output.path, **asdict(result)}
    if result.interrupted:
        command = format_command("train", args.job, *args.overrides)
        text = f"stopped after step {result.step} of {spec.steps}. To continue: {command}"
        return EXIT_INTERRUPTED, data, [text] if is_first else []
    text = f"{spec.output.path}/checkpoint: {result.step} steps, loss {result.loss:.4f}"
    for name, value in result.figures.items():
        text += f", {name} {value:g}"
    if result.skipped:
        text += (
            f"; {result.skipped} entries of the data were skipped, listed in "
            f"{spec.output.path}/skipped.jsonl"
        )
    return 0, data, [text] if is_first else []
