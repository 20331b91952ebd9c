"""Code that several commands share.

Each command is a module of the same name. Slow imports are made in its function. A new command
needs a function that returns a `Result` for the parsed arguments, a function `add` that adds the
command, and a line in `synthgen.cli.main.COMMANDS`.
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

DEFAULT_SPEECH_MODEL = "openai/whisper-base.en"
REPORT_IMAGES = 200
"""How many images the report of a command shows that is rewritten whenever a dataset grows."""

EXIT_FAULT = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
Result = tuple[int, dict[str, Any], list[str]]
"""The exit status, the object that --json prints, and the lines of text that are printed else."""
Run = Callable[[argparse.Namespace], Result]


class NumbersAction(argparse.Action):
    """An option with several numbers, which may be followed by `key=value` overrides.

    argparse alone would take these overrides for numbers.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        numbers = []
        overrides = list(getattr(namespace, "late_overrides", []))
        for text in values:
            if "=" in text:
                overrides.append(text)
                continue
            try:
                numbers.append(float(text))
            except ValueError:
                parser.error(f"argument {option_string}: invalid float value: {text!r}")
        if not numbers:
            parser.error(f"argument {option_string}: expected at least one number")
        namespace.late_overrides = overrides
        setattr(namespace, self.dest, numbers)


class Commands:
    """The commands of a parser. Each module of a command adds its own.

    Args:
        top: the parser of the whole command line.
    """

    def __init__(self, top: argparse.ArgumentParser) -> None:
        self.subparsers = top.add_subparsers(required=True, metavar="COMMAND")

    def add(self, name: str, run: Run, text: str) -> argparse.ArgumentParser:
        """Add a command, and return its parser.

        Args:
            run: the function that runs the command.
            text: what the command does, for the help.
        """
        sub = self.subparsers.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run)
        sub.add_argument(
            "--json", action="store_true", help="print one JSON object on stdout instead of text"
        )
        verbosity = sub.add_mutually_exclusive_group()
        verbosity.add_argument(
            "-q",
            "--quiet",
            action="store_true",
            help="print only errors: no progress, no warnings, no summary",
        )
        verbosity.add_argument(
            "-v",
            "--verbose",
            action="store_true",
            help="print every step, and errors with their traceback",
        )
        return sub

    def add_job(
        self, name: str, run: Run, text: str, example: str = "images=1000 pipeline.steps=12"
    ) -> argparse.ArgumentParser:
        """Add a command that takes a job and overrides of its keys, and return its parser.

        Args:
            example: overrides, for the help.
        """
        sub = self.add(name, run, text)
        job = sub.add_argument("job", metavar="JOB", help="job file, or name of a shipped job")
        job.completer = complete_job  # type: ignore[attr-defined]  # read by argcomplete
        sub.add_argument(
            "overrides",
            nargs="*",
            default=[],
            metavar="key=value",
            help=f"new values for keys of the job, such as {example}",
        )
        return sub


def describe_interruption(images: int, total: int) -> str:
    """Return the line that tells how far an interrupted import or merge came."""
    return f"stopped; {images} of {total} images are done. Run the same command again to continue"


def make_progress_bar(args: argparse.Namespace, unit: str, total: int | None = None) -> "tqdm[Any]":
    """Return a progress bar on stderr, with units done, units/s and the remaining time.

    It appears after the first units, so that an early error is a single line.
    """
    from tqdm import tqdm

    bar = tqdm(
        total=total, unit=unit, smoothing=0.05, dynamic_ncols=True, delay=0.1, disable=args.quiet
    )
    if args.quiet:
        bar.desc = ""  # a disabled bar does not have this attribute
    return bar


def report_on_bar(bar: "tqdm[Any]") -> Callable[[int, int], None]:
    """Return a function that shows on a progress bar how many units of how many are done."""

    def report(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return report


def format_command(command: str, *arguments: str) -> str:
    """Return the shell command line of a synthgen command."""
    return shlex.join(["synthgen", command, *arguments])


def complete_job(prefix: str, **_: Any) -> list[str]:
    """Return names of jobs, and job files, for shell completion."""
    from argcomplete.completers import FilesCompleter

    from synthgen.config import list_recipe_names

    return [*list_recipe_names("job"), *FilesCompleter(("yaml", "yml", "json"))(prefix)]


def add_speech_option(sub: argparse.ArgumentParser) -> None:
    """Add the option for the model that transcribes recordings."""
    sub.add_argument(
        "--speech",
        metavar="MODEL",
        default=DEFAULT_SPEECH_MODEL,
        help="Whisper model that transcribes recordings: Hugging Face id, or folder in the format "
        f"of transformers or faster-whisper (default: {DEFAULT_SPEECH_MODEL})",
    )


def add_prompt_options(sub: argparse.ArgumentParser) -> None:
    """Add the options that change a job by a spoken or written prompt."""
    prompt = sub.add_mutually_exclusive_group()
    prompt.add_argument(
        "--voice",
        type=Path,
        metavar="WAV",
        help='recording of a spoken prompt that changes the job, such as "one hundred dogs in a '
        'park"',
    )
    prompt.add_argument(
        "--say", metavar="TEXT", help="the same as --voice, but with the prompt as text"
    )
    add_speech_option(sub)


def load_prompted_job(args: argparse.Namespace) -> tuple["Job", dict[str, Any]]:
    """Return the job of the arguments, and what to add to the output of --json.

    The latter is {"spoken": the fields of `synthgen.speech.Spoken`} if there was a prompt, else {}.
    How the prompt was understood is printed, and what the checkpoint may generate badly is logged.
    """
    from synthgen.config import find_recipe, load_job
    from synthgen.speech import Spoken

    find_recipe("job", args.job)  # report a wrong name before a recording is transcribed
    prompt = None if args.say is None else Spoken(text=args.say)
    if args.voice is not None:
        from synthgen.speech.speech import transcribe_recording

        prompt = transcribe_recording(args.voice, args.speech)
        print(prompt.describe_text(), file=sys.stderr)
    job = load_job(args.job, args.overrides, prompt)
    for doubt in job.pipeline.find_warnings(job.layout):
        log.warning("pipeline.%s", doubt)
    if prompt is None or job.spoken is None:
        return job, {}
    print(*job.spoken.describe_meaning(), sep="\n", file=sys.stderr)
    return job, {"spoken": job.spoken.model_dump(mode="json")}


def describe_coco_files(counts: dict[str, Any]) -> str:
    """Return a note on a dataset with several COCO files, to append to its figures."""
    from synthgen.dataset.coco import SHARDS_PER_FILE

    files = counts["coco_files"]
    if files == 1:
        return ""
    return (
        f"; COCO annotations in {files} files of {SHARDS_PER_FILE} shards each: "
        "annotations/instances-00000.json …"
    )


def parse_ids(args: argparse.Namespace) -> tuple[dict[str, int], list[str]]:
    """Return the category ids of --ids, and the problems of --ids and --shard-size."""
    ids = {}
    problems = []
    for text in args.ids or ():
        name, _, number = text.rpartition("=")
        if name and number.isdecimal() and int(number) > 0:
            ids[name] = int(number)
        else:
            problems.append(f"command line: --ids: {text!r}: give name=id, such as fox=101")
    if not 1 <= args.shard_size <= 100_000:
        problems.append(f"command line: --shard-size: {args.shard_size} must be from 1 to 100000")
    return ids, problems
