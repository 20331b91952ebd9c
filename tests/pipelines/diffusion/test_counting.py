"""Counted work equals that of a run with weights."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from synthgen.layouts.base import Layout
from synthgen.pipelines.annotation_mask import Spec as AnnotationMaskSpec
from synthgen.pipelines.annotation_tokens import Spec as AnnotationTokensSpec
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion.counting import count_work
from synthgen.pipelines.diffusion.models import LayoutModelSpec
from synthgen.pipelines.diffusion.painter import collect_options, generate
from synthgen.pipelines.diffusion.schedulers import SCHEDULERS
from synthgen.pipelines.grounded import Spec as GroundedSpec
from synthgen.pipelines.inpaint import Spec as InpaintSpec
from synthgen.pipelines.inpaint.painter import InpaintPainter
from synthgen.pipelines.layered import Spec as LayeredSpec
from synthgen.pipelines.mixture import Spec as MixtureSpec
from synthgen.pipelines.mixture.pipeline import MixturePipeline
from synthgen.pipelines.regional_attention import Spec as RegionalSpec
from synthgen.scenes.scene import Scene, SceneSpec
from tests.conftest import save_tiny_checkpoint
from tests.pipelines.diffusion.test_checkpoint import edit, tiny_sdxl, widen
from tests.pipelines.diffusion.test_grounding import gated_unet

SIDE = 64
# A window of the tiny checkpoint has 16 px, so that boxes of 4 to 30 px have windows of many sizes.
METHODS: dict[str, Callable[[str], LayoutModelSpec]] = {
    "mixture": lambda model: MixtureSpec(model=model, steps=3, guidance_interval=(0.0, 0.7)),
    "mixture, one branch": lambda model: MixtureSpec(model=model, steps=2, guidance_scale=1.0),
    "layered": lambda model: LayeredSpec(model=model, steps=4, context=0.2),
    "layered, whole canvas": lambda model: LayeredSpec(model=model, steps=4, tile=32),
    "layered, constant": lambda model: LayeredSpec(
        model=model, steps=4, vision_guidance="constant"
    ),
    "layered, mixed": lambda model: LayeredSpec(model=model, steps=4, variant="mixed"),
    "annotation_mask": lambda model: AnnotationMaskSpec(model=model, steps=4, strength=0.5),
    "annotation_tokens": lambda model: AnnotationTokensSpec(model=model, steps=2, tile=32),
    "inpaint": lambda model: InpaintSpec(
        model=model, steps=3, guidance_interval=(0.0, 0.7), object_attempts=1
    ),
    "inpaint, strength": lambda model: InpaintSpec(
        model=model, steps=4, strength=0.5, window=24, background_steps=1, object_attempts=1
    ),
}
GROUNDED: dict[str, Callable[[str], LayoutModelSpec]] = {
    "grounded": lambda model: GroundedSpec(model=model, steps=4, stages=(0.5, 0.0), max_boxes=3),
    "grounded, falling": lambda model: GroundedSpec(model=model, steps=4, stages=(0.25, 0.5)),
}
REGIONAL: dict[str, Callable[[str], LayoutModelSpec]] = {
    "regional_attention": lambda model: RegionalSpec(model=model, steps=2),
    "regional_attention, tiles": lambda model: RegionalSpec(model=model, steps=2, tile=32),
}


def make_scene(seed: int, boxes: int, side: int = SIDE) -> Scene:
    """Return a scene with boxes of 4 to 30 px, some of which overlap."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, side - 30, (boxes, 2))
    corners = np.concatenate([low, low + rng.uniform(4, 30, (boxes, 2))], 1).astype(np.float32)
    names = tuple(("dog", "cat")[i % 2] for i in range(boxes))
    phrases = tuple(f"a white {name}" for name in names)
    return Scene(Layout(side, side, corners, names, phrases), "a field of grass")


# In the last scene, the prompt of some objects is also the negative one.
SCENES = [
    make_scene(0, 5),
    make_scene(1, 0),
    replace(make_scene(2, 3), background="", negative="a white dog"),
]
SEEDS = [np.random.SeedSequence(k) for k in range(len(SCENES))]


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny random checkpoint with gated layers."""
    path = tmp_path_factory.mktemp("gligen")
    pipeline = MixturePipeline.from_pretrained(
        save_tiny_checkpoint(path / "plain", 4, 1), use_safetensors=True
    )
    pipeline.unet = gated_unet(4)
    pipeline.save_pretrained(path / "gated")
    return path / "gated"


def count_real_passes(painter: Any, unets: list[Any]) -> float:
    """Generate the scenes one by one, and return the mean number of windows in calls of UNets."""
    windows: list[int] = []
    for unet in unets:
        unet.register_forward_pre_hook(lambda module, inputs: windows.append(len(inputs[0])))
    for scene, seed in zip(SCENES, SEEDS, strict=True):
        painter([scene], [seed])
    return sum(windows) / len(SCENES)


def tally_flop(function: Callable[..., Any], totals: list[int]) -> Callable[..., Any]:
    """Return a function that adds the operations of each call to a list."""

    def counted(*inputs: Any, **options: Any) -> Any:
        # torch does not count the fused attention of a CPU.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            result = function(*inputs, **options)
        totals.append(counter.get_total_flops())
        return result

    return counted


def count_real_work(
    spec: LayoutModelSpec, scenes: Sequence[Scene] = SCENES
) -> tuple[float, float, float]:
    """Generate scenes one by one with a pipeline that has weights.

    Returns:
        The mean number of passes, and of the operations of the UNet and of the autoencoder.
    """
    kind = spec.pipeline_class()
    pipeline = kind.from_pretrained(spec.model, use_safetensors=True)  # without fused layers
    if spec.scheduler is not None:
        pipeline.scheduler = SCHEDULERS[spec.scheduler].from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    windows: list[int] = []
    unet: list[int] = []
    vae: list[int] = []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: windows.append(len(inputs[0])))
    pipeline.unet.forward = tally_flop(pipeline.unet.forward, unet)
    pipeline.vae.encode = tally_flop(pipeline.vae.encode, vae)
    pipeline.vae.decode = tally_flop(pipeline.vae.decode, vae)
    options = collect_options(kind, spec, Numerics())
    for scene in scenes:
        generate(pipeline, [scene], [np.random.SeedSequence(0)], **options)
    count = len(scenes)
    return sum(windows) / count, sum(unet) / count, sum(vae) / count


@pytest.mark.parametrize("name", [*METHODS, *GROUNDED])
def test_work_is_that_of_a_run(name: str, checkpoint: Path, gated: Path) -> None:
    make_spec = {**METHODS, **GROUNDED}[name]
    spec = make_spec(str(gated if name in GROUNDED else checkpoint))
    counts = count_work(spec, SCENES)
    assert counts.images == len(SCENES)
    assert (counts.passes, counts.unet_flop, counts.vae_flop) == count_real_work(spec)
    assert min(counts.passes, counts.unet_flop, counts.vae_flop) > 0


def test_a_canvas_that_the_unet_cannot_halve_is_counted(checkpoint: Path) -> None:
    spec = AnnotationTokensSpec(model=str(checkpoint), steps=1)
    scenes = [make_scene(0, 3, side=66)]  # 33 latent cells
    counts = count_work(spec, scenes)
    assert (counts.passes, counts.unet_flop, counts.vae_flop) == count_real_work(spec, scenes)


@pytest.mark.parametrize("name", REGIONAL)
def test_regional_attention_takes_about_the_operations_of_plain_attention(
    name: str, checkpoint: Path
) -> None:
    spec = REGIONAL[name](str(checkpoint))
    counts = count_work(spec, SCENES)
    passes, unet, vae = count_real_work(spec)
    assert (counts.passes, counts.vae_flop) == (passes, vae)
    assert counts.unet_flop == pytest.approx(unet, rel=0.1)


def test_the_canvas_of_generation_is_counted(checkpoint: Path) -> None:
    spec = MixtureSpec(model=str(checkpoint), steps=2, scale=1.25)
    counts = count_work(spec, SCENES)
    painter: Any = spec.load(SceneSpec(), Numerics())
    assert counts.passes == count_real_passes(painter, [painter.pipeline.unet])
    plain = count_work(spec.model_copy(update={"scale": 1.0}), SCENES)
    assert counts.vae_flop == pytest.approx(1.25**2 * plain.vae_flop, rel=0.01)


def test_a_checkpoint_of_two_text_encoders_is_counted(checkpoint: Path, tmp_path: Path) -> None:
    folder = tiny_sdxl(checkpoint, tmp_path / "sdxl")
    spec = MixtureSpec(model=str(folder), steps=1, guidance_scale=1.0)
    counts = count_work(spec, SCENES)
    assert (counts.passes, counts.unet_flop, counts.vae_flop) == count_real_work(spec)


def test_a_unet_for_inpainting_also_encodes_masked_images(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "inpainting")
    spec = InpaintSpec(model=str(folder), steps=1, object_attempts=1)
    usual = count_work(spec, SCENES)
    widen(7, "StableDiffusionInpaintPipeline")(folder)
    counts = count_work(spec, SCENES)
    assert (counts.passes, counts.unet_flop, counts.vae_flop) == count_real_work(spec)
    assert counts.vae_flop > usual.vae_flop


def test_a_distilled_unet_that_reads_the_guidance_scale_has_one_branch(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "lcm")
    spec = MixtureSpec(model=str(folder), steps=1)
    usual = count_work(spec, SCENES[:1])
    edit("unet/config.json", time_cond_proj_dim=8)(folder)
    assert count_work(spec, SCENES[:1]).passes == usual.passes / 2


def test_a_scheduler_may_take_several_evaluations_a_step(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "heun")
    spec = RegionalSpec(model=str(folder), steps=3, scheduler=None)
    usual = count_work(spec, SCENES[:1])
    name = "HeunDiscreteScheduler"
    edit("scheduler/scheduler_config.json", _class_name=name)(folder)
    edit("model_index.json", scheduler=["diffusers", name])(folder)
    # Heun's method takes two evaluations in every step but the last.
    assert count_work(spec, SCENES[:1]).passes == usual.passes / 3 * 5
    named = spec.model_copy(update={"scheduler": "dpm++"})
    assert count_work(named, SCENES[:1]).passes == usual.passes


@pytest.mark.parametrize("spec_class", [MixtureSpec, InpaintSpec])
def test_objects_in_the_users_own_images_need_no_background(
    spec_class: type[LayoutModelSpec], checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    Image.new("RGB", (SIDE, SIDE), "green").save(tmp_path / "own/grass.png")
    options = {"object_attempts": 1} if spec_class is InpaintSpec else {}
    spec = spec_class(model=str(checkpoint), steps=2, **options)
    counts = count_work(spec, SCENES, has_backgrounds=True)
    painter: Any = spec.load(SceneSpec(backgrounds=str(tmp_path / "own")), Numerics())
    assert counts.passes == count_real_passes(painter, [painter.pipeline.unet])
    assert counts.passes < count_work(spec, SCENES).passes


def test_the_checkpoint_of_the_background_is_counted(checkpoint: Path, tmp_path: Path) -> None:
    other = save_tiny_checkpoint(tmp_path / "other", 4, 2)
    spec = InpaintSpec(
        model=str(checkpoint), background_model=str(other), steps=2, object_attempts=1
    )
    counts = count_work(spec, SCENES)
    painter: Any = spec.load(SceneSpec(), Numerics())
    assert isinstance(painter, InpaintPainter)
    background = painter.loaded.options["background_pipeline"]
    unets = [painter.pipeline.unet, background.unet]
    assert counts.passes == count_real_passes(painter, unets)
    alone = count_work(InpaintSpec(model=str(checkpoint), steps=2, object_attempts=1), SCENES)
    assert counts.weight_bytes == alone.weight_bytes + count_parameters(background) * 2


def count_parameters(pipeline: Any) -> int:
    """Return the number of all parameters of a loaded pipeline."""
    count = 0
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        count += sum(weight.numel() for weight in network.parameters())
    return count


@pytest.mark.parametrize(("dtype", "size"), [("auto", 2), ("bfloat16", 2), ("float32", 4)])
def test_weights_have_the_number_format_of_a_gpu(dtype: str, size: int, checkpoint: Path) -> None:
    counts = count_work(MixtureSpec(model=str(checkpoint), steps=1, dtype=dtype), SCENES[:1])
    pipeline = MixturePipeline.from_pretrained(checkpoint, use_safetensors=True)
    assert counts.weight_bytes == count_parameters(pipeline) * size
    assert counts.dtype == ("float16" if dtype == "auto" else dtype)


def test_no_weights_are_loaded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    spec = MixtureSpec(model=str(folder), steps=1)
    wanted = count_work(spec, SCENES)
    headers = spec.checkpoint()
    files = list(folder.rglob("*.safetensors"))
    for file in files:
        file.unlink()
    monkeypatch.setattr(MixtureSpec, "checkpoint", lambda self: headers)
    assert len(files) == 3
    assert count_work(spec, SCENES) == wanted
