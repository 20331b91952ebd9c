"""`synthgen finalize`: write the dataset files for the committed shards."""

import argparse

from synthgen.cli.command import Commands, Result, describe_coco_files


def add(commands: Commands) -> None:
    """Add `finalize`."""
    sub = commands.add(
        "finalize",
        finalize_command,
        "write the COCO, manifest and card files for the shards that are finished so far",
    )
    sub.add_argument("out", metavar="OUT", help="output folder or URL of the dataset")


def finalize_command(args: argparse.Namespace) -> Result:
    """Run the command.

    `--json`: {"output", "images", "boxes", "shards", "bytes", "verified", "complete",
    "coco_files"}.
    """
    from synthgen.config import ConfigError
    from synthgen.dataset.finalise import finalize
    from synthgen.dataset.info import read_info
    from synthgen.storage.location import open_store
    from synthgen.storage.lock import Lock

    store = open_store(args.out)
    info = read_info(store)
    if info is None:
        raise ConfigError([f"{args.out}: no dataset here (dataset.json is missing or damaged)"])
    with Lock(store):
        counts = finalize(store, info)
    status = "complete"
    if not counts["complete"]:
        status = f"{info.asked - counts['images']} images are still missing"
    text = (
        f"{args.out}: {counts['images']} images, {counts['boxes']} boxes; "
        f"{status}{describe_coco_files(counts)}"
    )
    return 0, {"output": args.out, **counts}, [text]
