"""Region weights against the published formulas."""

import math

import pytest
import torch

from synthgen.pipelines.diffusion import region_weights


@pytest.mark.parametrize(("h", "w"), [(8, 8), (5, 12), (64, 64)])
def test_the_gaussian_is_that_of_the_paper_on_both_axes(h: int, w: int) -> None:
    def axis(x: int, n: int) -> float:
        exponent = -((x - (n - 1) / 2) ** 2) / (n * n * 2 * 0.01)
        return math.exp(exponent) / math.sqrt(2 * math.pi * 0.01)

    got = region_weights.gaussian(h, w)
    assert got.dtype == torch.float32
    for y in range(0, h, 3):
        for x in range(0, w, 3):
            assert got[y, x].item() == pytest.approx(axis(y, h) * axis(x, w), rel=1e-5)


def test_the_corner_of_a_gaussian_is_not_zero_in_float32() -> None:
    weight = region_weights.gaussian(64, 64)
    assert 1e-11 < (weight[0, 0] / weight[32, 32]).item() < 1e-10


def test_the_quartic_is_that_of_the_reference_code() -> None:
    weight = region_weights.quartic(3, 5)
    assert weight[1, 2].item() == pytest.approx((15 / 16) ** 2)
    edge = 15 / 16 * (1 - 0.995**2) ** 2
    assert weight[1, 0].item() == pytest.approx(15 / 16 * edge, rel=1e-5)


@pytest.mark.parametrize("name", ["gaussian", "quartic"])
def test_weights_are_symmetric(name: str) -> None:
    weight = getattr(region_weights, name)(7, 10)
    torch.testing.assert_close(weight, weight.flip(0))
    torch.testing.assert_close(weight, weight.flip(1))


def test_the_weight_of_a_box_is_one_inside_and_falls_outside() -> None:
    weight = region_weights.box(10, 12, 3, 2, 9, 8)
    assert (weight[2:8, 3:9] == 1).all()
    assert weight[5, 10].item() == pytest.approx(math.exp(-0.5 * 1.5**2))
    assert weight[0, 0] < weight[1, 2] < 1
