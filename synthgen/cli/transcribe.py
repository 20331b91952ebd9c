"""`synthgen transcribe`: transcribe a recording of a prompt."""

import argparse
from pathlib import Path

from synthgen.cli.command import Commands, Result, add_speech_option


def add(commands: Commands) -> None:
    """Add `transcribe`."""
    sub = commands.add(
        "transcribe",
        transcribe_command,
        "transcribe a recorded prompt, and print how a job would understand it",
    )
    sub.add_argument(
        "audio",
        type=Path,
        metavar="WAV",
        help="WAV file with PCM or floating-point samples, at most 30 s",
    )
    add_speech_option(sub)


def transcribe_command(args: argparse.Namespace) -> Result:
    """Run the command.

    `--json`: the fields of `synthgen.speech.Spoken`.
    """
    from synthgen.dataset.categories import COCO_IDS
    from synthgen.speech.speech import transcribe_recording
    from synthgen.speech.understand import understand

    prompt = understand(transcribe_recording(args.audio, args.speech), COCO_IDS)
    return 0, prompt.model_dump(mode="json"), [prompt.describe_text(), *prompt.describe_meaning()]
