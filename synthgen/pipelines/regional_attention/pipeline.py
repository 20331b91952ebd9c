"""Regional attention over layouts: each latent cell attends to the prompt of the box it lies in.

One UNet pass a step is enough, whatever the number of boxes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthgen.geometry import box_sides
from synthgen.layouts.base import Layout
from synthgen.pipelines.diffusion import region_weights
from synthgen.pipelines.diffusion.mixture import Mixture, Region, select
from synthgen.pipelines.diffusion.pipeline import (
    Generators,
    Images,
    LatentPipeline,
    StepEnd,
    as_output,
)
from synthgen.pipelines.diffusion.prompts import Prompts, repeat_per_image
from synthgen.pipelines.diffusion.regional_attention import (
    PlanTable,
    PromptedWindow,
    install_regional_processors,
)
from synthgen.pipelines.diffusion.windows import place_background_windows
from synthgen.scenes.scene import build_region_prompt as region_prompt_of


class RegionalAttentionPipeline(LatentPipeline):
    """Generate layouts with any checkpoint in Stable Diffusion format.

    The cost is about that of one image without boxes.
    """

    @torch.no_grad()
    def __call__(
        self,
        layouts: Sequence[Layout],
        background: str | Sequence[str] = "",
        negative_prompt: str | Sequence[str | None] | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        region_prompt: str = "{phrase}, {background}",
        margin: float = 0.0,
        tile: int | None = None,
        overlap: float = 0.25,
        chunk: int = 32,
        generator: Generators = None,
        callback_on_step_end: StepEnd | None = None,
        output_type: str = "pil",
    ) -> Images | Tensor:
        """Generate one image for each layout.

        Args:
            layouts: B layouts on one canvas size; their `phrases` are the prompts of the boxes.
                Where boxes overlap, the prompt of the smallest is read.
            background: prompt of all other cells, one or B.
            negative_prompt: one or B; None: no negative prompt, which SDXL distinguishes from an
                empty one.
            region_prompt: see the recipe's key, as for `margin`, `tile` and `overlap`.
            chunk: number of windows of the size that the checkpoint was trained at that go through
                the UNet together; fewer of larger windows.
            generator: one CPU generator for each image, or one for all.
            output_type: "pil", "np" (B, H, W, 3) uint8, or "latent" (B, C, h, w) float32.

        Raises:
            IncompatibleLayoutError: this checkpoint cannot generate a canvas or a box.
        """
        self.check_inputs(layouts)
        prompts = Prompts()
        windows: list[PromptedWindow] = []
        regions: list[Region] = []
        backgrounds = repeat_per_image(background, len(layouts))
        negatives = repeat_per_image(negative_prompt, len(layouts))
        for image, layout in enumerate(layouts):
            phrase_rows = []
            for phrase in layout.prompts:
                text = region_prompt_of(phrase, backgrounds[image], region_prompt)
                phrase_rows.append(prompts.row(text))
            boxes = self.enlarge_boxes(layout, margin)
            background_row = prompts.row(backgrounds[image])
            negative_row = prompts.row(negatives[image])
            for x0, y0, x1, y1 in self.cover_with_tiles(layout, tile, overlap):
                size = (y1 - y0, x1 - x0)
                prompted = PromptedWindow(
                    size, background_row, boxes - [x0, y0, x0, y0], tuple(phrase_rows)
                )
                regions.append(
                    Region(
                        image,
                        (x0, y0, x1, y1),
                        len(windows),
                        len(windows) + 1,
                        guidance_scale,
                        region_weights.tile(*size),
                    )
                )
                windows += [prompted, PromptedWindow(size, negative_row)]
        noise = self.noise(layouts, generator)
        texts = self.text_conditions(prompts.texts, guidance_scale)
        levels = len(self.unet.config.block_out_channels) - 1
        table = PlanTable(windows, texts["encoder_hidden_states"], levels)
        # The row of the prompt that applies to a window as a whole.
        base_rows = torch.tensor([window.base for window in windows], device=noise.device)
        conditions = {**select(texts, base_rows), "cross_attention_kwargs.plan": table}
        mixture = Mixture(regions, conditions, noise.shape, self.cells_at_once(chunk))
        steps = [mixture] * num_inference_steps
        with self.use_regional_attention():
            latents = self.denoise(noise, steps, callback_on_step_end, generator=generator)
        if output_type == "latent":
            return latents
        return as_output(self.decode(latents), output_type)

    def check_inputs(self, layouts: Sequence[Layout]) -> None:
        """Raise IncompatibleLayoutError for inputs that this checkpoint cannot use."""
        self.check_layouts(layouts)

    def enlarge_boxes(self, layout: Layout, margin: float) -> NDArray[np.float64]:
        """Return the boxes (N, 4) in latent cells, with `margin` of each side added around them."""
        boxes = layout.boxes.astype(np.float64) / self.factor
        margins = box_sides(boxes) * margin
        return np.concatenate([boxes[:, :2] - margins, boxes[:, 2:] + margins], 1)

    def cover_with_tiles(
        self, layout: Layout, tile: int | None, overlap: float
    ) -> list[tuple[int, int, int, int]]:
        """Return windows (x0, y0, x1, y1 in latent cells) that cover the canvas.

        Without tiles there is one window, the canvas.
        """
        if tile is None:
            return [(0, 0, layout.width // self.factor, layout.height // self.factor)]
        size = (layout.width, layout.height)
        windows = place_background_windows(
            size, self.factor, self.multiple, self.cells(tile), overlap
        )
        return [(x0, y0, x1, y1) for x0, y0, x1, y1 in windows.tolist()]

    @contextmanager
    def use_regional_attention(self) -> Iterator[None]:
        """Use regional attention in the UNet within the context."""
        processors = self.unet.attn_processors
        self.unet.set_attn_processor(install_regional_processors(list(processors)))
        try:
            yield
        finally:
            self.unet.set_attn_processor(dict(processors))
