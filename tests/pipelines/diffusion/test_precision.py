"""The number format of the networks, and the group norm that replaces torch's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion import precision
from synthgen.pipelines.diffusion.precision import (
    FloatGroupNorm,
    choose_dtype,
    has_amx,
    replace_group_norms,
)
from synthgen.pipelines.mixture import Spec as MixtureSpec
from synthgen.pipelines.paste import Spec as PasteSpec
from synthgen.scenes.scene import SceneSpec


@pytest.mark.parametrize(
    ("amx", "limit", "dtype"),
    [
        (False, "", "float32"),
        (True, "", "bfloat16"),
        (True, "default", "bfloat16"),
        (True, "AVX512_CORE_AMX", "bfloat16"),
        (True, "AVX10_1_512_AMX", "bfloat16"),
        (True, "AVX512_CORE", "float32"),
        (True, "avx512_core_bf16", "float32"),
    ],
)
@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_bfloat16_is_chosen_where_a_cpu_has_amx(
    amx: bool, limit: str, dtype: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in precision.ISA_LIMITS:
        monkeypatch.delenv(name, raising=False)
    if limit:
        monkeypatch.setenv(variable, limit)
    capabilities = {"amx_bf16": amx}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_dtype("cpu") == dtype
    assert choose_dtype("cuda") == "float16"


def test_an_older_torch_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not has_amx()


def test_a_recipe_chooses_its_own_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_amx", lambda: True)
    assert MixtureSpec().choose_dtype("cpu") == "bfloat16"
    assert MixtureSpec().former_dtype("cpu") == "float32"
    assert MixtureSpec().former_dtype("cuda") == "float16"
    assert MixtureSpec(dtype="float32").choose_dtype("cpu") == "float32"
    assert MixtureSpec(dtype="float32").former_dtype("cuda") == "float32"
    assert PasteSpec().choose_dtype("cpu") is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pipeline_runs_in_the_format_of_the_numerics(dtype: str, checkpoint: Path) -> None:
    painter: Any = MixtureSpec(model=str(checkpoint)).load(SceneSpec(), Numerics(dtype=dtype))
    for network in (painter.pipeline.unet, painter.pipeline.vae, painter.pipeline.text_encoder):
        assert network.dtype == getattr(torch, dtype)
    norms = [m for m in painter.pipeline.unet.modules() if isinstance(m, nn.GroupNorm)]
    assert norms
    assert all(type(norm) is FloatGroupNorm for norm in norms)


@pytest.mark.parametrize("side", [6, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_group_norm_agrees_with_float64(side: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.GroupNorm(4, 24), nn.GroupNorm(3, 24, affine=False))
    norm: Any = network[0]
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    replace_group_norms(network)
    assert [type(module) for module in network] == [FloatGroupNorm, nn.GroupNorm]
    network.to(dtype)
    # Means far from 0 lose most where sums are not in float32.
    x = (torch.randn(3, 24, side, side) + 3).to(dtype, memory_format=torch.channels_last)
    with torch.no_grad():
        y = norm(x)
    assert y.dtype == dtype
    groups = x.double().view(3, 4, 6, side, side)
    mean = groups.mean((2, 3, 4), keepdim=True)
    deviation = (groups.var((2, 3, 4), keepdim=True, correction=0) + norm.eps).sqrt()
    normal = ((groups - mean) / deviation).view(3, 24, side, side)
    expected = normal * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]
    largest = expected.abs().max()
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    assert (y.double() - expected).abs().max() / largest < tolerance
