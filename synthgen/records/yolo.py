"""YOLO's folders: pictures in images/, a text file for each in labels/, and names in data.yaml or classes.txt."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from synthgen.records import BadEntryError, Entry, Problem, UnreadableSourceError, as_boxes, below, xyxy
from synthgen.records.coco import run_length
from synthgen.records.pictures import SUFFIXES, upright_size
from synthgen.yamlfile import ConfigError, read_yaml

SPLITS = ("train", "val", "test")
ALL = "all"


@dataclass(frozen=True)
class Folders:
    """A YOLO dataset: the names of its classes, and its folders or lists of pictures, by split ("" where there are none)."""

    root: Path
    names: dict[int, str]
    splits: dict[str, list[Path]]

    def pictures(self, split: str | None) -> Iterator[Path]:
        """The pictures of a split, or of all of them.

        Raises:
            UnreadableSourceError: there is no such split, or there are several and none is named.
        """
        if split is None and len(self.splits) > 1:
            raise UnreadableSourceError(f"{self.root}: has {', '.join(self.splits)}; name one, or all: --split train")
        if split not in (None, ALL, *self.splits):
            raise UnreadableSourceError(f"{self.root}: has no split {split!r}; it has {', '.join(self.splits)}")
        for name, places in self.splits.items():
            if split in (None, ALL, name):
                for place in places:
                    yield from _pictures(place, self.root)


def read(source: Path, split: str | None = None, whole: bool = False) -> Iterator[Entry | Problem]:
    """The annotated pictures of a YOLO dataset; one without a file of labels has no boxes.

    Args:
        source: data.yaml, or the folder that holds it, or one with images/, labels/ and classes.txt.
        split: train, val, test or all.
        whole: keep what is known of each box beside its place: polygons, as run-length encodings.

    Raises:
        UnreadableSourceError: it is no such dataset.
    """
    folders, labels = find(source), set()
    for picture in folders.pictures(split):
        path = labels_of(picture)
        labels.add(path.parent)
        yield from _entry(picture, path, folders.names, whole)
    if not any(path.suffix == ".txt" for folder in labels if folder.is_dir() for path in folder.iterdir()):
        raise UnreadableSourceError(f"{folders.root}: no labels/*.txt for its pictures")
    for path in sorted(p for folder in labels if folder.is_dir() for p in folder.glob("*.txt") if p.name != "classes.txt"):
        if not any(p.is_file() for p in pictures_of(path)):
            yield Problem(str(path), "there is no picture of this name")


def find(source: Path) -> Folders:
    """The folders and names of a dataset.

    Raises:
        UnreadableSourceError: there are none.
    """
    description = source if source.is_file() else next((p for p in described(source)), None)
    if description is not None:
        return _described(description)
    root, images = source, source / "images"
    listed = next((p for p in (root / "classes.txt", root / "labels" / "classes.txt") if p.is_file()), None)
    if not images.is_dir() or listed is None:
        raise UnreadableSourceError(f"{source}: not a YOLO dataset: it needs data.yaml, or images/, labels/ and classes.txt")
    names = dict(enumerate(line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()))
    splits = {name: [images / name] for name in SPLITS if (images / name).is_dir()}
    return Folders(root, names, splits or {"": [images]})


def described(folder: Path) -> list[Path]:
    """The files of a folder that may describe a YOLO dataset, data.yaml first."""
    found = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")], key=lambda p: (p.stem != "data", p.name))
    return [
        p for p in found if any(line.startswith("names") for line in p.read_text(encoding="utf-8", errors="replace").splitlines())
    ]


def _described(path: Path) -> Folders:
    try:
        data = read_yaml(path).data
    except ConfigError as error:
        raise UnreadableSourceError(str(error)) from None
    names = data.get("names") if isinstance(data, dict) else None
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not all(str(k).isdigit() for k in names):
        raise UnreadableSourceError(f"{path}: names: missing; a list of names, or a mapping of numbers to names")
    roots = [path.parent / str(data["path"])] if _stays_inside(data.get("path")) else []
    splits: dict[str, list[Path]] = {}
    for split in SPLITS:
        given = data.get(split)
        if given:
            found = [
                _place([*roots, path.parent], item, f"{path}: {split}")
                for item in (given if isinstance(given, list) else [given])
            ]
            splits[split] = found
    if not splits:
        raise UnreadableSourceError(f"{path}: names no train, val or test")
    return Folders(path.parent, {int(k): str(v) for k, v in names.items()}, splits)


def _stays_inside(name: Any) -> bool:
    """Whether `path` of data.yaml can be used: often it says where the dataset lay on another machine."""
    return isinstance(name, str) and not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def _place(roots: list[Path], name: Any, key: str) -> Path:
    """A folder or list of pictures; leading ../ are left out, as Ultralytics does where they lead nowhere."""
    text = str(name)
    while text.startswith("../"):
        text = text[3:]
    try:
        found = [place for root in roots if (place := below(root, text, "folder")).exists()]
    except BadEntryError as error:
        raise UnreadableSourceError(f"{key}: {error}") from None
    if not found:
        raise UnreadableSourceError(f"{key}: {name!r}: no such folder or list in {', '.join(map(str, roots))}")
    return found[0]


def _pictures(place: Path, root: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES)
        return
    for number, line in enumerate(place.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                yield below(place.parent, line.strip(), "picture")
            except BadEntryError as error:
                raise UnreadableSourceError(f"{place}:{number}: {error}") from None


def labels_of(picture: Path) -> Path:
    """The file of labels of a picture: the last images/ in its path is labels/ there; else beside the picture."""
    return _exchanged(picture, "images", "labels").with_suffix(".txt")


def pictures_of(labels: Path) -> list[Path]:
    """Where the picture of a file of labels may be."""
    picture = _exchanged(labels, "labels", "images")
    return [picture.with_suffix(s) for suffix in SUFFIXES for s in (suffix, suffix.upper())]


def _exchanged(path: Path, old: str, new: str) -> Path:
    parts = list(path.parts)
    if old in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index(old)] = new
    return Path(*parts)


def _entry(picture: Path, labels: Path, names: dict[int, str], whole: bool) -> Iterator[Entry | Problem]:
    try:
        size = upright_size(picture)
    except BadEntryError as error:
        yield Problem(str(picture), str(error).removeprefix(f"{picture}: "), str(picture))
        return
    rows, kinds, more, problems = [], [], [], []
    try:
        lines = labels.read_text(encoding="utf-8").splitlines() if labels.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        lines, problems = [], [Problem(str(labels), f"cannot be read: {error}", str(picture))]
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                name, box, polygon = _label(line.split(), names, size)
                rows.append(box)
                kinds.append(name)
                more.append({"segmentation": run_length([polygon], *size)} if whole and polygon else {})
            except ValueError as error:
                problems.append(Problem(f"{labels}:{number}", str(error), str(picture)))
    yield from problems
    if not problems:
        yield Entry(str(picture), *size, as_boxes(rows), tuple(kinds), picture=picture, more=tuple(more) if whole else None)


def _label(words: list[str], names: dict[int, str], size: tuple[int, int]) -> tuple[str, list[float], list[float]]:
    """Name, box (xyxy) and polygon in px of `class cx cy width height` or `class x1 y1 x2 y2 …` in shares of the picture."""
    try:
        kind, values = int(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        raise ValueError(f"{' '.join(words)[:60]!r}: not a class and numbers") from None
    if kind not in names:
        raise ValueError(f"class {kind} has no name; there are 0 to {max(names, default=-1)}")
    width, height = size
    if len(values) == 4:
        cx, cy, w, h = values
        return names[kind], xyxy([(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]), []
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"{len(values)} numbers after the class; a box has 4, a polygon 6 or more")
    x, y = [v * width for v in values[::2]], [v * height for v in values[1::2]]
    box = xyxy([min(x), min(y), max(x) - min(x), max(y) - min(y)])
    return names[kind], box, [v for point in zip(x, y, strict=True) for v in point]
