"""Cross-attention by region: every cell reads the prompt of the box that it lies in, in one pass whatever the number of boxes.

As Regional Prompter, attention couple and DenseDiffusion (Kim et al., arXiv 2308.12964) do with masks. Here cells are sorted by
their prompt into blocks of equal size, and a block attends to the tokens of its prompt alone: the cost is that of plain
cross-attention, and 100 prompts are 100 sets of keys and values, computed once for all steps.
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

LEAST_BLOCK, MOST_BLOCK = 8, 64  # cells


@dataclass(frozen=True)
class PromptedWindow:
    """A window in which every cell has a prompt.

    Attributes:
        size: h, w in latent cells.
        base: row of the prompt of cells outside the boxes.
        boxes: (N, 4) xyxy in cells of the window; may reach over its edge.
        rows: of the boxes' prompts.
    """

    size: tuple[int, int]
    base: int
    boxes: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))
    rows: tuple[int, ...] = ()

    def prompts(self, h: int, w: int) -> NDArray[np.int64]:
        """The row of each cell's prompt, (h, w), at the resolution of some level of the UNet.

        A cell is in a box if its centre is; of several boxes the smallest wins; and a box with no
        cell has the one at its centre, whatever prompts it shares with other boxes.
        """
        scale = np.array([w / self.size[1], h / self.size[0]] * 2)
        owners, boxes = np.full((h, w), -1), self.boxes * scale
        order = np.argsort(-box_areas(boxes), kind="stable")
        for i in order:
            x0, y0, x1, y1 = np.ceil(boxes[i] - 0.5).astype(int).clip(0)
            owners[y0:y1, x0:x1] = i
        for i in order:
            x, y = np.floor(box_centres(boxes[i])).astype(int)
            if 0 <= x < w and 0 <= y < h and not (owners == i).any():
                owners[y, x] = i
        found: NDArray[np.int64] = np.array([*self.rows, self.base])[owners]  # -1: outside
        return found


@dataclass(frozen=True)
class Blocks:
    """Cells of one level, sorted by prompt into blocks.

    Attributes:
        cells: (blocks x M,) index into the cells of all windows, one after the other; a block's rest repeats its first cell.
        rows: (blocks,) of the prompts.
        back: (windows x cells,) where each cell is among the blocks' cells.
    """

    cells: Tensor
    rows: Tensor
    back: Tensor


class Plan:
    """Which prompt each cell of some windows of one size reads, for every level of the UNet.

    Args:
        windows: that go through the UNet together.
        embeddings: (P, T, D) of the prompts.
        levels: how often the UNet halves.
    """

    def __init__(self, windows: Sequence[PromptedWindow], embeddings: Tensor, levels: int) -> None:
        self.embeddings = embeddings
        h, w = windows[0].size
        self.blocks: dict[int, Blocks] = {}
        for _ in range(levels + 1):
            prompts = np.stack([window.prompts(h, w) for window in windows])
            self.blocks[h * w] = sort_into_blocks(
                prompts.reshape(len(windows), -1), embeddings.device
            )
            h, w = -(-h // 2), -(-w // 2)


class PlanTable:
    """Windows, as a table of conditions: some of its rows are their plan."""

    def __init__(self, windows: Sequence[PromptedWindow], embeddings: Tensor, levels: int) -> None:
        self.windows, self.embeddings, self.levels = windows, embeddings, levels

    def __getitem__(self, rows: Tensor) -> Plan:
        return Plan([self.windows[int(row)] for row in rows], self.embeddings, self.levels)


def sort_into_blocks(prompts: NDArray[np.int64], device: torch.device) -> Blocks:
    """Blocks of the cells of windows; prompts: (windows, cells) rows. Equal prompts of different windows share blocks."""
    flat = prompts.reshape(-1)
    order = np.argsort(flat, kind="stable")
    rows, counts = np.unique(flat, return_counts=True)
    size = int(2 ** round(log2(max(1.0, float(np.median(counts))))))
    size = max(LEAST_BLOCK, min(MOST_BLOCK, size))
    blocks = -(-counts // size)
    starts, firsts = np.cumsum(counts) - counts, np.cumsum(blocks) - blocks
    place = (
        np.arange(len(flat)) - np.repeat(starts, counts) + np.repeat(firsts * size, counts)
    )  # of each sorted cell
    cells = np.repeat(order[starts], blocks * size)
    cells[place] = order
    back = np.empty(len(flat), np.int64)
    back[order] = place
    tensors = (torch.from_numpy(a).to(device) for a in (cells, np.repeat(rows, blocks), back))
    return Blocks(*tensors)


class RegionalAttention:
    """A cross-attention processor that lets every cell read the prompt which the plan has for it."""

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
        assert plan is not None
        n, cells = hidden_states.shape[:2]
        blocks = plan.blocks[cells]
        if self.keys_values is None or self.source is not plan.embeddings:  # the same at every step
            self.source = plan.embeddings
            self.keys_values = attn.to_k(plan.embeddings), attn.to_v(plan.embeddings)
        q = (
            attn.to_q(hidden_states)
            .reshape(n * cells, -1)[blocks.cells]
            .view(len(blocks.rows), -1, attn.inner_dim)
        )
        k, v = (x[blocks.rows] for x in self.keys_values)
        q, k, v = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, attn.inner_dim)
        out = attn.to_out[1](attn.to_out[0](out[blocks.back].view(n, cells, -1)))
        return out / attn.rescale_output_factor


class SelfAttention(AttnProcessor2_0):  # type: ignore[misc]  # diffusers is untyped
    """The usual processor, which lets the plan pass."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        *args: Any,
        plan: Plan | None = None,
        **more: Any,
    ) -> Tensor:
        out: Tensor = super().__call__(attn, hidden_states, *args, **more)
        return out


def regional_processors(names: Sequence[str]) -> dict[str, Any]:
    """A processor for each attention layer of a UNet, by the names of its own."""
    return {name: RegionalAttention() if ".attn2." in name else SelfAttention() for name in names}
