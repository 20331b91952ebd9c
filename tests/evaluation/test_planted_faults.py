"""Faults that are planted in an image of 100 pasted dogs are detected."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from synthgen.config import load_job
from synthgen.engine.worker import sample_scene
from synthgen.evaluation.detection import DetectionFigures
from synthgen.layouts.base import Layout
from synthgen.pipelines.base import Numerics
from synthgen.scenes.scene import Scene
from synthgen.verification.detector import Spec
from synthgen.verification.detector.verifier import DetectorVerifier

IDS = {"dog": 18}
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def generated() -> tuple[list[Scene], list[Pixels]]:
    """Two images of jobs/100dogs.yaml, with cut-outs that the detector was not trained on."""
    job = load_job(
        "100dogs", ["pipeline=paste", "pipeline.cutouts=heldout", "pipeline.grounds=heldout"]
    )
    painter: Any = job.pipeline.load(job.scene, Numerics())
    scenes = [sample_scene(job, i) for i in range(2)]
    seeds = [np.random.SeedSequence(i) for i in range(2)]
    return scenes, [painting.image for painting in painter(scenes, seeds)]


@pytest.fixture(scope="module")
def verifier() -> DetectorVerifier:
    return DetectorVerifier(Spec(), "cpu")


def test_grey_patches_have_the_lowest_scores(generated: Any, verifier: DetectorVerifier) -> None:
    scenes, images = generated
    layout = scenes[0].layout
    image = images[0].copy()
    covered = [7, 21, 40, 63, 99]
    for i in covered:
        x0, y0, x1, y1 = layout.boxes[i].astype(int)
        image[y0:y1, x0:x1] = 128
    (verdict,) = verifier([image], [layout])
    assert sorted(np.argsort(verdict.scores, kind="stable")[:5].tolist()) == covered
    assert verifier.spec.find_failed_boxes(verdict, layout)[covered].all()


def test_a_dog_without_a_label_is_a_false_positive(
    generated: Any, verifier: DetectorVerifier
) -> None:
    """The image has 100 dogs, and its labels are 99."""
    scenes, images = generated
    layout = scenes[1].layout
    (before,) = verifier([images[1]], [layout])
    without_dog = layout.select([i for i in range(100) if i != 50])
    (after,) = verifier([images[1]], [without_dog])
    false_positives = set(map(tuple, after.unasked.tolist()))
    false_positives -= set(map(tuple, before.unasked.tolist()))
    assert len(false_positives) == 1
    centre = np.array(false_positives.pop()).reshape(2, 2).mean(0)
    assert (centre > layout.boxes[50, :2]).all()
    assert (centre < layout.boxes[50, 2:]).all()


def compute_ap75(verifier: DetectorVerifier, images: list[Pixels], layouts: list[Layout]) -> float:
    figures = DetectionFigures(IDS)
    for image, layout in zip(images, layouts, strict=True):
        (detections,) = verifier.found([image], [layout])
        figures.add(layout, detections)
    return figures.figures()["ap75"]


def test_swapped_images_and_shifted_labels_lower_ap75(
    generated: Any, verifier: DetectorVerifier
) -> None:
    scenes, images = generated
    layouts = [scene.layout for scene in scenes]
    shifted = []
    for layout in layouts:
        boxes = (layout.boxes + 20).clip(0, layout.width).astype(np.float32)
        shifted.append(replace(layout, boxes=boxes))
    correct = compute_ap75(verifier, images, layouts)
    assert correct > 0.5
    assert compute_ap75(verifier, images[::-1], layouts) < 0.1 * correct
    assert compute_ap75(verifier, images, shifted) < 0.1 * correct
