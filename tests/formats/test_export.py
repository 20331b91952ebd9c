"""`synthgen export`: bytes and boxes as they were, each sample once and always in the same split, and COCO without a loss."""

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
from synthgen.dataset.marker import committed
from synthgen.dataset.sample import annotations_of
from synthgen.dataset.shard import read_rows
from synthgen.dataset.shard_reader import split_of
from synthgen.engine.driver import run
from synthgen.engine.importing import ImportSpec, import_dataset
from synthgen.errors import InputError
from synthgen.formats.base import writable_formats
from synthgen.formats.export import ExportSpec, export_dataset
from synthgen.formats.source import Source, locate
from synthgen.geometry import xywh_to_voc
from synthgen.storage.location import open_store
from tests.formats.sources import coco_data, rich_coco, write_coco

VAL = 0.4


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [
        row for number in committed(open_store(out)) for row in read_rows(open_store(out), number)
    ]


def exported(out: Path, form: str, folder: Path, **more: Any) -> Path:
    export_dataset(ExportSpec(out, form, folder, **{"val": VAL, **more}))
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Name and digest of each file of an export."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def picture_digests(folder: Path, form: str) -> list[str]:
    """Digests of all pictures of an export."""
    if form == "hf":
        tables = [pq.read_table(p) for p in sorted(folder.glob("data/*.parquet"))]
        return [
            hashlib.sha256(i["bytes"]).hexdigest() for t in tables for i in t["image"].to_pylist()
        ]
    return [d for name, d in tree(folder).items() if name.endswith((".jpg", ".png"))]


@pytest.mark.parametrize("form", writable_formats())
def test_every_picture_is_there_once_byte_by_byte(
    form: str, imported: Path, tmp_path: Path
) -> None:
    folder = exported(imported, form, tmp_path / form)
    assert sorted(picture_digests(folder, form)) == sorted(
        row["image_sha256"] for row in rows_of(imported)
    )
    assert not [name for name in tree(folder) if name.endswith(".tmp")]


def by_id(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(records, key=lambda record: int(record["id"]))


def test_coco_to_coco_loses_nothing(imported: Path, tmp_path: Path) -> None:
    assert check_dataset(open_store(imported))[0] == []
    folder, original = exported(imported, "coco", tmp_path / "coco"), rich_coco()
    parts = {
        split: json.loads((folder / f"annotations/instances_{split}.json").read_text())
        for split in ("train", "val")
    }
    for split, part in parts.items():
        assert part["images"], split
        assert all((folder / split / image["file_name"]).is_file() for image in part["images"])
        assert {a["image_id"] for a in part["annotations"]} <= {
            image["id"] for image in part["images"]
        }
        assert {k: v for k, v in part.items() if k not in ("images", "annotations")} == {
            k: v for k, v in original.items() if k not in ("images", "annotations")
        }
    for records in ("images", "annotations"):
        assert by_id([r for part in parts.values() for r in part[records]]) == by_id(
            original[records]
        )


def test_coco_survives_a_second_round(imported: Path, tmp_path: Path) -> None:
    folder = exported(imported, "coco", tmp_path / "one", val=0)
    source = Source("coco", folder / "annotations/instances_train.json")
    import_dataset(ImportSpec(source, tmp_path / "again", shard_size=2))
    again = exported(tmp_path / "again", "coco", tmp_path / "two", val=0)
    name = "annotations/instances_train.json"
    assert json.loads((again / name).read_text()) == json.loads((folder / name).read_text())
    assert not (folder / "annotations/instances_val.json").exists()


def test_ids_that_cannot_be_kept_are_counted_anew(tmp_path: Path) -> None:
    """coco_data counts annotations from 0, which pycocotools takes for one that was not found; names are renamed as asked."""
    source = Source("coco", write_coco(tmp_path / "source"), tmp_path / "source/images")
    import_dataset(ImportSpec(source, tmp_path / "out", categories={"dog": "bear"}))
    folder = exported(tmp_path / "out", "coco", tmp_path / "coco", val=0)
    data = json.loads((folder / "annotations/instances_train.json").read_text())
    assert [a["id"] for a in data["annotations"]] == [1, 2, 3]
    assert [i["id"] for i in data["images"]] == [i["id"] for i in coco_data()["images"]]
    assert {c["name"]: c["id"] for c in data["categories"]} == {"bear": 23, "cat": 17}
    assert {a["category_id"] for a in data["annotations"]} == {23, 17}


def test_pictures_of_one_name_do_not_meet(tmp_path: Path) -> None:
    data = coco_data()
    data["images"][2] |= {"file_name": "0.jpg", "width": 80, "height": 60}
    data["annotations"] = data["annotations"][:2]
    data["annotations"] += [{**a, "id": 2 + a["id"], "image_id": 9} for a in data["annotations"]]
    source = Source("coco", write_coco(tmp_path / "source", data), tmp_path / "source/images")
    import_dataset(ImportSpec(source, tmp_path / "out"))
    folder = exported(tmp_path / "out", "coco", tmp_path / "coco", val=0)
    assert sorted(p.name for p in (folder / "train").iterdir()) == [
        f"00000000{k}.jpg" for k in range(3)
    ]


def test_a_made_dataset_as_coco(made: Path, tmp_path: Path) -> None:
    folder = exported(made, "coco", tmp_path / "coco")
    ids: list[int] = []
    for split in ("train", "val"):
        data = json.loads((folder / f"annotations/instances_{split}.json").read_text())
        rows = {
            row["index"] + 1: row for row in rows_of(made) if split_of(row["key"], VAL) == split
        }
        assert sorted(i["id"] for i in data["images"]) == sorted(rows)
        assert all(a["bbox"] in rows[a["image_id"]]["bbox"] for a in data["annotations"])
        ids += [a["id"] for a in data["annotations"]]
    assert sorted(ids) == list(range(1, 41))


def test_yolo(imported: Path, tmp_path: Path) -> None:
    """Read by Ultralytics' documented rules: labels/ for images/, class from 0 and centre and size in shares; no crowds."""
    folder = exported(imported, "yolo", tmp_path / "yolo")
    text = (folder / "data.yaml").read_text()
    assert (
        'names:\n  0: "traffic cone"\n  1: "cat"\n  2: "dog"\n' in text
    )  # ascending ids: 5 of its own, 17, 18
    names = ["traffic cone", "cat", "dog"]
    for row in rows_of(imported):
        split = split_of(row["key"], VAL)
        assert (folder / f"images/{split}/{row['key']}.{row['image_format']}").is_file()
        lines = (folder / f"labels/{split}/{row['key']}.txt").read_text().splitlines()
        wanted = [a for a in annotations_of(row) if not a.iscrowd]
        assert [names[int(line.split()[0])] for line in lines] == [a.category for a in wanted]
        for line, annotation in zip(lines, wanted, strict=True):
            cx, cy, w, h = (float(v) for v in line.split()[1:])
            box = [(cx - w / 2) * 64, (cy - h / 2) * 48, w * 64, h * 48]
            np.testing.assert_allclose(box, annotation.bbox, atol=1e-5)


def test_voc(imported: Path, tmp_path: Path) -> None:
    folder = exported(imported, "voc", tmp_path / "voc")
    listed = {
        split: (folder / f"ImageSets/Main/{split}.txt").read_text().split()
        for split in ("train", "val")
    }
    for row in rows_of(imported):
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


def test_voc_comes_back_as_it_was(tmp_path: Path) -> None:
    """Boxes of whole pixels: one of a single pixel, one of the whole image, and a crowd."""
    data = coco_data()
    data["annotations"][0]["bbox"], data["annotations"][1]["bbox"] = [7, 5, 1, 1], [0, 0, 80, 60]
    data["annotations"][1]["iscrowd"] = 1
    first = import_dataset(
        ImportSpec(Source("coco", write_coco(tmp_path / "coco", data)), tmp_path / "first")
    )
    folder = exported(tmp_path / "first", "voc", tmp_path / "voc", val=0)
    last = import_dataset(ImportSpec(Source(*locate(folder)), tmp_path / "last"))
    assert (first.survey.count, last.survey.problems) == (3, [])
    keys = ("width", "height", "bbox", "category", "category_id", "iscrowd")
    one, other = (
        [{key: row[key] for key in keys} for row in rows_of(tmp_path / name)]
        for name in ("first", "last")
    )
    assert one == other


@settings(deadline=None)
@given(st.floats(0, 500), st.floats(0.01, 400))
def test_voc_boxes_have_pixels_and_stay_inside(x: float, w: float) -> None:
    xmin, _, xmax, _ = xywh_to_voc((x, 0, w, 1))
    assert 1 <= xmin <= xmax <= int(np.ceil(x + w))


@settings(deadline=None)
@given(st.integers(0, 10**9 - 1), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_only_takes_more(index: int, one: float, other: float) -> None:
    key, (less, more) = f"{index:09d}", sorted((one, other))
    if split_of(key, less) == "val":
        assert split_of(key, more) == "val"
    assert (split_of(key, 0), split_of(key, 1)) == ("train", "val")


def test_the_share_is_what_was_asked_for() -> None:
    counts = Counter(split_of(f"{i:09d}", 0.1) for i in range(20_000))
    assert abs(counts["val"] / 20_000 - 0.1) < 0.01  # four standard deviations


@pytest.mark.parametrize("form", writable_formats())
def test_a_stopped_export_goes_on_and_a_grown_dataset_is_taken_along(
    form: str, made: Path, tmp_path: Path
) -> None:
    """Killed while it writes; and the dataset gets more images: what is there then is what one export writes."""
    out, folder = tmp_path / "out", tmp_path / "export"
    shutil.copytree(made, out)
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom synthgen.formats.export import ExportSpec, export_dataset\n"
        "def kill(done, total):\n    if done == 2: os._exit(9)\n"
        f"export_dataset(ExportSpec(Path(sys.argv[1]), {form!r}, Path(sys.argv[2]), {VAL}, workers=1), kill)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(out), str(folder)], check=False, env=os.environ
    )
    assert killed.returncode == 9
    assert len(list((folder / ".export").iterdir())) >= 2
    result = export_dataset(ExportSpec(out, form, folder, VAL))
    assert (result.written, result.shards, sum(result.images.values())) == (3, 5, 10)
    assert tree(folder) == tree(exported(out, form, tmp_path / "fresh"))
    assert export_dataset(ExportSpec(out, form, folder, VAL)).written == 0
    run(load_job(str(made.parent / "job.yaml"), ["images=13", f"output.path={out}"]))
    result = export_dataset(ExportSpec(out, form, folder, VAL))
    assert (result.written, result.shards, sum(result.images.values())) == (2, 7, 13)
    assert tree(folder) == tree(exported(out, form, tmp_path / "grown"))


def test_an_interrupted_export_says_so(made: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    result = export_dataset(ExportSpec(made, "yolo", tmp_path / "yolo", VAL, workers=1), interrupt)
    assert (result.interrupted, result.written >= 1) == (True, True)
    assert export_dataset(ExportSpec(made, "yolo", tmp_path / "yolo", VAL)).interrupted is False


def test_what_else_is_in_the_folder_is_refused(made: Path, imported: Path, tmp_path: Path) -> None:
    folder = exported(made, "yolo", tmp_path / "yolo")
    before = tree(folder)
    with pytest.raises(
        InputError, match=r"holds another export: val: was 0\.4, is 0\.2; give another folder"
    ):
        exported(made, "yolo", folder, val=0.2)
    with pytest.raises(InputError, match="form: was 'yolo', is 'coco'"):
        exported(made, "coco", folder)
    with pytest.raises(InputError, match="job: was"):
        exported(imported, "yolo", folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(InputError, match="is not empty, and no export of ours"):
        exported(made, "yolo", tmp_path / "mine")
    with pytest.raises(InputError, match="lies in the dataset"):
        exported(made, "yolo", made / "yolo")
    assert tree(folder) == before


def test_a_damaged_shard_is_named(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made, out)
    tar = out / "shards/000001.tar"
    data = bytearray(tar.read_bytes())
    data[2000] ^= 255
    tar.write_bytes(data)
    with pytest.raises(
        InputError,
        match=r"000001.tar: 000000002.jpg differs from its row \(sha256\); see `synthgen check",
    ):
        exported(out, "coco", tmp_path / "coco")
    tar.write_bytes(data[:-1024])
    with pytest.raises(InputError, match="000001: differs from its marker"):
        exported(out, "coco", tmp_path / "other")


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
        exported(out, "coco", tmp_path / "a/b/coco")
    assert not list(tmp_path.rglob("leak*"))


def test_the_command(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "yolo"
    argv = ["export", str(made), "--to", "yolo", str(folder), "--val", "0.4", "--label", "cat=dog"]
    assert cli.main([*argv, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data) == {
        "output", "form", "images", "boxes", "labels", "shards", "written", "interrupted", "missing",
        "crowds", "crowd_images", "crowd_labels",
    }  # fmt: skip
    assert (sum(data["images"].values()), sum(data["boxes"].values()), data["labels"]) == (
        10,
        40,
        ["dog"],
    )
    assert {line[0] for p in folder.rglob("0*.txt") for line in p.read_text().splitlines()} == {"0"}
    assert cli.main(argv) == 0
    assert "1 classes" in capsys.readouterr().out
    for wrong, message in (
        (["--val", "1.5"], "--val: 1.5 must be from 0 to 1"),
        (["--label", "fox=dog"], "--label: 'fox' is no category here; there are dog, cat"),
        (["--label", "dog"], "--label: 'dog': give puppy=dog"),
        (["--workers", "0"], "--workers: 0 must be at least 1"),
    ):
        assert cli.main(["export", str(made), "--to", "yolo", str(tmp_path / "no"), *wrong]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path), "--to", "yolo", str(tmp_path.parent / "no")]) == 2
    assert not (tmp_path / "no").exists()
