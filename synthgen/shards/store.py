"""Files of one output folder, written so that a kill leaves the old file or the new one, never half of one."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STAGING = ".staging"
TEMPORARY = ".tmp"
JOURNAL = "log.jsonl"  # what runs did (`synthgen.engine.journal`)


def digest(path: Path, name: str = "sha256") -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, name).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to, that becomes `path` if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        yield temporary
        promote(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file at once."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def promote(source: Path, target: Path) -> None:
    """Give a finished file its final name, durably: fsync, rename, fsync the folder."""
    _fsync(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    _fsync(target.parent)


def staged(out: Path, name: str) -> Path:
    """A new path in the staging folder: unique, so that two workers with the same shard never meet."""
    folder = out / STAGING
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{uuid.uuid4().hex}-{name}"


def clean(out: Path) -> None:
    """Remove what a killed run left: the staging folder and temporary files. Only for the holder of the lock."""
    shutil.rmtree(out / STAGING, ignore_errors=True)
    for folder in (out, out / "shards", out / "annotations"):
        for path in folder.glob(f".*{TEMPORARY}"):
            path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
