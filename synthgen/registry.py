"""Samplers, methods and tasks by name: modules of this package, or entry points of another one."""

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

PACKAGES = {
    "sampler": "synthgen.layouts",
    "method": "synthgen.pipelines",
    "task": "synthgen.train.tasks",
    "verifier": "synthgen.verify.verifiers",
}


def names(kind: str) -> list[str]:
    """Names of the known samplers (kind "sampler"), methods (kind "method") or training tasks (kind "task")."""
    folder = Path(__file__).parent.joinpath(*PACKAGES[kind].split(".")[1:])
    return sorted({m.name for m in iter_modules([str(folder)]) if m.name[0] != "_"} | set(_plugins(kind)))


def spec_class(kind: str, name: str) -> Any:
    """The `Spec` of a sampler, method or task, without importing any other one.

    Raises:
        KeyError: there is none of that name.
    """
    if name not in names(kind):
        raise KeyError(name)
    plugins = _plugins(kind)
    return plugins[name].load() if name in plugins else import_module(f"{PACKAGES[kind]}.{name}").Spec


@cache  # looking through all that is installed takes 15 ms, and a job asks a dozen times
def _plugins(kind: str) -> dict[str, Any]:
    return {e.name: e for e in entry_points(group=PACKAGES[kind])}
