"""Datasets for PyTorch: images and targets for training a detector, streamed from the shards.

from synthgen.dataset.reader import open_dataset

data = open_dataset("out/100dogs", split="train", shuffle=True)
for image, target in torch.utils.data.DataLoader(data, batch_size=None, num_workers=2):
    image                # (3, H, W) uint8
    target["boxes"]      # (N, 4) float32, xyxy in px
    target["labels"]     # (N,) int64, from 1
"""

import io
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from synthgen.annotations import Annotation
from synthgen.dataset.classes import Labels, build_labels
from synthgen.dataset.info import DatasetInfo, read_info
from synthgen.dataset.marker import Marker
from synthgen.dataset.sample import read_annotations, sample_key
from synthgen.dataset.shard_reader import SPLITS, read_samples, read_sound_markers, split_of
from synthgen.errors import InputError
from synthgen.geometry import xywh_to_xyxy, xyxy_to_xywh
from synthgen.storage.location import is_url, open_store

Target = dict[str, Any]
Transform = Callable[[Any, Target], tuple[Any, Target]]
BUFFER = 256  # encoded images that are shuffled among each other
WILDCARD = re.compile(r"[*[]")
SHARD_PATH = re.compile(r"(?:(?P<folder>.*)/)?shards/(?P<number>\d+)\.tar", re.S)


@dataclass(frozen=True)
class _Shard:
    """One shard of a dataset, with the number of its samples that are in the split."""

    out: str
    number: int
    count: int


def open_dataset(
    path: str | Path,
    split: str | None = None,
    transform: Transform | None = None,
    *,
    val: float = 0.1,
    labels: Sequence[str] | None = None,
    first_label: int = 1,
    shuffle: bool = False,
    seed: int = 0,
    buffer: int = BUFFER,
    crowds: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
) -> "DetectionDataset":
    """Open one or more datasets of `synthgen run` or `synthgen import` for training.

    Args:
        path: the folder of a dataset, a pattern of several ("out/*"), or a pattern of some shards
            ("out/dogs/shards/00000*.tar"). Or the URL of a dataset (s3://…, gs://…, hdfs://…), or
            of some of its shards.
        split: "train" or "val", those of `synthgen export`; None: all samples.
        transform: called with image and target, like the transforms of torchvision.transforms.v2.
        val: share of the samples in "val".
        labels: use these classes in this order, and no others; None: all, ascending by category
            id.
        first_label: number of the first class: 1 for torchvision's detectors (0 is background),
            0 for those of transformers.
        shuffle: shuffle the shards in each epoch, and their samples in a buffer; else the samples
            are always in order.
        seed: the seed of the order.
        buffer: number of encoded images that are shuffled among each other.
        crowds: keep boxes with `iscrowd` 1, too.
        rank: number of this process among those that train together; None: as torch.distributed or
            torchrun says.
        world_size: number of these processes; given with `rank`.

    Raises:
        InputError: there is no dataset, or a shard is damaged, or an argument is wrong.

    Examples:
        >>> for image, target in open_dataset("out/pasted"):
        ...     print(tuple(image.shape), tuple(target["boxes"].shape))
        (3, 1024, 1024) (100, 4)
        (3, 1024, 1024) (100, 4)
    """
    if split not in (None, *SPLITS):
        raise InputError(f"split: {split!r} is none of {', '.join(SPLITS)}")
    if not 0 <= val <= 1:
        raise InputError(f"val: {val:g} must be from 0 to 1")
    rank, world_size = find_rank(rank, world_size)
    selected, infos = find_shards(str(path))
    ids: dict[str, int] = {}
    for info in reversed(infos):
        ids |= info.category_ids
    try:
        classes = build_labels(ids, names=labels)
    except ValueError as error:
        raise InputError(f"labels: {error}") from None
    shards = []
    for out, number, marker in selected:
        shards.append(_Shard(out, number, count_samples(marker, split, val)))
    order = _Order(tuple(shards), shuffle, seed, max(1, buffer), rank, world_size)
    return DetectionDataset(order, classes, first_label, split, val, crowds, transform)


def find_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return the number of this process among those that train together, and their number.

    Raises:
        InputError: only one of the two is given, or the rank is out of range.
    """
    if (rank is None) != (world_size is None):
        raise InputError("rank, world_size: give both or neither")
    if rank is not None and world_size is not None:
        if not 0 <= rank < world_size:
            raise InputError(f"rank: {rank} must be from 0 to {world_size - 1}")
        return rank, world_size
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def find_shards(pattern: str) -> tuple[list[tuple[str, int, Marker]], list[DatasetInfo]]:
    """Return dataset, number and marker of each shard of a pattern, and the info of each dataset.

    Raises:
        InputError: there is no dataset, or a shard is damaged.
    """
    shards = []
    infos = []
    for out, wanted in find_datasets(pattern).items():
        store = open_store(out)
        info = read_info(store)
        if info is None:
            raise InputError(f"{out}: no dataset here (dataset.json is missing or damaged)")
        infos.append(info)
        markers = read_sound_markers(store)
        missing = set() if wanted is None else wanted - set(markers)
        if missing:
            raise InputError(
                f"{out}/shards/{min(missing):06d}.tar: was never committed; "
                f"see `synthgen check {out}`"
            )
        for number, marker in markers.items():
            if wanted is None or number in wanted:
                shards.append((out, number, marker))
    return shards, infos


def find_datasets(pattern: str) -> dict[str, set[int] | None]:
    """Return the datasets of a path or pattern, each with its selected shards; None: all.

    Raises:
        InputError: there is none.
    """
    datasets: dict[str, set[int] | None] = {}
    for path in expand_pattern(pattern):
        shard = SHARD_PATH.fullmatch(path)
        if shard is None:
            if read_info(open_store(path)) is not None:
                datasets[path] = None
            continue
        folder = "." if shard["folder"] is None else shard["folder"] or "/"
        numbers = datasets.setdefault(folder, set())
        if numbers is not None:
            numbers.add(int(shard["number"]))
    if not datasets:
        raise InputError(
            f"{pattern}: no dataset here; "
            "name the output folder of `synthgen run`, or a pattern of some"
        )
    return datasets


def expand_pattern(pattern: str) -> list[str]:
    """Return the paths or URLs that match a pattern; a path or URL matches itself.

    Raises:
        InputError: a part of a URL other than the names of shards is a pattern.
    """
    if not is_url(pattern):
        paths = [pattern] if Path(pattern).exists() else sorted(glob(pattern))
        return [str(Path(path)) for path in paths]
    if not WILDCARD.search(pattern):
        return [pattern.rstrip("/")]
    out, _, name = pattern.rpartition("/shards/")
    if not out or WILDCARD.search(out):
        raise InputError(
            f"{pattern}: in a URL only the names of shards can be a pattern: "
            "s3://BUCKET/OUT/shards/00000*.tar"
        )
    names = sorted(file for file, _ in open_store(out).sizes("shards"))
    return [f"{out}/shards/{file}" for file in names if fnmatch(file, name)]


def count_samples(marker: Marker, split: str | None, val: float) -> int:
    """Return how many samples of a shard are in a split."""
    if split is None:
        return marker.count
    indices = range(marker.first_index, marker.first_index + marker.count)
    return sum(split_of(sample_key(index), val) == split for index in indices)


@dataclass(frozen=True)
class _Order:
    """The order of the samples, and which process reads which of them.

    The samples of an epoch form a sequence, shard after shard. Each consumer (a worker of a rank)
    reads one contiguous range of it; the ranges differ in length by at most one. So each sample is
    read exactly once, and few consumers read the same shard.
    """

    shards: tuple[_Shard, ...]
    shuffle: bool
    seed: int
    buffer: int
    rank: int
    world_size: int

    @property
    def total(self) -> int:
        return sum(shard.count for shard in self.shards)

    def cut_range(self, part: int, parts: int, start: int, stop: int) -> tuple[int, int]:
        """Return one of the equal parts of a half-open range [start, stop)."""
        length = stop - start
        return start + length * part // parts, start + length * (part + 1) // parts

    def find_rank_range(self) -> tuple[int, int]:
        """Return the half-open range of the samples that this rank reads."""
        return self.cut_range(self.rank, self.world_size, 0, self.total)

    def iterate_ranges(
        self, epoch: int, worker: int, workers: int
    ) -> Iterator[tuple[_Shard, int, int]]:
        """Yield the shards that one worker reads, with the half-open range of their samples.

        Samples are counted within the split.
        """
        shards = list(self.shards)
        if self.shuffle:
            random.Random(f"{self.seed} {epoch}").shuffle(shards)
        start, stop = self.cut_range(worker, workers, *self.find_rank_range())
        offset = 0  # position of the shard in the sequence
        for shard in shards:
            first = max(start, offset)
            last = min(stop, offset + shard.count)
            if first < last:
                yield shard, first - offset, last - offset
            offset += shard.count

    def shuffle_samples(self, samples: Iterator[Any], epoch: int, worker: int) -> Iterator[Any]:
        """Yield samples, shuffled in a buffer if the dataset is shuffled."""
        if not self.shuffle:
            yield from samples
            return
        rng = random.Random(f"{self.seed} {epoch} {self.rank} {worker}")
        waiting: list[Any] = []
        for sample in samples:
            waiting.append(sample)
            if len(waiting) >= self.buffer:
                i = rng.randrange(len(waiting))
                waiting[i], waiting[-1] = waiting[-1], waiting[i]
                yield waiting.pop()
        rng.shuffle(waiting)
        yield from waiting


class DetectionDataset(IterableDataset[tuple[Any, Target]]):
    """Images and targets of datasets, streamed; see `open_dataset`.

    Each item is an image, (3, H, W) uint8 RGB, and a target:

    - `boxes` (N, 4) float32, xyxy in px; `labels` (N,) int64; `area` (N,) float32 px²;
      `iscrowd` (N,) int64
    - `image_id`: the id in the dataset's annotations/instances.json; `key`: the name of the
      sample; `size`: height and width in px

    If torchvision is installed, image and boxes are its tv_tensors, which transforms.v2 resizes,
    crops and flips together.

    Attributes:
        id2label, label2id: names of the classes by number, and numbers by name.
    """

    def __init__(
        self,
        order: _Order,
        classes: Labels,
        first_label: int,
        split: str | None,
        val: float,
        crowds: bool,
        transform: Transform | None,
    ) -> None:
        self.order = order
        self.classes = classes
        self.first_label = first_label
        self.split = split
        self.val = val
        self.crowds = crowds
        self.transform = transform
        self.id2label = dict(enumerate(classes.names, first_label))
        self.label2id = {name: number for number, name in self.id2label.items()}
        self._epoch = torch.zeros((), dtype=torch.int64)
        # Persistent workers see the epoch change in shared memory.
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        """Return how many samples this process's rank reads in an epoch."""
        start, stop = self.order.find_rank_range()
        return stop - start

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; call it before each epoch of a shuffled dataset."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[tuple[Any, Target]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        epoch = int(self._epoch)
        samples = self._read_samples(epoch, worker, workers)
        for row, data in self.order.shuffle_samples(samples, epoch, worker):
            image, target = as_item(row, data, self.classes, self.first_label, self.crowds)
            yield (image, target) if self.transform is None else self.transform(image, target)

    def _read_samples(
        self, epoch: int, worker: int, workers: int
    ) -> Iterator[tuple[dict[str, Any], bytes]]:
        for shard, first, last in self.order.iterate_ranges(epoch, worker, workers):
            # The process that reads opens the store, because no connection outlives a fork.
            store = open_store(shard.out)
            position = 0
            for row, data in read_samples(store, shard.number):
                if self.split not in (None, split_of(row["key"], self.val)):
                    continue
                if first <= position < last:
                    yield row, data
                position += 1
                if position == last:
                    break


def as_item(
    row: dict[str, Any], data: bytes, classes: Labels, first_label: int, crowds: bool
) -> tuple[Any, Target]:
    """Return image and target of a sample (see `DetectionDataset`)."""
    kept: list[Annotation] = []
    labels: list[int] = []
    for annotation in read_annotations(row):
        if crowds or not annotation.iscrowd:
            number = classes.get_number(annotation.category)
            if number is not None:
                kept.append(annotation)
                labels.append(first_label + number)
    with Image.open(io.BytesIO(data)) as file:
        image = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
    bboxes = np.array([annotation.bbox for annotation in kept], np.float64).reshape(-1, 4)
    corners = torch.from_numpy(xywh_to_xyxy(bboxes)).float()
    size = (row["height"], row["width"])
    image, boxes = as_tv_tensors(image, corners, size)
    return image, {
        "boxes": boxes,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "area": torch.tensor([annotation.area for annotation in kept], dtype=torch.float32),
        "iscrowd": torch.tensor([annotation.iscrowd for annotation in kept], dtype=torch.int64),
        "image_id": row["index"] + 1,
        "key": row["key"],
        "size": size,
    }


def as_tv_tensors(image: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return both as tv_tensors, or unchanged if torchvision cannot be imported."""
    try:
        from torchvision import tv_tensors
    except (ImportError, RuntimeError):  # RuntimeError: its compiled part is for another torch
        return image, boxes
    return tv_tensors.Image(image), tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)


def as_coco(target: Target) -> dict[str, Any]:
    """Return a target as transformers' image processors of detectors take it.

    Their models take `category_id` for the class, so open the dataset with first_label=0.

    Returns:
        {"image_id", "annotations": [COCO's]}

    Examples:
        >>> image, target = next(iter(open_dataset("out/pasted", first_label=0)))
        >>> as_coco(target)["annotations"][0]["category_id"]
        0
    """
    boxes = xyxy_to_xywh(np.asarray(target["boxes"].cpu())).tolist()
    labels = target["labels"].tolist()
    areas = target["area"].tolist()
    crowds = target["iscrowd"].tolist()
    annotations = []
    for box, label, area, crowd in zip(boxes, labels, areas, crowds, strict=True):
        annotations.append({"bbox": box, "category_id": label, "area": area, "iscrowd": crowd})
    return {"image_id": target["image_id"], "annotations": annotations}
