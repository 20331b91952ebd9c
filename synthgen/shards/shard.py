"""One shard: a tar of samples, a table of what is known of them, and the marker that makes both valid."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthgen.shards.sample import Sample, table_schema
from synthgen.shards.store import digest, promote, staged, write_text


@dataclass(frozen=True)
class Marker:
    """What `shards/NNNNNN.json` says of a shard; a shard without a valid one does not exist.

    Attributes:
        numerics: what the pixels depend on besides the job: device, versions, batch size, chunk, threads.
        seconds: time that the shard took.
        attempts: how many pictures were painted for it, rejected ones too.
    """

    count: int
    first_index: int
    bytes: int
    sha256: str
    md5: str
    parquet_bytes: int
    parquet_sha256: str
    numerics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    attempts: int = 0


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
    table = pa.Table.from_pylist([s.row(name) for s in samples], table_schema(samples[0].conditions))
    pq.write_table(table, parquet, compression="zstd")
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


def read_marker(out: Path, number: int) -> Marker | None:
    """The marker of a committed shard; None if it has no valid one, or its files are gone or of another size."""
    try:
        marker = Marker(**json.loads(shard_path(out, number, ".json").read_text()))
        sizes = [shard_path(out, number, s).stat().st_size for s in (".tar", ".parquet")]
    except (OSError, ValueError, TypeError):
        return None
    return marker if sizes == [marker.bytes, marker.parquet_bytes] else None


def committed(out: Path) -> list[int]:
    """Numbers of the shards that have a valid marker, ascending."""
    found = sorted(int(p.stem) for p in (out / "shards").glob("*.json") if p.stem.isdigit())
    return [number for number in found if read_marker(out, number) is not None]


def read_rows(out: Path, number: int) -> list[dict[str, Any]]:
    """The rows of a committed shard's table."""
    rows: list[dict[str, Any]] = pq.read_table(shard_path(out, number, ".parquet")).to_pylist()
    return rows


def read_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each member of a shard's tar.

    Raises:
        tarfile.ReadError, EOFError: the tar is damaged or cut short.
    """
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            data = file.read() if file else b""
            if len(data) != member.size:
                raise tarfile.ReadError(f"{member.name}: cut short")
            yield member.name, data
