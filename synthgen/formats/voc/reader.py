"""Pascal VOC: an XML file an image, as the development kit, labelImg, CVAT and Roboflow write it.

The development kit counts pixels from 1, and both ends belong to the box: x from xmin - 1 to xmax. So do exports of synthgen.
Both say who wrote them (<source><annotation>). Other tools write where the edges are, in px from the upper left corner: x from
xmin to xmax. The two differ by a pixel on the left and above; `--voc-corners` says it for a source that names the wrong writer.
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
    as_boxes,
    below,
    corners,
    positive,
    read_lines,
)
from synthgen.formats.images import APPLE_DOUBLE, image_files, upright_size
from synthgen.formats.source import AnnotatedImages, Source
from synthgen.formats.voc import CORNERS
from synthgen.geometry import voc_to_xyxy

PIXELS, EDGES = CORNERS
ENDS = ("xmin", "ymin", "xmax", "ymax")
OURS = "synthgen"  # what an export of ours says in <source><annotation>
FLAGS = (
    "pose",
    "truncated",
    "occluded",
    "difficult",
)  # of an object; they are kept as they stand there
SUBSETS = {
    "train": "train",
    "valid": "val",
    "val": "val",
    "test": "test",
}  # folders that Roboflow's exports have
IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs")


@dataclass(frozen=True)
class Dataset(AnnotatedImages):
    """Files of annotations, and the folders that their images may lie in.

    Attributes:
        root: the source.
        files: in order.
        folders: of images, for each folder of files.
        corners: PIXELS or EDGES; null: each file says it.
        subset: whether files of the same folder may have been left out because of a split.
    """

    root: Path
    files: list[Path]
    folders: dict[Path, list[Path]]
    corners: str | None
    subset: bool

    def entries(self, whole: bool = False) -> Iterator[Entry | Problem]:
        """The annotated images.

        Args:
            whole: with what is known of each box beside its place.
        """
        images = self._images
        owners = Counter(found for found in images.values() if isinstance(found, Path))
        for path in self.files:
            image = images[path]
            if isinstance(image, Problem):
                yield image
            elif owners[image] > 1:
                yield Problem(
                    str(path), f"its picture {image} is that of another file too", str(path)
                )
            elif image in self._doubtful:
                yield Problem(
                    str(path), f"its picture {image} may be that of another file", str(path)
                )
            else:
                yield from self._entry(path, image, whole)

    @property
    def remarks(self) -> tuple[str, ...]:
        """How many images have no file of annotations: they are left out, as nobody said that nothing is on them."""
        used = {image for image in self._images.values() if isinstance(image, Path)}
        rest = (
            0
            if self.subset
            else len({path for at in self._indices.values() for path in at.images} - used)
        )
        return (
            (f"{self.root}: {rest} pictures without a file of annotations; left out",)
            if rest
            else ()
        )

    @cached_property
    def _indices(self) -> dict[Path, "_Index"]:
        return {folder: _Index(images) for folder, images in self.folders.items()}

    @cached_property
    def _doubtful(self) -> set[Path]:
        """The images that a file may mean which may mean another one too: their labels may not be all."""
        doubtful: set[Path] = set()
        for path in self.files:
            with suppress(BadEntryError):
                meant = self._candidates(path, parsed(path).findtext("filename"))
                doubtful.update(meant if len(meant) > 1 else ())
        return doubtful

    @cached_property
    def _images(self) -> dict[Path, Path | Problem]:
        images: dict[Path, Path | Problem] = {}
        for path in self.files:
            try:
                images[path] = self._image(path, parsed(path).findtext("filename"))
            except BadEntryError as error:
                images[path] = Problem(str(path), str(error), str(path))
        return images

    def _candidates(self, path: Path, filename: str | None) -> list[Path]:
        """Return the images that a file may be of: that of its <filename>, that of its own name, or both."""
        name, index = _last_part(filename), self._indices[path.parent]
        named = index.by_name.get(name) or index.by_stem.get(PurePosixPath(name).stem, [])
        own = index.by_name.get(path.stem) or index.by_stem.get(path.stem, [])
        if named and own and not set(named) & set(own):
            return [*named, *own]
        return named or own

    def _image(self, path: Path, filename: str | None) -> Path:
        """The image of a file: that of its <filename>, else that of its own name.

        Raises:
            BadEntryError: there is none, or more than one that may be meant.
        """
        name, found = _last_part(filename), self._candidates(path, filename)
        if not found:
            looked = ", ".join(map(str, self._indices[path.parent].folders))
            raise BadEntryError(
                f"filename: {name!r}: no such picture, nor one called {path.stem}, in {looked}; give --images"
            )
        if len(found) > 1:
            raise BadEntryError(
                f"filename: {name!r} may be {' or '.join(map(str, found))}; keep one of them"
            )
        return found[0]

    def _entry(self, path: Path, image: Path, whole: bool) -> Iterator[Entry | Problem]:
        problems: list[Problem] = []
        size, rows, names, places, flags = (0, 0), [], [], [], []
        ours = False
        try:
            root = parsed(path)
            size = _size(root, image)
            writer = (root.findtext("source/annotation") or "").strip()
            ours = writer == OURS
            pixels = self.corners == PIXELS or (
                self.corners is None and (ours or writer.upper().startswith("PASCAL"))
            )
            for i, item in enumerate(root.findall("object")):
                place = f"{path}: object[{i}]"
                try:
                    rows.append(_box(item, pixels))
                    names.append(_name(item))
                    places.append(place)
                    flags.append(
                        {flag: text.strip() for flag in FLAGS if (text := item.findtext(flag))}
                    )
                except ValueError as error:
                    problems.append(Problem(place, str(error), str(path)))
        except BadEntryError as error:
            problems += error.problems(str(path))
        yield from problems
        if problems:
            return
        entry = Entry(
            str(path), *size, as_boxes(rows), tuple(names), picture=image, places=tuple(places)
        )
        crowds = [ours and of.get("difficult") == "1" for of in flags]
        if whole:
            more = tuple({"iscrowd": int(crowd)} for crowd in crowds)
            source = (
                {"file_name": image.name},
                *({k: v for k, v in of.items() if v != "0"} for of in flags),
            )
            yield replace(entry, more=more, source=source)
        else:
            yield entry.select([i for i, crowd in enumerate(crowds) if not crowd])


def _last_part(filename: str | None) -> str:
    """Return the name of a file without its folders, which Windows tools write with backslashes."""
    return PurePosixPath((filename or "").strip().replace("\\", "/")).name


class _Index:
    """The images of some folders, by name and by name without suffix."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders, self.images = (
            folders,
            [image for folder in folders for image in image_files(folder)],
        )
        self.by_name: dict[str, list[Path]] = {}
        self.by_stem: dict[str, list[Path]] = {}
        for image in self.images:
            self.by_name.setdefault(image.name, []).append(image)
            self.by_stem.setdefault(image.stem, []).append(image)


def accepts(path: Path) -> bool:
    """Return whether a file may be of this format, by its name."""
    return path.suffix.lower() == ".xml"


def find_sources(folder: Path, asked: bool) -> Iterator[Path]:
    """Yield the folder, if it holds a dataset of this format."""
    if is_here(folder):
        yield folder


def open_source(source: Source) -> Dataset:
    """Find the files of a source; raises as `open_dataset`."""
    return open_dataset(source.path, source.images, source.split, source.options.get("voc_corners"))


def open_dataset(
    source: Path, images: Path | None = None, split: str | None = None, corners: str | None = None
) -> Dataset:
    """Find the files of a dataset.

    Args:
        source: the folder that holds Annotations/, or XML files; or one such file.
        images: the folder of the images; null: where they usually lie.
        split: a list of ImageSets/Main/, or a folder (train, val, test); all: all of them.
        corners: PIXELS or EDGES; null: each file says it.

    Raises:
        UnreadableSourceError: there are no files, or there is no such split.
    """
    if source.is_file():
        return Dataset(source, [source], _folders(source.parent, images), corners, True)
    folder = annotations_folder(source)
    if folder is None:
        return _of_subsets(source, images, split, corners)
    files, above = _xml_files(folder), folder.parent if folder != source else source
    lists = {path.stem: path for path in sorted((above / "ImageSets" / "Main").glob("*.txt"))}
    if split in (None, ALL):
        return Dataset(source, files, _folders(folder, images), corners, False)
    if split not in lists:
        there = ", ".join(lists) or f"no lists in {above / 'ImageSets' / 'Main'}"
        raise UnreadableSourceError(f"{source}: has no split {split!r}; it has {there}")
    chosen = [_listed(folder, place, line) for place, line in read_lines(lists[split])]
    return Dataset(source, list(dict.fromkeys(chosen)), _folders(folder, images), corners, True)


def _of_subsets(
    source: Path, images: Path | None, split: str | None, corners: str | None
) -> Dataset:
    """A dataset whose splits are folders, each with its images and XML files."""
    subsets = {
        SUBSETS[path.name]: path
        for path in sorted(source.glob("*"))
        if path.name in SUBSETS and _xml_files(path)
    }
    if not subsets:
        raise UnreadableSourceError(f"{source}: no Annotations/*.xml and no *.xml")
    if split is None and len(subsets) > 1:
        raise UnreadableSourceError(
            f"{source}: has {', '.join(subsets)}; name one, or all: --split train"
        )
    if split not in (None, ALL, *subsets):
        raise UnreadableSourceError(
            f"{source}: has no split {split!r}; it has {', '.join(subsets)}"
        )
    chosen = [path for name, path in subsets.items() if split in (None, ALL, name)]
    files = [file for path in chosen for file in _xml_files(path)]
    return Dataset(source, files, {path: [images or path] for path in chosen}, corners, False)


def annotations_folder(source: Path) -> Path | None:
    """The folder of the XML files of a source: Annotations/, or the source itself; null: neither holds one."""
    inner = sorted(
        path for path in source.glob("*") if path.name.lower() == "annotations" and path.is_dir()
    )
    return next((folder for folder in (*inner, source) if _xml_files(folder)), None)


def is_here(folder: Path) -> bool:
    """Whether a folder holds a dataset of this form, by the names of its files."""
    inner = [folder / name for name in SUBSETS]
    return annotations_folder(folder) is not None or any(_xml_files(path) for path in inner)


def _xml_files(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.glob("*")
        if p.suffix.lower() == ".xml" and not p.name.startswith(APPLE_DOUBLE)
    )


def _folders(folder: Path, images: Path | None) -> dict[Path, list[Path]]:
    """Where the images of the XML files of a folder may lie."""
    if images is not None:
        return {folder: [images]}
    usual = sorted(
        path
        for path in folder.parent.glob("*")
        if path.name.lower() in IMAGE_FOLDERS and path.is_dir()
    )
    return {folder: [folder, *(path for path in usual if path != folder)]}


def _listed(folder: Path, place: str, line: str) -> Path:
    """The file that a line of ImageSets/Main names; lists of one class have a number behind the name."""
    name = line.strip()
    try:
        path = below(folder, f"{name}.xml", "name")
    except BadEntryError as error:
        raise UnreadableSourceError(f"{place}: {error}") from None
    words = name.split()
    if not path.is_file() and len(words) == 2 and words[1] in ("-1", "0", "1"):
        return folder / f"{words[0]}.xml"
    return path


class _Builder(ElementTree.TreeBuilder):
    """Builds a tree of elements; no DOCTYPE, as entities can name other files, or multiply to no end."""

    def doctype(self, *_: object) -> None:
        raise BadEntryError("holds a DOCTYPE, which is not read")


def parsed(path: Path) -> ElementTree.Element:
    """The root element of a file.

    Raises:
        BadEntryError: it is not there, is no XML, or holds something else.
    """
    try:
        root: ElementTree.Element = ElementTree.fromstring(
            path.read_bytes(), ElementTree.XMLParser(target=_Builder())
        )
    except OSError as error:
        raise BadEntryError(f"cannot be read: {error.strerror}") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise (
            error if isinstance(error, BadEntryError) else BadEntryError(f"not XML: {error}")
        ) from None
    if root.tag == "annotations":
        raise BadEntryError(
            "CVAT's own XML is not read; export it as COCO 1.0, YOLO 1.1 or Pascal VOC"
        )
    if root.tag != "annotation":
        raise BadEntryError(f"not Pascal VOC: its root is <{root.tag}>, not <annotation>")
    return root


def _size(root: ElementTree.Element, image: Path) -> tuple[int, int]:
    """Width and height in px: as the file says, else (none, or 0) those of the image."""
    width, height = (_number(root, f"size/{key}", "0") for key in ("width", "height"))
    if width == 0 or height == 0:
        return upright_size(image)
    return positive(width, "size/width"), positive(height, "size/height")


def _number(item: ElementTree.Element, key: str, default: str = "") -> float:
    text = (item.findtext(key) or default).strip()
    try:
        return float(text)
    except ValueError:
        raise BadEntryError(f"{key}: {text!r} is not a number") from None


def _box(item: ElementTree.Element, pixels: bool) -> list[float]:
    """The box (xyxy) of an object in px.

    Raises:
        ValueError: it has none, or its ends are no numbers or the wrong way round.
    """
    bounds = item.find("bndbox")
    if bounds is None:
        raise ValueError("has no <bndbox>")
    x0, y0, x1, y1 = corners([_number(bounds, key) for key in ENDS])
    if x0 > x1 or y0 > y1:
        raise ValueError(
            f"{[x0, y0, x1, y1]}: xmin must be no greater than xmax, and ymin than ymax"
        )
    return list(voc_to_xyxy(x0, y0, x1, y1)) if pixels else [x0, y0, x1, y1]


def _name(item: ElementTree.Element) -> str:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise ValueError("name: missing")
    return name
