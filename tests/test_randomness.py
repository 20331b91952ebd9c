"""No two streams meet, each stream feeds what it is named after, and nothing draws beside them."""

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
from synthgen.randomness import Stream, child_sequence, seed_sequence, torch_seed
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


def test_no_two_streams_meet() -> None:
    sequences = [seed_sequence(*key) for key in product(SEEDS, INDICES, Stream, ATTEMPTS)]
    # the parts of a repair and of the camera, for some of them
    parents = [seed_sequence(*key) for key in product(SEEDS, INDICES[:3], Stream, ATTEMPTS[:2])]
    sequences += [child_sequence(*pair) for pair in product(parents, (0, 1, 7, crc32(b"jpeg")))]
    states = {tuple(sequence.generate_state(4)) for sequence in sequences}
    assert len(states) == len(sequences)
    assert len({torch_seed(sequence) for sequence in sequences}) == len(sequences)


def test_numbers_of_streams_are_for_good() -> None:
    names = ("LAYOUT", "SCENE", "NOISE", "REPAIR", "ATMOSPHERE", "CAMERA")
    assert {name: int(Stream[name]) for name in names} == dict(zip(names, range(6), strict=True))
    assert len(Stream.__members__) == len(list(Stream))  # no number has two names
    sequence = seed_sequence(7, 3, Stream.NOISE, 1)
    assert (sequence.entropy, sequence.spawn_key) == (7, (3, 2, 1))
    assert child_sequence(sequence, 9).spawn_key == (3, 2, 1, 9)
    assert sequence.generate_state(2).tolist() == [2608898304, 2352862190]
    assert 0 <= torch_seed(sequence) < 2**63


class Recorder:
    """Stands for painter and verifier: it keeps the key of each randomness, and every box fails."""

    def __init__(self) -> None:
        self.noise: list[Key] = []
        self.repair: list[Key] = []

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        self.noise += [key_of(seed) for seed in seeds]
        return [Painting(np.zeros((128, 128, 3), np.uint8)) for _ in scenes]

    def repaint(
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
        none = np.zeros((0, 4), np.float32)
        return [Verdict(np.zeros(len(of), np.float32), None, None, none) for of in layouts]


def key_of(source: np.random.SeedSequence | np.random.Generator) -> Key:
    """Seed and spawn key of what a generator, or its sequence, came from."""
    sequence: Any = (
        source.bit_generator.seed_seq if isinstance(source, np.random.Generator) else source
    )
    return int(sequence.entropy), *sequence.spawn_key


def test_each_stream_feeds_what_it_is_named_after(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Key]] = {"layout": [], "scene": [], "atmosphere": [], "camera": []}
    sample, draw, effect = ScatterSpec.sample, SceneSpec.draw, Effect.draw

    def recorded_sample(self: ScatterSpec, rng: np.random.Generator, *more: int) -> Layout:
        seen["layout"].append(key_of(rng))
        return sample(self, rng, *more)

    def recorded_draw(
        self: SceneSpec, layout: Layout, words: np.random.Generator, atmosphere: np.random.Generator
    ) -> Scene:
        seen["scene"].append(key_of(words))
        seen["atmosphere"].append(key_of(atmosphere))
        return draw(self, layout, words, atmosphere)

    def recorded_effect(self: Effect, rng: np.random.Generator) -> dict[str, float] | None:
        seen["camera"].append(key_of(rng))
        return effect(self, rng)

    monkeypatch.setattr(ScatterSpec, "sample", recorded_sample)
    monkeypatch.setattr(SceneSpec, "draw", recorded_draw)
    monkeypatch.setattr(Effect, "draw", recorded_effect)
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
    monkeypatch.setattr(type(worker.inspection.spec), "fails", lambda self, v, of: v.scores < 1)
    worker.encode([4, 5], worker.paint([4, 5]))
    assert seen == {
        "layout": [(9, 4, 0, 0), (9, 5, 0, 0)],
        "scene": [(9, 4, 1, 0), (9, 5, 1, 0)],
        "atmosphere": [(9, 4, 4, 0), (9, 5, 4, 0)],
        "camera": [(9, 4, 5, 0, crc32(b"jpeg")), (9, 5, 5, 0, crc32(b"jpeg"))],
    }
    # both images are black, so there is a second attempt; two repairs at each
    assert recorder.noise == [(9, 4, 2, 0), (9, 5, 2, 0), (9, 4, 2, 1), (9, 5, 2, 1)]
    assert recorder.repair == [
        (9, index, 3, attempt, number) for attempt, number, index in product((0, 1), (1, 2), (4, 5))
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Key]:
    """Key of every generator that is made."""
    keys: list[Key] = []
    make = np.random.default_rng

    def recorded(seed: Any = None) -> np.random.Generator:
        rng = make(seed)
        keys.append(key_of(rng))
        return rng

    monkeypatch.setattr(np.random, "default_rng", recorded)
    return keys


def test_training_draws_scenes_crops_order_and_steps_from_streams_of_their_own(
    dataset: Path, drawn: list[Key]
) -> None:
    PastedScenes(64, 3)[7]
    parts = {(3, 7, int(Stream.PASTED_SCENE), part) for part in range(5)}
    assert set(drawn) == parts
    drawn.clear()
    ShardScenes(DataSpec(shards=str(dataset), side=64), 3)[7]
    assert set(drawn) == {
        (3, 1, int(Stream.TRAINING_ORDER), 0),
        (3, 7, int(Stream.TRAINING_CROP), 0),
    }
    trainee: Any = CenterNetTrainee.__new__(CenterNetTrainee)
    data = DataSpec(shards=str(dataset), side=96, scenes=2, fresh=0)
    spec: Any = DetectorSpec.model_validate(
        {
            "version": 1, "name": "n", "task": "detector", "steps": 9, "batch_size": 1, "seed": 3, "crop": 64,
            "data": data.model_dump(), "categories": ["dog"], "output": {"path": "unused"},
        }
    )  # fmt: skip
    trainee.__dict__.update(spec=spec, crop=64, side=64, scenes=ShardScenes(data, 3))
    first = {}
    for rank in (0, 1):
        drawn.clear()
        batch = next(trainee.batches(7, rank))
        assert (3, 7, int(Stream.TRAINING_STEP), rank) in drawn
        first[rank] = batch[0]
    assert not np.array_equal(first[0], first[1])


SOURCE = Path(synthgen.__file__).parent
FREE = ("assets/", "randomness.py")
LITERALS = (ast.Tuple, ast.List, ast.BinOp, ast.Constant)


def beside_the_helper(tree: ast.AST) -> list[ast.Call]:
    """Calls that make randomness of their own."""
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


def test_nothing_draws_beside_the_helper() -> None:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name.startswith(FREE):
            continue
        for call in beside_the_helper(ast.parse(path.read_text("utf-8"))):
            # samplers try whether a layout is feasible with numbers that no image sees
            if name.startswith("layouts/") and call.args and "seed" not in ast.unparse(call):
                continue
            found.append(f"synthgen/{name}:{call.lineno}: {ast.unparse(call)}")
    assert not found


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
def test_what_is_refused(line: str) -> None:
    assert beside_the_helper(ast.parse(line))
    assert not beside_the_helper(ast.parse("np.random.default_rng(seed_sequence(seed, k, s))"))
