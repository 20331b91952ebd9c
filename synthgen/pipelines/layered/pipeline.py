"""Layered rendering with vision guidance over layouts, in batches.

This is LRDiff (Qi et al., arXiv 2311.18435, ECCV 2024). Layers of all images are denoised together,
those of one size in one batch. `variant="mixed"` is the form of the source document's unofficial
notebook.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F

from synthgen.heartbeat import expect
from synthgen.layouts.base import Layout
from synthgen.pipelines.diffusion.image_coding import DECODE_COST
from synthgen.pipelines.diffusion.mixture import Conditions, Evaluate, Mixture, select
from synthgen.pipelines.diffusion.object_layers import (
    Group,
    Layer,
    MixedLayers,
    composite,
    group_by_size,
    list_prompt_rows,
    split_into_batches,
)
from synthgen.pipelines.diffusion.pipeline import (
    Generators,
    Images,
    LatentPipeline,
    StepEnd,
    as_output,
)
from synthgen.pipelines.diffusion.prompts import Prompts, fill_captions, repeat_per_image
from synthgen.pipelines.diffusion.token_attention import TokenProbe, mark_tokens, record_attention
from synthgen.pipelines.diffusion.windows import place_object_windows
from synthgen.scenes.scene import COUNTS, build_region_prompt

COLOUR_SIDE = 32  # latent cells; side of the single-colour images that are encoded


class LayeredPipeline(LatentPipeline):
    """Generate layouts in layers with any checkpoint in Stable Diffusion format, untrained."""

    @torch.no_grad()
    def __call__(
        self,
        layouts: Sequence[Layout],
        background: str | Sequence[str] = "",
        negative_prompt: str | Sequence[str | None] | None = None,
        caption: str = COUNTS,
        layer_prompt: str = "{phrase}",
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        variant: Literal["paper", "mixed"] = "paper",
        vision_guidance: Literal["dynamic", "constant"] = "dynamic",
        colour: tuple[int, int, int] = (255, 255, 255),
        lambda_1: float = 0.20,
        lambda_2: float = 0.05,
        layer_share: float = 0.3,
        guided_steps: int = 5,
        top_k: int = 16,
        gamma: float = 0.2,
        until: int = 900,
        context: float | None = None,
        tile: int | None = None,
        chunk: int = 8,
        generator: Generators = None,
        callback_on_step_end: StepEnd | None = None,
        output_type: str = "pil",
    ) -> Images | Tensor:
        """Generate one image for each layout.

        Args:
            layouts: B layouts on one canvas size; `phrases` are the layers' prompts, and `masks`
                replace boxes where there are any.
            background: prompt of the layer below all others, one or B; it and the caption have no
                vision guidance.
            negative_prompt: one or B; None: no negative prompt, which SDXL distinguishes from an
                empty one.
            caption: prompt of the whole image, or a template for it (see
                `synthgen.scenes.scene.build_caption`).
            layer_prompt: prompt of a layer, or a template for it: {phrase} and {background} are
                replaced.
            variant: see the recipe's key, as for `vision_guidance`, `colour`, `lambda_1`,
                `lambda_2`, `layer_share`, `guided_steps`, `top_k`, `gamma`, `until`, `context` and
                `tile`.
            chunk: number of windows of the size that the checkpoint was trained at that go through
                the UNet together; fewer of larger windows.
            generator: one CPU generator for each image, or one for all.
            callback_on_step_end: called after the steps of the background and of the merged image,
                not after those of the layers.
            output_type: "pil", "np" (B, H, W, 3) uint8, or "latent" (B, C, h, w) float32.

        Raises:
            IncompatibleLayoutError: this checkpoint cannot generate a canvas or a box.
            ValueError: the scheduler cannot start within its schedule.
        """
        self.check_inputs(layouts)
        size = (layouts[0].width, layouts[0].height)
        cells_at_once = self.cells_at_once(chunk)
        prompts = Prompts()
        backgrounds = repeat_per_image(background, len(layouts))
        background_rows = [prompts.row(text) for text in backgrounds]
        negative_rows = [
            prompts.row(text) for text in repeat_per_image(negative_prompt, len(layouts))
        ]
        caption_rows = []
        for text in fill_captions(layouts, background, caption):
            caption_rows.append(prompts.row(text))
        layers: list[Layer] = []
        for i, layout in enumerate(layouts):
            texts = []
            for phrase in layout.prompts:
                texts.append(build_region_prompt(phrase, backgrounds[i], layer_prompt))
            layers += self.build_layers(layout, i, texts, prompts, negative_rows[i], context)
        noise = self.noise(layouts, generator)
        conditions = self.text_conditions(prompts.texts, guidance_scale)
        groups = [Group(list(same_size), noise) for same_size in group_by_size(layers)]

        def mix_whole_canvas(rows: Sequence[int], guidance: float) -> Mixture:
            row_pairs = list(zip(rows, negative_rows, strict=True))
            regions = self.covers(size, row_pairs, guidance, tile)
            return Mixture(regions, conditions, noise.shape, cells_at_once)

        guided_by_caption: Evaluate = mix_whole_canvas(caption_rows, guidance_scale)
        self.scheduler.set_timesteps(num_inference_steps, device=noise.device)
        if variant == "mixed":
            unconditional = mix_whole_canvas(caption_rows, 0.0)
            mixed = MixedLayers(
                groups, conditions, unconditional, guidance_scale * gamma, cells_at_once
            )
            timesteps = self.scheduler.timesteps
            steps = [mixed if t > until else guided_by_caption for t in timesteps]
            expect(sum(step.cells for step in steps))
        else:
            t0 = max(1, round(layer_share * num_inference_steps))
            below = mix_whole_canvas(background_rows, guidance_scale)
            mixtures = []
            for group in groups:
                rows = [(layer.prompt, layer.negative) for layer in group.layers]
                regions = self.covers(self.measure_in_px(group), rows, guidance_scale, tile)
                mixtures.append(Mixture(regions, conditions, group.noise.shape, cells_at_once))
            cells_of_a_step = below.cells + sum(mixture.cells for mixture in mixtures)
            expect(t0 * cells_of_a_step + (num_inference_steps - t0) * guided_by_caption.cells)
        for group in groups:
            if vision_guidance == "constant":
                delta = self.encode_colours(np.array([colour], np.uint8))
            else:
                decode_cost = 0 if variant == "mixed" else DECODE_COST
                expect((1 + decode_cost) * group.cells)
                delta = self.find_delta(group, conditions, top_k, cells_at_once, variant)
            group.set_guidance(delta, lambda_1, lambda_2)
        if variant == "mixed":
            latents = self.denoise(
                noise, steps, callback_on_step_end, generator=generator, expected=True
            )
        else:
            latents = self.denoise(
                noise,
                [below] * num_inference_steps,
                callback_on_step_end,
                generator=generator,
                last=t0,
                expected=True,
            )
            denoised_layers = []
            for group, mixture in zip(groups, mixtures, strict=True):
                denoised_layers.append(
                    self.denoise_layers(group, mixture, num_inference_steps, t0, guided_steps)
                )
            latents = self.denoise(
                composite(latents, groups, denoised_layers),
                [guided_by_caption] * num_inference_steps,
                callback_on_step_end,
                generator=generator,
                first=t0,
                expected=True,
            )
        if output_type == "latent":
            return latents
        return as_output(self.decode(latents), output_type)

    def check_inputs(self, layouts: Sequence[Layout]) -> None:
        """Raise IncompatibleLayoutError or ValueError for inputs that this pipeline cannot use."""
        self.check_layouts(layouts)
        self.check_schedule()

    def build_layers(
        self,
        layout: Layout,
        image: int,
        texts: Sequence[str],
        prompts: Prompts,
        negative_row: int,
        context: float | None,
    ) -> list[Layer]:
        """Return the layers of an image, one for each box.

        Args:
            layout: the layout of the image.
            image: index of the image in the batch.
            texts: prompts of the layers.
            prompts: table of prompts, to which the layers' prompts are added.
            negative_row: row of the negative prompt in that table.
            context: share of a box's side that its window adds on each side; None: the window of
                each layer is the whole canvas.
        """
        width = layout.width // self.factor
        height = layout.height // self.factor
        windows = np.tile(np.array([[0, 0, width, height]]), (len(layout), 1))
        if context is not None:
            least = self.unet.config.sample_size
            size = (layout.width, layout.height)
            windows = place_object_windows(
                layout.boxes, size, self.factor, self.multiple, least, context
            )
        layers = []
        for i, (text, (x0, y0, x1, y1)) in enumerate(zip(texts, windows.tolist(), strict=True)):
            mask = self.build_object_mask(layout, i)
            layers.append(
                Layer(
                    image,
                    (x0, y0, x1, y1),
                    mask[y0:y1, x0:x1],
                    float(mask.sum()),
                    prompts.row(text),
                    negative_row,
                    mark_tokens(self.tokenizer, text, layout.categories[i]),
                )
            )
        return layers

    def build_object_mask(self, layout: Layout, i: int) -> Tensor:
        """Return the mask (H, W) of object `i` in latent cells.

        It contains the cells whose centre is in the object's box; or those of which the object's
        mask covers at least half, if the layout has masks.
        """
        width = layout.width // self.factor
        height = layout.height // self.factor
        if layout.masks is not None:
            pixels = torch.from_numpy(coco_mask.decode(dict(layout.masks[i]))).float()
            shares = F.adaptive_avg_pool2d(pixels[None], (height, width))[0]
            return (shares >= 0.5).float()
        x0, y0, x1, y1 = (float(v) / self.factor for v in layout.boxes[i])
        xs = torch.arange(width) + 0.5
        ys = torch.arange(height) + 0.5
        columns = (xs >= x0) & (xs < x1)
        rows = (ys >= y0) & (ys < y1)
        return torch.outer(rows.float(), columns.float())

    def encode_colours(self, rgb: NDArray[np.uint8]) -> Tensor:
        """Return the mean latents (n, C, 1, 1) of images of one colour each.

        They are the delta of the vision guidance.

        Args:
            rgb: (n, 3) uint8.
        """
        side = COLOUR_SIDE * self.factor
        images = np.broadcast_to(rgb[:, None, None, :], (len(rgb), side, side, 3))
        return self.encode_images(images).mean((2, 3), keepdim=True)

    def find_delta(
        self, group: Group, conditions: Conditions, top_k: int, cells_at_once: int, variant: str
    ) -> Tensor:
        """Return the dynamic delta of a group's layers, from one pass at z_T with their prompts.

        Returns:
            For variant paper (n, C, 1, 1): latents of the mean colour of the decoded clean
            prediction at the `top_k` cells that attend most to the object's name. For variant mixed
            (n, C, h, w): the clean prediction itself, of a pass that reads the name only at those
            cells.
        """
        t = self.scheduler.timesteps[0]
        h, w = group.size
        n = max(1, cells_at_once // (h * w))
        deltas = []
        for layers, z in zip(
            split_into_batches(group.layers, n), torch.split(group.noise, n), strict=True
        ):
            tokens = torch.tensor([layer.tokens for layer in layers], device=z.device)
            probe = TokenProbe(tokens, top_k if variant == "mixed" else None)
            layer_conditions = select(conditions, list_prompt_rows(layers))
            with record_attention(self.unet, probe):
                out = self.predict(t, z, layer_conditions).float()
            clean = self.predict_clean(z, out, t)
            if variant == "mixed":
                deltas.append(clean)
                continue
            attention = probe.maps(h, w).flatten(1)
            best = attention.topk(min(top_k, h * w), dim=1).indices
            pixels = torch.from_numpy(self.decode(clean)).to(z.device).permute(0, 3, 1, 2).float()
            cells = F.avg_pool2d(pixels, self.factor).flatten(2)
            mean = cells.gather(2, best[:, None].expand(-1, 3, -1)).mean(2)
            deltas.append(self.encode_colours(mean.round().byte().cpu().numpy()))
        return torch.cat(deltas)

    def predict_clean(self, z: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """Return the clean latents that a prediction `out` for latents z at timestep t implies."""
        a = self.scheduler.alphas_cumprod[int(t)].to(z.device)
        if self.scheduler.config.prediction_type == "v_prediction":
            return a.sqrt() * z - (1 - a).sqrt() * out
        return (z - (1 - a).sqrt() * out) / a.sqrt()

    def measure_in_px(self, group: Group) -> tuple[int, int]:
        """Return the width and height in px of the layers of a group."""
        h, w = group.size
        return w * self.factor, h * self.factor

    def denoise_layers(
        self, group: Group, mixture: Mixture, steps: int, t0: int, guided_steps: int
    ) -> Tensor:
        """Return the layers (n, C, h, w) of a group after the first t0 steps on their own."""
        add_guidance = partial(group.add_guidance, last=min(t0, guided_steps))
        start = group.noise + group.xi
        return self.denoise(start, [mixture] * steps, None, [add_guidance], last=t0, expected=True)
