"""`synthgen train`: train a checkpoint."""

import argparse
import os
import sys
from pathlib import Path

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
    from synthgen.training.loop import name_sheet, train

    with make_progress_bar(args, "step", spec.steps) as bar:
        has_sheet = False

        def report(step: int, loss: float, activity: str) -> None:
            nonlocal has_sheet
            if not bar.desc:  # the clock starts with the first step, of those that are left
                bar.reset()
                bar.n = bar.initial = step
            bar.set_description(activity, refresh=False)
            if loss:  # there is none before the first step
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update(step - bar.n)
            bar.refresh()
            sheet = name_sheet(Path(spec.output.path), step)
            if not has_sheet and activity == "training" and sheet.is_file() and not args.quiet:
                has_sheet = True
                bar.write(f"first samples: {sheet}", sys.stderr)

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
