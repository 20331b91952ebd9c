"""Training of GLIGEN's gated layers on windows of scenes, as the grounded pipeline cuts them; the rest is frozen."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers.models.attention import GatedSelfAttentionDense
from torch import Tensor

from synthgen.pipelines.grounded.pipeline import GroundedPipeline
from synthgen.training.box_attention import BoxAttention, look_loss
from synthgen.training.box_conditioning import BoxedTrainee, BoxedWindow, Noised, padded_boxes
from synthgen.training.grounded import Spec
from synthgen.training.windows import EncodedScene, is_gated

GATE = (
    0.3  # of layers that were never trained: shut ones would have to open before the rest can learn
)


@dataclass(frozen=True)
class Batch:
    """Windows: noised latents, token ids (B, T), and boxes (B, n, 4), their mask (B, n) and phrases (B, n, D)."""

    noised: Noised
    ids: Tensor
    boxes: Tensor
    mask: Tensor
    phrases: Tensor


class GroundedTrainee(BoxedTrainee):
    """Gated layers; forward is the loss of one batch."""

    def __init__(self, spec: Spec) -> None:
        options = {
            "window": min(256, spec.windows[1]),
            "max_boxes": spec.max_boxes,
            "stages": (1.0, 0.0),
        }
        super().__init__(spec, GroundedPipeline, options)
        self.text.requires_grad_(False)
        for name, weight in self.unet.named_parameters():
            weight.requires_grad_(is_gated(name))
        self.attention = BoxAttention(spec.max_boxes)
        for layer in (m for m in self.unet.modules() if isinstance(m, GatedSelfAttentionDense)):
            layer.attn.set_processor(self.attention)
            for gate in (layer.alpha_attn, layer.alpha_dense):
                if not gate:
                    gate.data.fill_(GATE)
        self.pooled: dict[str, Tensor] = {}

    def batch(self, scenes: list[EncodedScene], rng: np.random.Generator) -> Batch:
        """Windows of one random size, anywhere, with the boxes that they hold at least half of."""
        windows = self.windows(scenes, rng)
        noised = self.noised(windows, rng)
        return Batch(noised, self.tokens([w.caption for w in windows]), *self.grounding(windows))

    def grounding(self, windows: list[BoxedWindow]) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, their mask and their phrases, padded to the number that the layers are told of at most."""
        told = [w.told_of for w in windows]
        boxes, mask = padded_boxes(told, self.spec.max_boxes)
        phrases = torch.zeros(*mask.shape, self.text.config.hidden_size)
        for i, own in enumerate(told):
            phrases[i, : len(own)] = self.phrases(own.phrases or ())
        return boxes, mask, phrases

    @torch.no_grad()
    def phrases(self, texts: tuple[str, ...]) -> Tensor:
        """Pooled embeddings (n, D) of phrases; each is computed once."""
        for text in {t for t in texts if t not in self.pooled}:
            self.pooled[text] = (
                self.text(self.tokens([text]).to(self.text.device)).pooler_output[0].cpu()
            )
        return (
            torch.stack([self.pooled[t] for t in texts])
            if texts
            else torch.zeros(0, self.text.config.hidden_size)
        )

    def forward(self, batch: Batch) -> Tensor:
        """Mean squared error of the prediction, and in training also of where the layers look."""
        boxes, mask, phrases = (
            part.to(self.unet.device) for part in (batch.boxes, batch.mask, batch.phrases)
        )
        noised = batch.noised.to(self.unet.device)
        with torch.no_grad():
            words = self.text(batch.ids.to(self.unet.device)).last_hidden_state
        grounding = {"gligen": {"boxes": boxes, "masks": mask, "positive_embeddings": phrases}}
        z = self.noisy(noised.x, noised.noise, noised.t)
        predicted = self.unet(z, noised.t, words, cross_attention_kwargs=grounding).sample
        loss = self.loss(predicted, noised.x, noised.noise, noised.t)
        looks = self.attention.take()
        return (
            loss + self.spec.look * look_loss(looks, boxes, mask, *noised.x.shape[2:])
            if looks
            else loss
        )

    def untold(self, batch: Batch) -> Batch:
        return replace(batch, mask=torch.zeros_like(batch.mask))
