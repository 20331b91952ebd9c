"""A pipeline over layouts as the engine calls it."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch

from synthgen.diffusion.models import LayoutModelSpec
from synthgen.diffusion.pipeline import LatentPipeline, load_pipeline
from synthgen.pipelines import Numerics, Painting
from synthgen.scene import Scene


class LayoutPainter:
    """A loaded pipeline; those of its arguments that a key of the recipe is named like come from the recipe."""

    def __init__(self, kind: type[LatentPipeline], spec: LayoutModelSpec, numerics: Numerics) -> None:
        self.pipeline: Any = load_pipeline(kind, spec, spec.scheduler, numerics)
        names = signature(kind.__call__).parameters.keys() & type(spec).model_fields.keys()
        self.options = {name: getattr(spec, name) for name in sorted(names)}
        self.options |= {"num_inference_steps": spec.steps, "chunk": numerics.chunk}

    def __call__(self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]) -> list[Painting]:
        return self.paint(scenes, seeds, **self.of(scenes, seeds))

    def paint(self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence], **more: Any) -> list[Painting]:
        """Paint a batch with further arguments of the pipeline."""
        images = self.pipeline(
            [scene.layout for scene in scenes],
            background=[scene.background for scene in scenes],
            negative_prompt=[scene.negative for scene in scenes],
            generator=[_generator(seed) for seed in seeds],
            output_type="np",
            **self.options,
            **more,
        )
        return [Painting(image) for image in images]

    def of(self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]) -> dict[str, Any]:
        """Further arguments of the pipeline for these scenes."""
        return {}


def _generator(seed: np.random.SeedSequence) -> torch.Generator:
    return torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))
