"""Annotated pictures in other people's forms, one reader a form (no torch).

A reader goes through its source entry by entry, and yields each as an Entry or as Problems: it is for who reads to refuse or to
leave out what is wrong. A reader hands over every box whose four numbers are finite. `cleaned` alone decides what becomes of a
box that has no area or stands out of its image.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from synthgen.errors import InputError
from synthgen.geometry import FARTHEST, box_sides, clip_boxes, xywh_to_xyxy

TOLERANCE = 1.0  # px that a box may stick out of its picture: annotation tools round; such boxes are clipped
LEAST_SIDE = 1e-3  # px of a box, after clipping
NO_AREA, OUTSIDE = "has no area", "outside the picture of"  # what is said of a box
WHOLE = re.compile(r"-?[0-9]{1,30}(\.0{1,30})?")
T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """Why an entry cannot be used.

    A fault that may belong to several images is one Problem without an entry, and one more (`doubtful`) instead of each entry
    that it may belong to.

    Attributes:
        place: file and line, or file and index.
        why: what is wrong, with the value.
        entry: place of the entry that is lost by it; null: none is.
    """

    place: str
    why: str
    entry: str | None = None

    def __str__(self) -> str:
        return f"{self.place}: {self.why}"


@dataclass(frozen=True)
class Entry:
    """One annotated picture: boxes (N, 4) float64, xyxy in px; masks, phrases, depth and caption where the file has them.

    Attributes:
        place: file and line, or file and index.
        picture: its file, where the source names one; it may not be there.
        more: what else is known of each box, in COCO's terms: iscrowd, area, segmentation (a run-length encoding).
        source: the records of a COCO file as they stand there: that of the picture, then that of each box.
        places: where each box stands; empty: its number in the entry says it.
        lost_masks: why masks were dropped whose boxes are kept, one each.
        left_out: what the source says that no box can hold, one word each: keypoints, confidence, point, line, ….
        embedded: the bytes of the image, where the source itself holds them.
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
    picture: Path | None = None
    more: tuple[dict[str, Any], ...] | None = None
    source: tuple[dict[str, Any], ...] | None = None
    places: tuple[str, ...] = ()
    lost_masks: tuple[Problem, ...] = ()
    left_out: tuple[str, ...] = ()
    embedded: bytes | None = None

    def select(self, keep: Sequence[int]) -> "Entry":
        """The entry with these boxes alone, and all that is known of each."""
        lists = {
            name: getattr(self, name)
            for name in ("names", "phrases", "masks", "depth", "more", "places")
        }
        kept: dict[str, Any] = {
            name: tuple(values[i] for i in keep) for name, values in lists.items() if values
        }
        source = self.source and (self.source[0], *(self.source[i + 1] for i in keep))
        return replace(self, boxes=self.boxes[list(keep)], source=source, **kept)

    def objects(self) -> list[str]:
        """The name of each box that is no crowd."""
        crowds = [bool(more.get("iscrowd")) for more in self.more or [{}] * len(self.names)]
        return [name for name, crowd in zip(self.names, crowds, strict=True) if not crowd]

    def fault(self, i: int, why: str) -> Problem:
        """What is wrong with box i: its place, its name, its corners, and why."""
        x0, y0, x1, y1 = self.boxes[i].round(3).tolist()
        box = f"box {i} ({self.names[i]}), x {x0:g} to {x1:g}, y {y0:g} to {y1:g}"
        return Problem(self.places[i] if self.places else self.place, f"{box}: {why}", self.place)


@dataclass(frozen=True)
class Policy:
    """What is done with labels that cannot be kept as they are; the same for every form.

    Attributes:
        drop_empty: boxes of no area are dropped; else they are faults.
        clip: boxes that stand out of their image by more than TOLERANCE are clipped; else they are faults.
        crowd_objects: crowds are taken as objects.
    """

    drop_empty: bool = False
    clip: bool = False
    crowd_objects: bool = False


@dataclass(frozen=True)
class Cleaned:
    """An entry whose boxes lie inside its image, and what was done to it.

    Attributes:
        clipped: boxes that stuck out by TOLERANCE at most, and were clipped.
        cut: boxes that stood out further, and were clipped because the policy says so.
        dropped: boxes of no area that were dropped because the policy says so.
    """

    entry: Entry
    clipped: int = 0
    cut: int = 0
    dropped: int = 0


class UnreadableSourceError(InputError, ValueError):
    """A source cannot be read at all; the message names file, line, and what would be right."""


class BadEntryError(ValueError):
    """One entry cannot be used: its faults, each with key and value."""

    def __init__(self, *faults: str | Problem) -> None:
        super().__init__(
            "; ".join(fault if isinstance(fault, str) else fault.why for fault in faults)
        )
        self.faults = faults

    def problems(self, place: str) -> list[Problem]:
        """A Problem each; what has no place of its own stands at this one."""
        return [
            Problem(place, fault, place) if isinstance(fault, str) else fault
            for fault in self.faults
        ]


def converted(values: Iterable[Any], convert: Callable[[Any], T], what: str) -> list[T]:
    """Each value converted.

    Raises:
        BadEntryError: names every value that cannot be, as what[i].
    """
    rows, faults = [], []
    for i, value in enumerate(values):
        try:
            rows.append(convert(value))
        except ValueError as error:
            faults.append(f"{what}[{i}]: {error}")
    if faults:
        raise BadEntryError(*faults)
    return rows


def xyxy(bbox: Any) -> list[float]:
    """x0, y0, x1, y1 of x, y, width, height; also of one without area, for `cleaned` to judge.

    Raises:
        ValueError: it is something else.
    """
    box = np.array(four_numbers(bbox, "x, y, width, height"), np.float64)
    if (box[2:] < 0).any():
        raise ValueError(f"{list(bbox)}: width and height must not be negative")
    return xywh_to_xyxy(box).tolist()


def corners(box: Any) -> list[float]:
    """x0, y0, x1, y1 as they are given; also of one without area, for `cleaned` to judge.

    Raises:
        ValueError: it is something else.
    """
    return four_numbers(box, "x0, y0, x1, y1")


def four_numbers(value: Any, what: str) -> list[float]:
    """The numbers of a box.

    Args:
        what: what they should be, for the message.

    Raises:
        ValueError: it is no list of four finite numbers.
    """
    if (
        not isinstance(value, list | tuple)
        or len(value) != 4
        or not all(is_number(v) for v in value)
    ):
        raise ValueError(f"{value!r} is not {what}")
    if not all(is_finite(v) for v in value):
        raise ValueError(f"{list(value)}: all four must be finite")
    return list(value)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a value is a number that can stand in an image: neither NaN nor beyond FARTHEST."""
    return is_number(value) and abs(value) <= FARTHEST


def as_boxes(rows: list[list[float]]) -> NDArray[np.float64]:
    """(N, 4), also of none."""
    return np.array(rows, np.float64).reshape(-1, 4)


def whole_number(value: Any) -> int | None:
    """The whole number that a value says (3, 3.0, "3" or "3.0"); null of anything else, also of true and false."""
    if isinstance(value, str) and WHOLE.fullmatch(value):
        return int(value.partition(".")[0])
    return int(value) if is_number(value) and value % 1 == 0 else None


def is_crowd(value: Any) -> bool:
    """Whether iscrowd says so: 1, true or "1".

    Raises:
        ValueError: it says something else than yes or no.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    number = whole_number(value)
    if number not in (0, 1):
        raise ValueError(f"iscrowd: {value!r} is neither 0 nor 1")
    return number == 1


def positive(value: Any, key: str) -> int:
    """A width or height in px.

    Raises:
        BadEntryError: it is no whole number greater than 0.
    """
    number = whole_number(value)
    if number is None or not 1 <= number <= FARTHEST:
        raise BadEntryError(f"{key}: {value!r} is not a whole number from 1 to {FARTHEST:g}")
    return number


def text(value: Any, key: str) -> str | None:
    """A caption, or none.

    Raises:
        BadEntryError: it is something else.
    """
    if value is not None and not isinstance(value, str):
        raise BadEntryError(f"{key}: {value!r} is not a text")
    return value


def below(folder: Path, name: Any, key: str) -> Path:
    """A file that a source names, which must lie in the folder.

    Raises:
        BadEntryError: it is no name, or leads elsewhere.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise BadEntryError(f"{key}: {name!r} is not the name of a file")
    if (
        ".." in PurePosixPath(name).parts
        or PurePosixPath(name).is_absolute()
        or PureWindowsPath(name).drive
    ):
        raise BadEntryError(f"{key}: {name!r} leads out of {folder}")
    return folder / name


def image_below(folder: Path, name: Any, key: str) -> Path:
    """The image that a source names, which must lie in the folder.

    A name with backslashes is one with slashes where that file is there. An absolute one is taken where it lies in the folder.

    Raises:
        BadEntryError: it is no name, or leads elsewhere.
    """
    if isinstance(name, str) and name and "\0" not in name:
        slashed = name.replace("\\", "/")
        if slashed != name and not (folder / name).is_file() and (folder / slashed).is_file():
            name = slashed
        if Path(name).is_absolute() and Path(name).is_file() and ".." not in Path(name).parts:
            try:
                return folder / Path(name).relative_to(folder.absolute())
            except ValueError:
                pass  # it lies elsewhere, which is told below
    return below(folder, name, key)


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte-order mark.

    Raises:
        UnreadableSourceError: it cannot be read, or is no such text; the message names the file.
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
    """Place (file:line) and text of each line of a text file that is not blank, one at a time, without its end.

    Raises:
        UnreadableSourceError: as `read_text`.
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


def doubtful(place: str, labels: int) -> Problem:
    """What a reader yields instead of an entry without labels, where labels of its source belong to no known image.

    Args:
        place: of the entry.
        labels: how many such labels there are.
    """
    why = f"has no labels; {labels} label(s) of its source belong to no known image, and may belong to it"
    return Problem(place, why, place)


def cleaned(entry: Entry, policy: Policy = Policy()) -> Cleaned:
    """The entry with its boxes inside the image, and each of some area.

    Raises:
        BadEntryError: names each box that has no area, or stands out too far, and may not be dropped or clipped.
    """
    boxes = clip_boxes(entry.boxes, entry.width, entry.height)
    beyond = np.abs(boxes - entry.boxes).max(1, initial=0)
    flat, gone = without_area(entry.boxes), without_area(boxes, LEAST_SIDE)
    far = (beyond > TOLERANCE) & ~flat
    faults = []
    for i in np.flatnonzero(far | gone).tolist():
        if far[i] and not policy.clip:
            faults.append(entry.fault(i, f"{OUTSIDE} {entry.width} x {entry.height} px"))
        elif gone[i] and not policy.drop_empty:
            inside = (
                ""
                if flat[i] or not beyond[i]
                else f" in the picture of {entry.width} x {entry.height} px"
            )
            faults.append(entry.fault(i, NO_AREA + inside))
    if faults:
        raise BadEntryError(*faults)
    entry = replace(entry, boxes=boxes)
    if far.any():
        entry = _redrawn(entry, np.flatnonzero(far).tolist())
    if gone.any():
        entry = entry.select(np.flatnonzero(~gone).tolist())
    if policy.crowd_objects:
        entry = _without_crowds(entry)
    kept = ~gone
    return Cleaned(
        entry, int((kept & ~far & (beyond > 1e-6)).sum()), int((kept & far).sum()), int(gone.sum())
    )


def without_area(boxes: NDArray[np.float64], least: float = 0) -> NDArray[np.bool_]:
    """Which of the boxes (N, 4) xyxy have a side of no more than `least` px."""
    sides = box_sides(boxes).min(1, initial=np.inf)
    empty: NDArray[np.bool_] = sides < least if least else sides <= 0
    return empty


def _redrawn(entry: Entry, changed: list[int]) -> Entry:
    """The entry without what its source says of boxes that are no longer as they stand there."""
    more = entry.more and tuple(
        _without(m, "area") if i in changed else m for i, m in enumerate(entry.more)
    )
    source = entry.source and tuple(
        _without(record, "bbox", "area") if i - 1 in changed else record
        for i, record in enumerate(entry.source)
    )
    return replace(entry, more=more, source=source)


def _without_crowds(entry: Entry) -> Entry:
    """The entry with every crowd as an object."""
    more = entry.more and tuple({**m, "iscrowd": 0} if m.get("iscrowd") else m for m in entry.more)
    source = entry.source and (
        entry.source[0],
        *(_without(record, "iscrowd") for record in entry.source[1:]),
    )
    return replace(entry, more=more, source=source)


def _without(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in keys}
