"""Grounded generation over layouts, in batches: GLIGEN (Li et al., arXiv 2301.07093).

A checkpoint was trained on windows of one size with a limited number of boxes. A canvas of that
size is one window. A larger canvas, or one with more boxes, is covered with overlapping windows,
each with the boxes inside it, and the windows are merged at every step. A window without boxes is
generated without the gated layers, because they sometimes generate objects even when they are given
no box.
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
    Gates,
    GroundedWindow,
    build_grounded_windows,
    compute_strengths,
    control_gates,
)
from synthgen.pipelines.diffusion.mixture import Conditions, Mixture, Predict, Region
from synthgen.pipelines.diffusion.pipeline import (
    Generators,
    Images,
    LatentPipeline,
    StepEnd,
    as_output,
)
from synthgen.pipelines.diffusion.prompts import Prompts, repeat_per_image
from synthgen.scenes.scene import COUNTS, build_caption


@dataclass(frozen=True)
class Row:
    """One row of the tables of conditions.

    Attributes:
        prompt: caption of a window, or a negative prompt; None: no prompt.
        window: the window and its boxes; None if the row is a negative prompt.
        phrases: phrases of the window's boxes.
    """

    prompt: str | None
    window: GroundedWindow | None = None
    phrases: Sequence[str] = ()


@dataclass(frozen=True)
class Grounding:
    """The inputs of the gated layers, as a table of conditions.

    Attributes:
        boxes: (rows, n, 4) xyxy as shares of the window.
        masks: (rows, n), 1 where there is a box.
        positive_embeddings: (rows, n, D) of the phrases.
        ungated: rows that are evaluated without the gated layers.
    """

    boxes: Tensor
    masks: Tensor
    positive_embeddings: Tensor
    ungated: frozenset[int]

    def __getitem__(self, rows: Tensor) -> dict[str, Any]:
        if self.ungated.issuperset(rows.tolist()):
            return {}
        inputs = {
            "boxes": self.boxes[rows],
            "masks": self.masks[rows],
            "positive_embeddings": self.positive_embeddings[rows],
        }
        return {"gligen": inputs}


@dataclass(frozen=True)
class GatedMixture:
    """An evaluation of a mixture that first sets the strength of the gated layers."""

    mixture: Mixture
    gates: Gates
    scale: float

    @property
    def cells(self) -> int:
        """The number of latent cells that go through the network."""
        return self.mixture.cells

    def __call__(self, z: Tensor, predict: Predict) -> Tensor:
        """Return the merged prediction (B, C, H, W) float32."""
        self.gates.set(self.scale)
        return self.mixture(z, predict)


class GroundedPipeline(LatentPipeline):
    """Generate layouts with a GLIGEN checkpoint in diffusers format."""

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
        """Generate one image for each layout.

        Args:
            layouts: B layouts on one canvas size; the boxes are grounded with their `phrases`.
            background: prompt of the background, one or B.
            negative_prompt: one or B, None for none; the unconditional branch has no boxes.
            caption: caption of each window, or a template for it, filled with the objects of the
                window (`synthgen.scenes.scene.build_caption`).
            window: see the recipe's key, as for `overlap`, `max_boxes`, `stages` and
                `stages_rounding`.
            chunk: number of windows of the size that the checkpoint was trained at that go through
                the UNet together; fewer of larger windows.
            generator: one CPU generator for each image, or one for all.
            output_type: "pil", "np" (B, H, W, 3) uint8, or "latent" (B, C, h, w) float32.

        Raises:
            IncompatibleLayoutError: this checkpoint cannot generate a canvas or a box, or has no
                gated layers.
        """
        self.check_inputs(layouts)
        side = self.unet.config.sample_size if window is None else self.cells(window)
        backgrounds = repeat_per_image(background, len(layouts))
        rows = [Row(text) for text in repeat_per_image(negative_prompt, len(layouts))]
        ungated = set()
        regions: list[Region] = []
        for image, layout in enumerate(layouts):
            size = (layout.width, layout.height)
            phrases = layout.prompts
            windows = build_grounded_windows(
                layout.boxes, size, self.factor, self.multiple, side, overlap, max_boxes
            )
            for w in windows:
                x0, y0, x1, y1 = w.window
                weight = region_weights.tile(y1 - y0, x1 - x0)
                regions.append(Region(image, w.window, len(rows), image, guidance_scale, weight))
                text = build_caption(layout.select(w.indices), backgrounds[image], caption)
                if not w.indices:
                    ungated.add(len(rows))
                rows.append(Row(text, w, [phrases[i] for i in w.indices]))
        conditions = self.build_conditions(rows, max_boxes, frozenset(ungated))
        noise = self.noise(layouts, generator)
        mixture = Mixture(regions, conditions, noise.shape, self.cells_at_once(chunk), ungated)
        scales = compute_strengths(num_inference_steps, stages, stages_rounding)
        with control_gates(self.unet) as unet_gates:
            steps = [GatedMixture(mixture, unet_gates, scale) for scale in scales]
            latents = self.denoise(noise, steps, callback_on_step_end, generator=generator)
        if output_type == "latent":
            return latents
        return as_output(self.decode(latents), output_type)

    def check_inputs(self, layouts: Sequence[Layout]) -> None:
        """Raise IncompatibleLayoutError for inputs that this checkpoint cannot use."""
        self.check_layouts(layouts)
        self.check_encoder()
        if self.unet.config.attention_type != "gated":
            raise IncompatibleLayoutError("unet: it has no gated layers; load a GLIGEN checkpoint")

    def build_conditions(
        self, rows: Sequence[Row], max_boxes: int, ungated: frozenset[int]
    ) -> Conditions:
        """Return the tables of conditions, one row for each of `rows`.

        They hold the embedding of the caption, and the boxes, padded to `max_boxes`.
        """
        prompts = Prompts()
        phrases = Prompts()
        prompt_rows = [prompts.row(row.prompt) for row in rows]
        boxes = np.zeros((len(rows), max_boxes, 4), np.float32)
        masks = np.zeros((len(rows), max_boxes), np.float32)
        phrase_rows = np.full((len(rows), max_boxes), phrases.row(""))
        for k, row in enumerate(rows):
            if row.window is not None:
                n = len(row.phrases)
                boxes[k, :n] = row.window.boxes
                masks[k, :n] = 1
                phrase_rows[k, :n] = [phrases.row(phrase) for phrase in row.phrases]
        device = self._execution_device
        embedded = self.encode_prompts(prompts.texts)
        pooled = self.encode_phrases(phrases.texts)
        grounding = Grounding(
            torch.from_numpy(boxes).to(device, embedded.dtype),
            torch.from_numpy(masks).to(device, embedded.dtype),
            pooled[torch.from_numpy(phrase_rows).to(device)],
            ungated,
        )
        return {"encoder_hidden_states": embedded[prompt_rows], "cross_attention_kwargs": grounding}

    def encode_phrases(self, phrases: Sequence[str | None]) -> Tensor:
        """Return pooled text embeddings (n, D) of the boxes' phrases."""
        return self.text_encoder(self.tokens(self.tokenizer, phrases)).pooler_output
