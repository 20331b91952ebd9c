"""Certified: one dataset read by each program that it is exported for, and every box held against the rows."""

import contextlib
import importlib
import io
import json
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from synthgen.dataset.marker import committed
from synthgen.dataset.reader import as_coco, open_dataset
from synthgen.dataset.sample import annotations_of
from synthgen.dataset.shard import read_rows
from synthgen.dataset.shard_reader import SPLITS, split_of
from synthgen.formats.export import ExportSpec, export_dataset
from synthgen.storage.location import open_store

VAL = 0.4
Found = dict[str, list[tuple[str, list[float]]]]
"""Name and box (xyxy in px) of each object, by the key of its picture."""


@pytest.fixture(scope="module")
def export(imported: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a form; each is written once."""
    root = tmp_path_factory.mktemp("exports")

    def folder(form: str) -> Path:
        export_dataset(ExportSpec(imported, form, root / form, VAL))
        return root / form

    return folder


def library(name: str) -> Any:
    """An installed program, else the test is skipped: it is not there, or its compiled part is not made for this torch."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        return pytest.skip(f"{name}: {error}")


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [
        row for number in committed(open_store(out)) for row in read_rows(open_store(out), number)
    ]


def corners(bbox: Any) -> list[float]:
    x, y, w, h = bbox
    return [float(x), float(y), float(x + w), float(y + h)]


def expected(out: Path, crowds: bool = True) -> Found:
    return {
        row["key"]: [
            (a.category, corners(a.bbox)) for a in annotations_of(row) if crowds or not a.iscrowd
        ]
        for row in rows_of(out)
    }


def file_names(out: Path) -> dict[str, str]:
    """Key of each picture by the name that it has in a COCO file."""
    return {json.loads(row["source"])["image"]["file_name"]: row["key"] for row in rows_of(out)}


def same(found: Found, wanted: Found, atol: float) -> None:
    """The same pictures, each with the same objects in the same order, up to px."""
    assert sorted(found) == sorted(wanted)
    assert sum(map(len, wanted.values())) >= 9
    for key, objects in wanted.items():
        assert [name for name, _ in found[key]] == [name for name, _ in objects], key
        np.testing.assert_allclose(as_array(found[key]), as_array(objects), atol=atol, err_msg=key)


def as_array(objects: list[tuple[str, list[float]]]) -> NDArray[np.float64]:
    return np.array([box for _, box in objects], np.float64).reshape(-1, 4)


def instances(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"instances_{split}.json"


def unclipped(out: Path) -> Found:
    """A COCO export says of a box that stuck out by less than a pixel what the imported file said."""
    found = expected(out)
    found["000000000"][0] = ("dog", corners([-0.25, 4, 20, 44.5]))
    return found


def test_pycocotools(imported: Path, export: Callable[[str], Path]) -> None:
    from pycocotools.coco import COCO

    folder, names = export("coco"), file_names(imported)
    found: Found = {}
    for split in SPLITS:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(instances(folder, split)))
        for image in coco.dataset["images"]:
            annotations = coco.imgToAnns[image["id"]]
            found[names[image["file_name"]]] = [
                (coco.cats[a["category_id"]]["name"], corners(a["bbox"])) for a in annotations
            ]  # fmt: skip
            for annotation in annotations:
                if annotation.get("segmentation"):
                    assert coco.annToMask(annotation).shape == (48, 64)
    same(found, unclipped(imported), 1e-5)


def test_datasets_webdataset(imported: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    rows = load_dataset(str(imported), split="train", cache_dir=str(tmp_path))
    found = {
        row["__key__"].rpartition("/")[2]: [
            (a["category"], corners(a["bbox"])) for a in row["json"]["annotations"]
        ]
        for row in rows
    }
    same(found, expected(imported), 1e-9)
    assert json.loads(rows[0]["json"]["source"])["image"]["license"] == 1


def test_datasets_parquet(imported: Path, export: Callable[[str], Path], tmp_path: Path) -> None:
    from datasets import ClassLabel, Image, load_dataset

    folder = export("hf")
    parts = load_dataset(str(folder), cache_dir=str(tmp_path / "folder"))
    assert sorted(parts) == ["train", "val"]
    features = parts["train"].features
    assert isinstance(features["image"], Image)
    category = features["objects"]["category"].feature
    assert isinstance(category, ClassLabel)
    found: Found = {}
    for split, rows in parts.items():
        for row in rows:
            key = f"{row['image_id'] - 1:09d}"
            assert split_of(key, VAL) == split
            assert row["image"].size == (row["width"], row["height"]) == (64, 48)
            names = [category.int2str(i) for i in row["objects"]["category"]]
            found[key] = [
                (name, corners(box))
                for name, box in zip(names, row["objects"]["bbox"], strict=True)
            ]
    same(found, expected(imported), 1e-9)
    path = next((folder / "data").glob("train-*.parquet"))
    alone = load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "file")
    )
    assert alone.features == features  # each file says it itself


def test_transformers_image_processor(imported: Path) -> None:
    """DETR's: COCO annotations in, classes and boxes as shares (cx, cy, w, h) out; crowds are left out by it."""
    from transformers import DetrImageProcessor

    processor = DetrImageProcessor(size={"height": 96, "width": 128}, do_pad=False)
    data = open_dataset(imported, first_label=0, crowds=True)
    found: Found = {}
    for image, target in data:
        out = processor(
            images=image.numpy(),
            annotations=as_coco(target),
            return_tensors="pt",
            input_data_format="channels_first",
        )
        assert out["pixel_values"].shape == (1, 3, 96, 128)
        (labels,) = out["labels"]
        cx, cy, w, h = (labels["boxes"].double().numpy().reshape(-1, 4) * (64, 48, 64, 48)).T
        names = [data.id2label[int(i)] for i in labels["class_labels"]]
        found[target["key"]] = list(
            zip(
                names,
                np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1).tolist(),
                strict=True,
            )
        )
    same(found, expected(imported, crowds=False), 1e-4)


def from_supervision(dataset: Any, keys: Callable[[str], str]) -> Found:
    return {
        keys(path): [
            (dataset.classes[c], b)
            for c, b in zip(detections.class_id, detections.xyxy.tolist(), strict=True)
        ]
        for path, _, detections in dataset
    }


def test_supervision_coco(imported: Path, export: Callable[[str], Path]) -> None:
    supervision = library("supervision")
    folder, names = export("coco"), file_names(imported)
    found: Found = {}
    for split in SPLITS:
        dataset = supervision.DetectionDataset.from_coco(
            str(folder / split), str(instances(folder, split))
        )
        found |= from_supervision(
            dataset, lambda path, root=folder / split: names[str(Path(path).relative_to(root))]
        )  # type: ignore[misc]
    same(found, unclipped(imported), 1e-4)


def test_supervision_yolo(imported: Path, export: Callable[[str], Path]) -> None:
    supervision = library("supervision")
    folder = export("yolo")
    found: Found = {}
    for split in SPLITS:
        folders = (str(folder / part / split) for part in ("images", "labels"))
        dataset = supervision.DetectionDataset.from_yolo(*folders, str(folder / "data.yaml"))
        found |= from_supervision(dataset, lambda path: Path(path).stem)
    same(found, expected(imported, crowds=False), 1e-4)


def test_supervision_voc(imported: Path, export: Callable[[str], Path]) -> None:
    supervision = library("supervision")
    folder = export("voc")
    dataset = supervision.DetectionDataset.from_pascal_voc(
        str(folder / "JPEGImages"), str(folder / "Annotations")
    )
    same(
        from_supervision(dataset, lambda path: Path(path).stem), expected(imported), 1.01
    )  # it takes 1 from all four


def test_torchvision(imported: Path, export: Callable[[str], Path]) -> None:
    torchvision = library("torchvision")
    folder, names = export("coco"), file_names(imported)
    found: Found = {}
    for split in SPLITS:
        coco = torchvision.datasets.CocoDetection(
            str(folder / split), str(instances(folder, split))
        )
        coco = torchvision.datasets.wrap_dataset_for_transforms_v2(
            coco, target_keys=["image_id", "boxes", "labels"]
        )
        files = {image["id"]: image["file_name"] for image in coco.coco.dataset["images"]}
        category = {c["id"]: c["name"] for c in coco.coco.dataset["categories"]}
        for _, target in coco:
            boxes = target.get("boxes", np.zeros((0, 4)))
            labels = [category[int(i)] for i in target.get("labels", [])]
            found[names[files[target["image_id"]]]] = list(zip(labels, boxes.tolist(), strict=True))
    same(found, unclipped(imported), 1e-4)


def test_ultralytics(
    imported: Path, export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a process of its own: Ultralytics exchanges functions of pillow and torch when it is imported."""
    ultralytics_or_skip()
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    with get_context("spawn").Pool(1) as pool:
        found = pool.apply(read_by_ultralytics, (export("yolo"),))
    same(found, expected(imported, crowds=False), 1e-4)


def ultralytics_or_skip() -> None:
    library("torchvision")  # which it asks for
    if not find_spec("ultralytics"):
        pytest.skip("ultralytics: not installed")


def read_by_ultralytics(folder: Path) -> Found:
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    data = check_det_dataset(str(folder / "data.yaml"))
    found: Found = {}
    for split in SPLITS:
        for label in YOLODataset(data[split], data=data, augment=False, imgsz=64).labels:
            h, w = label["shape"]
            cx, cy, bw, bh = (label["bboxes"].astype(float).reshape(-1, 4) * (w, h, w, h)).T
            boxes = np.stack([cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2], 1).tolist()
            names = [data["names"][int(i)] for i in label["cls"].ravel()]
            found[Path(label["im_file"]).stem] = list(zip(names, boxes, strict=True))
    return found


def test_fiftyone(imported: Path, export: Callable[[str], Path]) -> None:
    library("fiftyone")
    from fiftyone.utils.coco import COCODetectionDatasetImporter

    folder, names = export("coco"), file_names(imported)
    found: Found = {}
    for split in SPLITS:
        importer = COCODetectionDatasetImporter(
            data_path=str(folder / split),
            labels_path=str(instances(folder, split)),
            label_types="detections",
        )
        with importer:
            for path, metadata, detections in importer:
                w, h = metadata.width, metadata.height
                objects = (
                    []
                    if detections is None
                    else detections["detections"].detections
                    if isinstance(detections, dict)
                    else detections.detections
                )
                key = names[str(Path(path).relative_to(folder / split))]
                found[key] = [
                    (o.label, corners(np.array(o.bounding_box) * (w, h, w, h))) for o in objects
                ]
    same(found, unclipped(imported), 1e-4)
