"""A loss on attention maps: the latent cells of an object should attend to its box."""

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor


class BoxAttention:
    """An attention processor that records how much each cell attends to the box states.

    The maps are recorded only where gradients are computed.

    Args:
        box_states: the number of states of boxes at the end of the sequence. Before them are the
            cells themselves in gated self-attention, and the prompt in cross-attention.
    """

    def __init__(self, box_states: int = 0) -> None:
        self.box_states = box_states
        self.maps: list[Tensor] = []

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
        q = attn.to_q(hidden_states)
        k = attn.to_k(source)
        v = attn.to_v(source)
        q = attn.head_to_batch_dim(q)
        k = attn.head_to_batch_dim(k)
        v = attn.head_to_batch_dim(v)
        probs = attn.get_attention_scores(q, k, attention_mask)
        if self.box_states and torch.is_grad_enabled():
            cells = hidden_states.shape[1]
            if source is hidden_states:
                cells -= self.box_states
            heads = probs[:, :cells, -self.box_states :]
            self.maps.append(heads.float().unflatten(0, (len(hidden_states), -1)).mean(1))
        out = attn.batch_to_head_dim(probs @ v)
        out = attn.to_out[0](out)
        dropped: Tensor = attn.to_out[1](out)
        return dropped

    def take_maps(self) -> list[Tensor]:
        """Return the maps (B, cells, box_states) recorded since the last call, one per layer."""
        maps = self.maps
        self.maps = []
        return maps


def compute_attention_loss(
    maps: Iterable[Tensor], boxes: Tensor, mask: Tensor, h: int, w: int
) -> Tensor:
    """Return how far cells are from attending to their boxes, and other cells to no box.

    The diffusion loss teaches this too, but too weakly for small data and few steps. For each cell,
    the loss is the cross-entropy of its attention with "at a box that contains the cell's centre",
    or with "at no box"; it is averaged over cells and layers.

    Args:
        maps: the share of each cell's attention that goes to each box, (B, cells, n) for each
            layer, cells row by row at the layer's resolution.
        boxes: (B, n, 4) xyxy as shares of the window.
        mask: (B, n), 1 where there is a box.
        h: height of the window, in latent cells.
        w: width of the window, in latent cells.
    """
    losses = []
    for p in maps:
        rows = round((p.shape[1] * h / w) ** 0.5)
        inside = find_cells_inside(boxes, rows, p.shape[1] // rows) * mask[:, None]
        at_box = (p * inside).sum(2)
        at_no_box = (1 - inside.amax(2)) * (1 - (p * mask[:, None]).sum(2))
        right = at_box + at_no_box
        losses.append(-right.clamp(min=1e-4).log().mean())
    return torch.stack(losses).mean()


def find_cells_inside(boxes: Tensor, rows: int, columns: int) -> Tensor:
    """Return which cells of a grid have their centre inside which boxes, as 0 or 1.

    Args:
        boxes: (B, n, 4) xyxy as shares of the grid.

    Returns:
        (B, cells, n), cells row by row.
    """
    y, x = torch.meshgrid(
        (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij"
    )
    centres = torch.stack([x.flatten(), y.flatten()], 1).to(boxes)[None, :, None]
    is_inside = (centres >= boxes[:, None, :, :2]) & (centres < boxes[:, None, :, 2:])
    return is_inside.all(3).float()
