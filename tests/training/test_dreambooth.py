"""New classes by identifiers: words that do not split, what is trained, what is rehearsed, and what a job makes of them."""

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
from synthgen.engine.driver import run
from synthgen.pipelines.diffusion.models import find_lora
from synthgen.pipelines.mixture.pipeline import MixturePipeline
from synthgen.report import write_report
from synthgen.storage.location import open_store
from synthgen.training.dreambooth import Concept, Spec, earlier_concepts
from synthgen.training.dreambooth.trainee import DreamBoothTrainee
from synthgen.training.loop import read_log, train

DOG = "a dog, sand"


def draw_cutouts(folder: Path, colour: tuple[int, int, int], number: int = 3) -> Path:
    """Discs on transparent ground."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[-1:1:24j, -1:1:32j]
    alpha = np.where(x**2 + y**2 < 1, 255, 0)
    for k in range(number):
        pixels = np.dstack([np.full(alpha.shape, c) for c in colour] + [alpha]).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


@dataclass(frozen=True)
class Studio:
    """A folder with pictures of classes, and a base to train on."""

    folder: Path
    init: Path

    def job(self, *identifiers: str, **more: Any) -> Path:
        """A training job as a file."""
        concepts = [
            {"identifier": f"<{name}>", "category": "dog", "images": str(self.folder / name)}
            for name in identifiers
        ]
        job = {
            "version": 1, "name": "x", "task": "dreambooth", "steps": 4, "batch_size": 2, "learning_rate": 1e-3, "warmup": 1,
            "init": str(self.init), "concepts": concepts, "prior_images": 2, "prior_steps": 1,
            "data": {"side": 64, "scenes": 4, "fresh": 1}, "output": {"path": str(self.folder / "out"), "every": 2}, **more,
        }  # fmt: skip
        path = self.folder / "training.yaml"
        path.write_text(json.dumps(job))
        return path

    def spec(self, *identifiers: str, **more: Any) -> Spec:
        spec = load_training(str(self.job(*identifiers, **more)))
        assert isinstance(spec, Spec)
        return spec


@pytest.fixture
def studio(tmp_path: Path, checkpoint: Path) -> Studio:
    draw_cutouts(tmp_path / "rex", (30, 60, 220))
    draw_cutouts(tmp_path / "bud", (220, 40, 40))
    (tmp_path / "photo").mkdir()
    Image.effect_noise((40, 56), 80).convert("RGB").save(tmp_path / "photo/1.jpg")
    return Studio(tmp_path, checkpoint)


def test_an_identifier_is_one_word_that_reads_like_its_category(
    studio: Studio, tmp_path: Path
) -> None:
    trainee = DreamBoothTrainee(studio.spec("rex", "bud"))
    assert [t.removesuffix("</w>") for t in trainee.tokenizer.tokenize("a <rex> dog, sand")] == [
        "a",
        "<rex>",
        "dog",
        ",",
        "sand",
    ]
    with torch.no_grad():
        new, old = (
            trainee.text(trainee.tokens([f"a {word}, sand"])).last_hidden_state
            for word in ("<bud>", "dog")
        )
    torch.testing.assert_close(new, old)
    trainee.export(tmp_path / "ckpt")
    again = CLIPTokenizer.from_pretrained(tmp_path / "ckpt/tokenizer")
    assert again("a <rex> dog").input_ids == trainee.tokenizer("a <rex> dog").input_ids
    assert len(again("a <rex> dog").input_ids) == 5


@pytest.mark.parametrize("train_text", [False, True])
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_what_is_trained(studio: Studio, lora: dict[str, int] | None, train_text: bool) -> None:
    trainee = DreamBoothTrainee(studio.spec("rex", lora=lora, train_text_encoder=train_text))
    trained = {n for n, p in trainee.named_parameters() if p.requires_grad}
    words = {n for n in trained if "trainable_tokens" in n}
    rates = {id(p): group.get("rate", 1.0) for group in trainee.groups() for p in group["params"]}
    assert {
        n for n, p in trainee.named_parameters() if rates.get(id(p)) == trainee.spec.word_rate
    } == words
    assert len(rates) == len(trained)
    layers = {n for n in trained if n.startswith("text.")} - words
    unet = {n for n in trained if n.startswith("unet.")}
    assert len(words) == 1
    assert bool(layers) == train_text
    assert not any("token_embedding" in n or "position_embedding" in n for n in layers if lora)
    assert not any("token_embedding" in n for n in layers)
    assert (
        all("lora_" in n for n in unet | layers)
        if lora
        else unet == {n for n, _ in trainee.named_parameters() if n[:5] == "unet."}
    )
    old = trainee.text.get_input_embeddings()(trainee.tokens([DOG])).detach().clone()
    trainee(next(trainee.batches(0, 0))).backward()
    torch.optim.AdamW(
        [p for p in trainee.parameters() if p.requires_grad], 0.1, weight_decay=0.1
    ).step()
    assert torch.equal(old, trainee.text.get_input_embeddings()(trainee.tokens([DOG])))
    new, word = trainee.tokens(["<rex>"]), trainee.tokens(["dog"])
    assert not torch.allclose(
        trainee.text.get_input_embeddings()(new)[0, 1],
        trainee.text.get_input_embeddings()(word)[0, 1],
        atol=0.05,
    )


def test_a_lora_changes_nothing_at_first_and_its_file_holds_all_later(
    studio: Studio, tmp_path: Path
) -> None:
    trainee = DreamBoothTrainee(studio.spec("rex", lora={"rank": 2}))
    base = MixturePipeline.from_pretrained(studio.init, dtype=torch.float32)
    z, t, words = (
        torch.randn(2, 3, 8, 8),
        torch.tensor([10, 900]),
        trainee.text(trainee.tokens([DOG, ""])).last_hidden_state,
    )
    with torch.no_grad():
        torch.testing.assert_close(trainee.unet(z, t, words).sample, base.unet(z, t, words).sample)
    for name, weight in trainee.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    trainee.export(tmp_path / "ckpt")
    merged = MixturePipeline.from_pretrained(tmp_path / "ckpt", dtype=torch.float32)
    base.merge_lora(find_lora(str(tmp_path / "ckpt/lora")))
    with torch.no_grad():
        wanted = trainee.unet(z, t, words).sample
        assert (
            wanted - MixturePipeline.from_pretrained(studio.init).unet(z, t, words).sample
        ).abs().max() > 0.1
        for pipeline in (merged, base):
            torch.testing.assert_close(
                pipeline.unet(z, t, words).sample, wanted, atol=0.02, rtol=0.02
            )


def test_classes_learnt_earlier_are_kept_and_rehearsed(studio: Studio, tmp_path: Path) -> None:
    DreamBoothTrainee(studio.spec("rex")).export(tmp_path / "first")
    trainee = DreamBoothTrainee(studio.spec("bud", init=str(tmp_path / "first")))
    assert trainee.kept == [("dog", ("a {category}",)), ("<rex> dog", ("a {category}",)), ("", ())]
    captions = {w.caption for s in trainee.prior for w in s.objects}
    assert {c.partition(",")[0] for c in captions} == {"a dog", "a <rex> dog"}
    scenes = [trainee.encode(*trainee.concepts[k]) for k in range(2)]
    parts = [trainee.batch(scenes, np.random.default_rng(k)) for k in range(12)]
    rex, bud = (trainee.tokenizer.convert_tokens_to_ids(word) for word in ("<rex>", "<bud>"))
    assert any((kept[1] == rex).any() for _, kept in parts)
    assert all((new[1] == bud).any(1).all() and not (kept[1] == bud).any() for new, kept in parts)
    trainee.export(tmp_path / "second")
    known = [
        Concept(identifier="<rex>", category="dog"),
        Concept(identifier="<bud>", category="dog"),
    ]
    assert [(c.identifier, c.category) for c in earlier_concepts(tmp_path / "second")] == [
        (c.identifier, c.category) for c in known
    ]


def test_the_prior_is_painted_by_the_checkpoint_as_it_was(studio: Studio) -> None:
    spec = studio.spec("rex")
    first = [s.latents for s in DreamBoothTrainee(spec).prior]
    (studio.folder / "out/prior.safetensors").unlink()
    trainee = DreamBoothTrainee(spec)
    for weight in trainee.unet.parameters():
        torch.nn.init.normal_(weight)
    assert len(first) == 2 * spec.prior_images
    for a, b in zip(first, trainee.prior, strict=True):
        assert torch.equal(a, b.latents)


def test_weight_of_the_prior(studio: Studio) -> None:
    trainee = DreamBoothTrainee(studio.spec("rex", prior_weight=3.0))
    batch = next(trainee.batches(0, 0))
    with torch.no_grad():
        new, kept = (trainee.part_loss(part).item() for part in batch)
        assert trainee(batch).item() == pytest.approx(new + 3 * kept)


def test_photographs_are_whole_windows(studio: Studio) -> None:
    trainee = DreamBoothTrainee(studio.spec("photo", "rex"))
    shown = [trainee.concepts[k] for k in range(12)]
    photos = [(scene, picture) for scene, picture in shown if picture.shape == (16, 16, 3)]
    assert 0 < len(photos) < 12
    window = trainee.encode(*photos[0]).objects[0]
    assert (window.y, window.x, window.h, window.w, window.caption) == (0, 0, 8, 8, "a <photo> dog")
    assert all(
        name == "<rex> dog"
        for scene, picture in shown
        if picture.shape != (16, 16, 3)
        for name in scene.layout.categories
    )


def test_a_run_in_two_parts_has_the_same_curve(studio: Studio, tmp_path: Path) -> None:
    job = str(studio.job("rex", lora={"rank": 2}, ema=0.9))
    train(load_training(job, [f"output.path={tmp_path / 'whole'}"]))
    parts = load_training(job)

    def kill_after_three(step: int, loss: float) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    assert train(parts, kill_after_three).interrupted
    assert train(parts).step == 4
    assert read_log(tmp_path / "out/log.jsonl") == read_log(tmp_path / "whole/log.jsonl")
    for part in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (tmp_path / "out/checkpoint" / part).read_bytes() == (
            tmp_path / "whole/checkpoint" / part
        ).read_bytes()
    learnt = MixturePipeline.from_pretrained(tmp_path / "whole/checkpoint", dtype=torch.float32)
    rex, dog = (learnt.tokenizer.convert_tokens_to_ids(word) for word in ("<rex>", "dog</w>"))
    embedding = learnt.text_encoder.get_input_embeddings().weight
    assert (
        embedding[rex] - embedding[dog]
    ).abs().max() > 0.01  # 4 steps of at most 0.001 would not do
    assert set(read_log(tmp_path / "out/figures.jsonl")[-1]) == {
        "step",
        "concept_loss",
        "prior_loss",
    }
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
    assert {c["name"]: c["id"] for c in coco["categories"]} == names
    assert sorted(a["category_id"] for a in coco["annotations"]) == 2 * [18] + 4 * [91] + 2 * [92]
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
        ("concepts", [("<rex>", "none")], "none' is not a folder with pictures"),
        ("concepts", [("<rex>", "broken")], "broken/1.png' is not a picture that can be read"),
        ("concepts", [("<rex>", "small")], "small/1.png' is 8 x 8 px; give at least 16 px a side"),
        ("concepts", [("<rex>", "clear")], "clear/1.png' is transparent but for 0.0%"),
        ("concepts", [("<rex>", "both")], "mixes cut-outs and photographs (1.jpg is opaque)"),
        ("concepts", [("<rex>", "rex"), ("<rex>", "bud")], "concepts: <rex> stands twice"),
        ("init", "nowhere", "init: model 'nowhere': no folder of that name"),
        ("init", "first", "concepts: <rex> is known to"),
        ("sizes", [20, 80], "sizes: [20, 80] must be two sides from 16 to 40 px"),
        ("sizes", [40, 20], "sizes: [40, 20] must be two sides"),
        ("data", {"side": 65}, "data.side: 65 px must be a multiple of 2 and at least 16"),
        ("prior_prompts", ["a dog"], "prior_prompts: 'a dog': must name {category}"),
        ("data", {"side": 64, "shards": "dataset"}, "data.shards: not read"),
    ],
)
def test_bad_input_is_named(
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
        value = [
            {"identifier": word, "category": "dog", "images": images} for word, images in value
        ]
    monkeypatch.chdir(tmp_path)
    job = studio.job("rex", **{key: value})
    with pytest.raises(ConfigError) as caught:
        load_training(str(job))
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()
