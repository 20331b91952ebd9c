"""`synthgen init`: write a job to begin with."""

import argparse
import re
from pathlib import Path

from synthgen.cli.command import Commands, Result


def add(commands: Commands) -> None:
    """Add `init`."""
    sub = commands.add("init", init_command, "write a commented job to begin with")
    sub.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        default="my-dogs",
        help="of the job (default my-dogs): jobs/NAME.yaml",
    )


def init_command(args: argparse.Namespace) -> Result:
    """`--json`: {"path"}."""
    from synthgen.assets import ASSETS
    from synthgen.config import ConfigError, recipe_names
    from synthgen.storage.local import write_text

    if not re.fullmatch(r"[\w-][\w.-]*", args.name):
        raise ConfigError(
            [
                f"command line: NAME: {args.name!r}: letters, digits, - _ and . alone, such as my-dogs"
            ]
        )
    path = Path("jobs") / f"{args.name}.yaml"
    if path.exists():
        raise ConfigError([f"{path}: is there already; give another name, or remove it"])
    if args.name in recipe_names("job"):
        raise ConfigError(
            [
                f"command line: NAME: {args.name!r} is a job that ships, which yours would hide; give another name"
            ]
        )
    write_text(path, (ASSETS / "job.yaml").read_text(encoding="utf-8").replace("@NAME@", args.name))
    return (
        0,
        {"path": str(path)},
        [
            f"{path}: change it as you like, then: synthgen preview {args.name}; synthgen run {args.name}"
        ],
    )
