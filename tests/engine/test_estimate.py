"""The work of a job that `plan --count` counts, and what it takes on GPUs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthgen import cli
from synthgen.config import Job
from synthgen.engine.estimate import CARDS, COUNTED_IMAGES, REACHED_SHARE, count
from synthgen.engine.worker import sample_scene
from synthgen.pipelines.diffusion.counting import count_work


def list_overrides(checkpoint: Path, method: str = "mixture") -> list[str]:
    """Return overrides of the small job for a method with the tiny checkpoint."""
    return [f"pipeline={{method: {method}, model: {checkpoint}, steps: 2}}"]


def test_time_and_price_follow_from_the_counted_work(
    checkpoint: Path, make_job: Callable[..., Job]
) -> None:
    job = make_job(*list_overrides(checkpoint), "images=1000")
    plan = count(job)
    scenes = [sample_scene(job, index) for index in range(COUNTED_IMAGES)]
    pipeline: Any = job.pipeline
    counts = count_work(pipeline, scenes)
    assert (plan.images, plan.counted_images) == (1000, COUNTED_IMAGES)
    assert plan.passes_per_image == counts.passes
    assert plan.unet_tflop_per_image == counts.unet_flop / 1e12
    assert plan.vae_tflop_per_image == counts.vae_flop / 1e12
    assert plan.weight_gigabytes == counts.weight_bytes / 1e9
    assert [each.card for each in plan.cards] == [card.name for card in CARDS]
    for card, each in zip(CARDS, plan.cards, strict=True):
        flop = counts.unet_flop + counts.vae_flop
        rate = card.tflop_per_second * 1e12 * REACHED_SHARE
        assert each.seconds_per_image == pytest.approx(flop / rate)
        assert each.gpu_hours == pytest.approx(flop * 1000 / rate / 3600)
        assert each.dollars == pytest.approx(each.gpu_hours * card.dollars_per_hour)


def test_images_of_different_numbers_of_objects_are_averaged(
    checkpoint: Path, make_job: Callable[..., Job]
) -> None:
    job = make_job(*list_overrides(checkpoint), "layout.objects={dog: [0, 9]}", "images=3")
    pipeline: Any = job.pipeline
    passes = []
    for index in range(3):
        passes.append(count_work(pipeline, [sample_scene(job, index)]).passes)
    assert len(set(passes)) > 1
    plan = count(job)
    assert plan.counted_images == 3
    assert plan.passes_per_image == pytest.approx(sum(passes) / 3)


def test_no_time_is_estimated_for_float32(checkpoint: Path, make_job: Callable[..., Job]) -> None:
    plan = count(make_job(*list_overrides(checkpoint), "pipeline.dtype=float32"))
    assert plan.cards == ()
    assert not any(card.name in line for card in CARDS for line in plan.lines())


def test_the_command_prints_the_counted_work_and_writes_nothing(
    checkpoint: Path, job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", str(job_file), *list_overrides(checkpoint, "inpaint"), "--count"]
    assert cli.main([*arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data) == {
        "images",
        "counted_images",
        "canvas",
        "generated_at",
        "passes_per_image",
        "unet_tflop_per_image",
        "vae_tflop_per_image",
        "weight_gigabytes",
        "dtype",
        "reached_share",
        "prices_of",
        "cards",
    }
    assert data["canvas"] == [128, 128]
    figures = {"card", "dollars_per_hour", "seconds_per_image", "gpu_hours", "dollars"}
    assert set(data["cards"][0]) == figures
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{data['passes_per_image']:.0f} of the UNet an image" in lines[2]
    for card in CARDS:
        assert sum(line.startswith(f"{card.name} ") for line in lines) == 1
    assert "estimates, not measurements" in lines[-2]
    assert not (job_file.parent / "out").exists()


@pytest.mark.parametrize("method", ["paste", "tiling"])
def test_a_method_that_is_not_counted_is_refused_in_one_line(
    method: str, job_file: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["pipeline={method: paste}"]
    if method == "tiling":
        keys = "prompt: [[sand]], tile_width: 128, tile_height: 128"
        overlaps = "tile_row_overlap: 0, tile_col_overlap: 0"
        overrides = [f"pipeline={{method: tiling, model: {checkpoint}, {keys}, {overlaps}}}"]
        overrides.append("layout.objects={}")
    assert cli.main(["plan", str(job_file), *overrides, "--count"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{method} is not counted" in line
