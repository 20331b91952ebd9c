#!/usr/bin/env python3
"""Measure the speed of the pipelines, each compared with another way to compute the same.

usage: benchmarks/pipelines.py [--rows …] [--repeats 3] [--steps 2] [--json]
Each row times two functions alternately, several times, and prints the medians, their ratio, and
the floating-point operations of both.
rows:
  mixture       100 boxes, batch 4, with the recipe's settings, against one UNet call of both
                branches for each region, as in the published code; at least five steps, because
                the recipe guides three of five
  mixture, all guided   the same with guidance everywhere and at every step, which shows the effect
                of the batched UNet calls alone
  regional, n   100 boxes with n distinct prompts, against text-to-image of the same canvas
  grounded      100 boxes in grounded windows, against text-to-image of the same canvas
  job           images/s of a whole job with one worker, against the pipeline alone on the same
                batches
  flops         FLOP/s of the compiled UNet against a large bfloat16 matrix product; needs a GPU
On a CPU the pipelines use the embedded checkpoint. On a GPU they use a UNet of the shape of Stable
Diffusion 1.5 with random weights, because the speed does not depend on the weights. Rows that need
a GPU are skipped without one.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from diffusers import UNet2DConditionModel
from measure import sample_scenes
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from synthgen.config import load_job
from synthgen.engine.generation import run
from synthgen.engine.worker import sample_scene
from synthgen.layouts.base import Layout
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion.mixture import Conditions, Mixture, Predict, Region, select
from synthgen.pipelines.diffusion.pipeline import LatentPipeline
from synthgen.pipelines.diffusion.sources import find_model
from synthgen.pipelines.grounded.pipeline import GroundedPipeline
from synthgen.pipelines.mixture.pipeline import MixturePipeline
from synthgen.pipelines.regional_attention.pipeline import RegionalAttentionPipeline
from synthgen.randomness import Stream, seed_sequence

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
DTYPE = torch.float16 if GPU else torch.float32
BATCH = 4
PROMPT = "a field of grass"
Function = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", default=[*ROWS], choices=[*ROWS])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="denoising steps of each timed call")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    for name in args.rows:
        if name != "flops" or GPU:
            rows[name] = ROWS[name](args.steps, args.repeats)
    print(json.dumps(rows, indent=1) if args.json else format_table(rows))


def compare(
    ours: Function, other: Function, repeats: int, count: Callable[[Any], int] | None = None
) -> dict[str, Any]:
    """Return the median seconds of two functions, their ratio, and the operations of both.

    Args:
        count: returns the floating-point operations of a function that has been timed; default:
            `count_flops`, which runs the function before the timing. This warms it up, too.
    """
    flops = []
    if count is None:
        flops = [count_flops(ours), count_flops(other)]
    seconds = []
    other_seconds = []
    for _ in range(repeats):
        seconds.append(measure_seconds(ours))
        other_seconds.append(measure_seconds(other))
    if count is not None:
        flops = [count(ours), count(other)]
    return {
        "seconds": median(seconds),
        "other": median(other_seconds),
        "other / ours": median(other_seconds) / median(seconds),
        "TFLOP": flops[0] / 1e12,
        "other TFLOP": flops[1] / 1e12,
    }


def measure_seconds(function: Function) -> float:
    """Return the seconds of one call, until the GPU has finished."""
    start = time.perf_counter()
    function()
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def count_flops(function: Function) -> int:
    """Return the floating-point operations of convolutions, matrix products and attention."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def load(kind: type[LatentPipeline]) -> Any:
    """Return the pipeline of the embedded checkpoint, on a GPU with a larger UNet.

    The larger UNet has the shape of Stable Diffusion 1.5 and random weights.
    """
    pipeline: Any = kind.from_pretrained(
        find_model("synthgen-tiny"), dtype=DTYPE, use_safetensors=True
    )
    if GPU:
        torch.manual_seed(0)
        gated = {"attention_type": "gated"} if kind is GroundedPipeline else {}
        width = pipeline.text_encoder.config.hidden_size
        channels = pipeline.vae.config.latent_channels
        pipeline.unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=channels,
            out_channels=channels,
            cross_attention_dim=width,
            **gated,
        )
        pipeline.multiple = 8
    pipeline.to(DEVICE, DTYPE)
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample_layouts(count: int = 1, prompts: int = 3) -> list[Layout]:
    """Return layouts of 100 dogs on 1024 x 1024 px with this number of distinct prompts."""
    layouts = [scene.layout for scene in sample_scenes(100, count, 5)]
    if prompts == 3:  # the scenes have three
        return layouts
    phrases = tuple(f"a dog {number % prompts}" for number in range(100))
    return [layout.with_phrases(phrases) for layout in layouts]


class RegionLoop(Mixture):
    """A mixture with one UNet call of both branches for each region, as in the published code."""

    def __init__(
        self, regions: Sequence[Region], conditions: Conditions, shape: Sequence[int], cells: int
    ) -> None:
        super().__init__(regions, conditions, shape, cells)
        self.regions = regions
        self.all_conditions = conditions

    def __call__(self, z: Tensor, predict: Predict) -> Tensor:
        merged = torch.zeros(self.shape, device=z.device)
        norm = torch.zeros(self.shape[0], 1, *self.shape[2:], device=z.device)
        for region in self.regions:
            x0, y0, x1, y1 = region.window
            crop = z[region.image, :, y0:y1, x0:x1]
            weight = region.weight.to(z.device)
            rows = torch.tensor([region.prompt, region.negative], device=z.device)
            conditions = select(self.all_conditions, rows)
            cond, uncond = predict(torch.stack([crop, crop]), conditions).float()
            guided = uncond + region.guidance * (cond - uncond)
            merged[region.image, :, y0:y1, x0:x1] += weight * guided
            norm[region.image, :, y0:y1, x0:x1] += weight
        return merged / norm.clamp(min=1e-12)


def measure_mixture(steps: int, repeats: int, guided: bool = False) -> dict[str, Any]:
    """Return the figures of the rows `mixture` and, if guided, `mixture, all guided`."""
    pipeline = load(MixturePipeline)
    batch = sample_layouts(BATCH)
    recipe: Any = load_job("100dogs").pipeline
    keys = ["guidance_scale", "context", "background_window"]
    keys += ["background_overlap", "background_weight"]
    if not guided:
        keys += ["background_guidance_scale", "guidance_interval"]
    options: dict[str, Any] = {key: getattr(recipe, key) for key in keys}
    options["num_inference_steps"] = steps if guided else max(5, steps)

    def ours() -> Tensor:
        noise = make_generators(BATCH)
        return pipeline(batch, PROMPT, generator=noise, output_type="latent", **options)

    def other() -> Tensor:
        with patch("synthgen.pipelines.mixture.pipeline.Mixture", RegionLoop):
            return ours()

    first = RecordedFunction(ours, pipeline.unet)
    second = RecordedFunction(other, pipeline.unet)
    figures = compare(first, second, repeats, RecordedFunction.count_flops)
    a = first.result.float()
    b = second.result.float()
    return {**figures, "difference": float((a - b).norm() / b.norm())}


class RecordedFunction:
    """A function whose last call is recorded.

    Attributes:
        result: what the function returned.
        windows: the number of windows of each size (height, width) that the UNet processed.
    """

    def __init__(self, function: Function, unet: Any) -> None:
        self.function = function
        self.unet = unet
        self.result: Any = None
        self.windows: Counter[tuple[int, ...]] = Counter()

    def __call__(self) -> None:
        self.windows.clear()
        hook = self.unet.register_forward_pre_hook(self.record_windows)
        self.result = self.function()
        hook.remove()

    def record_windows(self, unet: Any, inputs: tuple[Tensor, ...]) -> None:
        latents = inputs[0]
        self.windows[tuple(latents.shape[2:])] += len(latents)

    def count_flops(self) -> int:
        """Return the operations of all windows of the last call, counted for one of each size."""
        unet = self.unet
        text = torch.zeros(1, 32, unet.config.cross_attention_dim, device=DEVICE, dtype=DTYPE)
        total = 0
        for (height, width), number in self.windows.items():
            shape = (1, unet.config.in_channels, height, width)
            z = torch.zeros(shape, device=DEVICE, dtype=DTYPE)
            total += number * count_flops(partial(unet, z, 500, encoder_hidden_states=text))
        return total


def make_generators(count: int) -> list[torch.Generator]:
    """Return the generators of the initial noise of images."""
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def make_text_to_image(pipeline: Any, steps: int, guidance: float) -> Function:
    """Return text-to-image of the whole canvas, with one pass a step."""
    layout = sample_layouts()[0]

    @torch.no_grad()
    def generate() -> Tensor:
        conditions = pipeline.text_conditions([PROMPT, ""], guidance)
        z = pipeline.noise([layout], make_generators(1))
        regions = pipeline.cover(0, (layout.width, layout.height), (0, 1), guidance)
        return pipeline.denoise(z, [Mixture(regions, conditions, z.shape, 10**9)] * steps)

    return generate


def measure_regional(steps: int, repeats: int, prompts: int) -> dict[str, Any]:
    """Return the figures of the row `regional` with a number of distinct prompts."""
    pipeline = load(RegionalAttentionPipeline)
    batch = sample_layouts(1, prompts)
    options = {"num_inference_steps": steps, "guidance_scale": 3.5, "region_prompt": "{phrase}"}

    def ours() -> Tensor:
        noise = make_generators(1)
        return pipeline(batch, PROMPT, generator=noise, output_type="latent", **options)

    return compare(ours, make_text_to_image(pipeline, steps, 3.5), repeats)


def measure_grounded(steps: int, repeats: int) -> dict[str, Any]:
    """Return the figures of the row `grounded`."""
    pipeline = load(GroundedPipeline)
    batch = sample_layouts(1)
    recipe: Any = load_job("100dogs", ["pipeline=grounded-tiny"]).pipeline
    options = {
        "num_inference_steps": steps,
        "guidance_scale": 3.5,
        "stages": (1.0, 0.0),
        "overlap": recipe.overlap,
        "window": None if GPU else recipe.window,
        "max_boxes": 30 if GPU else recipe.max_boxes,
    }

    def ours() -> Tensor:
        noise = make_generators(1)
        return pipeline(batch, PROMPT, generator=noise, output_type="latent", **options)

    return compare(ours, make_text_to_image(pipeline, steps, 3.5), repeats)


def measure_job(steps: int, repeats: int) -> dict[str, Any]:
    """Return the figures of the row `job`.

    One function runs a whole job, from layouts to committed shards, and the other one only the
    pipeline. Both load the checkpoint.
    """
    overrides = [
        "images=16",
        "workers=0",
        "layout.canvas=[512, 512]",
        "layout.objects={dog: 25}",
        f"pipeline.steps={steps}",
        f"threads={torch.get_num_threads()}",
        "output.shard_size=8",
    ]
    job = load_job("100dogs", overrides)

    def run_job() -> None:
        with TemporaryDirectory() as folder:
            out = job.output.model_copy(update={"path": str(Path(folder) / "out")})
            run(job.model_copy(update={"output": out}))

    def run_pipeline() -> None:
        dtype = job.pipeline.choose_dtype(DEVICE)
        numerics = Numerics(job.batch_size, job.first_chunk, job.threads, DEVICE, dtype)
        painter = job.pipeline.load(job.scene, numerics)
        for start in range(0, job.images, job.batch_size):
            indices = range(start, min(job.images, start + job.batch_size))
            scenes = [sample_scene(job, index) for index in indices]
            painter(scenes, [seed_sequence(job.seed, index, Stream.NOISE) for index in indices])

    figures = compare(run_job, run_pipeline, repeats)
    return {key: value for key, value in figures.items() if "TFLOP" not in key}


def measure_flops(steps: int, repeats: int) -> dict[str, Any]:
    """Return the figures of the row `flops`.

    The compiled UNet of the GPU rows processes 64 windows of 64 x 64 latent cells, and the matrices
    of the product are 8192 x 8192.
    """
    unet = load(MixturePipeline).unet.to(torch.bfloat16)
    unet.compile()
    options: Any = {"device": DEVICE, "dtype": torch.bfloat16}
    z = torch.randn(64, unet.config.in_channels, 64, 64, **options)
    z = z.to(memory_format=torch.channels_last)
    text = torch.randn(64, 77, unet.config.cross_attention_dim, **options)
    matrix = torch.randn(8192, 8192, **options)

    @torch.no_grad()
    def call_unet() -> None:
        unet(z, 500, encoder_hidden_states=text)

    def multiply() -> None:
        for _ in range(16):
            torch.mm(matrix, matrix)

    unet_seconds = median(measure_seconds(call_unet) for _ in range(repeats + 2))
    product_seconds = median(measure_seconds(multiply) for _ in range(repeats + 2))
    with patch.object(unet, "_compiled_call_impl", None):
        flops = count_flops(call_unet)
    unet_rate = flops / unet_seconds
    product_rate = 16 * 2 * 8192**3 / product_seconds
    return {
        "TFLOP/s": unet_rate / 1e12,
        "product TFLOP/s": product_rate / 1e12,
        "share": unet_rate / product_rate,
    }


ROWS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "mixture": measure_mixture,
    "mixture, all guided": partial(measure_mixture, guided=True),
    "regional, 100 prompts": partial(measure_regional, prompts=100),
    "regional, 1 prompt": partial(measure_regional, prompts=1),
    "grounded": measure_grounded,
    "job": measure_job,
    "flops": measure_flops,
}


def format_table(rows: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table with the figures of a row in one cell."""
    lines = ["| row | figures |", "| --- | --- |"]
    for name, figures in rows.items():
        cell = ", ".join(f"{key} {value:.3g}" for key, value in figures.items())
        lines.append(f"| {name} | {cell} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
