"""The lines of YOLO's label files: what their numbers mean, and the box or polygon of each line.

The meaning of a line (the task) is never guessed from the length of one line alone. If data.yaml
has `kpt_shape`, the task is pose. The user can state any task with `--task`. Otherwise, the lines
of all files together must allow only one task (`infer_task`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

import numpy as np

from synthgen.formats.entries import UnreadableSourceError, parse_xywh, read_lines
from synthgen.formats.yolo import TASKS
from synthgen.geometry import yolo_to_xywh

DETECT, SEGMENT, POSE, OBB, MIXED = TASKS
# How many numbers a line has after the class:
BOX_NUMBERS = 4
POLYGON_NUMBERS = 6  # numbers of the shortest polygon, which has three points
ROTATED_BOX_NUMBERS = 8  # numbers of four corners
SHOWN_CHARACTERS = 60  # maximum number of characters of a line that a message shows


@dataclass(frozen=True)
class Label:
    """The label that a line describes.

    Attributes:
        name: the name of the class.
        box: xyxy in px.
        place: the file and line.
        polygon: x, y, x, y, … in px; empty if the line describes a box.
        left_out: what the line contains but the label does not, such as keypoints.
    """

    name: str
    box: list[float]
    place: str
    polygon: list[float] = field(default_factory=list)
    left_out: str = ""


@dataclass(frozen=True)
class LabelParser:
    """Parses the lines of a dataset, which all have the same task.

    Attributes:
        names: the names of the classes.
        task: the meaning of a line, one of TASKS.
        is_stated: whether the user stated the task (`--task`); otherwise it was inferred.
        keypoint_numbers: how many numbers describe the keypoints of an object; 0 if unknown.
    """

    names: dict[int, str]
    task: str
    is_stated: bool
    keypoint_numbers: int

    def parse(self, words: list[str], size: tuple[int, int], place: str) -> Label:
        """Return the label of a line.

        Args:
            size: width and height of the image in px.

        Raises:
            ValueError: the line does not fit the task.
        """
        class_number, values = parse_line(words)
        if class_number not in self.names:
            last = max(self.names, default=-1)
            raise ValueError(f"class {class_number} has no name; there are 0 to {last}")
        self._check_count(len(values))
        name = self.names[class_number]
        width, height = size
        if self.task in (DETECT, POSE) or len(values) == BOX_NUMBERS:
            with np.errstate(over="ignore"):  # parse_xywh refuses an overflow
                xywh = yolo_to_xywh(np.array(values[:BOX_NUMBERS]), width, height)
            left_out = ""
            if len(values) > BOX_NUMBERS:
                left_out = "confidence" if self.task == DETECT else "keypoints"
            return Label(name, parse_xywh(xywh.tolist()), place, left_out=left_out)
        x = [value * width for value in values[::2]]
        y = [value * height for value in values[1::2]]
        box = parse_xywh([min(x), min(y), max(x) - min(x), max(y) - min(y)])
        polygon: list[float] = []
        for point in zip(x, y, strict=True):
            polygon += point
        return Label(name, box, place, polygon)

    def _check_count(self, count: int) -> None:
        """Raise ValueError if a line with `count` numbers after the class does not fit the task."""
        is_box = count == BOX_NUMBERS
        is_polygon = count >= POLYGON_NUMBERS and count % 2 == 0
        if self.task == DETECT:
            has_confidence = count == BOX_NUMBERS + 1
            is_good = is_box or (has_confidence and self.is_stated)
            expected = "a box has 4"
            if has_confidence:
                expected += "; if the fifth is a confidence, --task detect leaves it out"
        elif self.task == POSE and self.keypoint_numbers:
            with_keypoints = BOX_NUMBERS + self.keypoint_numbers
            is_good = is_box or count == with_keypoints
            expected = f"a box has 4, with its keypoints (kpt_shape) {with_keypoints}"
        elif self.task == POSE:
            is_good = count >= BOX_NUMBERS
            expected = "a box has 4, and its keypoints follow"
        elif self.task == OBB:
            is_good = count == ROTATED_BOX_NUMBERS
            expected = "four corners have 8"
        elif self.task == SEGMENT:
            is_good = is_polygon
            expected = "a polygon has 6 or more, 2 for each point"
        else:
            is_good = is_polygon or is_box
            expected = "a box has 4, a polygon has 6 or more, 2 for each point"
        if not is_good:
            raise ValueError(f"{count} numbers after the class; {expected}")


def parse_line(words: list[str]) -> tuple[int, list[float]]:
    """Return the class and the numbers of a line.

    The class may be written as a decimal number (0.0, 1.000e+00), as numpy.savetxt does.

    Raises:
        ValueError: the line is not a whole number followed by finite numbers.
    """
    text = " ".join(words)[:SHOWN_CHARACTERS]
    try:
        if any("_" in word for word in words):  # float() also accepts 1_000
            raise ValueError
        class_number, *values = map(float, words)
    except ValueError:
        raise ValueError(f"{text!r}: not a class and numbers") from None
    if not all(map(isfinite, values)):
        raise ValueError(f"{text!r}: all numbers must be finite")
    if not class_number.is_integer():  # also false for NaN and infinity
        raise ValueError(f"{text!r}: class {words[0]} is not a whole number")
    return int(class_number), values


def infer_task(files: Iterable[Path], root: Path) -> str:
    """Return the only task that fits the lines of a dataset.

    If all lines have 4 numbers after the class, they are boxes. If all lines have an even number of
    6 or more numbers, and not all lines have equally many, they are polygons, because the poses of
    a dataset all have the same length, and so do its rotated boxes. All other lines are ambiguous.

    Args:
        files: the label files.
        root: the folder of the dataset, for messages.

    Raises:
        UnreadableSourceError: the lines are ambiguous; the message shows an example and lists the
            possible tasks.
    """
    first_places = _find_first_places(files)
    long_counts = [count for count in first_places if count >= POLYGON_NUMBERS]
    if not long_counts:
        return DETECT
    count = long_counts[0]
    place = first_places[count]
    advice = "say which: --task segment, pose, obb or detect"
    if BOX_NUMBERS in first_places:
        raise UnreadableSourceError(
            f"{root}: {first_places[BOX_NUMBERS]} has 4 numbers after the class, {place} {count}: "
            "are they boxes and polygons, or boxes some of which have keypoints? "
            "--task mixed (4 numbers are a box, more a polygon), pose or segment"
        )
    for odd in long_counts:
        if odd % 2:
            raise UnreadableSourceError(
                f"{root}: {first_places[odd]} has {odd} numbers after the class: "
                f"no box and no polygon; {advice}"
            )
    if len(long_counts) == 1:
        raise UnreadableSourceError(
            f"{root}: all lines have {count} numbers after the class ({place} is the first): "
            f"polygons, boxes with keypoints, or rotated boxes? {advice}"
        )
    return SEGMENT


def _find_first_places(files: Iterable[Path]) -> dict[int, str]:
    """Return, for each count of numbers after the class, the place of the first line with it."""
    first_places: dict[int, str] = {}
    for path in files:
        try:
            for place, line in read_lines(path):
                _, values = parse_line(line.split())
                first_places.setdefault(len(values), place)
        except (UnreadableSourceError, ValueError):
            continue  # the error is reported when the labels of the file are read
    return first_places
