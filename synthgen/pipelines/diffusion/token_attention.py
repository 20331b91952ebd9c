"""Attention of a UNet to single tokens: where in the image they are read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F


class TokenProbe:
    """A cross-attention processor that records where given tokens are read.

    Args:
        tokens: (n, T) bool, at least one True per row: the tokens whose attention is recorded.
        top: if given, each head reads these tokens only at the `top` cells that read them most.
    """

    def __init__(self, tokens: Tensor, top: int | None = None) -> None:
        self.tokens = tokens
        self.top = top
        self.layer_maps: list[Tensor] = []

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Return the output of an attention layer, and record the attention to the tokens."""
        q = attn.head_to_batch_dim(attn.to_q(hidden_states))
        k = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        v = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        probs = attn.get_attention_scores(q, k, attention_mask)
        probs = probs.view(len(self.tokens), -1, *probs.shape[1:])  # (n, heads, cells, T)
        probed_tokens = self.tokens[:, None, None, :].to(probs.dtype)
        attention = (probs * probed_tokens).sum(-1)  # (n, heads, cells)
        self.layer_maps.append(attention.mean(1).float())
        if self.top is not None:
            count = min(self.top, attention.shape[-1])
            least = attention.topk(count, dim=-1).values[..., -1:]
            is_top = (attention >= least)[..., None]
            probs = probs * torch.where(is_top, torch.ones_like(probed_tokens), 1 - probed_tokens)
        out = attn.batch_to_head_dim(probs.flatten(0, 1) @ v)
        out = attn.to_out[0](out)
        return attn.to_out[1](out)  # dropout

    def maps(self, h: int, w: int) -> Tensor:
        """Return the mean attention (n, h, w) of all layers, for latents of h x w cells."""
        resized = []
        for layer_map in self.layer_maps:
            scale = round((h * w / layer_map.shape[1]) ** 0.5)
            image = layer_map.view(len(layer_map), 1, -(-h // scale), -1)
            resized.append(F.interpolate(image, (h, w), mode="bilinear")[:, 0])
        return torch.stack(resized).mean(0)


@contextmanager
def record_attention(unet: UNet2DConditionModel, probe: TokenProbe) -> Iterator[TokenProbe]:
    """Use a probe in the cross-attention of a UNet's up blocks until exit."""
    usual = unet.attn_processors
    processors = {}
    for name, processor in usual.items():
        is_probed = name.startswith("up_blocks") and ".attn2." in name
        processors[name] = probe if is_probed else processor
    unet.set_attn_processor(processors)
    try:
        yield probe
    finally:
        unet.set_attn_processor(dict(usual))


def mark_tokens(tokenizer: Any, prompt: str, words: str) -> list[bool]:
    """Return for each token of a prompt whether it belongs to the given words.

    The prompt is padded to the tokenizer's length. If it does not contain the words, all of its
    tokens except the first and the last are marked.
    """
    ids: list[int] = tokenizer(prompt, padding="max_length", truncation=True).input_ids
    wanted: Sequence[int] = tokenizer(words, add_special_tokens=False).input_ids
    marked = [False] * len(ids)
    for start in range(len(ids) - len(wanted) + 1):
        stop = start + len(wanted)
        if wanted and ids[start:stop] == list(wanted):
            marked[start:stop] = [True] * len(wanted)
    if any(marked):
        return marked
    length = len(tokenizer(prompt, truncation=True).input_ids)
    return [0 < i < length - 1 or length <= 2 for i in range(len(ids))]
