"""Each program that a dataset is exported for reads the same boxes as the dataset has."""

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

from synthgen.dataset.marker import list_committed_shards
from synthgen.dataset.reader import as_coco, open_dataset
from synthgen.dataset.sample import read_annotations
from synthgen.dataset.shard import read_rows
from synthgen.dataset.shard_reader import SPLITS, split_of
from synthgen.formats.export import ExportSpec, export_dataset
from synthgen.storage.location import open_store

VAL = 0.4
ObjectsOfKey = dict[str, list[tuple[str, list[float]]]]
"""The name and box (xyxy in px) of each object, by the key of the image."""


@pytest.fixture(scope="module")
def export(imported: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a format; it is written if it is missing."""
    root = tmp_path_factory.mktemp("exports")

    def folder(form: str) -> Path:
        export_dataset(ExportSpec(imported, form, root / form, VAL))
        return root / form

    return folder


def library(name: str) -> Any:
    """Import a program, or skip the test if it is missing or not compiled for this torch."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        return pytest.skip(f"{name}: {error}")


def read_all_rows(out: Path) -> list[dict[str, Any]]:
    """Return the rows of all shards."""
    store = open_store(out)
    rows: list[dict[str, Any]] = []
    for number in list_committed_shards(store):
        rows += read_rows(store, number)
    return rows


def to_corners(bbox: Any) -> list[float]:
    """Return xyxy of xywh."""
    x, y, w, h = bbox
    return [float(x), float(y), float(x + w), float(y + h)]


def list_objects(out: Path, crowds: bool = True) -> ObjectsOfKey:
    """Return the objects of a dataset."""
    objects_of_key: ObjectsOfKey = {}
    for row in read_all_rows(out):
        objects = objects_of_key.setdefault(row["key"], [])
        for annotation in read_annotations(row):
            if crowds or not annotation.iscrowd:
                objects.append((annotation.category, to_corners(annotation.bbox)))
    return objects_of_key


def map_file_names(out: Path) -> dict[str, str]:
    """Return the key of each image by its name in a COCO file."""
    keys: dict[str, str] = {}
    for row in read_all_rows(out):
        record = json.loads(row["source"])["image"]
        keys[record["file_name"]] = row["key"]
    return keys


def assert_same(objects_of_key: ObjectsOfKey, wanted: ObjectsOfKey, atol: float) -> None:
    """Check that the images have the same objects in the same order, up to `atol` px."""
    assert sorted(objects_of_key) == sorted(wanted)
    assert sum(map(len, wanted.values())) >= 9
    for key, objects in wanted.items():
        assert [name for name, _ in objects_of_key[key]] == [name for name, _ in objects], key
        np.testing.assert_allclose(
            stack_boxes(objects_of_key[key]), stack_boxes(objects), atol=atol, err_msg=key
        )


def stack_boxes(objects: list[tuple[str, list[float]]]) -> NDArray[np.float64]:
    return np.array([box for _, box in objects], np.float64).reshape(-1, 4)


def instances_file(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"instances_{split}.json"


def list_unclipped_objects(out: Path) -> ObjectsOfKey:
    """Return the objects of a COCO export.

    A box that reaches outside by less than a pixel is written unchanged.
    """
    objects_of_key = list_objects(out)
    objects_of_key["000000000"][0] = ("dog", to_corners([-0.25, 4, 20, 44.5]))
    return objects_of_key


def test_pycocotools_reads_the_same_objects(imported: Path, export: Callable[[str], Path]) -> None:
    from pycocotools.coco import COCO

    folder = export("coco")
    names = map_file_names(imported)
    objects_of_key: ObjectsOfKey = {}
    for split in SPLITS:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(instances_file(folder, split)))
        for image in coco.dataset["images"]:
            annotations = coco.imgToAnns[image["id"]]
            objects_of_key[names[image["file_name"]]] = [
                (coco.cats[a["category_id"]]["name"], to_corners(a["bbox"])) for a in annotations
            ]
            for annotation in annotations:
                if annotation.get("segmentation"):
                    assert coco.annToMask(annotation).shape == (48, 64)
    assert_same(objects_of_key, list_unclipped_objects(imported), 1e-5)


def test_datasets_webdataset_reads_the_same_objects(imported: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    rows = load_dataset(str(imported), split="train", cache_dir=str(tmp_path))
    objects_of_key = {
        row["__key__"].rpartition("/")[2]: [
            (a["category"], to_corners(a["bbox"])) for a in row["json"]["annotations"]
        ]
        for row in rows
    }
    assert_same(objects_of_key, list_objects(imported), 1e-9)
    assert json.loads(rows[0]["json"]["source"])["image"]["license"] == 1


def test_datasets_parquet_reads_the_same_objects(
    imported: Path, export: Callable[[str], Path], tmp_path: Path
) -> None:
    from datasets import ClassLabel, Image, load_dataset

    folder = export("hf")
    parts = load_dataset(str(folder), cache_dir=str(tmp_path / "folder"))
    assert sorted(parts) == ["train", "val"]
    features = parts["train"].features
    assert isinstance(features["image"], Image)
    category = features["objects"]["category"].feature
    assert isinstance(category, ClassLabel)
    objects_of_key: ObjectsOfKey = {}
    for split, rows in parts.items():
        for row in rows:
            key = f"{row['image_id'] - 1:09d}"
            assert split_of(key, VAL) == split
            assert row["image"].size == (row["width"], row["height"]) == (64, 48)
            names = [category.int2str(i) for i in row["objects"]["category"]]
            objects_of_key[key] = [
                (name, to_corners(box))
                for name, box in zip(names, row["objects"]["bbox"], strict=True)
            ]
    assert_same(objects_of_key, list_objects(imported), 1e-9)
    path = next((folder / "data").glob("train-*.parquet"))
    alone = load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "file")
    )
    assert alone.features == features  # each file states them


def test_transformers_image_processor_reads_the_same_objects(imported: Path) -> None:
    """DETR's processor turns COCO annotations into classes and shares (cx, cy, w, h).

    It leaves out crowds.
    """
    from transformers import DetrImageProcessor

    processor = DetrImageProcessor(size={"height": 96, "width": 128}, do_pad=False)
    data = open_dataset(imported, first_label=0, crowds=True)
    objects_of_key: ObjectsOfKey = {}
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
        objects_of_key[target["key"]] = list(
            zip(
                names,
                np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1).tolist(),
                strict=True,
            )
        )
    assert_same(objects_of_key, list_objects(imported, crowds=False), 1e-4)


def list_supervision_objects(dataset: Any) -> dict[Path, list[tuple[str, list[float]]]]:
    """Return the objects of a dataset of supervision, by the path of the image."""
    objects_of_path: dict[Path, list[tuple[str, list[float]]]] = {}
    for path, _, detections in dataset:
        names = [dataset.classes[number] for number in detections.class_id]
        boxes = detections.xyxy.tolist()
        objects_of_path[Path(path)] = list(zip(names, boxes, strict=True))
    return objects_of_path


def test_supervision_coco_reads_the_same_objects(
    imported: Path, export: Callable[[str], Path]
) -> None:
    supervision = library("supervision")
    folder = export("coco")
    keys = map_file_names(imported)
    objects_of_key: ObjectsOfKey = {}
    for split in SPLITS:
        dataset = supervision.DetectionDataset.from_coco(
            str(folder / split), str(instances_file(folder, split))
        )
        for path, objects in list_supervision_objects(dataset).items():
            objects_of_key[keys[str(path.relative_to(folder / split))]] = objects
    assert_same(objects_of_key, list_unclipped_objects(imported), 1e-4)


def test_supervision_yolo_reads_the_same_objects(
    imported: Path, export: Callable[[str], Path]
) -> None:
    supervision = library("supervision")
    folder = export("yolo")
    objects_of_key: ObjectsOfKey = {}
    for split in SPLITS:
        folders = (str(folder / part / split) for part in ("images", "labels"))
        dataset = supervision.DetectionDataset.from_yolo(*folders, str(folder / "data.yaml"))
        for path, objects in list_supervision_objects(dataset).items():
            objects_of_key[path.stem] = objects
    assert_same(objects_of_key, list_objects(imported, crowds=False), 1e-4)


def test_supervision_voc_reads_the_same_objects(
    imported: Path, export: Callable[[str], Path]
) -> None:
    supervision = library("supervision")
    folder = export("voc")
    dataset = supervision.DetectionDataset.from_pascal_voc(
        str(folder / "JPEGImages"), str(folder / "Annotations")
    )
    objects_of_path = list_supervision_objects(dataset)
    objects_of_key = {path.stem: objects for path, objects in objects_of_path.items()}
    assert_same(objects_of_key, list_objects(imported), 1.01)  # it subtracts 1 from all four


def test_torchvision_reads_the_same_objects(imported: Path, export: Callable[[str], Path]) -> None:
    torchvision = library("torchvision")
    folder = export("coco")
    names = map_file_names(imported)
    objects_of_key: ObjectsOfKey = {}
    for split in SPLITS:
        coco = torchvision.datasets.CocoDetection(
            str(folder / split), str(instances_file(folder, split))
        )
        coco = torchvision.datasets.wrap_dataset_for_transforms_v2(
            coco, target_keys=["image_id", "boxes", "labels"]
        )
        files = {image["id"]: image["file_name"] for image in coco.coco.dataset["images"]}
        category = {c["id"]: c["name"] for c in coco.coco.dataset["categories"]}
        for _, target in coco:
            boxes = target.get("boxes", np.zeros((0, 4)))
            labels = [category[int(i)] for i in target.get("labels", [])]
            objects_of_key[names[files[target["image_id"]]]] = list(
                zip(labels, boxes.tolist(), strict=True)
            )
    assert_same(objects_of_key, list_unclipped_objects(imported), 1e-4)


def test_ultralytics_reads_the_same_objects(
    imported: Path, export: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It runs in another process, because Ultralytics patches pillow and torch."""
    ultralytics_or_skip()
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    with get_context("spawn").Pool(1) as pool:
        objects_of_key = pool.apply(read_by_ultralytics, (export("yolo"),))
    assert_same(objects_of_key, list_objects(imported, crowds=False), 1e-4)


def ultralytics_or_skip() -> None:
    library("torchvision")  # Ultralytics requires it
    if not find_spec("ultralytics"):
        pytest.skip("ultralytics: not installed")


def read_by_ultralytics(folder: Path) -> ObjectsOfKey:
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    data = check_det_dataset(str(folder / "data.yaml"))
    objects_of_key: ObjectsOfKey = {}
    for split in SPLITS:
        for label in YOLODataset(data[split], data=data, augment=False, imgsz=64).labels:
            h, w = label["shape"]
            cx, cy, bw, bh = (label["bboxes"].astype(float).reshape(-1, 4) * (w, h, w, h)).T
            boxes = np.stack([cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2], 1).tolist()
            names = [data["names"][int(i)] for i in label["cls"].ravel()]
            objects_of_key[Path(label["im_file"]).stem] = list(zip(names, boxes, strict=True))
    return objects_of_key


def test_fiftyone_reads_the_same_objects(imported: Path, export: Callable[[str], Path]) -> None:
    library("fiftyone")
    from fiftyone.utils.coco import COCODetectionDatasetImporter

    folder = export("coco")
    names = map_file_names(imported)
    objects_of_key: ObjectsOfKey = {}
    for split in SPLITS:
        importer = COCODetectionDatasetImporter(
            data_path=str(folder / split),
            labels_path=str(instances_file(folder, split)),
            label_types="detections",
        )
        with importer:
            for path, metadata, detections in importer:
                size = (metadata.width, metadata.height) * 2
                if isinstance(detections, dict):
                    detections = detections["detections"]
                objects = [] if detections is None else detections.detections
                key = names[str(Path(path).relative_to(folder / split))]
                objects_of_key[key] = [
                    (o.label, to_corners(np.array(o.bounding_box) * size)) for o in objects
                ]
    assert_same(objects_of_key, list_unclipped_objects(imported), 1e-4)
