"""Datasets as PyTorch reads them: pictures and targets for training a detector, streamed from the shards.

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

from synthgen.dataset.classes import Labels, labels_of
from synthgen.dataset.info import DatasetInfo, read_info
from synthgen.dataset.marker import Marker
from synthgen.dataset.sample import annotations_of, sample_key
from synthgen.dataset.shard_reader import SPLITS, read_samples, sound_shards, split_of
from synthgen.errors import InputError
from synthgen.geometry import xywh_to_xyxy, xyxy_to_xywh
from synthgen.storage.location import is_url, open_store

Target = dict[str, Any]
Transform = Callable[[Any, Target], tuple[Any, Target]]
BUFFER = 256  # encoded pictures that are shuffled among each other


@dataclass(frozen=True)
class _Shard:
    """One shard of a dataset, and how many of its samples are in the split."""

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
        path: the folder of a dataset; or a pattern of several ("out/*"), or of some shards ("out/dogs/shards/00000*.tar"). Or the
            URL of a dataset (s3://…, gs://…, hdfs://…), or of some of its shards.
        split: "train" or "val", those of `synthgen export`; null: all samples.
        transform: called with picture and target, as those of torchvision.transforms.v2.
        val: share of the samples in "val".
        labels: these classes in this order, and no others; null: all, ascending by category id.
        first_label: number of the first class: 1 for torchvision's detectors (0 is background), 0 for those of transformers.
        shuffle: the shards in another order each epoch, and their samples among `buffer` of them; else always in order.
        seed: of the order.
        crowds: keep boxes with `iscrowd` 1, too.
        rank: this process among several that train together; null: what torch.distributed or torchrun says.
        world_size: how many they are; given with `rank`.

    Raises:
        InputError: there is no dataset, or a shard is damaged, or an argument is wrong.
    """
    if split not in (None, *SPLITS):
        raise InputError(f"split: {split!r} is none of {', '.join(SPLITS)}")
    if not 0 <= val <= 1:
        raise InputError(f"val: {val:g} must be from 0 to 1")
    rank, world_size = process(rank, world_size)
    shards, infos = found_shards(str(path))
    ids = {name: number for info in reversed(infos) for name, number in info.category_ids.items()}
    try:
        classes = labels_of(ids, names=labels)
    except ValueError as error:
        raise InputError(f"labels: {error}") from None
    parts = [_Shard(out, number, members(marker, split, val)) for out, number, marker in shards]
    order = _Order(tuple(parts), shuffle, seed, max(1, buffer), rank, world_size)
    return DetectionDataset(order, classes, first_label, split, val, crowds, transform)


def process(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """This process's number among all that train together, and how many they are."""
    if (rank is None) != (world_size is None):
        raise InputError("rank, world_size: give both or neither")
    if rank is not None and world_size is not None:
        if not 0 <= rank < world_size:
            raise InputError(f"rank: {rank} must be from 0 to {world_size - 1}")
        return rank, world_size
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def found_shards(pattern: str) -> tuple[list[tuple[str, int, Marker]], list[DatasetInfo]]:
    """Dataset, number and marker of each shard that is meant, and what each dataset says of itself.

    Raises:
        InputError: there is none, or one is damaged.
    """
    shards, infos = [], []
    for out, some in meant(pattern).items():
        store = open_store(out)
        info = read_info(store)
        if info is None:
            raise InputError(f"{out}: no dataset here (dataset.json is missing or damaged)")
        infos.append(info)
        sound = sound_shards(store)
        if some is not None and not some <= set(sound):
            raise InputError(
                f"{out}/shards/{min(some - set(sound)):06d}.tar: was never committed; see `synthgen check {out}`"
            )
        shards += [
            (out, number, marker)
            for number, marker in sound.items()
            if some is None or number in some
        ]
    return shards, infos


def meant(pattern: str) -> dict[str, set[int] | None]:
    """The datasets that a path or pattern means, and which of their shards; None: all.

    Raises:
        InputError: there is none.
    """
    found: dict[str, set[int] | None] = {}
    for path in matching(pattern):
        shard = re.fullmatch(r"(?:(.*)/)?shards/(\d+)\.tar", path, re.S)
        if shard is None:
            if read_info(open_store(path)) is not None:
                found[path] = None
        elif (
            numbers := found.setdefault("." if shard[1] is None else shard[1] or "/", set())
        ) is not None:
            numbers.add(int(shard[2]))
    if not found:
        raise InputError(
            f"{pattern}: no dataset here; name the output folder of `synthgen run`, or a pattern of some"
        )
    return found


def matching(pattern: str) -> list[str]:
    """The paths or URLs that a pattern means; one that is none as it is.

    Raises:
        InputError: another part of a URL than the names of shards is a pattern.
    """
    if not is_url(pattern):
        return [
            str(Path(p)) for p in ([pattern] if Path(pattern).exists() else sorted(glob(pattern)))
        ]
    if not re.search(r"[*[]", pattern):
        return [pattern.rstrip("/")]
    out, _, name = pattern.rpartition("/shards/")
    if not out or re.search(r"[*[]", out):
        raise InputError(
            f"{pattern}: in a URL only the names of shards can be a pattern: s3://BUCKET/OUT/shards/00000*.tar"
        )
    return [
        f"{out}/shards/{file}"
        for file, _ in sorted(open_store(out).sizes("shards"))
        if fnmatch(file, name)
    ]


def members(marker: Marker, split: str | None, val: float) -> int:
    """How many samples of a shard are in a split."""
    if split is None:
        return marker.count
    indices = range(marker.first_index, marker.first_index + marker.count)
    return sum(split_of(sample_key(index), val) == split for index in indices)


@dataclass(frozen=True)
class _Order:
    """Which samples come when, and who reads them.

    All samples of an epoch stand in a row: shard after shard. Each consumer (a worker of a rank) has one piece of it, all of them
    equally long up to one sample. So nothing is read twice or never, and each shard by few.
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

    def share(self, part: int, parts: int, start: int, stop: int) -> tuple[int, int]:
        """The part-th of equal pieces of start … stop."""
        length = stop - start
        return start + length * part // parts, start + length * (part + 1) // parts

    def of_rank(self) -> tuple[int, int]:
        return self.share(self.rank, self.world_size, 0, self.total)

    def pieces(self, epoch: int, worker: int, workers: int) -> Iterator[tuple[_Shard, int, int]]:
        """Shard, and the first and the last but one of its samples (counted in the split), that one consumer reads."""
        shards = list(self.shards)
        if self.shuffle:
            random.Random(f"{self.seed} {epoch}").shuffle(shards)
        begin, end = self.share(worker, workers, *self.of_rank())
        at = 0
        for shard in shards:
            first, last = max(begin, at), min(end, at + shard.count)
            if first < last:
                yield shard, first - at, last - at
            at += shard.count

    def mixed(self, samples: Iterator[Any], epoch: int, worker: int) -> Iterator[Any]:
        """Samples shuffled among each other, `buffer` of them at a time; or as they come."""
        if not self.shuffle:
            yield from samples
            return
        rng, held = random.Random(f"{self.seed} {epoch} {self.rank} {worker}"), []
        for sample in samples:
            held.append(sample)
            if len(held) >= self.buffer:
                yield held.pop(_swapped(held, rng))
        rng.shuffle(held)
        yield from held


def _swapped(held: list[Any], rng: random.Random) -> int:
    """Put one of them, drawn at random, at the end; where that is."""
    i = rng.randrange(len(held))
    held[i], held[-1] = held[-1], held[i]
    return len(held) - 1


class DetectionDataset(IterableDataset[tuple[Any, Target]]):
    """Pictures and targets of datasets, streamed; see `open_dataset`.

    Each item is a picture, (3, H, W) uint8 RGB, and a target:

    - `boxes` (N, 4) float32, xyxy in px; `labels` (N,) int64; `area` (N,) float32 px²; `iscrowd` (N,) int64
    - `image_id`: that of the dataset's annotations/instances.json; `key`: the sample's name; `size`: height, width in px

    Where torchvision is installed, picture and boxes are its tv_tensors, which transforms.v2 resizes, crops and flips together.

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
        self.order, self.classes, self.first_label = order, classes, first_label
        self.split, self.val, self.crowds, self.transform = split, val, crowds, transform
        self.id2label = dict(enumerate(classes.names, first_label))
        self.label2id = {name: number for number, name in self.id2label.items()}
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # workers that persist see it change

    def __len__(self) -> int:
        """Samples that this process's rank reads in an epoch."""
        begin, end = self.order.of_rank()
        return end - begin

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; call it before each epoch where the data are shuffled."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[tuple[Any, Target]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        epoch = int(self._epoch)
        for row, data in self.order.mixed(self._samples(epoch, worker, workers), epoch, worker):
            image, target = as_item(row, data, self.classes, self.first_label, self.crowds)
            yield (image, target) if self.transform is None else self.transform(image, target)

    def _samples(
        self, epoch: int, worker: int, workers: int
    ) -> Iterator[tuple[dict[str, Any], bytes]]:
        for shard, first, last in self.order.pieces(epoch, worker, workers):
            at = 0
            store = open_store(
                shard.out
            )  # by the process that reads: no connection outlives a fork
            for row, data in read_samples(store, shard.number):
                if self.split in (None, split_of(row["key"], self.val)):
                    if first <= at < last:
                        yield row, data
                    at += 1
                    if at == last:
                        break


def as_item(
    row: dict[str, Any], data: bytes, classes: Labels, first_label: int, crowds: bool
) -> tuple[Any, Target]:
    """Picture and target of a sample (`DetectionDataset`)."""
    found = [a for a in annotations_of(row) if crowds or not a.iscrowd]
    numbers = [classes.number(a.category) for a in found]
    kept = [(a, number) for a, number in zip(found, numbers, strict=True) if number is not None]
    with Image.open(io.BytesIO(data)) as picture:
        image = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    corners = xywh_to_xyxy(np.array([a.bbox for a, _ in kept], np.float64).reshape(-1, 4))
    size = (row["height"], row["width"])
    image, boxes = as_tv_tensors(image, torch.from_numpy(corners).float(), size)
    return image, {
        "boxes": boxes,
        "labels": torch.tensor([first_label + number for _, number in kept], dtype=torch.int64),
        "area": torch.tensor([a.area for a, _ in kept], dtype=torch.float32),
        "iscrowd": torch.tensor([a.iscrowd for a, _ in kept], dtype=torch.int64),
        "image_id": row["index"] + 1,
        "key": row["key"],
        "size": size,
    }


def as_tv_tensors(image: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Both as torchvision's transforms take them; as they are, where torchvision is not installed."""
    try:
        from torchvision import tv_tensors
    except (ImportError, RuntimeError):  # the second: its compiled part is not made for this torch
        return image, boxes
    return tv_tensors.Image(image), tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)


def as_coco(target: Target) -> dict[str, Any]:
    """A target as transformers' image processors of detectors take it: {"image_id", "annotations": [COCO's]}.

    Their models take `category_id` for the class, so open the dataset with first_label=0.
    """
    boxes = xyxy_to_xywh(np.asarray(target["boxes"].cpu()))
    fields = zip(
        boxes.tolist(),
        target["labels"].tolist(),
        target["area"].tolist(),
        target["iscrowd"].tolist(),
        strict=True,
    )
    records = [
        {"bbox": box, "category_id": label, "area": area, "iscrowd": crowd}
        for box, label, area, crowd in fields
    ]
    return {"image_id": target["image_id"], "annotations": records}
