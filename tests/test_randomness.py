"""Random streams are independent, are used as their names say, and are the only randomness."""

import ast
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from numpy.typing import NDArray

import synthgen
from synthgen.config import Job
from synthgen.engine.worker import Worker
from synthgen.layouts.base import Layout
from synthgen.layouts.scatter import Spec as ScatterSpec
from synthgen.pipelines.base import Painting
from synthgen.randomness import Stream, make_torch_seed, seed_sequence, spawn_sequence
from synthgen.scenes.camera import Effect
from synthgen.scenes.scene import Scene, SceneSpec
from synthgen.storage.location import open_store
from synthgen.training.base import DataSpec
from synthgen.training.dataset_scenes import ShardScenes
from synthgen.training.detector import Spec as DetectorSpec
from synthgen.training.detector.centernet import CenterNetTrainee
from synthgen.training.scenes import PastedScenes
from synthgen.verification.base import Verdict

Key = tuple[int, ...]
SEEDS = (0, 1, 3, 7, 2**32, 2**63 - 1)
INDICES = (0, 1, 7, 256, 2**31)
ATTEMPTS = (0, 1, 2, 7)  # or ranks


def test_no_two_streams_share_numbers() -> None:
    sequences = [seed_sequence(*key) for key in product(SEEDS, INDICES, Stream, ATTEMPTS)]
    # Child sequences, as repairs and the camera use them, of some of the sequences.
    parents = [seed_sequence(*key) for key in product(SEEDS, INDICES[:3], Stream, ATTEMPTS[:2])]
    sequences += [spawn_sequence(*pair) for pair in product(parents, (0, 1, 7, crc32(b"jpeg")))]
    states = {tuple(sequence.generate_state(4)) for sequence in sequences}
    assert len(states) == len(sequences)
    assert len({make_torch_seed(sequence) for sequence in sequences}) == len(sequences)


def test_the_numbers_of_streams_never_change() -> None:
    names = ("LAYOUT", "SCENE", "NOISE", "REPAIR", "ATMOSPHERE", "CAMERA")
    assert [int(Stream[name]) for name in names] == list(range(6))
    assert len(Stream.__members__) == len(list(Stream))  # no number has two names
    sequence = seed_sequence(7, 3, Stream.NOISE, 1)
    assert (sequence.entropy, sequence.spawn_key) == (7, (3, 2, 1))
    assert spawn_sequence(sequence, 9).spawn_key == (3, 2, 1, 9)
    assert sequence.generate_state(2).tolist() == [2608898304, 2352862190]
    assert 0 <= make_torch_seed(sequence) < 2**63


class Recorder:
    """A painter and verifier that records the keys of its seeds, and with which every box fails."""

    def __init__(self) -> None:
        self.noise: list[Key] = []
        self.repair: list[Key] = []

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        self.noise += [key_of(seed) for seed in seeds]
        return [Painting(np.zeros((128, 128, 3), np.uint8)) for _ in scenes]

    def inpaint_boxes(
        self,
        images: Sequence[NDArray[np.uint8]],
        scenes: Sequence[Scene],
        seeds: Sequence[np.random.SeedSequence],
    ) -> list[NDArray[np.uint8]]:
        self.repair += [key_of(seed) for seed in seeds]
        return list(images)

    def verify(
        self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]
    ) -> list[Verdict]:
        no_boxes = np.zeros((0, 4), np.float32)
        verdicts = []
        for layout in layouts:
            scores = np.zeros(len(layout), np.float32)
            verdicts.append(Verdict(scores, None, None, no_boxes))
        return verdicts


def key_of(source: np.random.SeedSequence | np.random.Generator) -> Key:
    """Return the seed and the spawn key of a generator or a sequence."""
    sequence: Any = source
    if isinstance(source, np.random.Generator):
        sequence = source.bit_generator.seed_seq
    return int(sequence.entropy), *sequence.spawn_key


def test_each_stream_is_used_as_its_name_says(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, list[Key]] = {"layout": [], "scene": [], "atmosphere": [], "camera": []}
    sample_layout = ScatterSpec.sample
    sample_scene = SceneSpec.draw
    sample_effect = Effect.draw

    def record_layout(self: ScatterSpec, rng: np.random.Generator, *more: int) -> Layout:
        keys["layout"].append(key_of(rng))
        return sample_layout(self, rng, *more)

    def record_scene(
        self: SceneSpec, layout: Layout, words: np.random.Generator, atmosphere: np.random.Generator
    ) -> Scene:
        keys["scene"].append(key_of(words))
        keys["atmosphere"].append(key_of(atmosphere))
        return sample_scene(self, layout, words, atmosphere)

    def record_effect(self: Effect, rng: np.random.Generator) -> dict[str, float] | None:
        keys["camera"].append(key_of(rng))
        return sample_effect(self, rng)

    monkeypatch.setattr(ScatterSpec, "sample", record_layout)
    monkeypatch.setattr(SceneSpec, "draw", record_scene)
    monkeypatch.setattr(Effect, "draw", record_effect)
    changes = (
        "scene.camera={jpeg: {}}",
        "max_attempts=2",
        "verify={verifier: detector, max_repairs: 2}",
    )
    worker = Worker(make_job(*changes, "seed=9"), open_store(tmp_path))
    recorder: Any = Recorder()
    assert worker.inspection is not None
    object.__setattr__(worker.inspection, "painter", recorder)
    object.__setattr__(worker.inspection, "verifier", recorder.verify)
    object.__setattr__(worker.inspection.spec, "iou", 0)
    worker.painter = recorder
    monkeypatch.setattr(
        type(worker.inspection.spec), "find_failed_boxes", lambda self, v, of: v.scores < 1
    )
    worker.encode([4, 5], worker.paint([4, 5]))
    assert keys == {
        "layout": [(9, 4, 0, 0), (9, 5, 0, 0)],
        "scene": [(9, 4, 1, 0), (9, 5, 1, 0)],
        "atmosphere": [(9, 4, 4, 0), (9, 5, 4, 0)],
        "camera": [(9, 4, 5, 0, crc32(b"jpeg")), (9, 5, 5, 0, crc32(b"jpeg"))],
    }
    # Both images are black, so each gets a second attempt; each attempt has two repairs.
    assert recorder.noise == [(9, 4, 2, 0), (9, 5, 2, 0), (9, 4, 2, 1), (9, 5, 2, 1)]
    repairs = product((0, 1), (1, 2), (4, 5))
    assert recorder.repair == [(9, index, 3, attempt, n) for attempt, n, index in repairs]


@pytest.fixture
def generator_keys(monkeypatch: pytest.MonkeyPatch) -> list[Key]:
    """Return a list to which the key of every new generator is added."""
    keys: list[Key] = []
    create = np.random.default_rng

    def record(seed: Any = None) -> np.random.Generator:
        rng = create(seed)
        keys.append(key_of(rng))
        return rng

    monkeypatch.setattr(np.random, "default_rng", record)
    return keys


def test_training_has_streams_for_scenes_crops_order_and_steps(
    dataset: Path, generator_keys: list[Key]
) -> None:
    PastedScenes(64, 3)[7]
    assert set(generator_keys) == {(3, 7, int(Stream.PASTED_SCENE), use) for use in range(5)}
    generator_keys.clear()
    ShardScenes(DataSpec(shards=str(dataset), side=64), 3)[7]
    assert set(generator_keys) == {
        (3, 1, int(Stream.TRAINING_ORDER), 0),
        (3, 7, int(Stream.TRAINING_CROP), 0),
    }
    trainee: Any = CenterNetTrainee.__new__(CenterNetTrainee)
    data = DataSpec(shards=str(dataset), side=96, scenes=2, fresh=0)
    recipe = {
        "version": 1,
        "name": "n",
        "task": "detector",
        "steps": 9,
        "batch_size": 1,
        "seed": 3,
        "crop": 64,
        "data": data.model_dump(),
        "categories": ["dog"],
        "output": {"path": "unused"},
    }
    spec: Any = DetectorSpec.model_validate(recipe)
    trainee.__dict__.update(spec=spec, crop=64, side=64, scenes=ShardScenes(data, 3))
    first_images = {}
    for rank in (0, 1):
        generator_keys.clear()
        batch = next(trainee.batches(7, rank))
        assert (3, 7, int(Stream.TRAINING_STEP), rank) in generator_keys
        first_images[rank] = batch[0]
    assert not np.array_equal(first_images[0], first_images[1])


SOURCE = Path(synthgen.__file__).parent
EXEMPT = ("assets/", "randomness.py")
LITERALS = (ast.Tuple, ast.List, ast.BinOp, ast.Constant)


def find_other_randomness(tree: ast.AST) -> list[ast.Call]:
    """Return the calls that create randomness without `seed_sequence`."""
    calls = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
        literal = not node.args or isinstance(node.args[0], LITERALS)
        spawned = name == "spawn" and "seed" in ast.unparse(node.func).lower()
        if name == "SeedSequence" or (name == "default_rng" and literal) or spawned:
            calls.append(node)
    return calls


def test_all_randomness_comes_from_the_streams() -> None:
    places = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name.startswith(EXEMPT):
            continue
        for call in find_other_randomness(ast.parse(path.read_text("utf-8"))):
            # Samplers use fixed numbers to check whether layouts are feasible.
            if name.startswith("layouts/") and call.args and "seed" not in ast.unparse(call):
                continue
            places.append(f"synthgen/{name}:{call.lineno}: {ast.unparse(call)}")
    assert not places


@pytest.mark.parametrize(
    "line",
    [
        "np.random.default_rng((seed, step, rank))",
        "default_rng([seed, step])",
        "np.random.default_rng(seed + k)",
        "np.random.default_rng()",
        "np.random.default_rng(0)",
        "np.random.SeedSequence(seed, spawn_key=(k,)).spawn(4)",
    ],
)
def test_other_sources_of_randomness_are_detected(line: str) -> None:
    assert find_other_randomness(ast.parse(line))
    assert not find_other_randomness(ast.parse("np.random.default_rng(seed_sequence(seed, k, s))"))
