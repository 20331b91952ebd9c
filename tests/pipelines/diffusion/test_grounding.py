"""Grounded windows, scheduled sampling and gates."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.geometry import shares_inside
from synthgen.layouts.base import MIN_SHARE_INSIDE
from synthgen.pipelines.diffusion.grounding import (
    Gates,
    build_grounded_windows,
    compute_strengths,
    control_gates,
    halves,
)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, int]]:
    """Boxes (N, 4) in px, and the width and height of their canvas."""
    width = draw(st.integers(8, 64)) * 8
    height = draw(st.integers(8, 64)) * 8
    n = draw(st.integers(0, 60))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    sides = np.stack([rng.uniform(4, width / 2, n), rng.uniform(4, height / 2, n)], 1)
    low = rng.uniform(0, 1, (n, 2)) * (np.array([width, height]) - sides)
    return np.concatenate([low, low + sides], 1).astype(np.float32), (width, height)


@settings(max_examples=60, deadline=None)
@given(layouts(), st.integers(2, 24), st.floats(0, 0.6), st.integers(1, 30))
def test_windows_cover_the_canvas_and_contain_their_boxes(
    layout: tuple[np.ndarray, tuple[int, int]], side: int, overlap: float, most: int
) -> None:
    boxes, canvas = layout
    windows = build_grounded_windows(boxes, canvas, 4, 4, side * 4, overlap, most)
    covered = np.zeros((canvas[1] // 4, canvas[0] // 4), bool)
    counts = np.zeros(len(boxes), int)
    for w in windows:
        x0, y0, x1, y1 = w.window
        covered[y0:y1, x0:x1] = True
        assert len(w.indices) <= most
        assert ((w.boxes >= 0) & (w.boxes <= 1)).all()
        counts[list(w.indices)] += 1
        shares = shares_inside(boxes / 4.0, [w.window])[:, 0]
        for i, share in zip(w.indices, w.boxes, strict=True):
            cells = share * np.array([x1 - x0, y1 - y0] * 2) + [x0, y0, x0, y0]
            clipped = np.clip(boxes[i] / 4, [x0, y0, x0, y0], [x1, y1, x1, y1])
            np.testing.assert_allclose(cells, clipped, atol=1e-3)
            assert shares[i] > 0
        if len(w.indices) < most:  # it reads all boxes of which it holds half
            assert set(np.flatnonzero(shares >= MIN_SHARE_INSIDE + 1e-6)) <= set(w.indices)
    assert covered.all()
    if most >= 60:
        assert (counts > 0).all()


def test_a_box_of_which_no_window_holds_half_is_in_one_window() -> None:
    boxes = np.array([[24, 24, 40, 40]], np.float32)  # a quarter in each of four windows
    windows = build_grounded_windows(boxes, (64, 64), 4, 4, 8, 0.0, 4)
    assert [len(w.indices) for w in windows] == [1, 0, 0, 0]


def test_a_window_with_too_many_boxes_is_split() -> None:
    y, x = np.mgrid[0:64:8, 0:64:8].reshape(2, -1)
    boxes = np.stack([x, y, x + 6, y + 6], 1).astype(np.float32)
    (whole,) = build_grounded_windows(boxes, (64, 64), 2, 4, 32, 0.25, 64)
    assert len(whole.indices) == 64
    windows = build_grounded_windows(boxes, (64, 64), 2, 4, 32, 0.25, 16)
    assert [len(w.indices) for w in windows] == [16] * 4
    indices = np.concatenate([w.indices for w in windows])
    assert sorted(indices) == list(range(64))


@pytest.mark.parametrize(
    ("window", "wanted"),
    [
        ((0, 0, 16, 8), [(0, 0, 8, 8), (8, 0, 16, 8)]),
        ((0, 4, 8, 24), [(0, 4, 8, 16), (0, 12, 8, 24)]),
        ((0, 0, 4, 4), []),
    ],
)
def test_halves_cover_a_window(window: tuple[int, ...], wanted: list[tuple[int, ...]]) -> None:
    assert halves(window, 4) == wanted


@pytest.mark.parametrize(
    ("stages", "wanted"),
    [
        ((0.3, 0.0), [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]),
        ((1.0, 0.0), [1] * 10),
        ((0.2, 0.4), [1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0, 0, 0]),
    ],
)
def test_the_strength_is_full_then_falls_then_is_zero(
    stages: tuple[float, float], wanted: list[float]
) -> None:
    assert compute_strengths(10, stages) == pytest.approx(wanted)


def test_a_number_of_steps_that_is_not_whole_is_rounded_down_by_default() -> None:
    assert compute_strengths(12, (0.3, 0.0)) == [1.0] * 3 + [0.0] * 9
    assert compute_strengths(12, (0.3, 0.0), "up") == [1.0] * 4 + [0.0] * 8
    assert compute_strengths(10, (0.25, 0.2)) == pytest.approx([1, 1, 0.75, 0.25, 0, 0, 0, 0, 0, 0])
    assert compute_strengths(100, (0.29, 0.0)).count(1.0) == int(0.29 * 100)


def gated_unet(channels: int = 3) -> UNet2DConditionModel:
    """Return a tiny random UNet with gated layers, which act."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        attention_type="gated",
    )
    for layer in Gates(unet).layers:
        layer.alpha_attn.data.fill_(1.5)
        layer.alpha_dense.data.fill_(-0.7)
    return unet.eval()


@torch.no_grad()
def test_gates_scale_the_output_of_the_layers_and_are_reset() -> None:
    unet = gated_unet()
    layer = Gates(unet).layers[0]
    x = torch.randn(2, 9, 8)
    objects = torch.randn(2, 3, 16)
    full = layer(x, objects)
    with control_gates(unet) as gate:
        gate.set(0.0)
        assert torch.equal(layer(x, objects), x)
        gate.set(0.5)
        attended = layer.attn(layer.norm1(torch.cat([x, layer.linear(objects)], 1)))[:, :9]
        half = x + 0.5 * np.tanh(1.5) * attended
        wanted = half + 0.5 * np.tanh(-0.7) * layer.ff(layer.norm2(half))
        torch.testing.assert_close(layer(x, objects), wanted, atol=1e-5, rtol=1e-4)
        gate.set(1.0)
        assert torch.equal(layer(x, objects), full)
        gate.set(0.3)
    assert torch.equal(layer(x, objects), full)
