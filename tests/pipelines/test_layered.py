"""Layered rendering over layouts, compared with an independent evaluation in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LMSDiscreteScheduler
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from synthgen.config import ConfigError, load_job
from synthgen.layouts.base import Layout
from synthgen.pipelines.base import IncompatibleLayoutError, Numerics
from synthgen.pipelines.diffusion.object_layers import Group, composite
from synthgen.pipelines.diffusion.prompts import Prompts
from synthgen.pipelines.diffusion.token_attention import TokenProbe, mark_tokens, record_attention
from synthgen.pipelines.layered import Spec
from synthgen.pipelines.layered.pipeline import LayeredPipeline
from synthgen.scenes.scene import Scene, SceneSpec
from tests.pipelines.stub import Linear, ddim, embedding, stub_unet

SIDE = 48
CELLS = 24
STEPS = 6
T0 = 3
PHRASES = ("a brown dog", "a white cat", "a black dog")


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> LayeredPipeline:
    loaded = LayeredPipeline.from_pretrained(checkpoint, use_safetensors=True)
    loaded.scheduler = DDIMScheduler(clip_sample=False)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def layout(seed: int, boxes: int = 3) -> Layout:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 24, (boxes, 2))
    corners = np.concatenate([low, low + rng.uniform(6, 24, (boxes, 2))], 1).astype(np.float32)
    return Layout(SIDE, SIDE, corners, ("dog", "cat", "dog")[:boxes], PHRASES[:boxes])


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def latents(pipeline: LayeredPipeline, batch: list[Layout], *seeds: int, **options: Any) -> Tensor:
    defaults: dict[str, Any] = {
        "num_inference_steps": STEPS,
        "layer_share": T0 / STEPS,
        "vision_guidance": "constant",
    }
    got = pipeline(
        batch,
        background="sand",
        generator=generators(*seeds),
        output_type="latent",
        **{**defaults, **options},
    )
    assert isinstance(got, Tensor)
    return got


def delta(pipeline: LayeredPipeline, rgb: tuple[int, int, int]) -> np.ndarray:
    """Return the mean latents of an image of one colour."""
    x = torch.tensor(rgb).view(1, 3, 1, 1).expand(1, 3, 64, 64) / 127.5 - 1
    with torch.no_grad():
        z = pipeline.vae.encode(x).latent_dist.mode().double() * pipeline.vae.config.scaling_factor
    return z.mean((2, 3))[0].numpy()[:, None, None]


def mask_of(box: np.ndarray) -> np.ndarray:
    centres = (np.arange(CELLS) + 0.5) * 2
    x0, y0, x1, y1 = box
    return np.outer((centres >= y0) & (centres < y1), (centres >= x0) & (centres < x1)).astype(
        float
    )


def exact(
    pipeline: LayeredPipeline, stub: Linear, of: Layout, seed: int, guidance: float, variant: str
) -> np.ndarray:
    """Return the result of the published algorithm for one image in float64 with the stub."""
    z_t = (
        torch.randn((3, CELLS, CELLS), generator=torch.Generator().manual_seed(seed))
        .double()
        .numpy()
    )
    white = delta(pipeline, (255, 255, 255))
    masks = [mask_of(box) for box in of.boxes.astype(np.float64)]
    xis = [-0.2 * white + m * (0.2 + 0.05) * white for m in masks]

    def guided(z: np.ndarray, prompt: str) -> np.ndarray:
        cond, uncond = (stub.exact(z, embedding(pipeline, p)) for p in (prompt, "gravel"))
        return uncond + guidance * (cond - uncond)

    def run(start: np.ndarray, noise: Any, after: Any, first: int, last: int | None) -> np.ndarray:
        return ddim(start, STEPS, noise, after, pipeline.scheduler, first, last)

    caption = "2 dog, 1 cat, sand" if len(of) == 3 else "sand"
    if variant == "mixed":
        shares = [m.sum() / sum(n.sum() for n in masks) for m in masks]

        def mixed(z: np.ndarray, i: int, t: int) -> np.ndarray:
            if t <= 600:
                return guided(z, caption)
            uncond = stub.exact(z, embedding(pipeline, "gravel"))
            layers = zip(shares, xis, PHRASES, strict=True)
            cond = (
                0.2 * sum(a * stub.exact(z + xi, embedding(pipeline, p)) for a, xi, p in layers)
                + 0.8 * uncond
            )
            return uncond + guidance * (cond - uncond)

        return run(z_t, mixed, lambda z, i, a: z, 0, None)
    z = run(z_t, lambda z, i, t: guided(z, "sand"), lambda z, i, a: z, 0, T0)
    for k in sorted(range(len(of)), key=lambda k: -masks[k].sum()):
        layer = run(
            z_t + xis[k],
            lambda z, i, t, k=k: guided(z, PHRASES[k]),
            lambda z, i, a, k=k: z + xis[k] if i < 2 else z,
            0,
            T0,
        )
        z = z * (1 - masks[k]) + layer * masks[k]
    return run(z, lambda z, i, t: guided(z, caption), lambda z, i, a: z, T0, None)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 7.5])
@pytest.mark.parametrize("variant", ["paper", "mixed"])
def test_agrees_with_the_formulas_in_float64(
    pipeline: LayeredPipeline, guidance: float, variant: str
) -> None:
    batch = [layout(0), layout(1)]
    with stub_unet(pipeline) as stub:
        options = {
            "guidance_scale": guidance,
            "variant": variant,
            "negative_prompt": "gravel",
            "guided_steps": 2,
            "until": 600,
        }
        got = latents(pipeline, batch, 3, 4, **options).double().numpy()
        for i, of in enumerate(batch):
            wanted = exact(pipeline, stub, of, 3 + i, guidance, variant)
            assert np.linalg.norm(got[i] - wanted) / np.linalg.norm(wanted) < 1e-5


@pytest.mark.parametrize("variant", ["paper", "mixed"])
@pytest.mark.parametrize("vision_guidance", ["constant", "dynamic"])
@pytest.mark.parametrize("context", [None, 0.2])
def test_an_image_does_not_depend_on_its_batch(
    pipeline: LayeredPipeline, variant: str, vision_guidance: str, context: float | None
) -> None:
    options = {
        "variant": variant,
        "vision_guidance": vision_guidance,
        "context": context,
        "top_k": 4,
    }
    batch = [layout(i, n) for i, n in enumerate((3, 1, 0, 2))]
    together = latents(pipeline, batch, 0, 1, 2, 3, **options)
    for i in range(4):
        alone = latents(pipeline, [batch[i]], i, **options)
        assert (together[i] - alone[0]).norm() / alone.norm() < 1e-4


def test_guidance_is_added_to_unscaled_latents(checkpoint: Path) -> None:
    """Euler is DDIM with scaled latents, so guidance makes the same change with both."""
    ours = LayeredPipeline.from_pretrained(checkpoint, use_safetensors=True)
    ours.set_progress_bar_config(disable=True)
    changes = []
    with stub_unet(ours):
        for scheduler in (
            DDIMScheduler(clip_sample=False),
            EulerDiscreteScheduler(timestep_spacing="leading"),
        ):
            ours.scheduler = scheduler
            plain, guided = (
                latents(ours, [layout(0)], 0, lambda_1=s, lambda_2=s, guidance_scale=2.0)
                for s in (0.0, 5.0)
            )
            changes.append(guided - plain)
    assert (changes[0] - changes[1]).norm() / changes[0].norm() < 2e-2


def test_masks_replace_boxes(pipeline: LayeredPipeline) -> None:
    pixels = np.zeros((SIDE, SIDE), np.uint8, order="F")
    pixels[8:24, 8:40] = 1
    run_length = coco_mask.encode(pixels)
    box = np.array([[8, 8, 40, 24]], np.float32)
    plain = Layout(SIDE, SIDE, box, ("dog",), ("a brown dog",))
    masked = Layout(SIDE, SIDE, box, ("dog",), ("a brown dog",), masks=(run_length,))
    assert torch.equal(pipeline.build_object_mask(plain, 0), pipeline.build_object_mask(masked, 0))
    assert torch.equal(latents(pipeline, [plain], 0), latents(pipeline, [masked], 0))
    pixels[8:24, 8:24] = 0
    half = Layout(SIDE, SIDE, box, ("dog",), ("a brown dog",), masks=(coco_mask.encode(pixels),))
    assert (
        pipeline.build_object_mask(half, 0).sum() == pipeline.build_object_mask(plain, 0).sum() / 2
    )


def test_small_objects_cover_large_ones(pipeline: LayeredPipeline) -> None:
    """Where boxes overlap the smaller one's layer is visible, whatever the order of the boxes."""
    boxes = np.array([[10, 10, 20, 20], [4, 4, 40, 40], [14, 14, 44, 30]], np.float32)
    wanted = torch.zeros(1, 3, CELLS, CELLS)
    for i in (1, 2, 0):
        x0, y0, x1, y1 = (int(v) // 2 for v in boxes[i])
        wanted[..., y0:y1, x0:x1] = i + 1
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        of = Layout(SIDE, SIDE, boxes[order], ("dog",) * 3)
        group = Group(
            list(pipeline.build_layers(of, 0, ["a dog"] * 3, Prompts(), 0, None)),
            torch.zeros(1, 3, CELLS, CELLS),
        )
        values = (
            torch.tensor([float(i + 1) for i in order]).view(3, 1, 1, 1).expand(3, 3, CELLS, CELLS)
        )
        assert torch.equal(composite(torch.zeros(1, 3, CELLS, CELLS), [group], [values]), wanted)


def test_the_dynamic_colour_is_that_of_the_cells_that_attend_to_the_name(
    pipeline: LayeredPipeline,
) -> None:
    of = layout(0, 1)
    conditions = {"encoder_hidden_states": pipeline.encode_prompts(["a brown dog", ""]).detach()}
    noise = pipeline.noise([of], generators(0))
    group = Group(list(pipeline.build_layers(of, 0, ["a brown dog"], Prompts(), 1, None)), noise)
    pipeline.scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        got = pipeline.find_delta(group, conditions, 4, 10_000, "paper")
        probe = TokenProbe(torch.tensor([mark_tokens(pipeline.tokenizer, "a brown dog", "dog")]))
        t = pipeline.scheduler.timesteps[0]
        with record_attention(pipeline.unet, probe):
            out = pipeline.predict(
                t, noise, {"encoder_hidden_states": conditions["encoder_hidden_states"][:1]}
            )
        best = probe.maps(CELLS, CELLS)[0].flatten().topk(4).indices
        a = pipeline.scheduler.alphas_cumprod[int(t)]
        picture = pipeline.decode((noise - (1 - a).sqrt() * out) / a.sqrt())[0].astype(np.float64)
    cells = picture.reshape(CELLS, 2, CELLS, 2, 3).mean((1, 3)).reshape(-1, 3)
    colour = np.round(cells[best.numpy()].mean(0)).astype(int)
    np.testing.assert_allclose(got[0].double().numpy(), delta(pipeline, tuple(colour)), atol=1e-4)


def test_a_probe_records_the_usual_attention_and_changes_nothing(pipeline: LayeredPipeline) -> None:
    z = torch.randn(2, 3, 16, 12)
    text = pipeline.encode_prompts(["a brown dog", "a white cat"]).detach()
    tokens = torch.tensor(
        [
            mark_tokens(pipeline.tokenizer, p, w)
            for p, w in (("a brown dog", "dog"), ("a white cat", "cat"))
        ]
    )
    assert tokens.sum(1).tolist() == [1, 1]
    with torch.no_grad():
        usual = pipeline.unet(z, 500, encoder_hidden_states=text).sample
        with record_attention(pipeline.unet, TokenProbe(tokens)) as probe:
            probed_output = pipeline.unet(z, 500, encoder_hidden_states=text).sample
        with record_attention(pipeline.unet, TokenProbe(tokens, top=1)):
            masked = pipeline.unet(z, 500, encoder_hidden_states=text).sample
        after = pipeline.unet(z, 500, encoder_hidden_states=text).sample
    assert torch.allclose(usual, probed_output, atol=1e-5)
    assert not torch.allclose(usual, masked, atol=1e-5)
    assert torch.equal(usual, after)
    maps = probe.maps(16, 12)
    assert maps.shape == (2, 16, 12)
    assert ((maps > 0) & (maps < 1)).all()


@pytest.mark.parametrize(
    ("prompt", "words", "marked"),
    [("a brown dog", "dog", [3]), ("a dog dog", "dog", [2, 3]), ("a cat", "dog", [1, 2])],
)
def test_the_tokens_of_a_name_are_marked(
    pipeline: LayeredPipeline, prompt: str, words: str, marked: list[int]
) -> None:
    found = mark_tokens(pipeline.tokenizer, prompt, words)
    assert [i for i, m in enumerate(found) if m] == marked
    assert any(mark_tokens(pipeline.tokenizer, "", "dog"))


@pytest.mark.parametrize("boxes", [0, 1, 100])
def test_any_number_of_boxes(pipeline: LayeredPipeline, boxes: int) -> None:
    grid = np.array(
        [(x, y, x + 8, y + 8) for y in range(0, 100, 10) for x in range(0, 100, 10)], np.float32
    )[:boxes]
    of = Layout(100, 100, grid, ("dog",) * boxes)
    images = pipeline(
        [of], num_inference_steps=2, context=0.1, generator=generators(0), output_type="np"
    )
    assert np.asarray(images).shape == (1, 100, 100, 3)


def test_an_error_names_what_cannot_be_generated(
    pipeline: LayeredPipeline, checkpoint: Path
) -> None:
    with pytest.raises(
        IncompatibleLayoutError,
        match=r"layouts\[0\].boxes\[0\]: \[40.0, 0.0, 60.0, 20.0\] is not inside the canvas",
    ):
        pipeline([Layout(SIDE, SIDE, np.array([[40, 0, 60, 20]], np.float32), ("dog",))])
    lms = LayeredPipeline.from_pretrained(
        checkpoint, use_safetensors=True, scheduler=LMSDiscreteScheduler()
    )
    with pytest.raises(ValueError, match="lms cannot start within its schedule"):
        lms([layout(0)])


@pytest.mark.parametrize("scheduler", ["dpm++", "unipc", "ddim", "euler"])
def test_a_recipe_generates_the_same_image_again(checkpoint: Path, scheduler: str) -> None:
    spec = Spec.model_validate(
        {"model": str(checkpoint), "steps": 4, "scheduler": scheduler, "context": 0.1, "tile": 24}
    )
    painter = spec.load(SceneSpec(), Numerics())
    first, second = (
        painter([Scene(layout(0), "sand")], [np.random.SeedSequence(0)])[0].image for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    assert first.std() > 0


def test_layered_refuses_background_images(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"pipeline.method: cannot generate into your own images"):
        load_job("100dogs", ["pipeline=layered-tiny", f"scene.backgrounds={tmp_path}"])
    assert load_job("100dogs", [f"scene.backgrounds={tmp_path}"]).scene.backgrounds == str(tmp_path)


def test_errors_in_a_recipe_are_named() -> None:
    for change, message in (
        ("pipeline.scheduler=lms", "scheduler: .*'dpm\\+\\+', 'unipc', 'ddim' or 'euler'"),
        ("pipeline.layer_share=0.001", "layer_share: 0.001 of .* steps must be at least 1 step"),
        ("pipeline.caption='{what}'", "only {counts}, {phrases}, {background} are replaced"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_job("100dogs", ["pipeline=layered-tiny", change])
