"""The marker of a shard, which makes it valid; and which shards a dataset has."""

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
MARKER, TABLE, TAR = ".json", ".parquet", ".tar"
NUMBER = re.compile(r"[0-9]{6}|[1-9][0-9]{6,8}")  # what `shard_name` gives


@dataclass(frozen=True)
class Marker:
    """What `shards/NNNNNN.json` says of a shard; a shard without a valid one does not exist.

    Attributes:
        numerics: what the pixels depend on besides the job (`synthgen.pipelines.base.Numerics`).
        seconds: time that the shard took.
        attempts: how many pictures were painted for it, rejected ones too.
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


VALID = TypeAdapter(Marker)


def shard_name(number: int) -> str:
    return f"{number:06d}"


def shard_file(number: int, suffix: str) -> str:
    """The name of a shard's file in its dataset."""
    return f"shards/{shard_name(number)}{suffix}"


def parse_marker(data: bytes) -> Marker:
    """What the bytes of a marker say; raises ValueError if they are none."""
    from_json(data)
    return VALID.validate_json(data, strict=True)


def stored_marker(store: Store, number: int) -> Marker | None:
    """What the marker of a shard says, whatever became of the shard; None if it has no valid one."""
    try:
        return parse_marker(store.read(shard_file(number, MARKER)))
    except (OSError, ValueError):
        return None


def read_marker(store: Store, number: int) -> Marker | None:
    """The marker of a committed shard; None if it has no valid one, or its files are gone or of another size."""
    return _marker(
        store, number, *(store.size(shard_file(number, suffix)) for suffix in (TAR, TABLE))
    )


def _marker(store: Store, number: int, *sizes: int | None) -> Marker | None:
    marker = stored_marker(store, number)
    return marker if marker and sizes == (marker.bytes, marker.parquet_bytes) else None


def shard_sizes(store: Store) -> dict[int, dict[str, int]]:
    """The files in the shards' folder: bytes by suffix by number, ascending; one listing, which is asked for page by page."""
    found: dict[int, dict[str, int]] = {}
    for name, size in store.sizes("shards"):
        stem, dot, suffix = name.partition(".")
        if NUMBER.fullmatch(stem) and f"{dot}{suffix}" in (MARKER, TABLE, TAR):
            found.setdefault(int(stem), {})[f"{dot}{suffix}"] = size
    return dict(sorted(found.items()))


def count_marked(found: dict[int, dict[str, int]]) -> int:
    """Return how many shards have a marker, valid or not: the number that decides how many COCO files a dataset has.

    Args:
        found: what `shard_sizes` says.
    """
    return sum(MARKER in files for files in found.values())


def scan(
    store: Store, found: dict[int, dict[str, int]] | None = None
) -> Iterator[tuple[int, Marker]]:
    """Number and marker of each committed shard, ascending; many are read at the same time, few are held.

    Args:
        found: what `shard_sizes` says, if it is known.
    """
    sizes = shard_sizes(store) if found is None else found
    numbers = [number for number, files in sizes.items() if MARKER in files]
    read = ahead(
        lambda n: _marker(store, n, sizes[n].get(TAR), sizes[n].get(TABLE)), numbers, store.threads
    )
    yield from (
        (number, marker) for number, marker in zip(numbers, read, strict=True) if marker is not None
    )


def committed(store: Store) -> list[int]:
    """Numbers of the shards that have a valid marker, ascending."""
    return [number for number, _ in scan(store)]


def ahead(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """The results of a function, in order, made by threads that are at most twice their number ahead."""
    rest, waiting = iter(items), deque[Future[R]]()
    with ThreadPoolExecutor(threads) as pool:
        waiting.extend(pool.submit(function, item) for item in islice(rest, 2 * threads))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(rest, 1))
            yield result
