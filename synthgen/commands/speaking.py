"""Jobs that are spoken, and the command that only listens."""

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthgen.commands import Commands, Result

if TYPE_CHECKING:
    from synthgen.config import Job

log = logging.getLogger(__name__)

WHISPER = "openai/whisper-base.en"


def add(commands: Commands) -> None:
    """Add `transcribe`."""
    sub = commands.add("transcribe", transcribe_command, "tell what a recording says, and what a job would make of it")
    sub.add_argument("audio", type=Path, metavar="WAV", help="PCM or floating point, at most 30 s")
    speech_option(sub)


def speech_option(sub: argparse.ArgumentParser) -> None:
    """Which Whisper listens."""
    text = f"a Whisper: Hugging Face id, or folder (transformers', or one for faster-whisper); default: {WHISPER}"
    sub.add_argument("--speech", metavar="MODEL", default=WHISPER, help=text)


def spoken(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Let a job command be spoken to."""
    either = sub.add_mutually_exclusive_group()
    either.add_argument("--voice", type=Path, metavar="WAV", help='recording of such as "one hundred dogs in a park"')
    either.add_argument("--say", metavar="TEXT", help="the same in writing")
    speech_option(sub)
    return sub


def load(args: argparse.Namespace) -> tuple["Job", dict[str, Any]]:
    """The job, and {"spoken": the fields of `synthgen.voice.Spoken`} if something was said to it, which is shown.

    What the recipe's checkpoint may paint badly is shown too.
    """
    from synthgen.config import find_recipe, load_job
    from synthgen.voice import Spoken

    find_recipe("job", args.job)  # a wrong name is told before a recording is listened to
    said = None if args.say is None else Spoken(text=args.say)
    if args.voice is not None:
        from synthgen.voice.speech import hear

        said = hear(args.voice, args.speech)
        print(said.heard(), file=sys.stderr)
    job = load_job(args.job, args.overrides, said)
    for doubt in job.pipeline.doubts(job.layout):
        log.warning("pipeline.%s", doubt)
    if said is None or job.spoken is None:
        return job, {}
    print(*job.spoken.understood(), sep="\n", file=sys.stderr)
    return job, {"spoken": job.spoken.model_dump(mode="json")}


def transcribe_command(args: argparse.Namespace) -> Result:
    """`--json`: the fields of `synthgen.voice.Spoken`."""
    from synthgen.shards.categories import COCO_IDS
    from synthgen.voice.speech import hear
    from synthgen.voice.understand import understand

    spoken = understand(hear(args.audio, args.speech), COCO_IDS)
    return 0, spoken.model_dump(mode="json"), [spoken.heard(), *spoken.understood()]
