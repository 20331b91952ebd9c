"""Where a dataset lies: a folder or an object store, with the same few verbs, none of which leaves half a file."""

import hashlib
import os
import re
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, urlsplit

from synthgen.errors import InputError

STAGING = ".staging"
TEMPORARY = ".tmp"
JOURNAL = "log.jsonl"  # what runs did (`synthgen.engine.journal`)
SCHEMES = ("s3", "gs", "gcs", "hdfs")
QUERY = ("region", "scheme", "endpoint_override", "user", "replication")  # what a URL may say; never keys

Fill = Callable[[BinaryIO], object]


class Store(ABC):
    """The files of one dataset, by their names in it, such as `shards/000000.tar`.

    A name either has its whole content or does not exist. Reading a name that does not exist raises FileNotFoundError.
    """

    threads = 4  # requests that are worth making at the same time

    @abstractmethod
    def __str__(self) -> str:
        """The folder or URL, as the user knows it."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """All bytes of a file."""

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to read from, with seek."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""

    @abstractmethod
    def sizes(self, folder: str) -> Iterator[tuple[str, int]]:
        """Name in the folder and bytes of each file that lies in it, in no order."""

    @abstractmethod
    def replacing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to write to, that becomes `name` if the block ends without an error."""

    @abstractmethod
    def stage(self, name: str, fill: Fill) -> str:
        """Write a file under a new, unique name in the staging folder, which is returned.

        Args:
            fill: writes the content to the file that it is given; called again if the store fails.
        """

    @abstractmethod
    def promote(self, staged: str, name: str) -> None:
        """Give a staged file its final name, durably."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file, if it exists."""

    @abstractmethod
    def delete_folder(self, folder: str) -> None:
        """Remove a folder with all that is in it, if it exists."""

    @abstractmethod
    def clean(self) -> None:
        """Remove what a killed run left: staged and temporary files. Only for the holder of the lock."""

    def write(self, name: str, content: str | bytes) -> None:
        """Replace a file at once."""
        with self.replacing(name) as file:
            file.write(content.encode() if isinstance(content, str) else content)

    def exists(self, name: str) -> bool:
        return self.size(name) is not None

    def path(self, name: str) -> str:
        """How a file is shown to the user."""
        return f"{self}/{name}"


Out = Store | Path | str
"""What every function that reads or writes a dataset takes: where it lies."""


def open_store(out: Out) -> Store:
    """The store of a folder or URL; a store is returned as it is.

    Raises:
        InputError: the URL is of no store that is known, or has keys in it.
        StoreRefusedError, StoreFailedError: the store cannot be reached.
    """
    if isinstance(out, Store):
        return out
    if isinstance(out, Path) or not is_url(out):
        return LocalStore(Path(out).absolute())
    check_url(out)
    from synthgen.shards.object_store import ObjectStore  # pyarrow is heavy

    return ObjectStore.from_url(out)


def is_url(text: str) -> bool:
    return "://" in text


def check_url(url: str) -> None:
    """Raise InputError if a URL is of no store that is known, names no bucket, or has keys in it (it ends up in job.yaml)."""
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.scheme not in SCHEMES:
        raise InputError(f"{shown!r}: give a folder, or a URL that begins with {', '.join(f'{s}://' for s in SCHEMES)}")
    if parts.password is not None or parts.username not in ((None, "anonymous") if parts.scheme in ("gs", "gcs") else (None,)):
        raise InputError(f"{shown!r}: no user or key in a URL; credentials come from the environment or the machine's profile")
    unknown = [key for key, _ in parse_qsl(parts.query, keep_blank_values=True) if key not in QUERY]
    if unknown:
        raise InputError(f"{shown!r}: {unknown[0]!r} cannot be given in a URL; only {', '.join(QUERY)} can, and never a key")
    if not parts.netloc or re.search(r"(^|/)\.{1,2}(/|$)|//|#", parts.path + ("#" if parts.fragment else "")):
        raise InputError(f"{shown!r}: give {parts.scheme}://BUCKET/FOLDER, without . and ..")


def refuse_unshared(out: Out, shared: bool, nodes: int) -> None:
    """Raise InputError if workers on several machines would write to a folder that each has its own of."""
    if nodes > 1 and not shared and isinstance(open_store(out), LocalStore):
        raise InputError(
            f"output.path: {out} is a folder, and the cluster has {nodes} nodes: each would write to its own disk. Give an "
            "object store (s3://…), or output.shared=true if all nodes see this folder under this name"
        )


class LocalStore(Store):
    """A folder. What gets its final name was synced to the disk before, and the folder after."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalStore) and self.root == other.root

    def __hash__(self) -> int:
        return hash(self.root)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def open(self, name: str) -> BinaryIO:
        return (self.root / name).open("rb")

    def size(self, name: str) -> int | None:
        try:
            return (self.root / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sizes(self, folder: str) -> Iterator[tuple[str, int]]:
        try:
            with os.scandir(self.root / folder) as entries:
                yield from ((entry.name, entry.stat().st_size) for entry in entries if entry.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return

    @contextmanager
    def replacing(self, name: str) -> Iterator[BinaryIO]:
        with replacing(self.root / name) as temporary, temporary.open("wb") as file:
            yield file
            file.flush()

    def stage(self, name: str, fill: Fill) -> str:
        staged = f"{STAGING}/{uuid.uuid4().hex}-{name}"
        (self.root / STAGING).mkdir(parents=True, exist_ok=True)
        with (self.root / staged).open("wb") as file:
            fill(file)
        return staged

    def promote(self, staged: str, name: str) -> None:
        try:
            promote(self.root / staged, self.root / name)
        except FileNotFoundError:
            raise InputError(
                f"{self.path(staged)}: a worker wrote this file, and it is not here. If workers are on other machines, "
                "output.path must be an object store (s3://…), or a folder that all of them see"
            ) from None

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def delete_folder(self, folder: str) -> None:
        shutil.rmtree(self.root / folder, ignore_errors=True)

    def clean(self) -> None:
        self.delete_folder(STAGING)
        for folder in (self.root, self.root / "shards", self.root / "annotations"):
            for path in folder.glob(f".*{TEMPORARY}"):
                path.unlink(missing_ok=True)


def digest(path: Path, name: str = "sha256") -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return digest_of(file, name)


def digest_of(file: BinaryIO, name: str = "sha256") -> str:
    """Hex digest of an open file, from its beginning; it stands there again afterwards."""
    source: Any = file  # BinaryIO lacks the readinto that all of these have
    file.seek(0)
    found = hashlib.file_digest(source, name).hexdigest()
    file.seek(0)
    return found


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


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
