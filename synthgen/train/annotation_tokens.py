"""Training of a checkpoint that reads annotations as tokens beside the prompt, as the pipeline of that name writes them."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from synthgen.pipelines.annotation_tokens.pipeline import AnnotationTokensPipeline
from synthgen.train.box_attention import BoxAttention, look_loss
from synthgen.train.boxed import BoxedTrainee, Noised, padded_boxes
from synthgen.train.lora import add_lora
from synthgen.train.tasks.annotation_tokens import Spec
from synthgen.train.windows import EncodedScene, is_gated


@dataclass(frozen=True)
class Batch:
    """Windows: noised latents, captions, the texts of each one's boxes, and the boxes (B, n, 4) with their mask (B, n)."""

    noised: Noised
    captions: list[str]
    texts: list[list[str]]
    boxes: Tensor
    mask: Tensor


class AnnotationTokensTrainee(BoxedTrainee):
    """UNet, text encoder and location tokens; forward is the loss of one batch."""

    spec: Spec

    def __init__(self, spec: Spec) -> None:
        options = {"tile": min(256, spec.windows[1]), "form": spec.form, "categories": spec.categories}
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
        self.attention = BoxAttention()
        usual = self.unet.attn_processors
        self.unet.set_attn_processor({name: self.attention if "attn2" in name else usual[name] for name in usual})

    def batch(self, scenes: list[EncodedScene], rng: np.random.Generator) -> Batch:
        """Windows of one random size, anywhere, with the boxes that they hold at least half of."""
        windows = self.windows(scenes, rng)
        told = [w.layout if w.told else w.layout.select([]) for w in windows]
        boxes, mask = padded_boxes(windows, max(1, *map(len, told)))
        texts = self.reader.texts(told, self.spec.form, self.spec.categories)
        return Batch(self.noised(windows, rng), [w.caption for w in windows], texts, boxes, mask)

    def forward(self, batch: Batch) -> Tensor:
        """Mean squared error of the prediction, and in training also of where cross-attention looks."""
        noised = batch.noised.to(self.unet.device)
        conditions = self.reader.conditions(batch.captions, batch.texts)
        self.attention.last = conditions["encoder_hidden_states"].shape[1] - self.tokenizer.model_max_length
        predicted = self.unet(self.noisy(noised.x, noised.noise, noised.t), noised.t, **conditions).sample
        loss = self.loss(predicted, noised.x, noised.noise, noised.t)
        seen = self.attention.take()
        if not seen:
            return loss
        boxes, mask = batch.boxes.to(self.unet.device), batch.mask.to(self.unet.device)
        owners = self.owners(batch).to(self.unet.device)
        return loss + self.spec.look * look_loss((p @ owners for p in seen), boxes, mask, *noised.x.shape[2:])

    def owners(self, batch: Batch) -> Tensor:
        """Which box each token after the prompt is of: (B, tokens, n), one at the box's column."""
        found = torch.zeros(len(batch.texts), self.attention.last, batch.boxes.shape[1])
        for row, texts in enumerate(batch.texts):
            lengths = torch.tensor([len(self.tokenizer(text, add_special_tokens=False).input_ids) for text in texts])
            which = torch.repeat_interleave(torch.arange(len(texts)), lengths) if texts else torch.zeros(0, dtype=torch.long)
            found[row, torch.arange(len(which)), which] = 1
        return found

    def untold(self, batch: Batch) -> Batch:
        return replace(batch, texts=[[] for _ in batch.texts], mask=torch.zeros_like(batch.mask))
