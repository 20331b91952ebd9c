"""The merged prediction against an independent float64 evaluation of the published formula, with a stub network."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthgen.pipelines.diffusion import region_weights
from synthgen.pipelines.diffusion.mixture import Conditions, Mixture, Region

CHANNELS, TOKENS, DIM = 3, 4, 5
RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(CHANNELS, CHANNELS))
TEXT = RNG.normal(size=(CHANNELS, TOKENS * DIM))


def stub(x: Tensor, conditions: Conditions) -> Tensor:
    """A fixed random linear map of channels and text, that also sees neighbours: float32."""
    mix, text = torch.tensor(MIX, dtype=x.dtype), torch.tensor(TEXT, dtype=x.dtype)
    shifted = torch.roll(x, 1, dims=-1)
    words = conditions["encoder_hidden_states"].flatten(1) @ text.T
    return torch.einsum("cd,ndhw->nchw", mix, x + 0.5 * shifted) + words[:, :, None, None]


def reference(
    z: NDArray[np.float64], regions: list[Region], table: NDArray[np.float64]
) -> NDArray[np.float64]:
    """sum_i w_i (u_i + g (c_i - u_i)) / sum_i w_i, one region at a time, in float64."""
    total, norm = np.zeros_like(z), np.zeros_like(z)
    for r in regions:
        x0, y0, x1, y1 = r.window
        crop = z[r.image, :, y0:y1, x0:x1]
        base = np.einsum("cd,dhw->chw", MIX, crop + 0.5 * np.roll(crop, 1, -1))
        cond, uncond = (
            base + (TEXT @ table[p].ravel())[:, None, None] for p in (r.prompt, r.negative)
        )
        w = r.weight.double().numpy()
        total[r.image, :, y0:y1, x0:x1] += w * (uncond + r.guidance * (cond - uncond))
        norm[r.image, :, y0:y1, x0:x1] += w
    return np.divide(total, norm, out=np.zeros_like(total), where=norm > 0)


def random_regions(
    rng: np.random.Generator, images: int, n: int, side: int, prompts: int
) -> list[Region]:
    kinds = list(region_weights.WINDOW.values())
    regions = []
    for _ in range(n):
        w, h = (int(v) for v in rng.choice([4, 6, 8, 12], 2))
        x0, y0 = int(rng.integers(side - w + 1)), int(rng.integers(side - h + 1))
        weight = kinds[rng.integers(3)](h, w) * float(rng.uniform(0.1, 3))
        if rng.random() < 0.3:
            weight = region_weights.box(h, w, 1.5, 1.0, w - 1.2, h - 0.7)
        guidance = float(rng.choice([0.0, 1.0, 2.5, 7.5]))
        regions.append(
            Region(
                int(rng.integers(images)),
                (x0, y0, x0 + w, y0 + h),
                int(rng.integers(1, prompts)),
                0,
                guidance,
                weight,
            )
        )
    return regions


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_float64(seed: int) -> None:
    rng = np.random.default_rng(seed)
    z, table = rng.normal(size=(3, CHANNELS, 20, 20)), rng.normal(size=(5, TOKENS, DIM))
    regions = random_regions(rng, 3, 25, 20, 5)
    mixture = Mixture(
        regions,
        {"encoder_hidden_states": torch.tensor(table, dtype=torch.float32)},
        z.shape,
        cells=300,
    )
    got = mixture(torch.tensor(z, dtype=torch.float32), stub).double().numpy()
    wanted = reference(z, regions, table)
    assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 1e-5


def test_uncovered_cells_predict_zero() -> None:
    region = Region(0, (0, 0, 4, 4), 1, 0, 7.5, region_weights.constant(4, 4))
    merged = Mixture(
        [region], {"encoder_hidden_states": torch.randn(2, TOKENS, DIM)}, (1, CHANNELS, 8, 8), 64
    )(torch.randn(1, CHANNELS, 8, 8), stub)
    assert (merged[..., 4:, :] == 0).all()
    assert (merged[..., :, 4:] == 0).all()
    assert (merged[..., :4, :4] != 0).any()


@pytest.mark.parametrize(("guidance", "passes"), [(0.0, 1), (1.0, 1), (7.5, 2)])
def test_branches_without_weight_are_not_computed(guidance: float, passes: int) -> None:
    seen = []

    def counting(x: Tensor, conditions: Conditions) -> Tensor:
        seen.append(len(x))
        return stub(x, conditions)

    regions = [
        Region(0, (0, 0, 8, 8), 1, 0, guidance, region_weights.constant(8, 8)) for _ in range(5)
    ]
    Mixture(
        regions,
        {"encoder_hidden_states": torch.randn(2, TOKENS, DIM)},
        (1, CHANNELS, 8, 8),
        cells=10_000,
    )(torch.randn(1, CHANNELS, 8, 8), counting)
    assert seen == [5 * passes]


def test_equal_windows_of_all_images_go_together_as_many_as_the_cells_allow() -> None:
    seen = []

    def counting(x: Tensor, conditions: Conditions) -> Tensor:
        seen.append(tuple(x.shape))
        return stub(x, conditions)

    regions = [
        Region(i % 2, (0, 0, 4, 8), 1, 0, 1.0, region_weights.constant(8, 4)) for i in range(6)
    ]
    regions += [
        Region(i % 2, (0, 0, 8, 8), 1, 0, 1.0, region_weights.constant(8, 8)) for i in range(3)
    ]
    Mixture(
        regions,
        {"encoder_hidden_states": torch.randn(2, TOKENS, DIM)},
        (2, CHANNELS, 8, 8),
        cells=128,
    )(torch.randn(2, CHANNELS, 8, 8), counting)
    assert sorted(seen) == sorted([(4, 3, 8, 4), (2, 3, 8, 4), (2, 3, 8, 8), (1, 3, 8, 8)])
