"""The files that join all shards: manifest.parquet, a row per sample, and index.json for `wids`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from synthgen.dataset.marker import TAR, Marker, format_shard_file
from synthgen.dataset.sample import SCHEMA, VERIFIED, build_table_schema
from synthgen.dataset.shard import DamagedShardError
from synthgen.storage.base import Store
from synthgen.storage.parquet import open_writer
from synthgen.strict_json import to_json

EXCLUDED = ("bbox", "segmentation", "area", "iscrowd", "source")
"""Columns of a shard's table that the manifest does not have."""


class Manifest:
    """Writes manifest.parquet, a row group per shard, and counts what it writes.

    Attributes:
        counts: {"images", "boxes", "shards", "bytes", "verified"}, as `finalize` returns them.
        has_masks: an annotation has a segmentation.
        has_source: a sample has the further fields of the COCO file it was imported from.
    """

    def __init__(self, file: pa.NativeFile) -> None:
        self.file = file
        self.has_masks = False
        self.has_source = False
        self.writer: Any = None
        self.counts: dict[str, Any] = {
            "images": 0,
            "boxes": 0,
            "shards": 0,
            "bytes": 0,
            "verified": {},
        }

    def add(self, marker: Marker, table: pa.Table) -> None:
        """Write the rows of a shard's table.

        Raises:
            DamagedShardError: it lacks a column that the first table has.
        """
        if self.writer is None:
            self.begin(table.column_names)
        missing = set(self.names).difference(table.column_names)
        if missing:
            raise DamagedShardError(
                f"the shard of sample {marker.first_index} has no column {min(missing)!r}, "
                "but the first has"
            )
        self.writer.write_table(table.select(self.names).cast(self.writer.schema))
        masks = pc.list_flatten(table["segmentation"])
        self.has_masks |= masks.null_count < len(masks)
        if "source" in table.column_names:
            self.has_source |= table["source"].null_count < table.num_rows
        self._count(marker, table)

    def _count(self, marker: Marker, table: pa.Table) -> None:
        self.counts["images"] += table.num_rows
        self.counts["boxes"] += pc.sum(table["n_boxes"]).as_py() or 0
        self.counts["shards"] += 1
        self.counts["bytes"] += marker.bytes
        verified = self.counts["verified"]
        for name in VERIFIED:
            if table[name].null_count < table.num_rows:
                verified[name] = verified.get(name, 0) + pc.sum(table[name]).as_py()

    def begin(self, names: Sequence[str]) -> None:
        """Open the file with the columns of the first table, a job's conditions among them."""
        schema = build_table_schema(names)
        self.names = [name for name in schema.names if name not in EXCLUDED]
        fields = [schema.field(name) for name in self.names]
        self.writer = open_writer(self.file, pa.schema(fields))

    def end(self) -> None:
        """Close the file; without a table, it has the columns of SCHEMA and no rows."""
        if self.writer is None:
            self.begin(SCHEMA.names)
        self.writer.close()


@contextmanager
def open_manifest_writer(store: Store) -> Iterator[Manifest]:
    """Write manifest.parquet, shard by shard."""
    with store.open_table_replacement("manifest.parquet") as file:
        manifest = Manifest(file)
        try:
            yield manifest
        finally:
            manifest.end()


class Index:
    """Writes index.json, an entry per shard."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.entries = 0

    def add(self, number: int, marker: Marker) -> None:
        """Write the entry of a shard."""
        entry = {
            "url": format_shard_file(number, TAR),
            "md5sum": marker.md5,
            "nsamples": marker.count,
            "filesize": marker.bytes,
        }
        separator = "," if self.entries else ""
        text = to_json(entry, indent=1).replace("\n", "\n  ")
        self.file.write(f"{separator}\n  {text}".encode())
        self.entries += 1


@contextmanager
def open_index_writer(store: Store, name: str) -> Iterator[Index]:
    """Write index.json, entry by entry, with the bytes of `json.dumps(..., indent=1)`.

    Args:
        name: the name of the dataset.
    """
    head = to_json(
        {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name, "shardlist": []},
        indent=1,
    )
    with store.open_replacement("index.json") as file:
        file.write(head[: head.rindex("]")].encode())
        index = Index(file)
        yield index
        indent = "\n " if index.entries else ""
        file.write(f"{indent}]\n}}\n".encode())
