"""Layers that compute the same as those of torch and diffusers, but faster on a CPU.

They use oneDNN's products that also compute the sum, gate or activation that follows. Torch has
them for its compiler, and the compiler itself would take minutes. The products have no gradients.
"""

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

SLOW_CELLS = 1024  # cells of an image below which torch's bfloat16 group norm is slow
CACHED_VALUES = 2**18  # float32 values that stay in a core's cache


class FloatGroupNorm(nn.GroupNorm):
    """A group norm that computes in float32 where torch's bfloat16 one is several times slower."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised input (B, C, h, w), in its own number format."""
        if is_slow(x):
            return normalise_in_float32(self, x)
        return super().forward(x)


class FusedResnetBlock(ResnetBlock2D):  # type: ignore[misc]  # diffusers is untyped
    """A residual block that computes each sum and activation together with the layer before it."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *_: Any, **__: Any) -> Tensor:
        """Return the block's output (B, C', h, w).

        Args:
            input_tensor: (B, C, h, w).
            temb: (B, D), embedding of the timestep; None in an autoencoder.
        """
        if torch.is_grad_enabled() or type(self.conv2) is not nn.Conv2d:  # an adapter, for example
            return super().forward(input_tensor, temb)
        x = self.conv1(normalise_and_activate(self.norm1, input_tensor))
        if temb is not None:
            temb = self.time_emb_proj(F.silu(temb))[:, :, None, None]
        x = normalise_and_activate(self.norm2, x, temb)
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return convolve_and_add(self.conv2, x, input_tensor)


class FusedGEGLU(GEGLU):  # type: ignore[misc]
    """The gated layer of a transformer, whose gate and product are computed with the layer."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the layer's values multiplied by GELU of its gate, (B, n, C')."""
        if type(self.proj) is not nn.Linear:  # an adapter, for example
            return super().forward(hidden_states)
        weight, gate_weight = self.proj.weight.chunk(2)
        bias, gate_bias = (None, None) if self.proj.bias is None else self.proj.bias.chunk(2)
        if torch.is_grad_enabled():
            # Two layers, because GELU of a part of a layer is slow, and so is its gradient.
            gate = F.gelu(F.linear(hidden_states, gate_weight, gate_bias))
            return F.linear(hidden_states, weight, bias) * gate
        linear = torch.ops.mkldnn._linear_pointwise
        gate = linear(hidden_states, gate_weight, gate_bias, "gelu", [], "none")
        values: Tensor = linear.binary(hidden_states, gate, weight, bias, "mul")
        return values


def use_cpu_layers(network: nn.Module) -> None:
    """Make a network compute with this module's layers where it can.

    The names and the values of its weights stay as they are.
    """
    for module in network.modules():
        if type(module) is nn.GroupNorm and module.affine:
            module.__class__ = FloatGroupNorm
    if not can_fuse(next(network.parameters()).dtype):
        return
    for module in network.modules():
        if type(module) is GEGLU and type(module.proj) is nn.Linear:
            module.__class__ = FusedGEGLU
        elif type(module) is ResnetBlock2D and _is_plain(module):
            module.__class__ = FusedResnetBlock


def can_fuse(dtype: torch.dtype) -> bool:
    """Return whether this torch and this processor have oneDNN's fused products for a dtype."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    for name in ("_linear_pointwise", "_convolution_pointwise"):
        product = getattr(torch.ops.mkldnn, name, None)
        if product is None or "binary" not in product.overloads():
            return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _is_plain(block: ResnetBlock2D) -> bool:
    """Return whether a residual block consists of the layers that `FusedResnetBlock` computes."""
    return (
        block.upsample is None
        and block.downsample is None
        and block.time_embedding_norm == "default"
        and not block.skip_time_act
        and block.output_scale_factor == 1
        and block.dropout.p == 0
        and type(block.nonlinearity) is nn.SiLU
        and type(block.norm1) is type(block.norm2) is FloatGroupNorm
        and type(block.conv2) is nn.Conv2d
        and block.conv2.padding_mode == "zeros"
    )


def is_slow(x: Tensor) -> bool:
    """Return whether torch's group norm of images (B, C, h, w) is slow."""
    return x.dtype == torch.bfloat16 and x[0, 0].numel() < SLOW_CELLS


def normalise_and_activate(norm: nn.GroupNorm, x: Tensor, shift: Tensor | None = None) -> Tensor:
    """Return SiLU(norm(x + shift)), (B, C, h, w).

    Args:
        shift: (B, C, 1, 1); None: 0.
    """
    if is_slow(x):
        return normalise_in_float32(norm, x, shift, activate=True)
    if shift is not None:
        x = x + shift
    return F.silu(norm(x), inplace=True)


def normalise_in_float32(
    norm: nn.GroupNorm, x: Tensor, shift: Tensor | None = None, activate: bool = False
) -> Tensor:
    """Return norm(x + shift), or SiLU of it, (B, C, h, w), computed in float32.

    Few images are computed at a time, so that their values stay in the cache. All are computed at
    once where gradients are needed, because the gradient of each part is as large as that of all.
    """
    weight = norm.weight.float()
    bias = norm.bias.float()
    count = max(1, CACHED_VALUES // x[0].numel())
    if torch.is_grad_enabled():
        count = len(x)
    parts = []
    for start in range(0, len(x), count):
        values = x[start : start + count].float()
        if shift is not None:
            values = values + shift[start : start + count]
        values = F.group_norm(values, norm.num_groups, weight, bias, norm.eps)
        if activate:
            values = F.silu(values, inplace=True)
        parts.append(values.to(x.dtype))
    return torch.cat(parts)


def convolve_and_add(convolution: nn.Conv2d, x: Tensor, other: Tensor) -> Tensor:
    """Return convolution(x) + other, (B, C', h, w)."""
    total: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
        x,
        other,
        convolution.weight,
        convolution.bias,
        convolution.padding,
        convolution.stride,
        convolution.dilation,
        convolution.groups,
        "add",
        None,
        None,
        [],
        None,
    )
    return total
