"""`synthgen list`: tell what samplers, methods and recipes there are."""

import argparse
from typing import Any

from synthgen.cli.command import Commands, Result


def add(commands: Commands) -> None:
    """Add `list`."""
    commands.add("list", list_command, "samplers, methods and recipes")


def list_command(args: argparse.Namespace) -> Result:
    """`--json`: {"samplers": {name: text}, "methods": {name: text}, "layouts": [], "pipelines": [], "jobs": []}."""
    from synthgen import registry
    from synthgen.config.loading import RECIPES, recipe_names

    data: dict[str, Any] = {}
    for kind in registry.PACKAGES:
        data[f"{kind}s"] = {
            name: _first_line(registry.spec_class(kind, name)) for name in registry.names(kind)
        }
    for kind, folder in RECIPES.items():
        data[folder] = recipe_names(kind)
    lines = []
    for heading, entries in data.items():
        lines.append(f"{heading}:")
        lines += (
            [f"  {n:<20}{entries[n]}" for n in entries]
            if isinstance(entries, dict)
            else [f"  {n}" for n in entries]
        )
    return 0, data, lines


def _first_line(thing: Any) -> str:
    return str(thing.__doc__).splitlines()[0]
