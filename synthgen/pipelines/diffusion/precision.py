"""The number format of the networks.

Processors with AMX multiply bfloat16 matrices many times as fast as float32 ones. Others convert
every number and gain nothing.
"""

import os

import torch

# oneDNN, which computes torch's products on a CPU, uses no newer instructions than this allows.
ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


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
