"""Annotations as tokens: each box is a text, embedded by the text encoder and joined to the prompt.

Source: "How to generate 100 dogs at distinct locations" (the project's documents 000 and 001).

The documents keep one random annotation and join it along the batch. Here all annotations are
joined along the sequence, padded to the longest of the batch, and masked. A canvas larger than what
a checkpoint was trained with is covered with tiles, each with the annotations of the boxes inside
it.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from synthgen.layouts.base import Layout
from synthgen.pipelines.diffusion import region_weights
from synthgen.pipelines.diffusion.box_annotations import (
    format_compact,
    format_literal,
    list_corners,
    parse_literal,
)
from synthgen.pipelines.diffusion.grounding import build_grounded_windows
from synthgen.pipelines.diffusion.mixture import Conditions, Mixture, Region
from synthgen.pipelines.diffusion.pipeline import (
    Generators,
    Images,
    LatentPipeline,
    StepEnd,
    as_output,
)
from synthgen.pipelines.diffusion.prompts import fill_captions, repeat_per_image
from synthgen.scenes.scene import COUNTS

BINS = 32  # cells along each side of the canvas that location tokens distinguish

Window = tuple[int, int, int, int]


class AnnotationTokensPipeline(LatentPipeline):
    """Generate layouts with a Stable Diffusion checkpoint that was trained to read annotations."""

    @torch.no_grad()
    def __call__(
        self,
        layouts: Sequence[Layout],
        background: str | Sequence[str] = "",
        negative_prompt: str | Sequence[str | None] | None = None,
        caption: str = COUNTS,
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        form: Literal["auto", "literal", "compact"] = "auto",
        tile: int | None = None,
        overlap: float = 0.25,
        categories: Mapping[str, int] = MappingProxyType({}),
        annotations: Sequence[Sequence[str]] | None = None,
        chunk: int = 32,
        generator: Generators = None,
        callback_on_step_end: StepEnd | None = None,
        output_type: str = "pil",
    ) -> Images | Tensor:
        """Generate one image for each layout.

        Args:
            layouts: B layouts on one canvas size.
            background: prompt of the background, one or B.
            negative_prompt: one or B, None for none; the unconditional branch has no annotations.
            caption: prompt of the whole image or of a tile, or a template for it (see
                `synthgen.scenes.scene.build_caption`).
            form: form in which a box is written; auto: compact if the tokenizer has location
                tokens, else literal.
            tile: side in px of the tiles in which the canvas is denoised, each with the boxes that
                lie at least half inside it; None: no tiles.
            overlap: least share of a tile that its neighbour also covers.
            categories: ids of names that COCO lacks.
            annotations: B sequences of literal strings, read instead of the layouts' boxes; only
                without tiles.
            chunk: number of windows of the size that the checkpoint was trained at that go through
                the UNet together; fewer of larger windows.
            generator: one CPU generator for each image, or one for all.
            output_type: "pil", "np" (B, H, W, 3) uint8, or "latent" (B, C, h, w) float32.

        Raises:
            IncompatibleLayoutError: this checkpoint cannot generate a canvas or a box.
            ValueError: a category has no id, an annotation is malformed, or the checkpoint does
                not know the form.
        """
        self.check_inputs(layouts, form, annotations, tile)
        backgrounds = repeat_per_image(background, len(layouts))
        images: list[int] = []
        windows: list[Window] = []
        tile_layouts: list[Layout] = []
        for image, layout in enumerate(layouts):
            for window, tile_layout in self.split_into_tiles(layout, tile, overlap):
                images.append(image)
                windows.append(window)
                tile_layouts.append(tile_layout)
        if annotations is None:
            annotations = self.texts(tile_layouts, form, categories)
        tile_backgrounds = [backgrounds[image] for image in images]
        captions = fill_captions(tile_layouts, tile_backgrounds, caption)
        negatives = repeat_per_image(negative_prompt, len(layouts))
        conditions = self.conditions([*captions, *negatives], annotations)
        regions = []
        for row, (image, window) in enumerate(zip(images, windows, strict=True)):
            x0, y0, x1, y1 = window
            weight = region_weights.tile(y1 - y0, x1 - x0)
            negative_row = len(captions) + image
            regions.append(Region(image, window, row, negative_row, guidance_scale, weight))
        noise = self.noise(layouts, generator)
        mixture = Mixture(regions, conditions, noise.shape, self.cells_at_once(chunk))
        steps = [mixture] * num_inference_steps
        latents = self.denoise(noise, steps, callback_on_step_end, generator=generator)
        if output_type == "latent":
            return latents
        return as_output(self.decode(latents), output_type)

    def split_into_tiles(
        self, layout: Layout, tile: int | None, overlap: float
    ) -> list[tuple[Window, Layout]]:
        """Return the windows (x0, y0, x1, y1 in latent cells) that cover a canvas.

        Each comes with its layout in px of the window: the boxes that lie at least half inside it.
        """
        size = (layout.width, layout.height)
        if tile is None:
            window = (0, 0, layout.width // self.factor, layout.height // self.factor)
            return [(window, layout)]
        most = max(1, len(layout))  # no window is split because of its number of boxes
        side = self.cells(tile)
        windows = build_grounded_windows(
            layout.boxes, size, self.factor, self.multiple, side, overlap, most
        )
        return [(w.window, w.layout(layout, self.factor)) for w in windows]

    def check_inputs(
        self,
        layouts: Sequence[Layout],
        form: str,
        annotations: Sequence[Sequence[str]] | None,
        tile: int | None,
    ) -> None:
        """Raise IncompatibleLayoutError or ValueError for inputs that this pipeline cannot use."""
        self.check_layouts(layouts)
        self.check_encoder()
        if form == "compact" and not self.bins:
            raise ValueError(
                "form: compact needs a tokenizer with location tokens; use literal, or train them"
            )
        if annotations is None:
            return
        if len(annotations) != len(layouts):
            raise ValueError(
                f"annotations: {len(annotations)} sequences given for {len(layouts)} layouts"
            )
        if tile is not None:
            raise ValueError("annotations: strings are of the whole canvas; leave tile out")
        for texts in annotations:
            for text in texts:
                parse_literal(text)

    @property
    def bins(self) -> int:
        """Cells along each side of the canvas that location tokens distinguish; 0 without them.

        The tokenizer has one location token for each cell.
        """
        return math.isqrt(sum(token.startswith("<loc_") for token in self.tokenizer.get_vocab()))

    def add_location_tokens(self, bins: int = BINS) -> None:
        """Add `bins` x `bins` location tokens to the tokenizer and the text encoder.

        Their embeddings are still to be trained. They are initialised with sines and cosines of the
        place and with the mean norm of words, so that places near each other start alike.
        """
        self.tokenizer.add_tokens([f"<loc_{k}>" for k in range(bins**2)])
        words = self.text_encoder.get_input_embeddings().weight
        count = len(words)
        mean_norm = float(words.detach().norm(dim=1).mean())
        self.text_encoder.resize_token_embeddings(len(self.tokenizer))
        embedding = self.text_encoder.get_input_embeddings().weight
        directions = functional.normalize(encode_places(bins, embedding.shape[1]), dim=1)
        embedding.data[count:] = (mean_norm * directions).to(embedding)

    def texts(
        self, layouts: Sequence[Layout], form: str, categories: Mapping[str, int]
    ) -> list[list[str]]:
        """Return the annotations of each layout as texts."""
        bins = 0 if form == "literal" else self.bins
        texts = []
        for layout in layouts:
            if bins:
                size = (layout.width, layout.height)
                boxes = zip(layout.prompts, layout.boxes.tolist(), strict=True)
                texts.append([format_compact(phrase, box, size, bins) for phrase, box in boxes])
            else:
                texts.append(
                    [format_literal(corners) for corners in list_corners(layout, categories)]
                )
        return texts

    def conditions(
        self, prompts: Sequence[str | None], annotations: Sequence[Sequence[str]]
    ) -> Conditions:
        """Return the embeddings (P, S, D) of prompts and their annotations, and a mask (P, S) bool.

        The mask is True where there is a token.

        Args:
            prompts: P prompts.
            annotations: texts of the annotations of the first prompts; the others have none.
        """
        prompt = self.encode_prompts(prompts)
        length = prompt.shape[1]
        encoded = [self.encode_annotations(texts) for texts in annotations]
        most = max(len(tokens) for tokens in encoded)
        padding = prompt.new_zeros(len(prompt), most, prompt.shape[2])
        embeddings = torch.cat([prompt, padding], 1)
        mask = torch.zeros(embeddings.shape[:2], dtype=torch.bool, device=prompt.device)
        mask[:, :length] = True
        for row, tokens in enumerate(encoded):
            embeddings[row, length : length + len(tokens)] = tokens
            mask[row, length : length + len(tokens)] = True
        return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}

    def encode_annotations(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings (n, D) of the tokens of all texts, in order.

        Start and end tokens are left out. Texts with more tokens than the text encoder reads are
        encoded in several runs.
        """
        most = self.tokenizer.model_max_length - 2
        runs: list[list[int]] = []
        for text in texts:
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
            runs += [ids[k : k + most] for k in range(0, len(ids), most)]
        if not runs:
            return torch.zeros(
                0,
                self.text_encoder.config.hidden_size,
                device=self._execution_device,
                dtype=self.text_encoder.dtype,
            )
        longest = max(map(len, runs))
        padded = torch.full((len(runs), longest + 2), self.tokenizer.eos_token_id)
        padded[:, 0] = self.tokenizer.bos_token_id
        for row, run in enumerate(runs):
            padded[row, 1 : len(run) + 1] = torch.tensor(run)
        embedded = self.text_encoder(padded.to(self._execution_device)).last_hidden_state
        pairs = zip(embedded, runs, strict=True)
        return torch.cat([row[1 : len(run) + 1] for row, run in pairs])


def encode_places(bins: int, width: int) -> Tensor:
    """Return sines and cosines of the centres of `bins` x `bins` cells.

    They are the position encodings of words in a text (Vaswani et al., arXiv 1706.03762, section
    3.5), but along both sides. Wavelengths are from four sides to four cells, evenly spaced on a
    logarithmic scale.

    Returns:
        (bins^2, width) float32, cells row by row.
    """
    turns = torch.logspace(math.log10(0.25), math.log10(max(1, bins / 4)), width // 4)
    place = (torch.arange(bins) + 0.5) / bins
    y, x = torch.meshgrid(place, place, indexing="ij")
    places = torch.stack([x.flatten(), y.flatten()], 1)
    angles = 2 * math.pi * places[:, :, None] * turns
    waves = torch.cat([angles.sin(), angles.cos()], 1).flatten(1)
    return functional.pad(waves, (0, width - waves.shape[1]))
