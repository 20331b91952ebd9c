"""COCO annotations, streamed from the shards' tables."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from synthgen.shards.sample import annotations_of
from synthgen.shards.store import replacing


def write_instances(
    path: Path, rows: Iterable[dict[str, Any]], ids: Mapping[str, int], info: dict[str, Any], licence: str
) -> None:
    """Write a COCO instances file with image ids index + 1 and annotation ids from 1 (pycocotools ignores id 0).

    Args:
        path: the file to replace.
        rows: rows of the shards' tables, in index order; read once to a spool, so that memory stays constant.
        ids: category name to id.
        info: COCO's `info` mapping.
        licence: name of the licence of the images.
    """
    categories = [{"id": i, "name": name, "supercategory": name} for name, i in sorted(ids.items(), key=lambda item: item[1])]
    head = {"info": info, "licenses": [{"id": 1, "name": licence, "url": ""}], "categories": categories}
    spool = path.with_name(f".{path.name}-images.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as temporary, temporary.open("w") as file, spool.open("w+") as images:
            file.write(json.dumps(head)[:-1] + ',\n"annotations": [')
            _write_records(file, images, rows)
            file.write('],\n"images": [')
            images.seek(0)
            for line in images:
                file.write(line)
            file.write("]}\n")
    finally:
        spool.unlink(missing_ok=True)


def _write_records(annotations: TextIO, images: TextIO, rows: Iterable[dict[str, Any]]) -> None:
    """Write every annotation to one file and every image to the other, comma-separated."""
    number = 0
    for n, row in enumerate(rows):
        image_id = row["index"] + 1
        name = f"{row['key']}.{row['image_format']}"
        image = {"id": image_id, "file_name": name, "width": row["width"], "height": row["height"], "license": 1}
        images.write((",\n" if n else "") + json.dumps(image))
        for annotation in annotations_of(row):
            annotations.write(
                (",\n" if number else "") + json.dumps({"id": (number := number + 1), "image_id": image_id, **annotation})
            )
