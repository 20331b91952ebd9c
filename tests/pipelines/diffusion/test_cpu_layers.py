"""The layers that replace those of torch and diffusers on a CPU."""

import copy
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from synthgen.pipelines.diffusion import cpu_layers
from synthgen.pipelines.diffusion.cpu_layers import (
    FloatGroupNorm,
    FusedGEGLU,
    FusedResnetBlock,
    use_cpu_layers,
)

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("side", [6, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_group_norm_agrees_with_float64(side: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.GroupNorm(4, 24), nn.GroupNorm(3, 24, affine=False))
    norm: Any = network[0]
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    use_cpu_layers(network)
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


def test_the_group_norm_of_many_images_is_that_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images are computed a few at a time, here two of five."""
    norm = FloatGroupNorm(4, 24, dtype=torch.bfloat16)
    x = torch.randn(5, 24, 6, 6).to(torch.bfloat16, memory_format=torch.channels_last)
    monkeypatch.setattr(cpu_layers, "CACHED_VALUES", 2 * 24 * 36 + 1)
    with torch.no_grad():
        together = norm(x)
        alone = torch.cat([norm(image[None]) for image in x])
    assert torch.equal(together, alone)
    assert together.is_contiguous(memory_format=torch.channels_last)


def build_block(dtype: torch.dtype = torch.float32, **options: Any) -> ResnetBlock2D:
    torch.manual_seed(0)
    options = {"in_channels": 16, "out_channels": 24, "temb_channels": 20, "groups": 4} | options
    block = ResnetBlock2D(**options).eval()
    for weight in block.parameters():
        nn.init.normal_(weight, std=0.3)
    return block.to(dtype, memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [6, 34])
@pytest.mark.parametrize("options", [{}, {"out_channels": 16}, {"temb_channels": None}])
def test_a_residual_block_computes_what_that_of_diffusers_does(
    options: dict[str, Any], side: int, dtype: torch.dtype
) -> None:
    block = build_block(dtype, **options)
    reference = copy.deepcopy(block).double()
    x = torch.randn(3, 16, side, side).to(dtype, memory_format=torch.channels_last)
    embedding = None if options.get("temb_channels", 20) is None else torch.randn(3, 20).to(dtype)
    with torch.no_grad():
        expected = reference(x.double(), None if embedding is None else embedding.double())
        theirs = block(x, embedding)
        use_cpu_layers(block)
        assert type(block) is FusedResnetBlock
        ours = block(x, embedding)
    assert ours.dtype == dtype
    assert_no_worse(ours, theirs, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_gated_layer_computes_what_that_of_diffusers_does(bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(GEGLU(16, 40, bias=bias)).to(dtype)
    reference = copy.deepcopy(layer).double()
    x = torch.randn(2, 7, 16).to(dtype)
    with torch.no_grad():
        theirs = layer(x)
        use_cpu_layers(layer)
        assert type(layer[0]) is FusedGEGLU
        assert_no_worse(layer(x), theirs, reference(x.double()))


def test_gradients_are_those_of_diffusers() -> None:
    network = nn.ModuleList([build_block(), GEGLU(16, 40)])
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.3)
    x = torch.randn(3, 16, 6, 6)
    tokens = torch.randn(2, 7, 16)
    embedding = torch.randn(3, 20)
    gradients = []
    for _ in range(2):
        network.zero_grad()
        loss = network[0](x, embedding).square().mean() + network[1](tokens).square().mean()
        loss.backward()
        gradients.append([w.grad.clone() for w in network.parameters() if w.grad is not None])
        use_cpu_layers(network)
    assert [type(module) for module in network] == [FusedResnetBlock, FusedGEGLU]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def assert_no_worse(ours: Tensor, theirs: Tensor, expected: Tensor) -> None:
    """Assert that values are as near to float64 ones as those of diffusers are, or very near."""

    def measure_error(values: Tensor) -> float:
        return float((values.double() - expected).norm() / expected.norm())

    assert measure_error(ours) < max(1.2 * measure_error(theirs), 1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"up": True},
        {"down": True},
        {"time_embedding_norm": "scale_shift"},
        {"skip_time_act": True},
        {"output_scale_factor": 2.0},
        {"dropout": 0.1},
        {"non_linearity": "gelu"},
    ],
)
def test_other_residual_blocks_stay_as_they_are(options: dict[str, Any]) -> None:
    block = build_block(**options)
    use_cpu_layers(block)
    assert type(block) is ResnetBlock2D


def test_a_layer_with_an_adapter_stays_as_it_is() -> None:
    layer = GEGLU(16, 40)
    layer.proj = nn.Sequential(layer.proj)
    use_cpu_layers(layer)
    assert type(layer) is GEGLU


def test_an_adapter_that_is_added_later_has_its_effect() -> None:
    """A layer that reads the weights beside an adapter would ignore it."""
    network = nn.ModuleList([build_block(), GEGLU(16, 40)])
    x = torch.randn(3, 16, 6, 6)
    tokens = torch.randn(2, 7, 16)
    embedding = torch.randn(3, 20)
    outputs = []
    with torch.no_grad():
        for fuse in (False, True):
            changed: Any = copy.deepcopy(network)
            if fuse:
                use_cpu_layers(changed)
                assert [type(module) for module in changed] == [FusedResnetBlock, FusedGEGLU]
            changed[0].conv2 = nn.Sequential(changed[0].conv2, nn.Tanh())
            changed[1].proj = nn.Sequential(changed[1].proj, nn.Tanh())
            outputs.append((changed[0](x, embedding), changed[1](tokens)))
    for ours, theirs in zip(*reversed(outputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("missing", ["oneDNN", "_linear_pointwise", "_convolution_pointwise"])
def test_a_torch_without_fused_products_keeps_its_layers(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    else:
        monkeypatch.setattr(torch.ops.mkldnn, missing, None)
    network = nn.Sequential(build_block(), GEGLU(16, 40))
    use_cpu_layers(network)
    assert [type(module) for module in network] == [ResnetBlock2D, GEGLU]


def test_a_processor_without_bfloat16_keeps_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    half = build_block(torch.bfloat16)
    use_cpu_layers(half)
    assert type(half) is ResnetBlock2D


def test_the_networks_compute_and_store_the_same() -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        norm_num_groups=4,
        attention_head_dim=2,
    ).eval()
    vae = AutoencoderKL(block_out_channels=(16, 16), norm_num_groups=4).eval()
    x = torch.randn(2, 4, 12, 8)
    text = torch.randn(2, 5, 8)
    names = list(unet.state_dict())
    with torch.no_grad():
        prediction = unet(x, 7, text).sample
        image = vae.decode(x).sample
        for network in (unet, vae):
            network.to(memory_format=torch.channels_last)
            use_cpu_layers(network)
            assert any(type(module) is FusedResnetBlock for module in network.modules())
        torch.testing.assert_close(unet(x, 7, text).sample, prediction, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(vae.decode(x).sample, image, rtol=1e-4, atol=1e-5)
    assert list(unet.state_dict()) == names
