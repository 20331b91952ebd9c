"""labelme: a JSON file an image, with shapes of several kinds; the image lies beside it, or stands in the file."""

import base64
import binascii
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from synthgen.formats.entries import (
    BadEntryError,
    Entry,
    Problem,
    UnreadableSourceError,
    as_boxes,
    is_number,
    positive,
    read_text,
)
from synthgen.formats.images import APPLE_DOUBLE, upright_size
from synthgen.formats.masks import run_length, with_masks
from synthgen.formats.source import AnnotatedImages, Source
from synthgen.geometry import FARTHEST
from synthgen.images import DAMAGED

NO_BOX = (
    "point",
    "points",
    "line",
    "linestrip",
)  # shapes without area; they are left out, and counted
POLYGONS = ("polygon", "rotation", "oriented_rectangle")
PEEKED = 16  # files of a folder that are looked into for their form
PEEK = 1 << 16  # bytes of a file whose keys tell its form; an image that stands in it comes last


@dataclass(frozen=True)
class Dataset(AnnotatedImages):
    """Files of shapes.

    Attributes:
        files: in order.
        images: the folder that image names start from; null: that of each file.
    """

    files: list[Path]
    images: Path | None = None

    def entries(self, whole: bool = False) -> Iterator[Entry | Problem]:
        """The annotated images.

        Args:
            whole: with masks.
        """
        owners = Counter(image for image in self._images.values() if image is not None)
        for path in self.files:
            image = self._images[path]
            if image is not None and owners[image] > 1:
                yield Problem(
                    str(path), f"imagePath: {image} is the picture of another file too", str(path)
                )
                continue
            try:
                yield self._entry(path, image, whole)
            except BadEntryError as error:
                yield from error.problems(str(path))

    @cached_property
    def _images(self) -> dict[Path, Path | None]:
        """The image of each file; null: there is none beside it."""
        images: dict[Path, Path | None] = {}
        for path in self.files:
            try:
                images[path] = self._image(path, loaded(path))
            except BadEntryError:
                images[path] = None  # told with the entry
        return images

    def _image(self, path: Path, data: dict[str, Any]) -> Path | None:
        """The file that imagePath names: from the folder of the JSON file or --images, else the name alone in it."""
        name = data.get("imagePath")
        if not isinstance(name, str) or not name or "\0" in name:
            return None
        folder, slashed = self.images or path.parent, PurePosixPath(name.replace("\\", "/"))
        return next(
            (found for found in (folder / slashed, folder / slashed.name) if os.path.isfile(found)),
            None,
        )

    def _entry(self, path: Path, image: Path | None, whole: bool) -> Entry:
        data = loaded(path)
        embedded = None if image is not None else _embedded(data)
        if data.get("imageWidth") and data.get("imageHeight"):
            size = (
                positive(data["imageWidth"], "imageWidth"),
                positive(data["imageHeight"], "imageHeight"),
            )
        else:
            size = upright_size(image or embedded or b"")
        shapes: dict[Any, _Shape] = {}
        left_out: list[str] = []
        problems: list[Problem] = []
        for i, given in enumerate(data["shapes"]):
            place = f"{path}: shapes[{i}]"
            try:
                if isinstance(given, dict) and given.get("shape_type") in NO_BOX:
                    left_out.append(given["shape_type"])
                    continue
                shape = _shape(given, place, size)
                group = given.get("group_id")
                key = (
                    i if group is None else (shape.name, repr(group))
                )  # an object of several shapes, as labelme exports it
                shapes[key] = shapes[key].joined(shape, size) if key in shapes else shape
            except ValueError as error:
                problems.append(Problem(place, str(error), str(path)))
        if problems:
            raise BadEntryError(*problems)
        found = list(shapes.values())
        entry = Entry(
            str(path),
            *size,
            as_boxes([shape.box for shape in found]),
            tuple(shape.name for shape in found),
        )
        entry = replace(
            entry, picture=image, embedded=embedded, places=tuple(shape.place for shape in found)
        )
        entry = replace(entry, left_out=tuple(left_out))
        return with_masks(entry, [shape.outline for shape in found]) if whole else entry


@dataclass(frozen=True)
class _Shape:
    """An object.

    Attributes:
        box: xyxy in px.
        outline: polygons (flat lists of x, y in px), or a run-length encoding; of a rectangle or circle empty.
    """

    name: str
    place: str
    box: list[float]
    outline: Any = ()

    def joined(self, other: "_Shape", size: tuple[int, int]) -> "_Shape":
        """Both shapes as one object; a rectangle or circle among outlines is one by its corners."""
        (x0, y0, x1, y1), (u0, v0, u1, v1) = self.box, other.box
        box = [min(x0, u0), min(y0, v0), max(x1, u1), max(y1, v1)]
        outlines = [shape.outline or [_corners(shape.box)] for shape in (self, other)]
        if not self.outline and not other.outline:
            return replace(self, box=box)
        if all(isinstance(outline, list) for outline in outlines):
            return replace(self, box=box, outline=[*outlines[0], *outlines[1]])
        encoded = coco_mask.merge([run_length(outline, *size) for outline in outlines])
        return replace(
            self, box=box, outline={**encoded, "counts": encoded["counts"].decode("ascii")}
        )


def _corners(box: list[float]) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def _shape(given: Any, place: str, size: tuple[int, int]) -> _Shape:
    """A shape that has an area.

    Raises:
        ValueError: it is of no kind that is known, or its points are not those of its kind.
    """
    if (
        not isinstance(given, dict)
        or not isinstance(given.get("label"), str)
        or not given["label"].strip()
    ):
        raise ValueError("label: missing; the name of the object")
    kind, name = given.get("shape_type") or "polygon", given["label"].strip()
    points = _points(given.get("points"))
    x, y = points[:, 0], points[:, 1]
    box = [float(v) for v in (x.min(), y.min(), x.max(), y.max())]
    if kind == "rectangle" and len(points) in (2, 4):
        return _Shape(name, place, box)
    if kind == "circle" and len(points) == 2:
        radius = float(np.hypot(*(points[1] - points[0])))
        return _Shape(
            name,
            place,
            [float(v) for v in (x[0] - radius, y[0] - radius, x[0] + radius, y[0] + radius)],
        )
    if kind == "mask" and len(points) == 2:
        return _Shape(
            name,
            place,
            [box[0], box[1], box[2] + 1, box[3] + 1],
            _bitmap(given.get("mask"), box, size),
        )
    if kind in POLYGONS and len(points) >= 3:
        return _Shape(name, place, box, [points.ravel().tolist()])
    known = ", ".join(("rectangle", "circle", "mask", *POLYGONS, *NO_BOX))
    raise ValueError(f"shape_type: {kind!r} with {len(points)} points; what is read: {known}")


def _points(given: Any) -> NDArray[np.float64]:
    """(N, 2), px.

    Raises:
        ValueError: they are something else, or none.
    """
    pairs = given if isinstance(given, list) else []
    for pair in pairs:
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(is_number(v) and abs(v) <= FARTHEST for v in pair)
        ):
            raise ValueError(f"points: {pair!r} is not x, y")
    if not pairs:
        raise ValueError(f"points: {given!r} is not a list of points")
    return np.array(pairs, np.float64)


def _bitmap(text: Any, box: list[float], size: tuple[int, int]) -> dict[str, Any]:
    """The run-length encoding of a mask: a PNG in base64 of the pixels from the first to the last corner, both included.

    Raises:
        ValueError: it is something else, or stands out of the image.
    """
    x0, y0, x1, y1 = (int(v) for v in box)
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
            shown = np.asarray(image.convert("L")) > 0
    except (TypeError, *DAMAGED) as error:
        raise ValueError(f"mask: not a PNG in base64: {error}") from None
    if (
        shown.shape != (y1 - y0 + 1, x1 - x0 + 1)
        or x0 < 0
        or y0 < 0
        or x1 >= size[0]
        or y1 >= size[1]
    ):
        height, width = shown.shape
        raise ValueError(
            f"mask: {width} x {height} px do not fill the pixels from {x0}, {y0} to {x1}, {y1} of {size[0]} x {size[1]}"
        )
    whole = np.zeros(size[::-1], np.uint8, order="F")
    whole[y0 : y1 + 1, x0 : x1 + 1] = shown
    encoded = coco_mask.encode(whole)
    return {"size": [size[1], size[0]], "counts": encoded["counts"].decode("ascii")}


def _embedded(data: dict[str, Any]) -> bytes:
    """The image that stands in a file.

    Raises:
        BadEntryError: there is none.
    """
    text = data.get("imageData")
    if not isinstance(text, str) or not text:
        raise BadEntryError(
            f"imagePath: {data.get('imagePath')!r}: the picture is not there, and imageData is empty; give --images"
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadEntryError(f"imageData: not base64: {error}") from None


def loaded(path: Path) -> dict[str, Any]:
    """A file of shapes as data: `shapes` is a list.

    Raises:
        BadEntryError: it is something else.
    """
    try:
        data = json.loads(read_text(path))
    except UnreadableSourceError as error:
        raise BadEntryError(str(error).removeprefix(f"{path}: ")) from None
    except (ValueError, RecursionError) as error:
        raise BadEntryError(f"not JSON: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("shapes"), list):
        raise BadEntryError("not labelme: it needs shapes, a list")
    return data


def accepts(path: Path) -> bool:
    """Return whether a file is of this format, by its first keys."""
    return path.suffix.lower() == ".json" and is_here(path)


def find_sources(folder: Path, asked: bool) -> Iterator[Path]:
    """Yield the folder, if it holds files of shapes, of which the first are looked into unless this format is asked for."""
    files = files_of(folder)
    if files and (asked or any(map(is_here, files[:PEEKED]))):
        yield folder


def open_source(source: Source) -> Dataset:
    """Find the files of a source; raises as `open_dataset`."""
    return open_dataset(source.path, source.images)


def open_dataset(source: Path, images: Path | None = None) -> Dataset:
    """Find the files of a dataset: one, or those of a folder and of the folders in it.

    Raises:
        UnreadableSourceError: there are none.
    """
    files = [source] if source.is_file() else files_of(source)
    if not files:
        raise UnreadableSourceError(f"{source}: no *.json and no */*.json")
    return Dataset(files, images)


def files_of(folder: Path) -> list[Path]:
    """The JSON files of a folder and of the folders in it."""
    return sorted(
        p
        for p in (*folder.glob("*.json"), *folder.glob("*/*.json"))
        if not p.name.startswith(APPLE_DOUBLE)
    )


def is_here(path: Path) -> bool:
    """Whether a file is of this form, by its first keys."""
    try:
        with path.open("rb") as file:
            return re.search(rb'"shapes"\s*:\s*\[', file.read(PEEK)) is not None
    except OSError:
        return False
