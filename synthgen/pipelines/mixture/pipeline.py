"""Mixture of Diffusers over layouts: a diffusers pipeline that paints a batch, every image with its own layout."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from synthgen.diffusion import masks
from synthgen.diffusion.keep import KeptPictures, masks_of
from synthgen.diffusion.mixture import Mixture, Region
from synthgen.diffusion.pipeline import LatentPipeline, StepEnd, load_pipeline
from synthgen.diffusion.prompts import Prompts, per_image, phrases_of
from synthgen.diffusion.windows import background_windows, object_windows
from synthgen.layouts import Layout
from synthgen.pipelines import IncompatibleLayoutError, Numerics, Painting
from synthgen.pipelines._grounds import choose_by_words, ground
from synthgen.pipelines.mixture import Mask, Spec
from synthgen.scene import Scene, pictures, region_prompt


class MixturePipeline(LatentPipeline):
    """Paints layouts with any checkpoint in Stable Diffusion format.

    Each box has a window of its own, the box plus context, denoised with the prompt of the box; the background is
    tiled with windows of constant low weight; every step merges all predictions (`synthgen.diffusion.mixture`).
    """

    @torch.no_grad()
    def __call__(
        self,
        layouts: Sequence[Layout],
        background: str | Sequence[str] = "",
        negative_prompt: str | Sequence[str] = "",
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        background_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        context: float = 0.1,
        window: int | None = None,
        background_window: int | None = None,
        background_overlap: float = 0.25,
        background_weight: float = 0.05,
        mask: Mask = "box",
        pictures: NDArray[np.uint8] | None = None,
        chunk: int = 32,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback_on_step_end: StepEnd | None = None,
        output_type: str = "pil",
    ) -> list[Image.Image] | NDArray[np.uint8] | Tensor:
        """Paint one image a layout.

        Args:
            layouts: B layouts on one canvas size; their `phrases` are the prompts of the boxes.
            background: prompt of the background, one or B.
            negative_prompt: one or B.
            guidance_scale, background_guidance_scale: classifier-free guidance; None: equal.
            guidance_interval: share of the steps, [from, to) in [0, 1], that are guided; in the others the guidance scale
                is 1 and the unconditional branch is not computed (Kynkäänniemi et al., arXiv 2404.07724).
            context, window, background_window, background_overlap, background_weight, mask: see the recipe's keys.
            pictures: (B, H, W, 3) uint8 to paint the objects into: outside the boxes' windows they stay as they are.
            chunk: windows of the size that the checkpoint was trained at that go through the UNet at once; of larger ones fewer.
            generator: one CPU generator an image, or one for all.
            callback_on_step_end: called with pipeline, step, timestep and {"latents"}; may return new latents.
            output_type: "pil", "np" (B, H, W, 3) uint8, or "latent" (B, C, h, w) float32.

        Raises:
            IncompatibleLayoutError: a canvas or a box that this checkpoint cannot paint.
        """
        backgrounds, negatives = (per_image(p, len(layouts)) for p in (background, negative_prompt))
        self.check_inputs(layouts, window, pictures)
        prompts, least = Prompts(), self.unet.config.sample_size if window is None else self.cells(window)
        objects: list[Region] = []
        tiles: list[Region] = []
        for i, layout in enumerate(layouts):
            negative = prompts.row(negatives[i])
            windows = object_windows(layout.boxes, (layout.width, layout.height), self.factor, self.multiple, least, context)
            for box, cells, phrase in zip(layout.boxes, windows.tolist(), phrases_of(layout), strict=True):
                row, weight = prompts.row(region_prompt(phrase, backgrounds[i])), self.object_weight(box, cells, mask)
                objects.append(Region(i, tuple(cells), row, negative, guidance_scale, weight))
            side = least if background_window is None else self.cells(background_window)
            low = guidance_scale if background_guidance_scale is None else background_guidance_scale
            for x0, y0, x1, y1 in self.tiles(layout, side, background_overlap) if pictures is None else ():
                weight = masks.constant(y1 - y0, x1 - x0) * background_weight
                tiles.append(Region(i, (x0, y0, x1, y1), prompts.row(backgrounds[i]), negative, low, weight))
        latents = self.prepare_latents(layouts, generator)
        embeddings = self.encode_prompts(prompts.texts)
        at_once = self.cells_at_once(chunk)
        guided = Mixture(objects + tiles, embeddings, latents.shape, at_once)
        plain = Mixture([replace(r, guidance=1.0) for r in objects + tiles], embeddings, latents.shape, at_once)
        first, last = (round(share * num_inference_steps) for share in guidance_interval)
        mixtures = [guided if first <= step < last else plain for step in range(num_inference_steps)]
        kept = None if pictures is None else self.keep(pictures, latents, objects)
        latents = self.denoise(latents, mixtures, callback_on_step_end, kept)
        return latents if output_type == "latent" else self.decode(latents, output_type, kept)

    def cells(self, side: int) -> int:
        """The least side of a window in cells that holds `side` px and that the UNet can halve."""
        return -(-side // (self.factor * self.multiple)) * self.multiple

    def tiles(self, layout: Layout, side: int, overlap: float) -> list[tuple[int, int, int, int]]:
        """Windows of the background, x0, y0, x1, y1 in cells."""
        found = background_windows((layout.width, layout.height), self.factor, self.multiple, side, overlap)
        return [(x0, y0, x1, y1) for x0, y0, x1, y1 in found.tolist()]

    def keep(self, pictures: NDArray[np.uint8], noise: Tensor, objects: Sequence[Region]) -> KeptPictures:
        """The pictures, encoded, and where they may change."""
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(noise.device, self.vae.dtype) / 127.5 - 1
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        means = torch.cat([self.vae.encode(p[None]).latent_dist.mode() for p in pixels]).float()
        mask, windows = (m.to(noise.device) for m in masks_of(objects, noise.shape))
        return KeptPictures(pictures, (means - shift) * self.vae.config.scaling_factor, noise, mask, windows)

    def check_inputs(self, layouts: Sequence[Layout], window: int | None, pictures: NDArray[np.uint8] | None = None) -> None:
        """Raise IncompatibleLayoutError for what this checkpoint cannot paint."""
        if pictures is not None and pictures.shape != (len(layouts), layouts[0].height, layouts[0].width, 3):
            want = f"({len(layouts)}, {layouts[0].height}, {layouts[0].width}, 3)"
            raise IncompatibleLayoutError(f"pictures: shape {pictures.shape} must be {want}: one a layout, at its size")
        sizes = {(layout.width, layout.height) for layout in layouts}
        if len(sizes) != 1:
            raise IncompatibleLayoutError(f"layouts: a batch needs one canvas size, got {sorted(sizes)}")
        for name, side in zip(("width", "height"), sizes.pop(), strict=True):
            least = self.factor * self.multiple
            if side % self.factor or side < least:
                reason = f"must be a multiple of {self.factor} and at least {least}"
                raise IncompatibleLayoutError(f"layouts: canvas {name} {side} px {reason}")
        for n, layout in enumerate(layouts):
            sides = layout.boxes[:, 2:] - layout.boxes[:, :2]
            if len(layout) and sides.min() < self.factor:
                i = int(sides.min(1).argmin())
                raise IncompatibleLayoutError(
                    f"layouts[{n}].boxes[{i}]: {layout.boxes[i].tolist()} is smaller than a latent cell ({self.factor} px)"
                )

    def object_weight(self, box: NDArray[np.float32], cells: Sequence[int], mask: Mask) -> Tensor:
        """Weight (h, w) of a box's window (x0, y0, x1, y1 in cells)."""
        x0, y0, x1, y1 = cells
        h, w = y1 - y0, x1 - x0
        if mask == "box":
            bx0, by0, bx1, by1 = (float(v) / self.factor for v in box)
            return masks.box(h, w, bx0 - x0, by0 - y0, bx1 - x0, by1 - y0)
        return {"gaussian": masks.gaussian, "quartic": masks.quartic, "constant": masks.constant}[mask](h, w)

    def prepare_latents(self, layouts: Sequence[Layout], generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
        """Initial noise (B, C, h, w) float32, one CPU generator an image: the same on every device."""
        generators = generator if isinstance(generator, Sequence) else [generator] * len(layouts)
        shape = (self.unet.config.in_channels, layouts[0].height // self.factor, layouts[0].width // self.factor)
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
        return noise.to(self._execution_device)


class MixturePainter:
    """The loaded pipeline as the engine calls it."""

    def __init__(self, spec: Spec, numerics: Numerics, backgrounds: Path | None = None) -> None:
        self.spec, self.chunk = spec, numerics.chunk
        self.grounds = pictures(backgrounds) if backgrounds is not None else []
        self.pipeline = load_pipeline(MixturePipeline, spec, spec.scheduler, numerics)

    def __call__(self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]) -> list[Painting]:
        spec = self.spec
        images = self.pipeline(
            [scene.layout for scene in scenes],
            background=[scene.background for scene in scenes],
            negative_prompt=[scene.negative for scene in scenes],
            num_inference_steps=spec.steps,
            guidance_scale=spec.guidance_scale,
            background_guidance_scale=spec.background_guidance_scale,
            guidance_interval=spec.guidance_interval,
            context=spec.context,
            window=spec.window,
            background_window=spec.background_window,
            background_overlap=spec.background_overlap,
            background_weight=spec.background_weight,
            mask=spec.mask,
            pictures=self.pictures(scenes, seeds),
            chunk=self.chunk,
            generator=[_generator(seed) for seed in seeds],
            output_type="np",
        )
        return [Painting(image) for image in images]

    def pictures(self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]) -> NDArray[np.uint8] | None:
        """The user's pictures to paint into, (B, H, W, 3); None if there are none."""
        if not self.grounds:
            return None
        found = []
        for scene, seed in zip(scenes, seeds, strict=True):
            rng = np.random.default_rng(seed)
            path = choose_by_words(self.grounds, scene.background, rng)
            found.append(np.asarray(ground(path, scene.layout.width, scene.layout.height, rng)))
        return np.stack(found)


def _generator(seed: np.random.SeedSequence) -> torch.Generator:
    return torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))
