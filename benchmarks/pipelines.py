#!/usr/bin/env python3
"""Is it fast? Each row times two things in turn, several times, and prints the medians and their ratio.

usage: benchmarks/pipelines.py [--rows …] [--repeats 3] [--steps 2] [--json]
rows (each with the floating-point operations of its two sides):
  mixture       100 boxes, batch 4, as the recipe has it, against one UNet call of both branches for each region, as in the
                published code; of five steps at least, for the recipe guides three of five
  mixture, all guided   the same with guidance everywhere and at every step: what going through the UNet together brings alone
  regional, n   100 boxes with n distinct prompts, against plain text-to-image of the same canvas
  grounded      100 boxes in grounded windows, against plain text-to-image of the same canvas
  job           images/s of a whole job with one worker, against the bare pipeline on the same batches
  flops         FLOP/s of the compiled UNet against a large bfloat16 matrix product (GPU)
On a CPU the embedded checkpoint is used; on a GPU a UNet of Stable Diffusion 1.5's shape with random weights: speed does not
depend on the weights. Rows that need a GPU are left out without one.
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
from measure import draw_scenes
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from synthgen.config import load_job
from synthgen.engine.driver import run
from synthgen.engine.worker import draw_scene
from synthgen.layouts.base import Layout
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion.mixture import Conditions, Mixture, Predict, Region, select
from synthgen.pipelines.diffusion.models import find_model
from synthgen.pipelines.diffusion.pipeline import LatentPipeline
from synthgen.pipelines.grounded.pipeline import GroundedPipeline
from synthgen.pipelines.mixture.pipeline import MixturePipeline
from synthgen.pipelines.regional_attention.pipeline import RegionalAttentionPipeline
from synthgen.randomness import Stream, seed_sequence

GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.float16) if GPU else ("cpu", torch.float32)
BATCH = 4
Side = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", default=[*ROWS], choices=[*ROWS])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="denoising steps of each timed call")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for name in args.rows:
        if name != "flops" or GPU:
            found[name] = ROWS[name](args.steps, args.repeats)
    print(json.dumps(found, indent=1) if args.json else table(found))


def compare(
    ours: Side, other: Side, repeats: int, flops: Callable[[Any], int] | None = None
) -> dict[str, Any]:
    """Median seconds of both sides, run in turn, the ratio other / ours, and what each computes.

    Args:
        flops: what a side computes, if `count`, which runs the side, would take too long; asked for after the timing.
    """
    sides, seconds = (ours, other), ([], [])  # type: tuple[Side, Side], tuple[list[float], list[float]]
    counted = [count(side) for side in sides] if flops is None else []  # warms up, too
    for _ in range(repeats):
        for side, took in zip(sides, seconds, strict=True):
            took.append(timed(side))
    counted = counted or [flops(side) for side in sides if flops is not None]
    a, b = (median(took) for took in seconds)
    return {
        "seconds": a,
        "other": b,
        "other / ours": b / a,
        "TFLOP": counted[0] / 1e12,
        "other TFLOP": counted[1] / 1e12,
    }


def timed(side: Side) -> float:
    began = time.perf_counter()
    side()
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def count(side: Side) -> int:
    """Floating-point operations of convolutions, matrix products and attention."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        side()
    return counter.get_total_flops()


def load(kind: type[LatentPipeline]) -> Any:
    """The pipeline on the embedded checkpoint; on a GPU with a UNet of Stable Diffusion 1.5's shape."""
    pipeline: Any = kind.from_pretrained(
        find_model("synthgen-tiny"), dtype=DTYPE, use_safetensors=True
    )
    if GPU:
        torch.manual_seed(0)
        gated = {"attention_type": "gated"} if kind is GroundedPipeline else {}
        words = pipeline.text_encoder.config.hidden_size
        channels = pipeline.vae.config.latent_channels
        pipeline.unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=channels,
            out_channels=channels,
            cross_attention_dim=words,
            **gated,
        )
        pipeline.multiple = 8
    pipeline.to(DEVICE, DTYPE)
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def layouts(n: int = 1, prompts: int = 3) -> list[Layout]:
    """Layouts of 100 dogs on 1024 x 1024, with so many distinct prompts."""
    made = [scene.layout for scene in draw_scenes(100, n, 5)]
    return [
        m.with_phrases(tuple(f"a dog {i % prompts}" for i in range(100))) if prompts != 3 else m
        for m in made
    ]


class RegionLoop(Mixture):
    """One UNet call a region, both branches in it: what the published code does."""

    def __init__(
        self, regions: Sequence[Region], conditions: Conditions, shape: Sequence[int], cells: int
    ) -> None:
        super().__init__(regions, conditions, shape, cells)
        self.regions, self.all_conditions = regions, conditions

    def __call__(self, z: Tensor, predict: Predict) -> Tensor:
        merged, norm = (
            torch.zeros(self.shape, device=z.device),
            torch.zeros(self.shape[0], 1, *self.shape[2:], device=z.device),
        )
        for r in self.regions:
            x0, y0, x1, y1 = r.window
            crop, weight = z[r.image, :, y0:y1, x0:x1], r.weight.to(z.device)
            rows = torch.tensor([r.prompt, r.negative], device=z.device)
            cond, uncond = predict(
                torch.stack([crop, crop]), select(self.all_conditions, rows)
            ).float()
            merged[r.image, :, y0:y1, x0:x1] += weight * (uncond + r.guidance * (cond - uncond))
            norm[r.image, :, y0:y1, x0:x1] += weight
        return merged / norm.clamp(min=1e-12)


def mixture(steps: int, repeats: int, guided: bool = False) -> dict[str, Any]:
    pipeline, batch = load(MixturePipeline), layouts(BATCH)
    recipe: Any = load_job("100dogs").pipeline
    keys = (
        "guidance_scale",
        "context",
        "background_window",
        "background_overlap",
        "background_weight",
    )
    options: dict[str, Any] = {key: getattr(recipe, key) for key in keys} | {
        "num_inference_steps": steps
    }
    if not guided:
        options |= {
            key: getattr(recipe, key) for key in ("background_guidance_scale", "guidance_interval")
        }
        options["num_inference_steps"] = max(5, steps)

    def ours() -> Tensor:
        return pipeline(
            batch, "a field of grass", generator=noise(BATCH), output_type="latent", **options
        )

    def other() -> Tensor:
        with patch("synthgen.pipelines.mixture.pipeline.Mixture", RegionLoop):
            return ours()

    first, second = Recorded(ours, pipeline.unet), Recorded(other, pipeline.unet)
    figures = compare(first, second, repeats, flops=Recorded.flops)
    a, b = first.result.float(), second.result.float()
    return {**figures, "difference": float((a - b).norm() / b.norm())}


class Recorded:
    """A side whose result is kept, and the windows that it sends through a UNet."""

    def __init__(self, side: Side, unet: Any) -> None:
        self.side, self.unet = side, unet
        self.result: Any = None
        self.windows: Counter[tuple[int, ...]] = Counter()

    def __call__(self) -> None:
        self.windows.clear()
        hook = self.unet.register_forward_pre_hook(lambda module, inputs: self.note(inputs[0]))
        self.result = self.side()
        hook.remove()

    def note(self, latents: Tensor) -> None:
        self.windows[tuple(latents.shape[2:])] += len(latents)

    def flops(self) -> int:
        """Operations of all windows of the last run: those of one of each size, times how many there were."""
        words = torch.zeros(1, 32, self.unet.config.cross_attention_dim, device=DEVICE, dtype=DTYPE)
        total = 0
        for (h, w), times in self.windows.items():
            x = torch.zeros(1, self.unet.config.in_channels, h, w, device=DEVICE, dtype=DTYPE)
            total += times * count(partial(self.unet, x, 500, encoder_hidden_states=words))
        return total


def noise(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(n)]


def plain(pipeline: Any, steps: int, guidance: float) -> Side:
    """Text-to-image of the whole canvas in one pass a step."""
    layout = layouts()[0]

    @torch.no_grad()
    def paint() -> Tensor:
        words = pipeline.text_conditions(["a field of grass", ""], guidance)
        z = pipeline.noise([layout], noise(1))
        regions = pipeline.cover(0, (layout.width, layout.height), (0, 1), guidance)
        return pipeline.denoise(z, [Mixture(regions, words, z.shape, 10**9)] * steps)

    return paint


def regional(steps: int, repeats: int, prompts: int) -> dict[str, Any]:
    pipeline, batch = load(RegionalAttentionPipeline), layouts(1, prompts)
    options = {"num_inference_steps": steps, "guidance_scale": 3.5, "region_prompt": "{phrase}"}

    def ours() -> Tensor:
        return pipeline(
            batch, "a field of grass", generator=noise(1), output_type="latent", **options
        )

    return compare(ours, plain(pipeline, steps, 3.5), repeats)


def grounded(steps: int, repeats: int) -> dict[str, Any]:
    pipeline, batch = load(GroundedPipeline), layouts(1)
    recipe: Any = load_job("100dogs", ["pipeline=grounded-tiny"]).pipeline
    options = {
        "num_inference_steps": steps,
        "guidance_scale": 3.5,
        "stages": (1.0, 0.0),
        "overlap": recipe.overlap,
    }
    options |= (
        {"window": None, "max_boxes": 30}
        if GPU
        else {"window": recipe.window, "max_boxes": recipe.max_boxes}
    )

    def ours() -> Tensor:
        return pipeline(
            batch, "a field of grass", generator=noise(1), output_type="latent", **options
        )

    return compare(ours, plain(pipeline, steps, 3.5), repeats)


def job(steps: int, repeats: int) -> dict[str, Any]:
    """A whole job, layouts to committed shards, and the bare pipeline: both load the checkpoint."""
    changes = [
        "images=16",
        "workers=0",
        "layout.canvas=[512, 512]",
        "layout.objects={dog: 25}",
        f"pipeline.steps={steps}",
    ]
    made = load_job(
        "100dogs", [*changes, f"threads={torch.get_num_threads()}", "output.shard_size=8"]
    )

    def whole() -> None:
        with TemporaryDirectory() as folder:
            out = made.output.model_copy(update={"path": str(Path(folder) / "out")})
            run(made.model_copy(update={"output": out}))

    def bare() -> None:
        painter = made.pipeline.load(
            made.scene, Numerics(made.batch_size, made.chunk, made.threads, DEVICE)
        )
        for start in range(0, made.images, made.batch_size):
            indices = range(start, min(made.images, start + made.batch_size))
            painter(
                [draw_scene(made, i) for i in indices],
                [seed_sequence(made.seed, i, Stream.NOISE) for i in indices],
            )

    figures = compare(whole, bare, repeats)
    return {key: value for key, value in figures.items() if "TFLOP" not in key}


def flops(steps: int, repeats: int) -> dict[str, Any]:
    """The compiled UNet of the GPU rows on 64 windows of 64 x 64 cells, and an 8192-sided bfloat16 product."""
    unet = load(MixturePipeline).unet.to(torch.bfloat16)
    unet.compile()
    x = torch.randn(64, unet.config.in_channels, 64, 64, device=DEVICE, dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last)
    words = torch.randn(
        64, 77, unet.config.cross_attention_dim, device=DEVICE, dtype=torch.bfloat16
    )
    square = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)

    @torch.no_grad()
    def ours() -> None:
        unet(x, 500, encoder_hidden_states=words)

    def product() -> None:
        for _ in range(16):
            torch.mm(square, square)

    seconds = [median(timed(side) for _ in range(repeats + 2)) for side in (ours, product)]
    with patch.object(unet, "_compiled_call_impl", None):
        done = count(ours)
    rates = [done / seconds[0], 16 * 2 * 8192**3 / seconds[1]]
    return {
        "TFLOP/s": rates[0] / 1e12,
        "product TFLOP/s": rates[1] / 1e12,
        "share": rates[0] / rates[1],
    }


ROWS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "mixture": mixture,
    "mixture, all guided": lambda steps, repeats: mixture(steps, repeats, guided=True),
    "regional, 100 prompts": lambda steps, repeats: regional(steps, repeats, 100),
    "regional, 1 prompt": lambda steps, repeats: regional(steps, repeats, 1),
    "grounded": grounded,
    "job": job,
    "flops": flops,
}


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| row | figures |", "| --- | --- |"]
    for name, values in rows.items():
        lines.append(
            f"| {name} | " + ", ".join(f"{key} {value:.3g}" for key, value in values.items()) + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
