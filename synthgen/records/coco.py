"""COCO's instances.json."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from synthgen.records import (
    BadEntryError,
    Entry,
    Problem,
    UnreadableSourceError,
    as_boxes,
    below,
    positive,
    read_text,
    text,
    xyxy,
)

PARTS = ("images", "annotations", "categories")
RESTORED = ("category_id", "bbox", "area", "iscrowd", "segmentation")  # of an annotation, from what a dataset knows of it
MOST_PIXELS = 2 * 89_478_485  # of a picture: what pillow takes for a decompression bomb


def load(path: Path) -> dict[str, Any]:
    """The file as data: its images, annotations and categories are lists of mappings.

    Raises:
        UnreadableSourceError: it is something else.
    """
    try:
        data = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnreadableSourceError):
            raise
        raise UnreadableSourceError(f"{path}:{getattr(error, 'lineno', 1)}: not JSON: {error}") from None
    if not isinstance(data, dict) or not set(PARTS) <= set(data):
        raise UnreadableSourceError(f"{path}: not a COCO file: it needs images, annotations and categories")
    for part in PARTS:
        if not isinstance(data[part], list) or not all(isinstance(item, dict) for item in data[part]):
            raise UnreadableSourceError(f"{path}: {part}: not a list of mappings")
    wrong = [c for c in data["categories"] if not isinstance(c.get("id"), int) or not isinstance(c.get("name"), str)]
    if wrong:
        raise UnreadableSourceError(f"{path}: categories: {wrong[0]!r} needs an id (a number) and a name")
    ids = [c["id"] for c in data["categories"]]
    if len(ids) != len(set(ids)):
        raise UnreadableSourceError(f"{path}: categories: id {next(i for i in ids if ids.count(i) > 1)} stands twice")
    return data


def read(path: Path, images: Path | None = None, whole: bool = False) -> Iterator[Entry | Problem]:
    """The annotated pictures of a COCO file.

    Args:
        images: the folder that file names start from; null: that of the file.
        whole: keep crowds too, and what is known of each box beside its place; else crowds are left out.

    Raises:
        UnreadableSourceError: it is not a COCO file.
    """
    return entries(load(path), path, images or path.parent, whole)


def entries(data: dict[str, Any], path: Path, images: Path, whole: bool) -> Iterator[Entry | Problem]:
    """The same of a file that was loaded."""
    names = {c["id"]: c["name"] for c in data["categories"]}
    of_image: dict[Any, list[tuple[str, dict[str, Any]]]] = {}
    for i, image in enumerate(data["images"]):
        if not isinstance(image.get("id"), int | str):
            yield Problem(f"{path}: images[{i}]", f"id: {image.get('id')!r} is not an id", f"{path}: images[{i}]")
        elif image["id"] in of_image:
            yield Problem(f"{path}: images[{i}]", f"id: {image['id']!r} stands twice", f"{path}: images[{i}]")
        else:
            of_image[image["id"]] = []
    for k, annotation in enumerate(data["annotations"]):
        image_id, place = annotation.get("image_id"), f"{path}: annotations[{k}]"
        if not isinstance(image_id, int | str) or image_id not in of_image:
            yield Problem(place, f"image_id {image_id!r} is not among the images")
        elif whole or not annotation.get("iscrowd"):
            of_image[image_id].append((place, annotation))
    for i, image in enumerate(data["images"]):
        if isinstance(image.get("id"), int | str) and image["id"] in of_image:  # of two with one id the first
            yield from _entry(image, of_image.pop(image["id"]), names, f"{path}: images[{i}]", images, whole)


def _entry(
    image: dict[str, Any], found: list[tuple[str, Any]], names: dict[int, str], place: str, images: Path, whole: bool
) -> Iterator[Entry | Problem]:
    problems: list[Problem] = []
    size, picture, rows, more = (0, 0), None, [], []
    try:
        size = positive(image.get("width"), "width"), positive(image.get("height"), "height")
        picture = below(images, image["file_name"], "file_name") if "file_name" in image else None
        text(image.get("caption"), "caption")
    except BadEntryError as error:
        problems += error.problems(place)
    for where, annotation in found:
        try:
            category = annotation.get("category_id")
            if not isinstance(category, int) or category not in names:
                raise BadEntryError(f"category_id {category!r} is not among the categories")
            rows.append(xyxy(annotation.get("bbox")))
            if whole and not problems:
                more.append(_more(annotation, *size))
        except ValueError as error:
            problems.append(Problem(where, str(error), place))
    if problems:
        yield from problems
        return
    kinds = tuple(names[a["category_id"]] for _, a in found)
    entry = Entry(place, *size, as_boxes(rows), kinds, caption=image.get("caption"), picture=picture)
    entry = replace(entry, places=tuple(where for where, _ in found))
    source = (image, *(annotation for _, annotation in found))
    yield replace(entry, more=tuple(more), source=source) if whole else entry


def head(data: dict[str, Any]) -> dict[str, Any]:
    """All that a COCO file says beside its images and annotations, and whether their names can be had back.

    Returns:
        {"head": {"info", "licenses", "categories", …}, "file_names": none is that of two images,
        "annotation_ids": all are numbers from 1, none stands twice}.
    """
    # pycocotools takes an annotation of id 0 for one that was not found
    names = [str(image.get("file_name")).casefold() for image in data["images"]]
    ids = [annotation.get("id") for annotation in data["annotations"]]
    numbers = all(isinstance(i, int) and not isinstance(i, bool) and i > 0 for i in ids)
    rest = {key: value for key, value in data.items() if key not in ("images", "annotations")}
    return {"head": rest, "file_names": len(set(names)) == len(names), "annotation_ids": numbers and len(set(ids)) == len(ids)}


def beyond(record: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """What an image or annotation of a COCO file says that is not known already."""
    return {key: value for key, value in record.items() if key != "image_id" and (key not in known or known[key] != value)}


def _more(annotation: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    more: dict[str, Any] = {"iscrowd": int(bool(annotation.get("iscrowd")))}
    if annotation.get("segmentation"):
        more["segmentation"] = run_length(annotation["segmentation"], width, height)
    area = annotation.get("area")
    return more | ({"area": float(area)} if isinstance(area, int | float) and 0 < area <= width * height else {})


def run_length(segmentation: Any, width: int, height: int) -> dict[str, Any]:
    """COCO's compressed run-length encoding of polygons (flat lists of x, y in px) or of a run-length encoding.

    Raises:
        ValueError: it is neither, or of another size.
    """
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        if not segmentation or not all(_is_polygon(p) for p in segmentation):
            raise ValueError("segmentation: a polygon is a flat list of three or more points x, y")
        encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    else:
        encoded = _checked_encoding(segmentation, width, height)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def _is_polygon(points: Any) -> bool:
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
        return False
    # coordinates of the wildest size would make the rasteriser run out of memory
    return all(isinstance(v, int | float) for v in points) and bool((np.abs(np.array(points, float)) < 1e5).all())


def _checked_encoding(segmentation: Any, width: int, height: int) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    if width * height > MOST_PIXELS:
        raise ValueError(f"segmentation: a picture of {width} x {height} px is too large for a mask")
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        raise ValueError(f"segmentation: neither polygons nor a run-length encoding of size [{height}, {width}]")
    counts = segmentation.get("counts")
    try:
        if isinstance(counts, list):
            if sum(map(int, counts)) != width * height or min(counts) < 0:
                raise ValueError("counts do not add up")
            segmentation = coco_mask.frPyObjects(segmentation, height, width)
        coco_mask.decode(segmentation)  # the library's own check
    except (ValueError, TypeError) as error:
        raise ValueError(f"segmentation: not a run-length encoding: {error}") from None
    counts = segmentation["counts"]
    return {"counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def default_images(path: Path, data: dict[str, Any]) -> Path:
    """The folder where the pictures of a COCO file usually lie: the first one that holds one of its first pictures.

    Raises:
        UnreadableSourceError: there is none; the message says where they were looked for.
    """
    near, above = path.parent, path.parent.parent
    split = path.stem.removeprefix("instances_")
    folders = [near, near / "images", near / split, near / "images" / split, above, above / "images", above / split]
    folders.append(above / "images" / split)
    firsts = [str(image.get("file_name", "")) for image in data["images"][:16]]
    found = [f for f in folders if any(name and (f / name).is_file() for name in firsts)]
    if not found:
        looked = ", ".join(dict.fromkeys(str(f) for f in folders))
        raise UnreadableSourceError(
            f"{path}: none of its pictures ({', '.join(firsts[:2])}, …) is in {looked}; name their folder"
        )
    return found[0]
