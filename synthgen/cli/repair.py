"""`synthgen repair`: make again what is bad in a dataset."""

import argparse

from synthgen.cli.command import EXIT_FAULT, SHOWN, Commands, Result, progress_bar


def add(commands: Commands) -> None:
    """Add `repair`."""
    sub = commands.add(
        "repair", repair_command, "make again what `check` finds bad, with the same bytes"
    )
    sub.add_argument("out", metavar="OUT", help="output folder, or URL")
    sub.add_argument(
        "--accept",
        action="store_true",
        help="take shards too that come out with other bytes than they had",
    )


def repair_command(args: argparse.Namespace) -> Result:
    """`--json`: {"ok"} and the fields of `synthgen.engine.repair.Repaired`."""
    from dataclasses import asdict

    from synthgen.engine.repair import repair
    from synthgen.report import write_report
    from synthgen.storage.location import open_store

    store = open_store(args.out)

    with progress_bar(args, "image") as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        done = repair(store, args.accept, report)
    ok = not done.faults and not done.left
    if ok and (done.changed or done.unknown):
        write_report(store, SHOWN)
    return (
        0 if ok else EXIT_FAULT,
        {"ok": ok, **asdict(done)},
        [*done.lines(), f"{args.out}: {'ok' if ok else 'not whole'}"],
    )
