"""Regional attention over layouts: one UNet pass a step, in which each cell reads the prompt of the box that it lies in."""

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
from synthgen.pipelines.diffusion.prompts import Prompts, per_image
from synthgen.pipelines.diffusion.regional_attention import (
    PlanTable,
    PromptedWindow,
    regional_processors,
)
from synthgen.pipelines.diffusion.windows import background_windows
from synthgen.scenes.scene import region_prompt as region_prompt_of


class RegionalAttentionPipeline(LatentPipeline):
    """Paints layouts with any checkpoint in Stable Diffusion format, at about the cost of one picture without boxes."""

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
        """Paint one image a layout.

        Args:
            layouts: B layouts on one canvas size; their `phrases` are the prompts of the boxes. Of boxes that overlap the
                smallest is read.
            background: prompt of all other cells, one or B.
            negative_prompt: one or B; None: none, which SDXL tells from an empty one.
            region_prompt, margin, tile, overlap: see the recipe's keys.
            chunk: windows of the size that the checkpoint was trained at that go through the UNet at once; of larger ones fewer.
            generator: one CPU generator an image, or one for all.
            output_type: "pil", "np" (B, H, W, 3) uint8, or "latent" (B, C, h, w) float32.

        Raises:
            IncompatibleLayoutError: a canvas or a box that this checkpoint cannot paint.
        """
        self.check_inputs(layouts)
        prompts = Prompts()
        windows: list[PromptedWindow] = []
        regions: list[Region] = []
        backgrounds = per_image(background, len(layouts))
        negatives = per_image(negative_prompt, len(layouts))
        for image, layout in enumerate(layouts):
            texts = [
                region_prompt_of(phrase, backgrounds[image], region_prompt)
                for phrase in layout.prompts
            ]
            rows, boxes = tuple(prompts.row(text) for text in texts), self.boxes(layout, margin)
            base, negative = prompts.row(backgrounds[image]), prompts.row(negatives[image])
            for x0, y0, x1, y1 in self.tiles(layout, tile, overlap):
                size, weight = (y1 - y0, x1 - x0), region_weights.tile(y1 - y0, x1 - x0)
                regions.append(
                    Region(
                        image,
                        (x0, y0, x1, y1),
                        len(windows),
                        len(windows) + 1,
                        guidance_scale,
                        weight,
                    )
                )
                windows += [
                    PromptedWindow(size, base, boxes - [x0, y0, x0, y0], rows),
                    PromptedWindow(size, negative),
                ]
        noise, words = (
            self.noise(layouts, generator),
            self.text_conditions(prompts.texts, guidance_scale),
        )
        table = PlanTable(
            windows, words["encoder_hidden_states"], len(self.unet.config.block_out_channels) - 1
        )
        bases = torch.tensor(
            [window.base for window in windows], device=noise.device
        )  # what a window reads as a whole
        conditions = {**select(words, bases), "cross_attention_kwargs.plan": table}
        mixture = Mixture(regions, conditions, noise.shape, self.cells_at_once(chunk))
        with self.regional():
            latents = self.denoise(
                noise, [mixture] * num_inference_steps, callback_on_step_end, generator=generator
            )
        return latents if output_type == "latent" else as_output(self.decode(latents), output_type)

    def check_inputs(self, layouts: Sequence[Layout]) -> None:
        """Raise IncompatibleLayoutError for what this checkpoint cannot paint."""
        self.check_layouts(layouts)

    def boxes(self, layout: Layout, margin: float) -> NDArray[np.float64]:
        """Boxes (N, 4) in cells, with `margin` of each side round them."""
        boxes = layout.boxes.astype(np.float64) / self.factor
        more = box_sides(boxes) * margin
        return np.concatenate([boxes[:, :2] - more, boxes[:, 2:] + more], 1)

    def tiles(
        self, layout: Layout, tile: int | None, overlap: float
    ) -> list[tuple[int, int, int, int]]:
        """Windows that cover the canvas, x0, y0, x1, y1 in cells; the canvas itself if it is not tiled."""
        if tile is None:
            return [(0, 0, layout.width // self.factor, layout.height // self.factor)]
        found = background_windows(
            (layout.width, layout.height), self.factor, self.multiple, self.cells(tile), overlap
        )
        return [(x0, y0, x1, y1) for x0, y0, x1, y1 in found.tolist()]

    @contextmanager
    def regional(self) -> Iterator[None]:
        """The UNet with attention by region."""
        usual = self.unet.attn_processors
        self.unet.set_attn_processor(regional_processors(list(usual)))
        try:
            yield
        finally:
            self.unet.set_attn_processor(dict(usual))
