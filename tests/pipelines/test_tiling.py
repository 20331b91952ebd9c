"""The tiling pipeline, compared with an independent evaluation; and the source document's files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synthgen import cli
from synthgen.config import ConfigError, load_job
from synthgen.pipelines.base import IncompatibleLayoutError
from synthgen.pipelines.tiling import Spec
from synthgen.pipelines.tiling.pipeline import TilingPipeline
from tests.conftest import save_tiny_checkpoint
from tests.pipelines.stub import stub_unet

TILES: dict[str, Any] = {
    "tile_height": 32,
    "tile_width": 48,
    "tile_row_overlap": 16,
    "tile_col_overlap": 32,
}
GRID = [["grass", "sand", "gravel"], ["snow", "soil", "grass"]]
FOREST = {
    "cpu_vae": True,
    "gc": 8,
    "gc_tiles": None,
    "prompt": [["a forest, ukiyo-e", "a forest, by velazquez", "a forest, cubist style"]],
    "scheduler": "lms",
    "seed": 639688656,
    "steps": 2,
    "tile_col_overlap": 32,
    "tile_height": 64,
    "tile_row_overlap": 32,
    "tile_width": 64,
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> TilingPipeline:
    loaded = TilingPipeline.from_pretrained(
        save_tiny_checkpoint(tmp_path_factory.mktemp("tiny")), use_safetensors=True
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded


def noise(pipeline: TilingPipeline, seed: int = 0, rerolls: Any = (), **options: Any) -> Tensor:
    grid = Spec.model_validate({"prompt": GRID, **TILES, **options})
    return pipeline.sample_noise(
        grid, torch.Generator().manual_seed(seed), pipeline.list_tiles(grid), rerolls
    )


def latents(pipeline: TilingPipeline, **options: Any) -> Tensor:
    got = pipeline(
        GRID, output_type="latent", **{**TILES, "seed": 0, "num_inference_steps": 2, **options}
    )
    assert isinstance(got, Tensor)
    return got


def test_the_canvas_contains_all_tiles_with_their_overlaps(pipeline: TilingPipeline) -> None:
    images = pipeline(GRID, num_inference_steps=1, seed=0, output_type="np", **TILES)
    assert isinstance(images, np.ndarray)
    assert images.shape == (1, 32 + 16, 48 + 2 * 16, 3)
    assert Spec.model_validate({"prompt": GRID, **TILES}).canvas == (80, 48)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 7.5])
def test_one_step_agrees_with_the_formulas_in_float64(
    pipeline: TilingPipeline, guidance: float
) -> None:
    """eps = sum_i w_i eps_i / sum_i w_i over tiles.

    The weights are gaussian, with variance 0.01, centred on the tile.
    """
    z = noise(pipeline).double()
    predictions: list[Tensor] = []
    step = pipeline.scheduler.step

    def record_step(eps: Tensor, *args: Any, **options: Any) -> Any:
        predictions.append(eps)
        return step(eps, *args, **options)

    pipeline.scheduler.step = record_step
    try:
        with stub_unet(pipeline) as stub:
            latents(pipeline, guidance_scale=guidance)
    finally:
        pipeline.scheduler.step = step
    embeddings = {p: pipeline.encode_prompts([p]).double() for p in {*GRID[0], *GRID[1], ""}}
    numerator = torch.zeros_like(z)
    denominator = torch.zeros(z.shape[1:], dtype=torch.float64)
    f = pipeline.factor
    for r, row in enumerate(GRID):
        for c, prompt in enumerate(row):
            y = r * 16 // f
            x = c * 16 // f
            h = 32 // f
            w = 48 // f
            crop = z[None, :, y : y + h, x : x + w]
            uncond, cond = (stub(crop, 0, embeddings[p]).sample[0] for p in ("", prompt))
            at = [torch.arange(n, dtype=torch.float64) for n in (h, w)]
            gauss = [
                torch.exp(-((v - (n - 1) / 2) ** 2) / (n * n * 2 * 0.01))
                for v, n in zip(at, (h, w), strict=True)
            ]
            weight = torch.outer(*gauss)
            numerator[:, y : y + h, x : x + w] += weight * (uncond + guidance * (cond - uncond))
            denominator[y : y + h, x : x + w] += weight
    merged = numerator / denominator
    assert (predictions[0][0].double() - merged).norm() / merged.norm() < 1e-5


def test_an_image_does_not_depend_on_its_batch(pipeline: TilingPipeline) -> None:
    both = latents(pipeline, seed=[3, 4])
    for i, seed in enumerate((3, 4)):
        alone = latents(pipeline, seed=seed)
        assert (both[i] - alone[0]).norm() / alone.norm() < 1e-4


def test_a_tile_seed_sets_the_whole_tile_or_its_exclusive_part(pipeline: TilingPipeline) -> None:
    seeds = [[7, None, None], [None, None, None]]
    f = pipeline.factor
    plain = noise(pipeline)
    full = noise(pipeline, seed_tiles=seeds)
    exclusive = noise(pipeline, seed_tiles=seeds, seed_tiles_mode="exclusive")
    changed = [(n != plain).any(0) for n in (full, exclusive)]
    assert changed[0][: 32 // f, : 48 // f].all()
    assert changed[0].sum() == (32 // f) * (48 // f)
    # neither the tile to the right nor the one below covers this part
    assert changed[1].sum() == (16 // f) * (16 // f)


def published(pipeline: TilingPipeline, grid: Spec, seed: int) -> Tensor:
    """Return mixdiff's initial latents (see its `_tile2latent_exclusive_indices`) on a CPU.

    The grid has two rows and columns or more.
    """
    f = pipeline.factor
    rows, columns = grid.shape

    def indices(row: int, column: int) -> tuple[int, int, int, int]:
        top = row * (grid.tile_height - grid.tile_row_overlap)
        left = column * (grid.tile_width - grid.tile_col_overlap)
        return top // f, (top + grid.tile_height) // f, left // f, (left + grid.tile_width) // f

    shape = (1, pipeline.vae.config.latent_channels, grid.canvas[1] // f, grid.canvas[0] // f)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for row in range(rows):
        for column in range(columns):
            if grid.seed_tiles is None or (own := grid.seed_tiles[row][column]) is None:
                continue
            top, bottom, left, right = indices(row, column)
            down = set(range(top, bottom))
            across = set(range(left, right))
            for r in range(rows):
                for c in range(columns):
                    if r != row and c != column:
                        a, b, x, y = indices(r, c)
                        down = down - set(range(a, b))
                        across = across - set(range(x, y))
            if grid.seed_tiles_mode != "full":
                top = min(down)
                bottom = max(down) + 1
                left = min(across)
                right = max(across) + 1
            tile = (*shape[:2], bottom - top, right - left)
            latents[:, :, top:bottom, left:right] = torch.randn(
                tile, generator=torch.Generator().manual_seed(own)
            )
    return latents[0]


@pytest.mark.parametrize("mode", ["full", "exclusive"])
@pytest.mark.parametrize(
    ("prompt", "overlap"),
    [(GRID, 12), ([["a", "b"], ["c", "d"], ["e", "f"]], 8), ([["a", "b", "c"]] * 3, 12)],
)
def test_published_seeds_reproduce(
    pipeline: TilingPipeline, mode: str, prompt: list[list[str]], overlap: int
) -> None:
    seeds = [[10 * r + c for c in range(len(prompt[0]))] for r in range(len(prompt))]
    seeds[-1][0] = None  # type: ignore[call-overload]
    sides = {
        "tile_height": 32,
        "tile_width": 32,
        "tile_row_overlap": overlap - 4,
        "tile_col_overlap": overlap,
    }
    options: dict[str, Any] = {
        "prompt": prompt,
        "seed_tiles": seeds,
        "seed_tiles_mode": mode,
        **sides,
    }
    got = noise(pipeline, seed=5, **options)
    wanted = published(pipeline, Spec.model_validate(options), 5)
    assert torch.equal(got, wanted)
    cut = noise(pipeline, seed=5, seed_tiles_noise="cut", **options)
    assert torch.equal(cut, wanted) == (mode == "full")


def test_noise_cut_from_a_tile_equals_that_of_earlier_jobs(pipeline: TilingPipeline) -> None:
    seeds = [[7, None, None], [None, None, None]]
    f = pipeline.factor
    full, cut = (
        noise(pipeline, seed_tiles=seeds, seed_tiles_mode=m, seed_tiles_noise="cut")
        for m in ("full", "exclusive")
    )
    assert torch.equal(full[:, : 16 // f, : 16 // f], cut[:, : 16 // f, : 16 // f])
    assert torch.equal(noise(pipeline)[:, 16 // f :], cut[:, 16 // f :])


def test_a_tile_without_an_exclusive_part_changes_nothing(pipeline: TilingPipeline) -> None:
    grid: dict[str, Any] = {
        "prompt": [["a", "b", "c"]],
        "tile_col_overlap": 40,
        "seed_tiles": [[None, 7, None]],
    }
    for kind in ("own", "cut"):
        got = noise(pipeline, **grid, seed_tiles_mode="exclusive", seed_tiles_noise=kind)
        assert torch.equal(got, noise(pipeline, **{**grid, "seed_tiles": None}))


def test_exclusive_differs_from_full_on_one_row(pipeline: TilingPipeline) -> None:
    grid: dict[str, Any] = {"prompt": [["a", "b"]], "seed_tiles": [[7, None]]}
    assert not torch.equal(
        noise(pipeline, **grid), noise(pipeline, **grid, seed_tiles_mode="exclusive")
    )


def test_each_tile_can_have_its_own_mode(pipeline: TilingPipeline) -> None:
    seeds = [[7, None, None], [None, None, 8]]
    mixed = noise(
        pipeline, seed_tiles=seeds, seed_tiles_mode=[["full"] * 3, ["full", "full", "exclusive"]]
    )
    first = noise(pipeline, seed_tiles=seeds)
    last = noise(pipeline, seed_tiles=seeds, seed_tiles_mode="exclusive")
    assert torch.equal(mixed[:, :8, :8], first[:, :8, :8])
    assert torch.equal(mixed[:, -2:, -2:], last[:, -2:, -2:])


def test_reroll_regions_are_set_last(pipeline: TilingPipeline) -> None:
    f = pipeline.factor
    seeds = [[7, None, None], [None, None, None]]
    tiles = noise(pipeline, seed_tiles=seeds)
    rerolled = noise(pipeline, seed_tiles=seeds, rerolls=[(0, 16, 16, 48, 5)])
    changed = (tiles != rerolled).any(0)
    assert changed[: 16 // f, 16 // f : 48 // f].all()
    assert changed.sum() == (16 // f) * (32 // f)


def test_each_tile_can_have_its_own_guidance_scale(pipeline: TilingPipeline) -> None:
    one = latents(pipeline, guidance_scale=3.0)
    all_the_same = latents(pipeline, guidance_scale_tiles=[[3.0] * 3] * 2)
    assert torch.equal(one, all_the_same)
    one = latents(pipeline, guidance_scale=3.0, num_inference_steps=1)
    tiles = [[None, None, None], [None, None, 9.0]]
    other = latents(pipeline, guidance_scale=3.0, guidance_scale_tiles=tiles, num_inference_steps=1)
    corner = 16 // pipeline.factor
    assert torch.equal(other[..., :corner, :corner], one[..., :corner, :corner])
    assert not torch.equal(other, one)


def test_the_negative_prompt_is_the_unconditional_branch(pipeline: TilingPipeline) -> None:
    base = latents(pipeline, guidance_scale=3.0)
    assert not torch.equal(latents(pipeline, guidance_scale=3.0, negative_prompt="gravel"), base)
    assert torch.equal(
        latents(pipeline, guidance_scale=1.0, negative_prompt="gravel"),
        latents(pipeline, guidance_scale=1.0),
    )


def test_the_noise_of_ddim_steps_depends_on_the_seed(pipeline: TilingPipeline) -> None:
    one, again, other = (latents(pipeline, eta=1.0, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_cpu_vae_eta_and_callback_are_accepted(pipeline: TilingPipeline) -> None:
    steps: list[int] = []

    def count(pipe: Any, i: int, t: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(i)
        return values

    images = pipeline(
        GRID,
        num_inference_steps=2,
        seed=0,
        cpu_vae=True,
        eta=0.5,
        callback_on_step_end=count,
        **TILES,
    )
    assert (images[0].size, steps) == ((80, 48), [0, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": [["a"], ["a", "b"]]}, "rows of equally many prompts"),
        ({"seed_tiles": [[1, 2]]}, "seed_tiles: must have 2 rows of 3"),
        ({"tile_row_overlap": 32}, "tile_row_overlap: must be less than tile_height, 32"),
    ],
)
def test_grids_must_agree(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spec.model_validate({"prompt": GRID, **TILES, **options})


def test_tiles_must_suit_the_checkpoint(pipeline: TilingPipeline) -> None:
    with pytest.raises(IncompatibleLayoutError, match="tile_height: 33 must be a multiple of"):
        pipeline(GRID, **{**TILES, "tile_height": 33})


def test_the_file_of_the_source_document_runs_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "linearForest.json"
    path.write_text(json.dumps(FOREST, indent=4))
    assert cli.main(["run", str(path), "workers=0", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["output"], data["images"], data["boxes"]) == ("out/linearForest", 1, 0)
    assert cli.main(["check", "out/linearForest"]) == 0
    job = load_job(str(path))
    assert job.layout.canvas == (64 + 2 * 32, 64)
    assert isinstance(job.pipeline, Spec)
    assert (job.pipeline.guidance_scale, job.pipeline.scheduler, job.pipeline.seed) == (
        8,
        "lms",
        639688656,
    )


def test_errors_in_such_a_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    path.write_text(json.dumps({**FOREST, "tile_width": 50, "stepz": 3}, indent=1))
    with pytest.raises(ConfigError) as caught:
        load_job(str(path))
    assert any(
        "stepz: unknown key; did you mean 'steps'?" in p and p.startswith(f"{path}:")
        for p in caught.value.problems
    )
    path.write_text(json.dumps({**FOREST, "tile_width": 50}, indent=1))
    with pytest.raises(
        ConfigError,
        match=r"grid.json:\d+: pipeline.tile_width: 50 must be a multiple of 16 for synthgen-tiny",
    ):
        load_job(str(path))


def test_tiling_refuses_boxes() -> None:
    with pytest.raises(ConfigError, match="tiling generates no boxes"):
        load_job("100dogs", ["pipeline=tiling-tiny"])
    spec = load_job(
        "100dogs", ["pipeline=tiling-tiny", "layout.objects={}", "layout.canvas=[512, 256]"]
    ).pipeline
    assert np.prod(spec.canvas) == 512 * 256  # type: ignore[attr-defined]
