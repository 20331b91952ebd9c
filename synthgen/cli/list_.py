"""`synthgen list`: list the samplers, methods, tasks, verifiers, recipes and jobs."""

import argparse
from typing import Any

from synthgen.cli.command import Commands, Result


def add(commands: Commands) -> None:
    """Add `list`."""
    commands.add(
        "list", list_command, "list the samplers, methods, tasks, verifiers, recipes and jobs"
    )


def list_command(args: argparse.Namespace) -> Result:
    """Run the command.

    `--json`: {"samplers": {name: text}, "methods": {name: text}, "tasks": {name: text},
    "verifiers": {name: text}, "layouts": [], "pipelines": [], "jobs": []}.
    """
    from synthgen import registry
    from synthgen.config.loading import RECIPES, list_recipe_names

    data: dict[str, Any] = {}
    lines = []
    for kind in registry.PACKAGES:
        summaries = {}
        lines.append(f"{kind}s:")
        for name in registry.list_names(kind):
            summaries[name] = str(registry.load_spec_class(kind, name).__doc__).splitlines()[0]
            lines.append(f"  {name:<20}{summaries[name]}")
        data[f"{kind}s"] = summaries
    for kind, folder in RECIPES.items():
        data[folder] = list_recipe_names(kind)
        lines.append(f"{folder}:")
        lines += [f"  {name}" for name in data[folder]]
    return 0, data, lines
