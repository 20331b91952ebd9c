"""A UNet that can be evaluated independently, and DDIM in float64."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """A stub UNet: a fixed random linear map of latents and prompt."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.a = torch.randn(channels, channels, generator=g) / channels
        self.b = torch.randn(channels, dim, generator=g) / dim
        self.dtype = torch.float32
        self.device = torch.device("cpu")

    def forward(self, x: Tensor, t: Any, encoder_hidden_states: Tensor) -> Any:
        a = self.a.to(x.dtype)
        b = self.b.to(x.dtype)
        out = (
            torch.einsum("ij,njhw->nihw", a, x)
            + (encoder_hidden_states.mean(1) @ b.T)[..., None, None]
        )
        return type("Output", (), {"sample": out})()

    def exact(self, x: np.ndarray, embedding: np.ndarray) -> np.ndarray:
        """Return the output in float64 for latents (C, h, w) and a text embedding (T, D)."""
        a = self.a.double().numpy()
        b = self.b.double().numpy()
        return np.einsum("ij,jhw->ihw", a, x) + (b @ embedding.mean(0))[:, None, None]


@contextmanager
def stub_unet(pipeline: Any) -> Iterator[Linear]:
    """Replace the UNet of a pipeline by a stub within the context."""
    real = pipeline.unet
    stub = Linear(real.config.in_channels, real.config.cross_attention_dim)
    stub.config = real.config
    pipeline.unet = stub
    try:
        yield stub
    finally:
        pipeline.unet = real


def embedding(pipeline: Any, text: str) -> np.ndarray:
    """Return the text embedding (T, D) in float64."""
    return pipeline.encode_prompts([text])[0].detach().double().numpy()


def ddim(
    z: np.ndarray,
    steps: int,
    noise: Callable[[np.ndarray, int, int], np.ndarray],
    after: Callable[[np.ndarray, int, float], np.ndarray],
    scheduler: Any,
    first: int = 0,
    last: int | None = None,
) -> np.ndarray:
    """Run DDIM (arXiv 2010.02502, eq. 12, eta = 0) with predictions of the noise.

    Args:
        noise: latents, step number and timestep to the predicted noise.
        after: latents, step number and the present signal rate (alpha bar) to latents.
    """
    alphas = scheduler.alphas_cumprod.double().numpy()
    scheduler.set_timesteps(steps)
    times = [int(t) for t in scheduler.timesteps]
    for i in range(first, steps if last is None else last):
        a = alphas[times[i]]
        previous = times[i] - 1000 // steps
        b = alphas[previous] if previous >= 0 else float(scheduler.final_alpha_cumprod)
        eps = noise(z, i, times[i])
        clean = (z - np.sqrt(1 - a) * eps) / np.sqrt(a)
        if scheduler.config.clip_sample:
            clean = np.clip(clean, -1, 1)
        z = np.sqrt(b) * clean + np.sqrt(1 - b) * eps
        z = after(z, i, float(b))
    return z
