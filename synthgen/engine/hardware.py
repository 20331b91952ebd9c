"""The processor or card that computes pixels: two kinds can give slightly different ones."""

import platform
import sys
from pathlib import Path
from typing import Any


def describe_hardware(device: str, uses_torch: bool) -> str:
    """Return the name of a device, and what else its arithmetic depends on.

    Args:
        device: "cpu" or "cuda".
        uses_torch: whether images are generated with torch, whose kernels depend on the processor.
    """
    if device == "cuda":
        import torch

        version: Any = torch.backends.cudnn.version  # untyped
        return describe_card(torch.cuda.get_device_properties(0), version())
    name = _read_processor_name()
    torch_module: Any = sys.modules.get("torch")
    if not uses_torch or torch_module is None:
        return name
    return f"{name}, {torch_module.backends.cpu.get_cpu_capability()}"


def describe_card(properties: Any, cudnn: int | None) -> str:
    """Return the name of a GPU, its compute capability, and the version of cuDNN.

    Args:
        properties: torch's properties of the device.
    """
    return f"{properties.name}, capability {properties.major}.{properties.minor}, cuDNN {cudnn}"


def _read_processor_name() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()
