"""Parquet for Hugging Face `datasets` and its viewer, with embedded images.

The column `objects` has the boxes as COCO has them. There is one file for each shard and split. The
features are stated in each file and in the header of README.md.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa

from synthgen.annotations import Annotation
from synthgen.dataset.card import QuotedText, escape_markdown, fill_card
from synthgen.dataset.marker import format_shard_name
from synthgen.dataset.shard_reader import SPLITS
from synthgen.formats.export import Export, name_image, read_images
from synthgen.storage.local import replace_atomically, write_text
from synthgen.storage.parquet import open_output, open_writer

TEMPLATE = Path(__file__).with_name("card.md.template")
GROUP_ROWS = 100  # rows in memory and in a row group; the viewer recommends groups of this size
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
    """Write a Parquet file for each split that has samples of the shard."""
    metadata = {"info": {"features": make_features(export)}}
    schema = SCHEMA.with_metadata({"huggingface": json.dumps(metadata)})
    tables: dict[str, _Table] = {}
    with ExitStack() as stack:
        for split, row, annotations, data in read_images(export, number):
            if split not in tables:
                path = export.folder / "data" / f"{split}-{format_shard_name(number)}.parquet"
                temporary = stack.enter_context(replace_atomically(path))
                sink = stack.enter_context(open_output(temporary))
                tables[split] = stack.enter_context(_Table(sink, schema))
            tables[split].add(make_row(export, row, annotations, data))


class _Table:
    """A Parquet file that is written in groups of rows."""

    def __init__(self, sink: pa.NativeFile, schema: pa.Schema) -> None:
        self.schema = schema
        self.rows: list[dict[str, Any]] = []
        self.writer = open_writer(sink, schema, compression="zstd")

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, and write the group when it is complete."""
        self.rows.append(row)
        if len(self.rows) == GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are in memory."""
        table = pa.Table.from_pylist(self.rows, self.schema)
        self.writer.write_table(table, row_group_size=GROUP_ROWS)
        self.rows.clear()

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, *error: object) -> None:
        if self.rows:
            self.flush()
        self.writer.close()


def make_row(
    export: Export, row: dict[str, Any], annotations: list[Annotation], data: bytes
) -> dict[str, Any]:
    """Return a row of SCHEMA.

    The id of a box is its index in the image, its category the number of its class, from 0.
    """
    objects: dict[str, list[Any]] = {name: [] for name in OBJECTS}
    for i, annotation in enumerate(annotations):
        objects["id"].append(i)
        objects["bbox"].append(annotation.bbox)
        objects["category"].append(export.labels.names.index(annotation.category))
        objects["area"].append(annotation.area)
        objects["iscrowd"].append(annotation.iscrowd)
    return {
        "image_id": row["index"] + 1,
        "image": {"bytes": data, "path": name_image(row)},
        "width": row["width"],
        "height": row["height"],
        "prompt": row["prompt"],
        "objects": objects,
    }


def make_features(export: Export) -> dict[str, Any]:
    """Return the features as `datasets` writes them into a Parquet file."""
    objects: dict[str, Any] = {}
    for name, kind in OBJECTS.items():
        feature = _describe_type(kind)
        if name == "category":
            feature = {"names": list(export.labels.names), "_type": "ClassLabel"}
        objects[name] = {"feature": feature, "_type": "Sequence"}
    features: dict[str, Any] = {}
    for field in SCHEMA:
        if field.name == "image":
            features["image"] = {"_type": "Image"}
        elif field.name == "objects":
            features["objects"] = objects
        else:
            features[field.name] = _describe_type(field.type)
    return features


def _describe_type(kind: pa.DataType) -> dict[str, Any]:
    """Return the feature of a type, for a Parquet file."""
    if pa.types.is_list(kind):
        return {"feature": _describe_type(kind.value_type), "_type": "Sequence"}
    return {"dtype": _name_type(kind), "_type": "Value"}


def _name_type(kind: pa.DataType) -> str:
    """Return the name that `datasets` has for a type; pyarrow calls float64 double."""
    return "float64" if kind == pa.float64() else str(kind)


def finish(export: Export) -> None:
    """Write README.md, whose header states the splits, the features and the class names."""
    data = export.folder / "data"
    files: list[dict[str, str]] = []
    for split in SPLITS:
        if any(data.glob(f"{split}-*.parquet")):
            files.append({"split": split, "path": f"data/{split}-*.parquet"})
    card = fill_card(
        TEMPLATE,
        export.info,
        files,
        make_card_features(export),
        licence=escape_markdown(export.info.licence),
        first=files[0]["split"],
    )
    write_text(export.folder / "README.md", card)


def make_card_features(export: Export) -> list[dict[str, Any]]:
    """Return the features for the header of README.md."""
    class_names = {str(i): QuotedText(name) for i, name in enumerate(export.labels.names)}
    objects: list[dict[str, Any]] = []
    for name, kind in OBJECTS.items():
        item_type: Any = _describe_card_type(kind)
        if name == "category":
            item_type = {"class_label": {"names": class_names}}
        objects.append({"name": name, "list": item_type})
    features: list[dict[str, Any]] = []
    for field in SCHEMA:
        if field.name == "objects":
            features.append({"name": "objects", "struct": objects})
        elif field.name == "image":
            features.append({"name": "image", "dtype": "image"})
        else:
            features.append({"name": field.name, "dtype": _describe_card_type(field.type)})
    return features


def _describe_card_type(kind: pa.DataType) -> Any:
    """Return the feature of a type, for the header of README.md."""
    if pa.types.is_list(kind):
        return {"list": _describe_card_type(kind.value_type)}
    return _name_type(kind)
