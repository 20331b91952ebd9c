"""Annotations as tokens: every box is a text of its own, embedded by the text encoder and joined to the prompt.

Source: "How to generate 100 dogs at distinct locations" (the project's documents 000 and 001). There one random annotation was
kept and joined along the batch; here all are joined along the sequence, padded to the longest of the batch, and masked. A canvas
larger than what a checkpoint was trained with is covered with tiles, each with the annotations of the boxes that it holds.
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
from synthgen.pipelines.diffusion.box_annotations import compact, corners_of, literal, parse_literal
from synthgen.pipelines.diffusion.grounding import grounded_windows
from synthgen.pipelines.diffusion.mixture import Conditions, Mixture, Region
from synthgen.pipelines.diffusion.pipeline import (
    Generators,
    Images,
    LatentPipeline,
    StepEnd,
    as_output,
)
from synthgen.pipelines.diffusion.prompts import captions_of, per_image
from synthgen.scenes.scene import COUNTS

BINS = 32  # parts of a side that location tokens tell apart


class AnnotationTokensPipeline(LatentPipeline):
    """Paints layouts with a checkpoint in Stable Diffusion format that was trained to read annotations."""

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
        """Paint one image a layout.

        Args:
            layouts: B layouts on one canvas size.
            background: prompt of the background, one or B.
            negative_prompt: one or B, None for none; the unconditional branch has no annotations.
            caption: of the whole picture or of a tile, or a template for it (see `synthgen.scenes.scene.caption`).
            form: how a box is written; auto: compact if the tokenizer has location tokens.
            tile: px; the canvas is denoised in tiles of this side, each told of the boxes of which it holds half; None: in one
                piece.
            overlap: least share of a tile that its neighbour covers too.
            categories: ids of names that COCO lacks.
            annotations: B sequences of literal strings, read instead of the layouts' boxes; for a canvas in one piece.
            chunk: windows of the size that the checkpoint was trained at that go through the UNet at once; of larger ones fewer.
            generator: one CPU generator an image, or one for all.
            output_type: "pil", "np" (B, H, W, 3) uint8, or "latent" (B, C, h, w) float32.

        Raises:
            IncompatibleLayoutError: a canvas or a box that this checkpoint cannot paint.
            ValueError: a category without an id, a malformed annotation, or a form that the checkpoint does not know.
        """
        self.check_inputs(layouts, form, annotations, tile)
        tiles = [
            (image, *part)
            for image, layout in enumerate(layouts)
            for part in self.tiles(layout, tile, overlap)
        ]
        own, backgrounds = [layout for _, _, layout in tiles], per_image(background, len(layouts))
        texts = self.texts(own, form, categories) if annotations is None else annotations
        captions = captions_of(own, [backgrounds[image] for image, _, _ in tiles], caption)
        conditions = self.conditions([*captions, *per_image(negative_prompt, len(layouts))], texts)
        regions = [
            Region(
                image,
                (x0, y0, x1, y1),
                row,
                len(tiles) + image,
                guidance_scale,
                region_weights.tile(y1 - y0, x1 - x0),
            )
            for row, (image, (x0, y0, x1, y1), _) in enumerate(tiles)
        ]
        noise = self.noise(layouts, generator)
        mixture = Mixture(regions, conditions, noise.shape, self.cells_at_once(chunk))
        latents = self.denoise(
            noise, [mixture] * num_inference_steps, callback_on_step_end, generator=generator
        )
        return latents if output_type == "latent" else as_output(self.decode(latents), output_type)

    def tiles(
        self, layout: Layout, tile: int | None, overlap: float
    ) -> list[tuple[tuple[int, int, int, int], Layout]]:
        """Windows in latent cells that cover a canvas, and the layout of each in px of it: boxes of which it holds half."""
        size = (layout.width, layout.height)
        if tile is None:
            return [((0, 0, size[0] // self.factor, size[1] // self.factor), layout)]
        most = max(1, len(layout))  # no window is split
        found = grounded_windows(
            layout.boxes, size, self.factor, self.multiple, self.cells(tile), overlap, most
        )
        return [(w.window, w.layout(layout, self.factor)) for w in found]

    def check_inputs(
        self,
        layouts: Sequence[Layout],
        form: str,
        annotations: Sequence[Sequence[str]] | None,
        tile: int | None,
    ) -> None:
        """Raise IncompatibleLayoutError or ValueError for what this pipeline cannot paint."""
        self.check_layouts(layouts)
        self.check_encoder()
        if form == "compact" and not self.bins:
            raise ValueError(
                "form: compact needs a tokenizer with location tokens; use literal, or train them"
            )
        if annotations is not None and len(annotations) != len(layouts):
            raise ValueError(
                f"annotations: {len(annotations)} sequences given for {len(layouts)} layouts"
            )
        if annotations is not None and tile is not None:
            raise ValueError("annotations: strings are of the whole canvas; leave tile out")
        for text in (t for own in annotations or () for t in own):
            parse_literal(text)

    @property
    def bins(self) -> int:
        """Parts of a side that the tokenizer's location tokens, one for each cell, tell apart; 0 if it has none."""
        return math.isqrt(sum(token.startswith("<loc_") for token in self.tokenizer.get_vocab()))

    def add_location_tokens(self, bins: int = BINS) -> None:
        """Give the tokenizer and the text encoder `bins` x `bins` location tokens; their embeddings are to be trained.

        They start as sines and cosines of the place, as long as words are, so that places near each other begin alike.
        """
        self.tokenizer.add_tokens([f"<loc_{k}>" for k in range(bins**2)])
        words = self.text_encoder.get_input_embeddings().weight
        length, n = float(words.detach().norm(dim=1).mean()), len(words)
        self.text_encoder.resize_token_embeddings(len(self.tokenizer))
        embedding = self.text_encoder.get_input_embeddings().weight
        embedding.data[n:] = (
            length * functional.normalize(place_waves(bins, embedding.shape[1]), dim=1)
        ).to(embedding)

    def texts(
        self, layouts: Sequence[Layout], form: str, categories: Mapping[str, int]
    ) -> list[list[str]]:
        """The annotations of each layout as texts."""
        bins = 0 if form == "literal" else self.bins
        if not bins:
            return [
                [literal(corners) for corners in corners_of(layout, categories)]
                for layout in layouts
            ]
        return [
            [
                compact(p, box, (own.width, own.height), bins)
                for p, box in zip(own.prompts, own.boxes.tolist(), strict=True)
            ]
            for own in layouts
        ]

    def conditions(
        self, prompts: Sequence[str | None], annotations: Sequence[Sequence[str]]
    ) -> Conditions:
        """Embeddings (P, S, D) of prompts, the first of which have annotations, and which tokens there are, (P, S) bool."""
        prompt = self.encode_prompts(prompts)
        joined = [self.encode_annotations(own) for own in annotations]
        most = max(len(own) for own in joined)
        embeddings = torch.cat([prompt, prompt.new_zeros(len(prompt), most, prompt.shape[2])], 1)
        mask = torch.zeros(embeddings.shape[:2], dtype=torch.bool, device=prompt.device)
        mask[:, : prompt.shape[1]] = True
        for row, own in enumerate(joined):
            embeddings[row, prompt.shape[1] : prompt.shape[1] + len(own)] = own
            mask[row, prompt.shape[1] : prompt.shape[1] + len(own)] = True
        return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}

    def encode_annotations(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (n, D) of the tokens of all texts, in order, without start and end; long texts are encoded in pieces."""
        room = self.tokenizer.model_max_length - 2
        ids = [self.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        pieces = [own[k : k + room] for own in ids for k in range(0, len(own), room)]
        if not pieces:
            return torch.zeros(
                0,
                self.text_encoder.config.hidden_size,
                device=self._execution_device,
                dtype=self.text_encoder.dtype,
            )
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        longest = max(map(len, pieces))
        padded = torch.tensor(
            [[start, *piece, *[end] * (longest - len(piece) + 1)] for piece in pieces]
        )
        embedded = self.text_encoder(padded.to(self._execution_device)).last_hidden_state
        return torch.cat(
            [row[1 : len(piece) + 1] for row, piece in zip(embedded, pieces, strict=True)]
        )


def place_waves(bins: int, width: int) -> Tensor:
    """Sines and cosines of where the centres of `bins` x `bins` cells are, row by row: (bins^2, width) float32.

    As of words in a text (Vaswani et al., arXiv 1706.03762, section 3.5), but along both sides; the waves are from four sides to
    four cells long, evenly on a logarithmic scale.
    """
    turns = torch.logspace(math.log10(0.25), math.log10(max(1, bins / 4)), width // 4)
    place = (torch.arange(bins) + 0.5) / bins
    y, x = torch.meshgrid(place, place, indexing="ij")
    angles = 2 * math.pi * torch.stack([x.flatten(), y.flatten()], 1)[:, :, None] * turns
    waves = torch.cat([angles.sin(), angles.cos()], 1).flatten(1)
    return functional.pad(waves, (0, width - waves.shape[1]))
