"""Cross-attention by region: every cell reads the prompt of the box in which it lies.

One pass is enough for any number of boxes. Regional Prompter, attention couple and DenseDiffusion
(Kim et al., arXiv 2308.12964) do the same with masks. Here, cells are sorted by their prompt into
blocks of equal size, and a block attends only to the tokens of its prompt. The cost is that of
plain cross-attention, and the keys and values of all prompts are computed once for all steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log2
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from synthgen.geometry import box_areas, box_centres

SMALLEST_BLOCK = 8  # cells
LARGEST_BLOCK = 64  # cells


@dataclass(frozen=True)
class PromptedWindow:
    """A window in which every cell has a prompt.

    Attributes:
        size: h, w in latent cells.
        base: row of the prompt for the cells outside the boxes.
        boxes: (N, 4) xyxy in cells of the window; they may extend beyond its edge.
        rows: rows of the boxes' prompts.
    """

    size: tuple[int, int]
    base: int
    boxes: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))
    rows: tuple[int, ...] = ()

    def prompts(self, h: int, w: int) -> NDArray[np.int64]:
        """Return the row of each cell's prompt, (h, w), at the resolution of a level of the UNet.

        A cell is in a box if its centre is. Of several boxes the smallest one is used. A box that
        would have no cell gets the one at its centre, even if other boxes have the same prompt.
        """
        scale = np.array([w / self.size[1], h / self.size[0]] * 2)
        boxes = self.boxes * scale
        owners = np.full((h, w), -1)
        order = np.argsort(-box_areas(boxes), kind="stable")
        for i in order:
            x0, y0, x1, y1 = np.ceil(boxes[i] - 0.5).astype(int).clip(0)
            owners[y0:y1, x0:x1] = i
        for i in order:
            x, y = np.floor(box_centres(boxes[i])).astype(int)
            if 0 <= x < w and 0 <= y < h and not (owners == i).any():
                owners[y, x] = i
        rows = np.array([*self.rows, self.base])
        prompts: NDArray[np.int64] = rows[owners]  # the owner -1 selects the base
        return prompts


@dataclass(frozen=True)
class Blocks:
    """Cells of one level, sorted by prompt into blocks.

    Attributes:
        cells: (blocks x M,) index into the cells of all windows, one window after the other. The
            unused places of a block repeat its first cell.
        rows: (blocks,) rows of the prompts.
        back: (windows x cells,) index of each cell in `cells`.
    """

    cells: Tensor
    rows: Tensor
    back: Tensor


class Plan:
    """The prompt that each cell of some windows reads, for every level of the UNet.

    Args:
        windows: windows of one size that go through the UNet together.
        embeddings: (P, T, D) of the prompts.
        levels: how often the UNet halves its input.
    """

    def __init__(self, windows: Sequence[PromptedWindow], embeddings: Tensor, levels: int) -> None:
        self.embeddings = embeddings
        h, w = windows[0].size
        self.blocks: dict[int, Blocks] = {}
        for _ in range(levels + 1):
            prompts = np.stack([window.prompts(h, w) for window in windows])
            prompts = prompts.reshape(len(windows), -1)
            self.blocks[h * w] = sort_into_blocks(prompts, embeddings.device)
            h = -(-h // 2)
            w = -(-w // 2)


class PlanTable:
    """Windows as a table of conditions; an index with row numbers returns the plan of the rows."""

    def __init__(self, windows: Sequence[PromptedWindow], embeddings: Tensor, levels: int) -> None:
        self.windows = windows
        self.embeddings = embeddings
        self.levels = levels

    def __getitem__(self, rows: Tensor) -> Plan:
        return Plan([self.windows[int(row)] for row in rows], self.embeddings, self.levels)


def sort_into_blocks(prompts: NDArray[np.int64], device: torch.device) -> Blocks:
    """Sort the cells of windows into blocks; equal prompts of different windows share blocks.

    Args:
        prompts: (windows, cells) rows of the cells' prompts.
        device: the device of the resulting tensors.
    """
    flat = prompts.reshape(-1)
    order = np.argsort(flat, kind="stable")
    rows, counts = np.unique(flat, return_counts=True)
    median = max(1.0, float(np.median(counts)))
    size = int(2 ** round(log2(median)))
    size = max(SMALLEST_BLOCK, min(LARGEST_BLOCK, size))
    blocks = -(-counts // size)
    first_cells = np.cumsum(counts) - counts
    first_blocks = np.cumsum(blocks) - blocks
    # The place of each sorted cell: its number among the cells of its prompt, after the first
    # place of the prompt's blocks.
    numbers = np.arange(len(flat)) - np.repeat(first_cells, counts)
    places = numbers + np.repeat(first_blocks * size, counts)
    cells = np.repeat(order[first_cells], blocks * size)
    cells[places] = order
    back = np.empty(len(flat), np.int64)
    back[order] = places
    return Blocks(
        torch.from_numpy(cells).to(device),
        torch.from_numpy(np.repeat(rows, blocks)).to(device),
        torch.from_numpy(back).to(device),
    )


class RegionalAttention:
    """A cross-attention processor in which every cell reads its prompt of the plan."""

    def __init__(self) -> None:
        self.source: Tensor | None = None
        self.keys_values: tuple[Tensor, Tensor] | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        plan: Plan | None = None,
        **_: Any,
    ) -> Tensor:
        """Return the output of an attention layer."""
        assert plan is not None
        n, cells = hidden_states.shape[:2]
        blocks = plan.blocks[cells]
        # The embeddings are the same at every step, so their keys and values are kept.
        if self.keys_values is None or self.source is not plan.embeddings:
            self.source = plan.embeddings
            self.keys_values = attn.to_k(plan.embeddings), attn.to_v(plan.embeddings)
        keys, values = self.keys_values
        queries = attn.to_q(hidden_states).reshape(n * cells, -1)[blocks.cells]
        q = _split_heads(queries.view(len(blocks.rows), -1, attn.inner_dim), attn.heads)
        k = _split_heads(keys[blocks.rows], attn.heads)
        v = _split_heads(values[blocks.rows], attn.heads)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, attn.inner_dim)
        out = attn.to_out[0](out[blocks.back].view(n, cells, -1))
        out = attn.to_out[1](out)  # dropout
        return out / attn.rescale_output_factor


def _split_heads(states: Tensor, heads: int) -> Tensor:
    """Return states (n, cells, heads x D) as (n, heads, cells, D)."""
    n, count, width = states.shape
    return states.view(n, count, heads, width // heads).transpose(1, 2)


class SelfAttention(AttnProcessor2_0):  # type: ignore[misc]  # diffusers is untyped
    """The usual self-attention processor, which also accepts a plan and ignores it."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        *args: Any,
        plan: Plan | None = None,
        **more: Any,
    ) -> Tensor:
        """Return the output of an attention layer."""
        out: Tensor = super().__call__(attn, hidden_states, *args, **more)
        return out


def install_regional_processors(names: Sequence[str]) -> dict[str, Any]:
    """Return a processor for each attention layer of a UNet, by the names of its own processors."""
    processors: dict[str, Any] = {}
    for name in names:
        processors[name] = RegionalAttention() if ".attn2." in name else SelfAttention()
    return processors
