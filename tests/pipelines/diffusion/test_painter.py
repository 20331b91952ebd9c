"""Painters as the engine has them: single boxes of a finished picture are painted again, whatever method painted it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

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
def test_a_box_is_painted_again_and_nothing_else(kind: Any, checkpoint: Path) -> None:
    painter = kind(model=str(checkpoint), steps=2).load(SceneSpec(background="sand"), Numerics())
    found = painter.repaint(IMAGES, SCENES, SEEDS)
    for before, after, scene in zip(IMAGES, found, SCENES, strict=True):
        changed = (before != after).any(2)
        x0, y0, x1, y1 = scene.layout.boxes[0].astype(int)
        assert changed[y0:y1, x0:x1].mean() > 0.9
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert (
            max(rows[-1] - rows[0], columns[-1] - columns[0]) < 34
        )  # the box, context, and what the UNet can halve
    again = painter.repaint(IMAGES, SCENES, [np.random.SeedSequence(k + 9) for k in range(2)])
    assert (again[0] != found[0]).any()
    plain = painter(SCENES, SEEDS)
    assert len(plain) == 2  # and it still paints as it did


def test_a_unet_that_reads_more_than_latents_cannot_repair(checkpoint: Path) -> None:
    painter: Any = LayeredSpec(model=str(checkpoint), steps=2).load(SceneSpec(), Numerics())
    config = {**painter.pipeline.unet.config, "in_channels": 6}
    with torch.no_grad():
        painter.pipeline.unet = UNet2DConditionModel.from_config(config)
    assert all(
        (a == b).all() for a, b in zip(painter.repaint(IMAGES, SCENES, SEEDS), IMAGES, strict=True)
    )
