"""The versions of the packages that a dataset was generated with, and their differences."""

from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "pillow", "ray")
PIXEL_PACKAGES = ("numpy", "pillow")
"""The packages that all pixels depend on."""
NETWORK_PACKAGES = ("torch", "diffusers", "transformers")
"""The packages that pixels depend on besides, if a network generates or verifies."""
DISTRIBUTION = "synthgen-layouts"


@cache
def read_versions() -> dict[str, str]:
    """Return the versions of synthgen and of PACKAGES, without importing any of them."""
    installed = {}
    for package in (DISTRIBUTION, *PACKAGES):
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def describe_version_changes(recorded: Any, current: dict[str, str], names: Iterable[str]) -> str:
    """Return how recorded versions differ from others; empty if they do not, or are unknown.

    Args:
        recorded: "versions" of a marker's numerics, of any type.
        current: package to version.
        names: the packages to compare.
    """
    if not isinstance(recorded, dict):
        return ""
    changed = []
    for name in sorted(names):
        if name in recorded and recorded[name] != current.get(name):
            changed.append(f"{name}: was {recorded[name]}, is {current.get(name)}")
    return "; ".join(changed)
