"""One shard: a tar of samples, a table of what is known of them, and the marker that makes both valid."""

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import Field, TypeAdapter

from synthgen.errors import InputError
from synthgen.records.pictures import DAMAGED
from synthgen.shards.sample import IMAGE_FORMATS, Sample, parse_sample, row_fault, table_of, table_schema
from synthgen.shards.store import digest, promote, staged, write_text

Count = Annotated[int, Field(ge=0, lt=2**63)]
BROKEN = (tarfile.TarError, OSError, EOFError, ValueError, LookupError, OverflowError)  # what tarfile raises of any bytes
NUMBER = re.compile(r"[0-9]{6}|[1-9][0-9]{6,8}")  # what `shard_name` gives


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


MARKER = TypeAdapter(Marker)


@dataclass(frozen=True)
class StagedShard:
    """A finished shard under temporary names, not yet part of the dataset."""

    number: int
    tar: str
    parquet: str
    marker: Marker


def shard_name(number: int) -> str:
    return f"{number:06d}"


def shard_path(out: Path, number: int, suffix: str) -> Path:
    return out / "shards" / f"{shard_name(number)}{suffix}"


def stage(
    out: Path, number: int, samples: Sequence[Sample], numerics: dict[str, Any], seconds: float, attempts: int
) -> StagedShard:
    """Write tar and table under unique temporary names; the bytes depend on the samples alone."""
    name = shard_name(number)
    tar, parquet = staged(out, f"{name}.tar"), staged(out, f"{name}.parquet")
    write_tar(tar, samples)
    pq.write_table(table_of(samples, name), parquet, compression="zstd")
    marker = Marker(
        count=len(samples),
        first_index=samples[0].index,
        bytes=tar.stat().st_size,
        sha256=digest(tar),
        md5=digest(tar, "md5"),
        parquet_bytes=parquet.stat().st_size,
        parquet_sha256=digest(parquet),
        numerics=numerics,
        seconds=round(seconds, 3),
        attempts=attempts,
    )
    return StagedShard(number, str(tar), str(parquet), marker)


def write_tar(path: Path, samples: Sequence[Sample]) -> None:
    """A WebDataset tar: `<key>.<format>` then `<key>.json`, in order, with no times and no owner."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for suffix, data in ((sample.image_format, sample.image), ("json", sample.json())):
                member = tarfile.TarInfo(f"{sample.key}.{suffix}")
                member.size, member.mode = len(data), 0o644
                tar.addfile(member, io.BytesIO(data))


def commit(out: Path, shard: StagedShard) -> None:
    """Make a staged shard part of the dataset: tar, then table, then marker. Only the driver calls this."""
    shard_path(out, shard.number, ".json").unlink(missing_ok=True)  # an older, shorter shard ends here
    promote(Path(shard.tar), shard_path(out, shard.number, ".tar"))
    promote(Path(shard.parquet), shard_path(out, shard.number, ".parquet"))
    write_text(shard_path(out, shard.number, ".json"), json.dumps(asdict(shard.marker), indent=1) + "\n")


def withdraw(out: Path, number: int) -> None:
    """Take a shard out of the dataset: its marker goes first."""
    for suffix in (".json", ".parquet", ".tar"):
        shard_path(out, number, suffix).unlink(missing_ok=True)


def stored_marker(out: Path, number: int) -> Marker | None:
    """What the marker of a shard says, whatever became of the shard; None if it has no valid one."""
    try:
        return MARKER.validate_json(shard_path(out, number, ".json").read_bytes(), strict=True)
    except (OSError, ValueError):
        return None


def read_marker(out: Path, number: int) -> Marker | None:
    """The marker of a committed shard; None if it has no valid one, or its files are gone or of another size."""
    marker = stored_marker(out, number)
    try:
        sizes = [shard_path(out, number, s).stat().st_size for s in (".tar", ".parquet")]
    except OSError:
        return None
    return marker if marker and sizes == [marker.bytes, marker.parquet_bytes] else None


def shard_numbers(out: Path) -> list[int]:
    """Numbers of the shards that have any file, ascending."""
    files = (out / "shards").iterdir() if (out / "shards").is_dir() else ()
    return sorted({int(p.stem) for p in files if NUMBER.fullmatch(p.stem)})


def committed(out: Path) -> list[int]:
    """Numbers of the shards that have a valid marker, ascending."""
    return [number for number in shard_numbers(out) if read_marker(out, number) is not None]


def read_rows(out: Path, number: int) -> list[dict[str, Any]]:
    """The rows of a committed shard's table.

    Raises:
        DamagedShardError: it is not the table of a shard.
    """
    path = shard_path(out, number, ".parquet")
    try:
        table = pq.read_table(path)
        wanted = table_schema(table.column_names)
        wrong = [f.name for f in wanted if f.name not in table.column_names or table.schema.field(f.name).type != f.type]
        rows: list[dict[str, Any]] = [] if wrong else table.to_pylist()
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        raise DamagedShardError(f"{path}: cannot be read: {first_line(error)}") from None
    if wrong:
        raise DamagedShardError(f"{path}: not the table of a shard: column {wrong[0]!r} is missing or of another type")
    for row in rows:
        if fault := row_fault(row) or (row["shard"] != shard_name(number) and f"is of shard {row['shard']!r}"):
            raise DamagedShardError(f"{path}: sample {row['index']}: {fault}")
    return rows


def read_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each member of a shard's tar. A name is only ever a name: nothing is unpacked.

    Raises:
        DamagedShardError: the tar is damaged or cut short, or has a link or anything else than plain files.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() and not member.issparse() else None
                if file is None:
                    raise tarfile.ReadError(f"{member.name!r} is not a plain file")
                data = file.read()
                if len(data) != member.size:
                    raise tarfile.ReadError(f"{member.name!r} is cut short")
                yield member.name, data
    except BROKEN as error:
        raise DamagedShardError(f"{path}: cannot be read: {first_line(error)}") from None


def read_samples(out: Path, number: int) -> Iterator[Sample]:
    """The samples of a shard, in order, from its tar alone.

    Raises:
        DamagedShardError: its members are not pairs of a picture and its json.
    """
    path, members = shard_path(out, number, ".tar"), read_members(shard_path(out, number, ".tar"))
    for name, picture in members:
        (key, _, kind), (record_name, record) = name.partition("."), next(members, ("nothing", b""))
        if kind not in IMAGE_FORMATS or record_name != f"{key}.json":
            raise DamagedShardError(f"{path}: {name!r} and {record_name!r} are not a picture and its json")
        try:
            sample = parse_sample(record, picture, kind)
        except ValueError as error:
            raise DamagedShardError(f"{path}: {key!r}: {error}") from None
        if sample.key != key:
            raise DamagedShardError(f"{path}: {key!r}: its index is {sample.index}")
        yield sample


def decoded(data: bytes, place: str) -> Image.Image:
    """A picture of a shard, decoded whole, as RGB.

    Raises:
        DamagedShardError: it does not decode.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except DAMAGED as error:
        raise DamagedShardError(f"{place}: picture does not decode: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
