"""`synthgen export`: write a dataset in the format of another program."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from synthgen.cli.command import (
    EXIT_INTERRUPTED,
    Commands,
    Result,
    make_progress_bar,
    report_on_bar,
)
from synthgen.errors import InputError
from synthgen.formats.base import list_writable_formats

if TYPE_CHECKING:
    from synthgen.formats.export import ExportResult

log = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    """Add `export`."""
    sub = commands.add(
        "export",
        export_command,
        "export a dataset for other programs: COCO, Ultralytics, Hugging Face, Pascal VOC",
    )
    sub.add_argument(
        "out", metavar="OUT", help="output folder or URL of `synthgen run` or `synthgen import`"
    )
    sub.add_argument(
        "--to", required=True, choices=tuple(list_writable_formats()), help="format of the export"
    )
    sub.add_argument("folder", metavar="DIR", type=Path, help="folder to write")
    sub.add_argument(
        "--val",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the images in the validation split `val` (default 0.1)",
    )
    sub.add_argument(
        "--label",
        action="append",
        metavar="NAME=NAME",
        help="rename a category in the export, such as puppy=dog; can be repeated",
    )
    sub.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of shards that are converted in parallel (default: CPU cores, at most 8)",
    )


def export_command(args: argparse.Namespace) -> Result:
    """Run the command.

    `--json`: {"output", "form", "images": {split: n}, "boxes": {split: n}, "labels": [], "shards",
    "written", "interrupted", "crowds", "crowd_images", "crowd_labels", "missing"}.

    "written": shards that this command wrote; "crowds": boxes that were left out because the format
    has no crowds; "crowd_images" and "crowd_labels": images and labels that have only crowds;
    "missing": images of the dataset's job that have not been generated yet.
    """
    from dataclasses import asdict

    from synthgen.formats.export import ExportSpec, export_dataset

    labels = {}
    for text in args.label or ():
        name, _, label = text.partition("=")
        labels[name] = label
    for name, label in labels.items():
        if not label:
            raise InputError(f"command line: --label: {name!r}: give puppy=dog")
    workers = {} if args.workers is None else {"workers": args.workers}
    spec = ExportSpec(args.out, args.to, args.folder, args.val, labels, **workers)
    with make_progress_bar(args, "shard") as bar:
        result = export_dataset(spec, report_on_bar(bar))
    data = {"output": str(args.folder), "form": args.to, **asdict(result)}
    if result.interrupted:
        done = sum(result.images.values())
        text = f"stopped; {done} images are done. Run the same command again to continue"
        return EXIT_INTERRUPTED, data, [text]
    if result.crowds and (result.crowd_images or result.crowd_labels):
        warn_of_crowds(args.to, result)
    counts = []
    for split, images in result.images.items():
        counts.append(f"{split} {images} images {result.boxes[split]} boxes")
    summary = f"{args.folder}: {', '.join(counts)}, {len(result.labels)} classes"
    if result.crowds:
        summary += f"; {result.crowds} crowds left out"
    lines = [summary]
    if result.missing > 0:
        lines.append(f"{args.out} is not complete: {result.missing} images are missing")
    return 0, data, lines


def warn_of_crowds(form: str, result: "ExportResult") -> None:
    """Warn of images and classes without a label in the export, because they have only crowds."""
    affected = []
    if result.crowd_images:
        affected.append(f"{result.crowd_images} images")
    if result.crowd_labels:
        affected.append(f"the classes {', '.join(result.crowd_labels)}")
    log.warning(
        "%s has no crowds: %s have nothing but crowds, and so no label in this export; "
        "to keep crowds as objects, import with --crowds objects",
        form,
        " and ".join(affected),
    )
