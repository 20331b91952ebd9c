"""Boxes are compared with detections, and failed boxes are repaired, tightened or flagged."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from synthgen import cli
from synthgen.config import ConfigError, Job, load_job
from synthgen.dataset.shard import StagedShard, read_members
from synthgen.engine.worker import RejectedImageError, Worker
from synthgen.layouts.base import Layout
from synthgen.pipelines.base import Numerics, Painting
from synthgen.pipelines.paste import PastePainter
from synthgen.pipelines.paste import Spec as PasteSpec
from synthgen.scenes.scene import Scene, SceneSpec
from synthgen.storage.location import open_store
from synthgen.verification.base import Verdict
from synthgen.verification.detections import Detections
from synthgen.verification.detector import Spec
from synthgen.verification.detector.verifier import (
    DetectorVerifier,
    find_false_positives,
    match_boxes,
)
from synthgen.verification.repair import (
    Checked,
    Inspection,
    accept_repair,
    merge_better_parts,
    select_faults,
)

SCENES = SceneSpec(
    object=("a brown {category}", "a white {category}"), background="a field of grass"
)


def layout(*boxes: Sequence[float], names: tuple[str, ...] | None = None) -> Layout:
    return Layout(
        256, 256, np.array(boxes, np.float32).reshape(-1, 4), names or ("dog",) * len(boxes)
    )


def detections(*found: tuple[Sequence[float], float, str]) -> Detections:
    boxes = np.array([f[0] for f in found], np.float32).reshape(-1, 4)
    return Detections(
        boxes, np.array([f[1] for f in found], np.float32), tuple(f[2] for f in found)
    )


def test_a_box_gets_the_detection_of_its_category_with_the_greatest_iou() -> None:
    asked = layout(
        [0, 0, 100, 100], [150, 150, 200, 200], [0, 150, 50, 200], names=("dog", "dog", "cat")
    )
    found = detections(
        ([0, 0, 100, 90], 0.9, "dog"),
        ([10, 10, 60, 60], 0.8, "dog"),
        ([0, 150, 50, 200], 0.7, "dog"),
    )
    verdict = match_boxes(asked, found, 0.5)
    np.testing.assert_allclose(verdict.scores, [0.9, 0, 0])
    assert verdict.ious is not None
    assert verdict.found is not None
    np.testing.assert_allclose(verdict.ious, [0.9, 0, 0])
    np.testing.assert_allclose(
        verdict.found, [[0, 0, 100, 90], [150, 150, 200, 200], [0, 150, 50, 200]]
    )


@pytest.mark.parametrize(
    ("found", "unasked"),
    [
        (([200, 0, 250, 50], 0.9, "dog"), 1),
        (([200, 0, 250, 50], 0.4, "dog"), 0),  # its score is too low
        (([10, 10, 40, 40], 0.9, "cat"), 0),  # a part of the object
        (([20, 0, 120, 100], 0.9, "dog"), 0),  # the object, badly placed
        (([60, 60, 160, 160], 0.9, "dog"), 1),
    ],
)
def test_detections_without_a_box_are_false_positives(
    found: tuple[Sequence[float], float, str], unasked: int
) -> None:
    assert len(find_false_positives(layout([0, 0, 100, 100]), detections(found), 0.5)) == unasked
    assert len(find_false_positives(layout(), detections(found), 0.5)) == (found[1] >= 0.5)
    assert len(find_false_positives(layout(), detections(found), None)) == 0


def test_a_verdict_without_detections_or_without_boxes() -> None:
    verdict = match_boxes(layout([0, 0, 9, 9]), detections(), 0.5)
    assert (verdict.scores.tolist(), len(verdict.unasked)) == ([0.0], 0)
    assert len(match_boxes(layout(), detections(([0, 0, 9, 9], 0.9, "dog")), 0.5).scores) == 0


class Forgetful:
    """A painter that leaves out the first `missing` objects, and pastes one more if `extra`.

    A repair corrects the image unless the painter is `stubborn`.
    """

    def __init__(
        self, painter: PastePainter, missing: int, extra: bool = False, stubborn: bool = False
    ) -> None:
        self.painter = painter
        self.missing = missing
        self.extra = extra
        self.stubborn = stubborn
        self.repainted: list[Scene] = []

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        return self.painter([self.part(s) for s in scenes], seeds)

    def part(self, scene: Scene) -> Scene:
        some = scene.layout.select(range(self.missing, len(scene.layout)))
        if self.extra:
            boxes = np.concatenate([some.boxes, [[180, 180, 244, 240]]]).astype(np.float32)
            some = Layout(
                256, 256, boxes, (*some.categories, "dog"), (*(some.phrases or ()), "a white dog")
            )
        return Scene(some, scene.background)

    def inpaint_boxes(
        self,
        images: Sequence[NDArray[np.uint8]],
        scenes: Sequence[Scene],
        seeds: Sequence[np.random.SeedSequence],
    ) -> list[NDArray[np.uint8]]:
        self.repainted += scenes
        if self.stubborn:
            return list(images)
        return [self.fixed(*each) for each in zip(images, scenes, seeds, strict=True)]

    def fixed(
        self, image: NDArray[np.uint8], scene: Scene, seed: np.random.SeedSequence
    ) -> NDArray[np.uint8]:
        objects = scene.layout.select([i for i, name in enumerate(scene.layout.categories) if name])
        whole, bare = (
            self.painter([Scene(of, scene.background)], [seed])[0].image
            for of in (objects, objects.select([]))
        )
        out = image.copy()
        for (x0, y0, x1, y1), name in zip(
            scene.layout.boxes.astype(int).tolist(), scene.layout.categories, strict=True
        ):
            out[y0:y1, x0:x1] = (whole if name else bare)[y0:y1, x0:x1]
        return out


ASKED = Scene(
    layout([10, 10, 80, 70], [100, 20, 170, 80], [20, 120, 90, 190]).with_phrases(
        ("a brown dog",) * 3
    ),
    "a field of grass",
)


def inspection(painter: Any, **options: Any) -> Inspection:
    spec = Spec.model_validate({"threshold": 0.2, "unasked": 0.4, **options})
    return Inspection(spec, DetectorVerifier(spec, "cpu"), painter)


def seeds(k: int, number: int) -> np.random.SeedSequence:
    return np.random.SeedSequence((k, number))


@pytest.fixture(scope="module")
def paste() -> PastePainter:
    painter = PasteSpec(cutouts="heldout", grounds="heldout").load(SCENES, Numerics())
    assert isinstance(painter, PastePainter)
    return painter


def test_pasted_objects_do_not_fail(paste: PastePainter) -> None:
    look = inspection(paste)
    (checked,) = look([ASKED], paste([ASKED], [np.random.SeedSequence(0)]), seeds)
    assert (checked.faults, checked.repairs) == (0, 0)
    assert (checked.verdict.scores > 0.2).all()


def test_missed_objects_and_false_positives_are_repaired(paste: PastePainter) -> None:
    painter = Forgetful(paste, 1, extra=True)
    look = inspection(painter)
    before = painter([ASKED], [np.random.SeedSequence(0)])
    assert look.verify(before, [ASKED.layout])[0].faults == 2
    (checked,) = look([ASKED], before, seeds)
    assert checked.faults == 0
    assert checked.actions == ("repaired", "", "")
    assert checked.record() == {"failed": 0, "unasked": 0, "repairs": 1}
    (scene,) = painter.repainted
    assert scene.layout.categories == ("dog", "")
    assert (checked.painting.image[200:, :150] == before[0].image[200:, :150]).all()


def test_a_failed_box_is_flagged_after_the_last_repair(paste: PastePainter) -> None:
    painter = Forgetful(paste, 1, stubborn=True)
    look = inspection(painter, max_repairs=3)
    (checked,) = look([ASKED], painter([ASKED], [np.random.SeedSequence(0)]), seeds)
    assert len(painter.repainted) == 3
    finished = look.finish(checked)
    assert finished.actions == ("flagged", "", "")
    annotation = finished.annotation(0)
    assert set(annotation) == {"score", "iou", "action"}
    assert annotation["score"] < 0.2
    assert finished.record() == {"failed": 1, "unasked": 0, "repairs": 3}


def verdict(scores: Sequence[float], ious: Sequence[float], unasked: int = 0) -> Verdict:
    n = len(scores)
    found = np.array([[5, 5 + k, 50, 50] for k in range(n)], np.float32).reshape(-1, 4)
    return Verdict(
        np.array(scores, np.float32),
        np.array(ious, np.float32),
        found,
        np.zeros((unasked, 4), np.float32),
    )


def checked(scores: Sequence[float], ious: Sequence[float], unasked: int = 0) -> Checked:
    spec = Spec(iou=0.7)
    of = layout(*[[0, 0, 50, 50]] * len(scores))
    found = verdict(scores, ious, unasked)
    return Checked(
        Painting(np.zeros((1, 1, 3), np.uint8)),
        of,
        found,
        spec.find_failed_boxes(found, of),
        ("",) * len(scores),
    )


def test_a_near_detection_with_a_good_score_replaces_the_box() -> None:
    spec = Spec(iou=0.7, on_failure=("tighten", "flag"))
    look = Inspection(spec, None, None)  # type: ignore[arg-type]
    finished = look.finish(checked([0.9, 0.9, 0.1, 0.9], [0.6, 0.2, 0.6, 0.9]))
    assert finished.actions == ("tightened", "flagged", "flagged", "")
    np.testing.assert_array_equal(finished.layout.boxes[0], [5, 5, 50, 50])
    np.testing.assert_array_equal(finished.layout.boxes[1], [0, 0, 50, 50])
    assert finished.record()["failed"] == 2


@pytest.mark.parametrize(
    ("iou", "action"), [(0.301, "tightened"), (0.299, "flagged"), (0.499, "tightened"), (0.5, "")]
)
def test_labels_are_tightened_from_the_documented_iou_on(iou: float, action: str) -> None:
    look = Inspection(Spec(on_failure=("tighten", "flag")), None, None)  # type: ignore[arg-type]
    of = layout([0, 0, 50, 50])
    found = verdict([0.9], [iou])
    finished = look.finish(
        Checked(
            Painting(np.zeros((64, 64, 3), np.uint8)),
            of,
            found,
            look.spec.find_failed_boxes(found, of),
            ("",),
        )
    )
    assert finished.actions == (action,)


def verified(
    scores: Sequence[float], image: NDArray[np.uint8], unasked: Sequence[Sequence[float]] = ()
) -> Checked:
    of = layout([0, 0, 50, 50], [100, 100, 150, 150])
    found = replace(
        verdict(scores, [0.9, 0.9]), unasked=np.array(unasked, np.float32).reshape(-1, 4)
    )
    return Checked(Painting(image), of, found, Spec().find_failed_boxes(found, of), ("",) * 2)


def test_the_better_version_of_each_part_is_kept() -> None:
    before = np.zeros((203, 205, 3), np.uint8)
    after = before.copy()
    after[5:60, 3:60] = 1
    after[100:203, 95:205] = 2
    first = before.copy()
    second = before.copy()
    both = after
    first[5:60, 3:60] = 1
    second[100:203, 95:205] = 2
    old = verified([0.1, 0.6], before)
    for scores, unasked, wanted in (
        ([0.8, 0.9], [], both),
        ([0.8, 0.5], [], first),  # the second box was good and is worse now
        ([0.2, 0.2], [], first),  # both fail: the score decides
        ([0.05, 0.9], [], second),
        ([0.1, 0.6], [], before),
        ([0.9, 0.9], [[170, 180, 200, 200]], first),  # the second part has a new false positive
    ):
        np.testing.assert_array_equal(
            merge_better_parts(old, verified(scores, after, unasked)), wanted
        )
    with_false_positive = verified([0.1, 0.9], before, [[40, 40, 80, 80]])
    merged = merge_better_parts(with_false_positive, verified([0.1, 0.2], after))
    np.testing.assert_array_equal(merged, first)  # a false positive is gone


class Scripted:
    """A verifier with one verdict for each sum of an image's pixels; also a painter."""

    def __init__(self, verdicts: dict[int, Verdict]) -> None:
        self.verdicts = verdicts

    def __call__(
        self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]
    ) -> list[Verdict]:
        return [self.verdicts[int(image.sum())] for image in images]

    def inpaint_boxes(
        self,
        images: Sequence[NDArray[np.uint8]],
        scenes: Sequence[Scene],
        seeds: Sequence[np.random.SeedSequence],
    ) -> list[NDArray[np.uint8]]:
        """Return the image with both boxes generated again."""
        return [BOTH for _ in images]


TWO = Scene(layout([0, 0, 50, 50], [100, 100, 150, 150]).with_phrases(("a dog",) * 2), "sand")
BEFORE = np.zeros((256, 256, 3), np.uint8)
FIRST = BEFORE.copy()
BOTH = BEFORE.copy()
FIRST[10, 10, 0] = BOTH[10, 10, 0] = 1
BOTH[110, 110, 0] = 1


@pytest.mark.parametrize(
    ("final", "kept"),
    [
        # the part is as good on its own as in the repainted image
        (verdict([0.9, 0.9], [0.9, 0.9]), True),
        (verdict([0.9, 0.1], [0.9, 0.9], 2), False),  # 1 fault became 3
        (verdict([0.9, 0.1], [0.9, 0.9]), True),  # as many faults, and the scores are better
        (verdict([0.15, 0.5], [0.9, 0.9]), False),  # as many faults, and the scores are worse
    ],
)
def test_a_repair_that_is_worse_as_a_whole_is_not_kept(final: Verdict, kept: bool) -> None:
    """A detector looks at the whole image, so a part can be worse without other new parts."""
    start = verdict([0.1, 0.8], [0.9, 0.9])
    final = replace(
        final,
        unasked=np.array([[60, 60, 80, 80], [170, 170, 190, 190]], np.float32)[
            : len(final.unasked)
        ],
    )
    # in the repainted image the second box is worse, so only the first part is taken
    scripted = Scripted({0: start, 2: verdict([0.9, 0.6], [0.9, 0.9]), 1: final})
    look = Inspection(Spec(max_repairs=1), scripted, scripted)
    (checked,) = look([TWO], [Painting(BEFORE)], seeds)
    np.testing.assert_array_equal(checked.painting.image, FIRST if kept else BEFORE)
    assert checked.repairs == 1
    np.testing.assert_array_equal(checked.verdict.scores, (final if kept else start).scores)
    assert checked.faults <= 1


def test_a_repair_is_recorded_for_the_boxes_it_corrected() -> None:
    bad = checked([0.1, 0.9], [0.9, 0.9])
    good = checked([0.8, 0.8], [0.9, 0.9])
    accepted = accept_repair(bad, good, 2)
    assert accepted.actions == ("repaired", "")
    assert accepted.repairs == 2
    assert accept_repair(bad, bad, 1).actions == ("", "")


def test_only_failed_boxes_and_false_positives_are_generated_again() -> None:
    scene = Scene(layout([0, 0, 50, 50], [60, 60, 99, 99]).with_phrases(("a", "b")), "sand")
    part = select_faults(scene, checked([0.9, 0.1], [0.9, 0.9], 1))
    assert (part.layout.categories, part.layout.phrases) == (("dog", ""), ("b", ""))


@pytest.mark.parametrize(("on_failure", "attempts"), [(["redo", "flag"], 3), (["flag"], 1)])
def test_redo_generates_the_image_again(
    make_job: Callable[..., Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    paste: PastePainter,
    on_failure: list[str],
    attempts: int,
) -> None:
    monkeypatch.setattr(
        PasteSpec, "load", lambda self, scene, numerics: Forgetful(paste, 1, stubborn=True)
    )
    job = make_job(
        f"verify={{verifier: detector, on_failure: [{', '.join(on_failure)}]}}",
        "images=1",
        "output.shard_size=1",
    )
    (painted,) = Worker(job, open_store(tmp_path)).paint([0])
    assert painted.attempts == attempts
    refusing = make_job(
        f"verify={{verifier: detector, on_failure: [{on_failure[0]}]}}",
        "images=1",
        "on_reject=fail",
    )
    if "flag" not in on_failure[:1]:
        with pytest.raises(
            RejectedImageError, match=r"samples \[0\]: failed boxes or false positives"
        ):
            Worker(refusing, open_store(tmp_path)).paint([0])


def test_a_job_with_verification_records_the_verdicts(
    job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    big = [
        "layout.canvas=[192, 192]",
        "layout.size=[48, 64]",
        "layout.objects={dog: 3}",
        "images=4",
        "pipeline.cutouts=heldout",
    ]
    assert cli.main(["run", str(job_file), *big, "verify=detector", "--json"]) == 0
    out = Path(json.loads(capsys.readouterr().out)["output"])
    assert cli.main(["check", str(out)]) == 0
    records = [
        json.loads(data)
        for name, data in read_members(out / "shards/000000.tar")
        if name.endswith(".json")
    ]
    assert set(records[0]["verified"]) == {"failed", "unasked", "repairs"}
    assert all({"score", "iou", "action"} <= set(a) for a in records[0]["annotations"])
    coco = json.loads((out / "annotations/instances.json").read_text())
    assert np.mean([a["score"] for a in coco["annotations"]]) > 0.3
    from datasets import load_dataset

    rows = load_dataset(str(out), split="train", cache_dir=str(out.parent / "cache"))
    assert rows[0]["json"]["annotations"][0]["score"] == records[0]["annotations"][0]["score"]


def test_a_verified_shard_is_a_function_of_the_job(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job(
        "verify=detector",
        "images=2",
        "layout.canvas=[192, 192]",
        "layout.size=[48, 64]",
        "layout.objects={dog: 3}",
    )
    staged = [list(Worker(job, open_store(tmp_path / str(k))).make_shard(0))[-1] for k in range(2)]
    assert isinstance(staged[0], StagedShard)
    assert isinstance(staged[1], StagedShard)
    assert staged[0].marker.sha256 == staged[1].marker.sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("verify=detectr", "verify.verifier: 'detectr' is not a verifier; did you mean 'detector'"),
        (
            "verify={verifier: detector, model: nowhere}",
            "verify.model: 'nowhere': no folder of that name holds a config.json",
        ),
        (
            "verify={verifier: detector, threshold: {cat: 0.5}}",
            "verify.threshold: no number for 'dog'",
        ),
        ("verify={verifier: detector, iou: 2}", "verify.iou: 2: "),
    ],
)
def test_an_error_names_the_key(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_job("100dogs", [change])


def test_an_error_names_categories_that_the_detector_does_not_know() -> None:
    with pytest.raises(
        ConfigError,
        match=r"verify.model: centernet-tiny does not know cow; it knows ball, cat, dog, tree",
    ):
        load_job("100dogs", ["verify=detector", "layout.objects={cow: 3}"])
