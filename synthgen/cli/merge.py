"""`synthgen merge`: join datasets into one."""

import argparse

from synthgen.cli.command import EXIT_INTERRUPTED, SHOWN, Commands, Result, given_ids, progress_bar
from synthgen.errors import InputError


def add(commands: Commands) -> None:
    """Add `merge`."""
    sub = commands.add("merge", merge_command, "join datasets into a new one")
    sub.add_argument(
        "sources",
        nargs="+",
        metavar="OUT",
        help="datasets (folders or URLs), in the order of their samples",
    )
    sub.add_argument(
        "--to", required=True, metavar="DIR", help="output folder of the new dataset, or URL"
    )
    sub.add_argument(
        "--ids", action="append", metavar="NAME=ID", help="id of a category; repeatable"
    )
    sub.add_argument(
        "--shard-size", type=int, default=1000, metavar="N", help="images a shard (default 1000)"
    )
    sub.add_argument(
        "--overwrite",
        action="store_true",
        help="remove the dataset that is in the output folder first",
    )


def merge_command(args: argparse.Namespace) -> Result:
    """`--json`: what `finalize` gives, and {"output", "made", "categories", "differences", "seconds", "interrupted"}.

    "categories": {name: id}; "differences": what the sources differ in, a line each.
    """
    from synthgen.engine.merging import MergeSpec, merge
    from synthgen.report import write_report
    from synthgen.storage.location import open_store

    ids, problems = given_ids(args)
    if problems:
        raise InputError("\n".join(problems))
    spec = MergeSpec(tuple(args.sources), args.to, ids, args.shard_size)
    with progress_bar(args, "image") as bar:
        result = merge(spec, args.overwrite, lambda what, count: bar.update(count))
    written, info = result.written, result.info
    data = {
        "output": args.to,
        **written.counts,
        "made": written.made,
        "categories": info.category_ids,
    }
    data |= {
        "differences": result.differences,
        "seconds": round(written.seconds, 3),
        "interrupted": written.interrupted,
    }
    if written.interrupted:
        return (
            EXIT_INTERRUPTED,
            data,
            [
                f"stopped; {data['images']} of {info.asked} images are done; the same command goes on"
            ],
        )
    if written.made:
        write_report(open_store(args.to), SHOWN)
    text = f"{args.to}: {data['images']} images, {data['boxes']} boxes, {data['shards']} shards of {len(args.sources)} datasets"
    return 0, data, [*result.differences, text]
