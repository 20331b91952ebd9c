"""One worker: samples depend on job and index alone; failed images are generated again."""

import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from pycocotools import mask as coco_mask

from synthgen.config import Job, OutputSpec
from synthgen.dataset.sample import Sample
from synthgen.dataset.shard import StagedShard, read_members
from synthgen.engine.worker import (
    GeneratedImage,
    Progress,
    RejectedImageError,
    Worker,
    build_annotations,
    encode_image,
    is_blank,
    sample_scene,
)
from synthgen.layouts.base import InfeasibleLayoutError, Layout
from synthgen.layouts.objects import ObjectSpec
from synthgen.pipelines.base import Numerics, Painting
from synthgen.pipelines.mixture import Spec as MixtureSpec
from synthgen.pipelines.paste import Spec as PasteSpec
from synthgen.scenes.scene import Scene, SceneSpec
from synthgen.storage.location import open_store
from synthgen.verification.base import Action, Verdict, VerifierSpec
from synthgen.verification.repair import Inspection


def test_layout_and_scene_are_functions_of_the_index(make_job: Callable[..., Job]) -> None:
    first = sample_scene(make_job(), 5)
    again = sample_scene(make_job("images=99"), 5)
    other = sample_scene(make_job(), 4)
    np.testing.assert_array_equal(first.layout.boxes, again.layout.boxes)
    assert first.phrases == again.phrases
    assert not np.array_equal(first.layout.boxes, other.layout.boxes)


def test_a_shard_is_staged_after_the_progress_of_its_batches(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job("images=5", "output.shard_size=3")
    worker = Worker(job, open_store(tmp_path))
    *progress, staged = worker.make_shard(1)
    assert isinstance(staged, StagedShard)
    images = [data for name, data in read_members(tmp_path / staged.tar) if name.endswith(".jpg")]
    assert progress == [Progress(1, 2, first_image=images[0])]
    *progress, _ = worker.make_shard(0)
    assert progress == [Progress(0, 2), Progress(0, 1)]
    assert (staged.marker.count, staged.marker.first_index, staged.marker.attempts) == (2, 3, 2)
    expected = {"batch_size": 2, "chunk": 32, "threads": 1, "device": "cpu"}
    assert {key: staged.marker.numerics[key] for key in expected} == expected
    records = [
        json.loads(data)
        for name, data in read_members(tmp_path / staged.tar)
        if name.endswith(".json")
    ]
    assert [r["index"] for r in records] == [3, 4]
    assert records[0]["prompt"] == "4 dog, a field of grass"
    for annotation in records[0]["annotations"]:
        assert annotation["phrase"] in ("a brown dog", "a white dog")
        assert 0 < annotation["area"] <= annotation["bbox"][2] * annotation["bbox"][3]


class Flaky:
    """A painter whose first `bad` attempts at every odd index are black."""

    def __init__(self, bad: int) -> None:
        self.bad = bad
        self.calls = 0

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        self.calls += 1
        good = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
        black = [seed.spawn_key[0] % 2 == 1 and seed.spawn_key[2] < self.bad for seed in seeds]
        return [Painting(good * (0 if b else 1)) for b in black]


def test_a_black_image_is_generated_again(make_job: Callable[..., Job], tmp_path: Path) -> None:
    worker = Worker(make_job(), open_store(tmp_path))
    worker.painter = Flaky(1)
    images = worker.paint([0, 1])
    assert [p.attempt for p in images] == [0, 1]
    assert all(not is_blank(p.painting) for p in images)


def test_an_object_without_a_visible_pixel_has_no_annotation() -> None:
    boxes = np.array([[10, 10, 40, 40], [10, 10, 40, 40], [60, 60, 90, 90]], np.float32)
    layout = Layout(128, 128, boxes, ("dog", "dog", "cat"), ("a dog", "a brown dog", "a cat"))
    masks = [np.zeros((128, 128), np.uint8) for _ in range(3)]
    masks[1][10:40, 10:40] = masks[2][60, 60] = 1  # the second dog hides the first
    encoded = tuple({**coco_mask.encode(np.asfortranarray(m))} for m in masks)
    ids = {"dog": 18, "cat": 17}
    shown = list(build_annotations(Scene(layout, ""), Painting(NOISE, encoded), ids))
    assert [(a.phrase, a.area) for a in shown] == [("a brown dog", 900), ("a cat", 1)]
    without_masks = list(build_annotations(Scene(layout, ""), Painting(NOISE), ids))
    assert [a.area for a in without_masks] == [900, 900, 900]


def test_labels_are_not_rounded() -> None:
    layout = Layout(
        128, 128, np.array([[10.25, 10.5, 40.75, 41]], np.float32), ("dog",), ("a dog",)
    )
    (annotation,) = build_annotations(Scene(layout, ""), Painting(NOISE), {"dog": 18})
    assert (annotation.bbox, annotation.area) == ((10.25, 10.5, 30.5, 30.5), 30.5 * 30.5)


NOISE = np.random.default_rng(0).integers(1, 255, (128, 128, 3), np.uint8)


class Attempts:
    """A painter and verifier with these faults at each attempt; None is a blank image."""

    def __init__(self, faults: Sequence[int | None]) -> None:
        self.faults = faults

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        images = []
        for seed in seeds:
            attempt = seed.spawn_key[2]
            image = NOISE.copy() if self.faults[attempt] is not None else np.zeros_like(NOISE)
            image[0, 0] = attempt
            images.append(Painting(image))
        return images

    def verify(self, images: Sequence[np.ndarray], layouts: Sequence[Layout]) -> list[Verdict]:
        verdicts = []
        for image, layout in zip(images, layouts, strict=True):
            faults = self.faults[int(image[0, 0, 0])] or 0
            scores = np.array([0] * faults + [1] * (len(layout) - faults), np.float32)
            verdicts.append(Verdict(scores, None, None, np.zeros((0, 4), np.float32)))
        return verdicts


class Counting(VerifierSpec):
    verifier: str = "counting"
    on_failure: tuple[Action, ...] = ("redo", "flag")

    def load(self, device: str) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("faults", "best_attempt", "tries"),
    [
        ([3, 1, 2], 1, 3),
        ([2, 3, 1], 2, 3),
        ([1, 2, 3], 0, 3),
        ([2, 2, 2], 0, 3),  # the first of equal ones
        ([3, 1, 1], 1, 3),
        ([2, 0, 1], 1, 2),  # no faults are best
        ([None, 3, 4], 1, 3),  # four faults are better than a blank image
        ([4, None, None], 0, 3),
        ([None, None, None], 0, 3),
        ([None, None, 4], 2, 3),
    ],
)
def test_the_best_attempt_is_kept(
    make_job: Callable[..., Job],
    tmp_path: Path,
    faults: list[int | None],
    best_attempt: int,
    tries: int,
) -> None:
    worker = Worker(make_job("max_attempts=3"), open_store(tmp_path))
    attempts = Attempts(faults)
    worker.painter = attempts
    worker.inspection = Inspection(Counting(), attempts.verify, attempts)
    (image,) = worker.paint([7])
    assert (image.attempt, image.attempts) == (best_attempt, tries)
    assert image.painting.image[0, 0, 0] == best_attempt
    assert image.checked is not None
    assert image.checked.faults == (faults[best_attempt] or 0)


@pytest.mark.parametrize(("actions", "expected"), [("repair, flag", True), ("flag", False)])
def test_a_verifier_that_repairs_sees_objects_while_they_are_generated(
    checkpoint: Path,
    make_job: Callable[..., Job],
    tmp_path: Path,
    actions: str,
    expected: bool,
) -> None:
    pipeline = f"pipeline={{method: inpaint, model: {checkpoint}, steps: 1, window: 32}}"
    verifier = f"verify={{verifier: detector, on_failure: [{actions}]}}"
    worker = Worker(make_job(pipeline, verifier), open_store(tmp_path))
    assert worker.inspection is not None
    painter: Any = worker.painter
    given = painter.loaded.options.get("find_failed")
    assert (given == worker.inspection.find_failed_boxes) == expected


@pytest.mark.parametrize(
    ("faults", "best_attempt"), [([None, 0, 0], 1), ([None, None, 0], 2), ([None, None, None], 0)]
)
def test_the_first_of_the_blank_images_is_kept(
    make_job: Callable[..., Job], tmp_path: Path, faults: list[int | None], best_attempt: int
) -> None:
    worker = Worker(make_job("max_attempts=3"), open_store(tmp_path))
    worker.painter = Attempts(faults)
    (image,) = worker.paint([7])
    assert image.attempt == image.painting.image[0, 0, 0] == best_attempt


class Hungry(Flaky):
    """A painter that runs out of memory at its third call unless the chunk is small."""

    def __init__(self, chunk: int, most: int) -> None:
        super().__init__(0)
        self.chunk = chunk
        self.most = most

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        if self.calls == 2 and self.chunk > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(scenes, seeds)


@pytest.mark.parametrize(("most", "chunk"), [(8, 8), (31, 16), (32, 32)])
def test_a_shard_is_retried_with_half_the_chunk_if_memory_runs_out(
    make_job: Callable[..., Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    chunk: int,
) -> None:
    monkeypatch.setattr(
        PasteSpec, "load", lambda self, scene, numerics: Hungry(numerics.chunk, most)
    )
    worker = Worker(make_job("images=6", "output.shard_size=6"), open_store(tmp_path))
    *progress, staged = worker.make_shard(0)
    assert isinstance(staged, StagedShard)
    assert staged.marker.numerics["chunk"] == chunk
    assert sum(p.images for p in progress if isinstance(p, Progress)) == 6
    whole = Worker(
        make_job("images=6", "output.shard_size=6", f"chunk={chunk}"), open_store(tmp_path)
    )
    *_, again = whole.make_shard(0)
    assert isinstance(again, StagedShard)
    assert again.marker.sha256 == staged.marker.sha256


def test_an_error_is_raised_if_even_a_chunk_of_one_is_too_large(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PasteSpec, "load", lambda self, scene, numerics: Hungry(numerics.chunk, 0))
    with pytest.raises(torch.OutOfMemoryError):
        list(
            Worker(make_job("images=6", "output.shard_size=6"), open_store(tmp_path)).make_shard(0)
        )


class Counted(Hungry):
    """A painter that counts its instances."""

    alive = 0
    most_alive = 0
    made = 0

    def __init__(self, chunk: int, most: int) -> None:
        super().__init__(chunk, most)
        Counted.made += 1
        Counted.alive += 1
        Counted.most_alive = max(Counted.most_alive, Counted.alive)

    def __del__(self) -> None:
        Counted.alive -= 1


class Adjustable(Counted):
    """A painter that can change its chunk without being loaded again."""

    def use_chunk(self, chunk: int) -> None:
        self.chunk = chunk
        self.calls = 0


@pytest.mark.parametrize(("painter", "made"), [(Counted, 3), (Adjustable, 1)])
def test_there_are_never_two_models_if_memory_runs_out(
    make_job: Callable[..., Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    painter: type[Counted],
    made: int,
) -> None:
    monkeypatch.setattr(Counted, "made", 0)
    monkeypatch.setattr(Counted, "most_alive", 0)
    monkeypatch.setattr(PasteSpec, "load", lambda self, scene, numerics: painter(numerics.chunk, 8))
    worker = Worker(
        make_job("images=6", "output.shard_size=6", "verify={verifier: detector}"),
        open_store(tmp_path),
    )
    *_, staged = worker.make_shard(0)
    assert isinstance(staged, StagedShard)
    assert staged.marker.numerics["chunk"] == 8
    assert (Counted.most_alive, Counted.made) == (1, made)
    assert worker.inspection is not None
    assert worker.inspection.painter is worker.painter


def test_generation_waits_for_the_encoder(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(make_job("images=40", "output.shard_size=40"), open_store(tmp_path))
    worker.painter = Flaky(0)
    encode = worker.encode
    paint = worker.paint
    generated = [0]
    encoded = [0]
    most_waiting = [0]

    def encode_slowly(indices: Sequence[int], batch: Sequence[GeneratedImage]) -> list[Sample]:
        time.sleep(0.02)
        samples = encode(indices, batch)
        encoded[0] += len(samples)
        return samples

    def count_generated(indices: Sequence[int]) -> list[GeneratedImage]:
        batch = paint(indices)
        generated[0] += len(batch)
        most_waiting[0] = max(most_waiting[0], generated[0] - encoded[0])
        return batch

    monkeypatch.setattr(worker, "encode", encode_slowly)
    monkeypatch.setattr(worker, "paint", count_generated)
    *progress, staged = worker.make_shard(0)
    assert isinstance(staged, StagedShard)
    assert (staged.marker.count, len(progress)) == (40, 20)
    assert most_waiting[0] <= 3 * 2  # three batches of two


def test_another_chunk_does_not_load_the_model_again(checkpoint: Path) -> None:
    spec = MixtureSpec(model=str(checkpoint), steps=1)
    layout = Layout(32, 32, np.array([[4, 4, 20, 20]], np.float32), ("dog",))
    scene = Scene(layout, "sand")
    seed = np.random.SeedSequence(1)
    loaded: Any = spec.load(SceneSpec(), Numerics(chunk=8))
    loaded.use_chunk(1)
    fresh: Any = spec.load(SceneSpec(), Numerics(chunk=1))
    assert loaded.options == fresh.options
    assert loaded.numerics.chunk == 1
    image, expected = (painter([scene], [seed])[0].image for painter in (loaded, fresh))
    np.testing.assert_array_equal(image, expected)


def test_a_rejected_image_is_kept_or_raises_as_the_job_says(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    keeping = Worker(make_job("max_attempts=2"), open_store(tmp_path))
    keeping.painter = Flaky(9)
    assert [p.attempts for p in keeping.paint([0, 1])] == [1, 2]
    failing = Worker(make_job("max_attempts=2", "on_reject=fail"), open_store(tmp_path))
    failing.painter = Flaky(9)
    with pytest.raises(RejectedImageError, match=r"samples \[1\]: blank after 2 attempts"):
        failing.paint([0, 1])


def test_an_impossible_layout_names_index_and_seed(make_job: Callable[..., Job]) -> None:
    job = make_job()
    full = job.layout.model_copy(update={"objects": {"dog": ObjectSpec(count=(90, 90))}})
    with pytest.raises(InfeasibleLayoutError, match="sample 2, seed 3: no room for 90 boxes"):
        sample_scene(job.model_copy(update={"layout": full}), 2)


@pytest.mark.parametrize(
    ("image_format", "magic"), [("jpg", b"\xff\xd8"), ("png", b"\x89PNG"), ("webp", b"RIFF")]
)
def test_an_image_is_encoded_in_the_format_of_the_job(image_format: str, magic: bytes) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    output = OutputSpec.model_validate({"path": "out", "image_format": image_format, "quality": 90})
    assert encode_image(pixels, output).startswith(magic)
    assert encode_image(pixels, output) == encode_image(pixels, output)


@pytest.mark.parametrize(("subsampling", "factors"), [("4:4:4", (1, 1)), ("4:2:0", (2, 2))])
def test_a_jpg_has_the_chroma_subsampling_of_the_job(
    subsampling: str, factors: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    output = OutputSpec.model_validate({"path": "out", "subsampling": subsampling})
    with Image.open(io.BytesIO(encode_image(pixels, output))) as image:
        assert isinstance(image, JpegImageFile)
        assert (
            image.layer[0][1:3] == factors
        )  # horizontal and vertical luma samples per chroma sample


@pytest.mark.parametrize(
    ("image_format", "expected"),
    [
        ("jpg", ("JPEG", {"quality": 90, "subsampling": "4:4:4"})),
        ("png", ("PNG", {})),
        ("webp", ("WEBP", {"quality": 90})),
    ],
)
def test_no_other_option_of_an_encoder_is_set(
    monkeypatch: pytest.MonkeyPatch, image_format: str, expected: tuple[str, dict[str, Any]]
) -> None:
    """Any other option would change the bytes of every dataset without a fingerprint key."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def save(image: Image.Image, file: Any, name: str, **options: Any) -> None:
        calls.append((name, options))

    monkeypatch.setattr(Image.Image, "save", save)
    output = OutputSpec.model_validate({"path": "out", "image_format": image_format, "quality": 90})
    encode_image(np.zeros((8, 8, 3), np.uint8), output)
    assert calls == [expected]


def test_distractors_are_generated_but_not_labelled(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job("layout.objects={dog: 2, ball: {count: 2, label: false}}", "output.shard_size=1")
    *_, staged = Worker(job, open_store(tmp_path)).make_shard(0)
    assert isinstance(staged, StagedShard)
    record = json.loads(dict(read_members(tmp_path / staged.tar))["000000000.json"])
    assert [a["category"] for a in record["annotations"]] == ["dog", "dog"]
    assert "2 ball" in record["prompt"]
