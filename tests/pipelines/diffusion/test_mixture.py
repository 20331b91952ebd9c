"""The merged prediction against a float64 evaluation of the published formula.

The network is a stub.
"""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthgen.pipelines.diffusion import region_weights
from synthgen.pipelines.diffusion.mixture import Conditions, Mixture, Region

CHANNELS = 3
TOKENS = 4
DIM = 5
RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(CHANNELS, CHANNELS))
TEXT = RNG.normal(size=(CHANNELS, TOKENS * DIM))


def stub(x: Tensor, conditions: Conditions) -> Tensor:
    """Return a fixed random linear map of channels, neighbouring cells and text."""
    mix = torch.tensor(MIX, dtype=x.dtype)
    text = torch.tensor(TEXT, dtype=x.dtype)
    shifted = torch.roll(x, 1, dims=-1)
    words = conditions["encoder_hidden_states"].flatten(1) @ text.T
    return torch.einsum("cd,ndhw->nchw", mix, x + 0.5 * shifted) + words[:, :, None, None]


def reference(
    z: NDArray[np.float64], regions: list[Region], table: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return sum_i w_i (u_i + g (c_i - u_i)) / sum_i w_i, one region at a time, in float64."""
    total = np.zeros_like(z)
    norm = np.zeros_like(z)
    for r in regions:
        x0, y0, x1, y1 = r.window
        crop = z[r.image, :, y0:y1, x0:x1]
        base = np.einsum("cd,dhw->chw", MIX, crop + 0.5 * np.roll(crop, 1, -1))
        cond = base + (TEXT @ table[r.prompt].ravel())[:, None, None]
        uncond = base + (TEXT @ table[r.negative].ravel())[:, None, None]
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
        x0 = int(rng.integers(side - w + 1))
        y0 = int(rng.integers(side - h + 1))
        weight = kinds[rng.integers(3)](h, w) * float(rng.uniform(0.1, 3))
        if rng.random() < 0.3:
            weight = region_weights.box(h, w, 1.5, 1.0, w - 1.2, h - 0.7)
        guidance = float(rng.choice([0.0, 1.0, 2.5, 7.5]))
        image = int(rng.integers(images))
        prompt = int(rng.integers(1, prompts))
        regions.append(Region(image, (x0, y0, x0 + w, y0 + h), prompt, 0, guidance, weight))
    return regions


def make_conditions(table: NDArray[np.float64] | None = None) -> Conditions:
    """Return a table of text embeddings; by default a random one of two prompts."""
    if table is None:
        return {"encoder_hidden_states": torch.randn(2, TOKENS, DIM)}
    return {"encoder_hidden_states": torch.tensor(table, dtype=torch.float32)}


@pytest.mark.parametrize("seed", range(8))
def test_the_merged_prediction_agrees_with_float64(seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(3, CHANNELS, 20, 20))
    table = rng.normal(size=(5, TOKENS, DIM))
    regions = random_regions(rng, 3, 25, 20, 5)
    mixture = Mixture(regions, make_conditions(table), z.shape, cells=300)
    got = mixture(torch.tensor(z, dtype=torch.float32), stub).double().numpy()
    wanted = reference(z, regions, table)
    assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 1e-5


def test_uncovered_cells_predict_zero() -> None:
    region = Region(0, (0, 0, 4, 4), 1, 0, 7.5, region_weights.constant(4, 4))
    mixture = Mixture([region], make_conditions(), (1, CHANNELS, 8, 8), 64)
    merged = mixture(torch.randn(1, CHANNELS, 8, 8), stub)
    assert (merged[..., 4:, :] == 0).all()
    assert (merged[..., :, 4:] == 0).all()
    assert (merged[..., :4, :4] != 0).any()


@pytest.mark.parametrize(("guidance", "passes"), [(0.0, 1), (1.0, 1), (7.5, 2)])
def test_branches_without_weight_are_not_computed(guidance: float, passes: int) -> None:
    batch_sizes = []

    def record(x: Tensor, conditions: Conditions) -> Tensor:
        batch_sizes.append(len(x))
        return stub(x, conditions)

    weight = region_weights.constant(8, 8)
    regions = [Region(i, (0, 0, 8, 8), 1, 0, guidance, weight) for i in range(5)]
    mixture = Mixture(regions, make_conditions(), (5, CHANNELS, 8, 8), cells=10_000)
    mixture(torch.randn(5, CHANNELS, 8, 8), record)
    assert batch_sizes == [5 * passes]
    assert mixture.cells == 5 * passes * 64


def test_equal_evaluations_are_computed_once() -> None:
    shapes = []

    def record(x: Tensor, conditions: Conditions) -> Tensor:
        shapes.append(tuple(x.shape))
        return stub(x, conditions)

    rng = np.random.default_rng(1)
    table = rng.normal(size=(4, TOKENS, DIM))
    regions = []
    for prompt in (1, 2, 3, 2):  # one unconditional evaluation for all, one for both of prompt 2
        weight = torch.from_numpy(rng.uniform(0.1, 1, (8, 8))).float()
        regions.append(Region(0, (0, 0, 8, 8), prompt, 0, 2.5, weight))
    z = rng.normal(size=(1, CHANNELS, 8, 8))
    mixture = Mixture(regions, make_conditions(table), z.shape, cells=10_000)
    got = mixture(torch.tensor(z, dtype=torch.float32), record).double().numpy()
    assert shapes == [(4, CHANNELS, 8, 8)]
    wanted = reference(z, regions, table)
    assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 1e-5


def test_equal_windows_of_all_images_share_chunks_up_to_the_number_of_cells() -> None:
    shapes = []

    def record(x: Tensor, conditions: Conditions) -> Tensor:
        shapes.append(tuple(x.shape))
        return stub(x, conditions)

    regions = []
    for i in range(6):
        weight = region_weights.constant(8, 4)
        regions.append(Region(i, (0, 0, 4, 8), 1, 0, 1.0, weight))
    for i in range(3):
        weight = region_weights.constant(8, 8)
        regions.append(Region(i, (0, 0, 8, 8), 1, 0, 1.0, weight))
    mixture = Mixture(regions, make_conditions(), (6, CHANNELS, 8, 8), cells=128)
    mixture(torch.randn(6, CHANNELS, 8, 8), record)
    assert sorted(shapes) == sorted([(4, 3, 8, 4), (2, 3, 8, 4), (2, 3, 8, 8), (1, 3, 8, 8)])
