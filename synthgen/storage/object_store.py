"""Files on S3, Google Cloud Storage or HDFS, through `pyarrow.fs`; transient errors are met by asking again."""

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

WAITS = (
    0.5,
    1.0,
    2.0,
    4.0,
    8.0,
    16.0,
    30.0,
)  # seconds before each further try, halved to whole at random
BLOCK = 8 * 2**20  # bytes that are moved at a time
COPY_LIMIT = 5 * 2**30  # bytes: S3 copies no larger object in one request
CONNECT_SECONDS = REQUEST_SECONDS = 10.0
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
REFUSED = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|NO_SUCH_KEY|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH"
    r"|INVALID_SIGNATURE|MISSING_AUTHENTICATION_TOKEN|UNRECOGNIZED_CLIENT|EXPIRED|REQUEST_TIME_TOO_SKEWED|OPT_IN_REQUIRED"
    r"|ACCOUNT_PROBLEM|HTTP status (?:400|401|403|404|405|411|412)\b|Bucket '.*' not found"  # S3
    r"|PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|Permission denied|Unable to load lib",  # GCS, HDFS
)


class ObjectStore(Store):
    """Files below `root`, which is `bucket/folder` (of HDFS: a path).

    Pickled as its URL alone: whoever unpickles it looks for credentials in their own environment.

    Args:
        url: as the user gave it.
        files: pyarrow's file system.
    """

    threads = 32

    def __init__(self, url: str, files: Any, root: str) -> None:
        self.url, self.files, self.root = url, files, root.rstrip("/")
        self.renames = files.type_name not in (
            "s3",
            "gcs",
        )  # else a put is atomic, and promotion is a server-side copy

    @classmethod
    def from_url(cls, url: str) -> "ObjectStore":
        try:
            files, root = attempted(lambda: connect(url), url)
        except (ValueError, NotImplementedError) as error:  # such as pyarrow.ArrowInvalid
            raise StoreRefusedError(f"{url}: {told(error)}") from None
        return cls(url.rstrip("/"), files, root)

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectStore.from_url, (self.url,)

    def __str__(self) -> str:
        return self.url.partition("?")[0]

    def read(self, name: str) -> bytes:
        def once() -> bytes:
            with self.files.open_input_file(
                self._at(name)
            ) as file:  # a stream asks for each 256 kB alone
                return bytes(file.read())

        return self._attempted(once, name)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A copy of the file on this machine's disk, gone when it is closed."""
        with tempfile.TemporaryFile() as file:
            self._download(name, file)
            yield file

    @contextmanager
    def open_table(self, name: str) -> Iterator[Any]:
        """The same; the copy has a name until Arrow has opened it."""
        with tempfile.NamedTemporaryFile() as file:
            self._download(name, file)
            table = open_input(Path(file.name))
        with table:
            yield table

    def _download(self, name: str, file: Any) -> None:
        """Copy a file of the store to a file of this machine, which then stands at its beginning."""

        def once() -> None:
            file.seek(0)
            file.truncate()
            with self.files.open_input_stream(self._at(name), compression=None) as stream:
                shutil.copyfileobj(stream, file, BLOCK)

        self._attempted(once, name)
        file.seek(0)  # which flushes too

    def size(self, name: str) -> int | None:
        found = self._info(name)
        return None if found is None else int(found.size)

    def _info(self, name: str) -> Any:
        """What pyarrow says of a file; None if there is none."""
        found = self._attempted(lambda: self.files.get_file_info(self._at(name)), name)
        return found if found.type == arrow.FileType.File else None

    def sizes(self, folder: str) -> Iterator[tuple[str, int]]:
        yield from ((name, size) for name, size, _ in self.listing(folder))

    def listing(self, folder: str) -> Iterator[tuple[str, int, float]]:
        """Name, bytes and time of change (seconds, by the store's clock) of each file in a folder; pyarrow asks page by page."""
        selector = arrow.FileSelector(self._at(folder), allow_not_found=True)
        for found in self._attempted(lambda: self.files.get_file_info(selector), folder):
            if found.type == arrow.FileType.File:
                yield found.base_name, int(found.size), (found.mtime_ns or 0) / 1e9

    def write(self, name: str, content: str | bytes) -> None:
        data = content.encode() if isinstance(content, str) else content
        if self.renames:
            super().write(name, data)
        else:
            self._attempted(lambda: self._put(name, lambda file: file.write(data)), name)

    @contextmanager
    def replacing(self, name: str) -> Iterator[BinaryIO]:
        """Written to this machine's disk, then uploaded, so that an upload that is cut can be made again."""
        with tempfile.TemporaryFile() as file:
            yield file
            self._upload(name, file)

    @contextmanager
    def replacing_table(self, name: str) -> Iterator[Any]:
        """The same; the file of this machine has a name until Arrow has opened it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "table"
            table = open_output(path)
            file = path.open("rb")
        with file:
            with table:
                yield table
            self._upload(name, file)

    def _upload(self, name: str, file: BinaryIO) -> None:
        """Replace a file of the store by a file of this machine."""

        def fill(stream: BinaryIO) -> None:
            file.seek(0)
            shutil.copyfileobj(file, stream, BLOCK)

        self.promote(self.stage(name.rpartition("/")[2], fill), name)

    def stage(self, name: str, fill: Fill) -> str:
        """Every try has a name of its own; what a failed one left counts nowhere."""

        def once() -> str:
            staged = f"{STAGING}/{uuid.uuid4().hex}-{name}"
            written = self._put(staged, fill)
            if self.size(staged) != written:
                raise OSError(f"{staged}: not the {written} bytes that were sent")
            return staged

        return self._attempted(once, name)

    def promote(self, staged: str, name: str) -> None:
        """Every request can be made again, also where the store has done it and its answer was lost."""
        if self.renames:
            source = self._info(staged)
            if source is None:
                raise FileNotFoundError(f"{self.path(staged)}: no such file")
            self._attempted(lambda: self._move(source, name), name)
        else:
            self._attempted(lambda: self._copy(staged, name), name)
            self.delete(staged)

    def delete(self, name: str) -> None:
        def once() -> None:
            # HDFS tells a file that is not there from no other failure
            if (
                self.renames
                and self.files.get_file_info(self._at(name)).type != arrow.FileType.File
            ):
                return
            self.files.delete_file(self._at(name))

        with suppress(FileNotFoundError):
            self._attempted(once, name)

    def delete_folder(self, folder: str) -> None:
        with suppress(FileNotFoundError):
            self._attempted(lambda: self.files.delete_dir(self._at(folder)), folder)

    def clean(self, folders: Iterable[str] = ()) -> None:
        self.delete_folder(STAGING)

    def _put(self, name: str, fill: Fill) -> int:
        """Upload (multipart, where it is large); returns how many bytes."""
        if self.renames:
            self._make_parent(name)
        with self.files.open_output_stream(self._at(name), compression=None) as stream:
            fill(stream)
            return int(stream.tell())

    def _move(self, source: Any, name: str) -> None:
        """Move a file over what is there, once.

        Args:
            source: what the store said of it before the first try.
        """
        target = self._at(name)
        left, there = self.files.get_file_info([source.path, target])
        if left.type != arrow.FileType.File:
            if (
                there.type == arrow.FileType.File
                and there.size == source.size
                and there.mtime_ns == source.mtime_ns
            ):
                return  # an earlier try did it, and its answer was lost
            raise FileNotFoundError(f"{source.path}: no such file")
        if there.type == arrow.FileType.File:
            self.files.delete_file(target)
        self._make_parent(name)
        self.files.move(source.path, target)

    def _copy(self, staged: str, name: str) -> None:
        source, target = self._at(staged), self._at(name)
        if (self.size(staged) or 0) <= COPY_LIMIT:
            self.files.copy_file(source, target)
        else:
            with self.files.open_input_stream(source, compression=None) as stream:
                self._put(name, lambda file: shutil.copyfileobj(stream, file, BLOCK))

    def _make_parent(self, name: str) -> None:
        self.files.create_dir(self._at(name).rpartition("/")[0], recursive=True)

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")

    def _attempted(self, what: Callable[[], T], name: str) -> T:
        return attempted(what, self.path(name))


def attempted(what: Callable[[], T], place: str) -> T:
    """The result of a request, asked again with growing pauses while errors are such as pass.

    Raises:
        FileNotFoundError: there is no such file.
        StoreRefusedError: asking again would not help.
        StoreFailedError: it did not help.
    """
    for wait in (*WAITS, None):
        try:
            return what()
        except FileNotFoundError:
            raise
        except OSError as error:
            if REFUSED.search(str(error)):
                raise StoreRefusedError(f"{place}: {told(error)}") from None
            if wait is None:
                raise StoreFailedError(
                    f"{place}: the store failed {len(WAITS) + 1} times: {told(error)}"
                ) from None
        time.sleep(wait * random.uniform(0.5, 1.0))
    raise AssertionError


def told(error: Exception) -> str:
    """What an error says, on one line and without secrets."""
    text = " ".join(str(error).split())
    for name in SECRETS:
        if os.environ.get(name):
            text = text.replace(os.environ[name], f"[{name}]")
    return text[:500]


def connect(url: str) -> tuple[Any, str]:
    """pyarrow's file system of a URL, and the path in it. Credentials are found by pyarrow, in the environment or the profile.

    The endpoint of another S3 than Amazon's: `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, or `?endpoint_override=` in the URL.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3":
        files, path = arrow.FileSystem.from_uri(url)
        return files, path
    query, environment = dict(parse_qsl(parts.query)), os.environ
    endpoint = (
        query.get("endpoint_override")
        or environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL")
    )
    region = (
        query.get("region")
        or environment.get("AWS_REGION")
        or environment.get("AWS_DEFAULT_REGION")
    )
    options: dict[str, Any] = {
        "region": region or (None if endpoint else arrow.resolve_s3_region(parts.netloc))
    }
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        options |= {
            "endpoint_override": host.rstrip("/"),
            "scheme": scheme or query.get("scheme", "https"),
        }
    options |= {"connect_timeout": CONNECT_SECONDS, "request_timeout": REQUEST_SECONDS}
    options |= {"background_writes": False}  # which would hold all of a large file in memory
    files = arrow.S3FileSystem(allow_delayed_open=True, **options)
    return files, parts.netloc + parts.path
