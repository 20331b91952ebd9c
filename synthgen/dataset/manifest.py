"""What is joined from the shards: manifest.parquet with a row a sample, and index.json, the shard list that `wids` reads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from synthgen.dataset.marker import TAR, Marker, shard_file
from synthgen.dataset.sample import SCHEMA, VERIFIED, table_schema
from synthgen.dataset.shard import DamagedShardError
from synthgen.storage.base import Store
from synthgen.storage.parquet import open_writer
from synthgen.strict_json import to_json

LEFT_OUT = ("bbox", "segmentation", "area", "iscrowd", "source")


class Manifest:
    """Writes manifest.parquet, a row group a shard, and counts what goes by.

    Attributes:
        counts: {"images", "boxes", "shards", "bytes", "verified"}, as `finalize` returns them.
        has_masks: an annotation has a segmentation.
        from_coco: a sample keeps what else its COCO file says.
    """

    def __init__(self, file: pa.NativeFile) -> None:
        self.file, self.has_masks, self.from_coco = file, False, False
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
            DamagedShardError: it lacks a column that the first one has.
        """
        if self.writer is None:
            self.begin(table.column_names)
        if missing := set(self.names).difference(table.column_names):
            raise DamagedShardError(
                f"the shard of sample {marker.first_index} has no column {min(missing)!r}, but the first has"
            )
        self.writer.write_table(table.select(self.names).cast(self.writer.schema))
        masks = pc.list_flatten(table["segmentation"])
        self.has_masks |= masks.null_count < len(masks)
        self.from_coco |= (
            "source" in table.column_names and table["source"].null_count < table.num_rows
        )
        counts = self.counts
        counts["images"] += table.num_rows
        counts["boxes"] += pc.sum(table["n_boxes"]).as_py() or 0
        counts["shards"] += 1
        counts["bytes"] += marker.bytes
        for name in VERIFIED:
            if table[name].null_count < table.num_rows:
                counts["verified"][name] = (
                    counts["verified"].get(name, 0) + pc.sum(table[name]).as_py()
                )

    def begin(self, names: Sequence[str]) -> None:
        """Open the file, with the columns that the first table has (a job's conditions are among them)."""
        schema = table_schema(names)
        self.names = [name for name in schema.names if name not in LEFT_OUT]
        self.writer = open_writer(self.file, pa.schema([schema.field(name) for name in self.names]))

    def end(self) -> None:
        if self.writer is None:
            self.begin(SCHEMA.names)
        self.writer.close()


@contextmanager
def writing_manifest(store: Store) -> Iterator[Manifest]:
    with store.replacing_table("manifest.parquet") as file:
        manifest = Manifest(file)
        try:
            yield manifest
        finally:
            manifest.end()


class Index:
    """Writes index.json, an entry a shard."""

    def __init__(self, file: Any) -> None:
        self.file, self.entries = file, 0

    def add(self, number: int, marker: Marker) -> None:
        url = shard_file(number, TAR)
        entry = {
            "url": url,
            "md5sum": marker.md5,
            "nsamples": marker.count,
            "filesize": marker.bytes,
        }
        text = to_json(entry, indent=1).replace("\n", "\n  ")
        self.file.write(f"{',' if self.entries else ''}\n  {text}".encode())
        self.entries += 1


@contextmanager
def writing_index(store: Store, name: str) -> Iterator[Index]:
    """The bytes are those of `json.dumps(..., indent=1)`, entry by entry."""
    head = to_json(
        {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name, "shardlist": []},
        indent=1,
    )
    with store.replacing("index.json") as file:
        file.write(head[: head.rindex("]")].encode())
        index = Index(file)
        yield index
        file.write((("\n " if index.entries else "") + "]\n}\n").encode())
