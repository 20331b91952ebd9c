"""`synthgen check`: find faults of a dataset."""

import argparse

from synthgen.cli.command import EXIT_FAULT, Commands, Result, make_progress_bar, report_on_bar


def add(commands: Commands) -> None:
    """Add `check`."""
    sub = commands.add("check", check_command, "check a dataset, and list its faults")
    sub.add_argument("out", metavar="OUT", help="output folder or URL of the dataset")


def check_command(args: argparse.Namespace) -> Result:
    """Run the command.

    `--json`: {"ok", "faults", "images", "boxes", "shards"}.
    """
    from synthgen.dataset.check import check_dataset
    from synthgen.storage.location import open_store

    with make_progress_bar(args, "shard") as bar:
        faults, counts = check_dataset(open_store(args.out), report_on_bar(bar))
    data = {"ok": not faults, "faults": faults, **counts}
    summary = f"{counts['images']} images, {counts['boxes']} boxes, {counts['shards']} shards"
    if faults:
        return EXIT_FAULT, data, [*faults, f"{args.out}: {len(faults)} faults in {summary}"]
    return 0, data, [f"ok: {summary}"]
