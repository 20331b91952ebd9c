"""Training of checkpoints that read annotations, as tokens or as a mask: what is told, what is trained, and that it learns."""

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
    base = {
        "version": 1,
        "name": "x",
        "steps": 1,
        "output": {"path": "x"},
        "init": str(checkpoint),
        "windows": [32, 48],
    }
    return {**base, "batch_size": 1, "data": {"side": 96, "scenes": 4}, "categories": IDS, **more}


@pytest.fixture(scope="module")
def tokens(checkpoint: Path) -> AnnotationTokensTrainee:
    return AnnotationTokensTrainee(TokensSpec.model_validate(settings(checkpoint, bins=16)))


@pytest.fixture(scope="module")
def mask(checkpoint: Path) -> AnnotationMaskTrainee:
    return AnnotationMaskTrainee(MaskSpec.model_validate(settings(checkpoint)))


def losses(trainee: Any, batch: Any, rate: float, steps: int = 12) -> list[float]:
    optimiser = torch.optim.AdamW([p for p in trainee.parameters() if p.requires_grad], rate)
    found = []
    for _ in range(steps):
        loss = trainee(batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        found.append(loss.item())
    return found


def test_each_window_is_told_of_its_boxes_in_words(tokens: AnnotationTokensTrainee) -> None:
    batch = next(tokens.batches(0, 0))
    assert any(map(len, batch.told))
    for texts, own in zip(tokens.reader.texts(batch.told, "compact", {}), batch.told, strict=True):
        assert len(texts) == len(own)
        for text, box in zip(
            texts, (own.boxes / ([own.width, own.height] * 2)).tolist(), strict=True
        ):
            parts = [int(word[5:-1]) for word in text.split() if word.startswith("<loc_")]
            x0, y0, x1, y1 = (min(15, int(v * 16)) for v in box)
            assert parts == [16 * y0 + x0, 16 * y1 + x1]


def test_each_token_is_of_the_box_that_it_describes(tokens: AnnotationTokensTrainee) -> None:
    batch = next(tokens.batches(0, 0))
    with torch.no_grad():
        tokens(batch)
    texts = tokens.reader.texts(batch.told, "compact", {})
    for owners, own in zip(tokens.owners(texts), texts, strict=True):
        lengths = [len(tokens.tokenizer(t, add_special_tokens=False).input_ids) for t in own]
        assert owners.sum(0)[: len(own)].tolist() == lengths
        assert owners.sum() == sum(lengths)


def test_looks_are_watched_but_change_nothing(tokens: AnnotationTokensTrainee) -> None:
    batch = next(tokens.batches(0, 0))
    with torch.no_grad():
        plain = tokens(batch).item()
        usual = dict(tokens.unet.attn_processors)
        tokens.unet.set_attn_processor(AttnProcessor2_0())
        assert tokens(batch).item() == pytest.approx(plain, rel=1e-5)
        tokens.unet.set_attn_processor(usual)
    assert tokens(batch).item() > plain


def test_where_to_look_is_rehearsed_on_noise_alone(checkpoint: Path) -> None:
    spec = TokensSpec.model_validate(
        settings(checkpoint, bins=16, rehearse=2, windows=[48, 48], seed=2)
    )
    trainee = AnnotationTokensTrainee(spec)
    first, second, third = islice(trainee.batches(0, 0), 3)
    assert (first.rehearsed, second.rehearsed, third.rehearsed) == (True, True, False)
    for own in first.told:
        sides = own.boxes[:, 2:] - own.boxes[:, :2]
        assert 1 <= len(own) <= 4
        assert (own.boxes >= 0).all()
        assert (own.boxes <= 48).all()
        assert ((sides > 11.9) & (sides < 24.1)).all()
    assert first.noised.x.abs().max() == 0
    assert set(first.noised.t.tolist()) == {999}
    again = next(trainee.batches(1, 0))
    np.testing.assert_array_equal(again.told[0].boxes, second.told[0].boxes)
    for batch, rest_learns in ((first, False), (third, True)):
        trainee.zero_grad()
        trainee(batch).backward()
        assert any(p.grad is not None and p.grad.any() for p in trainee.readers())
        assert any(p.grad is not None and p.grad.any() for p in trainee.rest()) == rest_learns
    found = losses(trainee, first, 1e-2, 20)
    assert found[-1] < 0.95 * found[0]  # of where it looks alone


def test_places_near_each_other_begin_alike(tokens: AnnotationTokensTrainee) -> None:
    ids = tokens.tokenizer.convert_tokens_to_ids([f"<loc_{k}>" for k in range(256)])
    fresh = AnnotationTokensTrainee(tokens.spec)  # the other one has been trained on
    e = torch.nn.functional.normalize(fresh.text.get_input_embeddings().weight[ids].detach(), dim=1)
    alike = (e @ e.T).reshape(16, 16, 16, 16)
    beside, below = (
        alike.diagonal(0, 0, 2).diagonal(1, 0, 1),
        alike.diagonal(0, 1, 3).diagonal(1, 0, 1),
    )
    apart = torch.stack([alike[0, 0, 12:, 12:], alike[12:, 0, 0, 12:]])
    assert min(beside.min(), below.min()) > apart.max()


def test_tokens_are_learnt_and_kept(tokens: AnnotationTokensTrainee, tmp_path: Path) -> None:
    found = losses(tokens, next(tokens.batches(0, 0)), 1e-2)
    assert found[-1] < 0.97 * found[0]
    tokens.options["num_inference_steps"] = 1
    with torch.no_grad():
        assert tokens(tokens.untold(next(tokens.batches(0, 0)))) > 0
        assert tokens.sheet().size == (4 * 48, 2 * 48)
    tokens.export(tmp_path)
    loaded = AnnotationTokensPipeline.from_pretrained(tmp_path, use_safetensors=True)
    assert loaded.bins == 16
    again = AnnotationTokensTrainee(TokensSpec.model_validate(settings(tmp_path, bins=99)))
    assert again.reader.bins == 16  # those that it has


def test_what_is_trained_can_be_chosen(checkpoint: Path) -> None:
    spec = TokensSpec.model_validate(
        settings(checkpoint, train="attention", train_text_encoder=False, form="literal")
    )
    trainee = AnnotationTokensTrainee(spec)
    trained = {name for name, p in trainee.named_parameters() if p.requires_grad}
    assert all(".attn2." in name or "token_embedding" in name for name in trained)
    assert any("token_embedding" in name for name in trained)
    texts = trainee.reader.texts(next(trainee.batches(0, 0)).told, "literal", IDS)
    assert any(texts)
    assert all(text.startswith("label_") for own in texts for text in own)


def test_a_lora_is_merged_into_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    spec = MaskSpec.model_validate(settings(checkpoint, lora={"rank": 2}))
    trainee = AnnotationMaskTrainee(spec)
    trained = {name for name, p in trainee.unet.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "conv_in." in name for name in trained)
    batch = next(trainee.batches(0, 0))
    losses(trainee, batch, 1e-2, 2)
    trainee.export(tmp_path)
    assert list((tmp_path / "lora").glob("*.safetensors"))
    again = AnnotationMaskTrainee(MaskSpec.model_validate(settings(tmp_path)))
    assert not any("lora_" in name for name, _ in again.unet.named_parameters())
    with torch.no_grad():
        assert again(batch).item() == pytest.approx(trainee(batch).item(), rel=1e-2)  # fp16


def test_a_widened_unet_predicts_what_it_did(checkpoint: Path, mask: AnnotationMaskTrainee) -> None:
    batch = next(mask.batches(0, 0))
    assert mask.unet.config.in_channels == 2 * mask.vae[0].config.latent_channels
    with torch.no_grad():
        assert mask(batch).item() == pytest.approx(mask(mask.untold(batch)).item())


def test_masks_are_those_that_the_pipeline_paints(mask: AnnotationMaskTrainee) -> None:
    for pair in islice(mask.scenes.from_number(0), 3):
        scene = mask.encode(*pair)
        assert scene.beside is not None
        assert scene.beside.shape == scene.latents.shape
        black = mask.encode_mask(
            Layout(pair[1].shape[1], pair[1].shape[0], np.zeros((0, 4), np.float32), ())
        )
        assert bool((scene.beside != black).any()) == bool(len(pair[0].layout))


def test_masks_are_learnt_and_kept(mask: AnnotationMaskTrainee, tmp_path: Path) -> None:
    found = losses(mask, next(mask.batches(0, 0)), 1e-2)
    assert found[-1] < 0.97 * found[0]
    mask.options["num_inference_steps"] = 1
    with torch.no_grad():
        assert isinstance(mask.sheet(), Image.Image)
    mask.export(tmp_path)
    assert AnnotationMaskPipeline.from_pretrained(tmp_path, use_safetensors=True).trained
    again = AnnotationMaskTrainee(MaskSpec.model_validate(settings(tmp_path)))
    assert again.unet.conv_in.weight.shape == mask.unet.conv_in.weight.shape


def test_bad_recipes_are_named(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="categories: 'tree' and 'ball' have the same id 29"):
        load_training("train-annotation-mask", ["categories={ball: 29, tree: 29}"])
    with pytest.raises(
        ConfigError, match="label_range: must be at least 30, the category id of 'tree'"
    ):
        load_training("train-annotation-mask", ["label_range=29"])
    with pytest.raises(
        ConfigError,
        match=r"windows: \[300, 200\] must be two sides from 16 px to data.side, 512 px",
    ):
        load_training("train-annotation-tokens", ["windows=[300, 200]"])
