"""Training of GLIGEN's gated layers on windows of scenes; the rest of the checkpoint is frozen."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers.models.attention import GatedSelfAttentionDense
from torch import Tensor

from synthgen.pipelines.grounded.pipeline import GroundedPipeline
from synthgen.training.box_attention import BoxAttention, compute_attention_loss
from synthgen.training.box_conditioning import (
    BoxConditioningTrainee,
    BoxWindow,
    NoisyLatents,
    pad_boxes,
)
from synthgen.training.grounded import Spec
from synthgen.training.windows import EncodedScene, is_gated

# The gate of layers that were never trained. Closed gates (0) would have to open before the layers
# behind them can learn.
INITIAL_GATE = 0.3


@dataclass(frozen=True)
class Batch:
    """A batch of windows.

    Attributes:
        latents: the latents and their noise.
        ids: token ids (B, T) of the captions.
        boxes: (B, n, 4) xyxy as shares of the window.
        mask: (B, n), 1 where there is a box.
        phrases: embeddings (B, n, D) of the boxes' phrases.
    """

    latents: NoisyLatents
    ids: Tensor
    boxes: Tensor
    mask: Tensor
    phrases: Tensor


class GroundedTrainee(BoxConditioningTrainee):
    """Gated layers; forward returns the loss of one batch."""

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
        for module in self.unet.modules():
            if isinstance(module, GatedSelfAttentionDense):
                module.attn.set_processor(self.attention)
                for gate in (module.alpha_attn, module.alpha_dense):
                    if not gate:
                        gate.data.fill_(INITIAL_GATE)
        self.embeddings: dict[str, Tensor] = {}

    def make_batch(self, scenes: list[EncodedScene], rng: np.random.Generator) -> Batch:
        """Return windows of one random size at random places, with the boxes in them."""
        windows = self.sample_windows(scenes, rng)
        latents = self.sample_noise(windows, rng)
        ids = self.tokenize([window.caption for window in windows])
        return Batch(latents, ids, *self.encode_boxes(windows))

    def encode_boxes(self, windows: list[BoxWindow]) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, their mask and their phrases, padded to `max_boxes`."""
        layouts = [window.given_layout for window in windows]
        boxes, mask = pad_boxes(layouts, self.spec.max_boxes)
        phrases = torch.zeros(*mask.shape, self.text.config.hidden_size)
        for i, layout in enumerate(layouts):
            if layout.phrases:
                phrases[i, : len(layout)] = self.embed_phrases(layout.phrases)
        return boxes, mask, phrases

    @torch.no_grad()
    def embed_phrases(self, phrases: tuple[str, ...]) -> Tensor:
        """Return pooled embeddings (n, D) of phrases; each is computed once."""
        for phrase in phrases:
            if phrase not in self.embeddings:
                ids = self.tokenize([phrase]).to(self.text.device)
                self.embeddings[phrase] = self.text(ids).pooler_output[0].cpu()
        return torch.stack([self.embeddings[phrase] for phrase in phrases])

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean squared error of the prediction, in training plus the attention loss."""
        device = self.unet.device
        boxes = batch.boxes.to(device)
        mask = batch.mask.to(device)
        phrases = batch.phrases.to(device)
        latents = batch.latents.to(device)
        with torch.no_grad():
            words = self.text(batch.ids.to(device)).last_hidden_state
        grounding = {"gligen": {"boxes": boxes, "masks": mask, "positive_embeddings": phrases}}
        z = self.add_noise(latents.x, latents.noise, latents.t)
        self.attention.take_maps()  # gradient checkpointing has recorded some again
        predicted = self.predict(z, latents.t, words, cross_attention_kwargs=grounding)
        loss = self.loss(predicted, latents.x, latents.noise, latents.t)
        maps = self.attention.take_maps()
        if not maps:
            return loss
        h, w = latents.x.shape[2:]
        return loss + self.spec.look * compute_attention_loss(maps, boxes, mask, h, w)

    def drop_boxes(self, batch: Batch) -> Batch:
        return replace(batch, mask=torch.zeros_like(batch.mask))
