"""Attention by region, against a plain evaluation cell by cell."""

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

DIM, TEXT, TOKENS = 16, 12, 5


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 200), st.integers(1, 40), st.integers(0, 10**6))
def test_blocks_hold_every_cell_once_with_its_own_prompt(
    windows: int, cells: int, prompts: int, seed: int
) -> None:
    asked = np.random.default_rng(seed).integers(0, prompts, (windows, cells))
    blocks = sort_into_blocks(asked, torch.device("cpu"))
    size = len(blocks.cells) // len(blocks.rows)
    assert torch.equal(blocks.cells[blocks.back], torch.arange(windows * cells))
    own = torch.from_numpy(asked.reshape(-1))[blocks.cells].view(-1, size)
    assert torch.equal(own, blocks.rows[:, None].expand(-1, size))


def test_cells_of_overlapping_boxes_read_the_smallest_and_none_is_lost() -> None:
    boxes = np.array([[2, 2, 10, 10], [4, 4, 6, 6], [12.2, 12.2, 12.6, 12.6]])
    window = PromptedWindow((16, 16), 0, boxes, (1, 2, 3))
    whole = window.prompts(16, 16)
    wanted = np.zeros((16, 16), int)
    wanted[2:10, 2:10], wanted[4:6, 4:6], wanted[12, 12] = 1, 2, 3
    np.testing.assert_array_equal(whole, wanted)
    assert set(np.unique(window.prompts(4, 4))) == {
        0,
        1,
        2,
        3,
    }  # each keeps a cell where it has less than one


def test_a_box_without_a_cell_gets_one_where_others_share_its_prompt() -> None:
    """A hundred dogs of one prompt: each of them keeps a cell, whatever the others have."""
    boxes = np.array([[0, 0, 4, 4], [6.2, 6.2, 6.4, 6.4]])
    for rows in ((1, 1), (1, 2)):
        assert PromptedWindow((8, 8), 0, boxes, rows).prompts(8, 8)[6, 6] == rows[1]
    low = np.array([(x, y) for y in range(0, 40, 4) for x in range(0, 40, 4)]) + 0.6
    window = PromptedWindow((40, 40), 0, np.concatenate([low, low + 1.8], 1), (1,) * 100)
    for side in (40, 20, 10):
        found = window.prompts(side, side)
        x, y = np.floor((low + 0.9) * side / 40).astype(int).T
        assert (found[y, x] == 1).all()


def test_a_box_whose_centre_is_left_of_a_window_takes_none_of_its_cells() -> None:
    window = PromptedWindow((8, 8), 0, np.array([[-1.2, 4, 0.4, 5]]), (1,))
    assert (window.prompts(8, 8) == 0).all()


def test_boxes_over_the_edge_of_a_window_are_cut() -> None:
    window = PromptedWindow(
        (8, 8), 0, np.array([[-4.0, -4, 2, 2], [6, 6, 20, 20], [30, 30, 40, 40]]), (1, 2, 3)
    )
    found = window.prompts(8, 8)
    assert (found[:2, :2] == 1).all()
    assert (found[6:, 6:] == 2).all()
    assert (found == 0).sum() == 64 - 8


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_agrees_with_attention_of_each_cell_in_float64(seed: int) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    attn = Attention(query_dim=DIM, cross_attention_dim=TEXT, heads=2, dim_head=8)
    text = torch.randn(6, TOKENS, TEXT)
    windows = []
    for k in range(3):
        low = rng.uniform(0, 8, (5, 2))
        boxes = np.concatenate([low, low + rng.uniform(1, 6, (5, 2))], 1)
        windows.append(
            PromptedWindow((12, 10), k % 2, boxes, tuple(int(r) for r in rng.integers(0, 6, 5)))
        )
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
                k, v = (f(text[row].double()).view(TOKENS, 2, 8) for f in (exact.to_k, exact.to_v))
                weights = torch.softmax(torch.einsum("hd,thd->ht", q, k) / 8**0.5, 1)
                wanted[i, cell] = exact.to_out[0](
                    torch.einsum("ht,thd->hd", weights, v).reshape(-1)
                )
        attn.float()
        assert (got.double() - wanted).norm() / wanted.norm() < 1e-5


@torch.no_grad()
def test_keys_and_values_are_computed_once_for_all_steps_and_prompts() -> None:
    attn, text = (
        Attention(query_dim=DIM, cross_attention_dim=TEXT, heads=2, dim_head=8),
        torch.randn(100, TOKENS, TEXT),
    )
    seen: list[int] = []
    attn.to_k.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    boxes = np.array([(x, y, x + 1, y + 1) for y in range(10) for x in range(10)], np.float64)
    plan = Plan([PromptedWindow((10, 10), 0, boxes, tuple(range(100)))], text, 0)
    processor = RegionalAttention()
    for _ in range(3):
        processor(attn, torch.randn(1, 100, DIM), plan=plan)
    assert seen == [100]
    other = Plan(
        [PromptedWindow((10, 10), 0, boxes, tuple(range(100)))], torch.randn(100, TOKENS, TEXT), 0
    )
    processor(attn, torch.randn(1, 100, DIM), plan=other)
    assert seen == [100, 100]
