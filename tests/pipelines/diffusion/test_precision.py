"""The number format of the networks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion import precision
from synthgen.pipelines.diffusion.cpu_layers import FloatGroupNorm
from synthgen.pipelines.diffusion.precision import choose_dtype, has_amx
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
