"""One worker: samples depend on job and index alone; failed images are painted again."""

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
    Painted,
    Progress,
    RejectedImageError,
    Worker,
    annotations,
    draw_scene,
    encode_image,
    is_picture,
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
    first, again, other = (
        draw_scene(make_job(), 5),
        draw_scene(make_job("images=99"), 5),
        draw_scene(make_job(), 4),
    )
    np.testing.assert_array_equal(first.layout.boxes, again.layout.boxes)
    assert first.phrases == again.phrases
    assert not np.array_equal(first.layout.boxes, other.layout.boxes)


def test_a_shard_with_progress(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job("images=5", "output.shard_size=3")
    *progress, staged = Worker(job, open_store(tmp_path)).make_shard(1)
    assert progress == [Progress(1, 2)]
    assert isinstance(staged, StagedShard)
    assert (staged.marker.count, staged.marker.first_index, staged.marker.attempts) == (2, 3, 2)
    assert {k: staged.marker.numerics[k] for k in ("batch_size", "chunk", "threads", "device")} == {
        "batch_size": 2, "chunk": 32, "threads": 1, "device": "cpu",
    }  # fmt: skip
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
    """Paints black at the first `bad` attempts at every odd index."""

    def __init__(self, bad: int) -> None:
        self.bad, self.calls = bad, 0

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        self.calls += 1
        good = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
        black = [seed.spawn_key[0] % 2 == 1 and seed.spawn_key[2] < self.bad for seed in seeds]
        return [Painting(good * (0 if b else 1)) for b in black]


def test_a_black_image_is_painted_again(make_job: Callable[..., Job], tmp_path: Path) -> None:
    worker = Worker(make_job(), open_store(tmp_path))
    worker.painter = Flaky(1)
    painted = worker.paint([0, 1])
    assert [p.attempt for p in painted] == [0, 1]
    assert all(is_picture(p.painting) for p in painted)


def test_an_object_without_a_visible_pixel_has_no_annotation() -> None:
    boxes = np.array([[10, 10, 40, 40], [10, 10, 40, 40], [60, 60, 90, 90]], np.float32)
    layout = Layout(128, 128, boxes, ("dog", "dog", "cat"), ("a dog", "a brown dog", "a cat"))
    masks = [np.zeros((128, 128), np.uint8) for _ in range(3)]
    masks[1][10:40, 10:40] = masks[2][60, 60] = 1  # the second dog stands before the first
    encoded = tuple({**coco_mask.encode(np.asfortranarray(m))} for m in masks)
    ids = {"dog": 18, "cat": 17}
    shown = list(annotations(Scene(layout, ""), Painting(NOISE, encoded), ids))
    assert [(a.phrase, a.area) for a in shown] == [("a brown dog", 900), ("a cat", 1)]
    without_masks = list(annotations(Scene(layout, ""), Painting(NOISE), ids))
    assert [a.area for a in without_masks] == [900, 900, 900]


def test_labels_are_not_rounded() -> None:
    layout = Layout(
        128, 128, np.array([[10.25, 10.5, 40.75, 41]], np.float32), ("dog",), ("a dog",)
    )
    (annotation,) = annotations(Scene(layout, ""), Painting(NOISE), {"dog": 18})
    assert (annotation.bbox, annotation.area) == ((10.25, 10.5, 30.5, 30.5), 30.5 * 30.5)


NOISE = np.random.default_rng(0).integers(1, 255, (128, 128, 3), np.uint8)


class Attempts:
    """Paints and judges as a list says: faults of each attempt, None for an image of one colour."""

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
        for image, of in zip(images, layouts, strict=True):
            faults = self.faults[int(image[0, 0, 0])] or 0
            scores = np.array([0] * faults + [1] * (len(of) - faults), np.float32)
            verdicts.append(Verdict(scores, None, None, np.zeros((0, 4), np.float32)))
        return verdicts


class Counting(VerifierSpec):
    verifier: str = "counting"
    on_failure: tuple[Action, ...] = ("redo", "flag")

    def load(self, device: str) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("faults", "kept", "tries"),
    [
        ([3, 1, 2], 1, 3),
        ([2, 3, 1], 2, 3),
        ([1, 2, 3], 0, 3),
        ([2, 2, 2], 0, 3),  # of equals the first
        ([3, 1, 1], 1, 3),
        ([2, 0, 1], 1, 2),  # none is better
        ([None, 3, 4], 1, 3),  # four faults are better than nothing to see
        ([4, None, None], 0, 3),
        ([None, None, None], 0, 3),
        ([None, None, 4], 2, 3),
    ],
)
def test_the_best_attempt_is_kept(
    make_job: Callable[..., Job], tmp_path: Path, faults: list[int | None], kept: int, tries: int
) -> None:
    worker, attempts = Worker(make_job("max_attempts=3"), open_store(tmp_path)), Attempts(faults)
    worker.painter = attempts
    worker.inspection = Inspection(Counting(), attempts.verify, attempts)
    (painted,) = worker.paint([7])
    assert (painted.attempt, painted.tries) == (kept, tries)
    assert painted.painting.image[0, 0, 0] == kept
    assert painted.checked is not None
    assert painted.checked.faults == (faults[kept] or 0)


@pytest.mark.parametrize(
    ("faults", "kept"), [([None, 0, 0], 1), ([None, None, 0], 2), ([None, None, None], 0)]
)
def test_of_blank_images_the_first_is_kept(
    make_job: Callable[..., Job], tmp_path: Path, faults: list[int | None], kept: int
) -> None:
    worker = Worker(make_job("max_attempts=3"), open_store(tmp_path))
    worker.painter = Attempts(faults)
    (painted,) = worker.paint([7])
    assert painted.attempt == painted.painting.image[0, 0, 0] == kept


class Hungry(Flaky):
    """Runs out of memory at its third call unless the chunk is small."""

    def __init__(self, chunk: int, most: int) -> None:
        super().__init__(0)
        self.chunk, self.most = chunk, most

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        if self.calls == 2 and self.chunk > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(scenes, seeds)


@pytest.mark.parametrize(("most", "chunk"), [(8, 8), (31, 16), (32, 32)])
def test_where_memory_runs_out_the_shard_is_made_again_with_half_the_chunk(
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


def test_what_does_not_fit_at_all_is_told(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PasteSpec, "load", lambda self, scene, numerics: Hungry(numerics.chunk, 0))
    with pytest.raises(torch.OutOfMemoryError):
        list(
            Worker(make_job("images=6", "output.shard_size=6"), open_store(tmp_path)).make_shard(0)
        )


class Counted(Hungry):
    """Counts how many of its kind there are."""

    alive, most_alive, made = 0, 0, 0

    def __init__(self, chunk: int, most: int) -> None:
        super().__init__(chunk, most)
        Counted.made += 1
        Counted.alive += 1
        Counted.most_alive = max(Counted.most_alive, Counted.alive)

    def __del__(self) -> None:
        Counted.alive -= 1


class Adjustable(Counted):
    """Goes on with another chunk without being loaded anew."""

    def use_chunk(self, chunk: int) -> None:
        self.chunk, self.calls = chunk, 0


@pytest.mark.parametrize(("painter", "made"), [(Counted, 3), (Adjustable, 1)])
def test_where_memory_runs_out_there_are_never_two_models(
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


def test_images_wait_for_the_encoder(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(make_job("images=40", "output.shard_size=40"), open_store(tmp_path))
    worker.painter = Flaky(0)
    encode, paint, painted, encoded, waiting = worker.encode, worker.paint, [0], [0], [0]

    def slow(indices: Sequence[int], batch: Sequence[Painted]) -> list[Sample]:
        time.sleep(0.02)
        samples = encode(indices, batch)
        encoded[0] += len(samples)
        return samples

    def counted(indices: Sequence[int]) -> list[Painted]:
        batch = paint(indices)
        painted[0] += len(batch)
        waiting[0] = max(waiting[0], painted[0] - encoded[0])
        return batch

    monkeypatch.setattr(worker, "encode", slow)
    monkeypatch.setattr(worker, "paint", counted)
    *progress, staged = worker.make_shard(0)
    assert isinstance(staged, StagedShard)
    assert (staged.marker.count, len(progress)) == (40, 20)
    assert waiting[0] <= 3 * 2  # three batches of two


def test_another_chunk_needs_no_loading(checkpoint: Path) -> None:
    spec = MixtureSpec(model=str(checkpoint), steps=1)
    layout = Layout(32, 32, np.array([[4, 4, 20, 20]], np.float32), ("dog",))
    scene, seed = Scene(layout, "sand"), np.random.SeedSequence(1)
    loaded: Any = spec.load(SceneSpec(), Numerics(chunk=8))
    loaded.use_chunk(1)
    fresh: Any = spec.load(SceneSpec(), Numerics(chunk=1))
    assert loaded.options == fresh.options
    assert loaded.numerics.chunk == 1
    image, expected = (painter([scene], [seed])[0].image for painter in (loaded, fresh))
    np.testing.assert_array_equal(image, expected)


def test_on_reject(make_job: Callable[..., Job], tmp_path: Path) -> None:
    keep = Worker(make_job("max_attempts=2"), open_store(tmp_path))
    keep.painter = Flaky(9)
    assert [p.tries for p in keep.paint([0, 1])] == [1, 2]
    fail = Worker(make_job("max_attempts=2", "on_reject=fail"), open_store(tmp_path))
    fail.painter = Flaky(9)
    with pytest.raises(RejectedImageError, match=r"samples \[1\]: blank after 2 attempts"):
        fail.paint([0, 1])


def test_an_impossible_layout_names_index_and_seed(make_job: Callable[..., Job]) -> None:
    job = make_job()
    full = job.layout.model_copy(update={"objects": {"dog": ObjectSpec(count=(90, 90))}})
    with pytest.raises(InfeasibleLayoutError, match="sample 2, seed 3: no room for 90 boxes"):
        draw_scene(job.model_copy(update={"layout": full}), 2)


@pytest.mark.parametrize(
    ("image_format", "magic"), [("jpg", b"\xff\xd8"), ("png", b"\x89PNG"), ("webp", b"RIFF")]
)
def test_encode_image(image_format: str, magic: bytes) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    output = OutputSpec.model_validate({"path": "out", "image_format": image_format, "quality": 90})
    assert encode_image(pixels, output).startswith(magic)
    assert encode_image(pixels, output) == encode_image(pixels, output)


@pytest.mark.parametrize(("subsampling", "factors"), [("4:4:4", (1, 1)), ("4:2:0", (2, 2))])
def test_the_chroma_of_a_jpg_is_sampled_as_asked(
    subsampling: str, factors: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    output = OutputSpec.model_validate({"path": "out", "subsampling": subsampling})
    with Image.open(io.BytesIO(encode_image(pixels, output))) as image:
        assert isinstance(image, JpegImageFile)
        assert (
            image.layer[0][1:3] == factors
        )  # horizontal and vertical sampling of luma against chroma


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
    """Any other one changes the bytes of every dataset, and has no key in the fingerprint."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def save(image: Image.Image, file: Any, name: str, **options: Any) -> None:
        asked.append((name, options))

    monkeypatch.setattr(Image.Image, "save", save)
    output = OutputSpec.model_validate({"path": "out", "image_format": image_format, "quality": 90})
    encode_image(np.zeros((8, 8, 3), np.uint8), output)
    assert asked == [expected]


def test_distractors_are_painted_but_not_labelled(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job("layout.objects={dog: 2, ball: {count: 2, label: false}}", "output.shard_size=1")
    *_, staged = Worker(job, open_store(tmp_path)).make_shard(0)
    assert isinstance(staged, StagedShard)
    record = json.loads(dict(read_members(tmp_path / staged.tar))["000000000.json"])
    assert [a["category"] for a in record["annotations"]] == ["dog", "dog"]
    assert "2 ball" in record["prompt"]
