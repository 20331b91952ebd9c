"""Commands that tell what there is, and the one to begin with."""

import argparse
import re
from pathlib import Path
from typing import Any

from synthgen.commands import Commands, Result


def add(commands: Commands) -> None:
    """Add `init`, `list` and `describe`."""
    sub = commands.add("init", init_command, "write a commented job to begin with")
    sub.add_argument("name", metavar="NAME", nargs="?", default="my-dogs", help="of the job (default my-dogs): jobs/NAME.yaml")
    commands.add("list", list_command, "samplers, methods and recipes")
    sub = commands.add(
        "describe", describe_command, "tell what a sampler, method, task, verifier, recipe or job is, and its keys"
    )
    name = sub.add_argument("name", metavar="NAME", help="one of those that `synthgen list` names")
    name.completer = all_names  # type: ignore[attr-defined]  # argcomplete's


def init_command(args: argparse.Namespace) -> Result:
    """`--json`: {"path"}."""
    from synthgen.assets import ASSETS
    from synthgen.config import ConfigError, recipe_names
    from synthgen.shards.store import write_text

    if not re.fullmatch(r"[\w-][\w.-]*", args.name):
        raise ConfigError([f"command line: NAME: {args.name!r}: letters, digits, - _ and . alone, such as my-dogs"])
    path = Path("jobs") / f"{args.name}.yaml"
    if path.exists():
        raise ConfigError([f"{path}: is there already; give another name, or remove it"])
    if args.name in recipe_names("job"):
        raise ConfigError([f"command line: NAME: {args.name!r} is a job that ships, which yours would hide; give another name"])
    write_text(path, (ASSETS / "job.yaml").read_text(encoding="utf-8").replace("@NAME@", args.name))
    return (
        0,
        {"path": str(path)},
        [f"{path}: change it as you like, then: synthgen preview {args.name}; synthgen run {args.name}"],
    )


def list_command(args: argparse.Namespace) -> Result:
    """`--json`: {"samplers": {name: text}, "methods": {name: text}, "layouts": [], "pipelines": [], "jobs": []}."""
    from synthgen import registry
    from synthgen.config import RECIPES, recipe_names

    data: dict[str, Any] = {}
    for kind in registry.PACKAGES:
        data[f"{kind}s"] = {name: _first_line(registry.spec_class(kind, name)) for name in registry.names(kind)}
    for kind, folder in RECIPES.items():
        data[folder] = recipe_names(kind)
    lines = []
    for heading, entries in data.items():
        lines.append(f"{heading}:")
        lines += [f"  {n:<20}{entries[n]}" for n in entries] if isinstance(entries, dict) else [f"  {n}" for n in entries]
    return 0, data, lines


def describe_command(args: argparse.Namespace) -> Result:
    """`--json`: {"descriptions": [the fields of `synthgen.describe.Description`]}: one for each thing of that name."""
    from dataclasses import asdict

    from synthgen.describe import describe

    found = describe(args.name)
    lines = [line for description in found for line in (*description.lines(), "")]
    return 0, {"descriptions": [asdict(description) for description in found]}, lines[:-1]


def all_names(**_: Any) -> list[str]:
    """What can be described; for shell completion."""
    from synthgen import registry
    from synthgen.config import RECIPES, recipe_names

    specs = {name for kind in registry.PACKAGES for name in registry.names(kind)}
    return sorted(specs | {name for kind in RECIPES for name in recipe_names(kind)})


def _first_line(thing: Any) -> str:
    return str(thing.__doc__).splitlines()[0]
