"""COCO annotations, streamed from the tables of the shards; several files for a large dataset."""

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from synthgen.annotations import Annotation, Category
from synthgen.dataset.sample import format_image_name, read_annotations
from synthgen.storage.base import Store
from synthgen.storage.local import replace_atomically
from synthgen.strict_json import to_json

SHARDS_PER_FILE = 1000
"""Shards per COCO file of a larger dataset: pycocotools holds a whole file in memory."""
FOLDER = "annotations"
WHOLE = f"{FOLDER}/instances.json"
FILE_NAME = re.compile(r"instances(-\d+)?\.json")

Record = tuple[dict[str, Any], list[dict[str, Any]]]
"""An image of a COCO file, and its annotations."""


def format_coco_name(number: int, shards: int) -> str:
    """Return the name of the COCO file that a shard belongs to.

    Args:
        number: the number of the shard.
        shards: how many shards the dataset has.
    """
    if shards <= SHARDS_PER_FILE:
        return WHOLE
    return f"{FOLDER}/instances-{number // SHARDS_PER_FILE:05d}.json"


def build_coco_head(ids: Mapping[str, int], info: dict[str, Any], licence: str) -> dict[str, Any]:
    """Return the parts of a COCO file besides its images and annotations.

    Args:
        ids: category name to id.
        info: COCO's `info` mapping.
        licence: name of the licence of the images.
    """
    ordered = sorted(ids.items(), key=lambda item: item[1])
    return {
        "info": info,
        "licenses": [{"id": 1, "name": licence, "url": ""}],
        "categories": [Category(number, name).to_coco() for name, number in ordered],
    }


def build_coco_record(row: dict[str, Any], annotations: list[Annotation], first: int) -> Record:
    """Return a row of a shard's table as a COCO record, with the image id index + 1.

    Args:
        first: id of the first annotation; the others are numbered from there.
    """
    image_id = row["index"] + 1
    image = {
        "id": image_id,
        "file_name": format_image_name(row),
        "width": row["width"],
        "height": row["height"],
        "license": 1,
    }
    records = []
    for number, annotation in enumerate(annotations, first):
        records.append({"id": number, "image_id": image_id, **annotation.to_coco()})
    return image, records


def write_coco(path: Path, head: Mapping[str, Any], records: Iterable[Record]) -> None:
    """Write a COCO file in constant memory."""
    with (
        replace_atomically(path) as temporary,
        temporary.open("wb") as file,
        open_coco_writer(file, head) as coco,
    ):
        for image, annotations in records:
            coco.add(image, annotations)


class CocoFile:
    """Writes one COCO file.

    COCO keeps images and annotations in two lists, so the images wait in a file of their own.
    """

    def __init__(self, file: BinaryIO, images: BinaryIO) -> None:
        self.file = file
        self.images = images
        self.image_separator = b""
        self.annotation_separator = b""

    def add(self, image: dict[str, Any], annotations: Iterable[dict[str, Any]]) -> None:
        """Write an image and its annotations."""
        self.images.write(self.image_separator + to_json(image).encode())
        self.image_separator = b",\n"
        for annotation in annotations:
            self.file.write(self.annotation_separator + to_json(annotation).encode())
            self.annotation_separator = b",\n"


@contextmanager
def open_coco_writer(file: BinaryIO, head: Mapping[str, Any]) -> Iterator[CocoFile]:
    """Write a COCO file, image by image."""
    with tempfile.TemporaryFile() as images:
        file.write(b"{")
        for key, value in head.items():
            file.write(f"{to_json(key)}: {to_json(value)},\n".encode())
        file.write(b'"annotations": [')
        yield CocoFile(file, images)
        file.write(b'],\n"images": [')
        images.seek(0)
        shutil.copyfileobj(images, file)
        file.write(b"]}\n")


class CocoWriter:
    """Writes the COCO files of a dataset.

    Image ids are index + 1, and annotation ids start at 1, because pycocotools ignores id 0. The
    annotation ids continue from file to file. Use it as a context manager, and add the shards in
    order.

    Args:
        shards: how many shards the dataset has.
        head: what `build_coco_head` returns.
    """

    def __init__(self, store: Store, shards: int, head: Mapping[str, Any]) -> None:
        self.store = store
        self.shards = shards
        self.head = head
        self.files: list[str] = []
        self.next_id = 1
        self.stack = ExitStack()

    def __enter__(self) -> "CocoWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.stack.__exit__(kind, value, trace)
            return
        if not self.files:
            self._begin(WHOLE)
        self.stack.close()
        self._delete_other_files()

    def _delete_other_files(self) -> None:
        """Delete the COCO files that the dataset had when it was smaller or larger."""
        for name, _ in list(self.store.sizes(FOLDER)):
            path = f"{FOLDER}/{name}"
            if path not in self.files and FILE_NAME.fullmatch(name):
                self.store.delete(path)

    def add(self, number: int, rows: Iterable[dict[str, Any]]) -> None:
        """Write the rows of a shard's table."""
        name = format_coco_name(number, self.shards)
        if self.files[-1:] != [name]:
            self._begin(name)
        for row in rows:
            image, annotations = build_coco_record(row, read_annotations(row), self.next_id)
            self.file.add(image, annotations)
            self.next_id += len(annotations)

    def _begin(self, name: str) -> None:
        """Finish the current file and begin another."""
        self.stack.close()
        self.files.append(name)
        file = self.stack.enter_context(self.store.open_replacement(name))
        self.file = self.stack.enter_context(open_coco_writer(file, self.head))
