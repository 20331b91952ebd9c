"""Painters generate single boxes of a finished image again, whatever method generated it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from synthgen import heartbeat
from synthgen.layouts.base import Layout
from synthgen.pipelines.annotation_mask import Spec as AnnotationMaskSpec
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.layered import Spec as LayeredSpec
from synthgen.pipelines.mixture import Spec as MixtureSpec
from synthgen.pipelines.regional_attention import Spec as RegionalSpec
from synthgen.scenes.scene import Scene, SceneSpec

SCENES = [
    Scene(Layout(64, 64, np.array([box], np.float32), ("dog",), ("a white dog",)), "sand")
    for box in ([4, 4, 20, 20], [40, 36, 60, 60])
]
IMAGES = list(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
SEEDS = [np.random.SeedSequence(k) for k in range(2)]


@pytest.mark.parametrize("kind", [MixtureSpec, LayeredSpec, RegionalSpec, AnnotationMaskSpec])
def test_a_box_is_generated_again_and_nothing_else_changes(kind: Any, checkpoint: Path) -> None:
    painter = kind(model=str(checkpoint), steps=2).load(SceneSpec(background="sand"), Numerics())
    repaired = painter.inpaint_boxes(IMAGES, SCENES, SEEDS)
    for before, after, scene in zip(IMAGES, repaired, SCENES, strict=True):
        changed = (before != after).any(2)
        x0, y0, x1, y1 = scene.layout.boxes[0].astype(int)
        assert changed[y0:y1, x0:x1].mean() > 0.9
        rows = np.flatnonzero(changed.any(1))
        columns = np.flatnonzero(changed.any(0))
        # A window is the box with context, rounded up to what the UNet can halve.
        assert max(rows[-1] - rows[0], columns[-1] - columns[0]) < 34
    other_seeds = [np.random.SeedSequence(k + 9) for k in range(2)]
    again = painter.inpaint_boxes(IMAGES, SCENES, other_seeds)
    assert (again[0] != repaired[0]).any()
    assert len(painter(SCENES, SEEDS)) == 2  # it still generates whole images


@pytest.mark.parametrize("kind", [MixtureSpec, LayeredSpec, RegionalSpec, AnnotationMaskSpec])
def test_the_progress_of_a_batch_ends_with_its_images(kind: Any, checkpoint: Path) -> None:
    painter = kind(model=str(checkpoint), steps=4).load(SceneSpec(background="sand"), Numerics())
    parts = []
    activities = []

    def record(pulse: heartbeat.Pulse) -> None:
        parts.append(pulse.part)
        activities.append(pulse.activity)

    heartbeat.begin_batch(2)
    with heartbeat.watch(record):
        painter(SCENES, SEEDS)
    assert parts == sorted(parts)
    assert parts[-1] == 2
    assert len(set(parts)) > 4
    assert activities[-1] == "decoding"
    # Only the decoding is left when the denoising is done.
    decoded = activities[::-1].index("denoising")
    assert 1 < parts[-decoded - 1] < 2


def test_images_stay_unchanged_if_the_unet_reads_more_than_latents(checkpoint: Path) -> None:
    painter: Any = LayeredSpec(model=str(checkpoint), steps=2).load(SceneSpec(), Numerics())
    config = {**painter.pipeline.unet.config, "in_channels": 6}
    with torch.no_grad():
        painter.pipeline.unet = UNet2DConditionModel.from_config(config)
    np.testing.assert_array_equal(painter.inpaint_boxes(IMAGES, SCENES, SEEDS), IMAGES)
