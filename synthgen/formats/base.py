"""The description of a format, and the list of all formats. It imports only the standard library.

Each folder of this package is a format: its `__init__.py` defines FORMAT, which names the modules
that read and write it.
"""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

import synthgen.formats

ALL = "all"  # the name that selects every split


@dataclass(frozen=True)
class Option:
    """An option of `synthgen import` that belongs to one format.

    Attributes:
        name: the name with underscores: voc_corners is --voc-corners on the command line.
        choices: the allowed values.
        help: the help text.
    """

    name: str
    choices: tuple[str, ...]
    help: str


@dataclass(frozen=True)
class Format:
    """A format of annotated images.

    Attributes:
        name: the name on the command line.
        order: the position in lists of formats; formats of equal order are sorted by name.
        reader: the module that reads it (`synthgen.formats.source.Reader`), or None if it cannot
            be read.
        writer: the module that writes it (`synthgen.formats.export.Writer`), or None if it cannot
            be written.
        content: the files that are read, for messages.
        fields: the fields of `synthgen.formats.source.Source` that apply to this format, among
            images, split and columns.
        options: the options of `synthgen import` that only this format has.
        has_ids: whether the format gives categories numbers; if not, an import numbers them.
    """

    name: str
    order: int = 100
    reader: str | None = None
    writer: str | None = None
    content: str = ""
    fields: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    has_ids: bool = True

    def takes(self, name: str) -> bool:
        """Return whether a field of a source or an option applies to this format."""
        return name in self.fields or any(option.name == name for option in self.options)


@cache
def find_formats() -> dict[str, Format]:
    """Return all formats by name, in order."""
    formats: list[Format] = []
    for module in iter_modules(synthgen.formats.__path__):
        if module.ispkg:
            formats.append(import_module(f"synthgen.formats.{module.name}").FORMAT)
    formats.sort(key=lambda format_: (format_.order, format_.name))
    return {format_.name: format_ for format_ in formats}


def list_readable_formats() -> dict[str, Format]:
    """Return the formats that `synthgen import` reads, by name."""
    return {name: format_ for name, format_ in find_formats().items() if format_.reader}


def list_writable_formats() -> dict[str, Format]:
    """Return the formats that `synthgen export` writes, by name."""
    return {name: format_ for name, format_ in find_formats().items() if format_.writer}


def import_options() -> list[Option]:
    """Return the options of `synthgen import` that belong to single formats."""
    options: list[Option] = []
    for format_ in list_readable_formats().values():
        options += format_.options
    return options
