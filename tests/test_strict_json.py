"""Files are written as JSON that every program can read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from synthgen.dataset.coco import build_coco_head, write_coco
from synthgen.dataset.finalise import finalize
from synthgen.dataset.info import DatasetInfo, write_info
from synthgen.dataset.sample import Sample
from synthgen.dataset.shard import commit, stage
from synthgen.formats.export import ExportSpec, export_dataset
from synthgen.storage.location import open_store
from synthgen.strict_json import from_json, remove_nan, to_json
from tests.dataset.test_coco import load
from tests.dataset.test_shard import sample

NAN = float("nan")
INF = float("inf")


def test_numbers_that_json_does_not_have_are_left_out() -> None:
    value = {"a": NAN, "b": [1, INF, {"c": -INF, "d": "NaN"}], "e": (2.5, None)}
    assert remove_nan(value) == {"b": [1, None, {"d": "NaN"}], "e": [2.5, None]}
    assert from_json(to_json(value)) == remove_nan(value)
    assert to_json({"a": [1, 2.5]}, indent=1) == json.dumps({"a": [1, 2.5]}, indent=1)


@pytest.mark.parametrize("text", ["NaN", '{"a": [Infinity]}', "-Infinity"])
def test_nan_and_infinities_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not valid JSON"):
        from_json(text)


def test_coco_files_have_no_nan(tmp_path: Path) -> None:
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 18,
        "bbox": [1, 2, 3, 4],
        "area": 12.0,
        "iscrowd": 0,
        "more": NAN,
    }
    head = {**build_coco_head({"dog": 18}, {}, "CC0"), "odd": [NAN]}
    write_coco(
        tmp_path / "x.json",
        head,
        [({"id": 1, "width": 9, "height": 9, "file_name": "a", "at": INF}, [annotation])],
    )
    data = from_json((tmp_path / "x.json").read_text())
    assert data["images"] == [{"id": 1, "width": 9, "height": 9, "file_name": "a"}]
    del annotation["more"]
    assert data["annotations"] == [annotation]


def write_imported(out: Path, head: dict[str, Any], annotation: dict[str, Any]) -> Path:
    """Write a dataset that an earlier version imported from a COCO file with NaN in it."""
    coco_source = {"head": head, "file_names": True, "annotation_ids": False}
    info = DatasetInfo(
        "test", 1, {}, {"dog": 18}, "png", "CC0", imported="coco: x.json", source=coco_source
    )
    store = open_store(out)
    write_info(store, info, {})
    generated = sample(0, 1)
    source = json.dumps({"image": {"id": 1, "file_name": "a.png"}, "annotations": [annotation]})
    mask = {"size": [24, 32], "counts": "]81g0"}
    annotations = tuple(replace(a, segmentation=mask) for a in generated.annotations)
    samples = [Sample(0, 32, 24, "a", 0, 0, annotations, generated.image, "png", source=source)]
    commit(store, stage(store, 0, samples, {}, 0.0, 1))
    (out / "job.yaml").write_text("version: 1\n")
    finalize(store, info)
    return out


def test_an_export_of_a_dataset_imported_with_nan_is_valid(tmp_path: Path) -> None:
    categories = [{"id": 18, "name": "dog"}]
    out = write_imported(
        tmp_path / "out",
        {"categories": categories, "odd": NAN},
        {"area": NAN, "extra": [NAN, 1], "id": 1},
    )
    from_json((out / "dataset.json").read_bytes())
    export_dataset(ExportSpec(out, "coco", tmp_path / "coco", 0.0))
    path = tmp_path / "coco/annotations/instances_train.json"
    data = from_json(path.read_bytes())
    (annotation,) = data["annotations"]
    assert (annotation["area"], annotation["extra"]) == (33.0, [None, 1])
    assert isinstance(annotation["segmentation"]["counts"], str)
    coco = load(path)  # loadRes of older versions of pycocotools reads both keys below
    assert {"info", "licenses"} <= set(coco.dataset)
    assert data["categories"] == categories
