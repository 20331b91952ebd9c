"""Files in a folder, which are replaced atomically."""

import errno
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from synthgen.errors import InputError
from synthgen.storage.base import STAGING, TEMPORARY, Fill, Store

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

NO_FOLDER_FSYNC = (
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EBADF,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
)
"""Errors of fsync of a folder, or of opening it for that, which are not failures.

The file system has no fsync of folders, or the folder cannot be listed.
"""
BUSY = (errno.EBUSY, errno.EACCES, errno.EPERM, errno.ETXTBSY)
"""Errors of a rename over a file that another program reads, on SMB."""
BUSY_PAUSES = (0.05, 0.1, 0.2, 0.4)  # seconds before each retry
_devices_without_folder_fsync: set[int] = set()  # those that were logged


class LocalStore(Store):
    """A store in a folder.

    A file is synced to the disk before it gets its final name, and the folder is synced after.
    """

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
        from synthgen.storage.parquet import open_input  # pyarrow is heavy

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
                except FileNotFoundError:  # a run has renamed or deleted it meanwhile
                    size = None
                if size is not None:
                    yield entry.name, size

    @contextmanager
    def open_replacement(self, name: str) -> Iterator[BinaryIO]:
        with replace_atomically(self.root / name) as temporary, temporary.open("wb") as file:
            yield file
            file.flush()

    @contextmanager
    def open_table_replacement(self, name: str) -> Iterator[Any]:
        from synthgen.storage.parquet import open_output  # pyarrow is heavy

        with replace_atomically(self.root / name) as temporary, open_output(temporary) as file:
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
                f"{self.path(staged)}: a worker wrote this file, and it is not here. If workers "
                "are on other machines, output.path must be an object store (s3://…), or a folder "
                "that all of them see"
            ) from None

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def delete_folder(self, folder: str) -> None:
        shutil.rmtree(self.root / folder, ignore_errors=True)

    def clean(self, folders: Iterable[str] = ()) -> None:
        self.delete_folder(STAGING)
        for folder in ("", *folders):
            for path in (self.root / folder).glob(f".*{TEMPORARY}"):
                path.unlink(missing_ok=True)


def hash_file(path: Path, name: str = "sha256") -> str:
    """Return the hex digest of a file.

    Args:
        name: the hash function, as hashlib names it.
    """
    with path.open("rb") as file:
        return hash_open_file(file, name)


def hash_open_file(file: BinaryIO, name: str = "sha256") -> str:
    """Return the hex digest of an open file from its beginning, and rewind the file.

    Args:
        name: the hash function, as hashlib names it.
    """
    source: Any = file  # BinaryIO lacks `readinto`, which all these files have
    file.seek(0)
    hex_digest = hashlib.file_digest(source, name).hexdigest()
    file.seek(0)
    return hex_digest


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces `path` if the block ends without an error.

    The temporary name does not contain the final one, which may be as long as a name can be.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{uuid.uuid4().hex}{TEMPORARY}")
    try:
        yield temporary
        promote(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(path: Path) -> None:
    """Create a folder and its parents where they do not exist.

    Raises:
        InputError: a file, or a link that leads to no folder, has that name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        obstacle = path
        while not os.path.lexists(obstacle):
            obstacle = obstacle.parent
        if not obstacle.is_symlink():
            raise InputError(f"{obstacle}: is a file, not a folder; give another folder") from None
        raise InputError(
            f"{obstacle}: is a link to {os.readlink(obstacle)}, which is no folder; "
            "make that folder, or give another"
        ) from None


def promote(source: Path, target: Path) -> None:
    """Give a finished file its final name, durably: fsync, rename, fsync the folder."""
    identity = _fsync_file(source)
    make_folder(target.parent)
    _rename(source, target, identity)
    _fsync_folder(target.parent)


def _rename(source: Path, target: Path, identity: tuple[int, int]) -> None:
    """Rename a file over an existing one, in spite of what file servers do.

    A server may refuse it while another program has the old file open (SMB), for a while or always.
    Or it renames the file, its answer is lost, and the repeated request of NFS finds no file.

    Args:
        identity: the device and inode of the source.
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
    """Sync a file to the disk, and return its device and inode.

    It is opened for writing, because SMB ignores the fsync of a file that is open for reading.
    """
    try:
        handle = os.open(path, os.O_RDWR)
    except PermissionError:  # a worker wrote it as another user
        handle = os.open(path, os.O_RDONLY)
    try:
        _fsync(handle)
        return _identity(os.fstat(handle))
    except OSError as error:
        error.filename = str(path)  # an error of a handle has no file name
        raise
    finally:
        os.close(handle)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _fsync(handle: int) -> None:
    """Sync an open file to the disk.

    On macOS os.fsync leaves the data in the cache of the disk; F_FULLFSYNC does not.
    """
    full_fsync = getattr(fcntl, "F_FULLFSYNC", None)
    if full_fsync is not None:
        with suppress(OSError):  # the file system may not support it
            fcntl.fcntl(handle, full_fsync)
            return
    os.fsync(handle)


def _fsync_folder(path: Path) -> None:
    """Sync the names in a folder to the disk.

    Many file systems (SMB, FUSE) cannot do it or do not need it; that is logged once.
    """
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
        if device not in _devices_without_folder_fsync:
            _devices_without_folder_fsync.add(device)
            log.info(
                "%s: the file system cannot sync a folder to the disk: %s", path, error.strerror
            )
