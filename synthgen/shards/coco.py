"""COCO annotations, streamed from the shards' tables."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from synthgen.shards.sample import annotations_of
from synthgen.shards.store import replacing

Record = tuple[dict[str, Any], list[dict[str, Any]]]
"""An image of a COCO file, and its annotations."""


def write_instances(
    path: Path, rows: Iterable[dict[str, Any]], ids: Mapping[str, int], info: dict[str, Any], licence: str
) -> None:
    """Write a COCO instances file with image ids index + 1 and annotation ids from 1 (pycocotools ignores id 0).

    Args:
        path: the file to replace.
        rows: rows of the shards' tables, in index order.
        ids: category name to id.
        info: COCO's `info` mapping.
        licence: name of the licence of the images.
    """
    write_coco(path, coco_head(ids, info, licence), plain_records(rows))


def coco_head(ids: Mapping[str, int], info: dict[str, Any], licence: str) -> dict[str, Any]:
    """What a COCO file says of all images."""
    categories = [{"id": i, "name": name, "supercategory": name} for name, i in sorted(ids.items(), key=lambda item: item[1])]
    return {"info": info, "licenses": [{"id": 1, "name": licence, "url": ""}], "categories": categories}


def plain_records(rows: Iterable[dict[str, Any]]) -> Iterator[Record]:
    """Rows of the shards' tables as COCO has them."""
    number = 0
    for row in rows:
        annotations = annotations_of(row)
        yield plain_record(row, annotations, number + 1)
        number += len(annotations)


def plain_record(row: dict[str, Any], annotations: list[dict[str, Any]], first: int) -> Record:
    """One of them: image id index + 1, annotation ids from `first`."""
    image_id, name = row["index"] + 1, f"{row['key']}.{row['image_format']}"
    image = {"id": image_id, "file_name": name, "width": row["width"], "height": row["height"], "license": 1}
    return image, [{"id": number, "image_id": image_id, **annotation} for number, annotation in enumerate(annotations, first)]


def write_coco(path: Path, head: Mapping[str, Any], records: Iterable[Record]) -> None:
    """Write a COCO file; memory stays constant, as the images wait in a file beside it."""
    spool = path.with_name(f".{path.name}-images.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as temporary, temporary.open("w") as file, spool.open("w+") as images:
            file.write("{" + "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items()))
            file.write('"annotations": [')
            _write_records(file, images, records)
            file.write('],\n"images": [')
            images.seek(0)
            for line in images:
                file.write(line)
            file.write("]}\n")
    finally:
        spool.unlink(missing_ok=True)


def _write_records(annotations: TextIO, images: TextIO, records: Iterable[Record]) -> None:
    """Write every annotation to one file and every image to the other, comma-separated."""
    before_image = before = ""
    for image, found in records:
        images.write(before_image + json.dumps(image))
        before_image = ",\n"
        for annotation in found:
            annotations.write(before + json.dumps(annotation))
            before = ",\n"
