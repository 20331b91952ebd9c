"""Endless pasted scenes to train on."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from synthgen.assets import ASSETS
from synthgen.layouts.scatter import Spec as ScatterSpec
from synthgen.pipelines.paste import PastePainter
from synthgen.scene import Scene, SceneSpec

COATS = ("brown", "white", "black", "white and black", "white and brown")
OBJECTS = tuple(f"a {coat} {{category}}" for coat in COATS) * 2 + ("a {category}",)
EMPTY_SHARE = 0.15  # scenes of ground alone
GROUNDS = ("a field of grass",) * 6 + ("gravel", "sand", "soil", "snow", "concrete")


def pasted_scenes(side: int, seed: int, split: str = "train") -> Iterator[tuple[Scene, NDArray[np.uint8]]]:
    """Scenes of `side` px with as many dogs of 44-96 px as fit loosely, each with its picture (side, side, 3) uint8."""
    painter = PastePainter(ASSETS / "cutouts" / split, ASSETS / "grounds" / split)
    words = SceneSpec(object=OBJECTS, background=GROUNDS)
    for k in range(1 << 62):
        layout_seed, scene_seed, paint_seed = np.random.SeedSequence(seed, spawn_key=(k,)).spawn(3)
        rng = np.random.default_rng(layout_seed)
        least = float(rng.uniform(44, 72))
        count = int(side * side / 1024**2 * rng.uniform(60, 110) * (72 / (least + 12)) ** 2)
        count *= int(rng.random() >= EMPTY_SHARE)
        spec = ScatterSpec(canvas=(side, side), objects={"dog": count}, size=(least, least + 24), gap=float(rng.integers(4, 16)))
        scene = words.draw(spec.sample(rng), np.random.default_rng(scene_seed))
        yield scene, painter([scene], [paint_seed])[0].image
