"""The canvas pipeline, compared with an independent evaluation in float64."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from synthgen import cli
from synthgen.config import ConfigError, load_job
from synthgen.pipelines.base import IncompatibleLayoutError
from synthgen.pipelines.canvas import ImageRegion, RerollRegion, TextRegion
from synthgen.pipelines.canvas.pipeline import CanvasPipeline, count_reference_steps
from tests.pipelines.stub import Linear, ddim, embedding, stub_unet

SIZE = 48  # px, 24 cells


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> CanvasPipeline:
    loaded = CanvasPipeline.from_pretrained(checkpoint, use_safetensors=True)
    loaded.scheduler = DDIMScheduler(clip_sample=False)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))


def box(row_init: int, row_end: int, col_init: int, col_end: int) -> dict[str, int]:
    return {"row_init": row_init, "row_end": row_end, "col_init": col_init, "col_end": col_end}


def latents(pipeline: CanvasPipeline, regions: Any, **options: Any) -> Tensor:
    got = pipeline(
        SIZE,
        SIZE,
        regions,
        output_type="latent",
        **{"seed": 0, "num_inference_steps": 3, **options},
    )
    assert isinstance(got, Tensor)
    return got


def random_regions(rng: np.random.Generator, n: int) -> list[TextRegion]:
    regions = []
    for _ in range(n):
        h, w = (int(v) * 2 for v in rng.integers(4, 12, 2))
        y, x = (int(rng.integers((SIZE - side) // 2 + 1)) * 2 for side in (h, w))
        regions.append(
            TextRegion(
                **box(y, y + h, x, x + w),
                prompt=str(rng.choice(["a dog", "grass", "sand", "a white cat"])),
                negative_prompt=None if rng.random() < 0.5 else "gravel",
                guidance_scale=float(rng.choice([0.0, 1.0, 2.0, 7.5])),
                mask_type=str(rng.choice(["gaussian", "constant", "quartic"])),
                mask_weight=float(rng.uniform(0.1, 2)),
                noise_eps=float(rng.choice([0.0, 0.3])),
                region_seed=int(rng.integers(100)),
            )
        )
    return regions


def axis(kind: str, n: int) -> np.ndarray:
    if kind == "gaussian":
        x = np.arange(n)
        return np.exp(-((x - (n - 1) / 2) ** 2) / (n * n * 2 * 0.01)) / np.sqrt(2 * np.pi * 0.01)
    return (
        15 / 16 * (1 - np.linspace(-0.995, 0.995, n) ** 2) ** 2 if kind == "quartic" else np.ones(n)
    )


def exact(
    pipeline: CanvasPipeline, stub: Linear, regions: list[Any], steps: int, rerolls: Any = ()
) -> np.ndarray:
    """Return the result of the published algorithm in float64 with the stub."""
    cells = SIZE // pipeline.factor
    z = torch.randn((3, cells, cells), generator=torch.Generator().manual_seed(0)).double().numpy()

    def part(r: Any) -> tuple[slice, slice]:
        return slice(r.row_init // 2, r.row_end // 2), slice(r.col_init // 2, r.col_end // 2)

    def own(r: Any) -> np.ndarray:
        ys, xs = part(r)
        shape = (3, ys.stop - ys.start, xs.stop - xs.start)
        return (
            torch.randn(shape, generator=torch.Generator().manual_seed(r.region_seed))
            .double()
            .numpy()
        )

    for r in rerolls:
        if r.reroll_mode == "reset":
            z[:, *part(r)] = own(r)
    for r in [*regions, *(r for r in rerolls if r.reroll_mode == "epsilon")]:
        if r.noise_eps > 0:
            z[:, *part(r)] += r.noise_eps * own(r)
    initial = z.copy()

    def noise(z: np.ndarray, i: int, t: int) -> np.ndarray:
        total = np.zeros_like(z)
        norm = np.zeros(z.shape[1:])
        for r in (r for r in regions if isinstance(r, TextRegion)):
            crop = z[:, *part(r)]
            negative = "soil" if r.negative_prompt is None else r.negative_prompt
            cond, uncond = (stub.exact(crop, embedding(pipeline, p)) for p in (r.prompt, negative))
            weight = r.mask_weight * np.outer(*(axis(r.mask_type, n) for n in crop.shape[1:]))
            total[:, *part(r)] += weight * (uncond + r.guidance_scale * (cond - uncond))
            norm[part(r)] += weight
        return np.divide(total, norm, out=np.zeros_like(total), where=norm > 0)

    def after(z: np.ndarray, i: int, alpha: float) -> np.ndarray:
        for r in (r for r in regions if isinstance(r, ImageRegion)):
            if i < min(steps - int(steps * (1 - r.strength) + 1e-9), steps - 1):
                size = (r.col_end - r.col_init, r.row_end - r.row_init)
                assert isinstance(r.reference_image, Image.Image)
                pixels = np.array(r.reference_image.resize(size, Image.Resampling.LANCZOS))
                x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
                with torch.no_grad():
                    latent = (
                        pipeline.vae.encode(x).latent_dist.mode()[0].double().numpy()
                        * pipeline.vae.config.scaling_factor
                    )
                z[:, *part(r)] = np.sqrt(alpha) * latent + np.sqrt(1 - alpha) * initial[:, *part(r)]
        return z

    return ddim(z, steps, noise, after, pipeline.scheduler)


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_the_formulas_in_float64(pipeline: CanvasPipeline, seed: int) -> None:
    rng = np.random.default_rng(seed)
    regions: list[Any] = random_regions(rng, 6)
    regions.append(
        ImageRegion(
            **box(8, 40, 10, 42),
            reference_image=picture(),
            strength=float(rng.choice([0.3, 0.8, 1.0])),
        )
    )
    rerolls = [
        RerollRegion(**box(0, 16, 0, 48), region_seed=5),
        RerollRegion(**box(8, 48, 8, 48), region_seed=6, reroll_mode="epsilon", noise_eps=0.4),
    ]
    with stub_unet(pipeline) as stub:
        got = (
            latents(
                pipeline,
                regions,
                reroll_regions=rerolls,
                num_inference_steps=5,
                negative_prompt="soil",
            )[0]
            .double()
            .numpy()
        )
        wanted = exact(pipeline, stub, regions, 5, rerolls)
    assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 1e-5


def test_a_canvas_does_not_depend_on_its_batch(pipeline: CanvasPipeline) -> None:
    rng = np.random.default_rng(9)
    each: list[Any] = [
        [*random_regions(rng, 3), TextRegion(**box(0, 48, 0, 48), prompt="grass")] for _ in range(4)
    ]
    each[2].append(ImageRegion(**box(8, 40, 10, 42), reference_image=picture(), strength=0.5))
    together = latents(pipeline, each, seed=[0, 1, 2, 3])
    for i in range(4):
        alone = latents(pipeline, each[i], seed=i)[0]
        assert (together[i] - alone).norm() / alone.norm() < 1e-4


@pytest.mark.parametrize(
    ("strength", "steps", "followed"),
    [(0.8, 50, 40), (0.0, 50, 0), (1.0, 50, 49), (0.5, 5, 3), (0.9, 10, 9)],
)
def test_strength_is_the_share_of_the_steps_that_follow_the_reference(
    strength: float, steps: int, followed: int
) -> None:
    assert count_reference_steps(strength, steps) == followed


def test_a_region_without_a_seed_follows_the_generator(pipeline: CanvasPipeline) -> None:
    regions = [TextRegion(**box(0, 48, 0, 48), prompt="grass", noise_eps=0.5)]
    assert torch.equal(latents(pipeline, regions), latents(pipeline, regions))
    assert not torch.equal(latents(pipeline, regions), latents(pipeline, regions, seed=1))


def test_decode_steps_shows_the_canvas_after_each_step(pipeline: CanvasPipeline) -> None:
    regions = [TextRegion(**box(0, 48, 0, 48), prompt="grass")]
    images, decoded = pipeline(
        SIZE, SIZE, regions, num_inference_steps=3, seed=0, decode_steps=True, output_type="np"
    )
    assert [np.asarray(s).shape for s in decoded] == [(1, SIZE, SIZE, 3)] * 3
    np.testing.assert_array_equal(np.asarray(decoded[-1]), np.asarray(images))


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (
            box(0, 49, 0, 48),
            "regions: row_end 49 of number 0 must be a multiple of 2 and at most 48",
        ),
        (
            box(0, 48, 0, 50),
            "regions: col_end 50 of number 0 must be a multiple of 2 and at most 48",
        ),
        (box(1, 48, 0, 48), "regions: row_init 1 of number 0 must be a multiple of 2"),
    ],
)
def test_regions_must_lie_on_the_canvas_and_its_cells(
    pipeline: CanvasPipeline, region: dict[str, int], message: str
) -> None:
    with pytest.raises(IncompatibleLayoutError, match=message):
        latents(pipeline, [TextRegion(**region, prompt="grass")])


def test_a_canvas_must_consist_of_whole_cells(pipeline: CanvasPipeline) -> None:
    with pytest.raises(IncompatibleLayoutError, match="canvas_width: 47 must be a multiple of 2"):
        pipeline(48, 47, [TextRegion(**box(0, 8, 0, 8), prompt="grass")])


def job(tmp_path: Path, **region: Any) -> Path:
    text = {**box(0, 64, 0, 64), "prompt": "a field of grass"}
    canvas = {"method": "canvas", "steps": 2, "regions": [text, {**box(16, 48, 16, 48), **region}]}
    path = tmp_path / "canvas.json"
    layout = {"sampler": "scatter", "canvas": [64, 64], "objects": {}}
    whole = {
        "version": 1,
        "name": "c",
        "images": 2,
        "layout": layout,
        "pipeline": canvas,
        "output": {"path": str(tmp_path / "out")},
    }
    path.write_text(json.dumps({**whole, "workers": 0}, indent=1))
    return path


def test_a_job_generates_a_canvas_without_labels(tmp_path: Path) -> None:
    picture().save(tmp_path / "p.png")
    path = job(tmp_path, kind="image", reference_image=str(tmp_path / "p.png"))
    assert cli.main(["run", str(path), "--json"]) == 0
    assert cli.main(["check", str(tmp_path / "out")]) == 0
    assert any("sha256:" in key for key in load_job(str(path)).fingerprint())


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (
            {"kind": "image", "reference_image": "nowhere.png"},
            r"canvas.json:\d+: pipeline.regions.1.*nowhere.png' is not a file",
        ),
        (
            {"prompt": "a", "row_end": 47},
            "regions: row_end 47 of number 1 must be a multiple of 4 and at most 64",
        ),
        ({"prompt": "a", "row_end": 12}, "row_end: 12 must be more than row_init, 16"),
    ],
)
def test_an_error_names_the_key(tmp_path: Path, region: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_job(str(job(tmp_path, **region)))
