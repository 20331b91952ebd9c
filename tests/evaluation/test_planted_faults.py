"""Faults put into a picture of 100 pasted dogs on purpose: each is found."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from synthgen.config import load_job
from synthgen.engine.worker import draw_scene
from synthgen.evaluation.detection import DetectionFigures
from synthgen.layouts.base import Layout
from synthgen.pipelines.base import Numerics
from synthgen.scenes.scene import Scene
from synthgen.verification.detector import Spec
from synthgen.verification.detector.verifier import DetectorVerifier

IDS = {"dog": 18}
Picture = NDArray[np.uint8]


@pytest.fixture(scope="module")
def painted() -> tuple[Any, list[Scene], list[Picture]]:
    """Two pictures of jobs/100dogs.yaml, of cut-outs that no detector of ours was trained on."""
    job = load_job(
        "100dogs", ["pipeline=paste", "pipeline.cutouts=heldout", "pipeline.grounds=heldout"]
    )
    painter: Any = job.pipeline.load(job.scene, Numerics())
    scenes = [draw_scene(job, i) for i in range(2)]
    return (
        painter,
        scenes,
        [p.image for p in painter(scenes, [np.random.SeedSequence(i) for i in range(2)])],
    )


@pytest.fixture(scope="module")
def verifier() -> DetectorVerifier:
    return DetectorVerifier(Spec(), "cpu")


def test_grey_patches_have_the_lowest_scores(painted: Any, verifier: DetectorVerifier) -> None:
    _, scenes, pictures = painted
    layout, picture = scenes[0].layout, pictures[0].copy()
    spoilt = [7, 21, 40, 63, 99]
    for i in spoilt:
        x0, y0, x1, y1 = layout.boxes[i].astype(int)
        picture[y0:y1, x0:x1] = 128
    (verdict,) = verifier([picture], [layout])
    assert sorted(np.argsort(verdict.scores, kind="stable")[:5].tolist()) == spoilt
    assert verifier.spec.fails(verdict, layout)[spoilt].all()


def test_a_dog_between_the_boxes_is_unasked(painted: Any, verifier: DetectorVerifier) -> None:
    """The picture is painted with 100 dogs, and asked for with 99."""
    _, scenes, pictures = painted
    layout = scenes[1].layout
    (before,) = verifier([pictures[1]], [layout])
    (verdict,) = verifier([pictures[1]], [layout.select([i for i in range(100) if i != 50])])
    found = {tuple(b) for b in verdict.unasked.tolist()} - {
        tuple(b) for b in before.unasked.tolist()
    }
    assert len(found) == 1
    centre = np.array(found.pop()).reshape(2, 2).mean(0)
    assert (centre > layout.boxes[50, :2]).all()
    assert (centre < layout.boxes[50, 2:]).all()


def ap75(verifier: DetectorVerifier, pictures: list[Picture], layouts: list[Layout]) -> float:
    figures = DetectionFigures(IDS)
    for picture, layout in zip(pictures, layouts, strict=True):
        figures.add(layout, verifier.found([picture], [layout])[0])
    return figures.figures()["ap75"]


def test_swapped_pictures_and_shifted_labels_drop_ap75(
    painted: Any, verifier: DetectorVerifier
) -> None:
    _, scenes, pictures = painted
    layouts = [scene.layout for scene in scenes]
    right = ap75(verifier, pictures, layouts)
    shifted = [
        replace(of, boxes=(of.boxes + 20).clip(0, of.width).astype(np.float32)) for of in layouts
    ]
    assert right > 0.5
    assert ap75(verifier, pictures[::-1], layouts) < 0.1 * right
    assert ap75(verifier, pictures, shifted) < 0.1 * right
