"""Training of new classes: identifiers, trained weights, prior preservation, and their use."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

from synthgen.config import ConfigError, Job, load_training
from synthgen.dataset.check import check_dataset
from synthgen.engine.generation import run
from synthgen.pipelines.diffusion.sources import find_lora
from synthgen.pipelines.mixture.pipeline import MixturePipeline
from synthgen.report import write_report
from synthgen.storage.location import open_store
from synthgen.training.dreambooth import Concept, Spec, read_concepts
from synthgen.training.dreambooth.trainee import DreamBoothTrainee
from synthgen.training.loop import read_log, train

DOG = "a dog, sand"


def draw_cutouts(folder: Path, colour: tuple[int, int, int], number: int = 3) -> Path:
    """Write discs on a transparent background as cut-outs."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[-1:1:24j, -1:1:32j]
    alpha = np.where(x**2 + y**2 < 1, 255, 0)
    rgb = np.broadcast_to(np.array(colour), (*alpha.shape, 3))
    image = Image.fromarray(np.dstack([rgb, alpha]).astype(np.uint8))
    for k in range(number):
        image.save(folder / f"{k}.png")
    return folder


@dataclass(frozen=True)
class Studio:
    """A folder with images of classes, and a checkpoint to train on."""

    folder: Path
    init: Path

    def write_job(self, *identifiers: str, **more: Any) -> Path:
        """Write a training job, and return its file."""
        concepts = []
        for name in identifiers:
            images = str(self.folder / name)
            concepts.append({"identifier": f"<{name}>", "category": "dog", "images": images})
        job = {
            "version": 1,
            "name": "x",
            "task": "dreambooth",
            "steps": 4,
            "batch_size": 2,
            "learning_rate": 1e-3,
            "warmup": 1,
            "init": str(self.init),
            "concepts": concepts,
            "prior_images": 2,
            "prior_steps": 1,
            "data": {"side": 64, "scenes": 4, "fresh": 1},
            "output": {"path": str(self.folder / "out"), "every": 2},
            **more,
        }
        path = self.folder / "training.yaml"
        path.write_text(json.dumps(job))
        return path

    def spec(self, *identifiers: str, **more: Any) -> Spec:
        spec = load_training(str(self.write_job(*identifiers, **more)))
        assert isinstance(spec, Spec)
        return spec


@pytest.fixture
def studio(tmp_path: Path, checkpoint: Path) -> Studio:
    draw_cutouts(tmp_path / "rex", (30, 60, 220))
    draw_cutouts(tmp_path / "bud", (220, 40, 40))
    (tmp_path / "photo").mkdir()
    Image.effect_noise((40, 56), 80).convert("RGB").save(tmp_path / "photo/1.jpg")
    return Studio(tmp_path, checkpoint)


def embed_prompt(trainee: DreamBoothTrainee, prompt: str) -> torch.Tensor:
    """Return the embeddings of a prompt's tokens."""
    embeddings: torch.Tensor = trainee.text.get_input_embeddings()(trainee.tokenize([prompt]))
    return embeddings.detach().clone()


def test_an_identifier_is_one_word_that_starts_as_its_category(
    studio: Studio, tmp_path: Path
) -> None:
    trainee = DreamBoothTrainee(studio.spec("rex", "bud"))
    tokens = trainee.tokenizer.tokenize("a <rex> dog, sand")
    words = [token.removesuffix("</w>") for token in tokens]
    assert words == ["a", "<rex>", "dog", ",", "sand"]
    with torch.no_grad():
        new = trainee.text(trainee.tokenize(["a <bud>, sand"])).last_hidden_state
        old = trainee.text(trainee.tokenize(["a dog, sand"])).last_hidden_state
    torch.testing.assert_close(new, old)
    trainee.export(tmp_path / "ckpt")
    again = CLIPTokenizer.from_pretrained(tmp_path / "ckpt/tokenizer")
    assert again("a <rex> dog").input_ids == trainee.tokenizer("a <rex> dog").input_ids
    assert len(again("a <rex> dog").input_ids) == 5


@pytest.mark.parametrize("train_text", [False, True])
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_the_chosen_weights_are_trained(
    studio: Studio, lora: dict[str, int] | None, train_text: bool
) -> None:
    trainee = DreamBoothTrainee(studio.spec("rex", lora=lora, train_text_encoder=train_text))
    parameters = dict(trainee.named_parameters())
    trained = {name for name, p in parameters.items() if p.requires_grad}
    words = {name for name in trained if "trainable_tokens" in name}
    rates = {}
    for group in trainee.parameter_groups():
        for parameter in group["params"]:
            rates[id(parameter)] = group.get("rate", 1.0)
    word_rate = trainee.spec.word_rate
    assert {name for name, p in parameters.items() if rates.get(id(p)) == word_rate} == words
    assert len(rates) == len(trained)
    layers = {name for name in trained if name.startswith("text.")} - words
    unet = {name for name in trained if name.startswith("unet.")}
    assert len(words) == 1
    assert bool(layers) == train_text
    assert not any("token_embedding" in name for name in layers)
    if lora:
        assert not any("position_embedding" in name for name in layers)
        assert all("lora_" in name for name in unet | layers)
    else:
        assert unet == {name for name in parameters if name.startswith("unet.")}
    old = embed_prompt(trainee, DOG)
    trainee(next(trainee.batches(0, 0))).backward()
    optimiser = torch.optim.AdamW([parameters[name] for name in trained], 0.1, weight_decay=0.1)
    optimiser.step()
    assert torch.equal(old, embed_prompt(trainee, DOG))
    new = embed_prompt(trainee, "<rex>")[0, 1]
    assert not torch.allclose(new, embed_prompt(trainee, "dog")[0, 1], atol=0.05)


def test_a_new_lora_changes_nothing_and_its_file_holds_all_changes(
    studio: Studio, tmp_path: Path
) -> None:
    trainee = DreamBoothTrainee(studio.spec("rex", lora={"rank": 2}))
    base = MixturePipeline.from_pretrained(studio.init, dtype=torch.float32)
    z = torch.randn(2, 3, 8, 8)
    t = torch.tensor([10, 900])
    words = trainee.text(trainee.tokenize([DOG, ""])).last_hidden_state
    with torch.no_grad():
        torch.testing.assert_close(trainee.unet(z, t, words).sample, base.unet(z, t, words).sample)
    for name, weight in trainee.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    trainee.export(tmp_path / "ckpt")
    original = MixturePipeline.from_pretrained(studio.init)
    merged = MixturePipeline.from_pretrained(tmp_path / "ckpt", dtype=torch.float32)
    base.merge_lora(find_lora(str(tmp_path / "ckpt/lora")))
    with torch.no_grad():
        expected = trainee.unet(z, t, words).sample
        assert (expected - original.unet(z, t, words).sample).abs().max() > 0.1
        for pipeline in (merged, base):
            predicted = pipeline.unet(z, t, words).sample
            torch.testing.assert_close(predicted, expected, atol=0.02, rtol=0.02)


def test_earlier_classes_are_kept_and_part_of_the_prior(studio: Studio, tmp_path: Path) -> None:
    DreamBoothTrainee(studio.spec("rex")).export(tmp_path / "first")
    trainee = DreamBoothTrainee(studio.spec("bud", init=str(tmp_path / "first")))
    prompts = ("a {category}",)
    assert trainee.prior_classes == [("dog", prompts), ("<rex> dog", prompts), ("", ())]
    phrases = set()
    for scene in trainee.prior:
        phrases |= {window.caption.partition(",")[0] for window in scene.object_windows}
    assert phrases == {"a dog", "a <rex> dog"}
    scenes = [trainee.encode(*trainee.concepts[k]) for k in range(2)]
    rex = trainee.tokenizer.convert_tokens_to_ids("<rex>")
    bud = trainee.tokenizer.convert_tokens_to_ids("<bud>")
    rehearsed = False
    for k in range(12):
        new, kept = trainee.make_batch(scenes, np.random.default_rng(k))
        rehearsed |= bool((kept[1] == rex).any())
        assert (new[1] == bud).any(1).all()
        assert not (kept[1] == bud).any()
    assert rehearsed
    trainee.export(tmp_path / "second")
    assert read_concepts(tmp_path / "second") == [
        Concept(identifier="<rex>", category="dog"),
        Concept(identifier="<bud>", category="dog"),
    ]


def test_the_prior_is_generated_by_the_checkpoint_before_training(studio: Studio) -> None:
    spec = studio.spec("rex")
    first = [scene.latents for scene in DreamBoothTrainee(spec).prior]
    (studio.folder / "out/prior.safetensors").unlink()
    trainee = DreamBoothTrainee(spec)
    for weight in trainee.unet.parameters():
        torch.nn.init.normal_(weight)
    assert len(first) == 2 * spec.prior_images
    for latents, scene in zip(first, trainee.prior, strict=True):
        assert torch.equal(latents, scene.latents)


def test_the_loss_of_the_prior_is_weighted(studio: Studio) -> None:
    trainee = DreamBoothTrainee(studio.spec("rex", prior_weight=3.0))
    batch = next(trainee.batches(0, 0))
    with torch.no_grad():
        new, kept = (trainee.half_loss(half).item() for half in batch)
        assert trainee(batch).item() == pytest.approx(new + 3 * kept)


def test_photographs_fill_whole_windows(studio: Studio) -> None:
    trainee = DreamBoothTrainee(studio.spec("photo", "rex"))
    photos = []
    for k in range(12):
        scene, image = trainee.concepts[k]
        if image.shape == (16, 16, 3):
            photos.append((scene, image))
        else:
            assert set(scene.layout.categories) <= {"<rex> dog"}
    assert 0 < len(photos) < 12
    window = trainee.encode(*photos[0]).object_windows[0]
    assert (window.y, window.x, window.h, window.w, window.caption) == (0, 0, 8, 8, "a <photo> dog")


def test_an_interrupted_run_resumes_to_the_same_losses_and_weights(
    studio: Studio, tmp_path: Path
) -> None:
    job = str(studio.write_job("rex", lora={"rank": 2}, ema=0.9))
    train(load_training(job, [f"output.path={tmp_path / 'whole'}"]))
    resumed = load_training(job)

    def interrupt_after_three(step: int, loss: float, activity: str) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    assert train(resumed, interrupt_after_three).interrupted
    assert train(resumed).step == 4
    assert read_log(tmp_path / "out/log.jsonl") == read_log(tmp_path / "whole/log.jsonl")
    out = tmp_path / "out/checkpoint"
    whole = tmp_path / "whole/checkpoint"
    for file in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    pipeline = MixturePipeline.from_pretrained(whole, dtype=torch.float32)
    rex, dog = pipeline.tokenizer.convert_tokens_to_ids(["<rex>", "dog</w>"])
    embedding = pipeline.text_encoder.get_input_embeddings().weight
    # without word_rate, 4 steps of at most 0.001 would not be enough
    assert (embedding[rex] - embedding[dog]).abs().max() > 0.01
    figures = read_log(tmp_path / "out/figures.jsonl")[-1]
    assert set(figures) == {"step", "concept_loss", "prior_loss"}
    assert Image.open(tmp_path / "out/samples/0000004.png").size == (4 * 24, 2 * 24)
    assert Image.open(tmp_path / "out/prior.png").size == (2 * 64, 2 * 64)


@pytest.mark.parametrize("method", ["mixture", "paste"])
def test_identifiers_are_categories_of_a_layout(
    studio: Studio, make_job: Callable[..., Job], tmp_path: Path, method: str
) -> None:
    names = {"<rex> dog": 91, "<bud> dog": 92, "dog": 18}
    if method == "mixture":
        DreamBoothTrainee(studio.spec("rex", "bud")).export(tmp_path / "ckpt")
        pipeline = [f"pipeline={{method: mixture, model: {tmp_path / 'ckpt'}, steps: 1}}"]
    else:
        for name in names:
            shutil.copytree(studio.folder / "rex", tmp_path / "cutouts" / name)
        pipeline = [f"pipeline={{method: paste, cutouts: {tmp_path / 'cutouts'}}}"]
    objects = 'layout.objects={"<rex> dog": 2, <bud> dog: 1, dog: 1}'
    job = make_job(
        objects,
        'categories={"<rex> dog": 91, "<bud> dog": 92}',
        "images=2",
        *pipeline,
        "scene.object=a {category}",
    )
    run(job)
    out = Path(job.output.path)
    assert check_dataset(open_store(out))[0] == []
    coco = json.loads((out / "annotations/instances.json").read_text())
    assert {category["name"]: category["id"] for category in coco["categories"]} == names
    ids = sorted(annotation["category_id"] for annotation in coco["annotations"])
    assert ids == 2 * [18] + 4 * [91] + 2 * [92]
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    assert "2 <rex> dog" in rows[0]["prompt"]
    card = (out / "README.md").read_text()
    assert "<rex>" not in card
    write_report(open_store(out))
    page = (out / "report.html").read_text()
    assert "<rex>" not in page
    assert "\\u003crex> dog" in page
    assert "&lt;rex&gt; dog" in page


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("concepts", [("rex", "rex")], "concepts.0.identifier: 'rex': string should match pattern"),
        ("concepts", [("<rex>", "none")], "none' is not a folder with images"),
        ("concepts", [("<rex>", "broken")], "broken/1.png' is not an image that can be read"),
        ("concepts", [("<rex>", "small")], "small/1.png' is 8 x 8 px; give at least 16 px a side"),
        ("concepts", [("<rex>", "clear")], "clear/1.png' is transparent but for 0.0%"),
        ("concepts", [("<rex>", "both")], "mixes cut-outs and photographs (1.jpg is opaque)"),
        ("concepts", [("<rex>", "rex"), ("<rex>", "bud")], "concepts: <rex> is a duplicate"),
        ("init", "nowhere", "init: model 'nowhere': no folder of that name"),
        ("init", "first", "concepts: <rex> is a class of first already"),
        ("sizes", [20, 80], "sizes: [20, 80] must be two sides from 16 to 40 px"),
        ("sizes", [40, 20], "sizes: [40, 20] must be two sides"),
        ("data", {"side": 65}, "data.side: 65 px must be a multiple of 2 and at least 16"),
        ("prior_prompts", ["a dog"], "prior_prompts: 'a dog': must name {category}"),
        ("data", {"side": 64, "shards": "dataset"}, "data.shards: not read"),
    ],
)
def test_errors_of_a_job_name_the_key(
    studio: Studio,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    value: Any,
    message: str,
) -> None:
    for name in ("broken", "small", "clear", "both", "dataset/shards"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "dataset/shards/000000.tar").touch()
    (tmp_path / "broken/1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    Image.new("RGB", (8, 8)).save(tmp_path / "small/1.png")
    Image.new("RGBA", (32, 32)).save(tmp_path / "clear/1.png")
    shutil.copy(tmp_path / "rex/0.png", tmp_path / "both")
    shutil.copy(tmp_path / "photo/1.jpg", tmp_path / "both")
    shutil.copytree(studio.init, tmp_path / "first")
    (tmp_path / "first/concepts.json").write_text('[{"identifier": "<rex>", "category": "dog"}]')
    if key == "concepts":
        concepts = []
        for identifier, images in value:
            concepts.append({"identifier": identifier, "category": "dog", "images": images})
        value = concepts
    monkeypatch.chdir(tmp_path)
    job = studio.write_job("rex", **{key: value})
    with pytest.raises(ConfigError) as caught:
        load_training(str(job))
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()
