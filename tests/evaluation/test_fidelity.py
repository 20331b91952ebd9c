"""Figures of generated against real images, compared with the papers' formulas on small sets."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor

from synthgen.evaluation.fidelity import FIGURES, measure_fidelity, measure_neighbour_distances

Array = NDArray[np.float64]


def sample_sets(m: int, n: int, d: int = 6, shift: float = 0.3) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    return torch.tensor(rng.normal(shift, 1, (m, d))), torch.tensor(rng.normal(0, 1, (n, d)))


def compute_reference(fake: Array, real: Array, k: int) -> dict[str, float]:
    """Compute the papers' formulas point by point."""
    m = len(fake)
    n = len(real)

    def compute_radii(points: Array) -> Array:
        radii = []
        for point in points:
            distances = sorted(np.linalg.norm(point - other) for other in points)
            radii.append(distances[k])  # the first one is the point itself
        return np.array(radii)

    def kernel(a: Array, b: Array) -> Array:
        return (a @ b.T / a.shape[1] + 1) ** 3

    d = np.zeros((m, n))
    for j in range(m):
        for i in range(n):
            d[j, i] = np.linalg.norm(fake[j] - real[i])
    in_real = d <= compute_radii(real)[None]
    in_fake = d <= compute_radii(fake)[:, None]
    shift = fake.mean(0) - real.mean(0)
    covariance_fake = np.cov(fake.T)
    covariance_real = np.cov(real.T)
    root = linalg.sqrtm(covariance_fake @ covariance_real).real
    xx = kernel(fake, fake)
    yy = kernel(real, real)
    xy = kernel(fake, real)
    mmd = (
        (xx.sum() - np.trace(xx)) / (m * (m - 1))
        + (yy.sum() - np.trace(yy)) / (n * (n - 1))
        - 2 * xy.mean()
    )
    return {
        "nearest": float(d.min(1).mean()),
        "precision": float(in_real.any(1).mean()),
        "recall": float(in_fake.any(0).mean()),
        "density": float(in_real.sum() / (k * m)),
        "coverage": float(in_real.any(0).mean()),
        "fid": float((shift**2).sum() + np.trace(covariance_fake + covariance_real - 2 * root)),
        "kid": float(mmd),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_figures_match_the_formulas(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synthgen.evaluation.fidelity.CHUNK_ROWS", 7)  # several chunks
    fake, real = sample_sets(40, 40)
    figures = measure_fidelity(fake, real, k)
    wanted = compute_reference(fake.numpy(), real.numpy(), k)
    assert set(figures) == set(FIGURES)
    for name, value in wanted.items():
        tolerance = 1e-3 if name in ("fid", "kid") else 1e-9
        assert figures[name] == pytest.approx(value, rel=tolerance), name


def test_sets_may_differ_in_size() -> None:
    fake, real = sample_sets(25, 60)
    figures = measure_fidelity(fake, real, 3)
    wanted = compute_reference(fake.numpy(), real.numpy(), 3)
    for name in ("nearest", "precision", "recall", "density", "coverage"):
        assert figures[name] == pytest.approx(wanted[name], rel=1e-9), name
    again = measure_fidelity(fake, real, 3)
    assert again == figures  # KID's subsets are always the same


def test_the_real_set_is_perfect_and_a_distant_set_has_no_overlap() -> None:
    _, real = sample_sets(1, 50)
    same = measure_fidelity(real, real)
    assert [same[k] for k in ("nearest", "precision", "recall", "coverage")] == [0, 1, 1, 1]
    assert same["fid"] == pytest.approx(0, abs=1e-3)
    far = measure_fidelity(real + 100, real)
    assert [far[k] for k in ("precision", "recall", "density", "coverage")] == [0, 0, 0, 0]
    assert far["fid"] == pytest.approx(6 * 100**2, rel=1e-3)
    assert far["nearest"] > 200


def test_one_repeated_image_has_little_coverage() -> None:
    """Precision does not show the lack of variety, coverage does."""
    _, real = sample_sets(1, 50)
    one = real[:1].repeat(50, 1)
    figures = measure_fidelity(one, real)
    assert figures["precision"] == 1
    assert figures["coverage"] < 0.3
    assert figures["recall"] < 0.1


def test_neighbour_distances_are_to_the_kth_other_point() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64)
    assert measure_neighbour_distances(points, 1).tolist() == [1, 1, 2, 4]
    assert measure_neighbour_distances(points, 2).tolist() == [3, 2, 3, 6]
