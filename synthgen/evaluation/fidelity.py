"""Distances between generated and real images, and coverage of the real ones, from features."""

import torch
from torch import Tensor, nn

NEIGHBOURS = 5  # k of precision, recall, density and coverage, as Naeem et al. use it
CHUNK_ROWS = 1024  # rows of a matrix of distances that are computed together
NOT_MEASURED = "not measured here"
FIGURES = ("nearest", "precision", "recall", "density", "coverage", "fid", "kid")
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000


def measure_fidelity(generated: Tensor, real: Tensor, k: int = NEIGHBOURS) -> dict[str, float]:
    """Return the figures of generated images against real ones.

    Args:
        generated: (M, D) features, M > k.
        real: (N, D) features, N > k.
        k: the neighbourhood of an image extends to its k-th nearest neighbour in the same set.

    Returns:
        nearest: mean Euclidean distance of a generated image to its nearest real one.
        precision, recall: share of the generated (real) images that are in the neighbourhood of a
            real (generated) one (Kynkäänniemi et al., arXiv 1904.06991, equation 1).
        density, coverage: mean number, over k, of real neighbourhoods that a generated image is
            in; share of the real images whose neighbourhood holds a generated one (Naeem et al.,
            arXiv 2002.09797, equations 3 and 4).
        fid, kid: Fréchet and kernel inception distance (torchmetrics).
    """
    generated = generated.double()
    real = real.double()
    real_radii = measure_neighbour_distances(real, k)
    generated_radii = measure_neighbour_distances(generated, k)
    hits = torch.zeros(len(real), dtype=torch.long)  # generated images in each neighbourhood
    nearest = []
    density = 0
    precise = 0
    for rows in torch.split(generated, CHUNK_ROWS):
        distances = measure_euclidean_distances(rows, real)
        is_inside = distances <= real_radii
        nearest.append(distances.amin(1))
        density += int(is_inside.sum())
        precise += int(is_inside.any(1).sum())
        hits += is_inside.sum(0)
    recalled = 0
    for rows in torch.split(real, CHUNK_ROWS):
        is_inside = measure_euclidean_distances(rows, generated) <= generated_radii
        recalled += int(is_inside.any(1).sum())
    return {
        "nearest": float(torch.cat(nearest).mean()),
        "precision": precise / len(generated),
        "recall": recalled / len(real),
        "density": density / (k * len(generated)),
        "coverage": float((hits > 0).double().mean()),
        **measure_inception_distances(generated, real),
    }


def measure_euclidean_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return distances (M, N) of (M, D) and (N, D) features, without the rounding of a product."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def measure_neighbour_distances(features: Tensor, k: int) -> Tensor:
    """Return the distance (N,) of each image to its k-th nearest neighbour."""
    radii = []
    for rows in torch.split(features, CHUNK_ROWS):
        distances = measure_euclidean_distances(rows, features)
        # The nearest one is the image itself.
        radii.append(distances.kthvalue(k + 1, dim=1).values)
    return torch.cat(radii)


def measure_inception_distances(generated: Tensor, real: Tensor) -> dict[str, float]:
    """Return Fréchet and kernel inception distance of (M, D) and (N, D) features.

    KID is the mean over random subsets of at most KID_SUBSET_SIZE images, the same ones in every
    call; if all images fit in one subset, there is only one.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(KID_SUBSET_SIZE, len(generated), len(real))
    subsets = KID_SUBSETS if size < max(len(generated), len(real)) else 1
    width = real.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fid = FrechetInceptionDistance(feature=_Identity(width)).set_dtype(torch.float64)
        kid = KernelInceptionDistance(feature=_Identity(width), subsets=subsets, subset_size=size)
        for metric in (fid, kid):
            metric.update(real, real=True)
            metric.update(generated, real=False)
        return {"fid": float(fid.compute()), "kid": float(kid.compute()[0])}


class _Identity(nn.Module):
    """Returns its input: torchmetrics takes a network, and the features are computed already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features
