"""`synthgen merge`: merge datasets into a new one."""

import argparse

from synthgen.cli.command import (
    EXIT_INTERRUPTED,
    REPORT_IMAGES,
    Commands,
    Result,
    describe_interruption,
    make_progress_bar,
    parse_ids,
)
from synthgen.errors import InputError


def add(commands: Commands) -> None:
    """Add `merge`."""
    sub = commands.add("merge", merge_command, "merge datasets into a new one")
    sub.add_argument(
        "sources",
        nargs="+",
        metavar="OUT",
        help="datasets (folders or URLs), in the order in which the new dataset has their images",
    )
    sub.add_argument(
        "--to", required=True, metavar="DIR", help="output folder or URL of the new dataset"
    )
    sub.add_argument(
        "--ids",
        action="append",
        metavar="NAME=ID",
        help="id of a category in the new dataset, such as fox=101; can be repeated",
    )
    sub.add_argument(
        "--shard-size",
        type=int,
        default=1000,
        metavar="N",
        help="number of images in each shard (default 1000)",
    )
    sub.add_argument(
        "--overwrite",
        action="store_true",
        help="first remove the dataset in the output folder, if there is one",
    )


def merge_command(args: argparse.Namespace) -> Result:
    """Run the command.

    `--json`: what `finalize` returns, and {"output", "made", "categories", "differences",
    "seconds", "interrupted"}.

    "categories": {name: id}; "differences": a line for each difference between the sources.
    """
    from synthgen.engine.merging import MergeSpec, merge
    from synthgen.report import write_report
    from synthgen.storage.location import open_store

    ids, problems = parse_ids(args)
    if problems:
        raise InputError("\n".join(problems))
    spec = MergeSpec(tuple(args.sources), args.to, ids, args.shard_size)
    with make_progress_bar(args, "image") as bar:

        def report(what: str, count: int) -> None:
            bar.update(count)

        result = merge(spec, args.overwrite, report)
    written = result.written
    info = result.info
    data = {
        "output": args.to,
        **written.counts,
        "made": written.made,
        "categories": info.category_ids,
        "differences": result.differences,
        "seconds": round(written.seconds, 3),
        "interrupted": written.interrupted,
    }
    if written.interrupted:
        return EXIT_INTERRUPTED, data, [describe_interruption(data["images"], info.asked)]
    if written.made:
        write_report(open_store(args.to), REPORT_IMAGES)
    text = (
        f"{args.to}: {data['images']} images, {data['boxes']} boxes, {data['shards']} shards "
        f"of {len(args.sources)} datasets"
    )
    return 0, data, [*result.differences, text]
