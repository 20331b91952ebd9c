"""`synthgen describe`: tell what a name stands for, and its keys."""

import argparse
from typing import Any

from synthgen.cli.command import Commands, Result


def add(commands: Commands) -> None:
    """Add `describe`."""
    sub = commands.add(
        "describe",
        describe_command,
        "tell what a sampler, method, task, verifier, recipe or job is, and its keys",
    )
    name = sub.add_argument("name", metavar="NAME", help="one of those that `synthgen list` names")
    name.completer = all_names  # type: ignore[attr-defined]  # argcomplete's


def describe_command(args: argparse.Namespace) -> Result:
    """`--json`: {"descriptions": [the fields of `synthgen.config.describe.Description`]}: one for each thing of that name."""
    from dataclasses import asdict

    from synthgen.config.describe import describe

    found = describe(args.name)
    lines = [line for description in found for line in (*description.lines(), "")]
    return 0, {"descriptions": [asdict(description) for description in found]}, lines[:-1]


def all_names(**_: Any) -> list[str]:
    """What can be described; for shell completion."""
    from synthgen import registry
    from synthgen.config.loading import RECIPES, recipe_names

    specs = {name for kind in registry.PACKAGES for name in registry.names(kind)}
    return sorted(specs | {name for kind in RECIPES for name in recipe_names(kind)})
