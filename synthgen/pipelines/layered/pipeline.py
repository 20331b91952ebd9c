"""Layered rendering with vision guidance over layouts: LRDiff (Qi et al., arXiv 2311.18435, ECCV 2024), in batches.

Layers of all images are denoised together, those of one size in one batch. `variant="mixed"` is the form of the source
document's unofficial notebook instead.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F

from synthgen.layouts.base import Layout
from synthgen.pipelines.diffusion.mixture import Conditions, Mixture, select
from synthgen.pipelines.diffusion.object_layers import (
    Group,
    Layer,
    MixedLayers,
    by_size,
    composite,
    in_batches,
    prompts_of,
)
from synthgen.pipelines.diffusion.pipeline import (
    Evaluate,
    Generators,
    Images,
    LatentPipeline,
    StepEnd,
    as_output,
)
from synthgen.pipelines.diffusion.prompts import Prompts, captions_of, per_image
from synthgen.pipelines.diffusion.token_attention import TokenProbe, probed, tokens_of
from synthgen.pipelines.diffusion.windows import object_windows
from synthgen.scenes.scene import COUNTS, region_prompt

COLOUR_SIDE = 32  # cells of the picture of one colour that is encoded


class LayeredPipeline(LatentPipeline):
    """Paints layouts in layers, with any checkpoint in Stable Diffusion format and no training."""

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
        """Paint one image a layout.

        Args:
            layouts: B layouts on one canvas size; `phrases` are the layers' prompts, `masks` stand for boxes where there are any.
            background: prompt of the layer below all, one or B; it and the caption have no vision guidance.
            negative_prompt: one or B; None: none, which SDXL tells from an empty one.
            caption: of the whole picture, or a template for it (see `synthgen.scenes.scene.caption`).
            layer_prompt: of a layer, or a template for it: {phrase} and {background} are replaced.
            variant, vision_guidance, colour, lambda_1, lambda_2, layer_share, guided_steps, top_k, gamma, until, context, tile:
                see the recipe's keys.
            chunk: windows of the size that the checkpoint was trained at that go through the UNet at once; of larger ones fewer.
            generator: one CPU generator an image, or one for all.
            callback_on_step_end: called after the steps of the background and of the finished picture, not of the layers.
            output_type: "pil", "np" (B, H, W, 3) uint8, or "latent" (B, C, h, w) float32.

        Raises:
            IncompatibleLayoutError: a canvas or a box that this checkpoint cannot paint.
            ValueError: a scheduler that cannot start within its schedule.
        """
        self.check_inputs(layouts)
        prompts, size, at_once = (
            Prompts(),
            (layouts[0].width, layouts[0].height),
            self.cells_at_once(chunk),
        )
        words = per_image(background, len(layouts))
        backgrounds = [prompts.row(text) for text in words]
        negatives = [prompts.row(text) for text in per_image(negative_prompt, len(layouts))]
        captions = [prompts.row(text) for text in captions_of(layouts, background, caption)]
        layers: list[Layer] = []
        for i, layout in enumerate(layouts):
            texts = [region_prompt(phrase, words[i], layer_prompt) for phrase in layout.prompts]
            layers += self.layers(layout, i, texts, prompts, negatives[i], context)
        noise, conditions = (
            self.noise(layouts, generator),
            self.text_conditions(prompts.texts, guidance_scale),
        )
        groups = [Group(list(x), noise) for x in by_size(layers)]
        self.scheduler.set_timesteps(num_inference_steps, device=noise.device)
        for group in groups:
            one = (
                self.colours(np.array([colour], np.uint8))
                if vision_guidance == "constant"
                else None
            )
            delta = self.found(group, conditions, top_k, at_once, variant) if one is None else one
            group.guide(delta, lambda_1, lambda_2)

        def whole(rows: Sequence[int], guidance: float) -> Mixture:
            regions = self.covers(size, list(zip(rows, negatives, strict=True)), guidance, tile)
            return Mixture(regions, conditions, noise.shape, at_once)

        rest: Evaluate = whole(captions, guidance_scale)
        if variant == "mixed":
            mixed = MixedLayers(
                groups, conditions, whole(captions, 0.0), guidance_scale * gamma, at_once
            )
            steps = [mixed if t > until else rest for t in self.scheduler.timesteps]
            latents = self.denoise(noise, steps, callback_on_step_end, generator=generator)
        else:
            t0 = max(1, round(layer_share * num_inference_steps))
            below = [whole(backgrounds, guidance_scale)] * num_inference_steps
            latents = self.denoise(noise, below, callback_on_step_end, generator=generator, last=t0)
            run = partial(
                self.render,
                conditions,
                guidance_scale,
                num_inference_steps,
                t0,
                guided_steps,
                tile,
                at_once,
            )
            latents = composite(latents, groups, [run(group) for group in groups])
            latents = self.denoise(
                latents,
                [rest] * num_inference_steps,
                callback_on_step_end,
                generator=generator,
                first=t0,
            )
        return latents if output_type == "latent" else as_output(self.decode(latents), output_type)

    def check_inputs(self, layouts: Sequence[Layout]) -> None:
        """Raise IncompatibleLayoutError or ValueError for what this pipeline cannot paint."""
        self.check_layouts(layouts)
        self.check_schedule()

    def layers(
        self,
        layout: Layout,
        image: int,
        texts: Sequence[str],
        prompts: Prompts,
        negative: int,
        context: float | None,
    ) -> Iterator[Layer]:
        """The layers of an image: one a box, cropped to a window or not."""
        width, height = layout.width // self.factor, layout.height // self.factor
        windows = np.tile(np.array([[0, 0, width, height]]), (len(layout), 1))
        if context is not None:
            least, size = self.unet.config.sample_size, (layout.width, layout.height)
            windows = object_windows(layout.boxes, size, self.factor, self.multiple, least, context)
        for i, (text, (x0, y0, x1, y1)) in enumerate(zip(texts, windows.tolist(), strict=True)):
            mask, tokens = (
                self.object_mask(layout, i),
                tokens_of(self.tokenizer, text, layout.categories[i]),
            )
            yield Layer(
                image,
                (x0, y0, x1, y1),
                mask[y0:y1, x0:x1],
                float(mask.sum()),
                prompts.row(text),
                negative,
                tokens,
            )

    def object_mask(self, layout: Layout, i: int) -> Tensor:
        """Cells (H, W) of an object: those whose centre its box holds, or those that its mask covers at least half of."""
        width, height = layout.width // self.factor, layout.height // self.factor
        if layout.masks is not None:
            pixels = torch.from_numpy(coco_mask.decode(dict(layout.masks[i]))).float()
            return (F.adaptive_avg_pool2d(pixels[None], (height, width))[0] >= 0.5).float()
        x0, y0, x1, y1 = (float(v) / self.factor for v in layout.boxes[i])
        xs, ys = torch.arange(width) + 0.5, torch.arange(height) + 0.5
        return torch.outer(((ys >= y0) & (ys < y1)).float(), ((xs >= x0) & (xs < x1)).float())

    def colours(self, rgb: np.ndarray) -> Tensor:
        """Latents (n, C, 1, 1) of pictures of one colour each, (n, 3) uint8: delta of the vision guidance."""
        side = COLOUR_SIDE * self.factor
        pictures = np.broadcast_to(rgb[:, None, None, :], (len(rgb), side, side, 3))
        return self.encode_pictures(pictures).mean((2, 3), keepdim=True)

    def found(
        self, group: Group, conditions: Conditions, top_k: int, at_once: int, variant: str
    ) -> Tensor:
        """Dynamic delta of a group's layers, from one pass at z_T with each object's prompt.

        Returns:
            paper: (n, C, 1, 1), latents of the mean colour of the decoded clean prediction at the `top_k` cells that read the
            object's name most. mixed: (n, C, h, w), the clean prediction itself of a pass that reads the name only there.
        """
        t, deltas, (h, w) = self.scheduler.timesteps[0], [], group.size
        n = max(1, at_once // (h * w))
        for layers, z in zip(in_batches(group.layers, n), torch.split(group.noise, n), strict=True):
            tokens = torch.tensor([x.tokens for x in layers], device=z.device)
            probe = TokenProbe(tokens, top_k if variant == "mixed" else None)
            with probed(self.unet, probe):
                out = self.predict(t, z, select(conditions, prompts_of(layers))).float()
            clean = self.clean(z, out, t)
            if variant == "mixed":
                deltas.append(clean)
                continue
            best = probe.maps(h, w).flatten(1).topk(min(top_k, h * w), dim=1).indices
            pixels = torch.from_numpy(self.decode(clean)).to(z.device).permute(0, 3, 1, 2).float()
            cells = F.avg_pool2d(pixels, self.factor).flatten(2)
            mean = cells.gather(2, best[:, None].expand(-1, 3, -1)).mean(2)
            deltas.append(self.colours(mean.round().byte().cpu().numpy()))
        return torch.cat(deltas)

    def clean(self, z: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """The clean latents that a prediction `out` for latents z at timestep t stands for."""
        a = self.scheduler.alphas_cumprod[int(t)].to(z.device)
        if self.scheduler.config.prediction_type == "v_prediction":
            return a.sqrt() * z - (1 - a).sqrt() * out
        return (z - (1 - a).sqrt() * out) / a.sqrt()

    def render(
        self,
        conditions: Conditions,
        guidance: float,
        steps: int,
        t0: int,
        guided: int,
        tile: int | None,
        at_once: int,
        group: Group,
    ) -> Tensor:
        """The layers of a group, (n, C, h, w), after t0 steps of their own."""
        h, w = group.size
        size = (w * self.factor, h * self.factor)
        rows = [(x.prompt, x.negative) for x in group.layers]
        mixture = Mixture(
            self.covers(size, rows, guidance, tile), conditions, group.noise.shape, at_once
        )
        after = [partial(group.guided, last=min(t0, guided))]
        return self.denoise(group.noise + group.xi, [mixture] * steps, None, after, last=t0)
