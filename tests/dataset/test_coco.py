"""The COCO file: its ids start at 1, and perfect predictions score 1.0, also with masks."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from synthgen.dataset import coco
from synthgen.dataset.categories import COCO_IDS
from synthgen.dataset.check import check_dataset
from synthgen.dataset.finalise import finalize
from synthgen.dataset.info import read_info
from synthgen.storage.location import open_store


def load(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def average_precision(truth: COCO, kind: str) -> float:
    """Return the AP of predictions that equal the ground truth."""
    key = {"bbox": "bbox", "segm": "segmentation"}[kind]
    predictions = []
    for annotation in truth.dataset["annotations"]:
        prediction = {name: annotation[name] for name in ("image_id", "category_id", key)}
        predictions.append({**prediction, "score": 1.0})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(predictions), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def test_perfect_predictions_score_one(dataset: Path) -> None:
    coco = load(dataset / "annotations/instances.json")
    assert average_precision(coco, "bbox") == 1.0
    assert average_precision(coco, "segm") == 1.0


def test_the_coco_file_has_ids_file_names_and_a_licence(dataset: Path) -> None:
    path = dataset / "annotations/instances.json"
    coco = load(path)
    assert sorted(coco.imgs) == list(range(1, 7))
    assert coco.imgs[1]["file_name"] == "000000000.jpg"
    assert [a["id"] for a in coco.dataset["annotations"]] == list(range(1, 25))
    assert coco.dataset["categories"] == [{"id": 18, "name": "dog", "supercategory": "dog"}]
    assert coco.dataset["licenses"][0]["name"] == "Apache-2.0"
    info = json.loads(path.read_text())["info"]
    assert info["description"].startswith("small: synthetic")


def test_masks_are_inside_their_boxes(dataset: Path) -> None:
    coco = load(dataset / "annotations/instances.json")
    for annotation in coco.dataset["annotations"]:
        mask = coco.annToMask(annotation)
        x, y, w, h = (int(v) for v in annotation["bbox"])
        assert mask.sum() == annotation["area"] > 0
        assert mask[y : y + h, x : x + w].sum() == mask.sum()


def test_a_large_dataset_has_several_coco_files(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(dataset / "annotations/instances.json")
    monkeypatch.setattr(coco, "SHARDS_PER_FILE", 2)
    info = read_info(open_store(dataset))
    assert info is not None
    assert finalize(open_store(dataset), info)["coco_files"] == 2
    names = ["instances-00000.json", "instances-00001.json"]
    assert sorted(p.name for p in (dataset / "annotations").iterdir()) == names
    parts = [load(dataset / "annotations" / name) for name in names]
    assert [len(part.imgs) for part in parts] == [4, 2]
    for kind in ("images", "annotations"):
        records: list[Any] = []
        for part in parts:
            records += part.dataset[kind]
        assert records == whole.dataset[kind]
    assert 'COCO("annotations/instances-00000.json")' in (dataset / "README.md").read_text()
    assert check_dataset(open_store(dataset)) == ([], {"images": 6, "boxes": 24, "shards": 3})
    path = dataset / "annotations" / names[1]
    path.write_text(path.read_text().replace('"bbox": [', '"bbox": [1', 1))
    assert check_dataset(open_store(dataset))[0] == [
        f"annotations/{names[1]}: its boxes differ from the shards; run `synthgen finalize`"
    ]
    monkeypatch.undo()
    finalize(open_store(dataset), info)
    assert [p.name for p in (dataset / "annotations").iterdir()] == ["instances.json"]


def test_ids_are_those_of_coco() -> None:
    assert len(COCO_IDS) == 80
    names = ("person", "dog", "teddy bear", "toothbrush")
    assert [COCO_IDS[name] for name in names] == [1, 18, 88, 90]
