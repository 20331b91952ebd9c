"""One shard: a tar of samples, a table of what is known of them, and the marker that makes both valid."""

import hashlib
import io
import re
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import pyarrow as pa
from pydantic import Field, TypeAdapter

from synthgen.errors import InputError, first_line
from synthgen.parquet import decode_table, encode_table
from synthgen.shards.sample import OPTIONAL, Sample, row_fault, table_of, table_schema
from synthgen.shards.store import Out, Store, open_store
from synthgen.shards.strict_json import from_json, to_json

T = TypeVar("T")
R = TypeVar("R")
Count = Annotated[int, Field(ge=0, lt=2**63)]
MARKER, TABLE, TAR = ".json", ".parquet", ".tar"
NUMBER = re.compile(r"[0-9]{6}|[1-9][0-9]{6,8}")  # what `shard_name` gives
BROKEN = (tarfile.TarError, OSError, EOFError, ValueError, LookupError, OverflowError)  # what tarfile raises of any bytes


class DamagedShardError(InputError):
    """A shard's file is not what a shard's file is; the message names it, and what is wrong."""


@dataclass(frozen=True)
class Marker:
    """What `shards/NNNNNN.json` says of a shard; a shard without a valid one does not exist.

    Attributes:
        numerics: what the pixels depend on besides the job (`synthgen.pipelines.Numerics`).
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


@dataclass(frozen=True)
class StagedShard:
    """A finished shard under temporary names of its store, not yet part of the dataset."""

    number: int
    tar: str
    parquet: str
    marker: Marker


def shard_name(number: int) -> str:
    return f"{number:06d}"


def shard_file(number: int, suffix: str) -> str:
    """The name of a shard's file in its dataset."""
    return f"shards/{shard_name(number)}{suffix}"


def stage(
    out: Out, number: int, samples: Sequence[Sample], numerics: dict[str, Any], seconds: float, attempts: int
) -> StagedShard:
    """Write tar and table under unique temporary names; the bytes depend on the samples alone."""
    store, name = open_store(out), shard_name(number)
    table = encode_table(table_of(samples, name))
    tar, of_tar = _stage(store, f"{name}{TAR}", lambda file: write_tar(file, samples))
    parquet, of_parquet = _stage(store, f"{name}{TABLE}", lambda file: file.write(table))
    marker = Marker(
        count=len(samples),
        first_index=samples[0].index,
        bytes=of_tar.bytes,
        sha256=of_tar.sha256.hexdigest(),
        md5=of_tar.md5.hexdigest(),
        parquet_bytes=of_parquet.bytes,
        parquet_sha256=of_parquet.sha256.hexdigest(),
        numerics=numerics,
        seconds=round(seconds, 3),
        attempts=attempts,
    )
    return StagedShard(number, tar, parquet, marker)


class _Digested(io.RawIOBase):
    """Passes what is written on to a file, and takes its digests."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.bytes = file, 0
        self.sha256, self.md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.bytes

    def write(self, data: Any) -> int:
        self.file.write(data)
        for digest in (self.sha256, self.md5):
            digest.update(data)
        self.bytes += len(data)
        return len(data)


def _stage(store: Store, name: str, write: Callable[[_Digested], object]) -> tuple[str, _Digested]:
    tries: list[_Digested] = []

    def fill(file: BinaryIO) -> None:
        tries.append(_Digested(file))
        write(tries[-1])

    return store.stage(name, fill), tries[-1]


def write_tar(file: Any, samples: Sequence[Sample]) -> None:
    """A WebDataset tar: `<key>.<format>` then `<key>.json`, in order, with no times and no owner."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for suffix, data in ((sample.image_format, sample.image), ("json", sample.json())):
                member = tarfile.TarInfo(f"{sample.key}.{suffix}")
                member.size, member.mode = len(data), 0o644
                tar.addfile(member, io.BytesIO(data))


def commit(out: Out, shard: StagedShard) -> None:
    """Make a staged shard part of the dataset: tar, then table, then marker. Only the driver calls this."""
    store = open_store(out)
    store.delete(shard_file(shard.number, MARKER))  # an older, shorter shard ends here
    store.promote(shard.tar, shard_file(shard.number, TAR))
    store.promote(shard.parquet, shard_file(shard.number, TABLE))
    store.write(shard_file(shard.number, MARKER), to_json(asdict(shard.marker), indent=1) + "\n")


def withdraw(out: Out, number: int) -> None:
    """Take a shard out of the dataset: its marker goes first."""
    for suffix in (MARKER, TABLE, TAR):
        open_store(out).delete(shard_file(number, suffix))


def parse_marker(data: bytes) -> Marker:
    """What the bytes of a marker say; raises ValueError if they are none."""
    from_json(data)
    return VALID.validate_json(data, strict=True)


def stored_marker(out: Out, number: int) -> Marker | None:
    """What the marker of a shard says, whatever became of the shard; None if it has no valid one."""
    try:
        return parse_marker(open_store(out).read(shard_file(number, MARKER)))
    except (OSError, ValueError):
        return None


def read_marker(out: Out, number: int) -> Marker | None:
    """The marker of a committed shard; None if it has no valid one, or its files are gone or of another size."""
    store = open_store(out)
    return _marker(store, number, *(store.size(shard_file(number, suffix)) for suffix in (TAR, TABLE)))


def _marker(store: Store, number: int, *sizes: int | None) -> Marker | None:
    marker = stored_marker(store, number)
    return marker if marker and sizes == (marker.bytes, marker.parquet_bytes) else None


def shard_sizes(out: Out) -> dict[int, dict[str, int]]:
    """The files in the shards' folder: bytes by suffix by number, ascending; one listing, which is asked for page by page."""
    found: dict[int, dict[str, int]] = {}
    for name, size in open_store(out).sizes("shards"):
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


def scan(out: Out, found: dict[int, dict[str, int]] | None = None) -> Iterator[tuple[int, Marker]]:
    """Number and marker of each committed shard, ascending; many are read at the same time, few are held.

    Args:
        found: what `shard_sizes` says, if it is known.
    """
    store = open_store(out)
    sizes = shard_sizes(store) if found is None else found
    numbers = [number for number, files in sizes.items() if MARKER in files]
    read = ahead(lambda n: _marker(store, n, sizes[n].get(TAR), sizes[n].get(TABLE)), numbers, store.threads)
    yield from ((number, marker) for number, marker in zip(numbers, read, strict=True) if marker is not None)


def committed(out: Out) -> list[int]:
    """Numbers of the shards that have a valid marker, ascending."""
    return [number for number, _ in scan(out)]


def ahead(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """The results of a function, in order, made by threads that are at most twice their number ahead."""
    rest, waiting = iter(items), deque[Future[R]]()
    with ThreadPoolExecutor(threads) as pool:
        waiting.extend(pool.submit(function, item) for item in islice(rest, 2 * threads))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(rest, 1))
            yield result


def read_table(out: Out, number: int) -> pa.Table:
    """The table of a committed shard: `table_schema`, a row a sample.

    Raises:
        DamagedShardError: it cannot be read, or has other columns.
    """
    store, name = open_store(out), shard_file(number, TABLE)
    try:
        return parse_table(store.read(name), store.path(name))
    except OSError as error:
        raise DamagedShardError(f"{store.path(name)}: cannot be read: {first_line(error)}") from None


def parse_table(data: bytes, place: str) -> pa.Table:
    """The same of the bytes of a table; `place` is named in errors."""
    try:
        table = decode_table(data)
        schema = table_schema(table.column_names)
        there = {name: table.schema.field(name).type for name in table.column_names}
        wrong = [f.name for f in schema if there.get(f.name) != f.type and (f.name in there or f.name not in OPTIONAL)]
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        raise DamagedShardError(f"{place}: cannot be read: {first_line(error)}") from None
    if wrong:
        raise DamagedShardError(f"{place}: not the table of a shard: column {wrong[0]!r} is missing or of another type")
    return table


def rows_of(table: pa.Table, place: str, number: int) -> list[dict[str, Any]]:
    """The rows of a shard's table.

    Raises:
        DamagedShardError: one is not a sample's; `place` is named.
    """
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except (ValueError, pa.ArrowException) as error:  # such as text that is not UTF-8
        raise DamagedShardError(f"{place}: cannot be read: {first_line(error)}") from None
    for row in rows:
        if fault := row_fault(row) or (row["shard"] != shard_name(number) and f"is of shard {row['shard']!r}"):
            raise DamagedShardError(f"{place}: sample {row['index']}: {fault}")
    return rows


def read_rows(out: Out, number: int) -> list[dict[str, Any]]:
    """The rows of a committed shard's table.

    Raises:
        DamagedShardError: it is not the table of a shard.
    """
    return rows_of(read_table(out, number), open_store(out).path(shard_file(number, TABLE)), number)


def shard_members(out: Out, number: int) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each member of a committed shard's tar, as `read_members`."""
    store, name = open_store(out), shard_file(number, TAR)
    try:
        with store.open(name) as file:
            yield from read_members(file, store.path(name))
    except OSError as error:
        raise DamagedShardError(f"{store.path(name)}: cannot be read: {first_line(error)}") from None


def read_members(source: Path | BinaryIO, place: str = "") -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each member of a shard's tar. A name is only ever a name: nothing is unpacked.

    Args:
        place: named in errors, if the source is not a path.

    Raises:
        DamagedShardError: the tar is damaged or cut short, or has a link or anything else than plain files.
    """
    opened: dict[str, Any] = {"name": source} if isinstance(source, Path) else {"fileobj": source}
    try:
        with tarfile.open(mode="r:", **opened) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() and not member.issparse() else None
                if file is None:
                    raise tarfile.ReadError(f"{member.name!r} is not a plain file")
                data = file.read()
                if len(data) != member.size:
                    raise tarfile.ReadError(f"{member.name!r} is cut short")
                yield member.name, data
    except BROKEN as error:
        raise DamagedShardError(f"{place or source}: cannot be read: {first_line(error)}") from None
