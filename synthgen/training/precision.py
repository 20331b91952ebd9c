"""Training in bfloat16 on a CPU, with float32 master weights.

The weights of a network are bfloat16 while it predicts and while gradients are computed. The
optimiser changes their float32 values, the masters, so that small steps are not lost. Torch's
autocast would convert the weights at every layer that uses them, which takes longer than it saves.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def compute_in_bfloat16(network: nn.Module) -> Iterator[None]:
    """Make the float32 weights of a network bfloat16 inside the `with` block.

    At its end they have their former values again, and their gradients are float32.
    """
    masters: list[tuple[nn.Parameter, torch.Tensor]] = []
    for weight in network.parameters():
        if weight.dtype == torch.float32:
            masters.append((weight, weight.data))
            weight.data = weight.data.to(torch.bfloat16)
    try:
        yield
    finally:
        for weight, master in masters:
            gradient = weight.grad
            weight.grad = None
            weight.data = master
            if gradient is not None:
                weight.grad = gradient.float()
