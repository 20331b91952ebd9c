"""Training in bfloat16 on a CPU, with float32 master weights.

The weights of a network are bfloat16 while it predicts and while gradients are computed. The
optimiser changes their float32 values, the masters, so that small steps are not lost. Torch's
autocast would convert the weights at every layer that uses them, which takes longer than it saves.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_attend = F.scaled_dot_product_attention


Copies = dict[int, Tensor]
"""The bfloat16 values of the weights of a network, by the number of the weight."""


@contextmanager
def compute_in_bfloat16(network: nn.Module, copies: Copies) -> Iterator[None]:
    """Make the float32 weights of a network bfloat16 inside the `with` block.

    At its end they have their former values again, and their gradients are float32. Attention is
    computed in float32.

    Args:
        copies: memory for the bfloat16 values, which is used again in the next step; {} at first.
    """
    masters: list[tuple[nn.Parameter, Tensor]] = []
    for number, weight in enumerate(network.parameters()):
        if weight.dtype == torch.float32:
            masters.append((weight, weight.data))
            if number not in copies:
                copies[number] = torch.empty_like(weight.data, dtype=torch.bfloat16)
            weight.data = copies[number].copy_(weight.data)
    # Torch's own way to intercept a function, TorchFunctionMode, is not in force while gradient
    # checkpointing computes activations again.
    F.scaled_dot_product_attention = _attend_in_float32
    try:
        yield
    finally:
        F.scaled_dot_product_attention = _attend
        for weight, master in masters:
            gradient = weight.grad
            weight.grad = None
            weight.data = master
            if gradient is not None:
                weight.grad = gradient.float()


def _attend_in_float32(query: Tensor, *others: Any, **options: Any) -> Tensor:
    """Return the attention of `torch.nn.functional.scaled_dot_product_attention`.

    Torch's bfloat16 gradients of it take ten times as long on a CPU as the float32 ones.
    """
    inputs = [convert_floats(value, torch.float32) for value in (query, *others)]
    return _attend(*inputs, **convert_floats(options, torch.float32)).to(query.dtype)


def convert_floats(value: Any, dtype: torch.dtype) -> Any:
    """Return floating point tensors, also those of a mapping, in another number format."""
    if isinstance(value, dict):
        return {key: convert_floats(entry, dtype) for key, entry in value.items()}
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value
