"""A source of annotated images: which format it has, and its entries."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from synthgen.formats.base import Format, readable_formats
from synthgen.formats.entries import Entry, Problem, UnreadableSourceError


@dataclass(frozen=True)
class Columns:
    """What the columns of a row of JSON lines are called."""

    caption: str = "caption"
    image: str = "file_name"
    annotation: str = "custom_annotation"


@dataclass(frozen=True)
class Source:
    """Annotated images of one format, that can be gone through again and again.

    Attributes:
        form: the name of the format.
        path: the file that says what is where; of YOLO, Pascal VOC and labelme it may be the folder.
        images: the folder that file names start from; null: where they usually lie. YOLO's lie where its files say.
        split: of YOLO and Pascal VOC: train, val, test or all.
        columns, ids: of JSON lines (`synthgen.formats.jsonl.reader.read`).
        options: values of the format's own options (`synthgen.formats.base.Option`), by name.
    """

    form: str
    path: Path
    images: Path | None = None
    split: str | None = None
    columns: Columns = Columns()
    ids: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def format(self) -> Format:
        """What the format says of itself."""
        return readable_formats()[self.form]

    @cached_property
    def dataset(self) -> "AnnotatedImages":
        """What was found of the source, once.

        Raises:
            UnreadableSourceError: it is not of this format.
        """
        return load_reader(self.form).open_source(self)

    def entries(self, whole: bool = False) -> Iterator[Entry | Problem]:
        """Yield all entries, in order.

        Args:
            whole: with crowds and masks.

        Raises:
            UnreadableSourceError: it is not of this format.
        """
        return self.dataset.entries(whole)


class AnnotatedImages(ABC):
    """What a reader gives of a source: its entries, and what else it says."""

    @abstractmethod
    def entries(self, whole: bool = False) -> Iterator[Entry | Problem]:
        """Yield all entries, in order.

        Args:
            whole: with crowds and masks.

        Raises:
            UnreadableSourceError: it is not of this format.
        """

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know of what was read, and from where."""
        return ()

    @property
    def own_ids(self) -> dict[str, int]:
        """The category ids that the source itself has."""
        return {}

    @property
    def head(self) -> dict[str, Any] | None:
        """What outlives the source to write it again (`synthgen.formats.coco.reader.head`)."""
        return None

    @property
    def licence(self) -> str:
        """What the source says of the images' licence."""
        return "not stated"


class Reader(Protocol):
    """What the module that reads a format has."""

    def accepts(self, path: Path) -> bool:
        """Return whether a file may be of this format, by its name and its first bytes."""

    def find_sources(self, folder: Path, asked: bool) -> Iterator[Path]:
        """Yield what `Source.path` may be in a folder.

        Args:
            asked: the user says that it is of this format, so that files need not be looked into.
        """

    def open_source(self, source: Source) -> AnnotatedImages:
        """Find the files of a source.

        Raises:
            UnreadableSourceError: it is not of this format.
        """


def load_reader(form: str) -> Reader:
    """Import the module that reads a format."""
    module: Any = import_module(str(readable_formats()[form].reader))
    return module


def locate(path: Path, form: str | None = None) -> tuple[str, Path]:
    """Return the format of a source, and the file that says what is where (of YOLO the folder or data.yaml).

    Args:
        path: that file, or the folder that holds it.
        form: the name of a format; null: guessed.

    Raises:
        UnreadableSourceError: there is nothing of that format, or more than one; the message says what.
    """
    if path.is_file():
        return form or _guess_format(path), path
    if not path.is_dir():
        raise UnreadableSourceError(f"{path}: no such file or folder")
    found: list[tuple[str, Path]] = []
    for name in readable_formats() if form is None else (form,):
        for inner in load_reader(name).find_sources(path, form is not None):
            found.append((name, inner))
    if len(found) == 1:
        return found[0]
    if not found and form is not None:
        content = readable_formats()[form].content
        raise UnreadableSourceError(
            f"{path}: no {form} here; what is read: {content}; name the file itself"
        )
    if not found:
        raise UnreadableSourceError(
            f"{path}: nothing here that is read; name the file itself, or give a folder of: {_all_contents()}"
        )
    choices = ", ".join(f"{p} ({f})" for f, p in found)
    raise UnreadableSourceError(
        f"{path}: more than one source: {choices}; name the file itself, or --format"
    )


def _guess_format(path: Path) -> str:
    """Return the format of a file.

    The last format is asked first: labelme knows its JSON files from others, which COCO takes for its own.
    """
    for form in reversed(readable_formats()):
        if load_reader(form).accepts(path):
            return form
    choices = " | ".join(readable_formats())
    raise UnreadableSourceError(f"{path}: which form has it? --format {choices}: {_all_contents()}")


def _all_contents() -> str:
    return "; ".join(one.content for one in readable_formats().values())
