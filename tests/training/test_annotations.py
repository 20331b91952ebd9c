"""Training of checkpoints that read annotations, as tokens or as a mask."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image

from synthgen.config import ConfigError, load_training
from synthgen.layouts.base import Layout
from synthgen.pipelines.annotation_mask.pipeline import AnnotationMaskPipeline
from synthgen.pipelines.annotation_tokens.pipeline import AnnotationTokensPipeline
from synthgen.training.annotation_mask import Spec as MaskSpec
from synthgen.training.annotation_mask.trainee import AnnotationMaskTrainee
from synthgen.training.annotation_tokens import Spec as TokensSpec
from synthgen.training.annotation_tokens.trainee import AnnotationTokensTrainee

IDS = {"ball": 29, "tree": 30}


def settings(checkpoint: Path, **more: Any) -> dict[str, Any]:
    """Return a training job without its task."""
    return {
        "version": 1,
        "name": "x",
        "steps": 1,
        "output": {"path": "x"},
        "init": str(checkpoint),
        "windows": [32, 48],
        "batch_size": 1,
        "data": {"side": 96, "scenes": 4},
        "categories": IDS,
        **more,
    }


@pytest.fixture(scope="module")
def tokens(checkpoint: Path) -> AnnotationTokensTrainee:
    return AnnotationTokensTrainee(TokensSpec.model_validate(settings(checkpoint, bins=16)))


@pytest.fixture(scope="module")
def mask(checkpoint: Path) -> AnnotationMaskTrainee:
    return AnnotationMaskTrainee(MaskSpec.model_validate(settings(checkpoint)))


def train_on(trainee: Any, batch: Any, rate: float, steps: int = 12) -> list[float]:
    """Train on one batch, and return the loss of each step."""
    optimiser = torch.optim.AdamW([p for p in trainee.parameters() if p.requires_grad], rate)
    losses = []
    for _ in range(steps):
        loss = trainee(batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


def has_gradient(parameters: list[torch.nn.Parameter]) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in parameters)


def test_each_window_is_given_its_boxes_as_texts(tokens: AnnotationTokensTrainee) -> None:
    batch = next(tokens.batches(0, 0))
    assert any(map(len, batch.layouts))
    all_texts = tokens.reader.texts(batch.layouts, "compact", {})
    for texts, layout in zip(all_texts, batch.layouts, strict=True):
        assert len(texts) == len(layout)
        shares = layout.boxes / ([layout.width, layout.height] * 2)
        for text, box in zip(texts, shares.tolist(), strict=True):
            numbers = [int(word[5:-1]) for word in text.split() if word.startswith("<loc_")]
            x0, y0, x1, y1 = (min(15, int(share * 16)) for share in box)
            assert numbers == [16 * y0 + x0, 16 * y1 + x1]


def test_each_token_belongs_to_the_box_that_it_describes(tokens: AnnotationTokensTrainee) -> None:
    batch = next(tokens.batches(0, 0))
    with torch.no_grad():
        tokens(batch)
    all_texts = tokens.reader.texts(batch.layouts, "compact", {})
    for owners, texts in zip(tokens.find_owners(all_texts), all_texts, strict=True):
        ids = [tokens.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        lengths = [len(text_ids) for text_ids in ids]
        assert owners.sum(0)[: len(texts)].tolist() == lengths
        assert owners.sum() == sum(lengths)


def test_recording_attention_does_not_change_the_prediction(
    tokens: AnnotationTokensTrainee,
) -> None:
    batch = next(tokens.batches(0, 0))
    with torch.no_grad():
        plain = tokens(batch).item()
        processors = dict(tokens.unet.attn_processors)
        tokens.unet.set_attn_processor(AttnProcessor2_0())
        assert tokens(batch).item() == pytest.approx(plain, rel=1e-5)
        tokens.unet.set_attn_processor(processors)
    assert tokens(batch).item() > plain


def test_the_rehearsal_trains_attention_alone_on_pure_noise(checkpoint: Path) -> None:
    spec = TokensSpec.model_validate(
        settings(checkpoint, bins=16, rehearse=2, windows=[48, 48], seed=2)
    )
    trainee = AnnotationTokensTrainee(spec)
    first, second, third = islice(trainee.batches(0, 0), 3)
    assert (first.is_rehearsal, second.is_rehearsal, third.is_rehearsal) == (True, True, False)
    for layout in first.layouts:
        sides = layout.boxes[:, 2:] - layout.boxes[:, :2]
        assert 1 <= len(layout) <= 4
        assert (layout.boxes >= 0).all()
        assert (layout.boxes <= 48).all()
        assert ((sides > 11.9) & (sides < 24.1)).all()
    assert first.latents.x.abs().max() == 0
    assert set(first.latents.t.tolist()) == {999}
    again = next(trainee.batches(1, 0))
    np.testing.assert_array_equal(again.layouts[0].boxes, second.layouts[0].boxes)
    for batch, others_are_trained in ((first, False), (third, True)):
        trainee.zero_grad()
        trainee(batch).backward()
        assert has_gradient(trainee.box_parameters())
        assert has_gradient(trainee.other_parameters()) == others_are_trained
    losses = train_on(trainee, first, 1e-2, 20)
    assert losses[-1] < 0.95 * losses[0]  # the attention loss alone


def test_tokens_of_neighbouring_places_start_similar(tokens: AnnotationTokensTrainee) -> None:
    ids = tokens.tokenizer.convert_tokens_to_ids([f"<loc_{k}>" for k in range(256)])
    fresh = AnnotationTokensTrainee(tokens.spec)  # the fixture has been trained by other tests
    embeddings = fresh.text.get_input_embeddings().weight[ids].detach()
    e = torch.nn.functional.normalize(embeddings, dim=1)
    similarity = (e @ e.T).reshape(16, 16, 16, 16)
    beside = similarity.diagonal(0, 0, 2).diagonal(1, 0, 1)
    below = similarity.diagonal(0, 1, 3).diagonal(1, 0, 1)
    apart = torch.stack([similarity[0, 0, 12:, 12:], similarity[12:, 0, 0, 12:]])
    assert min(beside.min(), below.min()) > apart.max()


def test_tokens_are_trained_and_saved(tokens: AnnotationTokensTrainee, tmp_path: Path) -> None:
    losses = train_on(tokens, next(tokens.batches(0, 0)), 1e-2)
    assert losses[-1] < 0.97 * losses[0]
    tokens.options["num_inference_steps"] = 1
    with torch.no_grad():
        assert tokens(tokens.drop_boxes(next(tokens.batches(0, 0)))) > 0
        assert tokens.render_sheet().size == (4 * 48, 2 * 48)
    tokens.export(tmp_path)
    loaded = AnnotationTokensPipeline.from_pretrained(tmp_path, use_safetensors=True)
    assert loaded.bins == 16
    again = AnnotationTokensTrainee(TokensSpec.model_validate(settings(tmp_path, bins=99)))
    assert again.reader.bins == 16  # the tokens of the checkpoint are kept


def test_the_trained_weights_can_be_chosen(checkpoint: Path) -> None:
    spec = TokensSpec.model_validate(
        settings(checkpoint, train="attention", train_text_encoder=False, form="literal")
    )
    trainee = AnnotationTokensTrainee(spec)
    trained = {name for name, p in trainee.named_parameters() if p.requires_grad}
    assert all(".attn2." in name or "token_embedding" in name for name in trained)
    assert any("token_embedding" in name for name in trained)
    all_texts = trainee.reader.texts(next(trainee.batches(0, 0)).layouts, "literal", IDS)
    assert any(all_texts)
    for texts in all_texts:
        assert all(text.startswith("label_") for text in texts)


def test_a_lora_is_merged_into_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    spec = MaskSpec.model_validate(settings(checkpoint, lora={"rank": 2}))
    trainee = AnnotationMaskTrainee(spec)
    trained = {name for name, p in trainee.unet.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "conv_in." in name for name in trained)
    batch = next(trainee.batches(0, 0))
    train_on(trainee, batch, 1e-2, 2)
    trainee.export(tmp_path)
    assert list((tmp_path / "lora").glob("*.safetensors"))
    again = AnnotationMaskTrainee(MaskSpec.model_validate(settings(tmp_path)))
    assert not any("lora_" in name for name, _ in again.unet.named_parameters())
    with torch.no_grad():
        assert again(batch).item() == pytest.approx(trainee(batch).item(), rel=1e-2)  # fp16


def test_widening_the_input_does_not_change_the_prediction(mask: AnnotationMaskTrainee) -> None:
    batch = next(mask.batches(0, 0))
    assert mask.unet.config.in_channels == 2 * mask.vae[0].config.latent_channels
    with torch.no_grad():
        assert mask(batch).item() == pytest.approx(mask(mask.drop_boxes(batch)).item())


def test_masks_are_encoded_as_in_the_pipeline(mask: AnnotationMaskTrainee) -> None:
    for scene, image in islice(mask.scenes.iterate_from(0), 3):
        encoded = mask.encode(scene, image)
        assert encoded.mask_latents is not None
        assert encoded.mask_latents.shape == encoded.latents.shape
        height, width = image.shape[:2]
        empty = mask.encode_mask(Layout(width, height, np.zeros((0, 4), np.float32), ()))
        assert bool((encoded.mask_latents != empty).any()) == bool(len(scene.layout))


def test_masks_are_trained_and_saved(mask: AnnotationMaskTrainee, tmp_path: Path) -> None:
    losses = train_on(mask, next(mask.batches(0, 0)), 1e-2)
    assert losses[-1] < 0.97 * losses[0]
    mask.options["num_inference_steps"] = 1
    with torch.no_grad():
        assert isinstance(mask.render_sheet(), Image.Image)
    mask.export(tmp_path)
    assert AnnotationMaskPipeline.from_pretrained(tmp_path, use_safetensors=True).trained
    again = AnnotationMaskTrainee(MaskSpec.model_validate(settings(tmp_path)))
    assert again.unet.conv_in.weight.shape == mask.unet.conv_in.weight.shape


@pytest.mark.parametrize(
    ("task", "override", "message"),
    [
        (
            "annotation-mask",
            "categories={ball: 29, tree: 29}",
            "categories: 'tree' and 'ball' have the same id 29",
        ),
        (
            "annotation-mask",
            "label_range=29",
            "label_range: must be at least 30, the category id of 'tree'",
        ),
        (
            "annotation-tokens",
            "windows=[300, 200]",
            "windows: [300, 200] must be two sides from 16 px to data.side, 512 px",
        ),
    ],
)
def test_errors_of_a_job_name_the_key(task: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_training(f"train-{task}", [override])
    assert message in str(caught.value)
