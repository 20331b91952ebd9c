"""A source of annotated images: finding its format and reading its entries."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from synthgen.formats.base import Format, list_readable_formats
from synthgen.formats.entries import Entry, Problem, UnreadableSourceError


@dataclass(frozen=True)
class Columns:
    """The names of the columns in JSON lines and tables."""

    caption: str = "caption"
    image: str = "file_name"
    annotation: str = "custom_annotation"


@dataclass(frozen=True)
class Source:
    """Annotated images of one format, which can be read any number of times.

    Attributes:
        form: the name of the format.
        path: the file that describes the dataset; for YOLO, Pascal VOC and labelme it may be the
            folder.
        images: the folder that image names are relative to, or None for the usual places. YOLO
            does not use it.
        split: the split of a YOLO or Pascal VOC dataset: train, val, test or all.
        columns: the columns of JSON lines (`synthgen.formats.jsonl.reader.read`).
        ids: the category ids of JSON lines (`synthgen.formats.jsonl.reader.read`).
        options: values of the options that only this format has
            (`synthgen.formats.base.Option`), by name.
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
        """The description of the format."""
        return list_readable_formats()[self.form]

    @cached_property
    def dataset(self) -> "AnnotatedImages":
        """The opened source; it is opened once.

        Raises:
            UnreadableSourceError: the source does not have this format.
        """
        return load_reader(self.form).open_source(self)

    def entries(self, whole: bool = False) -> Iterator[Entry | Problem]:
        """Yield all entries, in order.

        Args:
            whole: also read crowds and masks.

        Raises:
            UnreadableSourceError: the source does not have this format.
        """
        return self.dataset.entries(whole)


class AnnotatedImages(ABC):
    """An opened source: its entries and the other facts that it states."""

    @abstractmethod
    def entries(self, whole: bool = False) -> Iterator[Entry | Problem]:
        """Yield all entries, in order.

        Args:
            whole: also read crowds and masks.

        Raises:
            UnreadableSourceError: the source does not have this format.
        """

    @property
    def remarks(self) -> tuple[str, ...]:
        """Messages for the user about what was read and from where."""
        return ()

    @property
    def own_ids(self) -> dict[str, int]:
        """The category ids that the source states, by category."""
        return {}

    @property
    def head(self) -> dict[str, Any] | None:
        """What a dataset keeps to export the source again (`synthgen.formats.coco.reader`)."""
        return None

    @property
    def licence(self) -> str:
        """The licence of the images that the source states."""
        return "not stated"


class Reader(Protocol):
    """The functions of a module that reads a format."""

    def accepts(self, path: Path) -> bool:
        """Return whether a file may have this format, by its name and first bytes."""

    def find_sources(self, folder: Path, is_format_given: bool) -> Iterator[Path]:
        """Yield each possible `Source.path` in a folder.

        Args:
            is_format_given: whether the user named this format, so that the content of files is
                not checked.
        """

    def open_source(self, source: Source) -> AnnotatedImages:
        """Find the files of a source.

        Raises:
            UnreadableSourceError: the source does not have this format.
        """


def load_reader(format_name: str) -> Reader:
    """Import the module that reads a format."""
    module: Any = import_module(str(list_readable_formats()[format_name].reader))
    return module


def locate_source(path: Path, format_name: str | None = None) -> tuple[str, Path]:
    """Return the format of a source and the file or folder for `Source.path`.

    Args:
        path: that file, or the folder that contains it.
        format_name: the name of a format, or None to guess it.

    Raises:
        UnreadableSourceError: there is no source of this format, or more than one; the message
            lists them.
    """
    if path.is_file():
        return format_name or _guess_format(path), path
    if not path.is_dir():
        raise UnreadableSourceError(f"{path}: no such file or folder")
    sources: list[tuple[str, Path]] = []
    for name in list_readable_formats() if format_name is None else (format_name,):
        for inner in load_reader(name).find_sources(path, format_name is not None):
            sources.append((name, inner))
    if len(sources) == 1:
        return sources[0]
    if not sources and format_name is not None:
        content = list_readable_formats()[format_name].content
        raise UnreadableSourceError(
            f"{path}: no {format_name} here; what is read: {content}; name the file itself"
        )
    if not sources:
        raise UnreadableSourceError(
            f"{path}: nothing here that can be read; name the file itself, "
            f"or give a folder of: {_list_contents()}"
        )
    choices = ", ".join(f"{inner} ({name})" for name, inner in sources)
    raise UnreadableSourceError(
        f"{path}: more than one source: {choices}; name the file itself, or --format"
    )


def _guess_format(path: Path) -> str:
    """Return the format of a file.

    Formats are tried in reverse order, because COCO accepts every JSON file, and labelme only its
    own.
    """
    for format_name in reversed(list_readable_formats()):
        if load_reader(format_name).accepts(path):
            return format_name
    choices = " | ".join(list_readable_formats())
    raise UnreadableSourceError(
        f"{path}: which format is it? --format {choices}: {_list_contents()}"
    )


def _list_contents() -> str:
    return "; ".join(format_.content for format_ in list_readable_formats().values())
