"""`synthgen init`: write a commented job file to start from."""

import argparse
import re
from pathlib import Path

from synthgen.cli.command import Commands, Result


def add(commands: Commands) -> None:
    """Add `init`."""
    sub = commands.add("init", init_command, "write a commented job file to start from")
    sub.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        default="my-dogs",
        help="name of the job; the file is jobs/NAME.yaml (default: my-dogs)",
    )


def init_command(args: argparse.Namespace) -> Result:
    """Run the command.

    `--json`: {"path"}.
    """
    from synthgen.assets import ASSETS
    from synthgen.config import ConfigError, list_recipe_names
    from synthgen.storage.local import write_text

    if not re.fullmatch(r"[\w-][\w.-]*", args.name):
        raise ConfigError(
            [
                f"command line: NAME: {args.name!r}: use only letters, digits, - _ and ., such as "
                "my-dogs"
            ]
        )
    path = Path("jobs") / f"{args.name}.yaml"
    if path.exists():
        raise ConfigError([f"{path}: exists already; give another name, or remove it"])
    if args.name in list_recipe_names("job"):
        raise ConfigError(
            [
                f"command line: NAME: {args.name!r} is the name of a shipped job, which this file "
                "would hide; give another name"
            ]
        )
    template = (ASSETS / "job.yaml").read_text(encoding="utf-8")
    write_text(path, template.replace("@NAME@", args.name))
    text = (
        f"{path}: edit it as you like, then: synthgen preview {args.name}; synthgen run {args.name}"
    )
    return 0, {"path": str(path)}, [text]
