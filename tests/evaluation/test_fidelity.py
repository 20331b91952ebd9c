"""Figures of generated against real pictures: on small sets, against slow float64 references and the papers' formulas."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor

from synthgen.evaluation.fidelity import FIGURES, fidelity, reach

Array = NDArray[np.float64]


def sets(m: int, n: int, d: int = 6, shift: float = 0.3) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    return torch.tensor(rng.normal(shift, 1, (m, d))), torch.tensor(rng.normal(0, 1, (n, d)))


def by_hand(fake: Array, real: Array, k: int) -> dict[str, float]:
    """The papers' formulas, point by point."""
    m, n = len(fake), len(real)

    def radius(points: Array, i: int) -> float:
        return float(
            sorted(np.linalg.norm(points[i] - p) for j, p in enumerate(points) if j != i)[k - 1]
        )

    r_real, r_fake = ([radius(p, i) for i in range(len(p))] for p in (real, fake))
    d = np.array([[np.linalg.norm(f - r) for r in real] for f in fake])
    in_real = np.array([[d[j, i] <= r_real[i] for i in range(n)] for j in range(m)])
    in_fake = np.array([[d[j, i] <= r_fake[j] for i in range(n)] for j in range(m)])
    shift, covariances = fake.mean(0) - real.mean(0), [np.cov(x.T) for x in (fake, real)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    xx, yy, xy = (
        (a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((fake, fake), (real, real), (fake, real))
    )
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
        "fid": float((shift**2).sum() + np.trace(sum(covariances) - 2 * root)),
        "kid": float(mmd),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_all_figures_are_the_papers(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synthgen.evaluation.fidelity.ROWS", 7)  # in several pieces
    fake, real = sets(40, 40)
    got, wanted = fidelity(fake, real, k), by_hand(fake.numpy(), real.numpy(), k)
    assert set(got) == set(FIGURES)
    for name, value in wanted.items():
        assert got[name] == pytest.approx(value, rel=1e-3 if name in ("fid", "kid") else 1e-9), name


def test_sets_of_different_sizes() -> None:
    fake, real = sets(25, 60)
    got, wanted = fidelity(fake, real, 3), by_hand(fake.numpy(), real.numpy(), 3)
    for name in ("nearest", "precision", "recall", "density", "coverage"):
        assert got[name] == pytest.approx(wanted[name], rel=1e-9), name
    again = fidelity(fake, real, 3)
    assert again == got  # KID's subsets are always the same


def test_the_real_set_itself_is_perfect_and_a_far_one_shares_nothing() -> None:
    _, real = sets(1, 50)
    same = fidelity(real, real)
    assert [same[k] for k in ("nearest", "precision", "recall", "coverage")] == [0, 1, 1, 1]
    assert same["fid"] == pytest.approx(0, abs=1e-3)
    far = fidelity(real + 100, real)
    assert [far[k] for k in ("precision", "recall", "density", "coverage")] == [0, 0, 0, 0]
    assert far["fid"] == pytest.approx(6 * 100**2, rel=1e-3)
    assert far["nearest"] > 200


def test_one_picture_everywhere_covers_little() -> None:
    """Precision alone cannot tell: that is what coverage is for."""
    _, real = sets(1, 50)
    one = real[:1].repeat(50, 1)
    found = fidelity(one, real)
    assert found["precision"] == 1
    assert found["coverage"] < 0.3
    assert found["recall"] < 0.1


def test_reach_is_the_distance_to_the_kth_other_point() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64)
    assert reach(points, 1).tolist() == [1, 1, 2, 4]
    assert reach(points, 2).tolist() == [3, 2, 3, 6]
