"""Grounded generation over layouts: GLIGEN (Li et al., arXiv 2301.07093) with any number of boxes, in batches.

A checkpoint learnt windows of one size with so many boxes at most. A canvas of that size is one window; a larger one, or one of
more boxes, is covered with overlapping windows, each told of the boxes that it holds, and merged at every step. A window that
holds none is painted without the gated layers: told of no box, they still paint things now and then.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from synthgen.layouts.base import Layout
from synthgen.pipelines.base import IncompatibleLayoutError
from synthgen.pipelines.diffusion import region_weights
from synthgen.pipelines.diffusion.grounding import (
    GroundedWindow,
    gates,
    grounded_windows,
    strengths,
)
from synthgen.pipelines.diffusion.mixture import Conditions, Mixture, Predict, Region
from synthgen.pipelines.diffusion.pipeline import (
    Evaluate,
    Generators,
    Images,
    LatentPipeline,
    StepEnd,
    as_output,
)
from synthgen.pipelines.diffusion.prompts import Prompts, per_image
from synthgen.scenes.scene import COUNTS
from synthgen.scenes.scene import caption as caption_of

Row = tuple[str | None, GroundedWindow | None, Sequence[str]]
"""A prompt, the window that it is of (None: the negative prompt of any), and the phrases of the window's boxes."""


@dataclass(frozen=True)
class Grounding:
    """What the gated layers are told, as a table of conditions: to the rows `bare` nothing, not even that there are no boxes.

    Attributes:
        boxes: (rows, n, 4) xyxy as shares of the window.
        masks: (rows, n), 1 where there is a box.
        positive_embeddings: (rows, n, D) of the phrases.
        bare: rows without gated layers.
    """

    boxes: Tensor
    masks: Tensor
    positive_embeddings: Tensor
    bare: frozenset[int]

    def __getitem__(self, rows: Tensor) -> dict[str, Any]:
        if self.bare.issuperset(rows.tolist()):
            return {}
        tables = {
            "boxes": self.boxes,
            "masks": self.masks,
            "positive_embeddings": self.positive_embeddings,
        }
        return {"gligen": {name: table[rows] for name, table in tables.items()}}


class GroundedPipeline(LatentPipeline):
    """Paints layouts with a GLIGEN checkpoint in diffusers format."""

    @torch.no_grad()
    def __call__(
        self,
        layouts: Sequence[Layout],
        background: str | Sequence[str] = "",
        negative_prompt: str | Sequence[str | None] | None = None,
        caption: str = COUNTS,
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        window: int | None = None,
        overlap: float = 0.25,
        max_boxes: int = 30,
        stages: tuple[float, float] = (0.3, 0.0),
        stages_rounding: Literal["down", "up"] = "down",
        chunk: int = 32,
        generator: Generators = None,
        callback_on_step_end: StepEnd | None = None,
        output_type: str = "pil",
    ) -> Images | Tensor:
        """Paint one image a layout.

        Args:
            layouts: B layouts on one canvas size; their `phrases` are what the boxes are grounded with.
            background: prompt of the background, one or B.
            negative_prompt: one or B, None for none; the unconditional branch has no boxes.
            caption: of each window, or a template for it, filled with what the window holds (`synthgen.scenes.scene.caption`).
            window, overlap, max_boxes, stages, stages_rounding: see the recipe's keys.
            chunk: windows of the size that the checkpoint was trained at that go through the UNet at once; of larger ones fewer.
            generator: one CPU generator an image, or one for all.
            output_type: "pil", "np" (B, H, W, 3) uint8, or "latent" (B, C, h, w) float32.

        Raises:
            IncompatibleLayoutError: a canvas, a box or a checkpoint that cannot be painted or paint.
        """
        self.check_inputs(layouts)
        side = self.unet.config.sample_size if window is None else self.cells(window)
        backgrounds = per_image(background, len(layouts))
        negatives = per_image(negative_prompt, len(layouts))
        rows: list[Row] = [(text, None, ()) for text in negatives]
        regions: list[Region] = []
        for image, (layout, words) in enumerate(zip(layouts, backgrounds, strict=True)):
            size, phrases = (layout.width, layout.height), layout.prompts
            for w in grounded_windows(
                layout.boxes, size, self.factor, self.multiple, side, overlap, max_boxes
            ):
                (x0, y0, x1, y1), text = (
                    w.window,
                    caption_of(layout.select(w.indices), words, caption),
                )
                weight = region_weights.tile(y1 - y0, x1 - x0)
                regions.append(Region(image, w.window, len(rows), image, guidance_scale, weight))
                rows.append((text, w, [phrases[i] for i in w.indices]))
        bare = frozenset(n for n, (_, w, told) in enumerate(rows) if w is not None and not told)
        conditions, noise = self.conditions(rows, max_boxes, bare), self.noise(layouts, generator)
        mixture = Mixture(regions, conditions, noise.shape, self.cells_at_once(chunk), bare)
        with gates(self.unet) as gate:

            def at(scale: float) -> Evaluate:
                def evaluate(z: Tensor, predict: Predict) -> Tensor:
                    gate.set(scale)
                    return mixture(z, predict)

                return evaluate

            steps = [at(s) for s in strengths(num_inference_steps, stages, stages_rounding)]
            latents = self.denoise(noise, steps, callback_on_step_end, generator=generator)
        return latents if output_type == "latent" else as_output(self.decode(latents), output_type)

    def check_inputs(self, layouts: Sequence[Layout]) -> None:
        """Raise IncompatibleLayoutError for what this checkpoint cannot paint."""
        self.check_layouts(layouts)
        self.check_encoder()
        if self.unet.config.attention_type != "gated":
            raise IncompatibleLayoutError("unet: it has no gated layers; load a GLIGEN checkpoint")

    def conditions(self, rows: Sequence[Row], most: int, bare: frozenset[int]) -> Conditions:
        """Tables with a row a window: its caption's embedding, and its boxes, padded to the number that was trained."""
        prompts, texts = Prompts(), Prompts()
        captions = [prompts.row(text) for text, _, _ in rows]
        boxes, mask = (
            np.zeros((len(rows), most, 4), np.float32),
            np.zeros((len(rows), most), np.float32),
        )
        which = np.full((len(rows), most), texts.row(""))
        for row, (_, window, phrases) in enumerate(rows):
            if window is not None:
                n = len(phrases)
                boxes[row, :n], mask[row, :n], which[row, :n] = (
                    window.boxes,
                    1,
                    [texts.row(p) for p in phrases],
                )
        device, embedded = self._execution_device, self.encode_prompts(prompts.texts)
        pooled = self.encode_phrases(texts.texts)
        places, masks = (
            torch.from_numpy(table).to(device, embedded.dtype) for table in (boxes, mask)
        )
        grounding = Grounding(places, masks, pooled[torch.from_numpy(which).to(device)], bare)
        return {"encoder_hidden_states": embedded[captions], "cross_attention_kwargs": grounding}

    def encode_phrases(self, phrases: Sequence[str | None]) -> Tensor:
        """Return pooled text embeddings (n, D) of the boxes' phrases."""
        return self.text_encoder(self.tokens(self.tokenizer, phrases)).pooler_output
