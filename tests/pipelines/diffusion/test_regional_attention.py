"""Attention by region against a plain evaluation of each cell."""

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.pipelines.diffusion.regional_attention import (
    Plan,
    PlanTable,
    PromptedWindow,
    RegionalAttention,
    sort_into_blocks,
)

DIM = 16
TEXT = 12
TOKENS = 5


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 200), st.integers(1, 40), st.integers(0, 10**6))
def test_blocks_contain_every_cell_once_with_its_own_prompt(
    windows: int, cells: int, prompts: int, seed: int
) -> None:
    rows = np.random.default_rng(seed).integers(0, prompts, (windows, cells))
    blocks = sort_into_blocks(rows, torch.device("cpu"))
    size = len(blocks.cells) // len(blocks.rows)
    assert torch.equal(blocks.cells[blocks.back], torch.arange(windows * cells))
    row_of_cell = torch.from_numpy(rows.reshape(-1))[blocks.cells].view(-1, size)
    assert torch.equal(row_of_cell, blocks.rows[:, None].expand(-1, size))


def test_cells_of_overlapping_boxes_read_the_smallest_and_every_box_has_a_cell() -> None:
    boxes = np.array([[2, 2, 10, 10], [4, 4, 6, 6], [12.2, 12.2, 12.6, 12.6]])
    window = PromptedWindow((16, 16), 0, boxes, (1, 2, 3))
    whole = window.prompts(16, 16)
    wanted = np.zeros((16, 16), int)
    wanted[2:10, 2:10] = 1
    wanted[4:6, 4:6] = 2
    wanted[12, 12] = 3
    np.testing.assert_array_equal(whole, wanted)
    # Each box has a cell even where it is smaller than one.
    assert set(np.unique(window.prompts(4, 4))) == {0, 1, 2, 3}


def test_a_box_without_a_cell_gets_one_even_if_others_share_its_prompt() -> None:
    """Each of a hundred dogs with one prompt has a cell."""
    boxes = np.array([[0, 0, 4, 4], [6.2, 6.2, 6.4, 6.4]])
    for rows in ((1, 1), (1, 2)):
        assert PromptedWindow((8, 8), 0, boxes, rows).prompts(8, 8)[6, 6] == rows[1]
    low = np.mgrid[0:40:4, 0:40:4].reshape(2, -1).T + 0.6
    window = PromptedWindow((40, 40), 0, np.concatenate([low, low + 1.8], 1), (1,) * 100)
    for side in (40, 20, 10):
        prompts = window.prompts(side, side)
        x, y = np.floor((low + 0.9) * side / 40).astype(int).T
        assert (prompts[y, x] == 1).all()


def test_a_box_whose_centre_is_left_of_a_window_has_none_of_its_cells() -> None:
    window = PromptedWindow((8, 8), 0, np.array([[-1.2, 4, 0.4, 5]]), (1,))
    assert (window.prompts(8, 8) == 0).all()


def test_boxes_over_the_edge_of_a_window_are_clipped() -> None:
    boxes = np.array([[-4.0, -4, 2, 2], [6, 6, 20, 20], [30, 30, 40, 40]])
    prompts = PromptedWindow((8, 8), 0, boxes, (1, 2, 3)).prompts(8, 8)
    assert (prompts[:2, :2] == 1).all()
    assert (prompts[6:, 6:] == 2).all()
    assert (prompts == 0).sum() == 64 - 8


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_the_output_agrees_with_attention_of_each_cell_in_float64(seed: int) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    attn = Attention(query_dim=DIM, cross_attention_dim=TEXT, heads=2, dim_head=8)
    text = torch.randn(6, TOKENS, TEXT)
    windows = []
    for k in range(3):
        low = rng.uniform(0, 8, (5, 2))
        boxes = np.concatenate([low, low + rng.uniform(1, 6, (5, 2))], 1)
        rows = tuple(rng.integers(0, 6, 5).tolist())
        windows.append(PromptedWindow((12, 10), k % 2, boxes, rows))
    plan = PlanTable(windows, text, 1)[torch.arange(3)]
    processor = RegionalAttention()
    for h, w in ((12, 10), (6, 5)):
        x = torch.randn(3, h * w, DIM)
        got = processor(attn, x, text[:3], plan=plan)
        exact = attn.double()
        wanted = torch.zeros(3, h * w, DIM, dtype=torch.float64)
        for i, window in enumerate(windows):
            for cell, row in enumerate(window.prompts(h, w).reshape(-1)):
                q = exact.to_q(x[i, cell].double()).view(2, 8)
                k = exact.to_k(text[row].double()).view(TOKENS, 2, 8)
                v = exact.to_v(text[row].double()).view(TOKENS, 2, 8)
                weights = torch.softmax(torch.einsum("hd,thd->ht", q, k) / 8**0.5, 1)
                mean = torch.einsum("ht,thd->hd", weights, v)
                wanted[i, cell] = exact.to_out[0](mean.reshape(-1))
        attn.float()
        assert (got.double() - wanted).norm() / wanted.norm() < 1e-5


@torch.no_grad()
def test_keys_and_values_are_computed_once_for_all_steps() -> None:
    attn = Attention(query_dim=DIM, cross_attention_dim=TEXT, heads=2, dim_head=8)
    text = torch.randn(100, TOKENS, TEXT)
    prompt_counts: list[int] = []
    attn.to_k.register_forward_pre_hook(lambda module, args: prompt_counts.append(len(args[0])))
    y, x = np.mgrid[0:10, 0:10].reshape(2, -1)
    boxes = np.stack([x, y, x + 1, y + 1], 1).astype(np.float64)
    window = PromptedWindow((10, 10), 0, boxes, tuple(range(100)))
    plan = Plan([window], text, 0)
    processor = RegionalAttention()
    for _ in range(3):
        processor(attn, torch.randn(1, 100, DIM), plan=plan)
    assert prompt_counts == [100]
    other = Plan([window], torch.randn(100, TOKENS, TEXT), 0)
    processor(attn, torch.randn(1, 100, DIM), plan=other)
    assert prompt_counts == [100, 100]
