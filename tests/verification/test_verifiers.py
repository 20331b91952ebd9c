"""Verifiers with tiny random models of transformers, compared with independent evaluations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)

from synthgen import cli
from synthgen.config import ConfigError, load_job
from synthgen.dataset.shard import read_rows
from synthgen.layouts.base import Layout
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.paste import Spec as PasteSpec
from synthgen.scenes.scene import Scene, SceneSpec
from synthgen.storage.location import open_store
from synthgen.training.text_to_image.trainee import make_tokenizer
from synthgen.verification import efficientnet
from synthgen.verification.base import Verdict
from synthgen.verification.classifier import Spec as ClassifierSpec
from synthgen.verification.classifier.verifier import ClassifierVerifier
from synthgen.verification.clip import Spec as ClipSpec
from synthgen.verification.clip.verifier import ClipVerifier
from synthgen.verification.crops import crop_boxes
from synthgen.verification.detector import Spec as DetectorSpec
from synthgen.verification.detector.verifier import DetectorVerifier, convert_results
from synthgen.verification.panel import Spec as PanelSpec
from synthgen.verification.panel.verifier import combine_verdicts
from tests.tiny_detr import save_tiny_detr

BOXES = np.array([[4, 4, 30, 40], [50, 20, 90, 60], [0, 70, 20, 96]], np.float32)
LAYOUTS = [
    Layout(96, 96, BOXES, ("dog", "cat", "dog")),
    Layout(96, 96, BOXES[:0], ()),
    Layout(96, 96, BOXES[1:], ("cat", "dog")),
]
IMAGES = list(np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8))


def independent_crops(image: np.ndarray, layout: Layout, context: float) -> list[Image.Image]:
    crops = []
    for x0, y0, x1, y1 in layout.boxes.tolist():
        half = max(x1 - x0, y1 - y0) * (0.5 + context)
        x = (x0 + x1) / 2
        y = (y0 + y1) / 2
        crops.append(
            Image.fromarray(
                image[
                    max(0, round(y - half)) : round(y + half),
                    max(0, round(x - half)) : round(x + half),
                ]
            )
        )
    return crops


def test_crops_have_context_and_are_clipped_to_the_image() -> None:
    ours = crop_boxes(IMAGES, LAYOUTS, 0.2)
    wanted = [
        c
        for image, layout in zip(IMAGES, LAYOUTS, strict=True)
        for c in independent_crops(image, layout, 0.2)
    ]
    assert [np.asarray(c).tobytes() for c in ours] == [np.asarray(c).tobytes() for c in wanted]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8],
        depths=[1, 1],
        layer_type="basic",
        id2label={0: "hound", 1: "cat", 2: "tree"},
    )
    ResNetForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_classifier_scores_are_the_probability_of_the_category(classifier: Path) -> None:
    spec = ClassifierSpec(model=str(classifier), labels={"dog": "hound"})
    found = ClassifierVerifier(spec, "cpu")(IMAGES, LAYOUTS)
    model = ResNetForImageClassification.from_pretrained(classifier).eval()
    processor = ViTImageProcessor.from_pretrained(classifier)
    for image, layout, verdict in zip(IMAGES, LAYOUTS, found, strict=True):
        assert (verdict.ious, verdict.found, len(verdict.unasked)) == (None, None, 0)
        for k, crop in enumerate(independent_crops(image, layout, 0.2)):
            shares = model(**processor(crop, return_tensors="pt")).logits[0].softmax(0)
            assert verdict.scores[k] == pytest.approx(
                float(shares[{"dog": 0, "cat": 1}[layout.categories[k]]]), abs=1e-5
            )
    failed = ClassifierSpec(
        model=str(classifier), threshold={"dog": 1.0, "cat": 0.0}
    ).find_failed_boxes(found[0], LAYOUTS[0])
    assert failed.tolist() == [True, False, True]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = make_tokenizer(["a photo of a dog cat"])
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {
        **size,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "max_position_embeddings": 32,
    }
    config = CLIPConfig(
        text_config=text,
        vision_config={**size, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_clip_scores_are_cosines_at_least_zero(clip: Path) -> None:
    found = ClipVerifier(ClipSpec(model=str(clip)), "cpu")(IMAGES, LAYOUTS)
    model = CLIPModel.from_pretrained(clip).eval()
    processor = CLIPImageProcessor.from_pretrained(clip)
    tokenizer = make_tokenizer(["a photo of a dog cat"])
    for image, layout, verdict in zip(IMAGES, LAYOUTS, found, strict=True):
        for k, crop in enumerate(independent_crops(image, layout, 0.1)):
            text = tokenizer(f"a photo of a {layout.categories[k]}", return_tensors="pt")
            out = model(**text, pixel_values=processor(crop, return_tensors="pt").pixel_values)
            cosine = torch.nn.functional.cosine_similarity(
                out.image_embeds[0], out.text_embeds[0], dim=0
            )
            assert verdict.scores[k] == pytest.approx(max(0.0, float(cosine)), abs=1e-4)


@pytest.fixture(scope="module")
def detr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detr")
    save_tiny_detr(folder, {0: "hound", 1: "cat"})
    return folder


def test_detectors_of_transformers_are_read(detr: Path) -> None:
    spec = DetectorSpec(model=str(detr), labels={"dog": "hound"}, unasked=0.06)
    verifier = DetectorVerifier(spec, "cpu")
    (found,) = verifier.found([IMAGES[0]], [LAYOUTS[0]])
    assert len(found.boxes) > 0
    assert set(found.categories) <= {"dog", "cat"}
    assert (np.diff(found.scores) <= 0).all()
    for verdict, layout in zip(verifier(IMAGES, LAYOUTS), LAYOUTS, strict=True):
        assert verdict.ious is not None
        assert len(verdict.scores) == len(verdict.ious) == len(layout)


def test_two_categories_can_have_the_same_label() -> None:
    """A detector that knows only dogs detects the identifiers <rex> dog and <bud> dog as dogs."""
    labels = {"<rex> dog": "dog", "<bud> dog": "dog"}
    verifier = DetectorVerifier(DetectorSpec(labels=labels, unasked=None), "cpu")
    layout = Layout(
        160,
        96,
        np.array([[8, 8, 72, 72], [84, 16, 148, 80]], np.float32),
        ("dog", "dog"),
        ("a brown dog",) * 2,
    )
    (painting,) = PasteSpec().load(SceneSpec(), Numerics())(
        [Scene(layout, "a field of grass")], [np.random.SeedSequence(0)]
    )
    named = Layout(160, 96, layout.boxes, tuple(labels))
    plain, own = (verifier([painting.image], [of])[0].scores for of in (layout, named))
    assert (plain > 0.1).all()
    np.testing.assert_array_equal(own, plain)


@pytest.mark.parametrize(
    "found",
    [[], [{"score": 0.2, "label": "a", "box": {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}}] * 2],
)
def test_results_of_pipelines_become_detections(found: Sequence[dict[str, Any]]) -> None:
    ours = convert_results(found)
    assert ours.boxes.shape == (len(found), 4)
    assert ours.categories == ("a",) * len(found)


def test_an_error_names_a_missing_label_or_missing_weights(
    classifier: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"verify.labels: .* has no label for dog; say which one it is"
    ):
        load_job("100dogs", [f"verify={{verifier: classifier, model: {classifier}}}"])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"verify.model: .* has no safetensors weights"):
        load_job("100dogs", [f"verify={{verifier: clip, model: {tmp_path}}}"])


def test_the_packaged_classifier_adds_the_probabilities_of_breeds() -> None:
    spec = ClassifierSpec(labels={"cat": ("281", "282-285"), "tree": "984"})
    found = ClassifierVerifier(spec, "cpu")(IMAGES, LAYOUTS)
    net = efficientnet.load()
    for image, layout, verdict in zip(IMAGES, LAYOUTS, found, strict=True):
        for k, crop in enumerate(independent_crops(image, layout, 0.2)):
            with torch.no_grad():
                shares = net(efficientnet.pixels([crop]))[0].softmax(0)
            wanted = shares[151:269] if layout.categories[k] == "dog" else shares[281:286]
            assert verdict.scores[k] == pytest.approx(float(wanted.sum()), abs=1e-5)
    assert spec.find_classes("tree", spec.read_class_numbers()) == [984]


def test_a_dog_has_a_greater_probability_of_dog_than_a_tree() -> None:
    spec = PasteSpec(cutouts="heldout", grounds="heldout")
    boxes = np.array([[20, 20, 180, 180]], np.float32)
    layouts = [Layout(200, 200, boxes, (name,)) for name in ("dog", "tree")]
    painter = spec.load(SceneSpec(background="grass"), Numerics())
    images = [
        p.image
        for p in painter(
            [Scene(of, "grass") for of in layouts], [np.random.SeedSequence(k) for k in range(2)]
        )
    ]
    dog, tree = ClassifierVerifier(ClassifierSpec(), "cpu")(images, [layouts[0], layouts[0]])
    assert dog.scores[0] > 2 * tree.scores[0]


@pytest.mark.parametrize(
    ("verify", "message"),
    [
        (
            "{verifier: classifier, labels: {dog: hounds}}",
            r"labels: .*ImageNet's classes are 0-999",
        ),
        (
            "{verifier: classifier, labels: {dog: 151-2000}}",
            r"labels: 151-2000: ImageNet's classes are 0-999",
        ),
        (
            "{verifier: panel, of: [detektor]}",
            r"of.*'detektor' is not a verifier; there are: classifier, clip, detector",
        ),
        (
            "{verifier: panel, of: [{verifier: detector, iou: 3}]}",
            r"detector: iou: .*less than or equal to 1",
        ),
        ("{verifier: panel, of: []}", r"verify.of"),
        ("{verifier: panel, of: [panel]}", r"'panel' is not a verifier"),
        (
            "{verifier: panel, of: [{verifier: detector, threshold: {cat: 0.5}}]}",
            r"of\[0\].threshold: no number for 'dog'",
        ),
    ],
)
def test_an_error_names_what_is_wrong_in_a_recipe(verify: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_job("100dogs", ["pipeline=paste", f"verify={verify}"])


def test_an_error_names_a_category_that_the_packaged_classifier_does_not_know() -> None:
    with pytest.raises(ConfigError, match="efficientnet-lite0 has no label for zebra"):
        load_job("100dogs", ["pipeline=paste", "layout.objects={zebra: 3}", "verify=classifier"])


def test_a_panel_has_the_lowest_scaled_score_and_the_boxes_of_the_detector() -> None:
    spec = PanelSpec.model_validate(
        {"of": [{"verifier": "detector", "threshold": 0.2, "iou": 0.6}, {"verifier": "classifier"}]}
    )
    none = np.zeros((0, 4), np.float32)
    false_positives = np.array([[1, 2, 3, 4]], np.float32)
    found = Verdict(
        np.array([0.1, 0.6, 0.9], np.float32),
        np.array([0.9, 0.9, 0.5], np.float32),
        BOXES,
        false_positives,
    )
    classified = Verdict(np.array([0.9, 0.15, 0.65], np.float32), None, None, none)
    verdict = combine_verdicts(spec.of, [found, classified], LAYOUTS[0])
    np.testing.assert_allclose(verdict.scores, [0.25, 0.25, 0.75], rtol=1e-6)
    assert verdict.ious is found.ious
    np.testing.assert_array_equal(verdict.unasked, false_positives)
    # the IoU of the third box is too low
    assert spec.find_failed_boxes(verdict, LAYOUTS[0]).tolist() == [True, True, True]


def test_a_panel_verifies_a_job(job_file: Path) -> None:
    big = [
        "layout.canvas=[192, 192]",
        "layout.size=[52, 68]",
        "layout.objects={dog: 2}",
        "images=2",
    ]
    assert (
        cli.main(
            ["run", str(job_file), *big, "verify={verifier: panel, of: [detector, classifier]}"]
        )
        == 0
    )
    out = job_file.parent / "out"
    assert "verifier: classifier" in (out / "job.yaml").read_text()
    (rows,) = [read_rows(open_store(out), 0)]
    assert all(0 <= s <= 1 for row in rows for s in row["score"])
    assert (
        cli.main(
            [
                "run",
                str(job_file),
                *big,
                "verify={verifier: panel, of: [{verifier: detector, iou: 0.4}, classifier]}",
            ]
        )
        == 2
    )


def test_images_of_different_sizes_are_verified_in_one_call() -> None:
    verifier = DetectorVerifier(DetectorSpec(), "cpu")
    sizes = [(96, 96), (96, 96), (64, 128), (96, 96)]
    images = [
        np.random.default_rng(k).integers(0, 256, (*size, 3), dtype=np.uint8)
        for k, size in enumerate(sizes)
    ]
    layouts = [Layout(w, h, BOXES[:1], ("dog",)) for h, w in sizes]
    for image, layout, found in zip(images, layouts, verifier.found(images, layouts), strict=True):
        (alone,) = verifier.found([image], [layout])
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-2)
