"""A pipeline over layouts as the engine calls it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.pipelines.base import Numerics, Painting
from synthgen.pipelines.diffusion.models import LayoutModelSpec
from synthgen.pipelines.diffusion.pipeline import LatentPipeline, load_pipeline
from synthgen.pipelines.diffusion.scaling import (
    enlarge_canvas,
    enlarge_scene,
    resize_images,
    shrink_changes,
)
from synthgen.pipelines.mixture import Spec as MixtureSpec
from synthgen.pipelines.mixture.pipeline import MixturePipeline
from synthgen.randomness import torch_seed
from synthgen.scenes.scene import Scene, SceneSpec


class LayoutPainter:
    """A loaded pipeline; those of its arguments that a key of the recipe is named like come from the recipe."""

    def __init__(self, spec: LayoutModelSpec, scene: SceneSpec, numerics: Numerics) -> None:
        kind = spec.pipeline_class()
        self.pipeline: Any = load_pipeline(kind, spec, spec.scheduler, numerics)
        self.pipeline.empty_is_none = True
        self.spec, self.numerics = spec, numerics
        self.options = options_of(kind, spec, numerics)

    def use_chunk(self, chunk: int) -> None:
        """Go on with so many windows at once; what is loaded stays."""
        self.numerics = replace(self.numerics, chunk=chunk)
        self.options["chunk"] = chunk
        self.__dict__.pop("mixture", None)  # its options have the old one

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        pictures = self.backgrounds(scenes, seeds)
        if pictures is not None:
            images = self._change(self.pipeline, self.options, pictures, scenes, seeds)
            return [Painting(image) for image in images]
        larger = self.enlarge(scenes)
        images = generate(self.pipeline, larger, seeds, **self.options)
        size = (scenes[0].layout.width, scenes[0].layout.height)
        return [Painting(image) for image in resize_images(images, size)]

    def enlarge(self, scenes: Sequence[Scene]) -> list[Scene]:
        """Return the scenes on the canvas that they are generated on."""
        scale, factor = self.spec.generation_scale(), self.pipeline.factor
        larger = []
        for scene in scenes:
            canvas = enlarge_canvas((scene.layout.width, scene.layout.height), scale, factor)
            larger.append(enlarge_scene(scene, canvas))
        return larger

    @property
    def least_side(self) -> int:
        """Side in px of the smallest box that can be painted: a latent cell."""
        return int(self.pipeline.factor)

    def repaint(
        self,
        images: Sequence[NDArray[np.uint8]],
        scenes: Sequence[Scene],
        seeds: Sequence[np.random.SeedSequence],
    ) -> list[NDArray[np.uint8]]:
        """The pictures with the scenes' boxes painted anew, and not a bit changed outside their windows.

        Mixture of Diffusers does it, with the same checkpoint, whatever method painted the rest. A UNet that reads more than
        latents cannot be used so: the pictures stay as they are.
        """
        unet, vae = self.pipeline.unet.config, self.pipeline.vae.config
        if unet.in_channels != vae.latent_channels:
            return list(images)
        pipeline, options = self.mixture
        return self._change(pipeline, options, images, scenes, seeds)

    def _change(
        self,
        pipeline: Any,
        options: dict[str, Any],
        images: Sequence[NDArray[np.uint8]],
        scenes: Sequence[Scene],
        seeds: Sequence[np.random.SeedSequence],
    ) -> list[NDArray[np.uint8]]:
        """Generate the scenes' boxes into images (H, W, 3), at the scale; nothing else changes."""
        larger = self.enlarge(scenes)
        canvas = (larger[0].layout.width, larger[0].layout.height)
        before = resize_images(images, canvas)
        after = generate(pipeline, larger, seeds, pictures=np.stack(before), **options)
        changes = zip(images, before, after, strict=True)
        return [shrink_changes(image, enlarged, changed) for image, enlarged, changed in changes]

    @cached_property
    def mixture(self) -> tuple[Any, dict[str, Any]]:
        """The loaded checkpoint as a pipeline that can paint single boxes of a finished picture, and its options."""
        zeros = self.pipeline.config.force_zeros_for_empty_prompt
        pipeline = MixturePipeline(**self.pipeline.components, force_zeros_for_empty_prompt=zeros)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.embedded, pipeline.empty_is_none = {}, True
        spec = MixtureSpec(
            model=self.spec.model, steps=self.spec.steps, guidance_scale=self.spec.guidance_scale
        )
        return pipeline, options_of(MixturePipeline, spec, self.numerics)

    def backgrounds(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[NDArray[np.uint8]] | None:
        """Return the user's images (H, W, 3) into which these scenes are generated; None: there are none."""
        return None


def options_of(
    kind: type[LatentPipeline], spec: LayoutModelSpec, numerics: Numerics
) -> dict[str, Any]:
    """The arguments of a pipeline that come from its recipe, and from how the engine runs."""
    names = signature(kind.__call__).parameters.keys() & type(spec).model_fields.keys()
    options = {name: getattr(spec, name) for name in sorted(names)}
    return options | {"num_inference_steps": spec.steps, "chunk": numerics.chunk}


def generate(
    pipeline: Any, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence], **options: Any
) -> list[NDArray[np.uint8]]:
    """Generate the images (H, W, 3) of a batch of scenes with a pipeline over layouts."""
    images = pipeline(
        [scene.layout for scene in scenes],
        background=[scene.background for scene in scenes],
        negative_prompt=[scene.negative for scene in scenes],
        generator=[_generator(seed) for seed in seeds],
        output_type="np",
        **options,
    )
    return list(images)


def _generator(seed: np.random.SeedSequence) -> torch.Generator:
    return torch.Generator().manual_seed(torch_seed(seed))
