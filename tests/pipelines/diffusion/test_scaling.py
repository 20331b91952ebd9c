"""Images are generated on a larger canvas and shrunk; labels keep the requested size."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from synthgen.config import ConfigError, Job, load_job
from synthgen.engine.worker import sample_scene
from synthgen.layouts.base import Layout
from synthgen.layouts.objects import ObjectSpec
from synthgen.pipelines.annotation_mask import Spec as AnnotationMaskSpec
from synthgen.pipelines.annotation_tokens import Spec as AnnotationTokensSpec
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.canvas import Spec as CanvasSpec
from synthgen.pipelines.diffusion.painter import generate
from synthgen.pipelines.diffusion.scaling import (
    LARGEST_CANVAS,
    LARGEST_SCALE,
    choose_scale,
    enlarge_canvas,
    enlarge_scene,
    measure_boxes,
    resize_images,
    shrink_changes,
)
from synthgen.pipelines.diffusion.sizes import read_native_windows
from synthgen.pipelines.diffusion.sources import find_model
from synthgen.pipelines.layered import Spec as LayeredSpec
from synthgen.pipelines.mixture import Spec as MixtureSpec
from synthgen.pipelines.regional_attention import Spec as RegionalSpec
from synthgen.pipelines.tiling import Spec as TilingSpec
from synthgen.scenes.scene import Scene, SceneSpec

SIDES = st.integers(16, 3000)
SEEDS = [np.random.SeedSequence(k) for k in range(2)]


def make_scene(width: int, height: int, box: tuple[float, float, float, float]) -> Scene:
    layout = Layout(width, height, np.array([box], np.float32), ("dog",), ("a white dog",))
    return Scene(layout, "sand")


@given(st.lists(st.floats(4, 900), min_size=1, max_size=50), SIDES, SIDES, st.floats(4, 500))
def test_the_scale_is_the_least_that_suits_three_of_four_boxes(
    sides: list[float], width: int, height: int, least: float
) -> None:
    scale = choose_scale(np.array(sides), (width, height), least)
    assert 1 <= scale <= LARGEST_SCALE
    assert scale % 0.25 == 0
    assert scale == 1 or scale**2 * width * height <= LARGEST_CANVAS**2
    quartile = float(np.quantile(sides, 0.25))
    larger = scale + 0.25
    if larger <= LARGEST_SCALE and larger**2 * width * height < 0.999 * LARGEST_CANVAS**2:
        assert scale * quartile >= least * (1 - 1e-9)
    assert scale == 1 or (scale - 0.25) * quartile < least


def test_a_job_without_boxes_has_scale_one() -> None:
    assert choose_scale(np.zeros(0), (1024, 1024), 70) == 1


@given(SIDES, SIDES, st.floats(1, 8), st.sampled_from([2, 4, 8, 64]))
def test_the_canvas_is_enlarged_to_a_multiple(
    width: int, height: int, scale: float, multiple: int
) -> None:
    canvas = enlarge_canvas((width, height), scale, multiple)
    if scale == 1:
        assert canvas == (width, height)
        return
    for side, larger in zip((width, height), canvas, strict=True):
        assert larger % multiple == 0
        assert side * scale - 1e-3 <= larger < side * scale + multiple


def test_boxes_and_masks_are_enlarged_with_the_canvas() -> None:
    pixels = np.zeros((50, 100), np.uint8, order="F")
    pixels[10:30, 20:60] = 1
    scene = make_scene(100, 50, (20, 10, 60, 30))
    masked = Layout(100, 50, scene.layout.boxes, ("dog",), masks=(coco_mask.encode(pixels),))
    larger = enlarge_scene(Scene(masked, "sand"), (152, 80)).layout
    assert (larger.width, larger.height) == (152, 80)
    assert larger.boxes.tolist() == pytest.approx(np.array([[30.4, 16, 91.2, 48]]))
    assert larger.masks is not None
    x, y, w, h = coco_mask.toBbox(larger.masks[0])
    assert np.abs(np.array([x, y, x + w, y + h]) - larger.boxes[0]).max() <= 1


def test_pixels_outside_the_changes_stay_the_same() -> None:
    original = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    (before,) = resize_images([original], (90, 60))
    after = before.copy()
    after[30:45, 30:60] = 255 - after[30:45, 30:60]
    shrunk = shrink_changes(original, before, after)
    changed = (shrunk != original).any(2)
    assert changed[21:29, 21:39].mean() > 0.95
    assert not changed[:16].any()
    assert not changed[35:].any()
    assert not changed[:, :16].any()
    assert (shrink_changes(original, original, original) == original).all()


@pytest.mark.parametrize(
    "kind", [MixtureSpec, LayeredSpec, RegionalSpec, AnnotationMaskSpec, AnnotationTokensSpec]
)
def test_a_method_generates_at_its_scale(kind: Any, checkpoint: Path) -> None:
    spec = kind(model=str(checkpoint), steps=2, scale=1.5)
    scenes = [make_scene(61, 47, (4, 4, 30, 28)), make_scene(61, 47, (30, 10, 55, 40))]
    painter: Any = spec.load(SceneSpec(background="sand"), Numerics())
    paintings = painter(scenes, SEEDS)
    canvas = enlarge_canvas((61, 47), 1.5, painter.pipeline.factor)
    assert canvas == (92, 72)
    larger = [enlarge_scene(scene, canvas) for scene in scenes]
    images = generate(painter.pipeline, larger, SEEDS, **painter.options)
    for painting, generated in zip(paintings, images, strict=True):
        assert painting.image.shape == (47, 61, 3)
        assert generated.shape == (72, 92, 3)
        expected = Image.fromarray(generated).resize((61, 47), Image.Resampling.LANCZOS)
        assert (painting.image == np.asarray(expected)).all()


def test_a_box_is_repaired_at_the_scale_and_nothing_else_changes(checkpoint: Path) -> None:
    spec = MixtureSpec(model=str(checkpoint), steps=2, scale=2.0)
    painter: Any = spec.load(SceneSpec(background="sand"), Numerics())
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (repaired,) = painter.inpaint_boxes([image], [make_scene(64, 64, (8, 8, 24, 24))], SEEDS[:1])
    changed = (repaired != image).any(2)
    assert changed[8:24, 8:24].mean() > 0.9
    assert not changed[40:].any()
    assert not changed[:, 40:].any()


def test_the_users_images_do_not_change_outside_the_windows(
    checkpoint: Path, tmp_path: Path
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "own.png")
    spec = MixtureSpec(model=str(checkpoint), steps=2, scale=2.0)
    painter = spec.load(SceneSpec(backgrounds=str(tmp_path)), Numerics())
    (painting,) = painter([make_scene(64, 64, (8, 8, 24, 24))], SEEDS[:1])
    same = (painting.image == image).all(2)
    same_as_mirrored = (painting.image == image[:, ::-1]).all(2)
    assert max(same[40:].mean(), same_as_mirrored[40:].mean()) == 1
    assert max(same[8:24, 8:24].mean(), same_as_mirrored[8:24, 8:24].mean()) < 0.2


def test_canvas_and_tiling_generate_at_their_scale(checkpoint: Path) -> None:
    empty = Scene(Layout(64, 48, np.zeros((0, 4), np.float32), ()), "")
    region = {"row_init": 0, "row_end": 48, "col_init": 0, "col_end": 64, "prompt": "sand"}
    reroll = {
        "row_init": 0,
        "row_end": 16,
        "col_init": 0,
        "col_end": 16,
        "region_seed": 1,
        "kind": "reroll",
    }
    canvas = CanvasSpec(
        model=str(checkpoint),
        regions=(region,),
        reroll_regions=(reroll,),
        steps=2,
        scheduler="ddim",
        scale=1.5,
    )
    tiles = TilingSpec(
        model=str(checkpoint),
        prompt=(("sand", "grass"),),
        steps=2,
        scheduler="ddim",
        scale=1.5,
        tile_height=48,
        tile_width=40,
        tile_row_overlap=0,
        tile_col_overlap=16,
    )
    for spec in (canvas, tiles):
        painter: Any = spec.load(SceneSpec(), Numerics())
        sizes: list[tuple[int, ...]] = []
        decode = painter.pipeline.decode

        def record(latents: Any, *more: Any, decode: Any = decode, sizes: Any = sizes) -> Any:
            pixels = decode(latents, *more)
            sizes.append(pixels.shape[1:3])
            return pixels

        painter.pipeline.decode = record
        (painting,) = painter([empty], SEEDS[:1])
        assert painting.image.shape == (48, 64, 3)
        assert sizes == [(72, 96)]


def test_native_becomes_a_number_in_the_fingerprint_of_the_job() -> None:
    job = load_job("100dogs", ["pipeline.scale=native"])
    assert job.pipeline.model_dump()["scale"] == 1.25
    assert job.fingerprint()["pipeline.scale"] == 1.25
    assert job.pipeline.generation_canvas((1024, 1024)) == (1280, 1280)
    large = load_job(
        "100dogs", ["pipeline.scale=native", "layout.objects={dog: 4}", "layout.size=[120, 160]"]
    )
    assert large.fingerprint()["pipeline.scale"] == 1
    with pytest.raises(ValueError, match="native depends on a job's layouts"):
        MixtureSpec(scale="native").generation_canvas((64, 64))


def test_layouts_do_not_depend_on_the_scale() -> None:
    boxes = []
    for scale in (1, 2):
        job = load_job("100dogs", [f"pipeline.scale={scale}"])
        boxes.append(sample_scene(job, 3).layout.boxes.tolist())
    assert boxes[0] == boxes[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            ["layout.size=[20, 28]"],
            r"scale: boxes of \d\d px .* generates objects of 70 to 110 px; pipeline.scale=native",
        ),
        (["layout.size=[200, 240]", "layout.objects={dog: 4}"], "scale: boxes of 3.* are large"),
        (["pipeline.scheduler=lcm"], "guidance_scale: 3.5 is high: .* give 1"),
        (
            ["pipeline.window=512"],
            "window: 512 px is not the size that synthgen-tiny was trained at, 64 to 272 px",
        ),
    ],
)
def test_settings_that_do_not_suit_the_checkpoint_are_warned_about(
    changes: list[str], words: str
) -> None:
    job = load_job("100dogs", changes)
    (warning,) = job.pipeline.find_warnings(job.layout)
    assert re.search(words, warning), warning


def test_the_shipped_job_causes_no_warnings() -> None:
    job = load_job("100dogs")
    assert job.pipeline.find_warnings(job.layout) == []
    lcm = load_job("100dogs", ["pipeline.scheduler=lcm", "pipeline.guidance_scale=1"])
    assert lcm.pipeline.find_warnings(lcm.layout) == []


def test_a_checkpoint_without_a_file_of_sizes_has_one_native_window(checkpoint: Path) -> None:
    assert read_native_windows(checkpoint) == (16, 16)
    assert read_native_windows(find_model("synthgen-tiny")) == (64, 272)


def test_boxes_are_measured_on_the_same_layouts_every_time(make_job: Callable[..., Job]) -> None:
    layout = make_job().layout
    assert measure_boxes(layout).tolist() == measure_boxes(layout).tolist()
    assert len(measure_boxes(layout)) == 32


def test_the_dataset_card_states_the_scale(make_job: Callable[..., Job], checkpoint: Path) -> None:
    from synthgen.engine.generation import run

    job = make_job(
        "images=1",
        "pipeline={method: mixture, steps: 2, scale: 1.5}",
        f"pipeline.model={checkpoint}",
        "layout.objects={dog: 1}",
    )
    run(job)
    out = Path(job.output.path)
    assert "pipeline.scale" in (out / "README.md").read_text()
    assert json.loads((out / "dataset.json").read_text())["fingerprint"]["pipeline.scale"] == 1.5


def test_boxes_without_room_are_reported_only_as_a_problem_of_the_layout() -> None:
    with pytest.raises(ConfigError, match=r"layout\.objects: ") as caught:
        load_job(
            "100dogs",
            ["pipeline.scale=native", "layout.canvas=[256, 256]", "layout.objects={dog: 40}"],
        )
    assert len(caught.value.problems) == 1
    full = load_job("100dogs").layout.model_copy(
        update={"canvas": (256, 256), "objects": {"dog": ObjectSpec(count=(40, 40))}}
    )
    assert len(measure_boxes(full)) == 0
