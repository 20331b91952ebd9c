"""Annotations as tokens: joined along the sequence, masked, batched."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synthgen.config import ConfigError, load_job
from synthgen.layouts.base import Layout
from synthgen.pipelines.annotation_tokens import Spec
from synthgen.pipelines.annotation_tokens.pipeline import AnnotationTokensPipeline
from synthgen.pipelines.base import IncompatibleLayoutError, Numerics
from synthgen.scenes.scene import Scene, SceneSpec

DOCUMENT = ["label_74_bbox_455.98_436.73_58.57_36.36", "label_74_bbox_405.44_594.41_76.59_40.23"]


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> AnnotationTokensPipeline:
    loaded = AnnotationTokensPipeline.from_pretrained(checkpoint, use_safetensors=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def layout(seed: int, boxes: int, side: int = 48) -> Layout:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, side - 16, (boxes, 2))
    corners = np.concatenate([low, low + rng.uniform(4, 16, (boxes, 2))], 1).astype(np.float32)
    return Layout(side, side, corners, ("dog",) * boxes, ("a brown dog",) * boxes)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def latents(
    pipeline: AnnotationTokensPipeline, batch: list[Layout], *seeds: int, **options: Any
) -> Tensor:
    defaults = {
        "background": "sand",
        "num_inference_steps": 3,
        "generator": generators(*seeds),
        "output_type": "latent",
    }
    got = pipeline(batch, **{**defaults, **options})
    assert isinstance(got, Tensor)
    return got


def test_all_annotations_are_joined_along_the_sequence_and_padding_is_masked(
    pipeline: AnnotationTokensPipeline,
) -> None:
    with torch.no_grad():
        own = [pipeline.encode_annotations(DOCUMENT[:n]) for n in (1, 2)]
        found = pipeline.conditions(["grass", "sand", "snow", ""], [DOCUMENT, [], DOCUMENT[:1]])
        prompts = pipeline.encode_prompts(["grass", "sand", "snow", ""])
    embeddings = found["encoder_hidden_states"]
    mask = found["encoder_attention_mask"]
    length = prompts.shape[1]
    assert embeddings.shape == (4, length + len(own[1]), prompts.shape[2])
    assert torch.equal(embeddings[:, :length], prompts)
    torch.testing.assert_close(embeddings[0, length:], own[1])
    torch.testing.assert_close(embeddings[2, length : length + len(own[0])], own[0])
    assert mask.sum(1).tolist() == [length + len(own[1]), length, length + len(own[0]), length]


def test_long_annotations_are_encoded_completely(pipeline: AnnotationTokensPipeline) -> None:
    """The last digit counts in a string with more tokens than the text encoder reads."""
    ids = pipeline.tokenizer(DOCUMENT[0], add_special_tokens=False).input_ids
    assert len(ids) > pipeline.tokenizer.model_max_length - 2
    with torch.no_grad():
        one, other = (
            pipeline.encode_annotations([text]) for text in (DOCUMENT[0], DOCUMENT[0][:-1] + "7")
        )
    assert len(one) == len(ids)
    assert torch.equal(one[:-1], other[:-1])
    assert not torch.equal(one[-1], other[-1])


def test_masked_tokens_have_no_effect(pipeline: AnnotationTokensPipeline) -> None:
    """The UNet's prediction is the same, however much padding another image needs."""
    z = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        short, long = (
            pipeline.conditions(["grass", "sand"], [DOCUMENT[:1], DOCUMENT * n]) for n in (0, 9)
        )
        one, other = (
            pipeline.predict(
                torch.tensor(500), z, {name: table[:1] for name, table in found.items()}
            )
            for found in (short, long)
        )
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 7.5])
def test_an_image_does_not_depend_on_its_batch(
    pipeline: AnnotationTokensPipeline, guidance: float
) -> None:
    batch = [layout(i, n) for i, n in enumerate((3, 0, 7, 1))]
    together = latents(pipeline, batch, 0, 1, 2, 3, guidance_scale=guidance)
    for i in range(4):
        alone = latents(pipeline, [batch[i]], i, guidance_scale=guidance)
        assert (together[i] - alone[0]).norm() / alone.norm() < 1e-4


def test_a_tile_has_the_boxes_inside_it(pipeline: AnnotationTokensPipeline) -> None:
    whole = Layout(
        48,
        48,
        np.array([[2, 2, 12, 14], [30, 28, 46, 44]], np.float32),
        ("dog", "cat"),
        ("a brown dog", "a cat"),
    )
    tiles = pipeline.split_into_tiles(whole, 24, 0.0)
    assert [layout.phrases for _, layout in tiles] == [("a brown dog",), (), (), ("a cat",)]
    np.testing.assert_allclose(tiles[3][1].boxes, [[6, 4, 22, 20]])
    assert {(layout.width, layout.height) for _, layout in tiles} == {(24, 24)}
    options: dict[str, Any] = {
        "tile": 24,
        "overlap": 0.0,
        "num_inference_steps": 1,
        "caption": "sand",
    }
    one, other = (latents(pipeline, [of], 0, **options) for of in (whole, whole.select([0])))
    changed = ((one - other).abs() > 1e-5).any(1)[0]
    assert changed[12:, 12:].any()
    assert not changed[:12].any()
    assert not changed[:, :12].any()


def test_every_box_has_an_effect(pipeline: AnnotationTokensPipeline) -> None:
    whole = layout(0, 100)
    base = latents(pipeline, [layout(0, 100)], 0)
    for i in (0, 50, 99):
        boxes = whole.boxes.copy()
        boxes[i] = [1, 2, 20, 30]
        moved = Layout(48, 48, boxes, whole.categories, whole.phrases)
        assert not torch.equal(latents(pipeline, [moved], 0), base)


def test_the_strings_of_the_source_document_are_accepted(
    pipeline: AnnotationTokensPipeline,
) -> None:
    given = latents(pipeline, [layout(0, 0)], 0, annotations=[DOCUMENT])
    assert not torch.equal(given, latents(pipeline, [layout(0, 0)], 0))
    with pytest.raises(ValueError, match="annotation 'dog': must be label_ID_bbox_X_Y_W_H"):
        latents(pipeline, [layout(0, 0)], 0, annotations=[["dog"]])
    with pytest.raises(
        ValueError, match="annotations: strings are of the whole canvas; leave tile out"
    ):
        latents(pipeline, [layout(0, 0)], 0, annotations=[DOCUMENT], tile=24)
    with pytest.raises(ValueError, match="annotations: 2 sequences given for 1 layouts"):
        latents(pipeline, [layout(0, 0)], 0, annotations=[[], []])


def test_location_tokens_make_annotations_compact(checkpoint: Path, tmp_path: Path) -> None:
    pipeline = AnnotationTokensPipeline.from_pretrained(checkpoint, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="form: compact needs a tokenizer with location tokens"):
        latents(pipeline, [layout(0, 1)], 0, form="compact")
    pipeline.add_location_tokens(32)
    assert pipeline.bins == 32
    (texts,) = pipeline.texts([layout(0, 2)], "auto", {})
    assert (
        len(pipeline.tokenizer(texts[0], add_special_tokens=False).input_ids)
        == len(["a", "brown", "dog"]) + 2
    )
    base = latents(pipeline, [layout(0, 2)], 0)
    assert not torch.equal(base, latents(pipeline, [layout(1, 2)], 0))
    pipeline.save_pretrained(tmp_path)
    again = AnnotationTokensPipeline.from_pretrained(tmp_path, use_safetensors=True)
    again.set_progress_bar_config(disable=True)
    assert again.bins == 32
    torch.testing.assert_close(latents(again, [layout(0, 2)], 0), base)


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (
            Layout(47, 48, np.zeros((0, 4), np.float32), ()),
            "canvas width 47 px must be a multiple of 2",
        ),
        (
            Layout(48, 48, np.array([[-4, 0, 8, 8]], np.float32), ("dog",)),
            r"boxes\[0\]: \[-4.0, 0.0, 8.0, 8.0\] is not inside",
        ),
    ],
)
def test_an_error_names_what_cannot_be_generated(
    pipeline: AnnotationTokensPipeline, of: Layout, message: str
) -> None:
    with pytest.raises(IncompatibleLayoutError, match=message):
        pipeline([of])


def test_prompts_beyond_the_text_encoder_are_cut_with_a_warning(
    pipeline: AnnotationTokensPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.no_grad():
        long, cut = (pipeline.encode_prompts([" ".join(["grass"] * n)]) for n in (90, 31))
    torch.testing.assert_close(long, cut)
    assert "92 tokens, but the text encoder reads only the first 32" in caplog.text


def test_a_recipe_generates_images_and_its_errors_are_named(checkpoint: Path) -> None:
    spec = Spec(model=str(checkpoint), steps=2)
    painted = spec.load(SceneSpec(), Numerics())(
        [Scene(layout(0, 3), "sand")], [np.random.SeedSequence(0)]
    )
    assert painted[0].image.shape == (48, 48, 3)
    with pytest.raises(ConfigError, match="categories: 'tree' is not a COCO category"):
        load_job(
            "100dogs",
            [
                "pipeline=annotation-tokens-tiny",
                "layout.objects={tree: 3}",
                "categories={tree: 101}",
            ],
        )
