"""The reader of YOLO: one text file of labels for each image."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from synthgen.formats.base import ALL
from synthgen.formats.entries import (
    BadEntryError,
    Entry,
    Problem,
    UnreadableSourceError,
    make_missing_labels_problem,
    read_lines,
    stack_boxes,
)
from synthgen.formats.images import read_upright_size
from synthgen.formats.masks import add_masks
from synthgen.formats.source import AnnotatedImages, Source
from synthgen.formats.yolo.folders import (
    DESCRIPTION_SUFFIXES,
    find_descriptions,
    find_folders,
    find_labels_file,
    find_orphaned_labels,
    list_images,
)
from synthgen.formats.yolo.labels import POSE, Label, LabelParser, infer_task


@dataclass(frozen=True)
class Dataset(AnnotatedImages):
    """A YOLO dataset whose images are listed and whose lines have one meaning.

    Attributes:
        images: the images, each once, in order.
        parser: makes labels of lines.
        orphaned_labels: the files of labels without an image.
        notes: messages for the user about what was read and from where.
    """

    images: list[Path]
    parser: LabelParser
    orphaned_labels: list[Path]
    notes: tuple[str, ...]

    @property
    def remarks(self) -> tuple[str, ...]:
        return self.notes

    def entries(self, whole: bool = False) -> Iterator[Entry | Problem]:
        """Yield the annotated images; an image without a file of labels has no boxes.

        Args:
            whole: also read polygons, as run-length encodings.
        """
        for path in self.orphaned_labels:
            yield Problem(str(path), "there is no image of this name")
        owners = Counter(map(find_labels_file, self.images))
        for image in self.images:
            labels_file = find_labels_file(image)
            has_labels = os.path.isfile(labels_file)
            if owners[labels_file] > 1 and has_labels:
                why = f"shares {labels_file} with another image; which one is it of?"
                yield Problem(str(image), why, str(image))
            elif self.orphaned_labels and not has_labels:
                yield make_missing_labels_problem(str(image), len(self.orphaned_labels))
            else:
                yield from self._read_entry(image, labels_file if has_labels else None, whole)

    def _read_entry(
        self, image: Path, labels_file: Path | None, whole: bool
    ) -> Iterator[Entry | Problem]:
        """Yield the entry of an image, or its problems."""
        try:
            width, height = read_upright_size(image)
        except BadEntryError as error:
            yield Problem(str(image), str(error).removeprefix(f"{image}: "), str(image))
            return
        labels: list[Label] = []
        problems: list[Problem] = []
        lines = read_lines(labels_file) if labels_file else iter(())
        try:
            for place, line in lines:
                try:
                    labels.append(self.parser.parse(line.split(), (width, height), place))
                except ValueError as error:
                    problems.append(Problem(place, str(error), str(image)))
        except UnreadableSourceError as error:
            why = str(error).removeprefix(f"{labels_file}: ")
            problems.append(Problem(str(labels_file), why, str(image)))
        if problems:
            yield from problems
            return
        entry = Entry(
            str(image),
            width,
            height,
            stack_boxes([label.box for label in labels]),
            tuple(label.name for label in labels),
            image_path=image,
            places=tuple(label.place for label in labels),
            left_out=tuple(label.left_out for label in labels if label.left_out),
        )
        if whole:
            polygons = [[label.polygon] if label.polygon else [] for label in labels]
            entry = add_masks(entry, polygons)
        yield entry


def accepts(path: Path) -> bool:
    """Return whether a file may describe a YOLO dataset, by its name."""
    return path.suffix.lower() in DESCRIPTION_SUFFIXES


def find_sources(folder: Path, is_format_given: bool) -> Iterator[Path]:
    """Yield the files that describe a YOLO dataset, or else the folder if it is one without."""
    descriptions = find_descriptions(folder)
    if descriptions:
        yield from descriptions
        return
    has_folders = (folder / "images").is_dir() and (folder / "labels").is_dir()
    if has_folders or (folder / "classes.txt").is_file():
        yield folder


def open_source(source: Source) -> Dataset:
    """List the images of a source; raises as `open_dataset`."""
    return open_dataset(source.path, source.split, source.options.get("task"))


def open_dataset(source: Path, split: str | None = None, task: str | None = None) -> Dataset:
    """List the images of a dataset and find the meaning of its lines.

    Args:
        source: data.yaml or obj.data, or the folder that contains it, or a folder with images/,
            labels/ and classes.txt.
        split: train, val, test or all.
        task: one of TASKS; None means pose if data.yaml has kpt_shape, and otherwise the only
            meaning that all lines can have.

    Raises:
        UnreadableSourceError: it is not such a dataset, or its lines are ambiguous.
    """
    folders = find_folders(source)
    places = folders.select_split(split)
    images, remarks = list_images(places, folders.root)
    labels_files: list[Path] = []
    for image in images:
        path = find_labels_file(image)
        if os.path.isfile(path):
            labels_files.append(path)
    if not labels_files:
        raise UnreadableSourceError(f"{folders.root}: no labels/*.txt for its images")
    is_stated = task is not None
    if task is None:
        task = POSE if folders.keypoint_numbers else infer_task(labels_files, folders.root)
    parser = LabelParser(folders.names, task, is_stated, folders.keypoint_numbers)
    lists = {place for place in places if place.is_file()}
    orphaned_labels = list(find_orphaned_labels(images, lists))
    notes = [*folders.remarks, *remarks]
    if split in (None, ALL):
        for why in folders.absent.values():
            notes.append(f"{why}; left out")
    return Dataset(images, parser, orphaned_labels, tuple(notes))
