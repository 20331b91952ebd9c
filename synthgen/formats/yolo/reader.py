"""YOLO's folders: a text file of labels for each image, and names in data.yaml, obj.data (Darknet, CVAT) or classes.txt.

What the numbers of a line mean is never read off their number alone: `kpt_shape` of data.yaml says pose, `--task` says anything,
and without either all lines together must leave one meaning only (`inferred_task`).
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import isfinite, prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from synthgen.formats.base import ALL
from synthgen.formats.entries import (
    BadEntryError,
    Entry,
    Problem,
    UnreadableSourceError,
    as_boxes,
    doubtful,
    read_lines,
    read_text,
    xyxy,
)
from synthgen.formats.images import APPLE_DOUBLE, image_files, is_image_name, upright_size
from synthgen.formats.masks import with_masks
from synthgen.formats.source import AnnotatedImages, Source
from synthgen.formats.yolo import TASKS
from synthgen.geometry import yolo_to_xywh
from synthgen.yamlfile import ConfigError, read_yaml

SPLITS = ("train", "val", "test")
DETECT, SEGMENT, POSE, OBB, MIXED = TASKS
NAME_LISTS = ("classes.txt", "labels/classes.txt")
DARKNET = ".data"  # suffix of the file that names the lists of a Darknet dataset
DARKNET_SPLITS = {"train": "train", "valid": "val", "test": "test"}
BOX, LEAST_POLYGON, CORNERS = 4, 6, 8  # numbers of a box, of three points, and of four


@dataclass(frozen=True)
class Folders:
    """What data.yaml, obj.data or classes.txt says of a dataset.

    Attributes:
        root: the folder that the dataset lies in.
        names: of the classes.
        splits: the folders or lists of images of each split ("" where there are none).
        absent: splits that are named but not there, and why.
        keypoints: how many numbers the keypoints of an object have; 0: it is no dataset of poses.
        remarks: what a user should know of where the images are read from.
    """

    root: Path
    names: dict[int, str]
    splits: dict[str, list[Path]]
    absent: dict[str, str] = field(default_factory=dict)
    keypoints: int = 0
    remarks: tuple[str, ...] = ()

    def chosen(self, split: str | None) -> list[Path]:
        """The folders and lists of a split, or of all of them.

        Raises:
            UnreadableSourceError: there is no such split, or there are several and none is named.
        """
        if split is None and len(self.splits) > 1:
            raise UnreadableSourceError(
                f"{self.root}: has {', '.join(self.splits)}; name one, or all: --split train"
            )
        if split in self.absent:
            raise UnreadableSourceError(self.absent[split])
        if split not in (None, ALL, *self.splits):
            raise UnreadableSourceError(
                f"{self.root}: has no split {split!r}; it has {', '.join(self.splits)}"
            )
        return [
            place
            for name, places in self.splits.items()
            if split in (None, ALL, name)
            for place in places
        ]


@dataclass(frozen=True)
class Dataset(AnnotatedImages):
    """A YOLO dataset whose images are listed and whose lines have one meaning.

    Attributes:
        images: each once, in order.
        task: what a line means: one of TASKS.
        asked: whether the user said so; else it was found.
        keypoints: see Folders.
        orphans: files of labels without an image.
        notes: what a user should know of what is read from where.
    """

    names: dict[int, str]
    images: list[Path]
    task: str
    asked: bool
    keypoints: int
    orphans: list[Path]
    notes: tuple[str, ...]

    @property
    def remarks(self) -> tuple[str, ...]:
        return self.notes

    def entries(self, whole: bool = False) -> Iterator[Entry | Problem]:
        """The annotated images; one without a file of labels has no boxes.

        Args:
            whole: keep what is known of each box beside its place: polygons, as run-length encodings.
        """
        for path in self.orphans:
            yield Problem(str(path), "there is no picture of this name")
        sharing = Counter(labels_of(image) for image in self.images)
        for image in self.images:
            labels = labels_of(image)
            if sharing[labels] > 1 and os.path.isfile(labels):
                yield Problem(
                    str(image),
                    f"shares {labels} with another picture; which one is it of?",
                    str(image),
                )
            elif self.orphans and not os.path.isfile(labels):
                yield doubtful(str(image), len(self.orphans))
            else:
                yield from self._entry(image, labels, whole)

    def _entry(self, image: Path, labels: Path, whole: bool) -> Iterator[Entry | Problem]:
        try:
            size = upright_size(image)
        except BadEntryError as error:
            yield Problem(str(image), str(error).removeprefix(f"{image}: "), str(image))
            return
        found: list[_Label] = []
        problems: list[Problem] = []
        try:
            for place, line in read_lines(labels) if os.path.isfile(labels) else ():
                try:
                    found.append(self._label(line.split(), size, place))
                except ValueError as error:
                    problems.append(Problem(place, str(error), str(image)))
        except UnreadableSourceError as error:
            problems.append(
                Problem(str(labels), str(error).removeprefix(f"{labels}: "), str(image))
            )
        yield from problems
        if problems:
            return
        boxes, names = (
            as_boxes([label.box for label in found]),
            tuple(label.name for label in found),
        )
        entry = Entry(
            str(image),
            *size,
            boxes,
            names,
            picture=image,
            places=tuple(label.place for label in found),
        )
        entry = replace(entry, left_out=tuple(label.left_out for label in found if label.left_out))
        yield (
            with_masks(entry, [[label.polygon] if label.polygon else [] for label in found])
            if whole
            else entry
        )

    def _label(self, words: list[str], size: tuple[int, int], place: str) -> "_Label":
        """What a line says.

        Raises:
            ValueError: it is not what the task asks for.
        """
        kind, values = numbers_of(words)
        if kind not in self.names:
            raise ValueError(
                f"class {kind} has no name; there are 0 to {max(self.names, default=-1)}"
            )
        self._check_count(len(values))
        width, height = size
        if self.task in (DETECT, POSE) or len(values) == BOX:
            with np.errstate(over="ignore"):  # what is too large for a float is refused by xyxy
                box = xyxy(yolo_to_xywh(np.array(values[:BOX]), width, height).tolist())
            more = (
                "" if len(values) == BOX else "confidence" if self.task == DETECT else "keypoints"
            )
            return _Label(self.names[kind], box, place, left_out=more)
        x, y = [v * width for v in values[::2]], [v * height for v in values[1::2]]
        box = xyxy([min(x), min(y), max(x) - min(x), max(y) - min(y)])
        return _Label(
            self.names[kind], box, place, [v for point in zip(x, y, strict=True) for v in point]
        )

    def _check_count(self, count: int) -> None:
        polygon = count >= LEAST_POLYGON and count % 2 == 0
        if self.task == DETECT:
            good, wanted = count == BOX or (self.asked and count == BOX + 1), "a box has 4"
            if count == BOX + 1:
                wanted += "; if the fifth is a confidence, --task detect leaves it out"
        elif self.task == POSE:
            good, wanted = count >= BOX, "a box has 4, and its keypoints follow"
            if self.keypoints:
                good = count in (BOX, BOX + self.keypoints)
                wanted = f"a box has 4, with its keypoints (kpt_shape) {BOX + self.keypoints}"
        elif self.task == OBB:
            good, wanted = count == CORNERS, "four corners have 8"
        elif self.task == SEGMENT:
            good, wanted = polygon, "a polygon has 6 or more, two a point"
        else:
            good, wanted = polygon or count == BOX, "a box has 4, a polygon 6 or more, two a point"
        if not good:
            raise ValueError(f"{count} numbers after the class; {wanted}")


@dataclass(frozen=True)
class _Label:
    """What a line says: name, box (xyxy) and polygon in px, and the name of what is left out of it."""

    name: str
    box: list[float]
    place: str
    polygon: list[float] = field(default_factory=list)
    left_out: str = ""


def numbers_of(words: list[str]) -> tuple[int, list[float]]:
    """The class and the numbers of a line; a class may be written as a decimal (0.0, 1.000e+00), as numpy.savetxt does.

    Raises:
        ValueError: it holds something else.
    """
    shown = " ".join(words)[:60]
    try:
        if "_" in "".join(words):  # which Python takes for a part of a number
            raise ValueError
        kind, *values = (float(word) for word in words)
    except ValueError:
        raise ValueError(f"{shown!r}: not a class and numbers") from None
    if not all(map(isfinite, values)):
        raise ValueError(f"{shown!r}: all numbers must be finite")
    if not kind.is_integer():  # false of NaN and infinity too
        raise ValueError(f"{shown!r}: class {words[0]} is not a whole number")
    return int(kind), values


def accepts(path: Path) -> bool:
    """Return whether a file may describe a YOLO dataset, by its name."""
    return path.suffix.lower() in (".yaml", ".yml", DARKNET)


def find_sources(folder: Path, asked: bool) -> Iterator[Path]:
    """Yield the files that describe a YOLO dataset, else the folder that is one without."""
    labelled = (folder / "images").is_dir() and (folder / "labels").is_dir()
    if found := described(folder):
        yield from found
    elif labelled or (folder / "classes.txt").is_file():
        yield folder


def open_source(source: Source) -> Dataset:
    """List the images of a source; raises as `open_dataset`."""
    return open_dataset(source.path, source.split, source.options.get("task"))


def open_dataset(source: Path, split: str | None = None, task: str | None = None) -> Dataset:
    """List the images of a dataset, and find what its lines mean.

    Args:
        source: data.yaml or obj.data, or the folder that holds it, or one with images/, labels/ and classes.txt.
        split: train, val, test or all.
        task: one of TASKS; null: pose where data.yaml has kpt_shape, else what all lines together can only mean.

    Raises:
        UnreadableSourceError: it is no such dataset, or its lines may mean more than one thing.
    """
    folders = find(source)
    places = folders.chosen(split)
    images, remarks = _images(places, folders.root)
    labels = [path for path in map(labels_of, images) if os.path.isfile(path)]
    if not labels:
        raise UnreadableSourceError(f"{folders.root}: no labels/*.txt for its pictures")
    found = task or (POSE if folders.keypoints else inferred_task(labels, folders.root))
    notes = [*folders.remarks, *remarks]
    if split in (None, ALL):
        notes += [f"{why}; left out" for why in folders.absent.values()]
    lists = {place for place in places if place.is_file()}
    orphans = list(_orphans(images, lists))
    return Dataset(
        folders.names, images, found, task is not None, folders.keypoints, orphans, tuple(notes)
    )


def inferred_task(labels: Iterable[Path], root: Path) -> str:
    """What the lines of a dataset mean, where one meaning only is left.

    Lines of 4 numbers throughout are boxes. Lines that all have 6 or more, always even and not always as many, are polygons, as
    those of poses and of corners are equally long. Anything else may be several things.

    Raises:
        UnreadableSourceError: it may be several things; the message names the lines, and what to give.
    """
    firsts: dict[int, str] = {}  # of each number of numbers the first line that has it
    for path in labels:
        try:
            for place, line in read_lines(path):
                firsts.setdefault(len(numbers_of(line.split())[1]), place)
        except (UnreadableSourceError, ValueError):
            continue  # told when the file is read
    long = {count: place for count, place in firsts.items() if count >= LEAST_POLYGON}
    if not long:
        return DETECT
    count, place = next(iter(long.items()))
    say = "say which: --task segment, pose, obb or detect"
    if BOX in firsts:
        also = f"{firsts[BOX]} has 4 numbers after the class, {place} {count}"
        also += ": are they boxes and polygons, or boxes some of which have keypoints"
        raise UnreadableSourceError(
            f"{root}: {also}? --task mixed (4 numbers are a box, more a polygon), pose or segment"
        )
    if any(count % 2 for count in long):
        odd = next(count for count in long if count % 2)
        raise UnreadableSourceError(
            f"{root}: {long[odd]} has {odd} numbers after the class: no box and no polygon; {say}"
        )
    if len(long) == 1:
        every = f"all lines have {count} numbers after the class ({place} is the first)"
        raise UnreadableSourceError(
            f"{root}: {every}: polygons, boxes with keypoints, or rotated boxes? {say}"
        )
    return SEGMENT


def find(source: Path) -> Folders:
    """The folders and names of a dataset.

    Raises:
        UnreadableSourceError: there are none.
    """
    description = source if source.is_file() else next(iter(described(source)), None)
    if description is not None:
        return _darknet(description) if description.suffix == DARKNET else _described(description)
    images = source / "images" if (source / "images").is_dir() else source
    listed = next((p for p in (source / name for name in NAME_LISTS) if p.is_file()), None)
    if listed is None:
        needed = "data.yaml, obj.data, or images/, labels/ and classes.txt"
        raise UnreadableSourceError(f"{source}: not a YOLO dataset: it needs {needed}")
    splits = {name: [images / name] for name in SPLITS if (images / name).is_dir()}
    return Folders(source, _listed_names(listed), splits or {"": [images]})


def described(folder: Path) -> list[Path]:
    """The files of a folder that may describe a YOLO dataset: data.yaml alone, or else all that may."""
    found = sorted(
        p for pattern in ("*.yaml", "*.yml", f"*{DARKNET}") for p in folder.glob(pattern)
    )
    found = [p for p in found if not p.name.startswith(APPLE_DOUBLE) and _names_classes(p)]
    usual = [p for p in found if p.name in ("data.yaml", "data.yml")]
    return usual[:1] or found


def _names_classes(path: Path) -> bool:
    try:
        return any(line.startswith("names") for line in read_text(path).splitlines())
    except UnreadableSourceError:
        return False


def _listed_names(path: Path) -> dict[int, str]:
    return dict(enumerate(line.strip() for _, line in read_lines(path)))


def _described(path: Path) -> Folders:
    """What data.yaml says.

    `path` is followed, also out of the folder of data.yaml, where that folder is there and holds a split; often it says where the
    dataset lay on another machine.
    """
    try:
        data = read_yaml(path).data
    except ConfigError as error:
        raise UnreadableSourceError(str(error)) from None
    names = data.get("names") if isinstance(data, dict) else None
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not all(str(k).isdecimal() for k in names):
        raise UnreadableSourceError(
            f"{path}: names: missing; a list of names, or a mapping of numbers to names"
        )
    near, given = path.parent, data.get("path")
    wanted = {split: data[split] for split in SPLITS if data.get(split)}
    if not wanted:
        raise UnreadableSourceError(f"{path}: names no train, val or test")
    elsewhere = near / given if isinstance(given, str) and given else near
    remarks: list[str] = []
    splits, absent = _places(elsewhere, wanted, path)
    if not splits and elsewhere != near:
        splits, absent = _places(near, wanted, path)
        remarks += [f"{path}: path: {given!r} holds none of its splits here; read from {near}"]
    if not splits:
        raise UnreadableSourceError(next(iter(absent.values())))
    named = {int(k): str(v) for k, v in names.items()}
    return Folders(
        near, named, splits, absent, _keypoints(data.get("kpt_shape"), path), tuple(remarks)
    )


def _keypoints(shape: Any, path: Path) -> int:
    """How many numbers the keypoints of an object have, by `kpt_shape`: how many there are, and 2 or 3 numbers each."""
    if shape is None:
        return 0
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(type(n) is int and n > 0 for n in shape)
    ):
        raise UnreadableSourceError(
            f"{path}: kpt_shape: {shape!r}: give how many keypoints and numbers each, as [17, 3]"
        )
    return prod(shape)


def _places(
    root: Path, wanted: dict[str, Any], path: Path
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """The folders and lists of each split that is there, and why the others are not."""
    splits: dict[str, list[Path]] = {}
    absent: dict[str, str] = {}
    for split, given in wanted.items():
        try:
            splits[split] = [
                _place(root, str(item)) for item in (given if isinstance(given, list) else [given])
            ]
        except LookupError as error:
            absent[split] = f"{path}: {split}: {error.args[0]}"
    return splits, absent


def _place(root: Path, name: str) -> Path:
    """A folder or list of images; leading ../ are left out where they lead nowhere, as in Ultralytics and for Roboflow's exports.

    Raises:
        LookupError: it is not there.
        UnreadableSourceError: it is both with and without them.
    """
    name = name.replace("\\", "/")
    inside = name
    while inside.startswith("../"):
        inside = inside[3:]
    found = {
        os.path.realpath(root / text): root / text
        for text in (inside, name)
        if os.path.exists(root / text)
    }
    if not found:
        raise LookupError(f"{name!r}: no such folder or list in {root}")
    if len(found) > 1:
        raise UnreadableSourceError(
            f"{root}: {name!r} may be {' or '.join(map(str, found.values()))}; write it in full"
        )
    return next(iter(found.values()))


def _leads_out(path: Path, root: Path) -> bool:
    return not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))


def _darknet(path: Path) -> Folders:
    """What obj.data of Darknet says, as CVAT's YOLO 1.1 writes it too: `names` and lists of images."""
    pairs = {
        key.strip(): value.strip()
        for _, line in read_lines(path)
        for key, sep, value in [line.partition("=")]
        if sep
    }
    names = _without_leading([pairs.get("names", "")], [path.parent])
    if not pairs.get("names") or names is None:
        raise UnreadableSourceError(
            f"{path}: names: {pairs.get('names')!r}: no such file in {path.parent}"
        )
    splits: dict[str, list[Path]] = {}
    absent: dict[str, str] = {}
    for key, split in DARKNET_SPLITS.items():
        if pairs.get(key):
            place = _without_leading([pairs[key]], [path.parent])
            if place is None:
                absent[split] = f"{path}: {key}: {pairs[key]!r}: no such list in {path.parent}"
            else:
                splits[split] = [place.file(pairs[key])]
    if not splits:
        raise UnreadableSourceError(
            next(iter(absent.values()), f"{path}: names no train, valid or test")
        )
    return Folders(path.parent, _listed_names(names.file(pairs["names"])), splits, absent)


@dataclass(frozen=True)
class _Base:
    """Where the names of a list start: in a folder, without their leading parts."""

    folder: Path
    leading: tuple[str, ...]

    def file(self, name: str) -> Path:
        parts = _parts(name)
        rest = parts[len(self.leading) :] if parts[: len(self.leading)] == self.leading else parts
        return self.folder.joinpath(*rest)


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/")).parts


def _without_leading(names: Iterable[str], folders: list[Path]) -> _Base | None:
    """Where names start, by the first one that is there; null: none is.

    Lists are written for another working directory or machine: their names begin with data/, or with /home/….
    """
    for name in names:
        parts = _parts(name)
        for skipped in range(len(parts)):
            for folder in folders:
                if os.path.isfile(
                    folder.joinpath(*parts[skipped:])
                ):  # no error of a name that is too long
                    return _Base(folder, parts[:skipped])
    return None


def _images(places: list[Path], root: Path) -> tuple[list[Path], list[str]]:
    """The images of folders and lists, each once, and what is to be said of where they are."""
    images: dict[str, Path] = {}
    remarks: list[str] = []
    for place in places:
        if _leads_out(place, root):
            remarks.append(f"{place}: read from there, outside of {root}")
        if place.is_dir():
            found = image_files(place, deep=True)
        else:
            names = [line.strip() for _, line in read_lines(place)]
            base = _without_leading(names, list(dict.fromkeys((place.parent, root)))) or _Base(
                root, ()
            )
            found = [base.file(name) for name in names]
            leading = str(PurePosixPath(*base.leading)) if base.leading else ""
            if leading:
                remarks.append(
                    f"{place}: names start with {leading!r}, which is not here; read from {base.folder}"
                )
            outside = next((image for image in found if _leads_out(image, root)), None)
            if outside is not None:
                remarks.append(
                    f"{place}: names lead to {outside.parent}; read from there, outside of {root}"
                )
        for image in found:
            images.setdefault(os.path.abspath(image), image)
    return list(images.values()), remarks


def labels_of(picture: Path) -> Path:
    """The file of labels of a picture: the last images/ in its path is labels/ there; else beside the picture."""
    path = _exchanged(picture, "images", "labels")
    folder, name = path.parent, f"{path.stem}.txt"
    if os.path.isfile(folder / name) or not folder.is_dir():
        return folder / name
    return folder / _other_spellings(folder, folder.stat().st_mtime_ns).get(path.stem, name)


@lru_cache(maxsize=1000)
def _other_spellings(folder: Path, changed: int) -> dict[str, str]:
    """The names of the files of a folder whose suffix is .txt in other letters (.TXT), by their stems.

    Args:
        changed: when the folder last changed, so that it is listed anew then.
    """
    files = [
        path for path in folder.iterdir() if path.suffix.lower() == ".txt" and path.suffix != ".txt"
    ]
    return {path.stem: path.name for path in sorted(files)}


def _orphans(images: list[Path], lists: set[Path]) -> Iterator[Path]:
    """The files of labels, where those of the images lie, that have no image."""
    folders = dict.fromkeys((labels_of(image).parent, image.parent) for image in images)
    stems: dict[Path, set[str]] = {}
    for labels, near in folders:
        stems.setdefault(labels, set()).update(
            path.stem for path in near.glob("*") if is_image_name(path)
        )
    for folder, known in stems.items():
        for path in sorted(path for path in folder.glob("*") if path.suffix.lower() == ".txt"):
            plain = (
                path.name in NAME_LISTS
                or path.name.startswith((APPLE_DOUBLE, "README"))
                or path in lists
            )
            if not plain and path.stem not in known:
                yield path


def _exchanged(path: Path, old: str, new: str) -> Path:
    parts = list(path.parts)
    if old in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index(old)] = new
    return Path(*parts)
