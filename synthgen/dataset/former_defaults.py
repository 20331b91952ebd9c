"""Former defaults, with which a dataset that an older version began is continued.

A dataset keeps its fingerprint: all keys of its job with their values. Whoever adds a key to a
spec, or changes a default, adds a line to FORMER. A dataset that was begun before then continues
with the value that was in force.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

FORMER: dict[str, tuple[Any, ...]] = {
    "output.quality": (92,),
    "output.subsampling": ("4:2:0",),
    "pipeline.config": (None,),
    "pipeline.context": (0.13,),  # default of the recipe mixture-tiny
    "pipeline.memory": ("fast",),
    "pipeline.outset": ([0.0, 0.0, 0.0, 0.0],),
    "pipeline.revision": (None,),
    "pipeline.scale": (1.0,),
    "pipeline.seed_tiles_noise": ("cut",),
    "pipeline.stages_rounding": ("up",),
    "pipeline.statistics": ("object",),
    "pipeline.steps": (9, 12, 6),  # defaults of the recipes for synthgen-tiny
    "pipeline.window": (None, 512, 1024),  # of recipes that stated the size of the training
}
"""Dotted key to its former defaults as JSON values, oldest first.

In a key `*` stands for any name, as in `layout.objects.*.label`. The first value was in force
before the key existed. A key whose default has changed lists all its former defaults.
"""

HASH = "_sha256"  # suffix of keys that hold a hash of files


def former_defaults(key: str) -> tuple[Any, ...]:
    """Return the former defaults of a key, oldest first; none if its default never changed."""
    for pattern, values in FORMER.items():
        if fnmatchcase(key, pattern):
            return values
    return ()


def add_former_defaults(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return an older fingerprint with the keys it lacks, where a former default is known.

    A hash of files that the older version did not take gets its present value, because there is
    nothing to compare it with.
    """
    known = dict(old)
    if isinstance(known.get("pipeline.revision"), int):  # the former name of another key
        known["pipeline.method_revision"] = known.pop("pipeline.revision")
    for key in list_unknown_hashes(old, new):
        known[key] = new[key]
    for key in new.keys() - known.keys():
        values = former_defaults(key)
        if values:
            known[key] = values[0]
    return known


def list_unknown_hashes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the keys of hashes of files that an older fingerprint lacks."""
    return sorted(key for key in new.keys() - old.keys() if key.endswith(HASH))


def find_former_values(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    given: frozenset[str],
) -> dict[str, Any]:
    """Return the values that a dataset was started with, where its job now has another default.

    Args:
        old: the fingerprint of the dataset.
        new: the fingerprint of the job as it is read now.
        given: keys that the user has set; they keep the value that was set.

    Returns:
        Dotted key to value.
    """
    values = {}
    for key, value in add_former_defaults(old, new).items():
        if key not in new or key in given:
            continue
        if new[key] != value and value in former_defaults(key):
            values[key] = value
    return values
