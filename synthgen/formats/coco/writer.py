"""COCO: a folder of images for each split, and `annotations/instances_{split}.json`.

Whatever was imported from a COCO file is written unchanged: file names, ids, polygons, categories,
licences and unknown keys (`synthgen.formats.coco.reader.head`).
"""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from synthgen.dataset.coco import Record, build_coco_head, build_coco_record, write_coco
from synthgen.dataset.shard import DamagedShardError
from synthgen.dataset.shard_reader import SPLITS
from synthgen.errors import InputError
from synthgen.formats.coco.reader import RESTORED_KEYS
from synthgen.formats.entries import BadEntryError, resolve_file
from synthgen.formats.export import (
    Export,
    make_annotations,
    name_image,
    read_images,
    write_bytes,
)
from synthgen.strict_json import remove_nan

CROWDS = True
SUFFIXES = {"jpg": (".jpg", ".jpeg", ".jpe", ".jfif"), "png": (".png",), "webp": (".webp",)}


def write_shard(export: Export, number: int) -> None:
    """Write the images of a shard without changing their bytes."""
    for split, row, _, data in read_images(export, number):
        try:
            path = resolve_file(export.folder / split, name_file(export, row), "file_name")
        except BadEntryError as error:
            raise InputError(f"{export.spec.source}: {row['key']}: {error}") from None
        write_bytes(path, data)


def finish(export: Export) -> None:
    """Write the annotations of the split train and of each other split that has images."""
    for split in SPLITS:
        first_row = next(export.read_rows(split), None)
        if split == SPLITS[0] or first_row is not None:
            path = export.folder / "annotations" / f"instances_{split}.json"
            write_coco(path, make_head(export), make_records(export, split))


def make_head(export: Export) -> dict[str, Any]:
    """Return info, licences and categories.

    They come from the imported COCO file if there was one; the categories only if they still have
    the names that they have there.
    """
    info = export.info
    about = {"description": f"{info.name}: {info.about}", "contributor": "synthgen"}
    generated = build_coco_head(export.ids, about, info.licence)
    if info.source is None:
        return generated
    # pycocotools requires info and licenses
    head = {"info": generated["info"], "licenses": generated["licenses"]}
    head.update(remove_nan(info.source["head"]))
    if not keeps_categories(export):
        head["categories"] = generated["categories"]
    return head


def keeps_categories(export: Export) -> bool:
    """Return whether the categories have the names that they have in the imported COCO file."""
    if export.info.source is None or export.spec.renamed:
        return False
    return not export.info.fingerprint.get("import.categories")


def name_file(export: Export, row: dict[str, Any]) -> str:
    """Return the file name of an image: the imported name, or the key of the sample.

    An imported name gets another suffix if the image was encoded again as another format.
    """
    source = export.info.source
    if source is None or not source["file_names"] or not row.get("source"):
        return name_image(row)
    name = load_imported_records(row)["image"]["file_name"]
    if PurePosixPath(name).suffix.lower() in SUFFIXES[row["image_format"]]:
        return name
    return f"{name}.{row['image_format']}"


def load_imported_records(row: dict[str, Any]) -> dict[str, Any]:
    """Return the records of a sample in the imported COCO file (`Sample.source`).

    Raises:
        DamagedShardError: they are not what an import writes.
    """
    try:
        source = remove_nan(json.loads(row["source"]))  # earlier versions allowed NaN
        image = source["image"]
        annotations = source["annotations"]
        are_mappings = [isinstance(annotation, dict) for annotation in annotations]
        is_valid = isinstance(image["file_name"], str) and are_mappings == [True] * row["n_boxes"]
    except (ValueError, LookupError, TypeError, RecursionError):
        is_valid = False
    if not is_valid:
        raise DamagedShardError(
            f"shards/{row['shard']}.parquet: sample {row['key']}: "
            "its source is not what an import writes"
        )
    return {"image": image, "annotations": annotations}


def make_records(export: Export, split: str) -> Iterator[Record]:
    """Yield the images of a split and their annotations; new ids are counted over all splits."""
    source = export.info.source
    next_id = 1
    for row in export.read_rows():
        if export.choose_split(row) == split:
            record = build_coco_record(row, make_annotations(export, row), next_id)
            if source and row.get("source"):
                record = restore_record(export, row, source, record)
            yield record
        next_id += row["n_boxes"]


def restore_record(
    export: Export, row: dict[str, Any], source: dict[str, Any], generated: Record
) -> Record:
    """Return a record as it was imported: values of the COCO file override the generated ones."""
    generated_image, generated_annotations = generated
    imported = load_imported_records(row)
    image = {
        **imported["image"],
        "width": generated_image["width"],
        "height": generated_image["height"],
        "file_name": name_file(export, row),
    }
    annotations: list[dict[str, Any]] = []
    pairs = zip(generated_annotations, imported["annotations"], strict=True)
    for generated_annotation, imported_annotation in pairs:
        annotation: dict[str, Any] = {}
        for key in ("id", *RESTORED_KEYS):
            if key in generated_annotation:
                annotation[key] = generated_annotation[key]
        for key, value in imported_annotation.items():
            if key == "id" and not source["annotation_ids"]:
                continue
            if key == "category_id" and not keeps_categories(export):
                continue
            # readers do not accept null as a number or as polygons
            if key in RESTORED_KEYS and value is None:
                continue
            annotation[key] = value
        annotation["image_id"] = image["id"]
        annotations.append(annotation)
    return image, annotations
