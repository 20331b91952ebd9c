"""A pipeline over layouts in the form that the engine calls."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthgen.pipelines.base import Numerics, Painting
from synthgen.pipelines.diffusion.chunk_size import measure_chunk
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
from synthgen.randomness import make_torch_seed
from synthgen.scenes.scene import Scene, SceneSpec


class LayoutPainter:
    """A loaded pipeline; its arguments that have the name of a key come from the recipe."""

    def __init__(self, spec: LayoutModelSpec, scene: SceneSpec, numerics: Numerics) -> None:
        kind = spec.pipeline_class()
        self.pipeline: Any = load_pipeline(kind, spec, spec.scheduler, numerics)
        self.pipeline.empty_is_none = True
        self.spec = spec
        self.numerics = numerics
        self.options = collect_options(kind, spec, numerics)

    def use_chunk(self, chunk: int) -> None:
        """Use another number of windows per chunk, without loading the pipeline again."""
        self.numerics = replace(self.numerics, chunk=chunk)
        self.options["chunk"] = chunk
        if self.spec.compile:
            self.pipeline.padded_cells = self.pipeline.cells_at_once(chunk)
        self.__dict__.pop("mixture", None)  # its options contain the former number

    def measure_chunk(self) -> int:
        """Return the number of windows per chunk for the free memory of the GPU."""
        return measure_chunk(self.pipeline)

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        """Generate a batch: every scene with its own layout and its own seed."""
        backgrounds = self.backgrounds(scenes, seeds)
        if backgrounds is not None:
            images = self._change(self.pipeline, self.options, backgrounds, scenes, seeds)
            return [Painting(image) for image in images]
        larger = self.enlarge(scenes)
        images = generate(self.pipeline, larger, seeds, **self.options)
        size = (scenes[0].layout.width, scenes[0].layout.height)
        return [Painting(image) for image in resize_images(images, size)]

    def enlarge(self, scenes: Sequence[Scene]) -> list[Scene]:
        """Return the scenes on the canvas on which they are generated."""
        scale = self.spec.generation_scale()
        larger = []
        for scene in scenes:
            size = (scene.layout.width, scene.layout.height)
            canvas = enlarge_canvas(size, scale, self.pipeline.factor)
            larger.append(enlarge_scene(scene, canvas))
        return larger

    @property
    def tiled(self) -> bool:
        """Whether images larger than the autoencoder's own size are decoded in tiles."""
        return bool(self.pipeline.tiled)

    @property
    def least_side(self) -> int:
        """Side in px of the smallest box that can be generated: a latent cell."""
        return int(self.pipeline.factor)

    def inpaint_boxes(
        self,
        images: Sequence[NDArray[np.uint8]],
        scenes: Sequence[Scene],
        seeds: Sequence[np.random.SeedSequence],
    ) -> list[NDArray[np.uint8]]:
        """Return the images with the scenes' boxes generated again.

        The pixels outside the boxes' windows do not change. Mixture of Diffusers is used with the
        same checkpoint, whatever method generated the rest of the image. It cannot use a UNet that
        reads more than latents; the images are then returned unchanged.
        """
        unet = self.pipeline.unet.config
        vae = self.pipeline.vae.config
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
        """The checkpoint as a pipeline that generates boxes into finished images, with options."""
        zeros = self.pipeline.config.force_zeros_for_empty_prompt
        pipeline = MixturePipeline(**self.pipeline.components, force_zeros_for_empty_prompt=zeros)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.embedded = {}
        pipeline.empty_is_none = True
        pipeline.tiled = self.pipeline.tiled
        spec = MixtureSpec(
            model=self.spec.model, steps=self.spec.steps, guidance_scale=self.spec.guidance_scale
        )
        return pipeline, collect_options(MixturePipeline, spec, self.numerics)

    def backgrounds(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[NDArray[np.uint8]] | None:
        """Return the user's images (H, W, 3) into which the scenes are generated; None: none."""
        return None


def collect_options(
    kind: type[LatentPipeline], spec: LayoutModelSpec, numerics: Numerics
) -> dict[str, Any]:
    """Return the arguments of a pipeline that come from its recipe and from the numerics."""
    names = signature(kind.__call__).parameters.keys() & type(spec).model_fields.keys()
    options = {name: getattr(spec, name) for name in sorted(names)}
    options["num_inference_steps"] = spec.steps
    options["chunk"] = numerics.chunk
    return options


def generate(
    pipeline: Any, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence], **options: Any
) -> Any:
    """Generate a batch of scenes with a pipeline over layouts.

    Returns:
        What the pipeline returns: the images (B, H, W, 3), unless the options ask for more.
    """
    return pipeline(
        [scene.layout for scene in scenes],
        background=[scene.background for scene in scenes],
        negative_prompt=[scene.negative for scene in scenes],
        generator=[torch.Generator().manual_seed(make_torch_seed(seed)) for seed in seeds],
        output_type="np",
        **options,
    )
