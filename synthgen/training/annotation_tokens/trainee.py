"""Training of a checkpoint that reads annotations as tokens after the prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from synthgen.layouts.base import Layout
from synthgen.pipelines.annotation_tokens.pipeline import AnnotationTokensPipeline
from synthgen.randomness import Stream, seed_sequence
from synthgen.training.annotation_tokens import Spec
from synthgen.training.box_attention import BoxAttention, compute_attention_loss
from synthgen.training.box_conditioning import BoxConditioningTrainee, NoisyLatents, pad_boxes
from synthgen.training.lora import add_lora
from synthgen.training.windows import EncodedScene, is_gated

BOX_RATE = 2.0  # learning rate of the weights that read boxes, as a multiple


@dataclass(frozen=True)
class Batch:
    """A batch of windows.

    Attributes:
        latents: the latents and their noise.
        captions: the prompts.
        layouts: the boxes that each window is given.
        is_rehearsal: whether the latents are pure noise and the boxes random.
    """

    latents: NoisyLatents
    captions: list[str]
    layouts: list[Layout]
    is_rehearsal: bool = False


class AnnotationTokensTrainee(BoxConditioningTrainee):
    """UNet, text encoder and location tokens; forward returns the loss of one batch."""

    spec: Spec

    def __init__(self, spec: Spec) -> None:
        options = {
            "tile": min(256, spec.windows[1]),
            "form": spec.form,
            "categories": spec.categories,
        }
        super().__init__(spec, AnnotationTokensPipeline, options)
        self.reader: AnnotationTokensPipeline = self.pipeline[0]
        if spec.form == "compact" and not self.reader.bins:
            self.reader.add_location_tokens(spec.bins)
        for name, weight in self.unet.named_parameters():
            is_trained = spec.train == "all" or ".attn2." in name
            weight.requires_grad_(is_trained and not is_gated(name))
        if spec.lora is not None:
            add_lora(self.unet, spec.lora.rank)
        self.text.requires_grad_(spec.train_text_encoder)
        self.text.get_input_embeddings().requires_grad_(True)
        self.is_rehearsing = False
        for weight in self.other_parameters():
            weight.register_hook(self._stop_gradient_in_rehearsal)  # type: ignore[no-untyped-call]
        self.attention = BoxAttention()
        processors = self.unet.attn_processors
        for name in processors:
            if "attn2" in name:
                processors[name] = self.attention
        self.unet.set_attn_processor(processors)

    def _stop_gradient_in_rehearsal(self, gradient: Tensor) -> Tensor:
        return gradient * (not self.is_rehearsing)

    def box_parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters that read boxes: cross-attention and text encoder."""
        attention = [p for name, p in self.unet.named_parameters() if ".attn2." in name]
        return [p for p in (*attention, *self.text.parameters()) if p.requires_grad]

    def other_parameters(self) -> list[nn.Parameter]:
        """Return the other trained parameters; they are not trained during the rehearsal."""
        box_parameters = {id(p) for p in self.box_parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in box_parameters]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups.

        The weights that read boxes have a higher learning rate: they have more to learn than the
        rest, which generates images already.
        """
        return [
            {"params": self.box_parameters(), "rate": BOX_RATE},
            {"params": self.other_parameters()},
        ]

    def batches(self, start: int, rank: int) -> Iterator[Batch]:
        for step, batch in enumerate(super().batches(start, rank), start):
            if step < self.spec.rehearse:
                sequence = seed_sequence(self.spec.seed, step, Stream.TRAINING_REHEARSAL, rank)
                yield self.make_rehearsal(batch, np.random.default_rng(sequence))
            else:
                yield batch

    def make_rehearsal(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Return a batch with pure noise as latents, and random boxes.

        Each window gets one to four boxes, with categories and phrases of the batch. In images,
        latent cells show which object they belong to, so that the UNet hardly needs the boxes; in
        pure noise it needs them.
        """
        names: list[tuple[str, str]] = []
        for layout in batch.layouts:
            names += zip(layout.categories, layout.prompts, strict=True)
        layouts = [sample_layout(layout, names, rng) for layout in batch.layouts]
        last = self.noise_schedule.config["num_train_timesteps"] - 1
        latents = NoisyLatents(
            torch.zeros_like(batch.latents.x),
            batch.latents.noise,
            torch.full_like(batch.latents.t, last),
        )
        return replace(batch, latents=latents, layouts=layouts, is_rehearsal=True)

    def make_batch(self, scenes: list[EncodedScene], rng: np.random.Generator) -> Batch:
        """Return windows of one random size at random places, with the boxes in them."""
        windows = self.sample_windows(scenes, rng)
        return Batch(
            self.sample_noise(windows, rng),
            [window.caption for window in windows],
            [window.given_layout for window in windows],
        )

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean squared error of the prediction, in training plus the attention loss."""
        device = self.unet.device
        self.is_rehearsing = batch.is_rehearsal
        latents = batch.latents.to(device)
        texts = self.reader.texts(batch.layouts, self.spec.form, self.spec.categories)
        conditions = dict(self.reader.conditions(batch.captions, texts))
        words = conditions.pop("encoder_hidden_states")
        self.attention.box_states = words.shape[1] - self.tokenizer.model_max_length
        noisy = self.add_noise(latents.x, latents.noise, latents.t)
        self.attention.take_maps()  # gradient checkpointing has recorded some again
        predicted = self.predict(noisy, latents.t, words, **conditions)
        loss = self.loss(predicted, latents.x, latents.noise, latents.t)
        maps = self.attention.take_maps()
        if not maps:
            return loss
        boxes, mask = pad_boxes(batch.layouts, max(1, *map(len, batch.layouts)))
        owners = self.find_owners(texts).to(device)
        looks = (p @ owners for p in maps)
        h, w = latents.x.shape[2:]
        look = compute_attention_loss(looks, boxes.to(device), mask.to(device), h, w)
        return look if batch.is_rehearsal else loss + self.spec.look * look

    def find_owners(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """Return which box each token after the prompt describes.

        Returns:
            (B, tokens, n), 1 in the column of the token's box, else 0.
        """
        number = max(1, *map(len, texts))
        owners = torch.zeros(len(texts), self.attention.box_states, number)
        for row, box_texts in enumerate(texts):
            start = 0
            for box, text in enumerate(box_texts):
                ids = self.tokenizer(text, add_special_tokens=False).input_ids
                owners[row, start : start + len(ids), box] = 1
                start += len(ids)
        return owners

    def drop_boxes(self, batch: Batch) -> Batch:
        return replace(batch, layouts=[layout.select([]) for layout in batch.layouts])


def sample_layout(
    canvas: Layout, names: Sequence[tuple[str, str]], rng: np.random.Generator
) -> Layout:
    """Return one to four boxes at random places on a canvas of the same size.

    Args:
        canvas: a layout with the size of the canvas; a box is a quarter to half as long.
        names: pairs of category and phrase that are chosen from; without any, there are no boxes.
    """
    n = int(rng.integers(1, 5)) if names else 0
    sides = rng.uniform(0.25, 0.5, (n, 2))
    corners = rng.uniform(size=(n, 2)) * (1 - sides)
    boxes = np.concatenate([corners, corners + sides], 1) * ([canvas.width, canvas.height] * 2)
    chosen = [names[int(k)] for k in rng.integers(max(1, len(names)), size=n)]
    return Layout(
        canvas.width,
        canvas.height,
        boxes.astype(np.float32),
        tuple(category for category, _ in chosen),
        tuple(phrase for _, phrase in chosen),
    )
