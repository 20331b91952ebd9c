"""Parquet as Hugging Face `datasets` and its viewer read it: the pictures inside, and `objects` with boxes in COCO's form.

One file a shard and split. The features stand in each file and in the header of README.md.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa

from synthgen.annotations import Annotation
from synthgen.dataset.card import Quoted, escaped, filled_card
from synthgen.dataset.marker import shard_name
from synthgen.dataset.shard_reader import SPLITS
from synthgen.formats.export import Export, picture_name, pictures
from synthgen.storage.local import replacing, write_text
from synthgen.storage.parquet import open_output, open_writer

TEMPLATE = Path(__file__).with_name("card.md.template")
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
    schema = SCHEMA.with_metadata(
        {"huggingface": json.dumps({"info": {"features": features(export)}})}
    )
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


def as_row(
    export: Export, row: dict[str, Any], annotations: list[Annotation], data: bytes
) -> dict[str, Any]:
    """One row of SCHEMA; a box's id is its place in the picture, its category the number of its class, from 0."""
    objects = {
        "id": list(range(len(annotations))),
        "bbox": [a.bbox for a in annotations],
        "category": [export.labels.names.index(a.category) for a in annotations],
        "area": [a.area for a in annotations],
        "iscrowd": [a.iscrowd for a in annotations],
    }
    plain = {name: row[name] for name in ("width", "height", "prompt")}
    return {
        "image_id": row["index"] + 1,
        "image": {"bytes": data, "path": picture_name(row)},
        **plain,
        "objects": objects,
    }


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
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
    texts = {"licence": escaped(export.info.licence), "first": splits[0]}
    write_text(
        export.folder / "README.md",
        filled_card(TEMPLATE, export.info, files, card_features(export), **texts),
    )


def card_features(export: Export) -> list[dict[str, Any]]:
    """Return the features as the header of README.md has them."""

    def shortened(kind: pa.DataType) -> Any:
        if pa.types.is_list(kind):
            return {"list": shortened(kind.value_type)}
        return "float64" if kind == pa.float64() else str(kind)

    names = {str(i): Quoted(name) for i, name in enumerate(export.labels.names)}
    objects: list[dict[str, Any]] = []
    for name, kind in OBJECTS.items():
        classes = {"class_label": {"names": names}}
        objects.append({"name": name, "list": classes if name == "category" else shortened(kind)})
    features: list[dict[str, Any]] = []
    for field in SCHEMA:
        if field.name == "objects":
            features.append({"name": "objects", "struct": objects})
        else:
            features.append(
                {
                    "name": field.name,
                    "dtype": "image" if field.name == "image" else shortened(field.type),
                }
            )
    return features
