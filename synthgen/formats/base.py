"""What a format says of itself, and which formats there are (nothing but the standard library is imported).

A folder of this package is a format: its `__init__.py` defines FORMAT, which names the modules that read and write it.
"""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

import synthgen.formats

ALL = "all"  # as a split: all of them


@dataclass(frozen=True)
class Option:
    """An option of `synthgen import` that one format alone has.

    Attributes:
        name: with underscores, so that voc_corners is --voc-corners.
        choices: the values that it may have.
        help: what it says, for the help text.
    """

    name: str
    choices: tuple[str, ...]
    help: str


@dataclass(frozen=True)
class Format:
    """A format of annotated images.

    Attributes:
        name: what the command line calls it.
        order: its place in lists of formats; those of the same order stand by name.
        reader: the module that reads it (`synthgen.formats.source.Reader`); null: it is not read.
        writer: the module that writes it (`synthgen.formats.export.Writer`); null: it is not written.
        content: what is read, for messages.
        fields: of `synthgen.formats.source.Source`, those that mean something here: images, split, columns.
        options: of `synthgen import`, its own.
        has_ids: whether categories have numbers; where they have names alone, an import numbers them.
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
        """Return whether a field of a source, or an option, means something in this format."""
        return name in self.fields or any(option.name == name for option in self.options)


@cache
def formats() -> dict[str, Format]:
    """Return every format by its name, in order."""
    found: list[Format] = []
    for module in iter_modules(synthgen.formats.__path__):
        if module.ispkg:
            found.append(import_module(f"synthgen.formats.{module.name}").FORMAT)
    found.sort(key=lambda one: (one.order, one.name))
    return {one.name: one for one in found}


def readable_formats() -> dict[str, Format]:
    """Return the formats that `synthgen import` reads."""
    return {name: one for name, one in formats().items() if one.reader}


def writable_formats() -> dict[str, Format]:
    """Return the formats that `synthgen export` writes."""
    return {name: one for name, one in formats().items() if one.writer}


def import_options() -> list[Option]:
    """Return the options of `synthgen import` that single formats have."""
    options: list[Option] = []
    for one in readable_formats().values():
        options += one.options
    return options
