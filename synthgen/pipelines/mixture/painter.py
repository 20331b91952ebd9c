"""Mixture of Diffusers as the engine calls it: it may paint into the user's own pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthgen.pipelines.backgrounds import choose_by_words, ground
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion.painter import LayoutPainter
from synthgen.pipelines.mixture import Spec
from synthgen.scenes.scene import Scene, SceneSpec, pictures


class MixturePainter(LayoutPainter):
    """The loaded pipeline, and the user's own pictures that it may paint into."""

    def __init__(self, spec: Spec, scene: SceneSpec, numerics: Numerics) -> None:
        super().__init__(spec, scene, numerics)
        self.grounds = pictures(Path(scene.backgrounds)) if scene.backgrounds is not None else []

    def repaint(
        self,
        images: Sequence[NDArray[np.uint8]],
        scenes: Sequence[Scene],
        seeds: Sequence[np.random.SeedSequence],
    ) -> list[NDArray[np.uint8]]:
        """The pictures with the scenes' boxes painted anew, and not a bit changed outside their windows."""
        return self._change(self.pipeline, self.options, images, scenes, seeds)

    def backgrounds(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[NDArray[np.uint8]] | None:
        """Return the user's images (H, W, 3) into which these scenes are generated; None: there are none."""
        if not self.grounds:
            return None
        found = []
        for scene, seed in zip(scenes, seeds, strict=True):
            rng = np.random.default_rng(seed)
            path = choose_by_words(self.grounds, scene.background, rng)
            found.append(np.asarray(ground(path, scene.layout.width, scene.layout.height, rng)))
        return found
