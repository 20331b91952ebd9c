"""`synthgen export`: write a dataset for other programs."""

import argparse
import logging
from pathlib import Path

from synthgen.cli.command import EXIT_INTERRUPTED, Commands, Result, progress_bar
from synthgen.errors import InputError
from synthgen.formats.base import writable_formats

log = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    """Add `export`."""
    sub = commands.add(
        "export",
        export_command,
        "write a dataset as COCO, for Ultralytics, for Hugging Face or as Pascal VOC",
    )
    sub.add_argument(
        "out", metavar="OUT", help="output folder or URL of `synthgen run` or `synthgen import`"
    )
    sub.add_argument("--to", required=True, choices=tuple(writable_formats()), help="the form")
    sub.add_argument("folder", metavar="DIR", type=Path, help="folder to write")
    sub.add_argument(
        "--val",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the pictures in the split val (default 0.1)",
    )
    sub.add_argument(
        "--label",
        action="append",
        metavar="NAME=NAME",
        help="puppy=dog: call it so in the export; repeatable",
    )
    sub.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="shards that are worked on at a time (default: cores, at most 8)",
    )


def export_command(args: argparse.Namespace) -> Result:
    """`--json`: {"output", "form", "images": {split: n}, "boxes": {split: n}, "labels": [], "shards", "written", "interrupted"}.

    "crowds": boxes that were left out, as the form has no crowds, "crowd_images" and "crowd_labels": those with crowds alone;
    "missing": images that the dataset's job asks for, and that are not made yet; "written": shards that were written now.
    """
    from dataclasses import asdict

    from synthgen.formats.export import ExportSpec, export_dataset

    pairs = dict(text.partition("=")[::2] for text in args.label or ())
    if not all(pairs.values()):
        raise InputError(
            f"command line: --label: {next(n for n in pairs if not pairs[n])!r}: give puppy=dog"
        )
    workers = {} if args.workers is None else {"workers": args.workers}
    spec = ExportSpec(args.out, args.to, args.folder, args.val, pairs, **workers)
    with progress_bar(args, "shard") as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = export_dataset(spec, report)
    data = {"output": str(args.folder), "form": args.to, **asdict(result)}
    if result.interrupted:
        return (
            EXIT_INTERRUPTED,
            data,
            [f"stopped; {sum(result.images.values())} images are done; the same command goes on"],
        )
    counts = ", ".join(
        f"{split} {n} images {result.boxes[split]} boxes" for split, n in result.images.items()
    )
    missing = (
        [f"{args.out} is not finished: {result.missing} images are missing"]
        if result.missing > 0
        else []
    )
    left_out = [f"{result.crowds} crowds left out"] if result.crowds else []
    if result.crowds and (result.crowd_images or result.crowd_labels):
        found = [f"{result.crowd_images} images"] if result.crowd_images else []
        found += [f"the classes {', '.join(result.crowd_labels)}"] if result.crowd_labels else []
        what = f"{args.to} has no crowds: {' and '.join(found)} have nothing but crowds, and so no label now"
        log.warning("%s; import with --crowds objects takes them as objects", what)
    return (
        0,
        data,
        [
            "; ".join([f"{args.folder}: {counts}, {len(result.labels)} classes", *left_out]),
            *missing,
        ],
    )
