"""The reader of COCO's instances.json."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synthgen.formats.coco.owners import find_owners, parse_image_id
from synthgen.formats.entries import (
    BadEntryError,
    Entry,
    Problem,
    UnreadableSourceError,
    is_number,
    make_missing_labels_problem,
    parse_iscrowd,
    parse_side,
    parse_text,
    parse_whole_number,
    parse_xywh,
    read_text,
    resolve_image,
    stack_boxes,
)
from synthgen.formats.images import read_upright_size
from synthgen.formats.masks import encode_mask
from synthgen.formats.source import AnnotatedImages, Source
from synthgen.strict_json import remove_nan

PARTS = ("images", "annotations", "categories")
LABEL_KEYS = ("category_id", "bbox", "iscrowd", "segmentation")
RESTORED_KEYS = ("category_id", "bbox", "area", "iscrowd", "segmentation")
"""The keys of an annotation that an export can restore from the annotation of a dataset."""
FIRST_IMAGES = 16  # the number of images whose files are looked for, to find their folder


@dataclass(frozen=True)
class Dataset(AnnotatedImages):
    """A COCO file.

    Attributes:
        data: its content.
        path: its path.
        images: the folder that file names are relative to, or None for the usual places.
    """

    data: dict[str, Any]
    path: Path
    images: Path | None = None

    def entries(self, whole: bool = False) -> Iterator[Entry | Problem]:
        images = self.images or find_image_folder(self.path, self.data)
        return read_entries(self.data, self.path, images, whole)

    @property
    def own_ids(self) -> dict[str, int]:
        return {category["name"]: category["id"] for category in self.data["categories"]}

    @property
    def head(self) -> dict[str, Any]:
        return make_head(self.data)

    @property
    def licence(self) -> str:
        licences = self.data.get("licenses")
        if not isinstance(licences, list):
            return super().licence
        names: list[str] = []
        for item in licences:
            name = str(item.get("name", "")) if isinstance(item, dict) else ""
            if name and name not in names:
                names.append(name)
        return ", ".join(names) or super().licence


def accepts(path: Path) -> bool:
    """Return whether a file may be a COCO file, by its name."""
    return path.suffix.lower() == ".json"


def find_sources(folder: Path, is_format_given: bool) -> Iterator[Path]:
    """Yield the COCO files of a folder, by their names."""
    for path in sorted([*folder.glob("*.json"), *folder.glob("annotations/*.json")]):
        prefixes = ["instances"]
        if path.parent == folder:
            prefixes += ["_annotations", "annotations"]
        if path.stem.startswith(tuple(prefixes)):
            yield path


def open_source(source: Source) -> Dataset:
    """Read a COCO file.

    Raises:
        UnreadableSourceError: it is not a COCO file.
    """
    return Dataset(load(source.path), source.path, source.images)


def load(path: Path) -> dict[str, Any]:
    """Return the content of a COCO file with checked images, annotations and categories.

    Each of the three is a list of mappings, and the ids of categories are unique whole numbers.

    Raises:
        UnreadableSourceError: it is not a COCO file.
    """
    text = read_text(path)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise UnreadableSourceError(f"{path}:{line}: not JSON: {error}") from None
    if not isinstance(data, dict) or not set(PARTS) <= set(data):
        raise UnreadableSourceError(
            f"{path}: not a COCO file: it needs images, annotations and categories"
        )
    for part in PARTS:
        if not _is_list_of_mappings(data[part]):
            raise UnreadableSourceError(f"{path}: {part}: not a list of mappings")
    return {**data, "categories": _parse_categories(data["categories"], path)}


def _is_list_of_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _parse_categories(records: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Return the categories with ids that are whole numbers.

    Raises:
        UnreadableSourceError: an id or a name is missing, or two categories have the same id.
    """
    categories: list[dict[str, Any]] = []
    for record in records:
        category_id = parse_whole_number(record.get("id"))
        if category_id is None or not isinstance(record.get("name"), str):
            raise UnreadableSourceError(
                f"{path}: categories: {record!r} needs an id (a number) and a name"
            )
        categories.append({**record, "id": category_id})
    known_ids: set[int] = set()
    for category in categories:
        if category["id"] in known_ids:
            raise UnreadableSourceError(f"{path}: categories: duplicate id {category['id']}")
        known_ids.add(category["id"])
    return categories


def read(path: Path, images: Path | None = None, whole: bool = False) -> Iterator[Entry | Problem]:
    """Yield the annotated images of a COCO file.

    Args:
        images: the folder that file names are relative to, or None for that of the file.
        whole: also read crowds and the other values of each annotation.

    Raises:
        UnreadableSourceError: it is not a COCO file.
    """
    return read_entries(load(path), path, images or path.parent, whole)


def read_entries(
    data: dict[str, Any], path: Path, images: Path, whole: bool
) -> Iterator[Entry | Problem]:
    """Yield the annotated images of a COCO file that was loaded.

    An image whose annotations are uncertain is a Problem. That applies to images with the same id,
    to images with the same file and different annotations, and to images without annotations if
    the image of some annotations is unknown.
    """
    category_names = {category["id"]: category["name"] for category in data["categories"]}
    owners = find_owners(data, path)
    yield from owners.problems
    if owners.without_image_id:
        why = (
            f"annotations without a usable image_id: {owners.without_image_id}; "
            "they may belong to any image, so that no image can be used"
        )
        yield Problem(str(path), why)
        return
    shared_files = _find_shared_files(data, images)
    for i, image in enumerate(data["images"]):
        place = f"{path}: images[{i}]"
        if i in owners.bad_images:
            continue
        annotations: list[tuple[str, dict[str, Any]]] = []
        for k in owners.annotations[i]:
            annotations.append((f"{path}: annotations[{k}]", data["annotations"][k]))
        others = shared_files.get(i, [])
        if _have_other_labels(data, owners.annotations, i, others):
            numbers = ", ".join(map(str, others))
            why = (
                f"file_name: {image['file_name']!r} is also that of images[{numbers}], "
                "with other annotations"
            )
            yield Problem(place, why, place)
        elif owners.unknown_images and not annotations:
            yield make_missing_labels_problem(place, owners.unknown_images)
        else:
            yield from _read_entry(image, annotations, category_names, place, images, whole)


def _find_shared_files(data: dict[str, Any], images: Path) -> dict[int, list[int]]:
    """Return for each image the other images that have the same file, if there are any."""
    indices_of_path: dict[Path, list[int]] = {}
    for i, image in enumerate(data["images"]):
        try:
            path = resolve_image(images, image.get("file_name"), "file_name")
        except BadEntryError:
            continue  # reported with the entry
        indices_of_path.setdefault(path, []).append(i)
    shared: dict[int, list[int]] = {}
    for indices in indices_of_path.values():
        if len(indices) > 1:
            for i in indices:
                shared[i] = [other for other in indices if other != i]
    return shared


def _have_other_labels(
    data: dict[str, Any], annotations: list[list[int]], i: int, others: list[int]
) -> bool:
    """Return whether other images have different labels than image i."""
    if not others:
        return False
    labels = _list_labels(data, annotations[i])
    return any(_list_labels(data, annotations[other]) != labels for other in others)


def _list_labels(data: dict[str, Any], indices: list[int]) -> list[str]:
    """Return the labels of annotations as texts, sorted."""
    labels: list[str] = []
    for k in indices:
        annotation = data["annotations"][k]
        labels.append(repr([annotation.get(key) for key in LABEL_KEYS]))
    return sorted(labels)


def _read_entry(
    image: dict[str, Any],
    annotations: list[tuple[str, dict[str, Any]]],
    category_names: dict[int, str],
    place: str,
    images: Path,
    whole: bool,
) -> Iterator[Entry | Problem]:
    """Yield the entry of an image, or its problems.

    Args:
        annotations: the place and the record of each annotation of the image.
        images: the folder that file names are relative to.
    """
    problems: list[Problem] = []
    width = 0
    height = 0
    image_path: Path | None = None
    try:
        if "file_name" in image:
            image_path = resolve_image(images, image["file_name"], "file_name")
        width, height = _read_size(image, image_path)
        parse_text(image.get("caption"), "caption")
    except BadEntryError as error:
        problems += error.problems(place)
    boxes: list[_Box] = []
    for annotation_place, annotation in annotations:
        try:
            box = _Box(annotation_place, annotation, category_names)
        except ValueError as error:
            problems.append(Problem(annotation_place, str(error), place))
            continue
        if whole or not box.iscrowd:
            boxes.append(box)
    if problems:
        yield from problems
        return
    entry = Entry(
        place,
        width,
        height,
        stack_boxes([box.corners for box in boxes]),
        tuple(box.name for box in boxes),
        caption=image.get("caption"),
        image_path=image_path,
        places=tuple(box.place for box in boxes),
    )
    if whole:
        entry = _add_records(entry, boxes, _restore_image_record(image, images, image_path))
    yield entry


def _add_records(entry: Entry, boxes: list["_Box"], image_record: dict[str, Any]) -> Entry:
    """Return the entry with the other values of its annotations and the records of the file."""
    more: list[dict[str, Any]] = []
    records = [image_record]
    lost_masks: list[Problem] = []
    for box in boxes:
        values, mask_error = box.read_values(entry.width, entry.height)
        more.append(values)
        records.append(box.make_record(has_mask=not mask_error))
        if mask_error:
            lost_masks.append(Problem(box.place, mask_error))
    return replace(entry, more=tuple(more), source=tuple(records), lost_masks=tuple(lost_masks))


def _read_size(image: dict[str, Any], image_path: Path | None) -> tuple[int, int]:
    """Return width and height in px, from the record or else from the image file.

    The value 0 means that the record does not state it, as with Pascal VOC.
    """
    is_unknown = image.get("width") in (None, 0) or image.get("height") in (None, 0)
    if is_unknown and image_path is not None:
        return read_upright_size(image_path)
    return parse_side(image.get("width"), "width"), parse_side(image.get("height"), "height")


def _restore_image_record(
    image: dict[str, Any], images: Path, image_path: Path | None
) -> dict[str, Any]:
    """Return the record of an image for a later export.

    Its id is a whole number or a text, its file name has slashes, and its numbers are finite.
    """
    record = image
    image_id = parse_image_id(image["id"])
    if image_id is not image["id"]:
        record = {**record, "id": image_id}
    if image_path is not None:
        name = image["file_name"]
        if images / name != image_path or Path(name).is_absolute():
            record = {**record, "file_name": image_path.relative_to(images).as_posix()}
    return dict(remove_nan(record))


class _Box:
    """An annotation of a COCO file.

    Attributes:
        place: the place of the annotation.
        name: its category.
        corners: its box, xyxy in px.
        iscrowd: whether it is a crowd.

    Raises:
        ValueError: its category is unknown, or its box or its iscrowd is not valid.
    """

    def __init__(
        self, place: str, annotation: dict[str, Any], category_names: dict[int, str]
    ) -> None:
        category_id = parse_whole_number(annotation.get("category_id"))
        if category_id not in category_names:
            raise ValueError(
                f"category_id {annotation.get('category_id')!r} is not among the categories"
            )
        self.place = place
        self.annotation = annotation
        self.category_id = category_id
        self.name = category_names[category_id]
        self.corners = parse_xywh(annotation.get("bbox"))
        self.iscrowd = parse_iscrowd(annotation.get("iscrowd"))

    def read_values(self, width: int, height: int) -> tuple[dict[str, Any], str]:
        """Return iscrowd, the mask and the area, and why the mask is not valid ("" if it is).

        A mask or an area that is not valid is left out.
        """
        values: dict[str, Any] = {"iscrowd": int(self.iscrowd)}
        mask_error = ""
        segmentation = self.annotation.get("segmentation")
        if segmentation:
            try:
                values["segmentation"] = encode_mask(segmentation, width, height)
            except ValueError as error:
                mask_error = str(error)
        area = self.annotation.get("area")
        if is_number(area) and 0 < area <= width * height:
            values["area"] = float(area)
        return values, mask_error

    def make_record(self, has_mask: bool) -> dict[str, Any]:
        """Return the record of the annotation for a later export.

        Its ids are whole numbers, and a mask or an area that is not valid is left out.

        Args:
            has_mask: whether its segmentation is valid or missing.
        """
        record = dict(self.annotation)
        category_id = record["category_id"]
        if category_id != self.category_id or isinstance(category_id, float):
            record["category_id"] = self.category_id
        if isinstance(record.get("iscrowd"), str | float):
            record["iscrowd"] = int(self.iscrowd)
        if not has_mask:
            del record["segmentation"]
        if "area" in record:
            area = record["area"]
            if not is_number(area) or not abs(area) < math.inf:
                del record["area"]
        return dict(remove_nan(record))


def make_head(data: dict[str, Any]) -> dict[str, Any]:
    """Return what a dataset keeps of a COCO file beside its images and annotations.

    Returns:
        {"head": {"info", "licenses", "categories", …},
        "file_names": whether no two images have the same file name,
        "annotation_ids": whether all are unique numbers from 1}.
    """
    names: set[str] = set()
    for image in data["images"]:
        names.add(str(image.get("file_name")).casefold())
    ids = [annotation.get("id") for annotation in data["annotations"]]
    others: dict[str, Any] = {}
    for key, value in data.items():
        if key not in ("images", "annotations"):
            others[key] = value
    return {
        "head": remove_nan(others),
        "file_names": len(names) == len(data["images"]),
        "annotation_ids": all(map(_is_annotation_id, ids)) and len(set(ids)) == len(ids),
    }


def _is_annotation_id(value: Any) -> bool:
    """Return whether a value is a whole number from 1: pycocotools treats id 0 as not found."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def remove_known_values(record: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Return the values of an image or annotation record that are not among the known values."""
    others: dict[str, Any] = {}
    for key, value in record.items():
        if key != "image_id" and (key not in known or known[key] != value):
            others[key] = value
    return others


def find_image_folder(path: Path, data: dict[str, Any]) -> Path:
    """Return the usual folder that contains most of the first images of a COCO file.

    Raises:
        UnreadableSourceError: no folder contains any; the message lists the folders.
    """
    split = path.stem.removeprefix("instances_")
    folders: list[Path] = []
    for parent in (path.parent, path.parent.parent):
        folders += [parent, parent / "images", parent / split, parent / "images" / split]
    names = [str(image.get("file_name", "")) for image in data["images"][:FIRST_IMAGES]]
    counts = {folder: _count_images(folder, names) for folder in folders}
    if not any(counts.values()):
        searched = ", ".join(map(str, counts))
        raise UnreadableSourceError(
            f"{path}: none of its images ({', '.join(names[:2])}, …) is in {searched}; "
            "name their folder"
        )
    return max(counts, key=lambda folder: counts[folder])


def _count_images(folder: Path, names: list[str]) -> int:
    """Return how many of the named images exist in a folder."""
    count = 0
    for name in names:
        try:
            count += resolve_image(folder, name, "file_name").is_file()
        except BadEntryError:
            continue
    return count
