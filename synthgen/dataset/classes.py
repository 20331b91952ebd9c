"""Class numbers without gaps, as detectors count them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from synthgen.errors import InputError


@dataclass(frozen=True)
class Labels:
    """The classes of a dataset.

    Attributes:
        names: of each class; its place here is its number, from 0.
        renamed: categories of the dataset to the classes that they are called here.
        left_out: a category that is no class is left out; else it is an error.
    """

    names: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    left_out: bool = False

    def name(self, category: str) -> str:
        return self.renamed.get(category, category)

    def number(self, category: str) -> int | None:
        """The class of a category, from 0; None if it is left out.

        Raises:
            InputError: it is no class.
        """
        name = self.name(category)
        if name in self.names:
            return self.names.index(name)
        if self.left_out:
            return None
        raise InputError(
            f"category {category!r} is none of the dataset's; there are {', '.join(self.names)}"
        )


def labels_of(
    ids: Mapping[str, int],
    renamed: Mapping[str, str] | None = None,
    names: Sequence[str] | None = None,
) -> Labels:
    """The classes of a dataset, ascending by their ids there.

    Args:
        ids: category name to id.
        renamed: categories to class names; several may become one.
        names: these classes in this order, and nothing else.

    Raises:
        ValueError: `renamed` has a category that the dataset lacks; `names` has a name twice, or none that the dataset has.
    """
    renamed = dict(renamed or {})
    unknown = next((name for name in renamed if name not in ids), None)
    if unknown is not None:
        raise ValueError(f"{unknown!r} is no category here; there are {', '.join(ids)}")
    if (
        names is not None
        and ids
        and not {renamed.get(category, category) for category in ids} & set(names)
    ):
        raise ValueError(
            f"{', '.join(map(repr, names)) or 'none'}: nothing here is called so; there are {', '.join(ids)}"
        )
    if names is not None and len(set(names)) != len(names):
        raise ValueError(
            f"{next(n for n in names if list(names).count(n) > 1)!r} stands twice among the labels"
        )
    if names is not None:
        return Labels(tuple(names), renamed, left_out=True)
    ordered = sorted(ids, key=lambda name: (ids[name], name))
    return Labels(tuple(dict.fromkeys(renamed.get(name, name) for name in ordered)), renamed)
