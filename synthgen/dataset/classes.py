"""Class numbers without gaps, as detectors count them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from synthgen.errors import InputError


@dataclass(frozen=True)
class Labels:
    """The classes of a dataset.

    Attributes:
        names: the names of the classes; the number of a class is its position, from 0.
        renamed: categories of the dataset to the names of their classes.
        left_out: leave out a category that has no class, instead of raising an error.
    """

    names: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    left_out: bool = False

    def name(self, category: str) -> str:
        """Return the name of a category's class."""
        return self.renamed.get(category, category)

    def get_number(self, category: str) -> int | None:
        """Return the number of a category's class, from 0, or None if it is left out.

        Raises:
            InputError: the category has no class.
        """
        name = self.name(category)
        if name in self.names:
            return self.names.index(name)
        if self.left_out:
            return None
        raise InputError(
            f"category {category!r} has no class in the dataset; "
            f"the classes are {', '.join(self.names)}"
        )


def build_labels(
    ids: Mapping[str, int],
    renamed: Mapping[str, str] | None = None,
    names: Sequence[str] | None = None,
) -> Labels:
    """Return the classes of a dataset, in ascending order of its category ids.

    Args:
        ids: category name to id.
        renamed: categories to class names; several categories may become one class.
        names: use these classes, in this order, and leave out all others.

    Raises:
        ValueError: `renamed` has a category that the dataset lacks; `names` has a duplicate, or
            no name that the dataset has.
    """
    renamed = dict(renamed or {})
    for category in renamed:
        if category not in ids:
            raise ValueError(
                f"{category!r} is not a category of the dataset; "
                f"its categories are {', '.join(ids)}"
            )
    ordered = sorted(ids, key=lambda name: (ids[name], name))
    classes = dict.fromkeys(renamed.get(category, category) for category in ordered)
    if names is None:
        return Labels(tuple(classes), renamed)
    if classes and not classes.keys() & set(names):
        wanted = ", ".join(map(repr, names)) or "none"
        raise ValueError(
            f"{wanted}: the dataset has no such category; its categories are {', '.join(ids)}"
        )
    for name in names:
        if list(names).count(name) > 1:
            raise ValueError(f"{name!r} is given more than once")
    return Labels(tuple(names), renamed, left_out=True)
