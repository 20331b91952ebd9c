"""The survey of a source before an import: its content and everything that is wrong with it."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from synthgen.formats.entries import (
    BadEntryError,
    CleanedEntry,
    Entry,
    Policy,
    Problem,
    apply_policy,
)
from synthgen.formats.images import convert_image, read_image
from synthgen.formats.source import Source

BATCH_SIZE = 64  # images that are decoded at a time, with as many threads as there are cores
Report = Callable[[str, int], None]


@dataclass
class Survey:
    """The content of a source.

    Attributes:
        count: the number of usable entries.
        problems: the reasons why the other entries are not usable.
        bad: the places of the entries that are not usable.
        names: the categories in use.
        kinds: the number of images of each image format.
        objects: the categories of boxes that are not crowds.
        crowds: the number of boxes that are crowds.
        crowd_images: the number of images that have crowds and no object.
        clipped: the number of boxes that reached outside their image by a pixel at most.
        cut: the number of boxes that reached further outside and were clipped.
        dropped: the number of boxes without area that were dropped.
        lost_masks: one Problem for each mask that was dropped while its box was kept.
        left_out: how often each kind of label that is not a box was left out (`Entry.left_out`).
        anew: the number of images that must be encoded again.
        content: the sha256 of everything that is imported.
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
    def crowd_categories(self) -> list[str]:
        """The categories that have crowds and no object, sorted."""
        return sorted(self.names.keys() - self.objects)

    def add_problems(self, problems: Iterable[Problem]) -> None:
        """Add the problems of an entry that is not usable."""
        for problem in problems:
            self.problems.append(problem)
            if problem.entry:
                self.bad.add(problem.entry)

    def add_entry(self, checked: "_CheckedEntry") -> None:
        """Count a usable entry."""
        entry = checked.cleaned_entry.entry
        objects = entry.list_object_names()
        self.count += 1
        self.names |= dict.fromkeys(entry.names)
        self.objects |= set(objects)
        self.crowds += len(entry.names) - len(objects)
        self.crowd_images += bool(entry.names) and not objects
        self.kinds[checked.kind] += 1
        self.clipped += checked.cleaned_entry.clipped
        self.cut += checked.cleaned_entry.cut
        self.dropped += checked.cleaned_entry.dropped
        self.lost_masks += entry.lost_masks
        self.left_out.update(entry.left_out)
        self.anew += checked.is_encoded_again


def survey_source(source: Source, policy: Policy, report: Report) -> Survey:
    """Read all entries, decode every image, and check every box against its image."""
    survey = Survey()
    digest = hashlib.sha256()
    for result in check_entries(source.entries(whole=True), policy):
        if isinstance(result, _CheckedEntry):
            report("checked", 1)
            survey.add_entry(result)
            digest.update(result.content)
        else:
            report("checked", int(result.is_entry))
            survey.add_problems(result.problems)
    survey.content = digest.hexdigest()
    return survey


@dataclass(frozen=True)
class _CheckedEntry:
    """A usable entry.

    Attributes:
        kind: the image format in the dataset.
        is_encoded_again: whether the image must be encoded again.
        content: a digest of the image and its labels.
    """

    cleaned_entry: CleanedEntry
    kind: str
    is_encoded_again: bool
    content: bytes


@dataclass(frozen=True)
class _BadEntry:
    """An entry that cannot be used.

    Attributes:
        is_entry: whether the reader yielded an entry, which was then found to be bad.
    """

    problems: tuple[Problem, ...]
    is_entry: bool


def check_entry(policy: Policy, entry: Entry | Problem) -> _CheckedEntry | _BadEntry:
    """Check the boxes and the image of an entry."""
    if isinstance(entry, Problem):
        return _BadEntry((entry,), is_entry=False)
    problems: list[Problem] = []
    try:
        result = apply_policy(entry, policy)
    except BadEntryError as error:
        problems += error.problems(entry.place)
    try:
        original = read_image(entry)
        data, kind = convert_image(original, (entry.width, entry.height), True, entry.image_path)
    except BadEntryError as error:
        problems += error.problems(entry.place)
    if problems:
        return _BadEntry(tuple(problems), is_entry=True)
    content = hashlib.sha256(original).digest() + _digest_labels(result.entry)
    return _CheckedEntry(result, kind, data is not original, content)


def _digest_labels(entry: Entry) -> bytes:
    """Return the sha256 of the labels of an entry. A resumed import compares it."""
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
    if entry.source is not None:
        labels += repr(entry.source)
    return hashlib.sha256(labels.encode()).digest()


def check_entries(
    entries: Iterable[Entry | Problem], policy: Policy
) -> Iterator[_CheckedEntry | _BadEntry]:
    """Check all entries, in order; at most BATCH_SIZE are in memory."""
    remaining = iter(entries)
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(remaining, BATCH_SIZE)):
            yield from pool.map(partial(check_entry, policy), batch)


def read_usable_entries(source: Source, survey: Survey, policy: Policy) -> Iterator[Entry]:
    """Yield the usable entries, in order."""
    for entry in source.entries(whole=True):
        if isinstance(entry, Entry) and entry.place not in survey.bad:
            yield apply_policy(entry, policy).entry
