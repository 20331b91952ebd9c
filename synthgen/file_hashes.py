"""Hashes of large files, which are computed once per file and remembered on this machine.

The weights of a checkpoint have gigabytes, and the driver and every worker state their hash. A file
is recognised by its device, inode, size and time of change.
"""

import hashlib
import os
import re
import time
import uuid
from contextlib import suppress
from pathlib import Path

from synthgen.cache import find_cache_folder

LEAST_BYTES = 2**20  # a smaller file is hashed faster than its hash is looked up
SETTLED_SECONDS = 2.0
"""Age of a file from which on its hash is remembered.

A younger file might change again without a difference in its time of change, whose steps are 2 s
in some file systems.
"""
HASH = re.compile("[0-9a-f]{64}")


def hash_file(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        entry = _find_entry(before)
        known = _read_entry(entry) if before.st_size >= LEAST_BYTES else None
        if known is not None:
            return known
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(file.fileno())
    settled = time.time() - after.st_mtime > SETTLED_SECONDS
    if before.st_size >= LEAST_BYTES and settled and _find_entry(after) == entry:
        with suppress(OSError):  # without a cache, the file is hashed again
            _write_entry(entry, digest)
    return digest


def _find_entry(status: os.stat_result) -> Path:
    """Return the file that remembers the hash of a file with this status."""
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return find_cache_folder("hashes") / "-".join(str(number) for number in identity)


def _write_entry(entry: Path, digest: str) -> None:
    """Remember a hash; other processes see the whole entry or none."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = entry.with_name(f".{uuid.uuid4().hex}")
    temporary.write_text(digest)
    temporary.replace(entry)


def _read_entry(entry: Path) -> str | None:
    """Return a remembered hash; None if there is none."""
    try:
        text = entry.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return text if HASH.fullmatch(text) else None
