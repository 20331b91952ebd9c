"""The number format of the networks, and a layer that is slow in bfloat16 on a CPU.

Processors with AMX multiply bfloat16 matrices many times as fast as float32 ones. Others convert
every number and gain nothing.
"""

import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# oneDNN, which computes torch's products on a CPU, uses no newer instructions than this allows.
ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
SLOW_CELLS = 1024  # cells of an image below which torch's bfloat16 group norm is slow


def choose_dtype(device: str) -> str:
    """Choose the number format in which networks run fastest without a loss in the images.

    Args:
        device: "cpu" or "cuda".

    Returns:
        "float16" on a GPU; on a CPU "bfloat16" if it has AMX, otherwise "float32".
    """
    if device == "cuda":
        return "float16"
    return "bfloat16" if has_amx() else "float32"


def has_amx() -> bool:
    """Return whether this processor multiplies bfloat16 matrices in tiles, and torch may do so."""
    read_capabilities = getattr(torch.cpu, "get_capabilities", None)
    if read_capabilities is None:  # an older version of torch
        return False
    if not read_capabilities().get("amx_bf16", False):
        return False
    limit = next((os.environ[name] for name in ISA_LIMITS if os.environ.get(name)), "ALL").upper()
    return limit in ("ALL", "DEFAULT") or "AMX" in limit


class FloatGroupNorm(nn.GroupNorm):
    """A group norm that computes in float32 where torch's bfloat16 one is several times slower."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised input (B, C, h, w), in its own number format."""
        if x.dtype != torch.bfloat16 or x[0, 0].numel() >= SLOW_CELLS:
            return super().forward(x)
        normalised = F.group_norm(
            x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps
        )
        return normalised.to(x.dtype)


def replace_group_norms(network: nn.Module) -> None:
    """Make the group norms of a network compute in float32 where that is faster.

    The names and the values of its weights stay as they are.
    """
    for module in network.modules():
        if type(module) is nn.GroupNorm and module.affine:
            module.__class__ = FloatGroupNorm
