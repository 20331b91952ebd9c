# PYTHON_ARGCOMPLETE_OK
"""The command line: parse the arguments, run a command, and print its result."""

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
from synthgen.cli.command import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_USAGE, Commands, Result
from synthgen.errors import InputError, StoreFailedError, explain

COMMANDS = (
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
"""The commands in the order of `synthgen --help`."""


def main(argv: list[str] | None = None) -> int:
    """Run one command, and return its exit status.

    The status is 0, 1 for faults or a failure, 2 for bad input, 130 if interrupted with Ctrl-C, or
    143 if terminated with SIGTERM.

    Args:
        argv: the arguments; default: those of the process.
    """
    args = parse(argv)
    try:
        status, data, lines = _run_command(args)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if args.json:
        print(json.dumps(data))
    elif lines and not (args.quiet and status == 0):
        print(*lines, sep="\n")
    return int(status)


def _run_command(args: argparse.Namespace) -> Result:
    """Run the command of the arguments; errors that a user can act on are printed on stderr."""
    try:
        # Only the result is printed on stdout. Ray prints the output of its workers there.
        with _log_to_stderr(args), contextlib.redirect_stdout(sys.stderr):
            result: Result = args.command(args)
            return result
    except (InputError, StoreFailedError, OSError, ModuleNotFoundError) as error:
        problems = explain(error)
        if args.verbose:
            traceback.print_exc()
        for problem in problems:
            print(f"synthgen: {problem}", file=sys.stderr)
        status = EXIT_USAGE if isinstance(error, InputError) else EXIT_FAULT
        return status, {"error": problems}, []


class _Formatter(logging.Formatter):
    """A formatter that appends the facts that the log of a dataset records for a step."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        for key, value in getattr(record, "facts", {}).items():
            if isinstance(value, int | float | str):
                line += f", {key} {value}"
        return line


@contextlib.contextmanager
def _log_to_stderr(args: argparse.Namespace) -> Iterator[None]:
    """Print the log of synthgen on stderr.

    These are warnings, with -v also every step, and with -q only errors. Progress bars and messages
    of libraries are disabled where they are not wanted.
    """
    level = logging.WARNING
    if args.quiet:
        level = logging.ERROR
    elif args.verbose:
        level = logging.INFO
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("synthgen: %(levelname)s: %(message)s"))
    handler.setLevel(level)
    logger = logging.getLogger("synthgen")
    previous_level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if args.verbose else logging.WARNING)
    # Libraries read these variables when they are first imported, here and in workers.
    if not args.verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    if args.quiet:
        os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(previous_level)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the parsed arguments.

    Unlike with argparse alone, overrides (`key=value`) may precede and follow options.
    """
    top = parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell requests completions
        import argcomplete

        argcomplete.autocomplete(top)
    if argv is None:
        argv = sys.argv[1:]
    if not argv:
        top.print_help(sys.stderr)
        raise SystemExit(EXIT_USAGE)
    args, rest = top.parse_known_args(argv)
    takes_overrides = hasattr(args, "overrides")
    for text in rest:
        if not takes_overrides or text.startswith("-") or "=" not in text:
            top.error(f"unrecognized arguments: {' '.join(rest)}")
    late_overrides = [*vars(args).pop("late_overrides", []), *rest]
    if late_overrides:
        args.overrides = sort_by_position([*args.overrides, *late_overrides], argv)
    return args


def sort_by_position(overrides: list[str], argv: list[str]) -> list[str]:
    """Return overrides in the order of the command line: the last one for a key takes effect."""
    remaining = Counter(overrides)
    ordered = []
    for text in argv:
        if remaining[text]:
            remaining[text] -= 1
            ordered.append(text)
    return ordered


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="synthgen",
        description="Generate labelled object-detection datasets: layouts of boxes, images that "
        "match them, and COCO labels.",
        epilog="Start with `synthgen init`, then `synthgen preview` and `synthgen run`. "
        "`synthgen COMMAND --help` describes a command.",
    )
    top.add_argument("--version", action="version", version=f"synthgen {__version__}")
    commands = Commands(top)
    for command in COMMANDS:
        command.add(commands)
    return top
