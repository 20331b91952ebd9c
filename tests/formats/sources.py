"""Small sources of annotated images: the same three images in each format."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from synthgen.formats.entries import Entry, Problem
from synthgen.formats.yolo import reader as yolo

SIZES = ((80, 60), (64, 48), (50, 70))
BOXES: tuple[list[list[float]], ...] = (
    [[10.5, 5.0, 30.25, 40.0], [0, 0, 20, 20]],
    [],
    [[5, 10, 40, 50]],
)  # xywh in px
NAMES: tuple[list[str], ...] = (["dog", "cat"], [], ["dog"])
IDS = {"dog": 18, "cat": 17}


def make_image(k: int, size: tuple[int, int] | None = None) -> Image.Image:
    """Return an image of noise that differs for each k."""
    width, height = size or SIZES[k]
    return Image.fromarray(np.random.default_rng(k).integers(0, 255, (height, width, 3), np.uint8))


def write_images(folder: Path, suffix: str = "jpg") -> None:
    """Write the three images."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(3):
        make_image(k).save(folder / f"{k}.{suffix}")


def coco_data() -> dict[str, Any]:
    """Return the content of a COCO file of the three images."""
    images = [
        {"id": 7 + k, "file_name": f"{k}.jpg", "width": w, "height": h}
        for k, (w, h) in enumerate(SIZES)
    ]
    annotations: list[dict[str, Any]] = []
    for k in range(3):
        for box, name in zip(BOXES[k], NAMES[k], strict=True):
            annotation = {
                "id": len(annotations),
                "image_id": 7 + k,
                "category_id": IDS[name],
                "bbox": list(box),
                "iscrowd": 0,
                "area": box[2] * box[3],
            }
            annotations.append(annotation)
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for n, i in IDS.items()],
    }


def write_coco(folder: Path, data: dict[str, Any] | None = None) -> Path:
    """Write the three images and a COCO file; return its path."""
    write_images(folder / "images")
    path = folder / "annotations" / "instances.json"
    path.parent.mkdir()
    path.write_text(json.dumps(data or coco_data()))
    return path


def document_rows() -> list[dict[str, Any]]:
    """Return rows with annotation strings (label_ID_bbox_X_Y_W_H)."""
    rows: list[dict[str, Any]] = []
    for k in range(3):
        strings: list[str] = []
        for box, name in zip(BOXES[k], NAMES[k], strict=True):
            numbers = "_".join(map(str, box))
            strings.append(f"label_{IDS[name]}_bbox_{numbers}")
        row = {"file_name": f"{k}.jpg", "caption": f"picture {k}", "custom_annotation": strings}
        rows.append(row)
    return rows


def write_lines(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """Write the three images and a file of JSON lines; return its path."""
    write_images(folder)
    path = folder / "metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows or document_rows()))
    return path


def write_yolo(folder: Path) -> Path:
    """Write images 0 and 1 for train and image 2 for val; image 1 has no labels."""
    for k, split in ((0, "train"), (1, "train"), (2, "val")):
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
        make_image(k).save(folder / "images" / split / f"{k}.jpg")
        width, height = SIZES[k]
        lines: list[str] = []
        for (x, y, w, h), name in zip(BOXES[k], NAMES[k], strict=True):
            number = ["cat", "dog"].index(name)
            centre = f"{(x + w / 2) / width:.9f} {(y + h / 2) / height:.9f}"
            lines.append(f"{number} {centre} {w / width:.9f} {h / height:.9f}\n")
        if lines:
            (folder / "labels" / split / f"{k}.txt").write_text("".join(lines))
    (folder / "data.yaml").write_text(
        "path: ../elsewhere\ntrain: ../images/train\nval: images/val\nnames: [cat, dog]\n"
    )
    return folder


def write_voc(folder: Path) -> Path:
    """Write corners that are edges, as labelImg does, and a list of two images."""
    write_images(folder / "JPEGImages")
    for part in ("Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for k, (width, height) in enumerate(SIZES):
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        text = f"<filename>{k}.jpg</filename>{size}"
        for (x, y, w, h), name in zip(BOXES[k], NAMES[k], strict=True):
            ends = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
            text += f"<object><name>{name}</name><bndbox>{ends}</bndbox></object>"
        (folder / f"Annotations/{k}.xml").write_text(f"<annotation>{text}</annotation>")
    (folder / "ImageSets/Main/train.txt").write_text("0\n2\n")
    return folder


def write_labelme(folder: Path) -> Path:
    """Write the three images and a file of labelme for each; return the folder."""
    write_images(folder)
    for k, (width, height) in enumerate(SIZES):
        shapes = [
            {"label": name, "points": [[x, y], [x + w, y + h]], "shape_type": "rectangle"}
            for (x, y, w, h), name in zip(BOXES[k], NAMES[k], strict=True)
        ]
        data = {
            "shapes": shapes,
            "imagePath": f"{k}.jpg",
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        (folder / f"{k}.json").write_text(json.dumps(data))
    return folder


POLYGON = [[15.5, 10, 35, 10.25, 35, 30, 15, 30], [2, 2, 9, 2, 5, 9.5]]
UNCOMPRESSED = {"size": [48, 64], "counts": [48 * 10, 48 * 5, 48 * 49]}


def rich_coco() -> dict[str, Any]:
    """Return nine images with crowds, masks of three kinds, licences and unknown keys."""
    from pycocotools import mask

    rng = np.random.default_rng(5)
    compressed = mask.frPyObjects(POLYGON[:1], 48, 64)[0]
    masks: list[Any] = [
        POLYGON,
        UNCOMPRESSED,
        {"size": [48, 64], "counts": compressed["counts"].decode()},
        [],
        None,
    ]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for k in range(9):
        more: dict[str, Any] = {
            "license": 1 + k % 2,
            "flickr_url": f"http://example.org/{k}",
            "date_captured": "2013-11-14 11:18:45",
        }
        name = f"deep/{k}.png" if k % 3 == 2 else f"{k:012d}.jpg"
        images.append({"id": 900 - 7 * k, "file_name": name, "width": 64, "height": 48, **more})
        for n in range((3, 0, 1)[k % 3]):
            x, y, w, h = (rng.random(4) * (30, 20, 30, 25) + (0, 0, 2, 2)).round((3, 9)[n == 2])
            annotation: dict[str, Any] = {
                "id": 5000 - 10 * k - n,
                "image_id": 900 - 7 * k,
                "category_id": (1, 5, 900)[(k + n) % 3],
            }
            annotation |= {
                "bbox": [x, y, w, h],
                "area": (w * h / 2).round(2),
                "iscrowd": int(n == 1),
                "segmentation": masks[(k + n) % 5],
            }
            if n == 2:
                annotation["attributes"] = {"occluded": True}
                annotation["num_keypoints"] = 0
                annotation["category"] = "dog"
            if annotation["segmentation"] is None:
                del annotation["segmentation"]
            annotations.append(annotation)
    annotations[0]["bbox"] = [-0.25, 4, 20, 44.5]  # reaches outside by less than a pixel
    return {
        "info": {"description": "rich", "year": 2017, "url": "http://example.org"},
        "licenses": [
            {"id": 1, "name": "CC BY", "url": "http://example.org/by"},
            {"id": 2, "name": "CC0", "url": ""},
        ],
        "categories": [
            {"id": 900, "name": "cat", "supercategory": "animal"},
            {"id": 1, "name": "dog", "supercategory": "animal", "keypoints": ["nose"]},
            {"id": 5, "name": "traffic cone", "supercategory": "street"},
            {"id": 6, "name": "never used", "supercategory": "street"},
        ],
        "images": images,
        "annotations": annotations,
        "type": "instances",
    }


def write_rich_coco(folder: Path) -> Path:
    """Write `rich_coco` and its images; return the path of the COCO file."""
    data = rich_coco()
    for k, image in enumerate(data["images"]):
        path = folder / "images" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(k, (64, 48)).save(path)
    path = folder / "annotations" / "instances.json"
    path.parent.mkdir()
    path.write_text(json.dumps(data))
    return path


def read_yolo(
    source: Path, split: str | None = None, whole: bool = False, task: str | None = None
) -> Iterator[Entry | Problem]:
    """Return the annotated images of a YOLO dataset."""
    return yolo.open_dataset(source, split, task).entries(whole)
