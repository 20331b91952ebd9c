"""Inpainting for layouts: a diffusers pipeline that generates each object in an enlarged crop."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthgen.heartbeat import expect
from synthgen.layouts.base import Layout
from synthgen.pipelines.diffusion.blending import Reference
from synthgen.pipelines.diffusion.image_coding import DECODE_COST
from synthgen.pipelines.diffusion.mixture import Conditions, Mixture, Region, find_guided_steps
from synthgen.pipelines.diffusion.norm_statistics import (
    Statistics,
    apply_statistics,
    record_statistics,
)
from synthgen.pipelines.diffusion.pipeline import (
    Generators,
    Images,
    LatentPipeline,
    StepEnd,
    as_output,
)
from synthgen.pipelines.diffusion.prompts import Prompts, repeat_per_image
from synthgen.pipelines.inpaint.collage import Collage
from synthgen.pipelines.inpaint.crops import Crop, assign_rounds, order_far_to_near, place_crops
from synthgen.pipelines.inpaint.fitting import find_object
from synthgen.pipelines.inpaint.objects import (
    Attempt,
    FindFailed,
    WantedObject,
    cut_surroundings,
)
from synthgen.scenes.scene import build_region_prompt

HIDDEN = 0.5  # share of a latent cell from which on a UNet for inpainting generates all of it
GREY = 127  # level of the hidden part of an image


@dataclass(frozen=True)
class _Schedule:
    """How crops are denoised.

    Attributes:
        guidance: the scale of each step; 1 where there is no guidance.
        first: number of the first step that runs.
        cells: latent cells that go through the network at once.
    """

    guidance: tuple[float, ...]
    first: int
    cells: int

    def count_passes(self) -> int:
        """Return how often each crop goes through the network."""
        return sum(1 if scale in (0, 1) else 2 for scale in self.guidance[self.first :])


class InpaintPipeline(LatentPipeline):
    """Generate layouts with any checkpoint in Stable Diffusion format, object by object.

    The background is generated first, or given. Then the surroundings of each box are enlarged to
    the size that the checkpoint knows. The object is generated into them with blended latents
    (arXiv 2206.02779), or by a UNet for inpainting, and what has changed is the object. It is moved
    and stretched so that it fills its box, and pasted with a feathered edge. The crops of all
    images of a batch go through the network together, except that overlapping objects have to wait
    for each other.

    Examples:
        >>> checkpoint = Path(synthgen.__file__).parent / "weights" / "synthgen-tiny"
        >>> pipeline = InpaintPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
        >>> layout = Layout(96, 96, np.array([[8, 8, 48, 48]], np.float32), ("dog",))
        >>> images = pipeline([layout], background="a field of grass", num_inference_steps=2)
        >>> images[0].size
        (96, 96)
    """

    @torch.no_grad()
    def __call__(
        self,
        layouts: Sequence[Layout],
        background: str | Sequence[str] = "",
        negative_prompt: str | Sequence[str | None] | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        background_guidance_scale: float | None = None,
        background_steps: int | None = None,
        background_window: int | None = None,
        background_overlap: float = 0.25,
        background_pipeline: "InpaintPipeline | None" = None,
        window: int | None = None,
        object_share: float = 0.6,
        outset: float = 0.12,
        strength: float = 1.0,
        statistics: Literal["object", "background"] = "object",
        object_attempts: int = 2,
        pictures: NDArray[np.uint8] | None = None,
        chunk: int = 32,
        generator: Generators = None,
        callback_on_step_end: StepEnd | None = None,
        output_type: str = "pil",
        collages: Sequence[Collage] | None = None,
        chosen: Sequence[Collection[int]] | None = None,
        find_failed: FindFailed | None = None,
        return_collages: bool = False,
    ) -> Images | tuple[Images, list[Collage]]:
        """Generate one image for each layout.

        Args:
            layouts: B layouts with the same canvas size; their `phrases` are the prompts of the
                objects.
            background: prompt of the background: one prompt for all images, or B prompts.
            negative_prompt: one prompt for all images, or B prompts. None: no negative prompt,
                which SDXL distinguishes from an empty prompt.
            guidance_scale: see the key of the recipe (`synthgen describe inpaint`), also for the
                arguments that follow.
            background_pipeline: generates the backgrounds; None: this pipeline.
            pictures: (B, H, W, 3) uint8, images into which the objects are generated; they do not
                change outside the objects and their feathered edges.
            chunk: number of windows of the size that the checkpoint was trained at that go through
                the UNet together; fewer of larger windows.
            generator: one CPU generator for each image, or one for all images.
            callback_on_step_end: called after each step of the background.
            output_type: "pil" or "np" (B, H, W, 3) uint8.
            collages: images whose objects are generated again, with their own backgrounds.
            chosen: for each of the B images, the indices of the boxes to generate; None: all.
            find_failed: verifies the objects in their enlarged crops; those that fail are generated
                again.
            return_collages: whether to return also the background and the objects of each image.

        Raises:
            IncompatibleLayoutError: this checkpoint cannot generate the canvas or a box.
            ValueError: the scheduler cannot start within its schedule, but the strength is not 1.
        """
        source = background_pipeline or self
        self.check_layouts(layouts)
        source.check_layouts(layouts)
        self.check_pictures(layouts, pictures)
        if strength < 1:
            self.check_schedule()
        side = window or self.native_side
        prompts = Prompts()
        backgrounds = repeat_per_image(background, len(layouts))
        negatives = repeat_per_image(negative_prompt, len(layouts))
        object_rows = []
        for layout, text, negative in zip(layouts, backgrounds, negatives, strict=True):
            rows = [prompts.row(build_region_prompt(phrase, text)) for phrase in layout.prompts]
            object_rows.append((rows, prompts.row(negative)))
        conditions = self.text_conditions(prompts.texts, guidance_scale)
        schedule = plan_schedule(
            num_inference_steps,
            guidance_scale,
            guidance_interval,
            strength,
            self.cells_at_once(chunk),
        )
        noise = None
        if collages is not None:
            collages = [replace(each, cutouts=dict(each.cutouts)) for each in collages]
        elif pictures is not None:
            collages = [Collage(image) for image in pictures]
        else:
            noise = source.noise(layouts, generator)
        rounds = self.plan_rounds(
            layouts, object_rows, generator, side, object_share, outset, chosen
        )
        for objects in rounds:
            expect(sum(self.count_cost(each.crop, schedule) for each in objects))
        if noise is not None:
            if background_guidance_scale is None:
                background_guidance_scale = guidance_scale
            collages = source.generate_backgrounds(
                noise,
                backgrounds,
                exclude_objects(negatives, layouts),
                background_steps or num_inference_steps,
                background_guidance_scale,
                background_window or source.native_side,
                background_overlap,
                chunk,
                generator,
                callback_on_step_end,
            )
        assert collages is not None
        if statistics == "object":
            collages = [replace(collage, statistics=None) for collage in collages]
        elif pictures is not None or background_pipeline is not None:
            collages = self.measure_statistics(collages)
        for objects in rounds:
            self.generate_objects(
                collages, objects, conditions, schedule, object_attempts, find_failed
            )
        images = np.stack([collage.draw() for collage in collages])
        output = as_output(images, output_type)
        return (output, collages) if return_collages else output

    @property
    def native_side(self) -> int:
        """Side in px of the windows that the checkpoint was trained at."""
        return int(self.unet.config.sample_size) * self.factor

    def generate_backgrounds(
        self,
        noise: Tensor,
        prompts: Sequence[str],
        negatives: Sequence[str | None],
        steps: int,
        guidance: float,
        window: int,
        overlap: float,
        chunk: int,
        generator: Generators,
        callback: StepEnd | None,
    ) -> list[Collage]:
        """Return images without objects, with the statistics of their decoding.

        Args:
            noise: (B, C, h, w), standard normal.
            prompts: B prompts.
            negatives: B negative prompts.
            guidance: scale of classifier-free guidance.
            window: side of the windows in px.
            overlap: share of a window that the next window overlaps.
            chunk: as for the whole image.
            generator: as for the whole image.
            callback: called after each step.
        """
        table = Prompts()
        rows = []
        for prompt, negative in zip(prompts, negatives, strict=True):
            rows.append((table.row(prompt), table.row(negative)))
        height, width = (side * self.factor for side in noise.shape[2:])
        regions = []
        for i in range(len(noise)):
            regions += self.cover(i, (width, height), rows[i], guidance, window, overlap)
        conditions = self.text_conditions(table.texts, guidance)
        mixture = Mixture(regions, conditions, noise.shape, self.cells_at_once(chunk))
        beside = None
        if self.reads_masked_images:
            beside = self.hide_areas(np.ones(noise[:, 0].shape, np.float32))
        latents = self.denoise(
            noise, [mixture] * steps, callback, generator=generator, beside=beside
        )
        return self.decode_backgrounds(latents)

    def decode_backgrounds(self, latents: Tensor) -> list[Collage]:
        """Return the images of latents (B, C, h, w), with the statistics of their decoding."""
        statistics: list[Statistics] = [[] for _ in latents]
        images = self.decode(latents, norms=[record_statistics(each) for each in statistics])
        pairs = zip(images, statistics, strict=True)
        return [Collage(image, statistics=recorded) for image, recorded in pairs]

    def measure_statistics(self, collages: Sequence[Collage]) -> list[Collage]:
        """Return collages with the statistics of their backgrounds, which are coded for it."""
        measured = []
        for collage in collages:
            latents = self.encode_images(collage.background[None])
            recorded = self.decode_backgrounds(latents)[0].statistics
            measured.append(replace(collage, statistics=recorded))
        return measured

    def plan_rounds(
        self,
        layouts: Sequence[Layout],
        rows: Sequence[tuple[list[int], int]],
        generator: Generators,
        side: int,
        share: float,
        outset: float,
        chosen: Sequence[Collection[int]] | None,
    ) -> list[list[WantedObject]]:
        """Return the objects of all images, in rounds that are generated one after the other.

        Args:
            rows: for each image the rows of its objects' prompts, and of its negative prompt.
            generator: one for each image, or one for all.
            side: side in px to which a crop is enlarged.
            share: share of the crop's side that the longer side of a box fills.
            outset: how far an area extends beyond its box, as a share of the box's sides.
            chosen: for each image, the indices of the boxes to generate; None: all.
        """
        rounds: list[list[WantedObject]] = []
        unit = self.factor * self.multiple
        for i, layout in enumerate(layouts):
            source = generator[i] if isinstance(generator, Sequence) else generator
            seeds = torch.randint(2**62, (len(layout),), generator=source).tolist()
            crops = place_crops(layout, share, outset, side, unit)
            numbers = assign_rounds(crops, order_far_to_near(layout))
            object_rows, negative = rows[i]
            for crop, number, row, seed in zip(crops, numbers, object_rows, seeds, strict=True):
                while len(rounds) <= number:
                    rounds.append([])
                if chosen is not None and crop.number not in chosen[i]:
                    continue
                own_generator = torch.Generator().manual_seed(seed)
                label = layout.select([crop.number])
                wanted = WantedObject(i, label, crop, row, negative, own_generator)
                rounds[number].append(wanted)
        return rounds

    @property
    def reads_masked_images(self) -> bool:
        """Whether the UNet is one for inpainting, which reads a mask and a masked image."""
        return bool(self.unet.config.in_channels == 2 * self.vae.config.latent_channels + 1)

    def hide_areas(
        self, areas: NDArray[np.float32], images: NDArray[np.uint8] | None = None
    ) -> Tensor:
        """Return what a UNet for inpainting reads beside the latents, (B, 1 + C, h, w) float32.

        These are the mask, 1 where it generates, and the latents of the images with a grey mask.

        Args:
            areas: (B, h, w), the share of each latent cell that is generated.
            images: (B, H, W, 3); None: grey images.
        """
        hidden = areas >= HIDDEN
        whole = hidden.repeat(self.factor, 1).repeat(self.factor, 2)[..., None]
        grey = np.full((*whole.shape[:3], 3), GREY, np.uint8)
        masked = grey if images is None else np.where(whole, grey, images)
        latents = self.encode_images(masked)
        return torch.cat([torch.from_numpy(hidden)[:, None].to(latents), latents], 1)

    def count_cost(self, crop: Crop, schedule: _Schedule) -> float:
        """Return the cost of generating a crop, in latent cells (see `synthgen.heartbeat`)."""
        width, height = crop.size
        cells = width // self.factor * (height // self.factor)
        return float(cells * (schedule.count_passes() + DECODE_COST))

    def generate_objects(
        self,
        collages: Sequence[Collage],
        objects: Sequence[WantedObject],
        conditions: Conditions,
        schedule: _Schedule,
        attempts: int,
        find_failed: FindFailed | None,
    ) -> None:
        """Generate the objects of a round into the collages, in place.

        An object that is not found in its crop, or that fails, is generated again from new noise.
        If the last attempt fails too, the first object that was found is pasted, or else the whole
        area.
        """
        surroundings = cut_surroundings(collages, objects)
        statistics = [collage.statistics for collage in collages]
        first_found: dict[WantedObject, Attempt] = {}
        for number in range(attempts):
            if number > 0:
                expect(sum(self.count_cost(each.crop, schedule) for each in objects))
            missed = []
            for attempt in self.attempt_objects(
                objects, surroundings, conditions, schedule, find_failed, statistics
            ):
                each = attempt.object
                if attempt.mask is not None:
                    first_found.setdefault(each, attempt)
                if attempt.passes:
                    attempt.paste(collages[each.image])
                elif number + 1 < attempts:
                    missed.append(each)
                else:
                    first_found.get(each, attempt).paste(collages[each.image])
            objects = missed

    def attempt_objects(
        self,
        objects: Sequence[WantedObject],
        surroundings: dict[WantedObject, NDArray[np.uint8]],
        conditions: Conditions,
        schedule: _Schedule,
        find_failed: FindFailed | None,
        statistics: Sequence[Statistics | None],
    ) -> list[Attempt]:
        """Generate objects once, each into its surroundings (h, w, 3), and find them there.

        Args:
            statistics: for each image those with which its objects are decoded; None: their own.
        """
        by_size: dict[tuple[int, int], list[WantedObject]] = {}
        for each in objects:
            by_size.setdefault(each.crop.size, []).append(each)
        attempts = []
        for size in sorted(by_size):
            group = by_size[size]
            befores = np.stack([surroundings[each] for each in group])
            norms = [statistics[each.image] for each in group]
            afters = self.generate_crops(befores, group, conditions, schedule, norms)
            for each, before, after in zip(group, befores, afters, strict=True):
                mask = find_object(each.crop, before, after)
                attempts.append(Attempt(each, after, mask, mask is not None))
        if find_failed is None:
            return attempts
        found = [attempt for attempt in attempts if attempt.mask is not None]
        images = [attempt.after for attempt in found]
        failed = find_failed(images, [attempt.label() for attempt in found])
        for attempt, has_failed in zip(found, failed, strict=True):
            attempt.passes = not has_failed.any()
        return attempts

    def generate_crops(
        self,
        before: NDArray[np.uint8],
        objects: Sequence[WantedObject],
        conditions: Conditions,
        schedule: _Schedule,
        statistics: Sequence[Statistics | None],
    ) -> NDArray[np.uint8]:
        """Return crops (n, h, w, 3) with the objects in their areas.

        Args:
            before: (n, h, w, 3), the crops of equal size without the objects.
            statistics: those with which each of the n crops is decoded; None: its own.
        """
        latents = self.encode_images(before)
        noise = torch.stack(
            [torch.randn(latents.shape[1:], generator=each.generator) for each in objects]
        ).to(latents)
        areas = np.stack([each.crop.draw_area(self.factor) for each in objects])
        beside = None
        after = []
        if self.reads_masked_images:
            beside = self.hide_areas(areas, before)
        else:
            kept = 1 - torch.from_numpy(areas)[:, None].to(latents)
            after = [Reference(latents, noise, kept)]
        height, width = latents.shape[2:]
        mixtures = {}
        for guidance in sorted(set(schedule.guidance)):
            regions = []
            for k, each in enumerate(objects):
                rows = (each.prompt, each.negative)
                weight = torch.ones(height, width)
                regions.append(Region(k, (0, 0, width, height), *rows, guidance, weight))
            mixtures[guidance] = Mixture(regions, conditions, latents.shape, schedule.cells)
        steps = [mixtures[guidance] for guidance in schedule.guidance]
        start = noise
        if schedule.first > 0:
            self.scheduler.set_timesteps(len(steps), device=latents.device)
            timestep = self.scheduler.timesteps[schedule.first]
            start = self.scheduler.add_noise(latents, noise, timestep.repeat(len(noise)))
        generators = [each.generator for each in objects]
        denoised = self.denoise(
            start,
            steps,
            after=after,
            beside=beside,
            generator=generators,
            first=schedule.first,
            expected=True,
        )
        norms: list[AbstractContextManager[None]] = []
        for recorded in statistics:
            norms.append(apply_statistics(recorded) if recorded else nullcontext())
        return self.decode(denoised, norms=norms)


def exclude_objects(negatives: Sequence[str | None], layouts: Sequence[Layout]) -> list[str | None]:
    """Return the negative prompts of the backgrounds, which also name the layouts' categories."""
    excluding = []
    for negative, layout in zip(negatives, layouts, strict=True):
        names = sorted(set(layout.categories))
        given = [negative] if negative else []
        excluding.append(", ".join(given + names) if names else negative)
    return excluding


def plan_schedule(
    steps: int, guidance: float, interval: tuple[float, float], strength: float, cells: int
) -> _Schedule:
    """Return the schedule of the crops.

    Args:
        interval: the steps with guidance, as shares [start, stop) of all steps.
        strength: share of the steps that run.
        cells: latent cells that go through the network at once.
    """
    guided_steps = find_guided_steps(interval, steps)
    scales = tuple(guidance if step in guided_steps else 1.0 for step in range(steps))
    return _Schedule(scales, steps - max(1, int(steps * strength)), cells)
