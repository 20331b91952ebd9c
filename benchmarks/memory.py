#!/usr/bin/env python3
"""Count the bytes of weights that are on the device while SDXL generates an image.

usage: benchmarks/memory.py [--results FILE]

The networks have the sizes of SDXL and random weights in bfloat16. One image of 256 x 256 px is
generated in one step. The CPU stands in for the device: the layers of `pipeline.memory=least` are
moved as on a GPU, and their weights count while they are there. The result does not depend on the
processor. It needs 12 GB of memory.
rows: fast, least
columns: GB, the most weights that are on the device at once.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from counts import make_sdxl_networks
from diffusers import EulerDiscreteScheduler
from torch import nn
from transformers import CLIPTokenizer

from synthgen.layouts.base import Layout
from synthgen.pipelines.diffusion.offloading import (
    NETWORKS,
    move_layers_on_demand,
    store_in_8_bits,
)
from synthgen.pipelines.diffusion.sources import EMBEDDED
from synthgen.pipelines.mixture.pipeline import MixturePipeline

RESULTS = Path(__file__).parent / "results" / "memory.json"
LAYOUT = Layout(256, 256, np.array([[64, 64, 192, 192]], np.float32), ("dog",))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    pipeline = make_sdxl()
    rows = [{"memory": "fast", "GB": measure_peak(pipeline)}]
    store_in_8_bits(pipeline.unet)
    move_layers_on_demand(pipeline, torch.device("cpu"))
    rows.append({"memory": "least", "GB": measure_peak(pipeline)})
    print(json.dumps(rows))
    args.results.write_text(json.dumps(rows, indent=1) + "\n")


def make_sdxl() -> Any:
    """Return a pipeline with networks of the sizes of SDXL and random weights in bfloat16."""
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "synthgen-tiny" / "tokenizer")
    networks: dict[str, Any] = {}
    for part, network in make_sdxl_networks().items():
        networks[part] = fill(network)
    pipeline = MixturePipeline(
        **networks,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=EulerDiscreteScheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def fill(network: nn.Module) -> nn.Module:
    """Return a network of the meta device with random weights in bfloat16, on the CPU."""
    network = network.to(torch.bfloat16).to_empty(device="cpu").eval()
    for weight in network.parameters():
        weight.uniform_(-0.02, 0.02)
    for name, buffer in network.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return network


def measure_peak(pipeline: Any) -> float:
    """Return the most GB of weights that are on the device while an image is generated."""
    weights: list[tuple[nn.Module, str]] = []
    peak = 0

    def record() -> None:
        nonlocal peak
        present = [getattr(module, key) for module, key in weights if is_there(module, key)]
        peak = max(peak, sum(weight.nbytes for weight in present))

    with ExitStack() as stack:
        for name in NETWORKS:
            for module in getattr(pipeline, name).modules():
                weights += [(module, key) for key, _ in module.named_parameters(recurse=False)]
                if not list(module.children()):
                    stack.enter_context(call_before_forward(module, record))
        pipeline([LAYOUT], num_inference_steps=1, guidance_scale=1.0, output_type="np")
    return round(peak / 1e9, 3)


@contextmanager
def call_before_forward(module: nn.Module, function: Callable[[], None]) -> Iterator[None]:
    """Call a function inside a layer, where its weights are on the device.

    Torch's own hooks run before accelerate has moved them.
    """
    name = "_old_forward" if hasattr(module, "_old_forward") else "forward"
    original = getattr(module, name)

    def forward(*arguments: Any, **options: Any) -> Any:
        function()
        return original(*arguments, **options)

    setattr(module, name, forward)
    try:
        yield
    finally:
        setattr(module, name, original)


def is_there(module: nn.Module, name: str) -> bool:
    """Return whether a weight is on the device."""
    return bool(getattr(module, name).device.type != "meta")


if __name__ == "__main__":
    main()
