"""The commands, a module a group of them. Whatever is heavy is imported by the command that needs it.

A new command is a function of the parsed arguments that returns a `Result`, and the lines that add it in its module's `add`.
"""

import argparse
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

EXIT_FAULT, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143
Result = tuple[int, dict[str, Any], list[str]]  # exit status, what --json prints, lines of text for people
Run = Callable[[argparse.Namespace], Result]


class Shares(argparse.Action):
    """Numbers of an option; `key=value` that follow them are overrides, which argparse alone would take for numbers."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        numbers = []
        for text in values:
            if "=" in text:
                namespace.late_overrides = [*getattr(namespace, "late_overrides", []), text]
                continue
            try:
                numbers.append(float(text))
            except ValueError:
                parser.error(f"argument {option_string}: invalid float value: {text!r}")
        if not numbers:
            parser.error(f"argument {option_string}: expected at least one number")
        setattr(namespace, self.dest, numbers)


class Commands:
    """The command line that the modules add their commands to.

    Args:
        top: the parser of all.
    """

    def __init__(self, top: argparse.ArgumentParser) -> None:
        self.subparsers = top.add_subparsers(required=True, metavar="COMMAND")

    def add(self, name: str, run: Run, text: str) -> argparse.ArgumentParser:
        """A command; returns its parser, for its own arguments."""
        sub = self.subparsers.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run)
        sub.add_argument("--json", action="store_true", help="one JSON object on stdout instead of text")
        loud = sub.add_mutually_exclusive_group()
        loud.add_argument("-q", "--quiet", action="store_true", help="errors alone: no progress, no warnings, no closing line")
        loud.add_argument("-v", "--verbose", action="store_true", help="tell each step, and errors with their traceback")
        return sub

    def add_job(self, name: str, run: Run, text: str, example: str = "images=1000 pipeline.steps=12") -> argparse.ArgumentParser:
        """A command that takes a job and overrides of its keys."""
        sub = self.add(name, run, text)
        job = sub.add_argument("job", metavar="JOB", help="job file, or the name of a shipped job")
        job.completer = job_names  # type: ignore[attr-defined]  # argcomplete's
        sub.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=f"such as {example}")
        return sub


def progress_bar(args: argparse.Namespace, unit: str, total: int | None = None) -> "tqdm[Any]":
    """Units done, units/s and time left, on stderr; nothing before the first of them, so that an error is one line."""
    from tqdm import tqdm

    bar = tqdm(total=total, unit=unit, smoothing=0.05, dynamic_ncols=True, delay=0.1, disable=args.quiet)
    if args.quiet:
        bar.desc = ""  # a bar that is not shown lacks it
    return bar


def again(command: str, *arguments: str) -> str:
    """A line that a shell reads as these arguments, to be told."""
    return shlex.join(["synthgen", command, *arguments])


def job_names(prefix: str, **_: Any) -> list[str]:
    """Jobs by name, and job files; for shell completion."""
    from argcomplete.completers import FilesCompleter

    from synthgen.config import recipe_names

    return [*recipe_names("job"), *FilesCompleter(("yaml", "yml", "json"))(prefix)]
