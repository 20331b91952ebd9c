"""One shard: a tar of samples and a table of their metadata, staged, committed and read."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from synthgen.dataset.marker import MARKER, TABLE, TAR, Marker, format_shard_file, format_shard_name
from synthgen.dataset.sample import OPTIONAL, Sample, build_table_schema, find_row_fault, table_of
from synthgen.errors import InputError, get_first_line
from synthgen.storage.base import Store
from synthgen.storage.parquet import decode_table, encode_table
from synthgen.strict_json import to_json

# What tarfile raises for arbitrary bytes.
TAR_ERRORS = (
    tarfile.TarError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    OverflowError,
)


class DamagedShardError(InputError):
    """A file of a shard is damaged; the message names the file and the fault."""


@dataclass(frozen=True)
class StagedShard:
    """A finished shard under temporary names, not yet part of the dataset.

    Attributes:
        number: the number of the shard.
        tar: temporary name of the tar in its store.
        parquet: temporary name of the table in its store.
        marker: the marker that is written when the shard is committed.
    """

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
    """Write tar and table under unique temporary names; the bytes depend on the samples alone.

    Args:
        numerics: a field of the marker, as are seconds and attempts (see `Marker`).
    """
    name = format_shard_name(number)
    table = encode_table(table_of(samples, name))
    tar_path, tar = _stage(store, f"{name}{TAR}", lambda file: write_tar(file, samples))
    table_path, parquet = _stage(store, f"{name}{TABLE}", lambda file: file.write(table))
    marker = Marker(
        count=len(samples),
        first_index=samples[0].index,
        bytes=tar.bytes,
        sha256=tar.sha256.hexdigest(),
        md5=tar.md5.hexdigest(),
        parquet_bytes=parquet.bytes,
        parquet_sha256=parquet.sha256.hexdigest(),
        numerics=numerics,
        seconds=round(seconds, 3),
        attempts=attempts,
    )
    return StagedShard(number, tar_path, table_path, marker)


class _HashingFile(io.RawIOBase):
    """A file that passes what is written to another file, and computes its digests.

    Attributes:
        bytes: how many were written.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.bytes = 0
        self.sha256 = hashlib.sha256()
        self.md5 = hashlib.md5(usedforsecurity=False)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.bytes

    def write(self, data: Any) -> int:
        self.file.write(data)
        self.sha256.update(data)
        self.md5.update(data)
        self.bytes += len(data)
        return len(data)


def _stage(
    store: Store, name: str, write: Callable[[_HashingFile], object]
) -> tuple[str, _HashingFile]:
    """Stage a file; return its temporary name, and the file with its digests.

    Args:
        write: writes the content.
    """
    attempts: list[_HashingFile] = []  # the store calls `fill` again after a failure

    def fill(file: BinaryIO) -> None:
        attempts.append(_HashingFile(file))
        write(attempts[-1])

    staged_name = store.stage(name, fill)
    return staged_name, attempts[-1]


def write_tar(file: Any, samples: Sequence[Sample]) -> None:
    """Write a WebDataset tar: `<key>.<format>` and `<key>.json` of each sample, in order.

    The members have no times and no owners, so that the bytes depend on the samples alone.
    """
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for suffix, data in ((sample.image_format, sample.image), ("json", sample.json())):
                member = tarfile.TarInfo(f"{sample.key}.{suffix}")
                member.size = len(data)
                member.mode = 0o644
                tar.addfile(member, io.BytesIO(data))


def commit(store: Store, shard: StagedShard) -> None:
    """Make a staged shard part of the dataset: tar, then table, then marker.

    Only the driver calls this. The marker of an older, shorter shard is deleted first.
    """
    store.delete(format_shard_file(shard.number, MARKER))
    store.promote(shard.tar, format_shard_file(shard.number, TAR))
    store.promote(shard.parquet, format_shard_file(shard.number, TABLE))
    store.write(
        format_shard_file(shard.number, MARKER), to_json(asdict(shard.marker), indent=1) + "\n"
    )


def withdraw(store: Store, number: int) -> None:
    """Remove a shard from the dataset, its marker first."""
    for suffix in (MARKER, TABLE, TAR):
        store.delete(format_shard_file(number, suffix))


def read_table(store: Store, number: int) -> pa.Table:
    """Return the table of a committed shard, a row per sample (see `build_table_schema`).

    Raises:
        DamagedShardError: it cannot be read, or has other columns.
    """
    name = format_shard_file(number, TABLE)
    try:
        return parse_table(store.read(name), store.path(name))
    except OSError as error:
        raise _unreadable(store.path(name), error) from None


def parse_table(data: bytes, place: str) -> pa.Table:
    """Return the table of a shard that these bytes hold.

    Args:
        place: named in errors.

    Raises:
        DamagedShardError: it cannot be read, or has other columns.
    """
    try:
        table = decode_table(data)
        wrong = _wrong_columns(table)
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        raise _unreadable(place, error) from None
    if wrong:
        raise DamagedShardError(
            f"{place}: not the table of a shard: column {wrong[0]!r} is missing or of another type"
        )
    return table


def _wrong_columns(table: pa.Table) -> list[str]:
    """Return the names of the columns that are missing or not of the schema's type."""
    types = {name: table.schema.field(name).type for name in table.column_names}
    wrong = []
    for column in build_table_schema(table.column_names):
        if column.name not in types:
            if column.name not in OPTIONAL:
                wrong.append(column.name)
        elif types[column.name] != column.type:
            wrong.append(column.name)
    return wrong


def _unreadable(place: str, error: BaseException) -> DamagedShardError:
    return DamagedShardError(f"{place}: cannot be read: {get_first_line(error)}")


def parse_rows(table: pa.Table, place: str, number: int) -> list[dict[str, Any]]:
    """Return the rows of a shard's table.

    Args:
        place: named in errors.
        number: the number of the shard.

    Raises:
        DamagedShardError: a row is not that of a sample.
    """
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except (ValueError, pa.ArrowException) as error:  # such as text that is not UTF-8
        raise _unreadable(place, error) from None
    for row in rows:
        fault = find_row_fault(row)
        if fault is None and row["shard"] != format_shard_name(number):
            fault = f"is of shard {row['shard']!r}"
        if fault is not None:
            raise DamagedShardError(f"{place}: sample {row['index']}: {fault}")
    return rows


def read_rows(store: Store, number: int) -> list[dict[str, Any]]:
    """Return the rows of a committed shard's table.

    Raises:
        DamagedShardError: it is not the table of a shard.
    """
    place = store.path(format_shard_file(number, TABLE))
    return parse_rows(read_table(store, number), place, number)


def list_shard_members(store: Store, number: int) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each member of a committed shard's tar.

    Raises:
        DamagedShardError: see `read_members`.
    """
    name = format_shard_file(number, TAR)
    try:
        with store.open(name) as file:
            yield from read_members(file, store.path(name))
    except OSError as error:
        raise _unreadable(store.path(name), error) from None


def read_members(source: Path | BinaryIO, place: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each member of a shard's tar.

    Nothing is unpacked, so a member's name cannot lead to a file.

    Args:
        place: named in errors, if the source is not a path.

    Raises:
        DamagedShardError: the tar is damaged or truncated, or has members other than plain files.
    """
    opened: dict[str, Any] = {"name": source} if isinstance(source, Path) else {"fileobj": source}
    try:
        with tarfile.open(mode="r:", **opened) as tar:
            for member in tar:
                yield member.name, _read_member(tar, member)
    except TAR_ERRORS as error:
        raise _unreadable(place or str(source), error) from None


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    is_plain = member.isreg() and not member.issparse()
    file = tar.extractfile(member) if is_plain else None
    if file is None:
        raise tarfile.ReadError(f"{member.name!r} is not a plain file")
    data = file.read()
    if len(data) != member.size:
        raise tarfile.ReadError(f"{member.name!r} is truncated")
    return data
