"""Where the weights of a pipeline are: on the device, or beside it until they are needed."""

from typing import Any, Literal

import torch
from accelerate import cpu_offload

Memory = Literal["fast", "balanced", "least"]
NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae")
STORAGE = torch.float8_e4m3fn  # number format of the UNet's weights with 8 bits


def place_networks(pipeline: Any, device: str, memory: Memory) -> None:
    """Place the networks of a pipeline for a device.

    A CPU has no other memory, so that all weights stay in it.

    Args:
        pipeline: a `LatentPipeline` on the CPU.
        device: "cpu" or "cuda".
        memory: fast: all networks are on the device; balanced: each network is there while it is
            used; least: each layer is, the UNet's weights are stored in 8 bits, and images are
            decoded in tiles.
    """
    if memory == "fast" or device == "cpu":
        pipeline.to(device)
    elif memory == "balanced":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        store_in_8_bits(pipeline.unet)
        move_layers_on_demand(pipeline, torch.device(device))
        pipeline.tiled = True


def store_in_8_bits(network: Any) -> None:
    """Store the weights of a network in 8 bits; each layer computes in the former number format.

    Norms and embeddings keep their format. The weights are rounded, so images change slightly.
    """
    network.enable_layerwise_casting(storage_dtype=STORAGE, compute_dtype=network.dtype)


def move_layers_on_demand(pipeline: Any, device: torch.device) -> None:
    """Keep the weights in the memory of the CPU, and move those of a layer while it is used."""
    for name in NETWORKS:
        network = getattr(pipeline, name)
        if network is not None:
            cpu_offload(network, device, offload_buffers=len(network._parameters) > 0)
