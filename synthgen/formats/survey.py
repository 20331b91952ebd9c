"""What a source holds, and all that is wrong with it."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from synthgen.formats.entries import BadEntryError, Cleaned, Entry, Policy, Problem, cleaned
from synthgen.formats.images import image_bytes, taken_over
from synthgen.formats.source import Source

AT_ONCE = 64  # pictures that are decoded at a time, by as many threads as there are cores
Report = Callable[[str, int], None]


@dataclass
class Survey:
    """What a source holds.

    Attributes:
        count: entries that can be used.
        problems: why the others cannot.
        bad: places of the entries that are lost by them.
        names: categories of the source that are in use.
        kinds: how many pictures have which format.
        objects: categories of boxes that are no crowds.
        crowds: boxes that are.
        crowd_images: images that have crowds and no object.
        clipped: boxes that stuck out of their picture by a pixel at most.
        cut: boxes that stood out further, and were clipped.
        dropped: boxes of no area that were dropped.
        lost_masks: why masks were dropped whose boxes are kept, one each.
        left_out: how many of what was left out that no box can hold (`Entry.left_out`).
        anew: pictures that have to be encoded anew.
        content: sha256 of all that is imported.
    """

    count: int = 0
    problems: list[Problem] = field(default_factory=list)
    bad: set[str] = field(default_factory=set)
    names: dict[str, None] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    objects: set[str] = field(default_factory=set)
    crowds: int = 0
    crowd_images: int = 0
    clipped: int = 0
    cut: int = 0
    dropped: int = 0
    lost_masks: list[Problem] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    anew: int = 0
    content: str = ""

    @property
    def crowd_names(self) -> list[str]:
        """The categories that have crowds and no object, sorted."""
        return sorted(self.names.keys() - self.objects)


def surveyed(source: Source, policy: Policy, tell: Report) -> Survey:
    """Go through all entries: every picture is decoded, every box held against its picture."""
    survey, digest = Survey(), hashlib.sha256()
    for seen in seen_entries(source.entries(whole=True), policy):
        tell("checked", isinstance(seen.entry, Entry))
        if seen.problems:
            survey.problems += seen.problems
            survey.bad |= {problem.entry for problem in seen.problems if problem.entry}
        elif seen.cleaned is not None:
            entry = seen.cleaned.entry
            survey.count += 1
            survey.names |= dict.fromkeys(entry.names)
            objects = entry.objects()
            survey.objects |= set(objects)
            survey.crowds += len(entry.names) - len(objects)
            survey.crowd_images += bool(entry.names) and not objects
            survey.kinds[seen.kind] += 1
            survey.clipped += seen.cleaned.clipped
            survey.cut += seen.cleaned.cut
            survey.dropped += seen.cleaned.dropped
            survey.lost_masks += entry.lost_masks
            survey.left_out.update(entry.left_out)
            survey.anew += seen.anew
            digest.update(seen.content)
    survey.content = digest.hexdigest()
    return survey


@dataclass(frozen=True)
class _Seen:
    """An entry that was looked at."""

    entry: Entry | Problem
    problems: tuple[Problem, ...] = ()
    kind: str = ""
    cleaned: Cleaned | None = None
    anew: bool = False
    content: bytes = b""


def looked_at(policy: Policy, entry: Entry | Problem) -> _Seen:
    """Whether an entry can be used."""
    if isinstance(entry, Problem):
        return _Seen(entry, (entry,))
    problems = []
    try:
        result = cleaned(entry, policy)
    except BadEntryError as error:
        problems += error.problems(entry.place)
    try:
        original = image_bytes(entry)
        data, kind = taken_over(original, (entry.width, entry.height), True, entry.picture)
    except BadEntryError as error:
        problems += error.problems(entry.place)
    if problems:
        return _Seen(entry, tuple(problems))
    entry = result.entry
    labels = repr(
        (
            entry.width,
            entry.height,
            entry.boxes.tolist(),
            entry.names,
            entry.phrases,
            entry.caption,
            entry.more,
        )
    )
    labels += "" if entry.source is None else repr(entry.source)
    content = hashlib.sha256(original).digest() + hashlib.sha256(labels.encode()).digest()
    return _Seen(entry, (), kind, result, data is not original, content)


def seen_entries(entries: Iterable[Entry | Problem], policy: Policy) -> Iterator[_Seen]:
    """All of them looked at, in order; no more than AT_ONCE are at hand."""
    rest = iter(entries)
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(rest, AT_ONCE)):
            yield from pool.map(partial(looked_at, policy), batch)


def good_entries(source: Source, survey: Survey, policy: Policy) -> Iterator[Entry]:
    """The entries that can be used, in order."""
    for entry in source.entries(whole=True):
        if isinstance(entry, Entry) and entry.place not in survey.bad:
            yield cleaned(entry, policy).entry
