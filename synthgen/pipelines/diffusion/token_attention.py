"""What a UNet's cross-attention says of single tokens: where in the picture they are read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F


class TokenProbe:
    """A cross-attention processor that collects where given tokens are read.

    Args:
        tokens: (n, T) bool, at least one a row: whose attention is collected.
        top: if given, these tokens are read only at the `top` cells, of each head, that read them most.
    """

    def __init__(self, tokens: Tensor, top: int | None = None) -> None:
        self.tokens, self.top = tokens, top
        self.found: list[Tensor] = []

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        q, k, v = (
            attn.head_to_batch_dim(x)
            for x in (
                attn.to_q(hidden_states),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        probs = attn.get_attention_scores(q, k, attention_mask)
        probs = probs.view(len(self.tokens), -1, *probs.shape[1:])  # (n, heads, cells, T)
        asked = self.tokens[:, None, None, :].to(probs.dtype)
        read = (probs * asked).sum(-1)  # (n, heads, cells)
        self.found.append(read.mean(1).float())
        if self.top is not None:
            least = read.topk(min(self.top, read.shape[-1]), dim=-1).values[..., -1:]
            probs = probs * torch.where(
                (read >= least)[..., None], torch.ones_like(asked), 1 - asked
            )
        out = attn.batch_to_head_dim(probs.flatten(0, 1) @ v)
        return attn.to_out[1](attn.to_out[0](out))

    def maps(self, h: int, w: int) -> Tensor:
        """Mean attention (n, h, w) of all layers, for latents of that size."""
        sized = []
        for found in self.found:
            scale = round((h * w / found.shape[1]) ** 0.5)
            image = found.view(len(found), 1, -(-h // scale), -1)
            sized.append(F.interpolate(image, (h, w), mode="bilinear")[:, 0])
        return torch.stack(sized).mean(0)


@contextmanager
def probed(unet: UNet2DConditionModel, probe: TokenProbe) -> Iterator[TokenProbe]:
    """The UNet with a probe in the cross-attention of its up blocks."""
    usual = unet.attn_processors
    ours = {
        name: probe if name.startswith("up_blocks") and ".attn2." in name else p
        for name, p in usual.items()
    }
    unet.set_attn_processor(ours)
    try:
        yield probe
    finally:
        unet.set_attn_processor(dict(usual))


def tokens_of(tokenizer: Any, prompt: str, words: str) -> list[bool]:
    """Which tokens of a prompt, padded to the tokenizer's length, are those of some words; if none is, all of the prompt's."""
    ids: list[int] = tokenizer(prompt, padding="max_length", truncation=True).input_ids
    wanted: Sequence[int] = tokenizer(words, add_special_tokens=False).input_ids
    marked = [False] * len(ids)
    for start in range(len(ids) - len(wanted) + 1):
        if wanted and ids[start : start + len(wanted)] == list(wanted):
            marked[start : start + len(wanted)] = [True] * len(wanted)
    length = len(tokenizer(prompt, truncation=True).input_ids)
    return marked if any(marked) else [0 < i < length - 1 or length <= 2 for i in range(len(ids))]
