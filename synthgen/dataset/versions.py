"""The versions of the packages that a dataset was made with, and how they differ from others."""

from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "pillow", "ray")
ALWAYS = ("numpy", "pillow")  # those of them that every pixel depends on
WITH_TORCH = (
    "torch",
    "diffusers",
    "transformers",
)  # those that it depends on where a network generates or verifies
DISTRIBUTION = "synthgen-layouts"


@cache
def versions() -> dict[str, str]:
    """Versions of synthgen and of the packages that it runs on, without importing any of them."""
    found = {}
    for package in (DISTRIBUTION, *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def other_versions(there: Any, here: dict[str, str], names: Iterable[str]) -> str:
    """How versions that were recorded differ from others; empty: not at all, or they are not known.

    Args:
        there: "versions" of a marker's numerics, whatever it is.
        names: the packages that count.
    """
    if not isinstance(there, dict):
        return ""
    changed = [name for name in sorted(names) if name in there and there[name] != here.get(name)]
    return "; ".join(f"{name}: was {there[name]}, is {here.get(name)}" for name in changed)
