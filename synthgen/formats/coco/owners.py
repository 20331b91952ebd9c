"""The images that the annotations of a COCO file belong to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthgen.formats.entries import Problem, parse_whole_number

ImageId = int | str


@dataclass
class Owners:
    """The image of each annotation of a COCO file.

    Attributes:
        annotations: the indices of the annotations of each image.
        bad_images: the images whose annotations are uncertain; each has a Problem.
        problems: what is wrong with ids.
        unknown_images: the number of annotations of images that the file does not have. They may
            belong to an image without annotations.
        without_image_id: the number of annotations without an id, or with an id of another type
            than those of the images. They may belong to any image.
    """

    annotations: list[list[int]]
    bad_images: set[int] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    unknown_images: int = 0
    without_image_id: int = 0

    def reject_image(self, path: Path, i: int, why: str) -> None:
        """Add a Problem of image i, unless it already has one."""
        if i not in self.bad_images:
            self.bad_images.add(i)
            place = f"{path}: images[{i}]"
            self.problems.append(Problem(place, why, place))


def find_owners(data: dict[str, Any], path: Path) -> Owners:
    """Return the image of each annotation of a COCO file.

    An id that is a text in one place and a number in another is the same id, if it is unambiguous.

    Args:
        path: the COCO file, for messages.
    """
    owners = Owners(annotations=[[] for _ in data["images"]])
    images_of_id = _group_images(data, path, owners)
    similar_ids: dict[ImageId, list[ImageId]] = {}
    for known_id in images_of_id:
        similar_ids.setdefault(_simplify(known_id), []).append(known_id)
    known_types = set(map(type, similar_ids))
    for k, annotation in enumerate(data["annotations"]):
        value = annotation.get("image_id")
        image_id = parse_image_id(value)
        candidates: list[ImageId] = []
        if image_id in images_of_id:
            candidates = [image_id]
        elif image_id is not None:
            candidates = similar_ids.get(_simplify(image_id), [])
        if len(candidates) == 1:
            for i in images_of_id[candidates[0]]:
                owners.annotations[i].append(k)
            continue
        place = f"{path}: annotations[{k}]"
        if candidates:
            why = f"image_id {value!r} may be any of the images {candidates}"
            owners.problems.append(Problem(place, why))
            for candidate in candidates:
                for i in images_of_id[candidate]:
                    owners.reject_image(path, i, f"annotations[{k}] may belong to it, or not")
            continue
        owners.problems.append(Problem(place, f"image_id {value!r} is not among the images"))
        if image_id is not None and type(_simplify(image_id)) in known_types:
            owners.unknown_images += 1
        else:
            owners.without_image_id += 1
    return owners


def _group_images(data: dict[str, Any], path: Path, owners: Owners) -> dict[ImageId, list[int]]:
    """Return the indices of the images of each id; images without an id of their own are bad."""
    images_of_id: dict[ImageId, list[int]] = {}
    for i, image in enumerate(data["images"]):
        image_id = parse_image_id(image.get("id"))
        if image_id is None:
            owners.reject_image(path, i, f"id: {image.get('id')!r} is not an id")
        else:
            images_of_id.setdefault(image_id, []).append(i)
    for image_id, indices in images_of_id.items():
        if len(indices) > 1:
            for i in indices:
                why = f"id: {image_id!r} is a duplicate, so that its annotations are uncertain"
                owners.reject_image(path, i, why)
    return images_of_id


def parse_image_id(value: Any) -> ImageId | None:
    """Return the id of an image: a whole number or a text that is not empty, otherwise None."""
    if isinstance(value, str):
        return value or None
    return parse_whole_number(value)


def _simplify(image_id: ImageId) -> ImageId:
    """Return the number that an id stands for, or else its text."""
    number = parse_whole_number(image_id)
    return image_id if number is None else number
