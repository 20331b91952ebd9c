"""Scenes to train on: an endless, numbered sequence of layouts, captions and pictures."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from synthgen.annotations import default_phrase
from synthgen.assets import ASSETS
from synthgen.layouts.scatter import Spec as ScatterSpec
from synthgen.pipelines.paste import PastePainter
from synthgen.randomness import Stream, seed_sequence
from synthgen.scenes.scene import Scene
from synthgen.training.augmentation import Picture
from synthgen.training.base import DataSpec
from synthgen.training.dataset_scenes import (
    BadDataError,
    DatasetScenes,
    Least,
    RecordScenes,
    ShardScenes,
)

Item = TypeVar("Item")
REFRESH = 50  # steps after which the pool takes new scenes
EMPTY_SHARE = 0.15  # scenes of ground alone
DOGS_SHARE = 0.7  # of the others: dogs alone
PLAIN_SHARE = 0.15  # captions that name no colour
GRASS_SHARE = 0.45  # it is what most jobs ask for
SIZES = (40, 210)  # longer side of a box, px
USUAL_SIZES = (48, 80)  # of most
GROUND_WORDS = {"grass": "a field of grass"}


class Scenes(Protocol):
    """An endless sequence of scenes with pictures (H, W, 3) uint8; if it skips bad data, `skipped` says what and why."""

    def from_number(self, start: int) -> Iterator[tuple[Scene, Picture]]:
        """The scenes from number `start` on: the same ones whenever it is called."""


@runtime_checkable
class Numbered(Scenes, Protocol):
    """Scenes that can be had one by one."""

    def __getitem__(self, k: int) -> tuple[Scene, Picture]:
        """Scene number k."""


def open_scenes(data: DataSpec, seed: int, least: Least | None = None) -> Scenes:
    """The scenes that a training job asks for.

    Args:
        least: the smallest image of a dataset that can be used; None: any.

    Raises:
        BadDataError: entries cannot be used, and are not to be skipped.
    """
    if data.shards is not None:
        scenes: Numbered = ShardScenes(data, seed, least=least)
    elif data.coco is not None or data.jsonl is not None:
        scenes = RecordScenes(data, seed, least)
    else:
        scenes = PastedScenes(data.side, seed, data.pasted, data.sizes)
    if data.mixed_with is None:
        return scenes
    second = data.model_copy(
        update={"shards": data.mixed_with, "coco": None, "jsonl": None, "hold_out": None}
    )
    return MixedScenes(scenes, ShardScenes(second, seed, least=least), data.mixed_share)


def held_out_scenes(data: DataSpec, seed: int) -> Scenes:
    """Scenes to measure on: pasted from what ships for it, or the samples of a dataset that are held out.

    Of a dataset of which nothing is held out they are samples that are trained on too.
    """
    if data.shards is not None:
        return ShardScenes(data, seed, held=data.hold_out is not None)
    return PastedScenes(512, 2, "heldout") if data.source is None else RecordScenes(data, seed)


class MixedScenes:
    """Two sequences in one: of any run of scenes `share` (of 1, to one scene) are of the second."""

    def __init__(self, first: Numbered, second: Numbered, share: float) -> None:
        self.first, self.second, self.share = first, second, share
        self.skipped: dict[str, str] = {}  # what both leave out
        for part in (first, second):
            if isinstance(part, DatasetScenes):
                self.skipped |= part.skipped
                part.skipped = self.skipped

    def from_number(self, start: int) -> Iterator[tuple[Scene, Picture]]:
        """The scenes from number `start` on."""
        return (self[k] for k in count(start))

    def __getitem__(self, k: int) -> tuple[Scene, Picture]:
        """Scene number k: only that one is read, so that workers share the work."""
        before = int(k * self.share)
        return self.second[before] if int((k + 1) * self.share) > before else self.first[k - before]


class PastedScenes:
    """Scenes of `side` px pasted on the fly from a folder's cutouts/ and grounds/: number k is always the same.

    Captions are made of the words in the files' names, so they name what was pasted.

    Args:
        sizes: least and greatest side of a scene's boxes, px (others of the scene are up to 24 px longer); None: mostly 48-80.
    """

    def __init__(
        self, side: int, seed: int, source: str = "train", sizes: tuple[float, float] | None = None
    ) -> None:
        self.side, self.seed, self.sizes = side, seed, sizes
        cutouts, grounds = Path(source) / "cutouts", Path(source) / "grounds"
        if source in ("train", "heldout"):
            cutouts, grounds = ASSETS / "cutouts" / source, ASSETS / "grounds" / source
        self.painter = PastePainter(cutouts, grounds)
        self.colours = {
            name: sorted({_named(c.path.stem) for c in have})
            for name, have in self.painter.cutouts.items()
        }
        self.grounds = sorted(
            {GROUND_WORDS.get(w, w) for w in (_named(p.stem) for p in self.painter.grounds)}
        )

    def from_number(self, start: int) -> Iterator[tuple[Scene, Picture]]:
        """The scenes from number `start` on."""
        return (self[k] for k in count(start))

    def __getitem__(self, k: int) -> tuple[Scene, Picture]:
        sizes, places, scene_seed, paint_seed, light_seed = (
            seed_sequence(self.seed, k, Stream.PASTED_SCENE, part) for part in range(5)
        )
        spec, rng = (
            self.layout_spec(np.random.default_rng(sizes)),
            np.random.default_rng(scene_seed),
        )
        layout = spec.sample(np.random.default_rng(places))
        phrases = tuple(self.phrase(name, rng) for name in layout.categories)
        ground = "a field of grass" if rng.random() < GRASS_SHARE else str(rng.choice(self.grounds))
        scene = Scene(layout.with_phrases(phrases), ground)
        picture = self.painter([scene], [paint_seed])[0].image
        return scene, relight(picture, np.random.default_rng(light_seed))

    def layout_spec(self, rng: np.random.Generator) -> ScatterSpec:
        """A sampler of boxes of one size class, small ones more often, that covers about a third of the canvas."""
        small = (
            float(np.exp(rng.uniform(*np.log(SIZES))))
            if rng.random() < 0.35
            else float(rng.uniform(*USUAL_SIZES))
        )
        small = float(rng.uniform(*self.sizes)) if self.sizes else small
        small = max(8.0, min(small, SIZES[1] - 24, self.side / 2 - 24))
        room = int(self.side**2 * rng.uniform(0.15, 0.4) / (small + 12) ** 2)
        names = ["dog"] if rng.random() < DOGS_SHARE else sorted(self.colours)
        total = max(1, room) * int(rng.random() >= EMPTY_SHARE)
        counts = rng.multinomial(total, np.full(len(names), 1 / len(names)))
        objects = {name: int(n) for name, n in zip(names, counts, strict=True)}
        gap = float(rng.integers(4, 16))
        return ScatterSpec(
            canvas=(self.side, self.side), objects=objects, size=(small, small + 24), gap=gap
        )

    def phrase(self, category: str, rng: np.random.Generator) -> str:
        if rng.random() < PLAIN_SHARE:
            return default_phrase(category)
        return f"a {rng.choice(self.colours[category])} {category}"


class Pool(Generic[Item]):
    """The scenes at hand at each step, oldest first: which ones is a function of the step alone, so a run can go on.

    Args:
        scenes: where they come from.
        data: how many are kept, and how many new ones come every REFRESH steps.
        prepare: what is kept of a scene.
    """

    def __init__(
        self, scenes: Scenes, data: DataSpec, prepare: Callable[[Scene, Picture], Item]
    ) -> None:
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
        yield from scenes.from_number(start)
        return
    for made in DataLoader(
        _Striped(scenes, start), batch_size=None, num_workers=workers, collate_fn=_as_it_is
    ):
        if isinstance(made, BadDataError):
            raise made
        pair, skipped = made
        getattr(scenes, "skipped", {}).update(skipped)  # what the worker's copy has noted
        yield pair


Made = tuple[tuple[Scene, Picture], dict[str, str]] | BadDataError


def _as_it_is(made: Any) -> Any:
    """Instead of the DataLoader's conversion of arrays to tensors."""
    return made


class _Striped(IterableDataset[Made]):
    """Every n-th scene for the n-th worker, and what was skipped on the way: a DataLoader asks them in turn.

    Bad data comes as a value: an exception would come with the worker's traceback in its message.
    """

    def __init__(self, scenes: Scenes, start: int) -> None:
        self.scenes, self.start = scenes, start

    def __iter__(self) -> Iterator[Made]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        try:
            for pair in self.stripe(first, step):
                skipped = getattr(self.scenes, "skipped", {})
                yield pair, dict(skipped)
                skipped.clear()
        except BadDataError as error:
            yield error

    def stripe(self, first: int, step: int) -> Iterator[tuple[Scene, Picture]]:
        if isinstance(self.scenes, Numbered):
            return (self.scenes[k] for k in count(self.start + first, step))
        return islice(self.scenes.from_number(self.start), first, None, step)


def relight(picture: Picture, rng: np.random.Generator) -> Picture:
    """The same scene (H, W, 3) uint8 in another light: exposure, gamma and a slight cast."""
    gain = rng.uniform(0.85, 1.1) * rng.normal(1, 0.02, 3)
    return np.clip(255 * (picture / 255.0) ** rng.uniform(0.9, 1.1) * gain, 0, 255).astype(np.uint8)


def _named(stem: str) -> str:
    return stem.split("_")[0].replace("-", " ")
