"""The files of a YOLO dataset: class names, splits, images, and a file of labels for each image.

They are described by data.yaml, obj.data (Darknet, CVAT) or classes.txt.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from synthgen.formats.base import ALL
from synthgen.formats.entries import UnreadableSourceError, read_lines, read_text
from synthgen.formats.images import APPLE_DOUBLE, find_images
from synthgen.yamlfile import ConfigError, read_yaml

SPLITS = ("train", "val", "test")
NAME_LISTS = ("classes.txt", "labels/classes.txt")
DARKNET_SUFFIX = ".data"  # suffix of the file that names the lists of a Darknet dataset
DARKNET_SPLITS = {"train": "train", "valid": "val", "test": "test"}
DESCRIPTION_SUFFIXES = (".yaml", ".yml", DARKNET_SUFFIX)
USUAL_DESCRIPTIONS = ("data.yaml", "data.yml")


@dataclass(frozen=True)
class Folders:
    """The content of data.yaml, obj.data or classes.txt.

    Attributes:
        root: the folder of the dataset.
        names: the names of the classes.
        splits: the folders or lists of images of each split; the key is "" without splits.
        absent: the reason for each named split that does not exist.
        keypoint_numbers: how many numbers the keypoints of an object have; 0 if the dataset has no
            poses.
        remarks: messages for the user about where the images are read from.
    """

    root: Path
    names: dict[int, str]
    splits: dict[str, list[Path]]
    absent: dict[str, str] = field(default_factory=dict)
    keypoint_numbers: int = 0
    remarks: tuple[str, ...] = ()

    def select_split(self, split: str | None) -> list[Path]:
        """Return the folders and lists of a split, or of all splits.

        Raises:
            UnreadableSourceError: there is no such split, or there are several and none is named.
        """
        available = ", ".join(self.splits)
        if split is None and len(self.splits) > 1:
            raise UnreadableSourceError(
                f"{self.root}: has {available}; name one, or all: --split train"
            )
        if split in self.absent:
            raise UnreadableSourceError(self.absent[split])
        if split not in (None, ALL, *self.splits):
            raise UnreadableSourceError(f"{self.root}: has no split {split!r}; it has {available}")
        selected: list[Path] = []
        for name, places in self.splits.items():
            if split in (None, ALL, name):
                selected += places
        return selected


def find_folders(source: Path) -> Folders:
    """Return the class names, folders and lists of a dataset.

    Args:
        source: data.yaml or obj.data, or the folder that contains it, or a folder with images/,
            labels/ and classes.txt.

    Raises:
        UnreadableSourceError: there are none.
    """
    descriptions = [source] if source.is_file() else find_descriptions(source)
    if descriptions:
        description = descriptions[0]
        if description.suffix == DARKNET_SUFFIX:
            return _read_darknet_description(description)
        return _read_yaml_description(description)
    for name in NAME_LISTS:
        if (source / name).is_file():
            names = _read_names(source / name)
            break
    else:
        raise UnreadableSourceError(
            f"{source}: not a YOLO dataset: it needs data.yaml, obj.data, "
            "or images/, labels/ and classes.txt"
        )
    images = source / "images" if (source / "images").is_dir() else source
    splits: dict[str, list[Path]] = {}
    for split in SPLITS:
        if (images / split).is_dir():
            splits[split] = [images / split]
    return Folders(source, names, splits or {"": [images]})


def find_descriptions(folder: Path) -> list[Path]:
    """Return the files of a folder that may describe a YOLO dataset: data.yaml, or else all."""
    paths: list[Path] = []
    for suffix in DESCRIPTION_SUFFIXES:
        paths += folder.glob(f"*{suffix}")
    descriptions: list[Path] = []
    for path in sorted(paths):
        if not path.name.startswith(APPLE_DOUBLE) and _has_class_names(path):
            descriptions.append(path)
    for path in descriptions:
        if path.name in USUAL_DESCRIPTIONS:
            return [path]
    return descriptions


def _has_class_names(path: Path) -> bool:
    try:
        return any(line.startswith("names") for line in read_text(path).splitlines())
    except UnreadableSourceError:
        return False


def _read_names(path: Path) -> dict[int, str]:
    """Return the class names in a text file, one in each line."""
    names = [line.strip() for _, line in read_lines(path)]
    return dict(enumerate(names))


def _read_yaml_description(path: Path) -> Folders:
    """Return the content of data.yaml.

    The key `path` is followed, also out of the folder of data.yaml, if that folder exists and
    contains a split. Often it states where the dataset was on another machine.

    Raises:
        UnreadableSourceError: it has no class names, or none of its splits exists.
    """
    try:
        data = read_yaml(path).data
    except ConfigError as error:
        raise UnreadableSourceError(str(error)) from None
    names = _parse_names(data, path)
    wanted = {split: data[split] for split in SPLITS if data.get(split)}
    if not wanted:
        raise UnreadableSourceError(f"{path}: names no train, val or test")
    folder = path.parent
    stated_path = data.get("path")
    root = folder / stated_path if isinstance(stated_path, str) and stated_path else folder
    remarks: list[str] = []
    splits, absent = _find_places(root, wanted, path)
    if not splits and root != folder:
        splits, absent = _find_places(folder, wanted, path)
        remarks.append(
            f"{path}: path: {stated_path!r} contains none of its splits here; read from {folder}"
        )
    if not splits:
        reasons = list(absent.values())
        raise UnreadableSourceError(reasons[0])
    keypoint_numbers = _count_keypoint_numbers(data.get("kpt_shape"), path)
    return Folders(folder, names, splits, absent, keypoint_numbers, tuple(remarks))


def _parse_names(data: Any, path: Path) -> dict[int, str]:
    """Return the class names of data.yaml: a list of names, or a mapping of numbers to names.

    Raises:
        UnreadableSourceError: they are missing or something else.
    """
    names = data.get("names") if isinstance(data, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(str(key).isdecimal() for key in names):
        raise UnreadableSourceError(
            f"{path}: names: missing; a list of names, or a mapping of numbers to names"
        )
    return {int(key): str(name) for key, name in names.items()}


def _count_keypoint_numbers(shape: Any, path: Path) -> int:
    """Return how many numbers the keypoints of an object have, by `kpt_shape`.

    It is the number of keypoints, and 2 or 3 numbers for each.

    Raises:
        UnreadableSourceError: it is something else.
    """
    if shape is None:
        return 0
    is_pair = isinstance(shape, list) and len(shape) == 2
    if not is_pair or not all(type(number) is int and number > 0 for number in shape):
        raise UnreadableSourceError(
            f"{path}: kpt_shape: {shape!r}: give how many keypoints and numbers each, as [17, 3]"
        )
    return prod(shape)


def _find_places(
    root: Path, wanted: dict[str, Any], path: Path
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Return the folders and lists of each split that exists, and why the others do not.

    Args:
        wanted: a name or a list of names for each split, relative to the root.
        path: data.yaml, for messages.
    """
    splits: dict[str, list[Path]] = {}
    absent: dict[str, str] = {}
    for split, value in wanted.items():
        names = value if isinstance(value, list) else [value]
        try:
            splits[split] = [_find_place(root, str(name)) for name in names]
        except LookupError as error:
            absent[split] = f"{path}: {split}: {error.args[0]}"
    return splits, absent


def _find_place(root: Path, name: str) -> Path:
    """Return a folder or list of images.

    Leading ../ are removed if they lead nowhere, as Ultralytics does for Roboflow's exports.

    Raises:
        LookupError: it does not exist.
        UnreadableSourceError: it exists both with and without them.
    """
    name = name.replace("\\", "/")
    inner_name = name
    while inner_name.startswith("../"):
        inner_name = inner_name[3:]
    places: dict[str, Path] = {}
    for path in (root / inner_name, root / name):
        if os.path.exists(path):
            places[os.path.realpath(path)] = path
    if not places:
        raise LookupError(f"{name!r}: no such folder or list in {root}")
    if len(places) > 1:
        choices = " or ".join(map(str, places.values()))
        raise UnreadableSourceError(f"{root}: {name!r} may be {choices}; write it in full")
    (place,) = places.values()
    return place


def _read_darknet_description(path: Path) -> Folders:
    """Return the content of Darknet's obj.data, which CVAT's YOLO 1.1 has too.

    It has lines key = value: `names`, and a list of images for each split.

    Raises:
        UnreadableSourceError: it has no class names, or none of its lists exists.
    """
    values: dict[str, str] = {}
    for _, line in read_lines(path):
        key, separator, value = line.partition("=")
        if separator:
            values[key.strip()] = value.strip()
    folder = path.parent
    names = values.get("names")
    names_base = find_base([names], [folder]) if names else None
    if not names or names_base is None:
        raise UnreadableSourceError(f"{path}: names: {names!r}: no such file in {folder}")
    splits: dict[str, list[Path]] = {}
    absent: dict[str, str] = {}
    for key, split in DARKNET_SPLITS.items():
        name = values.get(key)
        if not name:
            continue
        base = find_base([name], [folder])
        if base is None:
            absent[split] = f"{path}: {key}: {name!r}: no such list in {folder}"
        else:
            splits[split] = [base.resolve(name)]
    if not splits:
        reasons = [*absent.values(), f"{path}: names no train, valid or test"]
        raise UnreadableSourceError(reasons[0])
    return Folders(folder, _read_names(names_base.resolve(names)), splits, absent)


@dataclass(frozen=True)
class Base:
    """The folder that the names of a list are relative to, after removal of their first parts."""

    folder: Path
    removed_parts: tuple[str, ...] = ()

    def resolve(self, name: str) -> Path:
        """Return the path of a name in the list."""
        parts = _split_name(name)
        count = len(self.removed_parts)
        if parts[:count] == self.removed_parts:
            parts = parts[count:]
        return self.folder.joinpath(*parts)


def find_base(names: Iterable[str], folders: list[Path]) -> Base | None:
    """Return the base of a list of names, by the first one that exists, or None.

    Lists are written for another working directory or machine: their names begin with data/ or
    with /home/….

    Args:
        folders: the folders to try.
    """
    for name in names:
        parts = _split_name(name)
        for count in range(len(parts)):
            for folder in folders:
                path = folder.joinpath(*parts[count:])
                if os.path.isfile(path):  # unlike Path.is_file, accepts names that are too long
                    return Base(folder, parts[:count])
    return None


def _split_name(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/")).parts


def list_images(places: list[Path], root: Path) -> tuple[list[Path], list[str]]:
    """Return the images of folders and lists, each once, and remarks about where they are.

    Args:
        root: the folder of the dataset.
    """
    images: dict[str, Path] = {}
    remarks: list[str] = []
    for place in places:
        if _is_outside(place, root):
            remarks.append(f"{place}: read from there, outside of {root}")
        if place.is_dir():
            found = find_images(place, deep=True)
        else:
            found = _read_image_list(place, root, remarks)
        for image in found:
            images.setdefault(os.path.abspath(image), image)
    return list(images.values()), remarks


def _read_image_list(path: Path, root: Path, remarks: list[str]) -> list[Path]:
    """Return the images of a list, and add remarks about where they are."""
    names = [line.strip() for _, line in read_lines(path)]
    folders = list(dict.fromkeys((path.parent, root)))
    base = find_base(names, folders) or Base(root)
    images = [base.resolve(name) for name in names]
    if base.removed_parts:
        removed = str(PurePosixPath(*base.removed_parts))
        remarks.append(
            f"{path}: names start with {removed!r}, which is not here; read from {base.folder}"
        )
    for image in images:
        if _is_outside(image, root):
            remarks.append(
                f"{path}: names lead to {image.parent}; read from there, outside of {root}"
            )
            break
    return images


def _is_outside(path: Path, root: Path) -> bool:
    return not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))


def find_labels_file(image: Path) -> Path:
    """Return the file of labels of an image, whether or not it exists.

    The last images/ in the path of the image becomes labels/; without it the file lies beside the
    image.
    """
    path = _replace_last_folder(image, "images", "labels")
    folder = path.parent
    name = f"{path.stem}.txt"
    if os.path.isfile(folder / name) or not folder.is_dir():
        return folder / name
    return folder / _list_other_suffixes(folder, folder.stat().st_mtime_ns).get(path.stem, name)


@lru_cache(maxsize=1000)
def _list_other_suffixes(folder: Path, changed: int) -> dict[str, str]:
    """Return the files of a folder whose suffix is .txt in another case (.TXT), by their stems.

    Args:
        changed: the modification time of the folder, so that a changed folder is listed again.
    """
    files: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == ".txt" and path.suffix != ".txt":
            files[path.stem] = path.name
    return files


def find_orphaned_labels(images: list[Path], lists: set[Path]) -> Iterator[Path]:
    """Yield the files of labels without an image, in the folders of the images' labels.

    Args:
        lists: the lists of images, which may lie in these folders.
    """
    folders: set[tuple[Path, Path]] = set()
    image_stems: dict[Path, set[str]] = {}
    for image in images:
        labels_folder = find_labels_file(image).parent
        if (labels_folder, image.parent) in folders:
            continue
        folders.add((labels_folder, image.parent))
        stems = image_stems.setdefault(labels_folder, set())
        stems.update(path.stem for path in find_images(image.parent))
    for folder, stems in image_stems.items():
        for path in sorted(folder.glob("*")):
            if path.suffix.lower() != ".txt" or path.stem in stems or path in lists:
                continue
            if path.name in NAME_LISTS or path.name.startswith((APPLE_DOUBLE, "README")):
                continue
            yield path


def _replace_last_folder(path: Path, old: str, new: str) -> Path:
    """Return the path with the last folder called `old` replaced by `new`."""
    parts = list(path.parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == old:
            parts[i] = new
            break
    return Path(*parts)
