"""Annotated pictures in other people's forms: COCO, JSON lines and tables, YOLO; one reader a form (no torch).

A reader goes through its source entry by entry, and yields each as an Entry or as Problems: it is for who reads to refuse or to
leave out what is wrong.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from synthgen.errors import InputError

TOLERANCE = 1.0  # px that a box may stick out of its picture: annotation tools round; such boxes are clipped
FARTHEST = 1e6  # px; what is larger is no place in a picture
LEAST_SIDE = 1e-3  # px of a box, after clipping
T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """Why an entry cannot be used.

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


class UnreadableSourceError(InputError, ValueError):
    """A source cannot be read at all; the message names file, line, and what would be right."""


class BadEntryError(ValueError):
    """One entry cannot be used: its faults, each with key and value."""

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults

    def problems(self, place: str) -> list[Problem]:
        return [Problem(place, fault, place) for fault in self.faults]


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
    """x0, y0, x1, y1 of x, y, width, height.

    Raises:
        ValueError: it is something else, or has no area.
    """
    x, y, width, height = _four_numbers(bbox, "x, y, width, height")
    if width <= 0 or height <= 0:
        raise ValueError(f"{list(bbox)}: width and height must be greater than 0")
    return [x, y, x + width, y + height]


def corners(box: Any) -> list[float]:
    """x0, y0, x1, y1 as they are given.

    Raises:
        ValueError: it is something else, or has no area.
    """
    x0, y0, x1, y1 = _four_numbers(box, "x0, y0, x1, y1")
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"{list(box)}: x1 must be greater than x0, and y1 than y0")
    return [x0, y0, x1, y1]


def _four_numbers(value: Any, what: str) -> list[float]:
    if not (isinstance(value, list | tuple) and len(value) == 4 and all(isinstance(v, int | float) for v in value)):
        raise ValueError(f"{value!r} is not {what}")
    if not all(abs(v) <= FARTHEST for v in value):  # false of NaN too
        raise ValueError(f"{list(value)}: all four must be finite")
    return list(value)


def as_boxes(rows: list[list[float]]) -> NDArray[np.float64]:
    """(N, 4), also of none."""
    return np.array(rows, np.float64).reshape(-1, 4)


def positive(value: Any, key: str) -> int:
    """A width or height in px.

    Raises:
        BadEntryError: it is no whole number greater than 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= FARTHEST or value % 1:
        raise BadEntryError(f"{key}: {value!r} is not a whole number from 1 to {FARTHEST:g}")
    return int(value)


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
    if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive:
        raise BadEntryError(f"{key}: {name!r} leads out of {folder}")
    return folder / name


def clipped(entry: Entry) -> tuple[Entry, int]:
    """The entry with its boxes inside the picture, and how many had to be clipped: by TOLERANCE at most.

    Raises:
        BadEntryError: names each box that sticks out further, or of which nothing is inside.
    """
    size = np.array([entry.width, entry.height] * 2, np.float64)
    boxes = np.clip(entry.boxes, 0, size)
    beyond = np.abs(boxes - entry.boxes).max(1, initial=0)
    gone = (boxes[:, 2:] - boxes[:, :2]).min(1, initial=np.inf) < LEAST_SIDE
    faults = []
    for i in np.flatnonzero((beyond > TOLERANCE) | gone):
        x0, y0, x1, y1 = entry.boxes[i].round(3).tolist()
        box = f"box {i} ({entry.names[i]}), x {x0:g} to {x1:g}, y {y0:g} to {y1:g}"
        faults.append(f"{box}: outside the picture of {entry.width} x {entry.height} px")
    if faults:
        raise BadEntryError(*faults)
    return replace(entry, boxes=boxes), int((beyond > 1e-6).sum())
