"""Scenes of pictures that are there: a dataset's shards, COCO, or JSON lines."""

import json
import re
import tarfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthgen.annotations import default_phrase
from synthgen.dataset.info import DatasetInfo, read_info
from synthgen.dataset.marker import parse_marker
from synthgen.dataset.shard import BROKEN
from synthgen.errors import InputError
from synthgen.formats.entries import BadEntryError, Entry, Problem, cleaned
from synthgen.formats.images import pixels, read_bytes
from synthgen.formats.source import Columns, Source
from synthgen.geometry import xywh_to_xyxy
from synthgen.layouts.base import Layout
from synthgen.randomness import Stream, seed_sequence
from synthgen.scenes.scene import Scene
from synthgen.storage.location import open_store
from synthgen.storage.parquet import open_input, open_parquet
from synthgen.training.augmentation import Picture, fitted
from synthgen.training.base import DataSpec

LISTED = 20  # problems that an error lists
END_OF_ARCHIVE = 1024  # zero bytes, at least
COUNTED = re.compile(r"(\d+) ([^,]+)(?:, |$)")  # "2 dog, " at the beginning of a prompt


class BadDataError(InputError):
    """Entries of the data cannot be trained on; the message names file and entry."""


@dataclass(frozen=True)
class Least:
    """The smallest image that a task can train on.

    Attributes:
        side: px, of the shorter side.
        key: of the training job, that asks for it.
    """

    side: int = 1
    key: str = ""

    def check(self, width: int, height: int) -> None:
        """Raise BadEntryError for an image of width x height px that is too small."""
        if min(width, height) < self.side:
            raise BadEntryError(
                f"the image is {width} x {height} px, smaller than {self.key}, {self.side} px; data.resize=true enlarges it"
            )


class DatasetScenes(ABC):
    """The entries of a dataset again and again, each time in another order.

    Scene number k is always the same entry, resized, cropped and flipped in the same way. What cannot be used is refused; or,
    with `data.on_bad: skip`, it is noted and the next good entry has its number too, so that all other numbers stay.

    Args:
        least: the smallest image that can be used; what is resized is never too small.

    Attributes:
        skipped: place of each entry that was left out so far, and why.
    """

    def __init__(self, data: DataSpec, seed: int, least: Least | None = None) -> None:
        self.data, self.seed = data, seed
        self.least = Least() if least is None or data.resizes else least
        self.skipped: dict[str, str] = {}
        self.epoch: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    @abstractmethod
    def __len__(self) -> int:
        """How many entries there are."""

    @abstractmethod
    def place(self, i: int) -> str:
        """File and name of entry i."""

    @abstractmethod
    def read(self, i: int) -> tuple[Scene, Picture]:
        """Entry i, whole.

        Raises:
            BadEntryError: it cannot be used.
        """

    @abstractmethod
    def order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """The entries in the order of one epoch."""

    def from_number(self, start: int) -> Iterator[tuple[Scene, Picture]]:
        """The scenes from number `start` on."""
        return (self[k] for k in count(start))

    def __getitem__(self, k: int) -> tuple[Scene, Picture]:
        """Scene number k.

        Raises:
            BadDataError: its entry is bad and may not be skipped, or all are.
        """
        for j in range(k, k + 2 * len(self)):  # the rest of this epoch, and surely all of another
            i = self.entry_at(j)
            try:
                scene, picture = self.read(i)
                self.least.check(scene.layout.width, scene.layout.height)
            except BadEntryError as error:
                self.note([Problem(self.place(i), str(error))])
                continue
            rng = np.random.default_rng(seed_sequence(self.seed, k, Stream.TRAINING_CROP))
            return fitted(scene, picture, self.data.side, self.data.resizes, self.data.flip, rng)
        raise BadDataError(
            f"{self.data.source}: not one entry can be used; the last: {self.place(i)}"
        )

    def entry_at(self, k: int) -> int:
        """Which entry has number k."""
        epoch, at = divmod(k, len(self))
        if self.epoch[0] != epoch:
            self.epoch = (
                epoch,
                self.order(
                    np.random.default_rng(seed_sequence(self.seed, epoch, Stream.TRAINING_ORDER))
                ),
            )
        return int(self.epoch[1][at])

    def note(self, problems: Iterable[Problem]) -> None:
        """Skip what is wrong.

        Raises:
            BadDataError: it is not to be skipped.
        """
        found = list(problems)
        if found and self.data.on_bad == "refuse":
            more = [f"… and {len(found) - LISTED} more"] if len(found) > LISTED else []
            lines = [*map(str, found[:LISTED]), *more]
            lines[-1] += "; data.on_bad=skip leaves out what is bad"
            raise BadDataError("\n".join(lines))
        self.skipped |= {problem.place: problem.why for problem in found}

    def require_some(self) -> None:
        if not len(self):
            raise BadDataError(
                "\n".join(
                    [
                        f"{self.data.source}: holds no entry that can be used",
                        *list(self.skipped)[:LISTED],
                    ]
                )
            )


class RecordScenes(DatasetScenes):
    """The entries of a COCO file or of JSON lines; pictures are read as they are needed."""

    def __init__(self, data: DataSpec, seed: int, least: Least | None = None) -> None:
        super().__init__(data, seed, least)
        self.entries: list[Entry] = []
        problems: list[Problem] = []
        for found in source_of(data).entries():
            try:
                for entry in usable(found):
                    self.least.check(entry.width, entry.height)
                    self.entries.append(entry)
            except BadEntryError as error:
                problems += error.problems(found.place)
            if isinstance(found, Problem):
                problems.append(found)
        self.note(problems)
        self.require_some()

    def __len__(self) -> int:
        return len(self.entries)

    def place(self, i: int) -> str:
        return self.entries[i].place

    def order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        return rng.permutation(len(self))

    def read(self, i: int) -> tuple[Scene, Picture]:
        entry = self.entries[i]
        phrases = entry.phrases or tuple(map(default_phrase, entry.names))
        boxes = entry.boxes.astype(np.float32)
        layout = Layout(
            entry.width, entry.height, boxes, entry.names, phrases, caption=entry.caption
        )
        return Scene(layout, entry.caption or ""), pixels(
            read_bytes(entry.picture), (entry.width, entry.height), entry.picture
        )


def source_of(data: DataSpec) -> Source:
    """What a training job names."""
    images = Path(data.images) if data.images else None
    if data.coco is not None:
        return Source("coco", Path(data.coco), images)
    columns = Columns(data.caption_column, data.image_column, data.annotation_column)
    return Source("jsonl", Path(str(data.jsonl)), images, columns=columns)


def usable(found: Entry | Problem) -> list[Entry]:
    """An entry whose boxes are inside and whose picture is there; of a problem none.

    Raises:
        BadEntryError: boxes are not, or it is not.
    """
    if isinstance(found, Problem):
        return []
    if found.embedded is not None:  # all entries are at hand, their pictures must not be
        raise BadEntryError(
            "holds its picture itself: `synthgen import` it, and train on data.shards"
        )
    if found.picture is None or not found.picture.is_file():
        raise BadEntryError(f"{found.picture or 'file_name'}: the picture is not there")
    return [cleaned(found).entry]


class ShardScenes(DatasetScenes):
    """The samples of a dataset's shards: the shards in random order, the samples of each as they stand.

    Of each shard no more is kept than how many samples it has; of the last few also where they are.

    Args:
        held: the samples that `data.hold_out` keeps apart, instead of the others.
    """

    def __init__(
        self, data: DataSpec, seed: int, held: bool = False, least: Least | None = None
    ) -> None:
        super().__init__(data, seed, least)
        self.names = prompted_names(read_info(open_store(str(data.shards))))
        self.tars = sorted(Path(str(data.shards)).glob("shards/*.tar"))
        shards = [count_samples(tar) for tar in self.tars]
        for tar, (readable, told, fault) in zip(self.tars, shards, strict=True):
            lost = [Problem(f"{tar}: sample {n}", fault) for n in range(readable, told)]
            self.note(lost if data.on_bad == "skip" else lost[:1])
        self.firsts = np.concatenate([[0], np.cumsum([readable for readable, _, _ in shards])])
        every = np.arange(self.firsts[-1])
        self.used = (
            np.ones(len(every), bool)
            if data.hold_out is None
            else is_held_out(every, data.hold_out) == held
        )
        self.require_some()
        if data.on_bad == "refuse":
            self.note(self.too_small())

    def __len__(self) -> int:
        return int(self.used.sum())

    def too_small(self) -> Iterator[Problem]:
        """The images that are too small, as far as the tables beside the shards tell; others show when they are read."""
        if self.least.side == 1:
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
            rows = table.to_pylist()
            for row in rows:
                try:
                    self.least.check(row["width"], row["height"])
                except BadEntryError as error:
                    yield Problem(f"{tar}: {row['key']}", str(error))

    def at(self, i: int) -> tuple[int, int]:
        """Shard and number in the shard of sample i."""
        shard = int(np.searchsorted(self.firsts, i, "right")) - 1
        return shard, i - int(self.firsts[shard])

    def place(self, i: int) -> str:
        shard, number = self.at(i)
        samples = samples_in(self.tars[shard])
        return f"{self.tars[shard]}: {samples[number][0] if number < len(samples) else f'sample {number}'}"

    def order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        spans = [
            np.arange(self.firsts[s], self.firsts[s + 1]) for s in rng.permutation(len(self.tars))
        ]
        every: NDArray[np.int64] = np.concatenate(spans)
        return every[self.used[every]]

    def read(self, i: int) -> tuple[Scene, Picture]:
        shard, number = self.at(i)
        samples = samples_in(self.tars[shard])
        if number >= len(samples):
            raise BadEntryError(
                f"the archive is damaged: only {len(samples)} samples of it can be read"
            )
        members = samples[number][1]
        kind = next((kind for kind in ("jpg", "png", "webp") if kind in members), None)
        if kind is None or "json" not in members:
            raise BadEntryError(
                f"has {', '.join(members) or 'nothing'}; a sample has a json, and a jpg, png or webp"
            )
        with self.tars[shard].open("rb") as file:
            record, data = (_part(file, members[name]) for name in ("json", kind))
        scene = scene_of(record, self.names)
        return scene, pixels(data, (scene.layout.width, scene.layout.height))


def is_held_out(number: Any, hold_out: int) -> Any:
    """Whether the sample of that number in its dataset (an int, or an array of them) is not trained on."""
    return number % hold_out == 0


def _part(file: Any, where: tuple[int, int]) -> bytes:
    file.seek(where[0])
    data: bytes = file.read(where[1])
    return data


def count_samples(tar: Path) -> tuple[int, int, str]:
    """How many samples of a shard can be read, how many it should have (at least one more, if it breaks off), and why it differs.

    What its marker says is believed if the sizes agree; without a marker a tar is whole if it ends as tars do.
    """
    size = tar.stat().st_size
    try:
        marker = parse_marker(tar.with_suffix(".json").read_bytes())
        told, right = marker.count, marker.bytes
    except (OSError, ValueError):
        readable = len(samples_in(tar))
        with tar.open("rb") as file:
            file.seek(max(0, size - END_OF_ARCHIVE))
            whole = file.read() == bytes(END_OF_ARCHIVE)
        return readable, readable + (not whole), "the shard breaks off: it has no end of archive"
    if size == right:
        return told, told, ""
    readable = min(told, len(samples_in(tar)))
    return (
        readable,
        max(told, readable + 1),
        f"the shard breaks off: it has {size} bytes, its marker says {right}",
    )


Members = list[tuple[str, dict[str, tuple[int, int]]]]


def samples_in(tar: Path) -> Members:
    """Key of each sample of a tar, and offset and length of each of its members; those that a broken tar holds whole."""
    return _samples_in(tar, tar.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _samples_in(tar: Path, changed: int) -> Members:
    size = tar.stat().st_size
    members: list[tuple[str, str, tuple[int, int]]] = []
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                key, dot, suffix = member.name.rpartition("/")[2].partition(".")
                if dot and member.isreg() and member.offset_data + member.size <= size:
                    members.append((key, suffix.lower(), (member.offset_data, member.size)))
    except BROKEN:
        pass  # where it breaks off; how many were expected, `count_samples` knows
    return [
        (key, {suffix: where for _, suffix, where in group})
        for key, group in groupby(members, key=lambda m: m[0])
    ]


def prompted_names(info: DatasetInfo | None) -> frozenset[str] | None:
    """Return what a dataset's prompts may count beside the labels of an image: distractors, and hidden objects.

    None if that is not known. Prompts of imported datasets count what is labelled, and nothing else.
    """
    if info is None or info.sources:
        return None
    if info.imported:
        return frozenset()
    own = re.compile(r"layout\.objects\.(.+)\.label")
    objects = (own.fullmatch(key) for key in info.fingerprint)
    return frozenset({*info.category_ids, *(match[1] for match in objects if match)})


def background_of(prompt: str, labelled: Iterable[str], names: frozenset[str] | None) -> str | None:
    """Return what a prompt says after its counts; None if it is a caption, which does not begin with them.

    Args:
        labelled: the categories of the labels, one a label.
        names: what else may be counted; None: anything, if all that is labelled is counted too.
    """
    wanted, counted, end = Counter(labelled), Counter[str](), 0
    while match := COUNTED.match(prompt, end):
        if match[2] not in wanted and names is not None and match[2] not in names:
            break
        counted[match[2]] += int(match[1])
        end = match.end()
    if wanted <= counted and (wanted or names is not None):
        return prompt[end:]
    return None


def is_hidden(annotation: dict[str, Any]) -> bool:
    """Whether no pixel of a labelled object is to be seen; earlier versions labelled these too."""
    return annotation.get("segmentation") is not None and annotation.get("area") == 0


def scene_of(record: bytes, prompted: frozenset[str] | None = None) -> Scene:
    """The scene of a sample's JSON: crowds are left out; a prompt that does not begin with the counts is a caption.

    Args:
        prompted: what the prompt may count beside the labels (see `prompted_names`). The scene's words do not name it.

    Raises:
        BadEntryError: it is not the JSON of a sample, or a box is not inside the picture.
    """
    try:
        data = json.loads(record)
        width, height, prompt = int(data["width"]), int(data["height"]), str(data["prompt"])
        shown = [a for a in data["annotations"] if not a.get("iscrowd") and not is_hidden(a)]
        boxes = np.array([a["bbox"] for a in shown], np.float64).reshape(-1, 4)
        names = tuple(str(a["category"]) for a in shown)
        phrases = tuple(str(a.get("phrase") or default_phrase(a["category"])) for a in shown)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise BadEntryError(f"its json cannot be read: {type(error).__name__} {error}") from None
    boxes = xywh_to_xyxy(boxes)
    if not (np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise BadEntryError("its json has a box without area")
    entry = cleaned(Entry("", width, height, boxes, names)).entry
    layout = Layout(width, height, entry.boxes.astype(np.float32), names, phrases)
    background = background_of(prompt, names, prompted)
    if background is not None:
        return Scene(layout, background)
    if not len(layout):
        return Scene(layout, prompt)
    captioned = Layout(width, height, layout.boxes, names, phrases, caption=prompt)
    return Scene(captioned, prompt)
