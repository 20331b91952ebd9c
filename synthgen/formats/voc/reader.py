"""The reader of Pascal VOC: one XML file for each image.

It reads files of the VOC development kit, labelImg, CVAT and Roboflow. The development kit counts
pixels from 1, and both ends belong to the box: x from xmin - 1 to xmax. So do exports of synthgen.
Both name their writer (<source><annotation>). Other tools write the edges in px from the upper left
corner: x from xmin to xmax. The two differ by a pixel on the left and above. `--voc-corners`
overrides the choice for a source that names the wrong writer.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from synthgen.formats.base import ALL
from synthgen.formats.entries import (
    BadEntryError,
    Entry,
    Problem,
    UnreadableSourceError,
    parse_side,
    parse_xyxy,
    read_lines,
    resolve_file,
    stack_boxes,
)
from synthgen.formats.images import APPLE_DOUBLE, find_images, read_upright_size
from synthgen.formats.source import AnnotatedImages, Source
from synthgen.formats.voc import CORNERS
from synthgen.geometry import voc_to_xyxy

PIXELS, EDGES = CORNERS
CORNER_TAGS = ("xmin", "ymin", "xmax", "ymax")
OUR_NAME = "synthgen"  # the writer that exports of synthgen name in <source><annotation>
FLAGS = ("pose", "truncated", "occluded", "difficult")  # kept for a later export
SPLIT_FOLDERS = {"train": "train", "valid": "val", "val": "val", "test": "test"}
"""The folders of the splits in Roboflow's exports, and the splits."""
IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs")
CLASS_LIST_VALUES = ("-1", "0", "1")  # the second word of each line in a list of one class


@dataclass(frozen=True)
class Dataset(AnnotatedImages):
    """XML files, and the folders that contain their images.

    Attributes:
        root: the source.
        files: the XML files, in order.
        folders: the folders of images, for each folder of XML files.
        corners: PIXELS or EDGES, or None if each file decides.
        is_subset: whether a split was chosen, so that folders may contain other images.
    """

    root: Path
    files: list[Path]
    folders: dict[Path, list[Path]]
    corners: str | None
    is_subset: bool

    def entries(self, whole: bool = False) -> Iterator[Entry | Problem]:
        """Yield the annotated images.

        Args:
            whole: also read crowds and the flags of each object.
        """
        images = self._image_of_file
        owners = Counter(image for image in images.values() if isinstance(image, Path))
        for path in self.files:
            image = images[path]
            if isinstance(image, Problem):
                yield image
            elif owners[image] > 1:
                why = f"its image {image} is also that of another file"
                yield Problem(str(path), why, str(path))
            elif image in self._ambiguous_images:
                why = f"its image {image} may be that of another file"
                yield Problem(str(path), why, str(path))
            else:
                yield from self._read_entry(path, image, whole)

    @property
    def remarks(self) -> tuple[str, ...]:
        """The number of images without an XML file.

        They are left out, because nobody stated that they show no objects.
        """
        if self.is_subset:
            return ()
        images: set[Path] = set()
        for index in self._indices.values():
            images.update(index.images)
        images.difference_update(
            image for image in self._image_of_file.values() if isinstance(image, Path)
        )
        if not images:
            return ()
        return (f"{self.root}: {len(images)} images without a file of annotations; left out",)

    @cached_property
    def _indices(self) -> dict[Path, "_ImageIndex"]:
        """The images of each folder of XML files."""
        return {folder: _ImageIndex(images) for folder, images in self.folders.items()}

    @cached_property
    def _ambiguous_images(self) -> set[Path]:
        """The images of files that may also mean another image. Their labels may be incomplete."""
        images: set[Path] = set()
        for path in self.files:
            with suppress(BadEntryError):
                candidates = self._list_candidates(path, parse_xml(path).findtext("filename"))
                if len(candidates) > 1:
                    images.update(candidates)
        return images

    @cached_property
    def _image_of_file(self) -> dict[Path, Path | Problem]:
        """The image of each XML file, or why it has none."""
        images: dict[Path, Path | Problem] = {}
        for path in self.files:
            try:
                images[path] = self._find_image(path, parse_xml(path).findtext("filename"))
            except BadEntryError as error:
                images[path] = Problem(str(path), str(error), str(path))
        return images

    def _list_candidates(self, path: Path, filename: str | None) -> list[Path]:
        """Return the images that a file may belong to, by its <filename> or by its own name."""
        name = _strip_folders(filename)
        index = self._indices[path.parent]
        by_filename = index.find(name, PurePosixPath(name).stem)
        by_own_name = index.find(path.stem, path.stem)
        if by_filename and by_own_name and not set(by_filename) & set(by_own_name):
            return [*by_filename, *by_own_name]
        return by_filename or by_own_name

    def _find_image(self, path: Path, filename: str | None) -> Path:
        """Return the image of a file, by its <filename> or else by its own name.

        Raises:
            BadEntryError: no image matches, or several do.
        """
        name = _strip_folders(filename)
        candidates = self._list_candidates(path, filename)
        if not candidates:
            searched = ", ".join(map(str, self._indices[path.parent].folders))
            raise BadEntryError(
                f"filename: {name!r}: no such image, nor one called {path.stem}, in {searched}; "
                "give --images"
            )
        if len(candidates) > 1:
            choices = " or ".join(map(str, candidates))
            raise BadEntryError(f"filename: {name!r} may be {choices}; keep one of them")
        return candidates[0]

    def _read_entry(self, path: Path, image: Path, whole: bool) -> Iterator[Entry | Problem]:
        """Yield the entry of a file, or its problems."""
        try:
            root = parse_xml(path)
            width, height = _read_size(root, image)
        except BadEntryError as error:
            yield from error.problems(str(path))
            return
        writer = (root.findtext("source/annotation") or "").strip()
        has_pixel_corners = self._counts_pixels(writer)
        objects: list[_Object] = []
        problems: list[Problem] = []
        for i, element in enumerate(root.findall("object")):
            place = f"{path}: object[{i}]"
            try:
                objects.append(_read_object(element, place, has_pixel_corners, writer))
            except ValueError as error:
                problems.append(Problem(place, str(error), str(path)))
        if problems:
            yield from problems
            return
        entry = Entry(
            str(path),
            width,
            height,
            stack_boxes([item.box for item in objects]),
            tuple(item.name for item in objects),
            image_path=image,
            places=tuple(item.place for item in objects),
        )
        if not whole:
            yield entry.select([i for i, item in enumerate(objects) if not item.iscrowd])
            return
        more: list[dict[str, int]] = []
        source: list[dict[str, str]] = [{"file_name": image.name}]
        for item in objects:
            more.append({"iscrowd": int(item.iscrowd)})
            source.append(item.flags)
        yield replace(entry, more=tuple(more), source=tuple(source))

    def _counts_pixels(self, writer: str) -> bool:
        """Return whether the corners of a file are pixels, by the option or by its writer."""
        if self.corners is not None:
            return self.corners == PIXELS
        return writer == OUR_NAME or writer.upper().startswith("PASCAL")


def _strip_folders(filename: str | None) -> str:
    """Return the name of a file without its folders, which Windows tools write with backslashes."""
    return PurePosixPath((filename or "").strip().replace("\\", "/")).name


class _ImageIndex:
    """The images of some folders, by name and by name without suffix."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders
        self.images: list[Path] = []
        self.by_name: dict[str, list[Path]] = {}
        self.by_stem: dict[str, list[Path]] = {}
        for folder in folders:
            for image in find_images(folder):
                self.images.append(image)
                self.by_name.setdefault(image.name, []).append(image)
                self.by_stem.setdefault(image.stem, []).append(image)

    def find(self, name: str, stem: str) -> list[Path]:
        """Return the images with this name, or else those with this stem."""
        return self.by_name.get(name) or self.by_stem.get(stem, [])


def accepts(path: Path) -> bool:
    """Return whether a file may have this format, by its name."""
    return path.suffix.lower() == ".xml"


def find_sources(folder: Path, is_format_given: bool) -> Iterator[Path]:
    """Yield the folder if it contains a dataset of this format."""
    if is_dataset(folder):
        yield folder


def open_source(source: Source) -> Dataset:
    """Find the files of a source; raises as `open_dataset`."""
    return open_dataset(source.path, source.images, source.split, source.options.get("voc_corners"))


def open_dataset(
    source: Path, images: Path | None = None, split: str | None = None, corners: str | None = None
) -> Dataset:
    """Find the files of a dataset.

    Args:
        source: the folder that contains Annotations/, or XML files; or one such file.
        images: the folder of the images, or None for the usual places.
        split: a list of ImageSets/Main/, or a folder (train, val, test), or all.
        corners: PIXELS or EDGES, or None if each file decides.

    Raises:
        UnreadableSourceError: there are no files, or there is no such split.
    """
    if source.is_file():
        return Dataset(source, [source], _find_image_folders(source.parent, images), corners, True)
    folder = find_annotations_folder(source)
    if folder is None:
        return _open_split_folders(source, images, split, corners)
    image_folders = _find_image_folders(folder, images)
    if split in (None, ALL):
        return Dataset(source, _find_xml_files(folder), image_folders, corners, False)
    lists_folder = (source if folder == source else folder.parent) / "ImageSets" / "Main"
    lists = {path.stem: path for path in sorted(lists_folder.glob("*.txt"))}
    if split not in lists:
        available = ", ".join(lists) or f"no lists in {lists_folder}"
        raise UnreadableSourceError(f"{source}: has no split {split!r}; it has {available}")
    chosen: dict[Path, None] = {}
    for place, line in read_lines(lists[split]):
        chosen[_resolve_listed_file(folder, place, line)] = None
    return Dataset(source, list(chosen), image_folders, corners, True)


def _open_split_folders(
    source: Path, images: Path | None, split: str | None, corners: str | None
) -> Dataset:
    """Find the files of a dataset whose splits are folders with images and XML files."""
    split_folders: dict[str, Path] = {}
    for path in sorted(source.glob("*")):
        if path.name in SPLIT_FOLDERS and _find_xml_files(path):
            split_folders[SPLIT_FOLDERS[path.name]] = path
    names = ", ".join(split_folders)
    if not split_folders:
        raise UnreadableSourceError(f"{source}: no Annotations/*.xml and no *.xml")
    if split is None and len(split_folders) > 1:
        raise UnreadableSourceError(f"{source}: has {names}; name one, or all: --split train")
    if split not in (None, ALL, *split_folders):
        raise UnreadableSourceError(f"{source}: has no split {split!r}; it has {names}")
    files: list[Path] = []
    folders: dict[Path, list[Path]] = {}
    for name, path in split_folders.items():
        if split in (None, ALL, name):
            files += _find_xml_files(path)
            folders[path] = [images or path]
    return Dataset(source, files, folders, corners, False)


def find_annotations_folder(source: Path) -> Path | None:
    """Return the folder of the XML files: Annotations/ or the source itself, or None."""
    folders: list[Path] = []
    for path in sorted(source.glob("*")):
        if path.name.lower() == "annotations" and path.is_dir():
            folders.append(path)
    for folder in (*folders, source):
        if _find_xml_files(folder):
            return folder
    return None


def is_dataset(folder: Path) -> bool:
    """Return whether a folder contains a dataset of this format, by the names of its files."""
    if find_annotations_folder(folder) is not None:
        return True
    return any(_find_xml_files(folder / name) for name in SPLIT_FOLDERS)


def _find_xml_files(folder: Path) -> list[Path]:
    """Return the XML files of a folder, sorted."""
    files: list[Path] = []
    for path in folder.glob("*"):
        if path.suffix.lower() == ".xml" and not path.name.startswith(APPLE_DOUBLE):
            files.append(path)
    return sorted(files)


def _find_image_folders(folder: Path, images: Path | None) -> dict[Path, list[Path]]:
    """Return the folders that may contain the images of the XML files of a folder."""
    if images is not None:
        return {folder: [images]}
    folders = [folder]
    for path in sorted(folder.parent.glob("*")):
        if path.name.lower() in IMAGE_FOLDERS and path.is_dir() and path != folder:
            folders.append(path)
    return {folder: folders}


def _resolve_listed_file(folder: Path, place: str, line: str) -> Path:
    """Return the XML file that a line of ImageSets/Main names.

    In lists of one class a number follows the name.

    Raises:
        UnreadableSourceError: the name leads out of the folder.
    """
    name = line.strip()
    try:
        path = resolve_file(folder, f"{name}.xml", "name")
    except BadEntryError as error:
        raise UnreadableSourceError(f"{place}: {error}") from None
    words = name.split()
    if not path.is_file() and len(words) == 2 and words[1] in CLASS_LIST_VALUES:
        return folder / f"{words[0]}.xml"
    return path


class _TreeBuilder(ElementTree.TreeBuilder):
    """Builds a tree of elements and refuses a DOCTYPE.

    The entities of a DOCTYPE can name other files or expand without limit.
    """

    def doctype(self, *_: object) -> None:
        raise BadEntryError("holds a DOCTYPE, which is not read")


def parse_xml(path: Path) -> ElementTree.Element:
    """Return the root element of a file.

    Raises:
        BadEntryError: the file is missing, is not XML, or has another content.
    """
    parser = ElementTree.XMLParser(target=_TreeBuilder())
    try:
        root: ElementTree.Element = ElementTree.fromstring(path.read_bytes(), parser)
    except OSError as error:
        raise BadEntryError(f"cannot be read: {error.strerror}") from None
    except BadEntryError as error:
        raise error from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise BadEntryError(f"not XML: {error}") from None
    if root.tag == "annotations":
        raise BadEntryError(
            "CVAT's own XML is not read; export it as COCO 1.0, YOLO 1.1 or Pascal VOC"
        )
    if root.tag != "annotation":
        raise BadEntryError(f"not Pascal VOC: its root is <{root.tag}>, not <annotation>")
    return root


@dataclass(frozen=True)
class _Object:
    """An object of an XML file.

    Attributes:
        box: xyxy in px.
        flags: its FLAGS that are set and not 0.
        iscrowd: whether it is marked as difficult in an export of synthgen.
    """

    place: str
    name: str
    box: list[float]
    flags: dict[str, str]
    iscrowd: bool


def _read_object(
    item: ElementTree.Element, place: str, has_pixel_corners: bool, writer: str
) -> _Object:
    """Return an object of an XML file.

    Raises:
        ValueError: its box or its name is missing or not valid.
    """
    box = _read_box(item, has_pixel_corners)
    name = (item.findtext("name") or "").strip()
    if not name:
        raise ValueError("name: missing")
    flags: dict[str, str] = {}
    for flag in FLAGS:
        text = item.findtext(flag)
        if text and text.strip() != "0":
            flags[flag] = text.strip()
    iscrowd = writer == OUR_NAME and flags.get("difficult") == "1"
    return _Object(place, name, box, flags, iscrowd)


def _read_size(root: ElementTree.Element, image: Path) -> tuple[int, int]:
    """Return width and height in px, from the file or, if they are missing or 0, from the image."""
    width = _read_number(root, "size/width", "0")
    height = _read_number(root, "size/height", "0")
    if width == 0 or height == 0:
        return read_upright_size(image)
    return parse_side(width, "size/width"), parse_side(height, "size/height")


def _read_number(item: ElementTree.Element, key: str, default: str = "") -> float:
    """Return the number in an element.

    Raises:
        BadEntryError: it is not a number.
    """
    text = (item.findtext(key) or default).strip()
    try:
        return float(text)
    except ValueError:
        raise BadEntryError(f"{key}: {text!r} is not a number") from None


def _read_box(item: ElementTree.Element, has_pixel_corners: bool) -> list[float]:
    """Return the box of an object, xyxy in px.

    Raises:
        ValueError: the box is missing, or its corners are not numbers or in the wrong order.
    """
    bounds = item.find("bndbox")
    if bounds is None:
        raise ValueError("has no <bndbox>")
    x0, y0, x1, y1 = parse_xyxy([_read_number(bounds, tag) for tag in CORNER_TAGS])
    if x0 > x1 or y0 > y1:
        raise ValueError(
            f"{[x0, y0, x1, y1]}: xmin must be no greater than xmax, and ymin than ymax"
        )
    return list(voc_to_xyxy(x0, y0, x1, y1)) if has_pixel_corners else [x0, y0, x1, y1]
