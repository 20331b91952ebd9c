"""Annotated images of other formats as entries, and the checks that all readers share (no torch).

A reader goes through its source and yields each image as an Entry or as Problems. The caller
decides whether a bad entry stops the import or is skipped. A reader passes on every box whose four
numbers are finite; `apply_policy` alone decides what happens to boxes that have no area or reach
outside the image.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from synthgen.errors import InputError
from synthgen.geometry import MAX_COORDINATE, box_sides, clip_boxes, xywh_to_xyxy

TOLERANCE = 1.0  # px that a box may reach outside its image, because annotation tools round
LEAST_SIDE = 1e-3  # px, the shortest side of a box after clipping
CLIPPED = 1e-6  # px, smaller differences after clipping are rounding
NO_AREA = "has no area"
OUTSIDE_IMAGE = "outside the image of"
WHOLE_NUMBER = re.compile(r"-?[0-9]{1,30}(\.0{1,30})?")
T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """The reason why an entry cannot be used.

    If a fault may affect several images, it is one Problem without an entry, and each of those
    images is one more Problem instead of an entry (`make_missing_labels_problem`).

    Attributes:
        place: the file and line, or the file and index.
        why: what is wrong, with the value.
        entry: the place of the entry that is lost, or None if none is.
    """

    place: str
    why: str
    entry: str | None = None

    def __str__(self) -> str:
        return f"{self.place}: {self.why}"


@dataclass(frozen=True)
class Entry:
    """An annotated image with boxes (N, 4) float64, xyxy in px.

    Phrases, masks, depth and the caption are set if the source has them.

    Attributes:
        place: the file and line, or the file and index.
        picture: the image file, if the source names one; it may be missing.
        more: more values of each box under COCO's keys: iscrowd, area, segmentation (a run-length
            encoding).
        source: the unchanged records of a COCO file: the record of the image, then one record for
            each box.
        places: the place of each box; empty if the index of the box says enough.
        lost_masks: one Problem for each mask that was dropped while its box was kept.
        left_out: one word for each part of the source that is not a box: keypoints, confidence,
            point, line, ….
        embedded: the bytes of the image, if the source contains them.
    """

    place: str
    width: int
    height: int
    boxes: NDArray[np.float64]
    names: tuple[str, ...]
    phrases: tuple[str, ...] | None = None
    masks: tuple[dict[str, Any], ...] | None = None
    depth: tuple[float, ...] | None = None
    caption: str | None = None
    image_path: Path | None = None
    more: tuple[dict[str, Any], ...] | None = None
    source: tuple[dict[str, Any], ...] | None = None
    places: tuple[str, ...] = ()
    lost_masks: tuple[Problem, ...] = ()
    left_out: tuple[str, ...] = ()
    embedded: bytes | None = None

    def select(self, keep: Sequence[int]) -> "Entry":
        """Return the entry with only these boxes and everything known about them."""
        changes: dict[str, Any] = {"boxes": self.boxes[list(keep)]}
        for name in ("names", "phrases", "masks", "depth", "more", "places"):
            values = getattr(self, name)
            if values:
                changes[name] = tuple(values[i] for i in keep)
        if self.source:
            image_record, *box_records = self.source
            changes["source"] = (image_record, *(box_records[i] for i in keep))
        return replace(self, **changes)

    def list_object_names(self) -> list[str]:
        """Return the category of each box that is not a crowd."""
        if not self.more:
            return list(self.names)
        objects: list[str] = []
        for name, values in zip(self.names, self.more, strict=True):
            if not values.get("iscrowd"):
                objects.append(name)
        return objects

    def fault(self, i: int, why: str) -> Problem:
        """Return a Problem of box i that names its place, category and corners."""
        x0, y0, x1, y1 = self.boxes[i].round(3).tolist()
        box = f"box {i} ({self.names[i]}), x {x0:g} to {x1:g}, y {y0:g} to {y1:g}"
        place = self.places[i] if self.places else self.place
        return Problem(place, f"{box}: {why}", self.place)


@dataclass(frozen=True)
class Policy:
    """What to do with labels that cannot be kept unchanged. It is the same for all formats.

    Attributes:
        drop_empty: drop boxes that have no area; otherwise they are errors.
        clip: clip boxes that reach outside their image by more than TOLERANCE; otherwise they are
            errors.
        crowd_objects: turn crowds into objects.
    """

    drop_empty: bool = False
    clip: bool = False
    crowd_objects: bool = False


@dataclass(frozen=True)
class CleanedEntry:
    """An entry whose boxes lie inside its image, and how many of them were changed.

    Attributes:
        clipped: the number of clipped boxes that reached outside by TOLERANCE at most.
        cut: the number of boxes that reached further outside and were clipped by the policy.
        dropped: the number of boxes without area that were dropped by the policy.
    """

    entry: Entry
    clipped: int = 0
    cut: int = 0
    dropped: int = 0


class UnreadableSourceError(InputError, ValueError):
    """A source cannot be read at all. The message names file, line, and what would be right."""


class BadEntryError(ValueError):
    """An entry cannot be used. Each fault names a key and its value."""

    def __init__(self, *faults: str | Problem) -> None:
        texts: list[str] = []
        for fault in faults:
            texts.append(fault if isinstance(fault, str) else fault.why)
        super().__init__("; ".join(texts))
        self.faults = faults

    def problems(self, place: str) -> list[Problem]:
        """Return a Problem for each fault; faults without a place get this one."""
        problems: list[Problem] = []
        for fault in self.faults:
            problems.append(Problem(place, fault, place) if isinstance(fault, str) else fault)
        return problems


def convert_all(values: Iterable[Any], convert: Callable[[Any], T], key: str) -> list[T]:
    """Return the values after conversion.

    Raises:
        BadEntryError: some values cannot be converted; it names each as key[i].
    """
    results: list[T] = []
    faults: list[str] = []
    for i, value in enumerate(values):
        try:
            results.append(convert(value))
        except ValueError as error:
            faults.append(f"{key}[{i}]: {error}")
    if faults:
        raise BadEntryError(*faults)
    return results


def parse_xywh(bbox: Any) -> list[float]:
    """Return x0, y0, x1, y1 of x, y, width, height. A box without area is left to `apply_policy`.

    Raises:
        ValueError: the value is not such a box.
    """
    box = np.array(parse_four_numbers(bbox, "x, y, width, height"), np.float64)
    if (box[2:] < 0).any():
        raise ValueError(f"{list(bbox)}: width and height must not be negative")
    return xywh_to_xyxy(box).tolist()


def parse_xyxy(box: Any) -> list[float]:
    """Return x0, y0, x1, y1 unchanged. A box without area is left to `apply_policy`.

    Raises:
        ValueError: the value is not such a box.
    """
    return parse_four_numbers(box, "x0, y0, x1, y1")


def parse_four_numbers(value: Any, expected: str) -> list[float]:
    """Return the four numbers of a box.

    Args:
        expected: the names of the four numbers, for the message.

    Raises:
        ValueError: the value is not a list of four finite numbers.
    """
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise ValueError(f"{value!r} is not {expected}")
    if not all(is_number(number) for number in value):
        raise ValueError(f"{value!r} is not {expected}")
    if not all(is_finite(number) for number in value):
        raise ValueError(f"{list(value)}: all four must be finite")
    return list(value)


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Return whether a value is a number of a magnitude up to FARTHEST, and not NaN."""
    return is_number(value) and abs(value) <= MAX_COORDINATE


def stack_boxes(rows: list[list[float]]) -> NDArray[np.float64]:
    """Return boxes as an array (N, 4), also if there are none."""
    return np.array(rows, np.float64).reshape(-1, 4)


def parse_whole_number(value: Any) -> int | None:
    """Return the whole number that a value stands for: 3, 3.0, "3" or "3.0".

    Anything else, also true and false, gives None.
    """
    if isinstance(value, str) and WHOLE_NUMBER.fullmatch(value):
        return int(value.partition(".")[0])
    if is_number(value) and value % 1 == 0:
        return int(value)
    return None


def parse_iscrowd(value: Any) -> bool:
    """Return whether the value of iscrowd means a crowd: 1, true or "1".

    Raises:
        ValueError: the value means neither yes nor no.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    number = parse_whole_number(value)
    if number not in (0, 1):
        raise ValueError(f"iscrowd: {value!r} is neither 0 nor 1")
    return number == 1


def parse_side(value: Any, key: str) -> int:
    """Return a width or height in px.

    Raises:
        BadEntryError: the value is not a whole number from 1 to FARTHEST.
    """
    number = parse_whole_number(value)
    if number is None or not 1 <= number <= MAX_COORDINATE:
        raise BadEntryError(f"{key}: {value!r} is not a whole number from 1 to {MAX_COORDINATE:g}")
    return number


def parse_text(value: Any, key: str) -> str | None:
    """Return a text such as a caption, or None.

    Raises:
        BadEntryError: the value is something else.
    """
    if value is not None and not isinstance(value, str):
        raise BadEntryError(f"{key}: {value!r} is not a text")
    return value


def resolve_file(folder: Path, name: Any, key: str) -> Path:
    """Return the path of a file that a source names, which must lie in the folder.

    Raises:
        BadEntryError: the value is not a name, or leads out of the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise BadEntryError(f"{key}: {name!r} is not the name of a file")
    path = PurePosixPath(name)
    if ".." in path.parts or path.is_absolute() or PureWindowsPath(name).drive:
        raise BadEntryError(f"{key}: {name!r} leads out of {folder}")
    return folder / name


def resolve_image(folder: Path, name: Any, key: str) -> Path:
    """Return the path of an image that a source names, which must lie in the folder.

    Backslashes are read as slashes if only that file exists. An absolute name is allowed if the
    file lies in the folder.

    Raises:
        BadEntryError: the value is not a name, or leads out of the folder.
    """
    if isinstance(name, str) and name and "\0" not in name:
        with_slashes = name.replace("\\", "/")
        is_missing = with_slashes != name and not (folder / name).is_file()
        if is_missing and (folder / with_slashes).is_file():
            name = with_slashes
        path = Path(name)
        if path.is_absolute() and path.is_file() and ".." not in path.parts:
            try:
                return folder / path.relative_to(folder.absolute())
            except ValueError:
                pass  # the file lies elsewhere, which resolve_file refuses
    return resolve_file(folder, name, key)


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 text file with or without a byte-order mark.

    Raises:
        UnreadableSourceError: the file cannot be read or is not UTF-8; the message names it.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UnreadableSourceError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UnreadableSourceError(
            f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from None


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the place (file:line) and text of each line that is not blank, without its line end.

    Raises:
        UnreadableSourceError: the same as in `read_text`.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", line.rstrip("\n")
    except OSError as error:
        raise UnreadableSourceError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UnreadableSourceError(f"{path}: is not UTF-8 text: {error.reason}") from None


def make_missing_labels_problem(place: str, count: int) -> Problem:
    """Return the Problem of an image without labels if labels of its source have no known image.

    Args:
        place: the place of the image.
        count: the number of labels without a known image.
    """
    why = (
        f"has no labels; {count} label(s) of its source belong to no known image, "
        "and may belong to it"
    )
    return Problem(place, why, place)


def apply_policy(entry: Entry, policy: Policy = Policy()) -> CleanedEntry:
    """Return the entry with all boxes inside the image and none without area.

    Raises:
        BadEntryError: a box has no area or reaches too far outside, and the policy does not allow
            to drop or clip it; all such boxes are named.
    """
    boxes = clip_boxes(entry.boxes, entry.width, entry.height)
    excess = np.abs(boxes - entry.boxes).max(1, initial=0)
    empty_before = has_no_area(entry.boxes)
    empty = has_no_area(boxes, LEAST_SIDE)
    far_outside = (excess > TOLERANCE) & ~empty_before
    size = f"{entry.width} x {entry.height} px"
    faults: list[Problem] = []
    for i in np.flatnonzero(far_outside | empty).tolist():
        if far_outside[i] and not policy.clip:
            faults.append(entry.fault(i, f"{OUTSIDE_IMAGE} {size}"))
        elif empty[i] and not policy.drop_empty:
            emptied_by_clipping = bool(excess[i]) and not empty_before[i]
            where = f" in the image of {size}" if emptied_by_clipping else ""
            faults.append(entry.fault(i, NO_AREA + where))
    if faults:
        raise BadEntryError(*faults)
    entry = replace(entry, boxes=boxes)
    if far_outside.any():
        entry = _forget_original_boxes(entry, np.flatnonzero(far_outside).tolist())
    if empty.any():
        entry = entry.select(np.flatnonzero(~empty).tolist())
    if policy.crowd_objects:
        entry = _turn_crowds_into_objects(entry)
    clipped = ~empty & ~far_outside & (excess > CLIPPED)
    cut = ~empty & far_outside
    return CleanedEntry(entry, int(clipped.sum()), int(cut.sum()), int(empty.sum()))


def has_no_area(boxes: NDArray[np.float64], least: float = 0) -> NDArray[np.bool_]:
    """Return for boxes (N, 4) xyxy whether a side is 0 or less, or shorter than `least` px."""
    shorter_sides = box_sides(boxes).min(1, initial=np.inf)
    empty: NDArray[np.bool_] = shorter_sides < least if least else shorter_sides <= 0
    return empty


def _forget_original_boxes(entry: Entry, changed: list[int]) -> Entry:
    """Return the entry without the area and original box of boxes that were changed."""
    more = entry.more
    if more:
        values = list(more)
        for i in changed:
            values[i] = _remove_keys(values[i], "area")
        more = tuple(values)
    source = entry.source
    if source:
        records = list(source)
        for i in changed:
            records[i + 1] = _remove_keys(records[i + 1], "bbox", "area")
        source = tuple(records)
    return replace(entry, more=more, source=source)


def _turn_crowds_into_objects(entry: Entry) -> Entry:
    """Return the entry with every crowd as an object."""
    more = entry.more
    if more:
        values: list[dict[str, Any]] = []
        for item in more:
            values.append({**item, "iscrowd": 0} if item.get("iscrowd") else item)
        more = tuple(values)
    source = entry.source
    if source:
        image_record, *box_records = source
        source = (image_record, *(_remove_keys(record, "iscrowd") for record in box_records))
    return replace(entry, more=more, source=source)


def _remove_keys(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in keys}
