"""COCO's instances.json."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synthgen.formats.entries import (
    BadEntryError,
    Entry,
    Problem,
    UnreadableSourceError,
    as_boxes,
    doubtful,
    image_below,
    is_crowd,
    is_number,
    positive,
    read_text,
    text,
    whole_number,
    xyxy,
)
from synthgen.formats.images import upright_size
from synthgen.formats.masks import run_length
from synthgen.formats.source import AnnotatedImages, Source
from synthgen.strict_json import without_nan

PARTS = ("images", "annotations", "categories")
RESTORED = (
    "category_id",
    "bbox",
    "area",
    "iscrowd",
    "segmentation",
)  # of an annotation, from what a dataset knows of it


@dataclass(frozen=True)
class Dataset(AnnotatedImages):
    """A COCO file.

    Attributes:
        data: what it says.
        path: where it lies.
        images: the folder that file names start from; null: where they usually lie.
    """

    data: dict[str, Any]
    path: Path
    images: Path | None = None

    def entries(self, whole: bool = False) -> Iterator[Entry | Problem]:
        images = self.images or default_images(self.path, self.data)
        return entries(self.data, self.path, images, whole)

    @property
    def own_ids(self) -> dict[str, int]:
        return {c["name"]: c["id"] for c in self.data["categories"]}

    @property
    def head(self) -> dict[str, Any]:
        return head(self.data)

    @property
    def licence(self) -> str:
        stated = self.data.get("licenses")
        names = (
            [str(item.get("name", "")) for item in stated if isinstance(item, dict)]
            if isinstance(stated, list)
            else []
        )
        return ", ".join(dict.fromkeys(filter(None, names))) or super().licence


def accepts(path: Path) -> bool:
    """Return whether a file may be a COCO file, by its name."""
    return path.suffix.lower() == ".json"


def find_sources(folder: Path, asked: bool) -> Iterator[Path]:
    """Yield the COCO files of a folder, by their names."""
    for path in sorted([*folder.glob("*.json"), *folder.glob("annotations/*.json")]):
        if path.stem.startswith("instances") or (
            path.parent == folder and path.stem.startswith(("_annotations", "annotations"))
        ):
            yield path


def open_source(source: Source) -> Dataset:
    """Read a COCO file.

    Raises:
        UnreadableSourceError: it is none.
    """
    return Dataset(load(source.path), source.path, source.images)


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
        raise UnreadableSourceError(
            f"{path}:{getattr(error, 'lineno', 1)}: not JSON: {error}"
        ) from None
    if not isinstance(data, dict) or not set(PARTS) <= set(data):
        raise UnreadableSourceError(
            f"{path}: not a COCO file: it needs images, annotations and categories"
        )
    for part in PARTS:
        if not isinstance(data[part], list) or not all(
            isinstance(item, dict) for item in data[part]
        ):
            raise UnreadableSourceError(f"{path}: {part}: not a list of mappings")
    categories = [{**c, "id": whole_number(c.get("id"))} for c in data["categories"]]
    for category, given in zip(categories, data["categories"], strict=True):
        if category["id"] is None or not isinstance(category.get("name"), str):
            raise UnreadableSourceError(
                f"{path}: categories: {given!r} needs an id (a number) and a name"
            )
    ids = [c["id"] for c in categories]
    if len(ids) != len(set(ids)):
        raise UnreadableSourceError(
            f"{path}: categories: id {next(i for i in ids if ids.count(i) > 1)} stands twice"
        )
    return {**data, "categories": categories}


def read(path: Path, images: Path | None = None, whole: bool = False) -> Iterator[Entry | Problem]:
    """The annotated pictures of a COCO file.

    Args:
        images: the folder that file names start from; null: that of the file.
        whole: keep crowds too, and what is known of each box beside its place; else crowds are left out.

    Raises:
        UnreadableSourceError: it is not a COCO file.
    """
    return entries(load(path), path, images or path.parent, whole)


def entries(
    data: dict[str, Any], path: Path, images: Path, whole: bool
) -> Iterator[Entry | Problem]:
    """The same of a file that was loaded.

    An image whose annotations are not known for sure is a Problem: one of two with the same id, or of two that name the same
    file and say something else of it; and one without annotations where some of the file belong to no image.
    """
    names = {c["id"]: c["name"] for c in data["categories"]}
    owners = _Owners(data, path)
    yield from owners.problems
    if owners.homeless:
        why = f"annotations that do not say their image: {owners.homeless}; they may be any image's, so that none can be used"
        yield Problem(str(path), why)
        return
    said = _Files(data, owners.found, images)
    for i, image in enumerate(data["images"]):
        place = f"{path}: images[{i}]"
        if i in owners.bad:
            continue
        if other := said.contradicted(i):
            name = image["file_name"]
            yield Problem(
                place,
                f"file_name: {name!r} is that of images[{other}] too, with other annotations",
                place,
            )
        elif owners.lost and not owners.found[i]:
            yield doubtful(place, owners.lost)
        else:
            found = [(f"{path}: annotations[{k}]", data["annotations"][k]) for k in owners.found[i]]
            yield from _entry(image, found, names, place, images, whole)


class _Owners:
    """Which image each annotation of a COCO file belongs to.

    Ids that are texts in one place and numbers in the other are the same where that can mean one image only.

    Attributes:
        found: of each image, the numbers of its annotations.
        bad: images whose annotations are not known; a Problem says so of each.
        problems: what is wrong with ids.
        lost: annotations of an image that the file does not have: they may be those of an image without annotations.
        homeless: annotations whose id is none, or of another kind than those of the images: they may be those of any image.
    """

    def __init__(self, data: dict[str, Any], path: Path) -> None:
        self.found: list[list[int]] = [[] for _ in data["images"]]
        self.bad: set[int] = set()
        self.problems: list[Problem] = []
        self.lost = self.homeless = 0
        images: dict[int | str, list[int]] = {}
        alike: dict[int | str, list[int | str]] = {}
        for i, image in enumerate(data["images"]):
            own = _id(image.get("id"))
            if own is None:
                self._refuse(path, i, f"id: {image.get('id')!r} is not an id")
            else:
                images.setdefault(own, []).append(i)
        for own, same in images.items():
            alike.setdefault(_plain(own), []).append(own)
            for i in same if len(same) > 1 else ():
                self._refuse(
                    path,
                    i,
                    f"id: {own!r} stands twice, so that nobody knows whose its annotations are",
                )
        kinds = {isinstance(own, int) for own in alike}
        for k, annotation in enumerate(data["annotations"]):
            given, place = annotation.get("image_id"), f"{path}: annotations[{k}]"
            own = _id(given)
            meant = [] if own is None else [own] if own in images else alike.get(_plain(own), [])
            if len(meant) == 1:
                for i in images[meant[0]]:
                    self.found[i].append(k)
                continue
            if len(meant) > 1:
                self.problems.append(
                    Problem(place, f"image_id {given!r} may be any of the images {meant}")
                )
                for i in (i for one in meant for i in images[one]):
                    self._refuse(path, i, f"annotations[{k}] may be its own, or not")
                continue
            self.problems.append(Problem(place, f"image_id {given!r} is not among the images"))
            if own is None or isinstance(_plain(own), int) not in kinds:
                self.homeless += 1
            else:
                self.lost += 1

    def _refuse(self, path: Path, i: int, why: str) -> None:
        if i not in self.bad:
            self.bad.add(i)
            self.problems.append(Problem(f"{path}: images[{i}]", why, f"{path}: images[{i}]"))


class _Files:
    """Which images of a COCO file name the same file and say something else of it."""

    def __init__(self, data: dict[str, Any], found: list[list[int]], images: Path) -> None:
        self.data, self.found = data, found
        self.of: dict[Path, list[int]] = {}
        self.path: dict[int, Path] = {}
        for i, image in enumerate(data["images"]):
            try:
                self.path[i] = image_below(images, image.get("file_name"), "file_name")
            except BadEntryError:
                continue  # told with the entry
            self.of.setdefault(self.path[i], []).append(i)

    def contradicted(self, i: int) -> str | None:
        """The numbers of the other images, if they do."""
        others = [other for other in self.of.get(self.path.get(i, Path()), ()) if other != i]
        if not any(self.labels(other) != self.labels(i) for other in others):
            return None
        return ", ".join(map(str, others))

    def labels(self, i: int) -> list[str]:
        """What the file says of an image's objects, in no order."""
        keys = ("category_id", "bbox", "iscrowd", "segmentation")
        return sorted(
            repr([self.data["annotations"][k].get(key) for key in keys]) for k in self.found[i]
        )


def _id(value: Any) -> int | str | None:
    """An image's id: a whole number or a text that is not empty; null of anything else."""
    return (value or None) if isinstance(value, str) else whole_number(value)


def _plain(own: int | str) -> int | str:
    """The number that an id says, or the text."""
    number = whole_number(own)
    return own if number is None else number


def _entry(
    image: dict[str, Any],
    found: list[tuple[str, Any]],
    names: dict[int, str],
    place: str,
    images: Path,
    whole: bool,
) -> Iterator[Entry | Problem]:
    problems: list[Problem] = []
    size, picture = (0, 0), None
    try:
        picture = (
            image_below(images, image["file_name"], "file_name") if "file_name" in image else None
        )
        size = _size(image, picture)
        text(image.get("caption"), "caption")
    except BadEntryError as error:
        problems += error.problems(place)
    boxes = []
    for where, annotation in found:
        try:
            box = _Box(where, annotation, names)
        except ValueError as error:
            problems.append(Problem(where, str(error), place))
            continue
        if whole or not box.crowd:
            boxes.append(box)
    if problems:
        yield from problems
        return
    entry = Entry(
        place, *size, as_boxes([box.corners for box in boxes]), tuple(box.name for box in boxes)
    )
    entry = replace(
        entry,
        caption=image.get("caption"),
        picture=picture,
        places=tuple(box.place for box in boxes),
    )
    if whole:
        more = tuple(box.more(*size) for box in boxes)
        lost = tuple(Problem(box.place, box.fault) for box in boxes if box.fault)
        source = (_as_json(image, images, picture), *(box.source() for box in boxes))
        entry = replace(entry, more=more, source=source, lost_masks=lost)
    yield entry


def _size(image: dict[str, Any], picture: Path | None) -> tuple[int, int]:
    """Width and height in px: as the file says, else those of the image; 0 says nothing, as with Pascal VOC."""
    unknown = any(image.get(side) in (None, 0) for side in ("width", "height"))
    if unknown and picture is not None:
        return upright_size(picture)
    return positive(image.get("width"), "width"), positive(image.get("height"), "height")


def _as_json(image: dict[str, Any], images: Path, picture: Path | None) -> dict[str, Any]:
    """The record of an image as it is kept: ids are whole numbers or texts, names have slashes, numbers are finite."""
    own = _id(image["id"])
    if own is not image["id"]:
        image = {**image, "id": own}
    if picture is not None and (
        images / image["file_name"] != picture or Path(image["file_name"]).is_absolute()
    ):
        image = {**image, "file_name": picture.relative_to(images).as_posix()}
    return dict(without_nan(image))


class _Box:
    """An annotation of a COCO file.

    Attributes:
        place: where it stands.
        name: its category.
        corners: xyxy in px.
        crowd: whether it is one.
        fault: why its segmentation is none, once `more` was called; empty: it is one, or there is none.

    Raises:
        ValueError: its category is none of the file's, or its box is none, or whether it is a crowd cannot be said.
    """

    def __init__(self, place: str, annotation: dict[str, Any], names: dict[int, str]) -> None:
        self.place, self.annotation, self.fault = place, annotation, ""
        category = whole_number(annotation.get("category_id"))
        if category not in names:
            raise ValueError(
                f"category_id {annotation.get('category_id')!r} is not among the categories"
            )
        self.category, self.name = category, names[category]
        self.corners = xyxy(annotation.get("bbox"))
        self.crowd = is_crowd(annotation.get("iscrowd"))

    def more(self, width: int, height: int) -> dict[str, Any]:
        """What is known beside the box; a segmentation that is none is left out."""
        more: dict[str, Any] = {"iscrowd": int(self.crowd)}
        if self.annotation.get("segmentation"):
            try:
                more["segmentation"] = run_length(self.annotation["segmentation"], width, height)
            except ValueError as error:
                self.fault = str(error)
        area = self.annotation.get("area")
        return more | (
            {"area": float(area)} if is_number(area) and 0 < area <= width * height else {}
        )

    def source(self) -> dict[str, Any]:
        """The record as it is kept: without a segmentation that is none or an area that is no number."""
        record = dict(self.annotation)
        if record["category_id"] != self.category or isinstance(record["category_id"], float):
            record["category_id"] = self.category
        if isinstance(record.get("iscrowd"), str | float):
            record["iscrowd"] = int(self.crowd)
        if self.fault:
            del record["segmentation"]
        if "area" in record and not (is_number(record["area"]) and abs(record["area"]) < math.inf):
            del record["area"]
        return dict(without_nan(record))


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
    rest = without_nan(
        {key: value for key, value in data.items() if key not in ("images", "annotations")}
    )
    return {
        "head": rest,
        "file_names": len(set(names)) == len(names),
        "annotation_ids": numbers and len(set(ids)) == len(ids),
    }


def beyond(record: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """What an image or annotation of a COCO file says that is not known already."""
    return {
        key: value
        for key, value in record.items()
        if key != "image_id" and (key not in known or known[key] != value)
    }


def _is_there(folder: Path, name: str) -> bool:
    try:
        return image_below(folder, name, "file_name").is_file()
    except BadEntryError:
        return False


def default_images(path: Path, data: dict[str, Any]) -> Path:
    """The folder where the pictures of a COCO file usually lie: the one that holds most of its first pictures.

    Raises:
        UnreadableSourceError: there is none; the message says where they were looked for.
    """
    near, above = path.parent, path.parent.parent
    split = path.stem.removeprefix("instances_")
    folders = [
        near,
        near / "images",
        near / split,
        near / "images" / split,
        above,
        above / "images",
        above / split,
    ]
    folders.append(above / "images" / split)
    firsts = [str(image.get("file_name", "")) for image in data["images"][:16]]
    found = {folder: sum(_is_there(folder, name) for name in firsts) for folder in folders}
    if not any(found.values()):
        looked = ", ".join(dict.fromkeys(str(f) for f in folders))
        raise UnreadableSourceError(
            f"{path}: none of its pictures ({', '.join(firsts[:2])}, …) is in {looked}; name their folder"
        )
    return max(found, key=lambda folder: found[folder])
