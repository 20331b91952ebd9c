"""`synthgen fit`: learn the layouts of a dataset."""

import argparse
import json
from pathlib import Path

from synthgen.cli.command import Commands, Result


def add(commands: Commands) -> None:
    """Add `fit`."""
    sub = commands.add(
        "fit", fit_command, "learn what the layouts of a dataset are like, for the sampler `fit`"
    )
    sub.add_argument(
        "data", metavar="DATA", help="what `synthgen import` reads, or the output of `synthgen run`"
    )
    sub.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")


def fit_command(args: argparse.Namespace) -> Result:
    """`--json`: {"path", "pictures", "boxes", "categories"}."""
    from synthgen.config import ConfigError
    from synthgen.layouts.fit import learn
    from synthgen.storage.local import write_text

    try:
        model = learn(args.data)
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    write_text(args.output, json.dumps(model) + "\n")
    boxes = sum(sum(counts.values()) for counts in model["counts"])
    data = {
        "path": str(args.output),
        "pictures": model["pictures"],
        "boxes": boxes,
        "categories": list(model["boxes"]),
    }
    text = f"{args.output}: {model['pictures']} pictures, {boxes} boxes, {len(model['boxes'])} categories"
    return 0, data, [text, f"use it: synthgen preview JOB layout=fit layout.model={args.output}"]
