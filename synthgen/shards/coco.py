"""COCO annotations, streamed from the shards' tables; of a large dataset in several files."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, BinaryIO

from synthgen.shards.sample import annotations_of
from synthgen.shards.store import Store

SHARDS_A_FILE = 1000
"""A dataset of more shards has its annotations in files of so many: pycocotools holds a whole file in memory."""
FOLDER = "annotations"
WHOLE = f"{FOLDER}/instances.json"


def coco_file(number: int, shards: int) -> str:
    """The COCO file that a shard belongs to, in a dataset of so many."""
    return WHOLE if shards <= SHARDS_A_FILE else f"{FOLDER}/instances-{number // SHARDS_A_FILE:05d}.json"


class CocoWriter:
    """Writes COCO instances files with image ids index + 1 and annotation ids from 1 (pycocotools ignores id 0).

    Ids go on from file to file. Use it as a context manager, and add the shards in order: memory stays constant.

    Args:
        shards: how many the dataset has.
        ids: category name to id.
        info: COCO's `info` mapping.
        licence: name of the licence of the images.
    """

    def __init__(self, store: Store, shards: int, ids: Mapping[str, int], info: dict[str, Any], licence: str) -> None:
        categories = [{"id": i, "name": name, "supercategory": name} for name, i in sorted(ids.items(), key=lambda item: item[1])]
        self.head = {"info": info, "licenses": [{"id": 1, "name": licence, "url": ""}], "categories": categories}
        self.store, self.shards, self.files, self.annotations = store, shards, list[str](), 0
        self.open = ExitStack()

    def __enter__(self) -> "CocoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self.open.__exit__(kind, value, trace)
            return
        if not self.files:
            self._begin(WHOLE)
        self._end()
        for name, _ in list(self.store.sizes(FOLDER)):  # of a dataset that was smaller, or larger
            if f"{FOLDER}/{name}" not in self.files and re.fullmatch(r"instances(-\d+)?\.json", name):
                self.store.delete(f"{FOLDER}/{name}")

    def add(self, number: int, rows: Iterable[dict[str, Any]]) -> None:
        """Write the rows of a shard's table."""
        name = coco_file(number, self.shards)
        if self.files[-1:] != [name]:
            if self.files:
                self._end()
            self._begin(name)
        for row in rows:
            self._write(row)

    def _begin(self, name: str) -> None:
        self.files.append(name)
        self.file: BinaryIO = self.open.enter_context(self.store.replacing(name))
        # COCO has images and annotations apart
        self.images = self.open.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self.file.write(json.dumps(self.head)[:-1].encode() + b',\n"annotations": [')
        self.comma = {"annotations": b"", "images": b""}

    def _write(self, row: dict[str, Any]) -> None:
        image_id = row["index"] + 1
        name = f"{row['key']}.{row['image_format']}"
        image = {"id": image_id, "file_name": name, "width": row["width"], "height": row["height"], "license": 1}
        self.images.write(self._record("images", image))
        for annotation in annotations_of(row):
            self.annotations += 1
            self.file.write(self._record("annotations", {"id": self.annotations, "image_id": image_id, **annotation}))

    def _record(self, kind: str, record: dict[str, Any]) -> bytes:
        comma, self.comma[kind] = self.comma[kind], b",\n"
        return comma + json.dumps(record).encode()

    def _end(self) -> None:
        """Finish the file that is open."""
        self.file.write(b'],\n"images": [')
        self.images.seek(0)
        shutil.copyfileobj(self.images, self.file)
        self.file.write(b"]}\n")
        self.open.close()
