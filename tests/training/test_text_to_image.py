"""Training of UNet and text encoder: windows, captions, and a checkpoint that loads."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from synthgen import cli
from synthgen.pipelines.mixture.pipeline import MixturePipeline
from synthgen.training.text_to_image import Spec
from synthgen.training.text_to_image.trainee import TextToImageTrainee, make_tokenizer
from synthgen.training.windows import MAX_SIDE, MIN_SIDE, sample_scene_window
from tests.training.test_annotations import train_on

VAE = "synthgen/weights/synthgen-tiny"
JOB = {"version": 1, "name": "x", "steps": 1, "output": {"path": "x"}, "vae": VAE}


@pytest.fixture(scope="module")
def trainee() -> TextToImageTrainee:
    sizes = {"channels": (16, 32, 32), "text_dim": 32, "batch_size": 4}
    torch.manual_seed(0)
    return TextToImageTrainee(
        Spec.model_validate({**JOB, **sizes, "data": {"side": 256, "scenes": 12}})
    )


@pytest.mark.parametrize("prompt", ["a white and black dog, a field of grass", "gravel"])
def test_each_word_of_a_caption_is_one_token(prompt: str) -> None:
    tokens = make_tokenizer([prompt]).tokenize(prompt)
    words = [token.removesuffix("</w>") for token in tokens]
    assert words == prompt.replace(",", " ,").split()


def test_windows_contain_their_objects(trainee: TextToImageTrainee) -> None:
    for scene, image in islice(trainee.scenes.iterate_from(0), 6):
        encoded = trainee.encode(scene, image)
        objects = zip(encoded.object_windows, encoded.boxes, scene.phrases, strict=True)
        for window, box, phrase in objects:
            assert window.caption == f"{phrase}, {scene.background}"
            assert window.h % 4 == window.w % 4 == 0
            assert 4 * min(window.h, window.w) >= MIN_SIDE
            assert 4 * max(window.h, window.w) <= MAX_SIDE
            assert window.x - 1 <= box[0]
            assert box[2] <= window.x + window.w + 1


def test_the_caption_of_a_scene_window_names_its_objects(trainee: TextToImageTrainee) -> None:
    for pair in trainee.scenes.iterate_from(0):
        encoded = trainee.encode(*pair)
        if len(encoded.object_windows) > 2:
            break
    rows, columns = encoded.latents.shape[1:]
    window = sample_scene_window(encoded, rows, columns, np.random.default_rng(0))
    background, _, objects = window.caption.partition(" with ")
    phrases = objects.split(", ")
    assert background == encoded.scene.background
    assert len(phrases) == min(4, len(encoded.object_windows))
    assert set(phrases) <= set(encoded.scene.phrases)


def test_batches_are_a_function_of_step_and_rank(trainee: TextToImageTrainee) -> None:
    two, three = islice(trainee.batches(2, 0), 2)
    again = next(trainee.batches(3, 0))
    for a, b in zip(three, again, strict=True):
        torch.testing.assert_close(a, b)
    assert two[0].shape != three[0].shape or not torch.equal(two[0], three[0])
    other_rank = next(trainee.batches(3, 1))
    assert other_rank[3].shape != three[3].shape or not torch.equal(other_rank[3], three[3])


def test_the_trainee_learns_one_batch(trainee: TextToImageTrainee) -> None:
    losses = train_on(trainee, next(trainee.batches(0, 0)), 2e-3)
    assert losses[-1] < 0.8 * losses[0]


def test_gated_layers_are_closed_and_frozen(trainee: TextToImageTrainee) -> None:
    gates = [p for name, p in trainee.unet.named_parameters() if "alpha" in name]
    assert gates
    assert not any(gate.requires_grad or gate.abs().max() > 0 for gate in gates)


def test_an_exported_checkpoint_generates_images(
    trainee: TextToImageTrainee, tmp_path: Path
) -> None:
    trainee.export(tmp_path)
    assert "synthgen/weights" not in (tmp_path / "vae/config.json").read_text()
    pipeline = MixturePipeline.from_pretrained(tmp_path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    scene, _ = next(trainee.scenes.iterate_from(0))
    (image,) = pipeline([scene.layout], "sand", num_inference_steps=1, output_type="np")
    assert image.shape == (256, 256, 3)


def test_training_on_a_checkpoint_keeps_its_words() -> None:
    job = {**JOB, "init": "synthgen-tiny", "data": {"side": 128, "scenes": 4}}
    trainee = TextToImageTrainee(Spec.model_validate(job))
    pipeline = MixturePipeline.from_pretrained(VAE, dtype=torch.float32)
    prompt = ["a brown dog, a field of grass"]
    with torch.no_grad():
        ours = trainee.text(trainee.tokenize(prompt)).last_hidden_state
        theirs = pipeline.encode_prompts(prompt)
    n = len(trainee.tokenizer(prompt[0]).input_ids)  # the padding's token may differ
    torch.testing.assert_close(ours[:, : n - 1], theirs[:, : n - 1], atol=1e-3, rtol=1e-2)
    for name, weight in pipeline.unet.state_dict().items():
        assert torch.equal(trainee.unet.state_dict()[name], weight.float())


def test_a_checkpoint_of_other_sizes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    job = [
        "train-tiny",
        "init=synthgen-tiny",
        f"vae={VAE}",
        "data.side=128",
        "data.scenes=4",
        "channels=[32, 64]",
        f"output.path={out}",
    ]
    assert cli.main(["train", *job]) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("synthgen: init: synthgen-tiny: not of the job's channels: ")
    assert captured.count("\n") == 1
    assert not [path for path in out.rglob("*") if path.is_file()]
