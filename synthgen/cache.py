"""The folder in which this machine keeps what would take long to compute or fetch again."""

import os
from pathlib import Path


def find_cache_folder(name: str) -> Path:
    """Return a folder of this name in the user's cache; it may not exist yet."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "synthgen" / name
