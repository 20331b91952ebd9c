"""Samplers, methods, tasks and verifiers by name: modules of this package, or entry points of another one."""

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
"""Groups of entry points that packages for earlier versions used; they are still read."""


def names(kind: str) -> list[str]:
    """Names of the known samplers (kind "sampler"), methods ("method"), training tasks ("task") or verifiers ("verifier")."""
    return sorted({*_modules(kind), *_plugins(kind)})


def spec_class(kind: str, name: str) -> Any:
    """The `Spec` of a sampler, method, task or verifier, without importing any other one.

    Raises:
        KeyError: there is none of that name.
    """
    if name not in names(kind):
        raise KeyError(name)
    plugins = _plugins(kind)
    return (
        plugins[name].load() if name in plugins else import_module(f"{PACKAGES[kind]}.{name}").Spec
    )


@cache
def _modules(kind: str) -> tuple[str, ...]:
    """Modules of the kind's package that define a `Spec`; the others hold what several of these use."""
    folder = Path(__file__).parent / PACKAGES[kind].partition(".")[2]
    found = []
    for module in iter_modules([str(folder)]):
        source = (
            folder / module.name / "__init__.py" if module.ispkg else folder / f"{module.name}.py"
        )
        if "\nclass Spec(" in source.read_text(encoding="utf-8"):
            found.append(module.name)
    return tuple(found)


@cache  # looking through all that is installed takes 15 ms, and a job asks a dozen times
def _plugins(kind: str) -> dict[str, Any]:
    groups = [FORMER_GROUPS[kind]] if kind in FORMER_GROUPS else []
    return {e.name: e for group in (*groups, PACKAGES[kind]) for e in entry_points(group=group)}
