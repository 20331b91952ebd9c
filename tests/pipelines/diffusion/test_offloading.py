"""Weights that are on the device only while they are used. The CPU stands in for the device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthgen.config import ConfigError, Job
from synthgen.layouts.base import Layout
from synthgen.pipelines.diffusion.offloading import (
    NETWORKS,
    move_layers_on_demand,
    place_networks,
    store_in_8_bits,
)
from synthgen.pipelines.mixture.pipeline import MixturePipeline

LAYOUT = Layout(32, 32, np.array([[4, 4, 20, 24]], np.float32), ("dog",))


def load(checkpoint: Path) -> Any:
    return MixturePipeline.from_pretrained(
        checkpoint, dtype=torch.bfloat16, use_safetensors=True
    ).to("cpu")


def generate(pipeline: Any) -> np.ndarray:
    """Return the levels (H, W, 3) of an image in float64."""
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    images = pipeline([LAYOUT], "sand", num_inference_steps=2, generator=noise, output_type="np")
    levels: np.ndarray = images[0].astype(np.float64)
    return levels


def count_bytes(pipeline: Any) -> int:
    """Return the bytes of the weights that are on the device now."""
    total = 0
    for name in NETWORKS:
        network = getattr(pipeline, name)
        for weight in () if network is None else network.parameters():
            if weight.device.type != "meta":
                total += weight.nbytes
    return total


def call_before_forward(module: Any, function: Callable[..., None]) -> None:
    """Call a function inside a layer; torch's own hooks run before its weights are moved."""
    name = "_old_forward" if hasattr(module, "_old_forward") else "forward"
    original = getattr(module, name)

    def forward(*arguments: Any, **options: Any) -> Any:
        function()
        return original(*arguments, **options)

    setattr(module, name, forward)


def measure_peak(pipeline: Any) -> int:
    """Return the most bytes of weights that are on the device while an image is generated."""
    peak = 0

    def record(*given: Any) -> None:
        nonlocal peak
        peak = max(peak, count_bytes(pipeline))

    for name in NETWORKS:
        network = getattr(pipeline, name)
        for module in () if network is None else network.modules():
            if not list(module.children()):
                call_before_forward(module, record)
    generate(pipeline)
    return peak


@torch.no_grad()
def test_layers_that_are_moved_on_demand_need_little_memory(checkpoint: Path) -> None:
    resident = load(checkpoint)
    expected = generate(resident)
    pipeline = load(checkpoint)
    move_layers_on_demand(pipeline, torch.device("cpu"))
    np.testing.assert_array_equal(generate(pipeline), expected)
    assert count_bytes(pipeline) == 0
    assert 0 < measure_peak(pipeline) <= 0.4 * measure_peak(resident)


@torch.no_grad()
def test_weights_in_8_bits_need_half_the_memory_and_change_images_little(checkpoint: Path) -> None:
    resident = load(checkpoint)
    expected = generate(resident)
    pipeline = load(checkpoint)
    before = sum(weight.nbytes for weight in pipeline.unet.parameters())
    store_in_8_bits(pipeline.unet)
    after = sum(weight.nbytes for weight in pipeline.unet.parameters())
    assert after < 0.6 * before
    changed = np.abs(generate(pipeline) - expected)
    assert 0 < changed.mean() < 8
    move_layers_on_demand(pipeline, torch.device("cpu"))
    np.testing.assert_array_equal(np.abs(generate(pipeline) - expected), changed)


def test_a_cpu_keeps_all_weights(checkpoint: Path) -> None:
    for memory in ("fast", "balanced", "least"):
        pipeline = load(checkpoint)
        place_networks(pipeline, "cpu", memory)
        assert pipeline.unet.dtype == torch.bfloat16
        assert count_bytes(pipeline) > 0
        assert not pipeline.tiled


def test_a_compiled_network_has_to_stay_on_the_device(
    checkpoint: Path, make_job: Callable[..., Job]
) -> None:
    recipe = f"method: mixture, model: {checkpoint}, compile: true, memory: balanced"
    with pytest.raises(ConfigError, match=r"compile: .*\(memory: balanced\) is not compiled"):
        make_job(f"pipeline={{{recipe}}}")
