"""Files in a folder, and files that are replaced whole or not at all."""

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
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

NO_FOLDER_FSYNC = (
    *(errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF),
    *(errno.EACCES, errno.EPERM, errno.EISDIR),
)
"""What fsync of a folder, or opening it for that, gives where a file system has no such thing, or the folder cannot be listed."""
BUSY = (errno.EBUSY, errno.EACCES, errno.EPERM, errno.ETXTBSY)
"""What a rename over a file gives on SMB while another program reads that file."""
BUSY_PAUSES = (0.05, 0.1, 0.2, 0.4)  # seconds before another try
_told: set[int] = set()  # devices whose folders cannot be synced


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
                except (
                    FileNotFoundError
                ):  # a run that works here has renamed or removed it meanwhile
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
        from synthgen.storage.parquet import open_output  # pyarrow is heavy

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

    def clean(self, folders: Iterable[str] = ()) -> None:
        self.delete_folder(STAGING)
        for folder in ("", *folders):
            for path in (self.root / folder).glob(f".*{TEMPORARY}"):
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
    temporary = path.with_name(
        f".{uuid.uuid4().hex}{TEMPORARY}"
    )  # without the name, which may be as long as names can be
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
            log.info(
                "%s: the file system there writes no names of files to the disk when asked: %s",
                path,
                error.strerror,
            )
