"""How near generated pictures come to real ones, and how much of the real ones they cover: figures of two sets of features."""

import torch
from torch import Tensor, nn

NEIGHBOURS = 5  # k of precision, recall, density and coverage, as Naeem et al. use it
ROWS = 1024  # of a matrix of distances at once
NOT_MEASURED = "not measured here"
FIGURES = ("nearest", "precision", "recall", "density", "coverage", "fid", "kid")
SUBSETS, SUBSET = 100, 1000  # of KID


def fidelity(generated: Tensor, real: Tensor, k: int = NEIGHBOURS) -> dict[str, float]:
    """Figures of generated pictures against real ones.

    Args:
        generated: (M, D) features, M > k.
        real: (N, D) features, N > k.
        k: neighbours that make up what a set covers.

    Returns:
        nearest: mean Euclidean distance of a generated picture to its nearest real one.
        precision, recall: share of the generated (real) pictures within the k-th neighbour's distance of a real (generated) one
            (Kynkäänniemi et al., arXiv 1904.06991, equation 1).
        density, coverage: mean number over k of real neighbourhoods that a generated picture is in; share of the real ones
            whose neighbourhood holds a generated one (Naeem et al., arXiv 2002.09797, equations 3 and 4).
        fid, kid: Fréchet and kernel distance (torchmetrics).
    """
    generated, real = generated.double(), real.double()
    of_real, of_generated = reach(real, k), reach(generated, k)
    inside = torch.zeros(len(real), dtype=torch.long)
    least, density, precise = [], 0, 0
    for rows in torch.split(generated, ROWS):
        d = torch.cdist(rows, real, compute_mode="donot_use_mm_for_euclid_dist")
        held = d <= of_real
        least.append(d.amin(1))
        density += int(held.sum())
        precise += int(held.any(1).sum())
        inside += held.sum(0)
    recalled = 0
    for rows in torch.split(real, ROWS):
        d = torch.cdist(rows, generated, compute_mode="donot_use_mm_for_euclid_dist")
        recalled += int((d <= of_generated).any(1).sum())
    return {
        "nearest": float(torch.cat(least).mean()),
        "precision": precise / len(generated),
        "recall": recalled / len(real),
        "density": density / (k * len(generated)),
        "coverage": float((inside > 0).double().mean()),
        **distances(generated, real),
    }


def reach(features: Tensor, k: int) -> Tensor:
    """Distance (N,) of each picture to its k-th nearest other one."""
    found = []
    for rows in torch.split(features, ROWS):
        d = torch.cdist(rows, features, compute_mode="donot_use_mm_for_euclid_dist")
        found.append(d.kthvalue(k + 1, dim=1).values)  # the nearest is the picture itself
    return torch.cat(found)


def distances(generated: Tensor, real: Tensor) -> dict[str, float]:
    """Fréchet inception distance and kernel inception distance of (M, D) and (N, D) features.

    KID is the mean over random subsets, always the same ones, of at most SUBSET pictures; with fewer there is one.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(SUBSET, len(generated), len(real))
    subsets = SUBSETS if size < max(len(generated), len(real)) else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fid = FrechetInceptionDistance(feature=_Given(real.shape[1])).set_dtype(torch.float64)
        kid = KernelInceptionDistance(
            feature=_Given(real.shape[1]), subsets=subsets, subset_size=size
        )
        for metric in (fid, kid):
            metric.update(real, real=True)
            metric.update(generated, real=False)
        return {"fid": float(fid.compute()), "kid": float(kid.compute()[0])}


class _Given(nn.Module):
    """torchmetrics asks for a network; our pictures went through theirs already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features
