"""The painter of Mixture of Diffusers, which can also generate objects into the user's images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthgen.pipelines.backgrounds import choose_by_words, crop_background
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion.models import LayoutModelSpec
from synthgen.pipelines.diffusion.painter import LayoutPainter
from synthgen.scenes.scene import Scene, SceneSpec, list_image_files


class MixturePainter(LayoutPainter):
    """The loaded pipeline, and the user's background images if the scene names any."""

    def __init__(self, spec: LayoutModelSpec, scene: SceneSpec, numerics: Numerics) -> None:
        super().__init__(spec, scene, numerics)
        self.background_files: list[Path] = []
        if scene.backgrounds is not None:
            self.background_files = list_image_files(Path(scene.backgrounds))

    def inpaint_boxes(
        self,
        images: Sequence[NDArray[np.uint8]],
        scenes: Sequence[Scene],
        seeds: Sequence[np.random.SeedSequence],
    ) -> list[NDArray[np.uint8]]:
        """Return the images with the scenes' boxes generated again.

        Pixels outside the windows of the boxes do not change.
        """
        return self._change(self.pipeline, self.options, images, scenes, seeds)

    def backgrounds(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[NDArray[np.uint8]] | None:
        """Return the user's images (H, W, 3) at the scenes' sizes; None if there are none."""
        if not self.background_files:
            return None
        images = []
        for scene, seed in zip(scenes, seeds, strict=True):
            rng = np.random.default_rng(seed)
            path = choose_by_words(self.background_files, scene.background, rng)
            image = crop_background(path, scene.layout.width, scene.layout.height, rng)
            images.append(np.asarray(image))
        return images
