"""Where a dataset lies: a folder or an object store, with the same few verbs, none of which leaves half a file."""

import errno
import hashlib
import logging
import os
import re
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, urlsplit

from synthgen.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

STAGING = ".staging"
TEMPORARY = ".tmp"
JOURNAL = "log.jsonl"  # what runs did (`synthgen.engine.journal`)
SCHEMES = ("s3", "gs", "gcs", "hdfs")
QUERY = ("region", "scheme", "endpoint_override", "user", "replication")  # what a URL may say; never keys

NO_FOLDER_FSYNC = (
    *(errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF),
    *(errno.EACCES, errno.EPERM, errno.EISDIR),
)
"""What fsync of a folder, or opening it for that, gives where a file system has no such thing, or the folder cannot be listed."""
BUSY = (errno.EBUSY, errno.EACCES, errno.EPERM, errno.ETXTBSY)
"""What a rename over a file gives on SMB while another program reads that file."""
BUSY_PAUSES = (0.05, 0.1, 0.2, 0.4)  # seconds before another try
_told: set[int] = set()  # devices whose folders cannot be synced

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
    def open_table(self, name: str) -> AbstractContextManager[Any]:
        """A Parquet file as Arrow reads it (`synthgen.parquet`)."""

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
    def replacing_table(self, name: str) -> AbstractContextManager[Any]:
        """The same for a Parquet file, as Arrow writes it (`synthgen.parquet`)."""

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

    def open_table(self, name: str) -> AbstractContextManager[Any]:
        from synthgen.parquet import open_input  # pyarrow is heavy

        return open_input(self.root / name)

    def size(self, name: str) -> int | None:
        try:
            return (self.root / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sizes(self, folder: str) -> Iterator[tuple[str, int]]:
        try:
            entries = os.scandir(self.root / folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        with entries:
            for entry in entries:
                try:
                    size = entry.stat().st_size if entry.is_file() else None
                except FileNotFoundError:  # a run that works here has renamed or removed it meanwhile
                    size = None
                if size is not None:
                    yield entry.name, size

    @contextmanager
    def replacing(self, name: str) -> Iterator[BinaryIO]:
        with replacing(self.root / name) as temporary, temporary.open("wb") as file:
            yield file
            file.flush()

    @contextmanager
    def replacing_table(self, name: str) -> Iterator[Any]:
        from synthgen.parquet import open_output  # pyarrow is heavy

        with replacing(self.root / name) as temporary, open_output(temporary) as file:
            yield file

    def stage(self, name: str, fill: Fill) -> str:
        staged = f"{STAGING}/{uuid.uuid4().hex}-{name}"
        make_folder(self.root / STAGING)
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
    make_folder(path.parent)
    temporary = path.with_name(f".{uuid.uuid4().hex}{TEMPORARY}")  # without the name, which may be as long as names can be
    try:
        yield temporary
        promote(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file at once."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(path: Path) -> None:
    """Create a folder and those above it, where they are missing.

    Raises:
        InputError: a file, or a link that leads to no folder, stands in the way.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        there = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
        if not there.is_symlink():
            raise InputError(f"{there}: is a file, not a folder; give another folder") from None
        raise InputError(
            f"{there}: is a link to {os.readlink(there)}, which is no folder; make that folder, or give another"
        ) from None


def promote(source: Path, target: Path) -> None:
    """Give a finished file its final name, durably: fsync, rename, fsync the folder."""
    identity = _fsync_file(source)
    make_folder(target.parent)
    _rename(source, target, identity)
    _fsync_folder(target.parent)


def _rename(source: Path, target: Path, identity: tuple[int, int]) -> None:
    """Rename a file over what is there, also where a file server makes that hard.

    A server refuses it while another program has the old file open (SMB), which passes; or always; or it carries the
    request out, its answer is lost, and the request that NFS repeats finds nothing.

    Args:
        identity: device and inode of the source.
    """
    for pause in (*BUSY_PAUSES, None):
        try:
            source.replace(target)
            return
        except FileNotFoundError:
            if target.exists() and _identity(target.stat()) == identity:
                return
            raise
        except FileExistsError:
            target.unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in BUSY or pause is None or not target.exists():
                raise
        if pause is not None:
            time.sleep(pause)
    source.replace(target)


def _fsync_file(path: Path) -> tuple[int, int]:
    """Write a file to the disk; returns its device and inode. It is opened for writing, as SMB passes over others."""
    try:
        handle = os.open(path, os.O_RDWR)
    except PermissionError:  # a worker wrote it as another user
        handle = os.open(path, os.O_RDONLY)
    try:
        _fsync(handle)
        return _identity(os.fstat(handle))
    except OSError as error:
        error.filename = str(path)  # which a handle does not name
        raise
    finally:
        os.close(handle)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _fsync(handle: int) -> None:
    """Write an open file to the disk. On macOS os.fsync leaves it in the disk's own memory, where F_FULLFSYNC does not."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with suppress(OSError):  # a file system that does not know it
            fcntl.fcntl(handle, full)
            return
    os.fsync(handle)


def _fsync_folder(path: Path) -> None:
    """Write the names in a folder to the disk. Many a file system (SMB, FUSE) cannot, or has no need to: it is told once."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            _fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in NO_FOLDER_FSYNC:
            raise
        device = path.stat().st_dev
        if device not in _told:
            _told.add(device)
            log.info("%s: the file system there writes no names of files to the disk when asked: %s", path, error.strerror)
