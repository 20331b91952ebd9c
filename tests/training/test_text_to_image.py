"""Training of UNet and text encoder: windows as the pipeline cuts them, captions, and a checkpoint that loads."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from synthgen import cli
from synthgen.pipelines.mixture.pipeline import MixturePipeline
from synthgen.training.text_to_image import Spec
from synthgen.training.text_to_image.trainee import TextToImageTrainee, new_tokenizer
from synthgen.training.windows import LEAST, MOST, scene_window

VAE = "synthgen/weights/synthgen-tiny"


@pytest.fixture(scope="module")
def trainee() -> TextToImageTrainee:
    base = {
        "version": 1,
        "name": "x",
        "steps": 1,
        "output": {"path": "x"},
        "channels": (16, 32, 32),
        "text_dim": 32,
        "vae": VAE,
    }
    torch.manual_seed(0)
    return TextToImageTrainee(
        Spec.model_validate({**base, "batch_size": 4, "data": {"side": 256, "scenes": 12}})
    )


@pytest.mark.parametrize("prompt", ["a white and black dog, a field of grass", "gravel"])
def test_caption_words_are_one_token_each(prompt: str) -> None:
    tokens = new_tokenizer([prompt]).tokenize(prompt)
    assert [t.removesuffix("</w>") for t in tokens] == prompt.replace(",", " ,").split()


def test_windows_hold_their_objects(trainee: TextToImageTrainee) -> None:
    for pair in islice(trainee.scenes.from_number(0), 6):
        encoded = trainee.encode(*pair)
        for window, box, phrase in zip(
            encoded.objects, encoded.boxes, pair[0].phrases, strict=True
        ):
            assert window.caption == f"{phrase}, {pair[0].background}"
            assert window.h % 4 == window.w % 4 == 0
            assert 4 * min(window.h, window.w) >= LEAST
            assert 4 * max(window.h, window.w) <= MOST
            assert window.x - 1 <= box[0]
            assert box[2] <= window.x + window.w + 1


def test_scene_window_names_what_is_in_it(trainee: TextToImageTrainee) -> None:
    encoded = next(
        e for e in (trainee.encode(*p) for p in trainee.scenes.from_number(0)) if len(e.objects) > 2
    )
    rows, columns = encoded.latents.shape[1:]
    whole = scene_window(encoded, rows, columns, np.random.default_rng(0))
    ground, _, named = whole.caption.partition(" with ")
    assert ground == encoded.scene.background
    assert len(named.split(", ")) == min(4, len(encoded.objects))
    assert set(named.split(", ")) <= set(encoded.scene.phrases)


def test_batches_are_a_function_of_the_step(trainee: TextToImageTrainee) -> None:
    two, three = islice(trainee.batches(2, 0), 2)
    again = next(trainee.batches(3, 0))
    for a, b in zip(three, again, strict=True):
        torch.testing.assert_close(a, b)
    assert two[0].shape != three[0].shape or not torch.equal(two[0], three[0])
    other_rank = next(trainee.batches(3, 1))
    assert other_rank[3].shape != three[3].shape or not torch.equal(other_rank[3], three[3])


def test_it_learns_one_batch(trainee: TextToImageTrainee) -> None:
    batch = next(trainee.batches(0, 0))
    weights = [p for p in trainee.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, 2e-3)
    losses = []
    for _ in range(12):
        loss = trainee(batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_gated_layers_are_there_and_shut(trainee: TextToImageTrainee) -> None:
    gates = [p for n, p in trainee.unet.named_parameters() if "alpha" in n]
    assert gates
    assert not any(p.requires_grad or p.abs().max() > 0 for p in gates)


def test_exported_checkpoint_paints(trainee: TextToImageTrainee, tmp_path: Path) -> None:
    trainee.export(tmp_path)
    assert "synthgen/weights" not in (tmp_path / "vae/config.json").read_text()
    pipeline = MixturePipeline.from_pretrained(tmp_path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    layout = trainee.scenes.from_number(0).__next__()[0].layout
    (image,) = pipeline([layout], "sand", num_inference_steps=1, output_type="np")
    assert image.shape == (256, 256, 3)


def test_start_from_a_checkpoint_keeps_its_words() -> None:
    base = {
        "version": 1,
        "name": "x",
        "steps": 1,
        "output": {"path": "x"},
        "vae": VAE,
        "init": "synthgen-tiny",
    }
    trainee = TextToImageTrainee(Spec.model_validate({**base, "data": {"side": 128, "scenes": 4}}))
    pipeline = MixturePipeline.from_pretrained(VAE, dtype=torch.float32)
    prompt = ["a brown dog, a field of grass"]
    with torch.no_grad():
        ours = trainee.text(trainee.tokens(prompt)).last_hidden_state
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
    assert not [p for p in out.rglob("*") if p.is_file()]
