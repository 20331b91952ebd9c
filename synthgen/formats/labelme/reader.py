"""The reader of labelme: one JSON file with shapes for each image.

The image lies beside the JSON file or is embedded in it.
"""

import base64
import binascii
import io
import json
import os
import re
from collections import Counter
from collections.abc import Hashable, Iterator
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
    is_finite,
    parse_side,
    read_text,
    stack_boxes,
)
from synthgen.formats.images import APPLE_DOUBLE, read_upright_size
from synthgen.formats.masks import add_masks, encode_mask
from synthgen.formats.source import AnnotatedImages, Source
from synthgen.images import DECODE_ERRORS

SHAPES_WITHOUT_AREA = ("point", "points", "line", "linestrip")
"""They have no box; they are left out and counted."""
POLYGONS = ("polygon", "rotation", "oriented_rectangle")
SHAPES = ("rectangle", "circle", "mask", *POLYGONS, *SHAPES_WITHOUT_AREA)
CHECKED_FILES = 16  # files of a folder that are read to find its format
CHECKED_BYTES = 1 << 16  # bytes of a file that contain "shapes"; an embedded image follows it


@dataclass(frozen=True)
class Dataset(AnnotatedImages):
    """labelme's JSON files.

    Attributes:
        files: the JSON files, in order.
        images: the folder that image names are relative to, or None for that of each file.
    """

    files: list[Path]
    images: Path | None = None

    def entries(self, whole: bool = False) -> Iterator[Entry | Problem]:
        """Yield the annotated images.

        Args:
            whole: also read masks.
        """
        owners = Counter(self._image_of_file.values())
        for path in self.files:
            image = self._image_of_file[path]
            if image is not None and owners[image] > 1:
                why = f"imagePath: {image} is also the image of another file"
                yield Problem(str(path), why, str(path))
                continue
            try:
                yield self._read_entry(path, image, whole)
            except BadEntryError as error:
                yield from error.problems(str(path))

    @cached_property
    def _image_of_file(self) -> dict[Path, Path | None]:
        """The image file of each JSON file, or None if there is none."""
        images: dict[Path, Path | None] = {}
        for path in self.files:
            try:
                images[path] = self._find_image(path, load(path))
            except BadEntryError:
                images[path] = None  # reported with the entry
        return images

    def _find_image(self, path: Path, data: dict[str, Any]) -> Path | None:
        """Return the file that imagePath names, or None.

        The name is relative to the folder of the JSON file or to --images. If there is no such
        file, its last part is tried in that folder.
        """
        name = data.get("imagePath")
        if not isinstance(name, str) or not name or "\0" in name:
            return None
        folder = self.images or path.parent
        relative = PurePosixPath(name.replace("\\", "/"))
        for image in (folder / relative, folder / relative.name):
            if os.path.isfile(image):  # unlike Path.is_file, accepts names that are too long
                return image
        return None

    def _read_entry(self, path: Path, image: Path | None, whole: bool) -> Entry:
        """Return the entry of a file.

        Raises:
            BadEntryError: the image or some shapes are not valid.
        """
        data = load(path)
        embedded = None if image is not None else _decode_embedded_image(data)
        size = _read_size(data, image or embedded or b"")
        shapes: dict[Hashable, _Shape] = {}
        left_out: list[str] = []
        problems: list[Problem] = []
        for i, record in enumerate(data["shapes"]):
            place = f"{path}: shapes[{i}]"
            if isinstance(record, dict) and record.get("shape_type") in SHAPES_WITHOUT_AREA:
                left_out.append(record["shape_type"])
                continue
            try:
                shape = _parse_shape(record, place, size)
                group_id = record.get("group_id")
                # labelme exports the shapes of a group as one object
                key = i if group_id is None else (shape.name, repr(group_id))
                shapes[key] = shapes[key].join(shape, size) if key in shapes else shape
            except ValueError as error:
                problems.append(Problem(place, str(error), str(path)))
        if problems:
            raise BadEntryError(*problems)
        objects = list(shapes.values())
        entry = Entry(
            str(path),
            *size,
            stack_boxes([shape.box for shape in objects]),
            tuple(shape.name for shape in objects),
            image_path=image,
            places=tuple(shape.place for shape in objects),
            left_out=tuple(left_out),
            embedded=embedded,
        )
        return add_masks(entry, [shape.outline for shape in objects]) if whole else entry


@dataclass(frozen=True)
class _Shape:
    """An object.

    Attributes:
        box: xyxy in px.
        outline: polygons (flat lists of x, y in px) or a run-length encoding; empty for a
            rectangle or circle.
    """

    name: str
    place: str
    box: list[float]
    outline: Any = ()

    def join(self, other: "_Shape", size: tuple[int, int]) -> "_Shape":
        """Return both shapes as one object.

        A rectangle or circle becomes a polygon of its corners if the other shape has an outline.
        """
        x0, y0, x1, y1 = self.box
        other_x0, other_y0, other_x1, other_y1 = other.box
        box = [min(x0, other_x0), min(y0, other_y0), max(x1, other_x1), max(y1, other_y1)]
        if not self.outline and not other.outline:
            return replace(self, box=box)
        first = self.outline or [_list_corners(self.box)]
        second = other.outline or [_list_corners(other.box)]
        if isinstance(first, list) and isinstance(second, list):
            return replace(self, box=box, outline=[*first, *second])
        masks = [encode_mask(first, *size), encode_mask(second, *size)]
        merged = coco_mask.merge(masks)
        outline = {**merged, "counts": merged["counts"].decode("ascii")}
        return replace(self, box=box, outline=outline)


def _list_corners(box: list[float]) -> list[float]:
    """Return the polygon of a box."""
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def _parse_shape(record: Any, place: str, size: tuple[int, int]) -> _Shape:
    """Return a shape that has an area.

    Raises:
        ValueError: its type is unknown, or its points do not fit its type.
    """
    label = record.get("label") if isinstance(record, dict) else None
    if not isinstance(label, str) or not label.strip():
        raise ValueError("label: missing; the name of the object")
    name = label.strip()
    kind = record.get("shape_type") or "polygon"
    points = _parse_points(record.get("points"))
    x0, y0 = points.min(0).tolist()
    x1, y1 = points.max(0).tolist()
    box = [x0, y0, x1, y1]
    if kind == "rectangle" and len(points) in (2, 4):
        return _Shape(name, place, box)
    if kind == "circle" and len(points) == 2:
        centre = points[0]
        radius = np.hypot(*(points[1] - centre))
        circle_box = np.concatenate([centre - radius, centre + radius])
        return _Shape(name, place, circle_box.tolist())
    if kind == "mask" and len(points) == 2:
        mask = _decode_mask(record.get("mask"), box, size)
        return _Shape(name, place, [x0, y0, x1 + 1, y1 + 1], mask)
    if kind in POLYGONS and len(points) >= 3:
        return _Shape(name, place, box, [points.ravel().tolist()])
    known = ", ".join(SHAPES)
    raise ValueError(f"shape_type: {kind!r} with {len(points)} points; what is read: {known}")


def _parse_points(value: Any) -> NDArray[np.float64]:
    """Return points (N, 2) in px.

    Raises:
        ValueError: the value is not a list of points, or an empty one.
    """
    pairs = value if isinstance(value, list) else []
    for pair in pairs:
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or not all(map(is_finite, pair)):
            raise ValueError(f"points: {pair!r} is not x, y")
    if not pairs:
        raise ValueError(f"points: {value!r} is not a list of points")
    return np.array(pairs, np.float64)


def _decode_mask(text: Any, box: list[float], size: tuple[int, int]) -> dict[str, Any]:
    """Return the run-length encoding of a mask.

    Args:
        text: a PNG in base64 of the pixels from the first to the last corner, both included.
        box: the two corners, xyxy in px.
        size: width and height of the image in px.

    Raises:
        ValueError: the text is something else, or the mask reaches outside the image.
    """
    x0, y0, x1, y1 = map(int, box)
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
            mask = np.asarray(image.convert("L")) > 0
    except (TypeError, *DECODE_ERRORS) as error:
        raise ValueError(f"mask: not a PNG in base64: {error}") from None
    fills_box = mask.shape == (y1 - y0 + 1, x1 - x0 + 1)
    is_inside = x0 >= 0 and y0 >= 0 and x1 < size[0] and y1 < size[1]
    if not fills_box or not is_inside:
        height, width = mask.shape
        raise ValueError(
            f"mask: {width} x {height} px do not fill the pixels from {x0}, {y0} to {x1}, {y1} "
            f"of {size[0]} x {size[1]}"
        )
    canvas = np.zeros(size[::-1], np.uint8, order="F")
    canvas[y0 : y1 + 1, x0 : x1 + 1] = mask
    encoded = coco_mask.encode(canvas)
    return {"size": [size[1], size[0]], "counts": encoded["counts"].decode("ascii")}


def _read_size(data: dict[str, Any], image: Path | bytes) -> tuple[int, int]:
    """Return width and height in px, from the JSON file or else from the image."""
    width = data.get("imageWidth")
    height = data.get("imageHeight")
    if not width or not height:
        return read_upright_size(image)
    return parse_side(width, "imageWidth"), parse_side(height, "imageHeight")


def _decode_embedded_image(data: dict[str, Any]) -> bytes:
    """Return the image that is embedded in a file.

    Raises:
        BadEntryError: there is none.
    """
    text = data.get("imageData")
    if not isinstance(text, str) or not text:
        raise BadEntryError(
            f"imagePath: {data.get('imagePath')!r}: the image is not there, "
            "and imageData is empty; give --images"
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadEntryError(f"imageData: not base64: {error}") from None


def load(path: Path) -> dict[str, Any]:
    """Return the content of a file, in which `shapes` is a list.

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
    """Return whether a file has this format, by its first keys."""
    return path.suffix.lower() == ".json" and has_shapes(path)


def find_sources(folder: Path, is_format_given: bool) -> Iterator[Path]:
    """Yield the folder if it contains labelme's files.

    The first files are checked, unless the user named this format.
    """
    files = find_files(folder)
    if files and (is_format_given or any(map(has_shapes, files[:CHECKED_FILES]))):
        yield folder


def open_source(source: Source) -> Dataset:
    """Find the files of a source; raises as `open_dataset`."""
    return open_dataset(source.path, source.images)


def open_dataset(source: Path, images: Path | None = None) -> Dataset:
    """Find the files of a dataset: a single file, or those of a folder and its subfolders.

    Raises:
        UnreadableSourceError: there are none.
    """
    files = [source] if source.is_file() else find_files(source)
    if not files:
        raise UnreadableSourceError(f"{source}: no *.json and no */*.json")
    return Dataset(files, images)


def find_files(folder: Path) -> list[Path]:
    """Return the JSON files of a folder and of its subfolders, sorted."""
    files: list[Path] = []
    for path in (*folder.glob("*.json"), *folder.glob("*/*.json")):
        if not path.name.startswith(APPLE_DOUBLE):
            files.append(path)
    return sorted(files)


def has_shapes(path: Path) -> bool:
    """Return whether a file has this format, by its first keys."""
    try:
        with path.open("rb") as file:
            return re.search(rb'"shapes"\s*:\s*\[', file.read(CHECKED_BYTES)) is not None
    except OSError:
        return False
