"""One shard: a tar of samples and a table of what is known of them, staged, committed and read."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from synthgen.dataset.marker import MARKER, TABLE, TAR, Marker, shard_file, shard_name
from synthgen.dataset.sample import OPTIONAL, Sample, row_fault, table_of, table_schema
from synthgen.errors import InputError, first_line
from synthgen.storage.base import Store
from synthgen.storage.parquet import decode_table, encode_table
from synthgen.strict_json import to_json

BROKEN = (
    tarfile.TarError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    OverflowError,
)  # what tarfile raises of any bytes


class DamagedShardError(InputError):
    """A shard's file is not what a shard's file is; the message names it, and what is wrong."""


@dataclass(frozen=True)
class StagedShard:
    """A finished shard under temporary names of its store, not yet part of the dataset."""

    number: int
    tar: str
    parquet: str
    marker: Marker


def stage(
    store: Store,
    number: int,
    samples: Sequence[Sample],
    numerics: dict[str, Any],
    seconds: float,
    attempts: int,
) -> StagedShard:
    """Write tar and table under unique temporary names; the bytes depend on the samples alone."""
    name = shard_name(number)
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


def commit(store: Store, shard: StagedShard) -> None:
    """Make a staged shard part of the dataset: tar, then table, then marker. Only the driver calls this."""
    store.delete(shard_file(shard.number, MARKER))  # an older, shorter shard ends here
    store.promote(shard.tar, shard_file(shard.number, TAR))
    store.promote(shard.parquet, shard_file(shard.number, TABLE))
    store.write(shard_file(shard.number, MARKER), to_json(asdict(shard.marker), indent=1) + "\n")


def withdraw(store: Store, number: int) -> None:
    """Take a shard out of the dataset: its marker goes first."""
    for suffix in (MARKER, TABLE, TAR):
        store.delete(shard_file(number, suffix))


def read_table(store: Store, number: int) -> pa.Table:
    """The table of a committed shard: `table_schema`, a row a sample.

    Raises:
        DamagedShardError: it cannot be read, or has other columns.
    """
    name = shard_file(number, TABLE)
    try:
        return parse_table(store.read(name), store.path(name))
    except OSError as error:
        raise DamagedShardError(
            f"{store.path(name)}: cannot be read: {first_line(error)}"
        ) from None


def parse_table(data: bytes, place: str) -> pa.Table:
    """The same of the bytes of a table; `place` is named in errors."""
    try:
        table = decode_table(data)
        schema = table_schema(table.column_names)
        there = {name: table.schema.field(name).type for name in table.column_names}
        wrong = [
            f.name
            for f in schema
            if there.get(f.name) != f.type and (f.name in there or f.name not in OPTIONAL)
        ]
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        raise DamagedShardError(f"{place}: cannot be read: {first_line(error)}") from None
    if wrong:
        raise DamagedShardError(
            f"{place}: not the table of a shard: column {wrong[0]!r} is missing or of another type"
        )
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
        if fault := row_fault(row) or (
            row["shard"] != shard_name(number) and f"is of shard {row['shard']!r}"
        ):
            raise DamagedShardError(f"{place}: sample {row['index']}: {fault}")
    return rows


def read_rows(store: Store, number: int) -> list[dict[str, Any]]:
    """The rows of a committed shard's table.

    Raises:
        DamagedShardError: it is not the table of a shard.
    """
    return rows_of(read_table(store, number), store.path(shard_file(number, TABLE)), number)


def shard_members(store: Store, number: int) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each member of a committed shard's tar, as `read_members`."""
    name = shard_file(number, TAR)
    try:
        with store.open(name) as file:
            yield from read_members(file, store.path(name))
    except OSError as error:
        raise DamagedShardError(
            f"{store.path(name)}: cannot be read: {first_line(error)}"
        ) from None


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
