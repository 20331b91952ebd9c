"""Samplers, methods, tasks and verifiers by name.

They are modules of this package, or entry points of another one.
"""

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

PACKAGES = {
    "sampler": "synthgen.layouts",
    "method": "synthgen.pipelines",
    "task": "synthgen.training",
    "verifier": "synthgen.verification",
}
FORMER_GROUPS = {"task": "synthgen.train.tasks", "verifier": "synthgen.verify.verifiers"}
"""Groups of entry points that packages for earlier versions use; they are still read."""


def list_names(kind: str) -> list[str]:
    """Return the sorted names of everything of a kind.

    Args:
        kind: "sampler", "method", "task" (for training) or "verifier".
    """
    return sorted({*_find_modules(kind), *_find_plugins(kind)})


def load_spec_class(kind: str, name: str) -> Any:
    """Return the `Spec` of a sampler, method, task or verifier without importing any other one.

    Raises:
        KeyError: nothing of this kind has the name.
    """
    if name not in list_names(kind):
        raise KeyError(name)
    plugins = _find_plugins(kind)
    if name in plugins:
        return plugins[name].load()
    return import_module(f"{PACKAGES[kind]}.{name}").Spec


@cache
def _find_modules(kind: str) -> tuple[str, ...]:
    """Return the modules of the kind's package that define a `Spec`; the others are shared code."""
    folder = Path(__file__).parent / PACKAGES[kind].partition(".")[2]
    modules = []
    for module in iter_modules([str(folder)]):
        file = f"{module.name}/__init__.py" if module.ispkg else f"{module.name}.py"
        source = (folder / file).read_text(encoding="utf-8")
        if "\nclass Spec(" in source:
            modules.append(module.name)
    return tuple(modules)


@cache  # a search of all installed packages takes 15 ms, and a job needs a dozen
def _find_plugins(kind: str) -> dict[str, Any]:
    """Return the entry points of a kind by name; the current group replaces the former one."""
    plugins = {}
    for group in (FORMER_GROUPS.get(kind), PACKAGES[kind]):
        if group is not None:
            plugins.update({entry.name: entry for entry in entry_points(group=group)})
    return plugins
