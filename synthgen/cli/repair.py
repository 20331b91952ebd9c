"""`synthgen repair`: generate the faulty parts of a dataset again."""

import argparse

from synthgen.cli.command import (
    EXIT_FAULT,
    REPORT_IMAGES,
    Commands,
    Result,
    make_progress_bar,
    report_on_bar,
)


def add(commands: Commands) -> None:
    """Add `repair`."""
    sub = commands.add(
        "repair",
        repair_command,
        "generate shards again that `synthgen check` finds faulty, with the same bytes",
    )
    sub.add_argument("out", metavar="OUT", help="output folder or URL of the dataset")
    sub.add_argument(
        "--accept",
        action="store_true",
        help="also accept shards whose new bytes differ from the original ones",
    )


def repair_command(args: argparse.Namespace) -> Result:
    """Run the command.

    `--json`: {"ok"} and the fields of `synthgen.engine.repair.RepairResult`.
    """
    from dataclasses import asdict

    from synthgen.engine.repair import repair
    from synthgen.report import write_report
    from synthgen.storage.location import open_store

    store = open_store(args.out)

    with make_progress_bar(args, "image") as bar:
        result = repair(store, args.accept, report_on_bar(bar))
    ok = not result.faults and not result.left
    if ok and (result.changed or result.unknown):
        write_report(store, REPORT_IMAGES)
    status = "ok" if ok else "still has faults"
    lines = [*result.lines(), f"{args.out}: {status}"]
    return 0 if ok else EXIT_FAULT, {"ok": ok, **asdict(result)}, lines
