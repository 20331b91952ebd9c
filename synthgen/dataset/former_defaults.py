"""Former defaults: what a dataset that an older version began is finished with.

A dataset keeps its fingerprint, all keys of its job with their values. Whoever adds a key to a
spec, or changes a default, adds a line to FORMER; then a dataset that was begun before goes on with
the value that it was begun with.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

FORMER: dict[str, tuple[Any, ...]] = {
    "output.quality": (92,),
    "output.subsampling": ("4:2:0",),
    "pipeline.scale": (1.0,),
    "pipeline.seed_tiles_noise": ("cut",),
    "pipeline.stages_rounding": ("up",),
    "pipeline.steps": (9,),  # of the recipe mixture-tiny
}
"""Dotted key to its former defaults as JSON has them, oldest first.

In a key `*` stands for any name, as in `layout.objects.*.label`.

The first one is what was in force before the key existed. Of a key whose default has changed, all
former ones are there.
"""

HASH = "_sha256"  # how keys end that hold a hash of files


def former_defaults(key: str) -> tuple[Any, ...]:
    """The former defaults of a key, oldest first; none if it has always had the one that it has."""
    for pattern, values in FORMER.items():
        if fnmatchcase(key, pattern):
            return values
    return ()


def complete(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """An older fingerprint with the keys that it did not know, where it is known what was in force.

    A hash of files that was not taken then is accepted as it is now: there is nothing to compare it
    with.
    """
    known = dict(old)
    for key in unknown_hashes(old, new):
        known[key] = new[key]
    for key in new.keys() - known.keys():
        values = former_defaults(key)
        if values:
            known[key] = values[0]
    return known


def unknown_hashes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Keys of hashes of files that an older fingerprint lacks."""
    return sorted(key for key in new.keys() - old.keys() if key.endswith(HASH))


def begun_with(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    given: frozenset[str],
) -> dict[str, Any]:
    """The values that a dataset was begun with where its job would now have another default.

    Args:
        old: the dataset's fingerprint.
        new: that of the job as it is read now.
        given: keys that the job's owner has set, which keep the value that was set.

    Returns:
        Dotted key to value.
    """
    values = {}
    for key, value in complete(old, new).items():
        if key in new and new[key] != value and key not in given and value in former_defaults(key):
            values[key] = value
    return values
