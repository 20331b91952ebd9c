"""`synthgen describe`: print the description and the keys of a name."""

import argparse
from typing import Any

from synthgen.cli.command import Commands, Result


def add(commands: Commands) -> None:
    """Add `describe`."""
    sub = commands.add(
        "describe",
        describe_command,
        "describe a sampler, method, task, verifier, recipe or job, and list its keys",
    )
    name = sub.add_argument("name", metavar="NAME", help="a name that `synthgen list` prints")
    name.completer = all_names  # type: ignore[attr-defined]  # read by argcomplete


def describe_command(args: argparse.Namespace) -> Result:
    """Run the command.

    `--json`: {"descriptions": [the fields of `synthgen.config.describe.Description`]}, with one
    description for everything that has the name.
    """
    from dataclasses import asdict

    from synthgen.config.describe import describe

    descriptions = describe(args.name)
    lines: list[str] = []
    for description in descriptions:
        if lines:
            lines.append("")
        lines += description.lines()
    return 0, {"descriptions": [asdict(description) for description in descriptions]}, lines


def all_names(**_: Any) -> list[str]:
    """Return all names that can be described, for shell completion."""
    from synthgen import registry
    from synthgen.config.loading import RECIPES, list_recipe_names

    names: set[str] = set()
    for kind in registry.PACKAGES:
        names.update(registry.list_names(kind))
    for kind in RECIPES:
        names.update(list_recipe_names(kind))
    return sorted(names)
