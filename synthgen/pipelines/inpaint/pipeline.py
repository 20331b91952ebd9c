"""Inpainting for layouts: a diffusers pipeline that generates each object in an enlarged crop."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthgen.heartbeat import expect
from synthgen.layouts.base import Layout
from synthgen.pipelines.diffusion.blending import Reference
from synthgen.pipelines.diffusion.mixture import Conditions, Mixture, Region, find_guided_steps
from synthgen.pipelines.diffusion.pipeline import (
    DECODE_COST,
    Generators,
    Images,
    LatentPipeline,
    StepEnd,
    as_output,
)
from synthgen.pipelines.diffusion.prompts import Prompts, repeat_per_image
from synthgen.pipelines.inpaint.crops import Crop, assign_rounds, order_far_to_near, place_crops
from synthgen.pipelines.inpaint.fitting import find_object, measure_extent, paste_object
from synthgen.scenes.scene import build_region_prompt

HIDDEN = 0.5  # share of a latent cell from which on a UNet for inpainting generates all of it
GREY = 127  # level of the hidden part of an image
Owners = NDArray[np.int32]
"""(B, H, W): the index of the box whose object covers a pixel, or -1."""


@dataclass(frozen=True, eq=False)
class _Object:
    """An object to generate.

    Attributes:
        image: index of the image in the batch.
        prompt, negative: rows of the tables of conditions.
        generator: for its noise, so that it does not depend on the rest of the batch.
    """

    image: int
    crop: Crop
    prompt: int
    negative: int
    generator: torch.Generator


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
        window: int | None = None,
        object_share: float = 0.6,
        outset: float = 0.12,
        strength: float = 1.0,
        object_attempts: int = 2,
        pictures: NDArray[np.uint8] | None = None,
        chunk: int = 32,
        generator: Generators = None,
        callback_on_step_end: StepEnd | None = None,
        output_type: str = "pil",
        return_owners: bool = False,
    ) -> Images | tuple[Images, Owners]:
        """Generate one image for each layout.

        Args:
            layouts: B layouts with the same canvas size; their `phrases` are the prompts of the
                objects.
            background: prompt of the background: one prompt for all images, or B prompts.
            negative_prompt: one prompt for all images, or B prompts. None: no negative prompt,
                which SDXL distinguishes from an empty prompt.
            guidance_scale: see the key of the recipe (`synthgen describe inpaint`), also for the
                arguments that follow.
            pictures: (B, H, W, 3) uint8, images into which the objects are generated; they do not
                change outside the objects and their feathered edges.
            chunk: number of windows of the size that the checkpoint was trained at that go through
                the UNet together; fewer of larger windows.
            generator: one CPU generator for each image, or one for all images.
            callback_on_step_end: called after each step of the background.
            output_type: "pil" or "np" (B, H, W, 3) uint8.
            return_owners: whether to return also which object each pixel shows.

        Raises:
            IncompatibleLayoutError: this checkpoint cannot generate the canvas or a box.
            ValueError: the scheduler cannot start within its schedule, but the strength is not 1.
        """
        self.check_layouts(layouts)
        self.check_pictures(layouts, pictures)
        if strength < 1:
            self.check_schedule()
        side = window or int(self.unet.config.sample_size) * self.factor
        prompts = Prompts()
        backgrounds = repeat_per_image(background, len(layouts))
        negatives = repeat_per_image(negative_prompt, len(layouts))
        background_rows = []
        for layout, text, negative in zip(layouts, backgrounds, negatives, strict=True):
            without_objects = exclude_objects(negative, layout.categories)
            background_rows.append((prompts.row(text), prompts.row(without_objects)))
        object_rows = []
        for layout, text, negative in zip(layouts, backgrounds, negatives, strict=True):
            rows = [prompts.row(build_region_prompt(phrase, text)) for phrase in layout.prompts]
            object_rows.append((rows, prompts.row(negative)))
        background_guidance = background_guidance_scale
        if background_guidance is None:
            background_guidance = guidance_scale
        largest_guidance = max(guidance_scale, background_guidance)
        conditions = self.text_conditions(prompts.texts, largest_guidance)
        schedule = plan_schedule(
            num_inference_steps,
            guidance_scale,
            guidance_interval,
            strength,
            self.cells_at_once(chunk),
        )
        noise = None if pictures is not None else self.noise(layouts, generator)
        rounds = self.plan_rounds(layouts, object_rows, generator, side, object_share, outset)
        for objects in rounds:
            expect(sum(self.count_cost(each.crop, schedule) for each in objects))
        if noise is None:
            canvases = np.array(pictures)
        else:
            regions = []
            for i, layout in enumerate(layouts):
                regions += self.cover(
                    i,
                    (layout.width, layout.height),
                    background_rows[i],
                    background_guidance,
                    background_window or side,
                    background_overlap,
                )
            mixture = Mixture(regions, conditions, noise.shape, schedule.cells)
            steps = [mixture] * (background_steps or num_inference_steps)
            beside = None
            if self.reads_masked_images:
                beside = self.hide_areas(np.ones(noise[:, 0].shape, np.float32))
            latents = self.denoise(
                noise, steps, callback_on_step_end, generator=generator, beside=beside
            )
            canvases = self.decode(latents)
        owners = np.full(canvases.shape[:3], -1, np.int32)
        for objects in rounds:
            self.generate_objects(canvases, owners, objects, conditions, schedule, object_attempts)
        images = as_output(canvases, output_type)
        return (images, owners) if return_owners else images

    def plan_rounds(
        self,
        layouts: Sequence[Layout],
        rows: Sequence[tuple[list[int], int]],
        generator: Generators,
        side: int,
        share: float,
        outset: float,
    ) -> list[list[_Object]]:
        """Return the objects of all images, in rounds that are generated one after the other.

        Args:
            rows: for each image the rows of its objects' prompts, and of its negative prompt.
            generator: one for each image, or one for all.
            side: side in px to which a crop is enlarged.
            share: share of the crop's side that the longer side of a box fills.
            outset: how far an area extends beyond its box, as a share of the box's sides.
        """
        rounds: list[list[_Object]] = []
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
                own_generator = torch.Generator().manual_seed(seed)
                rounds[number].append(_Object(i, crop, row, negative, own_generator))
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
        canvases: NDArray[np.uint8],
        owners: Owners,
        objects: Sequence[_Object],
        conditions: Conditions,
        schedule: _Schedule,
        attempts: int,
    ) -> None:
        """Generate the objects of a round into the canvases (B, H, W, 3), in place.

        An object that is not found in its crop is generated again from new noise. After the last
        attempt its whole area is pasted as it is.
        """
        for attempt in range(attempts):
            if attempt > 0:
                expect(sum(self.count_cost(each.crop, schedule) for each in objects))
            by_size: dict[tuple[int, int], list[_Object]] = {}
            for each in objects:
                by_size.setdefault(each.crop.size, []).append(each)
            generated = []
            for size in sorted(by_size):
                group = by_size[size]
                before = np.stack([each.crop.cut(canvases[each.image]) for each in group])
                after = self.generate_crops(before, group, conditions, schedule)
                generated += list(zip(group, before, after, strict=True))
            objects = []
            for each, before, after in generated:
                mask = find_object(each.crop, before, after)
                if mask is None and attempt + 1 < attempts:
                    objects.append(each)
                    continue
                if mask is None:
                    mask = each.crop.draw_area(1) >= 0.5
                    extent = each.crop.enlarge(each.crop.box)
                else:
                    extent = measure_extent(mask)
                canvas = canvases[each.image]
                region, covered = paste_object(canvas, each.crop, after, mask, extent)
                owners[each.image][region][covered] = each.crop.number

    def generate_crops(
        self,
        before: NDArray[np.uint8],
        objects: Sequence[_Object],
        conditions: Conditions,
        schedule: _Schedule,
    ) -> NDArray[np.uint8]:
        """Return crops (n, h, w, 3) with the objects in their areas.

        Args:
            before: (n, h, w, 3), the crops of equal size without the objects.
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
        return self.decode(denoised)


def exclude_objects(negative: str | None, categories: Sequence[str]) -> str | None:
    """Return a negative prompt that also names the categories, if there are any."""
    if not categories:
        return negative
    names = sorted(set(categories))
    return ", ".join([negative, *names] if negative else names)


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
