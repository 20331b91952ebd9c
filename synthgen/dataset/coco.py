"""COCO annotations, streamed from the shards' tables; of a large dataset in several files."""

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from synthgen.annotations import Annotation, Category
from synthgen.dataset.sample import annotations_of
from synthgen.storage.base import Store
from synthgen.storage.local import replacing
from synthgen.strict_json import to_json

SHARDS_A_FILE = 1000
"""A dataset of more shards has its annotations in files of so many: pycocotools holds a whole file in memory."""
FOLDER = "annotations"
WHOLE = f"{FOLDER}/instances.json"

Record = tuple[dict[str, Any], list[dict[str, Any]]]
"""An image of a COCO file, and its annotations."""


def coco_file(number: int, shards: int) -> str:
    """The COCO file that a shard belongs to, in a dataset of so many."""
    return (
        WHOLE
        if shards <= SHARDS_A_FILE
        else f"{FOLDER}/instances-{number // SHARDS_A_FILE:05d}.json"
    )


def coco_head(ids: Mapping[str, int], info: dict[str, Any], licence: str) -> dict[str, Any]:
    """What a COCO file says of all images.

    Args:
        ids: category name to id.
        info: COCO's `info` mapping.
        licence: name of the licence of the images.
    """
    ordered = sorted(ids.items(), key=lambda item: item[1])
    categories = [Category(number, name).to_coco() for name, number in ordered]
    return {
        "info": info,
        "licenses": [{"id": 1, "name": licence, "url": ""}],
        "categories": categories,
    }


def plain_record(row: dict[str, Any], annotations: list[Annotation], first: int) -> Record:
    """A row of a shard's table as COCO has it: image id index + 1, annotation ids from `first`."""
    image_id, name = row["index"] + 1, f"{row['key']}.{row['image_format']}"
    image = {
        "id": image_id,
        "file_name": name,
        "width": row["width"],
        "height": row["height"],
        "license": 1,
    }
    numbered = enumerate(annotations, first)
    return image, [
        {"id": number, "image_id": image_id, **annotation.to_coco()}
        for number, annotation in numbered
    ]


def write_coco(path: Path, head: Mapping[str, Any], records: Iterable[Record]) -> None:
    """Write a COCO file; memory stays constant."""
    with (
        replacing(path) as temporary,
        temporary.open("wb") as file,
        writing_coco(file, head) as coco,
    ):
        for image, annotations in records:
            coco.add(image, annotations)


class CocoFile:
    """Writes one COCO file. COCO has images and annotations apart, so the images wait in another file."""

    def __init__(self, file: BinaryIO, images: BinaryIO) -> None:
        self.file, self.images = file, images
        self.before_image = self.before = b""

    def add(self, image: dict[str, Any], annotations: Iterable[dict[str, Any]]) -> None:
        self.images.write(self.before_image + to_json(image).encode())
        self.before_image = b",\n"
        for annotation in annotations:
            self.file.write(self.before + to_json(annotation).encode())
            self.before = b",\n"


@contextmanager
def writing_coco(file: BinaryIO, head: Mapping[str, Any]) -> Iterator[CocoFile]:
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
    """Writes a dataset's COCO files with image ids index + 1 and annotation ids from 1 (pycocotools ignores id 0).

    Ids go on from file to file. Use it as a context manager, and add the shards in order.

    Args:
        shards: how many the dataset has.
        head: `coco_head`.
    """

    def __init__(self, store: Store, shards: int, head: Mapping[str, Any]) -> None:
        self.store, self.shards, self.head = store, shards, head
        self.files, self.next, self.open = list[str](), 1, ExitStack()

    def __enter__(self) -> "CocoWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.open.__exit__(kind, value, trace)
            return
        if not self.files:
            self._begin(WHOLE)
        self.open.close()
        for name, _ in list(self.store.sizes(FOLDER)):  # of a dataset that was smaller, or larger
            if f"{FOLDER}/{name}" not in self.files and re.fullmatch(
                r"instances(-\d+)?\.json", name
            ):
                self.store.delete(f"{FOLDER}/{name}")

    def add(self, number: int, rows: Iterable[dict[str, Any]]) -> None:
        """Write the rows of a shard's table."""
        name = coco_file(number, self.shards)
        if self.files[-1:] != [name]:
            self._begin(name)
        for row in rows:
            image, annotations = plain_record(row, annotations_of(row), self.next)
            self.file.add(image, annotations)
            self.next += len(annotations)

    def _begin(self, name: str) -> None:
        self.open.close()
        self.files.append(name)
        self.file = self.open.enter_context(
            writing_coco(self.open.enter_context(self.store.replacing(name)), self.head)
        )
