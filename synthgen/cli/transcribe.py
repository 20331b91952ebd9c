"""`synthgen transcribe`: tell what a recording says."""

import argparse
from pathlib import Path

from synthgen.cli.command import Commands, Result, speech_option


def add(commands: Commands) -> None:
    """Add `transcribe`."""
    sub = commands.add(
        "transcribe",
        transcribe_command,
        "tell what a recording says, and what a job would make of it",
    )
    sub.add_argument("audio", type=Path, metavar="WAV", help="PCM or floating point, at most 30 s")
    speech_option(sub)


def transcribe_command(args: argparse.Namespace) -> Result:
    """`--json`: the fields of `synthgen.speech.Spoken`."""
    from synthgen.dataset.categories import COCO_IDS
    from synthgen.speech.speech import hear
    from synthgen.speech.understand import understand

    spoken = understand(hear(args.audio, args.speech), COCO_IDS)
    return 0, spoken.model_dump(mode="json"), [spoken.heard(), *spoken.understood()]
