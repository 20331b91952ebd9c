"""Where attention layers look, in training: cells are told to look at the boxes that they lie in."""

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor


class BoxAttention:
    """An attention processor that keeps, where gradients are wanted, how much each cell looks at the last of the states.

    Args:
        last: how many states at the end are of boxes; of a layer that sees both, the first ones are its cells or a prompt.
    """

    def __init__(self, last: int = 0) -> None:
        self.last = last
        self.seen: list[Tensor] = []

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(
                attention_mask, source.shape[1], len(source)
            )
        q, k, v = (
            attn.head_to_batch_dim(s)
            for s in (attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source))
        )
        probs = attn.get_attention_scores(q, k, attention_mask)
        if self.last and torch.is_grad_enabled():
            heads = probs[
                :,
                : hidden_states.shape[1] - (self.last if source is hidden_states else 0),
                -self.last :,
            ]
            self.seen.append(heads.unflatten(0, (len(hidden_states), -1)).mean(1))
        out: Tensor = attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(probs @ v)))
        return out

    def take(self) -> list[Tensor]:
        """What has been seen since the last time, a layer each: (B, cells, last)."""
        seen, self.seen = self.seen, []
        return seen


def look_loss(looks: Iterable[Tensor], boxes: Tensor, mask: Tensor, h: int, w: int) -> Tensor:
    """How far cells are from looking at the boxes that they lie in, and those outside from looking at none.

    Diffusion alone says this too, but so faintly that small data and few steps do not suffice. Cross-entropy of each cell's
    look with "at a box that holds the cell's centre", or with "at no box"; the mean over cells and layers.

    Args:
        looks: share of each cell's look that goes to each box, (B, cells, n) a layer, cells row by row at the layer's resolution.
        boxes: (B, n, 4) xyxy as shares of the window.
        mask: (B, n), 1 where there is a box.
        h: height of the window, in latent cells.
        w: its width.
    """
    losses = []
    for p in looks:
        rows = round((p.shape[1] * h / w) ** 0.5)
        inside = contains(boxes, rows, p.shape[1] // rows) * mask[:, None]
        right = (p * inside).sum(2) + (1 - inside.amax(2)) * (1 - (p * mask[:, None]).sum(2))
        losses.append(-right.clamp(min=1e-4).log().mean())
    return torch.stack(losses).mean()


def contains(boxes: Tensor, rows: int, columns: int) -> Tensor:
    """Whether the centres of a grid's cells, row by row, are inside boxes (B, n, 4) given as shares of it: (B, cells, n)."""
    y, x = torch.meshgrid(
        (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij"
    )
    at = torch.stack([x.flatten(), y.flatten()], 1).to(boxes)[None, :, None]
    return ((at >= boxes[:, None, :, :2]) & (at < boxes[:, None, :, 2:])).all(3).float()
