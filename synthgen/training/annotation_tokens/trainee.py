"""Training of a checkpoint that reads annotations as tokens beside the prompt, as the pipeline of that name writes them."""

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
from synthgen.training.box_attention import BoxAttention, look_loss
from synthgen.training.box_conditioning import BoxedTrainee, Noised, padded_boxes
from synthgen.training.lora import add_lora
from synthgen.training.windows import EncodedScene, is_gated

READING_RATE = 2.0  # of the learning rate, for what reads boxes


@dataclass(frozen=True)
class Batch:
    """Windows: noised latents, captions, the boxes that each is told of, and whether they are noise with random boxes."""

    noised: Noised
    captions: list[str]
    told: list[Layout]
    rehearsed: bool = False


class AnnotationTokensTrainee(BoxedTrainee):
    """UNet, text encoder and location tokens; forward is the loss of one batch."""

    spec: Spec

    def __init__(self, spec: Spec) -> None:
        options = {
            "tile": min(256, spec.windows[1]),
            "form": spec.form,
            "categories": spec.categories,
        }
        super().__init__(spec, AnnotationTokensPipeline, options)
        self.reader: AnnotationTokensPipeline = self.painter[0]
        if spec.form == "compact" and not self.reader.bins:
            self.reader.add_location_tokens(spec.bins)
        for name, weight in self.unet.named_parameters():
            weight.requires_grad_(not is_gated(name) and (spec.train == "all" or ".attn2." in name))
        if spec.lora is not None:
            add_lora(self.unet, spec.lora.rank)
        self.text.requires_grad_(spec.train_text_encoder)
        self.text.get_input_embeddings().requires_grad_(True)
        self.rehearsing = False
        for weight in self.rest():
            weight.register_hook(lambda grad: grad * (not self.rehearsing))  # type: ignore[no-untyped-call]
        self.attention = BoxAttention()
        usual = self.unet.attn_processors
        self.unet.set_attn_processor(
            {name: self.attention if "attn2" in name else usual[name] for name in usual}
        )

    def readers(self) -> list[nn.Parameter]:
        """What reads boxes: cross-attention and texts."""
        own = [p for name, p in self.unet.named_parameters() if ".attn2." in name]
        return [p for p in (*own, *self.text.parameters()) if p.requires_grad]

    def rest(self) -> list[nn.Parameter]:
        """What is trained besides; not while where to look is rehearsed."""
        own = {id(p) for p in self.readers()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in own]

    def groups(self) -> list[dict[str, Any]]:
        """What reads boxes has more to learn than the rest, which paints already."""
        return [{"params": self.readers(), "rate": READING_RATE}, {"params": self.rest()}]

    def batches(self, start: int, rank: int) -> Iterator[Batch]:
        for step, batch in enumerate(super().batches(start, rank), start):
            rng = np.random.default_rng(
                seed_sequence(self.spec.seed, step, Stream.TRAINING_REHEARSAL, rank)
            )
            yield self.rehearsal(batch, rng) if step < self.spec.rehearse else batch

    def rehearsal(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """The batch with noise alone for pictures, and as many random boxes as one window may have, of what it has boxes of.

        In pictures cells see what they are part of before they need to know where they are; here they need to.
        """
        names = [
            pair for own in batch.told for pair in zip(own.categories, own.prompts, strict=True)
        ]
        told = [random_layout(own, names, rng) for own in batch.told]
        last = torch.full_like(
            batch.noised.t, self.noise_schedule.config["num_train_timesteps"] - 1
        )
        return replace(
            batch,
            noised=Noised(torch.zeros_like(batch.noised.x), batch.noised.noise, last),
            told=told,
            rehearsed=True,
        )

    def batch(self, scenes: list[EncodedScene], rng: np.random.Generator) -> Batch:
        """Windows of one random size, anywhere, with the boxes that they hold at least half of."""
        windows = self.windows(scenes, rng)
        return Batch(
            self.noised(windows, rng), [w.caption for w in windows], [w.told_of for w in windows]
        )

    def forward(self, batch: Batch) -> Tensor:
        """Mean squared error of the prediction, and in training also of where cross-attention looks."""
        self.rehearsing = batch.rehearsed
        noised = batch.noised.to(self.unet.device)
        texts = self.reader.texts(batch.told, self.spec.form, self.spec.categories)
        conditions = self.reader.conditions(batch.captions, texts)
        self.attention.last = (
            conditions["encoder_hidden_states"].shape[1] - self.tokenizer.model_max_length
        )
        predicted = self.unet(
            self.noisy(noised.x, noised.noise, noised.t), noised.t, **conditions
        ).sample
        loss = self.loss(predicted, noised.x, noised.noise, noised.t)
        seen = self.attention.take()
        if not seen:
            return loss
        boxes, mask = (
            part.to(self.unet.device)
            for part in padded_boxes(batch.told, max(1, *map(len, batch.told)))
        )
        owners = self.owners(texts).to(self.unet.device)
        look = look_loss((p @ owners for p in seen), boxes, mask, *noised.x.shape[2:])
        return look if batch.rehearsed else loss + self.spec.look * look

    def owners(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """Which box each token after the prompt is of: (B, tokens, n), one at the box's column."""
        found = torch.zeros(len(texts), self.attention.last, max(1, *map(len, texts)))
        for row, own in enumerate(texts):
            lengths = torch.tensor(
                [len(self.tokenizer(text, add_special_tokens=False).input_ids) for text in own]
            )
            which = (
                torch.repeat_interleave(torch.arange(len(own)), lengths)
                if own
                else torch.zeros(0, dtype=torch.long)
            )
            found[row, torch.arange(len(which)), which] = 1
        return found

    def untold(self, batch: Batch) -> Batch:
        return replace(batch, told=[own.select([]) for own in batch.told])


def random_layout(
    like: Layout, names: Sequence[tuple[str, str]], rng: np.random.Generator
) -> Layout:
    """One to four boxes anywhere on a canvas of that size, a quarter to half as long; of categories and phrases in `names`."""
    n = int(rng.integers(1, 5)) if names else 0
    sides = rng.uniform(0.25, 0.5, (n, 2))
    corners = rng.uniform(size=(n, 2)) * (1 - sides)
    boxes = np.concatenate([corners, corners + sides], 1) * ([like.width, like.height] * 2)
    picked = [names[int(k)] for k in rng.integers(max(1, len(names)), size=n)]
    return Layout(
        like.width,
        like.height,
        boxes.astype(np.float32),
        tuple(c for c, _ in picked),
        tuple(p for _, p in picked),
    )
