"""The painter of inpainting, which also knows the objects' masks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthgen.pipelines.base import Numerics, Painting
from synthgen.pipelines.diffusion.painter import generate
from synthgen.pipelines.inpaint import Spec
from synthgen.pipelines.mixture.painter import MixturePainter
from synthgen.pipelines.paste import encode_mask
from synthgen.scenes.scene import Scene, SceneSpec


class InpaintPainter:
    """The loaded pipeline, and the user's background images if the scene names any.

    It has no `inpaint_boxes`, because an object is only found where the background is known.
    """

    def __init__(self, spec: Spec, scene: SceneSpec, numerics: Numerics) -> None:
        self.loaded = MixturePainter(spec, scene, numerics)

    @property
    def pipeline(self) -> Any:
        """The loaded pipeline."""
        return self.loaded.pipeline

    def use_chunk(self, chunk: int) -> None:
        """Use another number of windows per chunk, without loading the pipeline again."""
        self.loaded.use_chunk(chunk)

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        """Generate a batch: every scene with its own layout and its own seed."""
        options: dict[str, Any] = dict(self.loaded.options)
        backgrounds = self.loaded.backgrounds(scenes, seeds)
        if backgrounds is not None:
            options["pictures"] = np.stack(backgrounds)
        images, owners = generate(self.pipeline, scenes, seeds, return_owners=True, **options)
        paintings = []
        for scene, image, owner in zip(scenes, images, owners, strict=True):
            paintings.append(Painting(image, encode_masks(scene, owner)))
        return paintings


def encode_masks(scene: Scene, owner: NDArray[np.int32]) -> tuple[dict[str, Any], ...]:
    """Return the visible part of each object inside its box, as run-length encodings.

    Args:
        owner: (H, W): the index of the box whose object covers a pixel, or -1.
    """
    boxes = scene.layout.boxes
    low = np.floor(boxes[:, :2]).astype(int)
    high = np.ceil(boxes[:, 2:]).astype(int)
    whole = np.concatenate([low, high], 1)
    return tuple(encode_mask(owner, i, whole[i]) for i in range(len(whole)))
