"""`synthgen report`: write an HTML page that shows a dataset."""

import argparse

from synthgen.cli.command import Commands, Result


def add(commands: Commands) -> None:
    """Add `report`."""
    sub = commands.add(
        "report", report_command, "write report.html, a page that shows the images of a dataset"
    )
    sub.add_argument("out", metavar="OUT", help="output folder or URL of the dataset")
    sub.add_argument(
        "--most",
        type=int,
        default=2000,
        help="largest number of images that the page shows (default 2000)",
    )


def report_command(args: argparse.Namespace) -> Result:
    """Run the command.

    `--json`: {"path", "images", "shown", "bytes"}.
    """
    from synthgen.config import ConfigError
    from synthgen.report import write_report
    from synthgen.storage.location import open_store

    if args.most < 1:
        raise ConfigError([f"command line: --most: {args.most} must be at least 1"])
    counts = write_report(open_store(args.out), args.most)
    path = f"{args.out.rstrip('/')}/report.html"
    text = f"{path}: {counts['shown']} of {counts['images']} images, {counts['bytes'] / 1e6:.1f} MB"
    return 0, {"path": path, **counts}, [text]
