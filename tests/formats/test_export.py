"""`synthgen export`: unchanged bytes and boxes, stable splits, and COCO without a loss."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen import cli
from synthgen.config import load_job
from synthgen.dataset.check import check_dataset
from synthgen.dataset.marker import list_committed_shards
from synthgen.dataset.sample import read_annotations
from synthgen.dataset.shard import read_rows
from synthgen.dataset.shard_reader import split_of
from synthgen.engine.generation import run
from synthgen.engine.importing import ImportSpec, import_dataset
from synthgen.errors import InputError
from synthgen.formats.base import list_writable_formats
from synthgen.formats.export import ExportSpec, export_dataset
from synthgen.formats.source import Source, locate_source
from synthgen.geometry import xywh_to_voc
from synthgen.storage.location import open_store
from tests.formats.sources import coco_data, rich_coco, write_coco

VAL = 0.4


def read_all_rows(out: Path) -> list[dict[str, Any]]:
    """Return the rows of all shards."""
    store = open_store(out)
    rows: list[dict[str, Any]] = []
    for number in list_committed_shards(store):
        rows += read_rows(store, number)
    return rows


def export(out: Path, form: str, folder: Path, **more: Any) -> Path:
    export_dataset(ExportSpec(out, form, folder, **{"val": VAL, **more}))
    return folder


def list_digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file of an export by its name."""
    digests: dict[str, str] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            name = str(path.relative_to(folder))
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests


def list_image_digests(folder: Path, form: str) -> list[str]:
    """Return the sha256 of each image of an export."""
    if form == "hf":
        digests: list[str] = []
        for path in sorted(folder.glob("data/*.parquet")):
            for image in pq.read_table(path)["image"].to_pylist():
                digests.append(hashlib.sha256(image["bytes"]).hexdigest())
        return digests
    files = list_digests(folder).items()
    return [digest for name, digest in files if name.endswith((".jpg", ".png"))]


@pytest.mark.parametrize("form", list_writable_formats())
def test_every_image_is_exported_once_with_its_bytes(
    form: str, imported: Path, tmp_path: Path
) -> None:
    folder = export(imported, form, tmp_path / form)
    assert sorted(list_image_digests(folder, form)) == sorted(
        row["image_sha256"] for row in read_all_rows(imported)
    )
    assert not [name for name in list_digests(folder) if name.endswith(".tmp")]


def sort_by_id(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(records, key=lambda record: int(record["id"]))


def test_coco_to_coco_loses_nothing(imported: Path, tmp_path: Path) -> None:
    assert check_dataset(open_store(imported))[0] == []
    folder = export(imported, "coco", tmp_path / "coco")
    original = rich_coco()
    original_images = original.pop("images")
    original_annotations = original.pop("annotations")
    all_images: list[dict[str, Any]] = []
    all_annotations: list[dict[str, Any]] = []
    for split in ("train", "val"):
        data = json.loads((folder / f"annotations/instances_{split}.json").read_text())
        images = data.pop("images")
        annotations = data.pop("annotations")
        assert images, split
        assert all((folder / split / image["file_name"]).is_file() for image in images)
        image_ids = {image["id"] for image in images}
        assert {annotation["image_id"] for annotation in annotations} <= image_ids
        assert data == original
        all_images += images
        all_annotations += annotations
    assert sort_by_id(all_images) == sort_by_id(original_images)
    assert sort_by_id(all_annotations) == sort_by_id(original_annotations)


def test_coco_is_the_same_after_a_second_import_and_export(imported: Path, tmp_path: Path) -> None:
    folder = export(imported, "coco", tmp_path / "one", val=0)
    source = Source("coco", folder / "annotations/instances_train.json")
    import_dataset(ImportSpec(source, tmp_path / "again", shard_size=2))
    again = export(tmp_path / "again", "coco", tmp_path / "two", val=0)
    name = "annotations/instances_train.json"
    assert json.loads((again / name).read_text()) == json.loads((folder / name).read_text())
    assert not (folder / "annotations/instances_val.json").exists()


def test_annotation_ids_that_are_not_valid_are_replaced(tmp_path: Path) -> None:
    """coco_data counts annotations from 0, which pycocotools treats as not found."""
    source = Source("coco", write_coco(tmp_path / "source"), tmp_path / "source/images")
    import_dataset(ImportSpec(source, tmp_path / "out", categories={"dog": "bear"}))
    folder = export(tmp_path / "out", "coco", tmp_path / "coco", val=0)
    data = json.loads((folder / "annotations/instances_train.json").read_text())
    assert [a["id"] for a in data["annotations"]] == [1, 2, 3]
    assert [i["id"] for i in data["images"]] == [i["id"] for i in coco_data()["images"]]
    assert {c["name"]: c["id"] for c in data["categories"]} == {"bear": 23, "cat": 17}
    assert {a["category_id"] for a in data["annotations"]} == {23, 17}


def test_images_with_the_same_name_get_other_names(tmp_path: Path) -> None:
    data = coco_data()
    data["images"][2] |= {"file_name": "0.jpg", "width": 80, "height": 60}
    data["annotations"] = data["annotations"][:2]
    data["annotations"] += [{**a, "id": 2 + a["id"], "image_id": 9} for a in data["annotations"]]
    source = Source("coco", write_coco(tmp_path / "source", data), tmp_path / "source/images")
    import_dataset(ImportSpec(source, tmp_path / "out"))
    folder = export(tmp_path / "out", "coco", tmp_path / "coco", val=0)
    assert sorted(p.name for p in (folder / "train").iterdir()) == [
        f"00000000{k}.jpg" for k in range(3)
    ]


def test_a_generated_dataset_is_exported_as_coco(generated: Path, tmp_path: Path) -> None:
    folder = export(generated, "coco", tmp_path / "coco")
    ids: list[int] = []
    for split in ("train", "val"):
        data = json.loads((folder / f"annotations/instances_{split}.json").read_text())
        rows = {
            row["index"] + 1: row
            for row in read_all_rows(generated)
            if split_of(row["key"], VAL) == split
        }
        assert sorted(i["id"] for i in data["images"]) == sorted(rows)
        assert all(a["bbox"] in rows[a["image_id"]]["bbox"] for a in data["annotations"])
        ids += [a["id"] for a in data["annotations"]]
    assert sorted(ids) == list(range(1, 41))


def test_yolo_has_labels_in_shares_of_the_image(imported: Path, tmp_path: Path) -> None:
    """Ultralytics' rules: labels/ for images/, classes from 0, centre and size, no crowds."""
    folder = export(imported, "yolo", tmp_path / "yolo")
    text = (folder / "data.yaml").read_text()
    # ascending ids: 5, 17, 18
    assert 'names:\n  0: "traffic cone"\n  1: "cat"\n  2: "dog"\n' in text
    names = ["traffic cone", "cat", "dog"]
    for row in read_all_rows(imported):
        split = split_of(row["key"], VAL)
        assert (folder / f"images/{split}/{row['key']}.{row['image_format']}").is_file()
        lines = (folder / f"labels/{split}/{row['key']}.txt").read_text().splitlines()
        wanted = [a for a in read_annotations(row) if not a.iscrowd]
        assert [names[int(line.split()[0])] for line in lines] == [a.category for a in wanted]
        for line, annotation in zip(lines, wanted, strict=True):
            cx, cy, w, h = (float(v) for v in line.split()[1:])
            box = [(cx - w / 2) * 64, (cy - h / 2) * 48, w * 64, h * 48]
            np.testing.assert_allclose(box, annotation.bbox, atol=1e-5)


def test_voc_has_boxes_in_whole_pixels(imported: Path, tmp_path: Path) -> None:
    folder = export(imported, "voc", tmp_path / "voc")
    listed = {
        split: (folder / f"ImageSets/Main/{split}.txt").read_text().split()
        for split in ("train", "val")
    }
    for row in read_all_rows(imported):
        assert row["key"] in listed[split_of(row["key"], VAL)]
        root = ElementTree.parse(folder / f"Annotations/{row['key']}.xml").getroot()
        assert (folder / "JPEGImages" / str(root.findtext("filename"))).is_file()
        objects = root.findall("object")
        assert [o.findtext("name") for o in objects] == row["category"]
        assert [int(o.findtext("difficult") or 9) for o in objects] == row["iscrowd"]
        for item, (x, y, w, h) in zip(objects, row["bbox"], strict=True):
            ends = [
                int(item.findtext(f"bndbox/{name}") or -1)
                for name in ("xmin", "ymin", "xmax", "ymax")
            ]
            np.testing.assert_allclose(
                [ends[0] - 1, ends[1] - 1, ends[2], ends[3]], [x, y, x + w, y + h], atol=0.501
            )
    assert sum(map(len, listed.values())) == 9


def test_voc_of_whole_pixels_is_imported_unchanged(tmp_path: Path) -> None:
    """The boxes are a single pixel and the whole image, which is a crowd."""
    data = coco_data()
    data["annotations"][0]["bbox"] = [7, 5, 1, 1]
    data["annotations"][1]["bbox"] = [0, 0, 80, 60]
    data["annotations"][1]["iscrowd"] = 1
    first = import_dataset(
        ImportSpec(Source("coco", write_coco(tmp_path / "coco", data)), tmp_path / "first")
    )
    folder = export(tmp_path / "first", "voc", tmp_path / "voc", val=0)
    last = import_dataset(ImportSpec(Source(*locate_source(folder)), tmp_path / "last"))
    assert (first.survey.count, last.survey.problems) == (3, [])
    keys = ("width", "height", "bbox", "category", "category_id", "iscrowd")
    first_rows = read_all_rows(tmp_path / "first")
    last_rows = read_all_rows(tmp_path / "last")
    for first_row, last_row in zip(first_rows, last_rows, strict=True):
        for key in keys:
            assert first_row[key] == last_row[key]


@settings(deadline=None)
@given(st.floats(0, 500), st.floats(0.01, 400))
def test_voc_boxes_have_pixels_and_stay_inside(x: float, w: float) -> None:
    xmin, _, xmax, _ = xywh_to_voc((x, 0, w, 1))
    assert 1 <= xmin <= xmax <= int(np.ceil(x + w))


@settings(deadline=None)
@given(st.integers(0, 10**9 - 1), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_keeps_the_samples_of_val(index: int, one: float, other: float) -> None:
    key = f"{index:09d}"
    less, more = sorted((one, other))
    if split_of(key, less) == "val":
        assert split_of(key, more) == "val"
    assert (split_of(key, 0), split_of(key, 1)) == ("train", "val")


def test_the_share_of_val_is_about_the_requested_one() -> None:
    counts = Counter(split_of(f"{i:09d}", 0.1) for i in range(20_000))
    assert abs(counts["val"] / 20_000 - 0.1) < 0.01  # four standard deviations


@pytest.mark.parametrize("form", list_writable_formats())
def test_an_export_is_resumed_and_adds_new_shards(
    form: str, generated: Path, tmp_path: Path
) -> None:
    """After a kill and after the dataset has grown, the files equal those of a single export."""
    out = tmp_path / "out"
    folder = tmp_path / "export"
    shutil.copytree(generated, out)
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from synthgen.formats.export import ExportSpec, export_dataset\n"
        "def kill(done, total):\n"
        "    if done == 2: os._exit(9)\n"
        "source, folder = map(Path, sys.argv[1:])\n"
        f"spec = ExportSpec(source, {form!r}, folder, {VAL}, workers=1)\n"
        "export_dataset(spec, kill)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(out), str(folder)], check=False, env=os.environ
    )
    assert killed.returncode == 9
    assert len(list((folder / ".export").iterdir())) >= 2
    result = export_dataset(ExportSpec(out, form, folder, VAL))
    assert (result.written, result.shards, sum(result.images.values())) == (3, 5, 10)
    assert list_digests(folder) == list_digests(export(out, form, tmp_path / "fresh"))
    assert export_dataset(ExportSpec(out, form, folder, VAL)).written == 0
    run(load_job(str(generated.parent / "job.yaml"), ["images=13", f"output.path={out}"]))
    result = export_dataset(ExportSpec(out, form, folder, VAL))
    assert (result.written, result.shards, sum(result.images.values())) == (2, 7, 13)
    assert list_digests(folder) == list_digests(export(out, form, tmp_path / "grown"))


def test_an_interrupted_export_returns_a_result(generated: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    result = export_dataset(
        ExportSpec(generated, "yolo", tmp_path / "yolo", VAL, workers=1), interrupt
    )
    assert (result.interrupted, result.written >= 1) == (True, True)
    assert (
        export_dataset(ExportSpec(generated, "yolo", tmp_path / "yolo", VAL)).interrupted is False
    )


def test_a_folder_with_other_content_is_refused(
    generated: Path, imported: Path, tmp_path: Path
) -> None:
    folder = export(generated, "yolo", tmp_path / "yolo")
    before = list_digests(folder)
    with pytest.raises(
        InputError, match=r"holds another export: val: was 0\.4, is 0\.2; give another folder"
    ):
        export(generated, "yolo", folder, val=0.2)
    with pytest.raises(InputError, match="form: was 'yolo', is 'coco'"):
        export(generated, "coco", folder)
    with pytest.raises(InputError, match="job: was"):
        export(imported, "yolo", folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(InputError, match="is not empty, and not an export of synthgen"):
        export(generated, "yolo", tmp_path / "mine")
    with pytest.raises(InputError, match="lies in the dataset"):
        export(generated, "yolo", generated / "yolo")
    assert list_digests(folder) == before


def test_a_damaged_shard_is_named(generated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(generated, out)
    tar = out / "shards/000001.tar"
    data = bytearray(tar.read_bytes())
    data[2000] ^= 255
    tar.write_bytes(data)
    with pytest.raises(
        InputError,
        match=r"000001.tar: 000000002.jpg differs from its row \(sha256\); see `synthgen check",
    ):
        export(out, "coco", tmp_path / "coco")
    tar.write_bytes(data[:-1024])
    with pytest.raises(InputError, match="000001: differs from its marker"):
        export(out, "coco", tmp_path / "other")


def test_a_name_that_leads_out_of_the_folder_is_refused(imported: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(imported, out)
    table = pq.read_table(out / "shards/000000.parquet")
    rows = table.to_pylist()
    rows[0]["source"] = rows[0]["source"].replace("000000000000.jpg", "../../../leak.jpg")
    pq.write_table(table.from_pylist(rows, table.schema), out / "shards/000000.parquet")
    marker = json.loads((out / "shards/000000.json").read_text())
    marker["parquet_bytes"] = (out / "shards/000000.parquet").stat().st_size
    (out / "shards/000000.json").write_text(json.dumps(marker))
    with pytest.raises(InputError, match="leads out of"):
        export(out, "coco", tmp_path / "a/b/coco")
    assert not list(tmp_path.rglob("leak*"))


def test_the_command_reports_and_refuses(
    generated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "yolo"
    argv = [
        "export",
        str(generated),
        "--to",
        "yolo",
        str(folder),
        "--val",
        "0.4",
        "--label",
        "cat=dog",
    ]
    assert cli.main([*argv, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data) == {
        "output",
        "form",
        "images",
        "boxes",
        "labels",
        "shards",
        "written",
        "interrupted",
        "missing",
        "crowds",
        "crowd_images",
        "crowd_labels",
    }
    assert (sum(data["images"].values()), sum(data["boxes"].values()), data["labels"]) == (
        10,
        40,
        ["dog"],
    )
    for path in folder.rglob("0*.txt"):
        assert {line[0] for line in path.read_text().splitlines()} == {"0"}
    assert cli.main(argv) == 0
    assert "1 classes" in capsys.readouterr().out
    for wrong, message in (
        (["--val", "1.5"], "--val: 1.5 must be from 0 to 1"),
        (
            ["--label", "fox=dog"],
            "--label: 'fox' is not a category of the dataset; its categories are dog, cat",
        ),
        (["--label", "dog"], "--label: 'dog': give puppy=dog"),
        (["--workers", "0"], "--workers: 0 must be at least 1"),
    ):
        assert (
            cli.main(["export", str(generated), "--to", "yolo", str(tmp_path / "no"), *wrong]) == 2
        )
        assert message in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path), "--to", "yolo", str(tmp_path.parent / "no")]) == 2
    assert not (tmp_path / "no").exists()
