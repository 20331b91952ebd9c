"""`synthgen fit`: fit a model of layouts to a dataset."""

import argparse
import json
from pathlib import Path

from synthgen.cli.command import Commands, Result


def add(commands: Commands) -> None:
    """Add `fit`."""
    sub = commands.add(
        "fit", fit_command, "fit a model to the layouts of a dataset, for the sampler `fit`"
    )
    sub.add_argument(
        "data",
        metavar="DATA",
        help="anything that `synthgen import` reads, or the output folder of `synthgen run`",
    )
    sub.add_argument(
        "-o", "--output", type=Path, required=True, help="JSON file to write the model to"
    )


def fit_command(args: argparse.Namespace) -> Result:
    """Run the command.

    `--json`: `{"path", "pictures", "boxes", "categories"}`.
    """
    from synthgen.config import ConfigError
    from synthgen.layouts.fit import fit_model
    from synthgen.storage.local import write_text

    try:
        model = fit_model(args.data)
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    write_text(args.output, json.dumps(model) + "\n")
    images = model["pictures"]
    boxes = sum(sum(counts.values()) for counts in model["counts"])
    categories = list(model["boxes"])
    data = {
        "path": str(args.output),
        "pictures": images,
        "boxes": boxes,
        "categories": categories,
    }
    lines = [
        f"{args.output}: {images} images, {boxes} boxes, {len(categories)} categories",
        f"use it: synthgen preview JOB layout=fit layout.model={args.output}",
    ]
    return 0, data, lines
