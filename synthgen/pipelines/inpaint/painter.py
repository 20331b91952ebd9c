"""The painter of inpainting, which also knows the objects' masks."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthgen.pipelines.base import Numerics, Painting
from synthgen.pipelines.diffusion.painter import generate
from synthgen.pipelines.diffusion.pipeline import load_pipeline
from synthgen.pipelines.inpaint import Spec
from synthgen.pipelines.inpaint.collage import Collage, Owners
from synthgen.pipelines.inpaint.objects import FindFailed
from synthgen.pipelines.inpaint.pipeline import InpaintPipeline
from synthgen.pipelines.mixture.painter import MixturePainter
from synthgen.pipelines.paste import encode_mask
from synthgen.scenes.scene import Scene, SceneSpec


class InpaintPainter:
    """The loaded pipeline, and the user's background images if the scene names any."""

    def __init__(self, spec: Spec, scene: SceneSpec, numerics: Numerics) -> None:
        self.loaded = MixturePainter(spec, scene, numerics)
        background = spec.background_spec()
        if background is not None:
            pipeline = load_pipeline(InpaintPipeline, background, spec.scheduler, numerics)
            pipeline.empty_is_none = True
            self.loaded.options["background_pipeline"] = pipeline

    @property
    def pipeline(self) -> Any:
        """The loaded pipeline."""
        return self.loaded.pipeline

    @property
    def tiled(self) -> bool:
        """Whether images larger than the autoencoder's own size are decoded in tiles."""
        return self.loaded.tiled

    def use_chunk(self, chunk: int) -> None:
        """Use another number of windows per chunk, without loading the pipeline again."""
        self.loaded.use_chunk(chunk)

    def measure_chunk(self) -> int:
        """Return the number of windows per chunk for the free memory of the GPU."""
        return self.loaded.measure_chunk()

    def use_verifier(self, find_failed: FindFailed) -> None:
        """Generate objects again that a verifier does not find in their enlarged crops."""
        self.loaded.options["find_failed"] = find_failed

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        """Generate a batch: every scene with its own layout and its own seed."""
        backgrounds = self.loaded.backgrounds(scenes, seeds)
        pictures = None if backgrounds is None else np.stack(backgrounds)
        return self._generate(scenes, seeds, pictures=pictures)

    def regenerate_objects(
        self,
        paintings: Sequence[Painting],
        scenes: Sequence[Scene],
        chosen: Sequence[Collection[int]],
        seeds: Sequence[np.random.SeedSequence],
    ) -> list[Painting]:
        """Generate chosen objects again, each with what is behind it as its surroundings.

        Args:
            paintings: images of this painter.
            chosen: for each image, the indices of the boxes whose objects are generated again.
        """
        collages = [painting.parts for painting in paintings]
        return self._generate(scenes, seeds, collages=collages, chosen=chosen)

    def replace_objects(
        self, scene: Scene, old: Painting, new: Painting, chosen: Collection[int]
    ) -> Painting:
        """Return an image in which chosen objects are those of another image of the scene."""
        collage = old.parts.replace(new.parts, chosen)
        return make_painting(scene, collage.draw(), collage)

    def _generate(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence], **options: Any
    ) -> list[Painting]:
        images, collages = generate(
            self.pipeline, scenes, seeds, return_collages=True, **self.loaded.options, **options
        )
        batch = zip(scenes, images, collages, strict=True)
        return [make_painting(scene, image, collage) for scene, image, collage in batch]


def make_painting(scene: Scene, image: NDArray[np.uint8], collage: Collage) -> Painting:
    """Return the image (H, W, 3) of a collage, with its masks."""
    return Painting(image, encode_masks(scene, collage.find_owners()), collage)


def encode_masks(scene: Scene, owners: Owners) -> tuple[dict[str, Any], ...]:
    """Return the visible part of each object inside its box, as run-length encodings.

    Args:
        owners: (H, W), the index of the box whose object covers a pixel, or -1.
    """
    boxes = scene.layout.boxes
    low = np.floor(boxes[:, :2]).astype(int)
    high = np.ceil(boxes[:, 2:]).astype(int)
    whole = np.concatenate([low, high], 1)
    return tuple(encode_mask(owners, i, whole[i]) for i in range(len(whole)))
