"""COCO: a folder of pictures a split, and `annotations/instances_{split}.json`.

What was imported from a COCO file is written as it stood there: file names, ids, polygons, categories, licences, and whatever
else the file said (`synthgen.formats.coco.reader.head`).
"""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from synthgen.dataset.coco import Record, coco_head, plain_record, write_coco
from synthgen.dataset.shard import DamagedShardError
from synthgen.dataset.shard_reader import SPLITS
from synthgen.errors import InputError
from synthgen.formats.coco.reader import RESTORED
from synthgen.formats.entries import BadEntryError, below
from synthgen.formats.export import Export, annotations, picture_name, pictures, write_bytes
from synthgen.strict_json import without_nan

CROWDS = True


def write_shard(export: Export, number: int) -> None:
    """The pictures of a shard, byte by byte."""
    for split, row, _, data in pictures(export, number):
        try:
            path = below(export.folder / split, file_name(export, row), "file_name")
        except BadEntryError as error:
            raise InputError(f"{export.spec.source}: {row['key']}: {error}") from None
        write_bytes(path, data)


def finish(export: Export) -> None:
    """The annotations of each split that has pictures."""
    for split in SPLITS:
        if split == SPLITS[0] or any(True for _ in export.rows(split)):
            write_coco(
                export.folder / "annotations" / f"instances_{split}.json",
                head(export),
                records(export, split),
            )


def head(export: Export) -> dict[str, Any]:
    """Info, licences and categories: those of the COCO file that was imported, where its categories are still called as there."""
    info = export.info
    about = {"description": f"{info.name}: {info.about}", "contributor": "synthgen"}
    ours = coco_head(export.ids, about, info.licence)
    if info.source is None:
        return ours
    head = without_nan(info.source["head"])
    theirs = {
        "info": ours["info"],
        "licenses": ours["licenses"],
        **head,
    }  # pycocotools asks for both
    return theirs if keeps_categories(export) else {**theirs, "categories": ours["categories"]}


def keeps_categories(export: Export) -> bool:
    """Whether the dataset's categories are called as in the COCO file that was imported."""
    return not (
        export.info.source is None
        or export.info.fingerprint.get("import.categories")
        or export.spec.renamed
    )


def file_name(export: Export, row: dict[str, Any]) -> str:
    """The name of a picture: as imported (with another suffix behind it, if it had to be encoded anew), else the key."""
    source = export.info.source
    if source is None or not source["file_names"] or not row.get("source"):
        return picture_name(row)
    name = as_imported(row)["image"]["file_name"]
    kinds = {"jpg": (".jpg", ".jpeg", ".jpe", ".jfif"), "png": (".png",), "webp": (".webp",)}[
        row["image_format"]
    ]
    return name if PurePosixPath(name).suffix.lower() in kinds else f"{name}.{row['image_format']}"


def as_imported(row: dict[str, Any]) -> dict[str, Any]:
    """What the COCO file said of a sample (`Sample.source`).

    Raises:
        DamagedShardError: it is something else.
    """
    try:
        source = without_nan(json.loads(row["source"]))  # which earlier versions let in
        image, found = source["image"], source["annotations"]
        sound = (
            isinstance(image["file_name"], str)
            and [isinstance(a, dict) for a in found] == [True] * row["n_boxes"]
        )
    except (ValueError, LookupError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise DamagedShardError(
            f"shards/{row['shard']}.parquet: sample {row['key']}: its source is not what an import writes"
        )
    return {"image": image, "annotations": found}


def records(export: Export, split: str) -> Iterator[Record]:
    """The images of a split and their annotations; ids that are counted are counted over all splits."""
    number, source = 1, export.info.source
    for row in export.rows():
        if export.split(row) == split:
            plain = plain_record(row, annotations(export, row), number)
            yield restored(export, row, source, plain) if source and row.get("source") else plain
        number += row["n_boxes"]


def restored(export: Export, row: dict[str, Any], source: dict[str, Any], plain: Record) -> Record:
    """A record as it was imported: what the COCO file said goes before what we would write."""
    image, found = plain
    original = as_imported(row)
    size = {"width": image["width"], "height": image["height"]}
    image = {**original["image"], **size, "file_name": file_name(export, row)}
    result = []
    for annotation, said in zip(found, original["annotations"], strict=True):
        ours = {key: annotation[key] for key in ("id", *RESTORED) if key in annotation}
        dropped = {
            key
            for key, keeps in (
                ("id", source["annotation_ids"]),
                ("category_id", keeps_categories(export)),
            )
            if not keeps
        }
        theirs = {key: value for key, value in said.items() if key not in dropped}
        for key in RESTORED:
            if theirs.get(key, 0) is None:  # no reader takes null for a number, or for polygons
                del theirs[key]
        result.append({**ours, **theirs, "image_id": image["id"]})
    return image, result
