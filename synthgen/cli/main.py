# PYTHON_ARGCOMPLETE_OK
"""The command line: parses, runs one command, prints what came of it."""

import argparse
import contextlib
import json
import logging
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator

from synthgen import __version__
from synthgen.cli import (
    benchmark,
    check,
    describe,
    evaluate,
    export,
    finalize,
    fit,
    import_,
    init,
    list_,
    merge,
    plan,
    preview,
    repair,
    report,
    run,
    train,
    transcribe,
)
from synthgen.cli.command import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_USAGE, Commands
from synthgen.errors import InputError, StoreFailedError, explain

COMMANDS = (  # in the order of `synthgen --help`
    run,
    preview,
    plan,
    transcribe,
    train,
    benchmark,
    check,
    finalize,
    report,
    evaluate,
    repair,
    merge,
    import_,
    fit,
    export,
    init,
    list_,
    describe,
)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 faults or failure, 2 bad input, 130 interrupted, 143 terminated."""
    args = parse(argv)
    try:
        with (
            told(args),
            contextlib.redirect_stdout(sys.stderr),
        ):  # Ray prints there what its workers do; stdout is ours
            status, data, lines = args.command(args)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (InputError, StoreFailedError, OSError, ModuleNotFoundError) as error:
        problems = explain(error)
        if args.verbose:
            traceback.print_exc()
        print(*(f"synthgen: {line}" for line in problems), sep="\n", file=sys.stderr)
        status, data, lines = (
            EXIT_USAGE if isinstance(error, InputError) else EXIT_FAULT,
            {"error": problems},
            [],
        )
    if args.json:
        print(json.dumps(data))
    elif lines and not (args.quiet and status == 0):
        print(*lines, sep="\n")
    return int(status)


class _Line(logging.Formatter):
    """A line with what the log of a dataset keeps of the step too."""

    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "facts", {}).items()
        return super().format(record) + "".join(
            f", {key} {value}" for key, value in facts if isinstance(value, int | float | str)
        )


@contextlib.contextmanager
def told(args: argparse.Namespace) -> Iterator[None]:
    """Send to stderr what synthgen logs: warnings; with -v each step; with -q errors alone, and no library's progress."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Line("synthgen: %(levelname)s: %(message)s"))
    handler.setLevel(
        logging.ERROR if args.quiet else logging.INFO if args.verbose else logging.WARNING
    )
    logger, before = logging.getLogger("synthgen"), logging.getLogger("synthgen").level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if args.verbose else logging.WARNING)
    if (
        not args.verbose
    ):  # read when they are first imported, here and in workers: what they say is not for our users
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    if args.quiet:
        os.environ["TQDM_DISABLE"] = (
            "1"  # read by tqdm when it is first imported, here and in workers
        )
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; `key=value` may stand before and after options, which argparse alone would not take."""
    top = parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what could come next
        import argcomplete

        argcomplete.autocomplete(top)
    if not (sys.argv[1:] if argv is None else argv):
        top.print_help(sys.stderr)
        raise SystemExit(EXIT_USAGE)
    args, rest = top.parse_known_args(argv)
    if rest and (
        not hasattr(args, "overrides") or any(r.startswith("-") or "=" not in r for r in rest)
    ):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    late = [*vars(args).pop("late_overrides", []), *rest]
    if late:
        args.overrides = in_order([*args.overrides, *late], sys.argv[1:] if argv is None else argv)
    return args


def in_order(overrides: list[str], argv: list[str]) -> list[str]:
    """Overrides in the order in which they stand on the command line: of two for one key the last counts."""
    left, ordered = Counter(overrides), []
    for text in argv:
        if left[text]:
            left[text] -= 1
            ordered.append(text)
    return ordered


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="synthgen", description="Labelled detection datasets that do not exist yet."
    )
    top.add_argument("--version", action="version", version=f"synthgen {__version__}")
    commands = Commands(top)
    for command in COMMANDS:
        command.add(commands)
    return top
