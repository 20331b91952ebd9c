"""What the commands share. Each command is a module that is named after it; whatever is heavy is imported by its function.

A new command is a function of the parsed arguments that returns a `Result`, an `add` that adds it, and a line in
`synthgen.cli.main.COMMANDS`.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

    from synthgen.config.job import Job

log = logging.getLogger(__name__)

WHISPER = "openai/whisper-base.en"
SHOWN = 200  # pictures in a report that a command writes on its way: it is made anew with each extension of a dataset

EXIT_FAULT, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143
Result = tuple[
    int, dict[str, Any], list[str]
]  # exit status, what --json prints, lines of text for people
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
        sub.add_argument(
            "--json", action="store_true", help="one JSON object on stdout instead of text"
        )
        loud = sub.add_mutually_exclusive_group()
        loud.add_argument(
            "-q",
            "--quiet",
            action="store_true",
            help="errors alone: no progress, no warnings, no closing line",
        )
        loud.add_argument(
            "-v",
            "--verbose",
            action="store_true",
            help="tell each step, and errors with their traceback",
        )
        return sub

    def add_job(
        self, name: str, run: Run, text: str, example: str = "images=1000 pipeline.steps=12"
    ) -> argparse.ArgumentParser:
        """A command that takes a job and overrides of its keys."""
        sub = self.add(name, run, text)
        job = sub.add_argument("job", metavar="JOB", help="job file, or the name of a shipped job")
        job.completer = job_names  # type: ignore[attr-defined]  # argcomplete's
        sub.add_argument(
            "overrides", nargs="*", default=[], metavar="key=value", help=f"such as {example}"
        )
        return sub


def progress_bar(args: argparse.Namespace, unit: str, total: int | None = None) -> "tqdm[Any]":
    """Units done, units/s and time left, on stderr; nothing before the first of them, so that an error is one line."""
    from tqdm import tqdm

    bar = tqdm(
        total=total, unit=unit, smoothing=0.05, dynamic_ncols=True, delay=0.1, disable=args.quiet
    )
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


def speech_option(sub: argparse.ArgumentParser) -> None:
    """Which Whisper listens."""
    text = f"a Whisper: Hugging Face id, or folder (transformers', or one for faster-whisper); default: {WHISPER}"
    sub.add_argument("--speech", metavar="MODEL", default=WHISPER, help=text)


def spoken(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Let a job command be spoken to."""
    either = sub.add_mutually_exclusive_group()
    either.add_argument(
        "--voice",
        type=Path,
        metavar="WAV",
        help='recording of such as "one hundred dogs in a park"',
    )
    either.add_argument("--say", metavar="TEXT", help="the same in writing")
    speech_option(sub)
    return sub


def load(args: argparse.Namespace) -> tuple["Job", dict[str, Any]]:
    """The job, and {"spoken": the fields of `synthgen.speech.Spoken`} if something was said to it, which is shown.

    What the recipe's checkpoint may paint badly is shown too.
    """
    from synthgen.config import find_recipe, load_job
    from synthgen.speech import Spoken

    find_recipe("job", args.job)  # a wrong name is told before a recording is listened to
    said = None if args.say is None else Spoken(text=args.say)
    if args.voice is not None:
        from synthgen.speech.speech import hear

        said = hear(args.voice, args.speech)
        print(said.heard(), file=sys.stderr)
    job = load_job(args.job, args.overrides, said)
    for doubt in job.pipeline.doubts(job.layout):
        log.warning("pipeline.%s", doubt)
    if said is None or job.spoken is None:
        return job, {}
    print(*job.spoken.understood(), sep="\n", file=sys.stderr)
    return job, {"spoken": job.spoken.model_dump(mode="json")}


def split(counts: dict[str, Any]) -> str:
    """That a dataset has several COCO files, to be told after its figures."""
    from synthgen.dataset.coco import SHARDS_A_FILE

    files = counts["coco_files"]
    if files == 1:
        return ""
    return f"; COCO annotations in {files} files of {SHARDS_A_FILE} shards each: annotations/instances-00000.json …"


def given_ids(args: argparse.Namespace) -> tuple[dict[str, int], list[str]]:
    """Category ids that the command line gives; and what is wrong with them, or with the shard size."""
    problems, ids = [], {}
    for text in args.ids or ():
        name, _, number = text.rpartition("=")
        if name and number.isdecimal() and int(number) > 0:
            ids[name] = int(number)
        else:
            problems.append(f"command line: --ids: {text!r}: give name=id, such as fox=101")
    if not 1 <= args.shard_size <= 100_000:
        problems.append(f"command line: --shard-size: {args.shard_size} must be from 1 to 100000")
    return ids, problems
