"""The marker of a shard, which makes the shard valid, and the scan for the shards of a dataset."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter

from synthgen.storage.base import Store
from synthgen.strict_json import from_json

T = TypeVar("T")
R = TypeVar("R")
Count = Annotated[int, Field(ge=0, lt=2**63)]
MARKER = ".json"
TABLE = ".parquet"
TAR = ".tar"
NUMBER = re.compile(r"[0-9]{6}|[1-9][0-9]{6,8}")  # what `format_shard_name` returns


@dataclass(frozen=True)
class Marker:
    """The content of `shards/NNNNNN.json`. A shard without a valid marker does not exist.

    Attributes:
        count: number of samples.
        first_index: index of the first sample.
        bytes: size of the tar.
        sha256: SHA-256 hash of the tar.
        md5: MD5 hash of the tar.
        parquet_bytes: size of the table.
        parquet_sha256: SHA-256 hash of the table.
        numerics: settings besides the job that the pixels depend on
            (`synthgen.pipelines.base.Numerics`).
        seconds: time to generate the shard.
        attempts: number of images generated for the shard, including rejected ones.
    """

    count: Annotated[int, Field(ge=1, le=100_000)]
    first_index: Annotated[int, Field(ge=0, lt=10**9)]
    bytes: Count
    sha256: str
    md5: str
    parquet_bytes: Count
    parquet_sha256: str
    numerics: dict[str, Any] = field(default_factory=dict)
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    attempts: Count = 0


MARKER_ADAPTER = TypeAdapter(Marker)


def format_shard_name(number: int) -> str:
    """Return the name of a shard: its number with at least six digits."""
    return f"{number:06d}"


def format_shard_file(number: int, suffix: str) -> str:
    """Return the name of a shard's file in its dataset.

    Args:
        suffix: MARKER, TABLE or TAR.
    """
    return f"shards/{format_shard_name(number)}{suffix}"


def parse_marker(data: bytes) -> Marker:
    """Parse the content of a marker file.

    Raises:
        ValueError: the content is not a valid marker.
    """
    from_json(data)
    return MARKER_ADAPTER.validate_json(data, strict=True)


def read_stored_marker(store: Store, number: int) -> Marker | None:
    """Return the marker of a shard, or None if it is missing or invalid; ignore the other files."""
    try:
        return parse_marker(store.read(format_shard_file(number, MARKER)))
    except (OSError, ValueError):
        return None


def read_marker(store: Store, number: int) -> Marker | None:
    """Return the marker of a committed shard.

    Returns:
        None if the shard has no valid marker, or if its tar or table is missing or does not have
        the size that the marker records.
    """
    tar_bytes = store.size(format_shard_file(number, TAR))
    table_bytes = store.size(format_shard_file(number, TABLE))
    return _read_matching_marker(store, number, tar_bytes, table_bytes)


def _read_matching_marker(
    store: Store, number: int, tar_bytes: int | None, table_bytes: int | None
) -> Marker | None:
    """Return the marker of a shard if the files have the sizes that it records, otherwise None."""
    marker = read_stored_marker(store, number)
    if marker is None or (tar_bytes, table_bytes) != (marker.bytes, marker.parquet_bytes):
        return None
    return marker


def list_shard_files(store: Store) -> dict[int, dict[str, int]]:
    """Return the sizes of the files of all shards, from one (paged) listing of their folder.

    Returns:
        For each number of a shard, in ascending order, the sizes in bytes of its files by their
        suffix (MARKER, TABLE, TAR).
    """
    sizes: dict[int, dict[str, int]] = {}
    for name, size in store.sizes("shards"):
        stem, dot, rest = name.partition(".")
        suffix = f"{dot}{rest}"
        if NUMBER.fullmatch(stem) and suffix in (MARKER, TABLE, TAR):
            sizes.setdefault(int(stem), {})[suffix] = size
    return dict(sorted(sizes.items()))


def count_marked(sizes: dict[int, dict[str, int]]) -> int:
    """Return how many shards have a marker, valid or not.

    This number decides how many COCO files a dataset has.

    Args:
        sizes: the result of `list_shard_files`.
    """
    return sum(MARKER in files for files in sizes.values())


def scan_markers(
    store: Store, sizes: dict[int, dict[str, int]] | None = None
) -> Iterator[tuple[int, Marker]]:
    """Yield the number and marker of each committed shard, in ascending order.

    Several markers are read at the same time, but only a few are kept in memory.

    Args:
        sizes: the result of `list_shard_files`; None: the files are listed here.
    """
    known_sizes = list_shard_files(store) if sizes is None else sizes

    def read_listed_marker(number: int) -> Marker | None:
        files = known_sizes[number]
        return _read_matching_marker(store, number, files.get(TAR), files.get(TABLE))

    numbers = [number for number, files in known_sizes.items() if MARKER in files]
    markers = map_ahead(read_listed_marker, numbers, store.threads)
    for number, marker in zip(numbers, markers, strict=True):
        if marker is not None:
            yield number, marker


def list_committed_shards(store: Store) -> list[int]:
    """Return the numbers of the committed shards, in ascending order."""
    return [number for number, _ in scan_markers(store)]


def map_ahead(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Yield the result of a function for each item, in order, while threads compute later results.

    The threads are at most `2 * threads` results ahead.
    """
    remaining = iter(items)
    pending = deque[Future[R]]()
    with ThreadPoolExecutor(threads) as pool:
        for item in islice(remaining, 2 * threads):
            pending.append(pool.submit(function, item))
        while pending:
            result = pending.popleft().result()
            for item in islice(remaining, 1):
                pending.append(pool.submit(function, item))
            yield result
