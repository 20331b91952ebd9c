"""The scenes of a training: an endless, numbered sequence of layouts, prompts and images."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from synthgen.annotations import build_default_phrase
from synthgen.assets import ASSETS
from synthgen.layouts.scatter import Spec as ScatterSpec
from synthgen.pipelines.paste import PastePainter
from synthgen.randomness import Stream, seed_sequence
from synthgen.scenes.scene import Scene
from synthgen.training.augmentation import ImageArray
from synthgen.training.base import DataSpec
from synthgen.training.dataset_scenes import (
    BadDataError,
    DatasetScenes,
    MinimumSize,
    RecordScenes,
    ShardScenes,
)

Item = TypeVar("Item")
REFRESH_STEPS = 50  # steps after which the pool gets new scenes
EMPTY_SHARE = 0.15  # share of scenes without objects
DOGS_SHARE = 0.7  # share of the other scenes with dogs alone
PLAIN_SHARE = 0.15  # share of phrases without a colour
GRASS_SHARE = 0.45  # share of scenes on grass, which most jobs ask for
SIZES = (40, 210)  # longer side of a box, px
USUAL_SIZES = (48, 80)  # longer side of most boxes, px
GRASS = "a field of grass"
BACKGROUND_PROMPTS = {"grass": GRASS}  # prompts of backgrounds, where not the name itself


class Scenes(Protocol):
    """An endless sequence of scenes with images (H, W, 3) uint8.

    A sequence that skips unusable entries has an attribute `skipped`: the reason for each, by name.
    """

    def iterate_from(self, start: int) -> Iterator[tuple[Scene, ImageArray]]:
        """Return an iterator over the scenes from number `start`: the same ones at every call."""


@runtime_checkable
class IndexedScenes(Scenes, Protocol):
    """Scenes with random access."""

    def __getitem__(self, k: int) -> tuple[Scene, ImageArray]:
        """Return scene number k."""


def open_scenes(data: DataSpec, seed: int, minimum: MinimumSize | None = None) -> Scenes:
    """Return the scenes of a training job.

    Args:
        minimum: the smallest usable image of a dataset; None: any size.

    Raises:
        BadDataError: entries cannot be used, and may not be skipped.
    """
    if data.shards is not None:
        scenes: IndexedScenes = ShardScenes(data, seed, minimum=minimum)
    elif data.coco is not None or data.jsonl is not None:
        scenes = RecordScenes(data, seed, minimum)
    else:
        scenes = PastedScenes(data.side, seed, data.pasted, data.sizes)
    if data.mixed_with is None:
        return scenes
    second = data.model_copy(
        update={"shards": data.mixed_with, "coco": None, "jsonl": None, "hold_out": None}
    )
    return MixedScenes(scenes, ShardScenes(second, seed, minimum=minimum), data.mixed_share)


def open_held_out_scenes(data: DataSpec, seed: int) -> Scenes:
    """Return scenes to measure on: pasted from held-out assets, or held-out samples of a dataset.

    If nothing of the dataset is held out, they are samples that are trained on too.
    """
    if data.shards is not None:
        return ShardScenes(data, seed, held_out=data.hold_out is not None)
    if data.source is not None:
        return RecordScenes(data, seed)
    return PastedScenes(512, 2, "heldout")


class MixedScenes:
    """Two sequences of scenes in one.

    In every run of scenes, the share of the second sequence is `share`, to within one scene.
    """

    def __init__(self, first: IndexedScenes, second: IndexedScenes, share: float) -> None:
        self.first = first
        self.second = second
        self.share = share
        self.skipped: dict[str, str] = {}  # shared by both sequences
        for sequence in (first, second):
            if isinstance(sequence, DatasetScenes):
                self.skipped |= sequence.skipped
                sequence.skipped = self.skipped

    def iterate_from(self, start: int) -> Iterator[tuple[Scene, ImageArray]]:
        """Return an iterator over the scenes from number `start`."""
        return (self[k] for k in count(start))

    def __getitem__(self, k: int) -> tuple[Scene, ImageArray]:
        """Return scene number k; no other scene is read, so that workers can share the work."""
        before = int(k * self.share)
        if int((k + 1) * self.share) > before:
            return self.second[before]
        return self.first[k - before]


class PastedScenes:
    """Scenes of `side` px, pasted from cut-outs and backgrounds; number k is always the same.

    Prompts are made of the words in the file names, so that they describe what was pasted.

    Args:
        source: train or heldout, the assets of the package; or a folder with cutouts/ and grounds/.
        sizes: smallest and largest side of a scene's boxes, px (other boxes of the scene are up to
            24 px larger); None: mostly 48-80.
    """

    def __init__(
        self, side: int, seed: int, source: str = "train", sizes: tuple[float, float] | None = None
    ) -> None:
        self.side = side
        self.seed = seed
        self.sizes = sizes
        if source in ("train", "heldout"):
            cutouts = ASSETS / "cutouts" / source
            grounds = ASSETS / "grounds" / source
        else:
            cutouts = Path(source) / "cutouts"
            grounds = Path(source) / "grounds"
        self.painter = PastePainter(cutouts, grounds)
        self.colours: dict[str, list[str]] = {}
        for name, images in self.painter.cutouts.items():
            self.colours[name] = sorted({_first_words(image.path) for image in images})
        names = {_first_words(path) for path in self.painter.grounds}
        self.backgrounds = sorted({BACKGROUND_PROMPTS.get(name, name) for name in names})

    def iterate_from(self, start: int) -> Iterator[tuple[Scene, ImageArray]]:
        """Return an iterator over the scenes from number `start`."""
        return (self[k] for k in count(start))

    def __getitem__(self, k: int) -> tuple[Scene, ImageArray]:
        """Return scene number k."""
        sizes, places, prompts, pasting, light = (
            seed_sequence(self.seed, k, Stream.PASTED_SCENE, part) for part in range(5)
        )
        spec = self.sample_layout_spec(np.random.default_rng(sizes))
        layout = spec.sample(np.random.default_rng(places))
        rng = np.random.default_rng(prompts)
        phrases = tuple(self.sample_phrase(name, rng) for name in layout.categories)
        background = GRASS if rng.random() < GRASS_SHARE else str(rng.choice(self.backgrounds))
        scene = Scene(layout.with_phrases(phrases), background)
        image = self.painter([scene], [pasting])[0].image
        return scene, relight(image, np.random.default_rng(light))

    def sample_layout_spec(self, rng: np.random.Generator) -> ScatterSpec:
        """Return a sampler of boxes of similar sizes that cover about a third of the canvas.

        Small sizes are more frequent.
        """
        if rng.random() < 0.35:
            size = float(np.exp(rng.uniform(*np.log(SIZES))))
        else:
            size = float(rng.uniform(*USUAL_SIZES))
        if self.sizes:
            size = float(rng.uniform(*self.sizes))
        size = max(8.0, min(size, SIZES[1] - 24, self.side / 2 - 24))
        room = int(self.side**2 * rng.uniform(0.15, 0.4) / (size + 12) ** 2)
        names = ["dog"] if rng.random() < DOGS_SHARE else sorted(self.colours)
        total = max(1, room) * int(rng.random() >= EMPTY_SHARE)
        counts = rng.multinomial(total, np.full(len(names), 1 / len(names)))
        return ScatterSpec(
            canvas=(self.side, self.side),
            objects=dict(zip(names, counts.tolist(), strict=True)),
            size=(size, size + 24),
            gap=float(rng.integers(4, 16)),
        )

    def sample_phrase(self, category: str, rng: np.random.Generator) -> str:
        """Return the prompt of an object, mostly with one of the colours of its cut-outs."""
        if rng.random() < PLAIN_SHARE:
            return build_default_phrase(category)
        return f"a {rng.choice(self.colours[category])} {category}"


class Pool(Generic[Item]):
    """The scenes that the batch of each step is sampled from, oldest first.

    Which scenes these are is a function of the step alone, so that a run can be resumed.

    Args:
        scenes: the scenes that the pool is filled with.
        data: the size of the pool, and the number of new scenes every REFRESH_STEPS steps.
        prepare: returns what is kept of a scene and its image.
    """

    def __init__(
        self, scenes: Scenes, data: DataSpec, prepare: Callable[[Scene, ImageArray], Item]
    ) -> None:
        self.scenes = scenes
        self.data = data
        self.prepare = prepare

    def steps(self, start: int) -> Iterator[deque[Item]]:
        """Yield the content of the pool at each step from `start`."""
        items: deque[Item] = deque(maxlen=self.data.scenes)
        first = start // REFRESH_STEPS * self.data.fresh
        stream = load_scenes(self.scenes, first, self.data.workers)
        for scene, image in islice(stream, self.data.scenes):
            items.append(self.prepare(scene, image))
        for step in count(start):
            if step % REFRESH_STEPS == 0 and step > start:
                for scene, image in islice(stream, self.data.fresh):
                    items.append(self.prepare(scene, image))
            yield items


def load_scenes(scenes: Scenes, start: int, workers: int) -> Iterator[tuple[Scene, ImageArray]]:
    """Yield the scenes from number `start`, in the same order for any number of worker processes.

    Args:
        workers: processes that generate or read scenes; 0: this process.
    """
    if workers == 0:
        yield from scenes.iterate_from(start)
        return
    loader = DataLoader(
        _StridedScenes(scenes, start),
        batch_size=None,
        num_workers=workers,
        collate_fn=_return_unchanged,
    )
    for loaded in loader:
        if isinstance(loaded, BadDataError):
            raise loaded
        pair, skipped = loaded
        getattr(scenes, "skipped", {}).update(skipped)  # the worker recorded them in its own copy
        yield pair


Loaded = tuple[tuple[Scene, ImageArray], dict[str, str]] | BadDataError


def _return_unchanged(loaded: Any) -> Any:
    """Return a scene as it is: without this, the DataLoader converts arrays to tensors."""
    return loaded


class _StridedScenes(IterableDataset[Loaded]):
    """Every n-th scene for each of n workers, together with the entries skipped before it.

    A DataLoader asks its workers in turn, so that the scenes come in order. A BadDataError is
    yielded instead of raised: the message of an exception would contain the worker's traceback.
    """

    def __init__(self, scenes: Scenes, start: int) -> None:
        self.scenes = scenes
        self.start = start

    def __iter__(self) -> Iterator[Loaded]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        try:
            for pair in self.iterate_stride(first, stride):
                skipped = getattr(self.scenes, "skipped", {})
                yield pair, dict(skipped)
                skipped.clear()
        except BadDataError as error:
            yield error

    def iterate_stride(self, first: int, stride: int) -> Iterator[tuple[Scene, ImageArray]]:
        """Return an iterator over every `stride`-th scene, beginning with number start + first."""
        if isinstance(self.scenes, IndexedScenes):
            indexed = self.scenes
            return (indexed[k] for k in count(self.start + first, stride))
        return islice(self.scenes.iterate_from(self.start), first, None, stride)


def relight(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Return an image (H, W, 3) with random exposure, gamma and a slight colour cast."""
    gain = rng.uniform(0.85, 1.1) * rng.normal(1, 0.02, 3)
    relit = 255 * (image / 255.0) ** rng.uniform(0.9, 1.1) * gain
    return np.clip(relit, 0, 255).astype(np.uint8)


def _first_words(path: Path) -> str:
    """Return the words before the first underscore of a file name: "dark green" of dark-green_1."""
    return path.stem.split("_")[0].replace("-", " ")
