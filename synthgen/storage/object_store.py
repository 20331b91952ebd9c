"""Files on S3, Google Cloud Storage or HDFS, through `pyarrow.fs`.

Requests that fail with a transient error are retried.
"""

import os
import random
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pyarrow import fs as arrow

from synthgen.errors import StoreFailedError, StoreRefusedError
from synthgen.storage.base import STAGING, Fill, Store
from synthgen.storage.parquet import open_input, open_output

T = TypeVar("T")

BACKOFF = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before each retry; a random factor from 0.5 to 1 is applied."""
BLOCK = 8 * 2**20  # bytes that are copied at a time
COPY_LIMIT = 5 * 2**30  # bytes: S3 copies no larger object in one request
CONNECT_SECONDS = 10.0
REQUEST_SECONDS = 10.0
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
REFUSED_BY_S3 = (
    r"ACCESS_DENIED|NO_SUCH_BUCKET|NO_SUCH_KEY|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID"
    r"|SIGNATURE_DOES_NOT_MATCH|INVALID_SIGNATURE|MISSING_AUTHENTICATION_TOKEN"
    r"|UNRECOGNIZED_CLIENT|EXPIRED|REQUEST_TIME_TOO_SKEWED|OPT_IN_REQUIRED|ACCOUNT_PROBLEM"
    r"|HTTP status (?:400|401|403|404|405|411|412)\b|Bucket '.*' not found"
)
REFUSED_BY_GCS_OR_HDFS = (
    r"PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|Permission denied|Unable to load lib"
)
REFUSED = re.compile(f"{REFUSED_BY_S3}|{REFUSED_BY_GCS_OR_HDFS}")
"""Errors for which a retry would not help."""


class ObjectStore(Store):
    """The files below `root`, which is `bucket/folder` (on HDFS a path).

    It is pickled as its URL alone; the process that unpickles it looks for credentials in its own
    environment.

    Args:
        url: the URL as the user gave it.
        files: pyarrow's file system.
    """

    threads = 32

    def __init__(self, url: str, files: Any, root: str) -> None:
        self.url = url
        self.files = files
        self.root = root.rstrip("/")
        # An upload to S3 or GCS is atomic, and a file is promoted by a copy in the store.
        self.renames = files.type_name not in ("s3", "gcs")

    @classmethod
    def from_url(cls, url: str) -> "ObjectStore":
        """Connect to the store of a URL.

        Raises:
            StoreRefusedError, StoreFailedError: the store cannot be reached.
        """
        try:
            files, root = retry(lambda: connect(url), url)
        except (ValueError, NotImplementedError) as error:  # such as pyarrow.ArrowInvalid
            raise StoreRefusedError(f"{url}: {describe_error(error)}") from None
        return cls(url.rstrip("/"), files, root)

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectStore.from_url, (self.url,)

    def __str__(self) -> str:
        return self.url.partition("?")[0]

    def read(self, name: str) -> bytes:
        def attempt() -> bytes:
            # An input stream would make a request for each 256 kB.
            with self.files.open_input_file(self._full_path(name)) as file:
                return bytes(file.read())

        return self._retry(attempt, name)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open a copy of the file on this machine's disk, which is deleted when it is closed."""
        with tempfile.TemporaryFile() as file:
            self.download(name, file)
            yield file

    @contextmanager
    def open_table(self, name: str) -> Iterator[Any]:
        """Do the same for Arrow; the copy has a name until Arrow has opened it."""
        with tempfile.NamedTemporaryFile() as file:
            self.download(name, file)
            table = open_input(Path(file.name))
        with table:
            yield table

    def download(self, name: str, file: Any) -> None:
        """Copy a file of the store to a file of this machine, and rewind that."""

        def attempt() -> None:
            file.seek(0)
            file.truncate()
            with self.files.open_input_stream(self._full_path(name), compression=None) as stream:
                shutil.copyfileobj(stream, file, BLOCK)

        self._retry(attempt, name)
        file.seek(0)  # which also flushes it

    def size(self, name: str) -> int | None:
        info = self._file_info(name)
        return None if info is None else int(info.size)

    def _file_info(self, name: str) -> Any:
        """Return pyarrow's FileInfo of a file; None if it does not exist."""
        info = self._retry(lambda: self.files.get_file_info(self._full_path(name)), name)
        return info if info.type == arrow.FileType.File else None

    def sizes(self, folder: str) -> Iterator[tuple[str, int]]:
        for name, size, _ in self.list_files(folder):
            yield name, size

    def list_files(self, folder: str) -> Iterator[tuple[str, int, float]]:
        """Yield the name, bytes and modification time of each file in a folder.

        The time is in seconds by the store's clock. pyarrow requests the list page by page.
        """
        selector = arrow.FileSelector(self._full_path(folder), allow_not_found=True)
        for info in self._retry(lambda: self.files.get_file_info(selector), folder):
            if info.type == arrow.FileType.File:
                yield info.base_name, int(info.size), (info.mtime_ns or 0) / 1e9

    def write(self, name: str, content: str | bytes) -> None:
        data = content.encode() if isinstance(content, str) else content
        if self.renames:
            super().write(name, data)
        else:
            self._retry(lambda: self._put(name, lambda file: file.write(data)), name)

    @contextmanager
    def open_replacement(self, name: str) -> Iterator[BinaryIO]:
        """Open a file of this machine to write to, and upload it at the end of the block.

        Nothing is uploaded if the block raises. An upload that is cut can be retried.
        """
        with tempfile.TemporaryFile() as file:
            yield file
            self._upload(name, file)

    @contextmanager
    def open_table_replacement(self, name: str) -> Iterator[Any]:
        """Do the same for Arrow; the file of this machine has a name until Arrow has opened it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "table"
            table = open_output(path)
            file = path.open("rb")
        with file:
            with table:
                yield table
            self._upload(name, file)

    def _upload(self, name: str, file: BinaryIO) -> None:
        """Replace a file of the store with a file of this machine."""

        def fill(stream: BinaryIO) -> None:
            file.seek(0)
            shutil.copyfileobj(file, stream, BLOCK)

        staged = self.stage(name.rpartition("/")[2], fill)
        self.promote(staged, name)

    def stage(self, name: str, fill: Fill) -> str:
        """Write a staged file; every attempt has a name of its own, and a failed one is ignored."""

        def attempt() -> str:
            staged = f"{STAGING}/{uuid.uuid4().hex}-{name}"
            written = self._put(staged, fill)
            if self.size(staged) != written:
                raise OSError(f"{staged}: not the {written} bytes that were sent")
            return staged

        return self._retry(attempt, name)

    def promote(self, staged: str, name: str) -> None:
        """Give a staged file its final name.

        Every request can be repeated, even if the store has carried it out and its answer was lost.
        """
        if self.renames:
            source = self._file_info(staged)
            if source is None:
                raise FileNotFoundError(f"{self.path(staged)}: no such file")
            self._retry(lambda: self._move(source, name), name)
        else:
            self._retry(lambda: self._copy(staged, name), name)
            self.delete(staged)

    def delete(self, name: str) -> None:
        path = self._full_path(name)

        def attempt() -> None:
            # HDFS reports a file that does not exist as it reports any other failure.
            if self.renames and self.files.get_file_info(path).type != arrow.FileType.File:
                return
            self.files.delete_file(path)

        with suppress(FileNotFoundError):
            self._retry(attempt, name)

    def delete_folder(self, folder: str) -> None:
        with suppress(FileNotFoundError):
            self._retry(lambda: self.files.delete_dir(self._full_path(folder)), folder)

    def clean(self, folders: Iterable[str] = ()) -> None:
        self.delete_folder(STAGING)

    def _put(self, name: str, fill: Fill) -> int:
        """Upload a file once (in parts if it is large), and return its bytes."""
        if self.renames:
            self._make_parent(name)
        with self.files.open_output_stream(self._full_path(name), compression=None) as stream:
            fill(stream)
            return int(stream.tell())

    def _move(self, source: Any, name: str) -> None:
        """Move a file over an existing one; one attempt.

        Args:
            source: pyarrow's FileInfo of the file before the first attempt.
        """
        target = self._full_path(name)
        source_info, target_info = self.files.get_file_info([source.path, target])
        target_exists = target_info.type == arrow.FileType.File
        if source_info.type != arrow.FileType.File:
            same_size = target_info.size == source.size
            same_time = target_info.mtime_ns == source.mtime_ns
            if target_exists and same_size and same_time:
                return  # an earlier attempt has moved it, and its answer was lost
            raise FileNotFoundError(f"{source.path}: no such file")
        if target_exists:
            self.files.delete_file(target)
        self._make_parent(name)
        self.files.move(source.path, target)

    def _copy(self, staged: str, name: str) -> None:
        """Copy a file within the store; one attempt."""
        source = self._full_path(staged)
        if (self.size(staged) or 0) <= COPY_LIMIT:
            self.files.copy_file(source, self._full_path(name))
        else:
            with self.files.open_input_stream(source, compression=None) as stream:
                self._put(name, lambda file: shutil.copyfileobj(stream, file, BLOCK))

    def _make_parent(self, name: str) -> None:
        folder = self._full_path(name).rpartition("/")[0]
        self.files.create_dir(folder, recursive=True)

    def _full_path(self, name: str) -> str:
        """Return the path of a file in pyarrow's file system."""
        return f"{self.root}/{name}".rstrip("/")

    def _retry(self, attempt: Callable[[], T], name: str) -> T:
        return retry(attempt, self.path(name))


def retry(attempt: Callable[[], T], place: str) -> T:
    """Return the result of a request, which is retried with backoff after transient errors.

    Args:
        place: the path or URL that errors name.

    Raises:
        FileNotFoundError: there is no such file.
        StoreRefusedError: a retry would not help.
        StoreFailedError: the last attempt failed too.
    """
    for pause in (*BACKOFF, None):
        try:
            return attempt()
        except FileNotFoundError:
            raise
        except OSError as error:
            text = describe_error(error)
            if REFUSED.search(str(error)):
                raise StoreRefusedError(f"{place}: {text}") from None
            if pause is None:
                raise StoreFailedError(
                    f"{place}: the store failed {len(BACKOFF) + 1} times: {text}"
                ) from None
        time.sleep(pause * random.uniform(0.5, 1.0))
    raise AssertionError


def describe_error(error: Exception) -> str:
    """Return the message of an error on one line and without secrets."""
    text = " ".join(str(error).split())
    for name in SECRETS:
        if os.environ.get(name):
            text = text.replace(os.environ[name], f"[{name}]")
    return text[:500]


def connect(url: str) -> tuple[Any, str]:
    """Return pyarrow's file system of a URL, and the path in it.

    pyarrow finds the credentials in the environment or in the profile of the machine. The endpoint
    of an S3 service other than Amazon's is given in `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, or
    `?endpoint_override=` in the URL.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3":
        files, path = arrow.FileSystem.from_uri(url)
        return files, path
    query = dict(parse_qsl(parts.query))
    endpoint = (
        query.get("endpoint_override")
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
    )
    region = (
        query.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    )
    if not region and not endpoint:
        region = arrow.resolve_s3_region(parts.netloc)
    options: dict[str, Any] = {
        "region": region or None,
        "connect_timeout": CONNECT_SECONDS,
        "request_timeout": REQUEST_SECONDS,
        "background_writes": False,  # they would hold all of a large file in memory
    }
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        options["endpoint_override"] = host.rstrip("/")
        options["scheme"] = scheme or query.get("scheme", "https")
    files = arrow.S3FileSystem(allow_delayed_open=True, **options)
    return files, parts.netloc + parts.path
