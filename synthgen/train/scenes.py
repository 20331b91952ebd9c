"""Scenes to train on: an endless, numbered sequence of layouts, captions and pictures."""

import io
import json
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import webdataset as wds
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from synthgen.assets import ASSETS
from synthgen.layouts import Layout
from synthgen.layouts.scatter import Spec as ScatterSpec
from synthgen.pipelines.paste import PastePainter
from synthgen.scene import Scene
from synthgen.train import DataSpec

Picture = NDArray[np.uint8]
Item = TypeVar("Item")
REFRESH = 50  # steps after which the pool takes new scenes
EMPTY_SHARE = 0.15  # scenes of ground alone
DOGS_SHARE = 0.7  # of the others: dogs alone
PLAIN_SHARE = 0.15  # captions that name no colour
GRASS_SHARE = 0.45  # it is what most jobs ask for
SIZES = (40, 210)  # longer side of a box, px
GROUND_WORDS = {"grass": "a field of grass"}


class Scenes(Protocol):
    """An endless sequence of scenes with pictures (H, W, 3) uint8."""

    def from_number(self, start: int) -> Iterator[tuple[Scene, Picture]]:
        """The scenes from number `start` on: the same ones whenever it is called."""


def open_scenes(data: DataSpec, seed: int) -> Scenes:
    """The scenes that a training job asks for."""
    if data.shards is not None:
        scenes: Scenes = ShardScenes(Path(data.shards), data.side, seed, data.hold_out)
    else:
        scenes = PastedScenes(data.side, seed, data.pasted)
    if data.mixed_with is None:
        return scenes
    return MixedScenes(scenes, ShardScenes(Path(data.mixed_with), data.side, seed), data.mixed_share)


def held_out_scenes(data: DataSpec, seed: int) -> Scenes:
    """Scenes to measure on: pasted from what ships for it, or the samples of a dataset that are held out.

    Of a dataset of which nothing is held out they are samples that are trained on too.
    """
    if data.shards is None:
        return PastedScenes(512, 2, "heldout")
    return ShardScenes(Path(data.shards), data.side, seed, data.hold_out, held=data.hold_out is not None)


class MixedScenes:
    """Two sequences in one: of any run of scenes `share` (of 1, to one scene) are of the second."""

    def __init__(self, first: Scenes, second: Scenes, share: float) -> None:
        self.first, self.second, self.share = first, second, share

    def from_number(self, start: int) -> Iterator[tuple[Scene, Picture]]:
        before = int(start * self.share)
        first, second = self.first.from_number(start - before), self.second.from_number(before)
        for k in count(start):
            yield next(second if int((k + 1) * self.share) > int(k * self.share) else first)


class PastedScenes:
    """Scenes of `side` px pasted on the fly from a folder's cutouts/ and grounds/: number k is always the same.

    Captions are made of the words in the files' names, so they name what was pasted.
    """

    def __init__(self, side: int, seed: int, source: str = "train") -> None:
        self.side, self.seed = side, seed
        cutouts, grounds = Path(source) / "cutouts", Path(source) / "grounds"
        if source in ("train", "heldout"):
            cutouts, grounds = ASSETS / "cutouts" / source, ASSETS / "grounds" / source
        self.painter = PastePainter(cutouts, grounds)
        self.colours = {name: sorted({_named(c.path.stem) for c in have}) for name, have in self.painter.cutouts.items()}
        self.grounds = sorted({GROUND_WORDS.get(w, w) for w in (_named(p.stem) for p in self.painter.grounds)})

    def from_number(self, start: int) -> Iterator[tuple[Scene, Picture]]:
        """The scenes from number `start` on."""
        return (self[k] for k in count(start))

    def __getitem__(self, k: int) -> tuple[Scene, Picture]:
        layout_seed, scene_seed, paint_seed, light_seed = np.random.SeedSequence(self.seed, spawn_key=(k,)).spawn(4)
        spec, rng = self.layout_spec(np.random.default_rng(layout_seed)), np.random.default_rng(scene_seed)
        layout = spec.sample(np.random.default_rng(layout_seed))
        phrases = tuple(self.phrase(name, rng) for name in layout.categories)
        ground = "a field of grass" if rng.random() < GRASS_SHARE else str(rng.choice(self.grounds))
        scene = Scene(layout.with_phrases(phrases), ground)
        picture = self.painter([scene], [paint_seed])[0].image
        return scene, relight(picture, np.random.default_rng(light_seed))

    def layout_spec(self, rng: np.random.Generator) -> ScatterSpec:
        """A sampler of boxes of one size class, small ones more often, that covers about a third of the canvas."""
        small = float(np.exp(rng.uniform(*np.log(SIZES)))) if rng.random() < 0.35 else float(rng.uniform(48, 80))
        small = max(8.0, min(small, SIZES[1] - 24, self.side / 2 - 24))
        room = int(self.side**2 * rng.uniform(0.15, 0.4) / (small + 12) ** 2)
        names = ["dog"] if rng.random() < DOGS_SHARE else sorted(self.colours)
        total = max(1, room) * int(rng.random() >= EMPTY_SHARE)
        counts = rng.multinomial(total, np.full(len(names), 1 / len(names)))
        objects = {name: int(n) for name, n in zip(names, counts, strict=True)}
        gap = float(rng.integers(4, 16))
        return ScatterSpec(canvas=(self.side, self.side), objects=objects, size=(small, small + 24), gap=gap)

    def phrase(self, category: str, rng: np.random.Generator) -> str:
        if rng.random() < PLAIN_SHARE:
            return f"a {category}"
        return f"a {rng.choice(self.colours[category])} {category}"


class ShardScenes:
    """The samples of a dataset's shards, streamed again and again, each time in another order of the shards.

    Args:
        hold_out: samples whose index is a multiple of this are left out; None: none are.
        held: those alone, instead.
    """

    def __init__(self, out: Path, side: int, seed: int, hold_out: int | None = None, held: bool = False) -> None:
        self.tars, self.side, self.seed = sorted(str(p) for p in out.glob("shards/*.tar")), side, seed
        self.hold_out, self.held = hold_out, held

    def from_number(self, start: int) -> Iterator[tuple[Scene, Picture]]:
        for k, sample in enumerate(islice(self.raw(), start, None), start):
            yield self.scene(sample, np.random.default_rng((self.seed, k)))

    def raw(self) -> Iterator[dict[str, bytes]]:
        """Undecoded samples: to skip one costs no more than to read past it."""
        for epoch in count():
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.tars))
            tars = [self.tars[i] for i in order]
            stream = wds.WebDataset(tars, shardshuffle=False, empty_check=False, nodesplitter=None, workersplitter=None)
            yield from (sample for sample in stream if self.keeps(int(sample["__key__"])))

    def keeps(self, index: int) -> bool:
        return self.hold_out is None or is_held_out(index, self.hold_out) == self.held

    def scene(self, sample: dict[str, bytes], rng: np.random.Generator) -> tuple[Scene, Picture]:
        """A sample, cropped at random to `side` px where it is larger; boxes that the crop cuts in half are left out."""
        record = json.loads(sample["json"])
        data = next(sample[kind] for kind in ("jpg", "png", "webp") if kind in sample)
        picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        y, x = (int(rng.integers(max(0, n - self.side) + 1)) for n in picture.shape[:2])
        picture = picture[y : y + self.side, x : x + self.side]
        return crop_scene(record, x, y, picture.shape[1], picture.shape[0]), picture


def is_held_out(index: int, hold_out: int) -> bool:
    """Whether the sample of that index is not trained on."""
    return index % hold_out == 0


def crop_scene(record: dict[str, Any], x: int, y: int, width: int, height: int) -> Scene:
    """The scene of a sample's record, seen through the crop at (x, y); boxes are clipped, those less than half inside go."""
    boxes = np.array([a["bbox"] for a in record["annotations"]], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    names = tuple(a["category"] for a in record["annotations"])
    whole = Layout(record["width"], record["height"], boxes.astype(np.float32), names)
    clipped = np.clip(boxes - [x, y, x, y], 0, [width, height, width, height])
    keep = (clipped[:, 2:] - clipped[:, :2]).prod(1) >= 0.5 * (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = [a for a, k in zip(record["annotations"], keep, strict=True) if k]
    layout = Layout(width, height, clipped[keep].astype(np.float32), tuple(a["category"] for a in kept))
    background = record["prompt"].removeprefix(Scene(whole, "").prompt).removeprefix(", ")
    return Scene(layout.with_phrases(tuple(a.get("phrase") or f"a {a['category']}" for a in kept)), background)


class Pool(Generic[Item]):
    """The scenes at hand at each step, oldest first: which ones is a function of the step alone, so a run can go on.

    Args:
        scenes: where they come from.
        data: how many are kept, and how many new ones come every REFRESH steps.
        prepare: what is kept of a scene.
    """

    def __init__(self, scenes: Scenes, data: DataSpec, prepare: Callable[[Scene, Picture], Item]) -> None:
        self.scenes, self.data, self.prepare = scenes, data, prepare

    def steps(self, start: int) -> Iterator[deque[Item]]:
        """What is at hand at each step from `start` on."""
        items: deque[Item] = deque(maxlen=self.data.scenes)
        stream = loaded(self.scenes, start // REFRESH * self.data.fresh, self.data.workers)
        items.extend(self.prepare(*pair) for pair in islice(stream, self.data.scenes))
        for step in count(start):
            if step % REFRESH == 0 and step > start:
                items.extend(self.prepare(*pair) for pair in islice(stream, self.data.fresh))
            yield items


def loaded(scenes: Scenes, start: int, workers: int) -> Iterator[tuple[Scene, Picture]]:
    """Scenes from number `start` on, made by `workers` other processes; their order does not depend on how many."""
    if workers == 0:
        return scenes.from_number(start)
    return iter(DataLoader(_Striped(scenes, start), batch_size=None, num_workers=workers))


class _Striped(IterableDataset[tuple[Scene, Picture]]):
    """Every n-th scene for the n-th worker: a DataLoader asks them in turn."""

    def __init__(self, scenes: Scenes, start: int) -> None:
        self.scenes, self.start = scenes, start

    def __iter__(self) -> Iterator[tuple[Scene, Picture]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        return self.stripe(first, step)

    def stripe(self, first: int, step: int) -> Iterator[tuple[Scene, Picture]]:
        if isinstance(self.scenes, PastedScenes):
            return (self.scenes[k] for k in count(self.start + first, step))
        return islice(self.scenes.from_number(self.start), first, None, step)


def relight(picture: Picture, rng: np.random.Generator) -> Picture:
    """The same scene (H, W, 3) uint8 in another light: exposure, gamma and a slight cast."""
    gain = rng.uniform(0.85, 1.1) * rng.normal(1, 0.02, 3)
    return np.clip(255 * (picture / 255.0) ** rng.uniform(0.9, 1.1) * gain, 0, 255).astype(np.uint8)


def _named(stem: str) -> str:
    return stem.split("_")[0].replace("-", " ")
