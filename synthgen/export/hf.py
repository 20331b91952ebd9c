"""Parquet as Hugging Face `datasets` and its viewer read it: the pictures inside, and `objects` with boxes in COCO's form.

One file a shard and split. The features stand in each file and in the header of README.md.
"""

import json
from contextlib import ExitStack
from typing import Any

import pyarrow as pa

from synthgen.export import Export, picture_name, pictures
from synthgen.parquet import open_output, open_writer
from synthgen.shards.card import escaped, heading, quoted
from synthgen.shards.samples import SPLITS
from synthgen.shards.shard import shard_name
from synthgen.shards.store import replacing, write_text

GROUP = 100  # pictures in memory, and in a row group: the viewer asks for groups of about that size
OBJECTS = {
    "id": pa.int64(),
    "bbox": pa.list_(pa.float64()),
    "category": pa.int64(),
    "area": pa.float64(),
    "iscrowd": pa.int64(),
}
SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("image", pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("prompt", pa.string()),
        ("objects", pa.struct({name: pa.list_(kind) for name, kind in OBJECTS.items()})),
    ]
)

CROWDS = True


def write_shard(export: Export, number: int) -> None:
    """A Parquet file for each split; of a split that has nothing of the shard none."""
    schema = SCHEMA.with_metadata({"huggingface": json.dumps({"info": {"features": features(export)}})})
    tables: dict[str, _Table] = {}
    with ExitStack() as stack:
        for split, row, annotations, data in pictures(export, number):
            if split not in tables:
                path = export.folder / "data" / f"{split}-{shard_name(number)}.parquet"
                temporary = stack.enter_context(replacing(path))
                sink = stack.enter_context(open_output(temporary))
                tables[split] = stack.enter_context(_Table(sink, schema))
            tables[split].add(as_row(export, row, annotations, data))


class _Table:
    """A Parquet file that is written a group of rows at a time."""

    def __init__(self, sink: pa.NativeFile, schema: pa.Schema) -> None:
        self.schema, self.group = schema, list[dict[str, Any]]()
        self.writer = open_writer(sink, schema, compression="zstd")

    def add(self, row: dict[str, Any]) -> None:
        self.group.append(row)
        if len(self.group) == GROUP:
            self.flush()

    def flush(self) -> None:
        self.writer.write_table(pa.Table.from_pylist(self.group, self.schema), row_group_size=GROUP)
        self.group.clear()

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, *error: object) -> None:
        if self.group:
            self.flush()
        self.writer.close()


def as_row(export: Export, row: dict[str, Any], annotations: list[dict[str, Any]], data: bytes) -> dict[str, Any]:
    """One row of SCHEMA; a box's id is its place in the picture, its category the number of its class, from 0."""
    objects = {name: [a.get(name) for a in annotations] for name in OBJECTS}
    objects["id"] = list(range(len(annotations)))
    objects["category"] = [export.labels.names.index(a["category"]) for a in annotations]
    plain = {name: row[name] for name in ("width", "height", "prompt")}
    return {"image_id": row["index"] + 1, "image": {"bytes": data, "path": picture_name(row)}, **plain, "objects": objects}


def features(export: Export) -> dict[str, Any]:
    """The features as `datasets` writes them into a Parquet file."""

    def of(kind: pa.DataType) -> dict[str, Any]:
        if pa.types.is_list(kind):
            return {"feature": of(kind.value_type), "_type": "Sequence"}
        return {"dtype": "float64" if kind == pa.float64() else str(kind), "_type": "Value"}

    classes = {"names": list(export.labels.names), "_type": "ClassLabel"}
    kinds = {name: classes if name == "category" else of(kind) for name, kind in OBJECTS.items()}
    objects = {name: {"feature": kind, "_type": "Sequence"} for name, kind in kinds.items()}
    plain = {field.name: of(field.type) for field in SCHEMA if not pa.types.is_struct(field.type)}
    every = {**plain, "image": {"_type": "Image"}, "objects": objects}
    return {name: every[name] for name in SCHEMA.names}


def finish(export: Export) -> None:
    """README.md: its header tells the splits, the features and the names of the classes."""
    data = export.folder / "data"
    splits = [split for split in SPLITS if any(data.glob(f"{split}-*.parquet"))]
    files = "".join(f"  - split: {split}\n    path: data/{split}-*.parquet\n" for split in splits)
    names = "".join(f"            '{i}': {quoted(name)}\n" for i, name in enumerate(export.labels.names))
    texts = {**heading(export.info), "files": files, "names": names, "licence": escaped(export.info.licence), "first": splits[0]}
    write_text(export.folder / "README.md", README.format(**texts))


README = """\
---
pretty_name: {pretty_name}
task_categories:
- object-detection
tags:
{tags}- synthgen
configs:
- config_name: default
  data_files:
{files}dataset_info:
  features:
  - name: image_id
    dtype: int64
  - name: image
    dtype: image
  - name: width
    dtype: int64
  - name: height
    dtype: int64
  - name: prompt
    dtype: string
  - name: objects
    struct:
    - name: id
      list: int64
    - name: bbox
      list:
        list: float64
    - name: category
      list:
        class_label:
          names:
{names}    - name: area
      list: float64
    - name: iscrowd
      list: int64
---

# {name}

{about}. Licence of the pictures: {licence}.

```python
from datasets import load_dataset
dataset = load_dataset(".", split="{first}")
```

`objects.bbox` is `[x, y, width, height]` in pixels; `objects.category` is the number of the class, from 0.
"""
