"""The command line: parses, runs one command of `synthgen.commands`, prints what came of it."""

import argparse
import contextlib
import json
import sys

from synthgen import __version__
from synthgen.commands import EXIT_INTERRUPTED, EXIT_USAGE, Commands, catalogue, importing, judging, making, speaking, training
from synthgen.errors import InputError

GROUPS = (making, speaking, training, judging, importing, catalogue)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 faults or failure, 2 bad input, 130 interrupted, 143 terminated."""
    args = parse(argv)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints there what its workers do; stdout is ours
            status, data, lines = args.command(args)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except InputError as error:
        print(*(f"synthgen: {line}" for line in error.problems), sep="\n", file=sys.stderr)
        status, data, lines = EXIT_USAGE, {"error": error.problems}, []
    if args.json:
        print(json.dumps(data))
    elif lines:
        print(*lines, sep="\n")
    return int(status)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; `key=value` may stand before and after options, which argparse alone would not take."""
    args, rest = parser().parse_known_args(argv)
    if rest and (not hasattr(args, "overrides") or any(r.startswith("-") or "=" not in r for r in rest)):
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="synthgen", description="Labelled detection datasets that do not exist yet.")
    top.add_argument("--version", action="version", version=f"synthgen {__version__}")
    commands = Commands(top)
    for group in GROUPS:
        group.add(commands)
    return top
