"""Scenes of existing images: the shards of a dataset, a COCO file, or JSON lines."""

import json
import re
import tarfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthgen.annotations import build_default_phrase
from synthgen.dataset.info import DatasetInfo, read_info
from synthgen.dataset.marker import parse_marker
from synthgen.dataset.shard import TAR_ERRORS
from synthgen.errors import InputError
from synthgen.formats.entries import BadEntryError, Entry, Problem, apply_policy
from synthgen.formats.images import decode_pixels, read_bytes
from synthgen.formats.source import Columns, Source
from synthgen.geometry import xywh_to_xyxy
from synthgen.layouts.base import Layout
from synthgen.randomness import Stream, seed_sequence
from synthgen.scenes.scene import Scene
from synthgen.storage.location import open_store
from synthgen.storage.parquet import open_input, open_parquet
from synthgen.training.augmentation import ImageArray, augment
from synthgen.training.base import DataSpec

MAX_LISTED = 20  # problems that an error message lists
END_OF_ARCHIVE = 1024  # zero bytes at the end of a tar, at least
COUNTED = re.compile(r"(\d+) ([^,]+)(?:, |$)")  # "2 dog, " at the beginning of a prompt
IMAGE_SUFFIXES = ("jpg", "png", "webp")


class BadDataError(InputError):
    """Entries of the data cannot be trained on; the message names file and entry."""


@dataclass(frozen=True)
class MinimumSize:
    """The smallest image that a task can train on.

    Attributes:
        side: the shorter side, px.
        key: the key of the training job that sets it.
    """

    side: int = 1
    key: str = ""

    def check(self, width: int, height: int) -> None:
        """Raise BadEntryError for an image of width x height px that is too small."""
        if min(width, height) < self.side:
            raise BadEntryError(
                f"the image is {width} x {height} px, smaller than {self.key}, {self.side} px; "
                "data.resize=true enlarges it"
            )


class DatasetScenes(ABC):
    """The entries of a dataset, repeated without end, each epoch in another order.

    Scene number k is always the same entry, resized, cropped and flipped in the same way. An
    unusable entry raises an error. With `data.on_bad: skip`, it is recorded and the next usable
    entry gets its number too, so that all other numbers stay the same.

    Args:
        minimum: the smallest usable image; images that are resized are never too small.

    Attributes:
        skipped: the reason for each entry that was left out so far, by its name.
    """

    def __init__(self, data: DataSpec, seed: int, minimum: MinimumSize | None = None) -> None:
        self.data = data
        self.seed = seed
        self.minimum = MinimumSize() if minimum is None or data.resizes else minimum
        self.skipped: dict[str, str] = {}
        self._epoch = -1
        self._epoch_order: NDArray[np.int64] = np.zeros(0, np.int64)

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of entries."""

    @abstractmethod
    def name_entry(self, i: int) -> str:
        """Return the file of entry i and its name there."""

    @abstractmethod
    def read_entry(self, i: int) -> tuple[Scene, ImageArray]:
        """Return entry i without augmentation.

        Raises:
            BadEntryError: the entry cannot be used.
        """

    @abstractmethod
    def shuffle_entries(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the entries in the order of one epoch."""

    def iterate_from(self, start: int) -> Iterator[tuple[Scene, ImageArray]]:
        """Return an iterator over the scenes from number `start`."""
        return (self[k] for k in count(start))

    def __getitem__(self, k: int) -> tuple[Scene, ImageArray]:
        """Return scene number k.

        Raises:
            BadDataError: its entry cannot be used and may not be skipped, or no entry can be used.
        """
        # the rest of this epoch and all of the next one: every entry is tried at least once
        for j in range(k, k + 2 * len(self)):
            i = self.find_entry(j)
            try:
                scene, image = self.read_entry(i)
                self.minimum.check(scene.layout.width, scene.layout.height)
            except BadEntryError as error:
                self.handle_problems([Problem(self.name_entry(i), str(error))])
                continue
            rng = np.random.default_rng(seed_sequence(self.seed, k, Stream.TRAINING_CROP))
            return augment(scene, image, self.data.side, self.data.resizes, self.data.flip, rng)
        raise BadDataError(
            f"{self.data.source}: no entry can be used; the last one tried: {self.name_entry(i)}"
        )

    def find_entry(self, k: int) -> int:
        """Return which entry has number k."""
        epoch, position = divmod(k, len(self))
        if self._epoch != epoch:
            sequence = seed_sequence(self.seed, epoch, Stream.TRAINING_ORDER)
            self._epoch = epoch
            self._epoch_order = self.shuffle_entries(np.random.default_rng(sequence))
        return int(self._epoch_order[position])

    def handle_problems(self, problems: Iterable[Problem]) -> None:
        """Record the problems of entries as skipped.

        Raises:
            BadDataError: there are problems, and `data.on_bad` is `refuse`.
        """
        problems = list(problems)
        if problems and self.data.on_bad == "refuse":
            lines = [str(problem) for problem in problems[:MAX_LISTED]]
            if len(problems) > MAX_LISTED:
                lines.append(f"… and {len(problems) - MAX_LISTED} more")
            lines[-1] += "; data.on_bad=skip leaves out unusable entries"
            raise BadDataError("\n".join(lines))
        for problem in problems:
            self.skipped[problem.place] = problem.why

    def require_entries(self) -> None:
        """Raise BadDataError if there are no entries."""
        if not len(self):
            first = f"{self.data.source}: holds no usable entry"
            raise BadDataError("\n".join([first, *list(self.skipped)[:MAX_LISTED]]))


class RecordScenes(DatasetScenes):
    """The entries of a COCO file or of JSON lines; images are read when they are needed."""

    def __init__(self, data: DataSpec, seed: int, minimum: MinimumSize | None = None) -> None:
        super().__init__(data, seed, minimum)
        self.entries: list[Entry] = []
        problems: list[Problem] = []
        for entry in open_source(data).entries():
            if isinstance(entry, Problem):
                problems.append(entry)
                continue
            try:
                usable = clean_entry(entry)
                self.minimum.check(usable.width, usable.height)
                self.entries.append(usable)
            except BadEntryError as error:
                problems += error.problems(entry.place)
        self.handle_problems(problems)
        self.require_entries()

    def __len__(self) -> int:
        return len(self.entries)

    def name_entry(self, i: int) -> str:
        return self.entries[i].place

    def shuffle_entries(self, rng: np.random.Generator) -> NDArray[np.int64]:
        return rng.permutation(len(self))

    def read_entry(self, i: int) -> tuple[Scene, ImageArray]:
        entry = self.entries[i]
        size = (entry.width, entry.height)
        phrases = entry.phrases or tuple(map(build_default_phrase, entry.names))
        boxes = entry.boxes.astype(np.float32)
        layout = Layout(*size, boxes, entry.names, phrases, caption=entry.caption)
        image = decode_pixels(read_bytes(entry.image_path), size, entry.image_path)
        return Scene(layout, entry.caption or ""), image


def open_source(data: DataSpec) -> Source:
    """Return the source that a training job names."""
    images = Path(data.images) if data.images else None
    if data.coco is not None:
        return Source("coco", Path(data.coco), images)
    columns = Columns(data.caption_column, data.image_column, data.annotation_column)
    return Source("jsonl", Path(str(data.jsonl)), images, columns=columns)


def clean_entry(entry: Entry) -> Entry:
    """Return an entry with its boxes clipped to the image.

    Raises:
        BadEntryError: a box is outside the image, or the image file does not exist.
    """
    if entry.embedded is not None:  # all entries stay in memory, and their images must not
        raise BadEntryError(
            "the image is stored in the table itself: `synthgen import` it, and train on "
            "data.shards"
        )
    if entry.image_path is None or not entry.image_path.is_file():
        raise BadEntryError(f"{entry.image_path or 'file_name'}: the image file does not exist")
    return apply_policy(entry).entry


class ShardScenes(DatasetScenes):
    """The samples of a dataset's shards: shards in random order, samples in the shard's order.

    Of each shard, only the number of its samples is kept in memory; of the last few shards, also
    the offsets of their samples.

    Args:
        held_out: whether to return the samples that `data.hold_out` holds out, and only those.
    """

    def __init__(
        self,
        data: DataSpec,
        seed: int,
        held_out: bool = False,
        minimum: MinimumSize | None = None,
    ) -> None:
        super().__init__(data, seed, minimum)
        self.prompted_names = find_prompted_names(read_info(open_store(str(data.shards))))
        self.tars = sorted(Path(str(data.shards)).glob("shards/*.tar"))
        starts = [0]
        for tar in self.tars:
            samples = count_samples(tar)
            starts.append(starts[-1] + samples.readable)
            lost = range(samples.readable, samples.expected)
            problems = [Problem(f"{tar}: sample {n}", samples.problem) for n in lost]
            self.handle_problems(problems if data.on_bad == "skip" else problems[:1])
        self.starts = np.array(starts)
        numbers = np.arange(self.starts[-1])
        if data.hold_out is None:
            self.is_used = np.ones(len(numbers), bool)
        else:
            self.is_used = is_held_out(numbers, data.hold_out) == held_out
        self.require_entries()
        if data.on_bad == "refuse":
            self.handle_problems(self.find_small_images())

    def __len__(self) -> int:
        return int(self.is_used.sum())

    def find_small_images(self) -> Iterator[Problem]:
        """Yield the images that are too small according to the tables beside the shards.

        Shards without a readable table are passed over: their images are checked when they are
        read.
        """
        if self.minimum.side == 1:
            return
        for tar in self.tars:
            try:
                with (
                    open_input(tar.with_suffix(".parquet")) as source,
                    open_parquet(source) as file,
                ):
                    table = file.read(columns=["key", "width", "height"], use_threads=False)
            except (OSError, ValueError, LookupError, pa.ArrowException):
                continue
            for row in table.to_pylist():
                try:
                    self.minimum.check(row["width"], row["height"])
                except BadEntryError as error:
                    yield Problem(f"{tar}: {row['key']}", str(error))

    def locate_sample(self, i: int) -> tuple[Path, int]:
        """Return the shard of sample i, and the sample's number in it."""
        shard = int(np.searchsorted(self.starts, i, "right")) - 1
        return self.tars[shard], i - int(self.starts[shard])

    def name_entry(self, i: int) -> str:
        tar, number = self.locate_sample(i)
        samples = index_samples(tar)
        name = samples[number].key if number < len(samples) else f"sample {number}"
        return f"{tar}: {name}"

    def shuffle_entries(self, rng: np.random.Generator) -> NDArray[np.int64]:
        spans = []
        for shard in rng.permutation(len(self.tars)):
            spans.append(np.arange(self.starts[shard], self.starts[shard + 1]))
        order: NDArray[np.int64] = np.concatenate(spans)
        return order[self.is_used[order]]

    def read_entry(self, i: int) -> tuple[Scene, ImageArray]:
        tar, number = self.locate_sample(i)
        samples = index_samples(tar)
        if number >= len(samples):
            raise BadEntryError(
                f"the archive is damaged: only {len(samples)} of its samples can be read"
            )
        members = samples[number].members
        suffixes = [suffix for suffix in IMAGE_SUFFIXES if suffix in members]
        if not suffixes or "json" not in members:
            raise BadEntryError(
                f"has {', '.join(members) or 'nothing'}; a sample has a json, and a jpg, png or "
                "webp"
            )
        with tar.open("rb") as file:
            record = _read_span(file, members["json"])
            data = _read_span(file, members[suffixes[0]])
        scene = parse_scene(record, self.prompted_names)
        return scene, decode_pixels(data, (scene.layout.width, scene.layout.height))


def is_held_out(number: Any, hold_out: int) -> Any:
    """Return whether the sample of a number in its dataset is held out of the training.

    Args:
        number: an int, or an array of them.
    """
    return number % hold_out == 0


Span = tuple[int, int]
"""Offset and length of a member of a tar, in bytes."""


def _read_span(file: BinaryIO, span: Span) -> bytes:
    offset, length = span
    file.seek(offset)
    return file.read(length)


class SampleCount(NamedTuple):
    """How many samples a shard has.

    Attributes:
        readable: the number that can be read.
        expected: the number that the shard should have; of a shard that breaks off, at least one
            more than can be read.
        problem: why the two numbers differ; empty if they do not.
    """

    readable: int
    expected: int
    problem: str


def count_samples(tar: Path) -> SampleCount:
    """Return how many samples a shard has and should have.

    The count in its marker is trusted if the sizes in bytes agree. A tar without a marker is
    complete if it ends with an end of archive.
    """
    size = tar.stat().st_size
    try:
        marker = parse_marker(tar.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        readable = len(index_samples(tar))
        with tar.open("rb") as file:
            file.seek(max(0, size - END_OF_ARCHIVE))
            is_complete = file.read() == bytes(END_OF_ARCHIVE)
        expected = readable if is_complete else readable + 1
        problem = "" if is_complete else "the shard breaks off: it has no end of archive"
        return SampleCount(readable, expected, problem)
    if size == marker.bytes:
        return SampleCount(marker.count, marker.count, "")
    readable = min(marker.count, len(index_samples(tar)))
    expected = max(marker.count, readable + 1)
    problem = f"the shard breaks off: it has {size} bytes, its marker says {marker.bytes}"
    return SampleCount(readable, expected, problem)


class IndexedSample(NamedTuple):
    """A sample of a tar: its key, and the span of each of its members by suffix."""

    key: str
    members: dict[str, Span]


def index_samples(tar: Path) -> list[IndexedSample]:
    """Return the samples of a tar; of a broken tar, those that it holds completely."""
    return _index_samples(tar, tar.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _index_samples(tar: Path, modified: int) -> list[IndexedSample]:
    size = tar.stat().st_size
    samples: list[IndexedSample] = []
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                key, dot, suffix = member.name.rpartition("/")[2].partition(".")
                is_complete = member.offset_data + member.size <= size
                if not (dot and member.isreg() and is_complete):
                    continue
                if not samples or samples[-1].key != key:
                    samples.append(IndexedSample(key, {}))
                samples[-1].members[suffix.lower()] = (member.offset_data, member.size)
    except TAR_ERRORS:
        pass  # the samples before the damage are used; `count_samples` knows how many are missing
    return samples


def find_prompted_names(info: DatasetInfo | None) -> frozenset[str] | None:
    """Return the names that a dataset's prompts may count beside the labels of an image.

    These are distractors and hidden objects. The prompts of imported datasets count the labels
    alone. None if the names are not known.
    """
    if info is None or info.sources:
        return None
    if info.imported:
        return frozenset()
    names = set(info.category_ids)
    for key in info.fingerprint:
        match = re.fullmatch(r"layout\.objects\.(.+)\.label", key)
        if match:
            names.add(match[1])
    return frozenset(names)


def parse_background(
    prompt: str, labelled: Iterable[str], names: frozenset[str] | None
) -> str | None:
    """Return what follows the counts at the beginning of a prompt.

    None if the prompt is a caption, which does not begin with counts.

    Args:
        labelled: the category of each label.
        names: other names that may be counted; None: any name, if all labels are counted too.
    """
    wanted = Counter(labelled)
    counted = Counter[str]()
    end = 0
    while match := COUNTED.match(prompt, end):
        number, name = match.groups()
        if name not in wanted and names is not None and name not in names:
            break
        counted[name] += int(number)
        end = match.end()
    if wanted <= counted and (wanted or names is not None):
        return prompt[end:]
    return None


def is_hidden(annotation: dict[str, Any]) -> bool:
    """Return whether no pixel of a labelled object is visible.

    Earlier versions labelled such objects too.
    """
    return annotation.get("segmentation") is not None and annotation.get("area") == 0


def parse_scene(record: bytes, prompted_names: frozenset[str] | None = None) -> Scene:
    """Return the scene of a sample's JSON, without crowds.

    A prompt that does not begin with the counts is a caption.

    Args:
        prompted_names: names that the prompt may count beside the labels (see
            `find_prompted_names`). They are not part of the scene's background.

    Raises:
        BadEntryError: it is not the JSON of a sample, or a box is not inside the image.
    """
    names: list[str] = []
    phrases: list[str] = []
    corners: list[Any] = []
    try:
        data = json.loads(record)
        width = int(data["width"])
        height = int(data["height"])
        prompt = str(data["prompt"])
        for annotation in data["annotations"]:
            if annotation.get("iscrowd") or is_hidden(annotation):
                continue
            corners.append(annotation["bbox"])
            category = annotation["category"]
            names.append(str(category))
            phrases.append(str(annotation.get("phrase") or build_default_phrase(category)))
        boxes = xywh_to_xyxy(np.array(corners, np.float64).reshape(-1, 4))
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise BadEntryError(f"its json cannot be read: {type(error).__name__} {error}") from None
    if not (np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise BadEntryError("its json has a box without area")
    entry = apply_policy(Entry("", width, height, boxes, tuple(names))).entry
    layout = Layout(width, height, entry.boxes.astype(np.float32), tuple(names), tuple(phrases))
    background = parse_background(prompt, names, prompted_names)
    if background is not None:
        return Scene(layout, background)
    if not len(layout):
        return Scene(layout, prompt)
    captioned = Layout(
        width, height, layout.boxes, layout.categories, layout.phrases, caption=prompt
    )
    return Scene(captioned, prompt)
