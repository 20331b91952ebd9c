"""Whatever a detector returns, all boxes are inside the image and all numbers are finite."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from synthgen.config import Job
from synthgen.dataset.check import check_dataset
from synthgen.engine.worker import Worker, build_annotations
from synthgen.evaluation.detection import DetectionFigures
from synthgen.layouts.base import Layout
from synthgen.pipelines.base import Painting
from synthgen.pipelines.diffusion.pipeline import LatentPipeline
from synthgen.scenes.scene import Scene
from synthgen.storage.location import open_store
from synthgen.training.detector.trainee import DetectorTrainee
from synthgen.verification.base import Verdict, VerifierSpec
from synthgen.verification.detections import LEAST_SIDE, Detections
from synthgen.verification.detector import Spec
from synthgen.verification.detector import verifier as detectors
from synthgen.verification.detector.verifier import DetectorVerifier
from synthgen.verification.panel import Spec as PanelSpec
from synthgen.verification.panel.verifier import Panel
from synthgen.verification.repair import Inspection

WIDTH = 96
HEIGHT = 64
CELL = 8
ASKED = Layout(
    WIDTH,
    HEIGHT,
    np.array([[0, 0, 30, 30], [40, 10, 80, 60], [60, 20, 96, 64]], np.float32),
    ("dog", "dog", "cat"),
    ("a dog", "a dog", "a cat"),
)
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)

NUMBERS = st.floats(-2.0 * WIDTH, 2.0 * WIDTH, width=32) | st.floats(width=32)
SCORES = st.floats(0, 1, width=32) | st.floats(width=32)
CASES = settings(max_examples=150, deadline=None)


@st.composite
def wild(draw: Any) -> Detections:
    """Any output of a detector, some of it near the boxes of the layout."""
    n = draw(st.integers(0, 6))
    boxes = draw(arrays(np.float32, (n, 4), elements=NUMBERS))
    for i in range(n):
        if draw(st.booleans()):
            shift = draw(arrays(np.float32, 4, elements=st.floats(-12, 12, width=32)))
            boxes[i] = ASKED.boxes[draw(st.integers(0, 2))] + shift
    scores = draw(arrays(np.float32, n, elements=SCORES))
    names = draw(st.lists(st.sampled_from(("dog", "cat", "tree")), min_size=n, max_size=n))
    return Detections(boxes, scores, tuple(names))


def one(box: Sequence[float], score: float = 0.9, name: str = "dog") -> Detections:
    return Detections(np.array([box], np.float32), np.array([score], np.float32), (name,))


def verifier(spec: Spec, found: Detections) -> DetectorVerifier:
    """Return the real verifier with a detector that always returns `found`."""
    made: Any = DetectorVerifier.__new__(DetectorVerifier)
    made.spec = spec
    made.names = {}
    made.detect = lambda images, labels: [found for _ in images]
    verifier: DetectorVerifier = made
    return verifier


class Strict:
    """A painter that accepts the layouts of a latent pipeline and does not change the images."""

    least_side = CELL

    def inpaint_boxes(
        self, images: Sequence[NDArray[np.uint8]], scenes: Sequence[Scene], seeds: Sequence[object]
    ) -> list[NDArray[np.uint8]]:
        pipeline: Any = SimpleNamespace(factor=CELL, multiple=1)
        LatentPipeline.check_layouts(pipeline, [scene.layout for scene in scenes])
        return list(images)


def seeds(k: int, number: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(number)


def is_good_label(bbox: Sequence[float]) -> bool:
    """Tell whether `synthgen check` accepts a box."""
    x, y, w, h = bbox
    inside = x >= 0 and y >= 0 and x + w <= WIDTH + 1e-3 and y + h <= HEIGHT + 1e-3
    return w > 0 and h > 0 and inside


@given(wild())
@CASES
def test_detections_are_inside_the_image(found: Detections) -> None:
    kept = found.clip_to_image(WIDTH, HEIGHT)
    assert len(kept.boxes) == len(kept.scores) == len(kept.categories)
    assert np.isfinite(kept.boxes).all()
    assert (kept.boxes >= 0).all()
    assert (kept.boxes <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()
    assert (kept.boxes[:, 2:] - kept.boxes[:, :2] >= LEAST_SIDE).all()
    assert ((kept.scores >= 0) & (kept.scores <= 1)).all()
    assert (np.diff(kept.scores) <= 0).all()
    again = kept.clip_to_image(WIDTH, HEIGHT)
    np.testing.assert_array_equal(again.boxes, kept.boxes)
    good = np.isfinite(found.boxes).all(1) & np.isfinite(found.scores)
    assert len(kept.scores) <= good.sum()


def test_good_detections_do_not_change() -> None:
    found = Detections(ASKED.boxes, np.array([0.9, 0.9, 0.2], np.float32), ASKED.categories)
    kept = found.clip_to_image(WIDTH, HEIGHT)
    np.testing.assert_array_equal(kept.boxes, found.boxes)
    np.testing.assert_array_equal(kept.scores, found.scores)
    assert kept.categories == found.categories


@given(
    wild(),
    st.floats(0, 1),
    st.sampled_from([("repair", "tighten", "flag"), ("tighten", "flag"), ("repair", "flag")]),
)
# a false positive smaller than a latent cell
@example(one((50, 50, 53, 54)), 0.5, ("repair", "flag"))
@example(one((94, 62, 96, 64)), 0.5, ("repair", "flag"))  # the same in a corner
@example(one((-4, -2, 27, 28)), 0.95, ("tighten", "flag"))  # begins outside the image
@example(one((0, 0, 30, 30), math.nan), 0.5, ("tighten", "flag"))
@CASES
def test_verdicts_repairs_and_labels_are_finite_and_inside_the_image(
    found: Detections, iou: float, on_failure: tuple[Any, ...]
) -> None:
    spec = Spec(iou=iou, on_failure=on_failure, threshold=0.3)
    for looking in (spec, PanelSpec(of=(spec,), on_failure=on_failure)):
        own: Any = verifier(spec, found)
        if isinstance(looking, PanelSpec):
            own = Panel.__new__(Panel)
            own.members = [(spec, verifier(spec, found))]
        look = Inspection(looking, own, Strict())
        (checked,) = look([Scene(ASKED, "grass")], [Painting(IMAGE)], seeds)
        finished = look.finish(checked)
        scene = Scene(finished.layout, "grass")
        for annotation in build_annotations(scene, Painting(IMAGE), {"dog": 1, "cat": 2}, finished):
            assert is_good_label(annotation.bbox)
            assert annotation.score is not None
            assert 0 <= annotation.score <= 1
            json.dumps(annotation.to_record(), allow_nan=False)
        json.dumps(finished.record(), allow_nan=False)


class Broken(VerifierSpec):
    """A verifier whose network returns NaN, as after an overflow at half precision."""

    verifier: str = "broken"

    def load(self, device: str) -> Any:
        return self.verdicts

    def verdicts(
        self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]
    ) -> list[Verdict]:
        stray = np.array([[math.nan, 0, 9, 9], [-20, -20, 5, 5], [200, 200, 300, 300]], np.float32)
        found = np.array([[math.nan] * 4, [-9, 10, 80, 60], [60, 20, 60, 20]], np.float32)
        ious = np.array([math.nan, 0.9, 0.9], np.float32)
        return [
            Verdict(np.full(len(of), math.nan, np.float32), ious, found, stray) for of in layouts
        ]


@pytest.mark.parametrize("panel", [False, True])
def test_a_box_with_a_score_of_nan_fails(panel: bool) -> None:
    spec: VerifierSpec = Broken(on_failure=("repair", "tighten", "flag"))
    if panel:
        made: Any = Panel.__new__(Panel)
        made.members = [(spec, spec.load("cpu")), (Spec(), verifier(Spec(), one((0, 0, 30, 30))))]
        look = Inspection(PanelSpec(of=(spec, Spec())), made, Strict())
    else:
        look = Inspection(spec, spec.load("cpu"), Strict())
    (checked,) = look([Scene(ASKED, "grass")], [Painting(IMAGE)], seeds)
    finished = look.finish(checked)
    assert finished.failed.all()
    assert finished.actions == ("flagged",) * 3
    np.testing.assert_array_equal(checked.verdict.unasked, [[0, 0, 5, 5]])
    json.dumps([finished.annotation(i) for i in range(3)], allow_nan=False)


@given(wild())
@CASES
def test_the_figures_of_any_detections_are_finite(found: Detections) -> None:
    seen = DetectionFigures({"dog": 1, "cat": 2})
    seen.add(ASKED, found)
    assert all(np.isfinite(f["bbox"]).all() and is_good_label(f["bbox"]) for f in seen.found)
    assert all(0 <= f["score"] <= 1 for f in seen.found)
    told = seen.figures()
    assert 0 <= told["ap"] <= 1
    assert 0 <= told["iou"] <= 1
    assert math.isfinite(told["count_error"])


@given(wild())
@settings(max_examples=40, deadline=None)
def test_a_detector_in_training_is_measured_on_finite_detections(found: Detections) -> None:
    kind: Any = DetectorTrainee
    trainee: Any = kind.__new__(kind)
    trainee.__dict__.update(held_out=[(Scene(ASKED, ""), IMAGE)], detect=lambda picture: found)
    told = DetectorTrainee.measure(trainee)
    assert all(math.isfinite(value) for value in told.values())
    trainee.__dict__["threshold"] = 0.0
    assert DetectorTrainee.render_sheet(trainee).size


# Tightening


def finished(spec: Spec, layout: Layout, found: Detections) -> Any:
    look = Inspection(spec, verifier(spec, found), None)
    (checked,) = look([Scene(layout, "grass")], [Painting(IMAGE)], seeds)
    return look.finish(checked)


DOG = Layout(WIDTH, HEIGHT, np.array([[40, 10, 80, 50]], np.float32), ("dog",), ("a dog",))


@pytest.mark.parametrize(
    ("left", "score", "action"),
    [
        (44, 0.9, ""),  # IoU 0.82: it does not fail
        (55, 0.9, "tightened"),  # 0.45
        (60, 0.9, "tightened"),  # 0.33
        (64, 0.9, "flagged"),  # 0.25: another object, or none
        (55, 0.2, "flagged"),  # its score is too low
    ],
)
def test_a_label_is_tightened_from_the_default_iou_on(
    left: float, score: float, action: str
) -> None:
    found = one((left, 10, min(left + 40, WIDTH), 50), score)
    spec = Spec(on_failure=("tighten", "flag"))
    done = finished(spec, DOG, found)
    assert done.actions == (action,)
    wanted = found.boxes if action == "tightened" else DOG.boxes
    np.testing.assert_array_equal(done.layout.boxes, wanted)
    assert done.failed.tolist() == [action == "flagged"]


@pytest.mark.parametrize(
    ("found", "label"),
    [
        ((-4, -2, 27, 28), (0, 0, 27, 28)),
        ((90, 10, 130, 50), (90, 10, 96, 50)),
        ((math.nan, 10, 80, 50), None),
        ((-20, 10, -3, 50), None),  # outside
        ((40, 10, 40, 50), None),  # no area
        ((80, 50, 40, 10), None),  # the wrong way round
    ],
)
def test_a_tightened_label_is_inside_the_image_and_has_an_area(
    found: Sequence[float], label: Sequence[float] | None
) -> None:
    none = np.zeros((0, 4), np.float32)
    said = Verdict(
        np.array([0.9], np.float32),
        np.array([0.4], np.float32),
        np.array([found], np.float32),
        none,
    )
    spec = Spec(on_failure=("tighten", "flag"))
    look = Inspection(spec, lambda images, layouts: [said], None)
    (checked,) = look.verify([Painting(IMAGE)], [DOG])
    done = look.finish(checked)
    assert done.actions == ("flagged" if label is None else "tightened",)
    np.testing.assert_array_equal(done.layout.boxes[0], DOG.boxes[0] if label is None else label)


def test_one_detection_tightens_only_one_box() -> None:
    """One of two dogs is missing; the other is badly placed, near both boxes."""
    two = Layout(
        WIDTH,
        HEIGHT,
        np.array([[20, 10, 60, 50], [36, 10, 76, 50]], np.float32),
        ("dog", "dog"),
        ("a dog",) * 2,
    )
    done = finished(Spec(iou=0.8, on_failure=("tighten", "flag")), two, one((30, 10, 70, 50)))
    assert done.actions == ("flagged", "tightened")
    np.testing.assert_array_equal(done.layout.boxes, [[20, 10, 60, 50], [30, 10, 70, 50]])
    # if the other box does not fail, its detection does not tighten the failed box either
    done = finished(Spec(iou=0.5, on_failure=("tighten", "flag")), two, one((36, 10, 76, 50)))
    assert done.actions == ("flagged", "")


def test_a_small_false_positive_does_not_stop_the_shard(
    make_job: Callable[..., Job], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real pipeline replaces false positives smaller than a latent cell, and half outside."""
    stray = Detections(
        np.array([[50, 50, 50.9, 54], [61, 40, 62.2, 41.3], [-9, -9, 4, 3]], np.float32),
        np.array([0.95, 0.9, 0.8], np.float32),
        ("dog",) * 3,
    )
    monkeypatch.setattr(
        detectors,
        "load_detector",
        lambda spec, device, least=None: lambda images, labels: [stray] * len(images),
    )
    job = make_job(
        "layout.canvas=[64, 64]",
        "layout.objects={dog: 1}",
        "layout.size=[24, 24]",
        "images=1",
        "output.shard_size=1",
        f"pipeline={{method: mixture, model: '{checkpoint}', steps: 1}}",
        "batch_size=1",
        "verify={verifier: detector, on_failure: [repair, tighten, flag], max_repairs: 1}",
    )
    from synthgen.engine.generation import run

    run(job)
    assert check_dataset(open_store(job.output.path))[0] == []
    worker = Worker(job, open_store(tmp_path))
    (painted,) = worker.paint([0])
    assert painted.checked is not None
    # detections under a pixel wide are dropped; two false positives and the missing dog remain
    assert painted.checked.record() == {"failed": 1, "unasked": 2, "repairs": 1}
