"""A part of an image is decoded with the statistics of the whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthgen.pipelines.diffusion.cpu_layers import use_cpu_layers
from synthgen.pipelines.diffusion.norm_statistics import (
    Statistics,
    apply_statistics,
    record_statistics,
)
from synthgen.pipelines.mixture.pipeline import MixturePipeline


def normalise_exactly(whole: Tensor, part: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Return a part (1, C, h, w), normalised by the statistics of the whole in float64."""
    groups = whole.double().reshape(norm.num_groups, -1)
    mean = groups.mean(1)
    deviation = (groups.var(1, correction=0) + norm.eps).sqrt()
    per_group = part.double().reshape(norm.num_groups, -1)
    normalised = ((per_group - mean[:, None]) / deviation[:, None]).reshape(part.shape)
    weight = norm.weight.double()[:, None, None]
    return normalised * weight + norm.bias.double()[:, None, None]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fused", [False, True])
def test_a_norm_uses_the_statistics_of_the_whole(dtype: torch.dtype, fused: bool) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    whole = 3 + torch.randn(1, 6, 16, 16)
    whole[..., :8] -= 5
    part = whole[..., :4, :4].clone()
    expected = normalise_exactly(whole.to(dtype), part.to(dtype), norm.to(dtype))
    if fused:
        use_cpu_layers(norm)
    statistics: Statistics = []
    before = F.group_norm
    with record_statistics(statistics):
        recorded = norm(whole.to(dtype))
    torch.testing.assert_close(recorded, norm(whole.to(dtype)), rtol=0, atol=0)
    with apply_statistics(statistics):
        got = norm(part.to(dtype))
    assert F.group_norm is before
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)
    assert not torch.allclose(norm(part.to(dtype)).double(), expected, atol=0.1)


@torch.no_grad()
def test_a_part_is_decoded_as_inside_the_whole(checkpoint: Path) -> None:
    pipeline: Any = MixturePipeline.from_pretrained(checkpoint, use_safetensors=True)
    latents = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    latents[..., :12] *= 3
    statistics: Statistics = []
    whole = pipeline.decode(latents, norms=[record_statistics(statistics)])[0].astype(int)
    part = latents[..., 2:12, 2:12]
    alone = pipeline.decode(part)[0].astype(int)
    inside = pipeline.decode(part, norms=[apply_statistics(statistics)])[0].astype(int)
    middle = slice(8, 12)  # away from the edges, where convolutions see zeros instead of the whole
    wanted = whole[12:16, 12:16]
    assert abs(inside[middle, middle] - wanted).max() <= 1
    assert abs(alone[middle, middle] - wanted).max() > 3


@torch.no_grad()
def test_an_error_restores_the_norms() -> None:
    before = F.group_norm
    with pytest.raises(ValueError, match="broken"), record_statistics([]):
        raise ValueError("broken")
    assert F.group_norm is before
