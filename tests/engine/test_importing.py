"""`synthgen import`: a dataset like any other, with the bytes and boxes of its source.

Everything that is bad or left out is reported.
"""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from datasets import load_dataset
from PIL import Image
from pycocotools.coco import COCO

from synthgen import cli
from synthgen.dataset.check import check_dataset
from synthgen.dataset.info import ChangedJobError
from synthgen.dataset.marker import list_committed_shards
from synthgen.dataset.shard import read_members
from synthgen.engine.importing import ImportSpec, import_dataset
from synthgen.evaluation.labelled_images import read_labelled_images
from synthgen.formats.source import Source
from synthgen.layouts.rows import read_entries
from synthgen.storage.location import open_store
from tests.conftest import read_shard_bytes
from tests.formats.sources import (
    BOXES,
    NAMES,
    coco_data,
    document_rows,
    make_image,
    write_coco,
    write_labelme,
    write_lines,
    write_voc,
    write_yolo,
)


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict[str, Any]]:
    status = cli.main([*map(str, argv), "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("form", ["coco", "jsonl", "yolo", "voc", "labelme"])
def test_every_format_becomes_a_dataset(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    out = tmp_path / "out"
    write: dict[str, Any] = {
        "coco": write_coco,
        "jsonl": write_lines,
        "yolo": write_yolo,
        "voc": write_voc,
    }
    (write | {"labelme": write_labelme})[form](source)
    split = ("--split", "all") if form == "yolo" else ()
    status, data = run(capsys, "import", source, out, "--shard-size", 2, *split)
    assert status == 0
    expected = {
        "format": form,
        "images": 3,
        "boxes": 3,
        "shards": 2,
        "made": 3,
        "complete": True,
        "skipped": 0,
        "clipped": 0,
        "anew": 0,
    }
    assert {key: data[key] for key in expected} == expected
    assert data["categories"] == {"dog": 18, "cat": 17}
    assert check_dataset(open_store(out))[0] == []
    assert (out / "report.html").is_file()
    members = {
        name: part
        for tar in sorted((out / "shards").glob("*.tar"))
        for name, part in read_members(tar)
    }
    for k in range(3):
        original = next(source.rglob(f"{k}.jpg"))
        assert members[f"00000000{k}.jpg"] == original.read_bytes()
        record = json.loads(members[f"00000000{k}.json"])
        np.testing.assert_allclose([a["bbox"] for a in record["annotations"]], BOXES[k], atol=1e-5)
        assert [a["category"] for a in record["annotations"]] == NAMES[k]
    prompts = [json.loads(members[f"00000000{k}.json"])["prompt"] for k in range(3)]
    assert prompts == (
        ["picture 0", "picture 1", "picture 2"]
        if form == "jsonl"
        else ["1 dog, 1 cat", "", "1 dog"]
    )


def test_other_programs_read_it(tmp_path: Path) -> None:
    """The source is mixed: jpg and png, a box with a mask and one without, a crowd."""
    data = coco_data()
    data["images"][1]["file_name"] = "1.png"
    data["annotations"][0]["segmentation"] = [[15, 10, 35, 10, 35, 30, 15, 30]]
    data["annotations"][1]["iscrowd"] = 1
    data["licenses"] = [{"id": 1, "name": "CC0"}]
    write_coco(tmp_path / "source", data)
    make_image(1).save(tmp_path / "source/images/1.png")
    out = tmp_path / "out"
    assert cli.main(["import", str(tmp_path / "source"), str(out), "--shard-size", "2"]) == 0
    assert check_dataset(open_store(out))[0] == []
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(out / "annotations/instances.json"))
    assert [(a["iscrowd"], a["area"]) for a in coco.dataset["annotations"]] == [
        (0, 1210.0),
        (1, 400),
        (0, 2000),
    ]
    assert coco.annToMask(coco.anns[1]).sum() == 400
    assert (
        coco.dataset["info"]["description"]
        == "out: pictures and labels imported by synthgen (coco: instances.json)"
    )
    assert coco.dataset["licenses"][0]["name"] == "CC0"
    rows = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["json"]["width"] for row in rows] == [80, 64, 50]
    assert [(row["jpg"] is None, row["png"] is None) for row in rows] == [
        (False, True),
        (True, False),
        (False, True),
    ]
    tars = sorted(map(str, (out / "shards").glob("*.tar")))
    pairs = list(
        webdataset.WebDataset(tars, shardshuffle=False).decode("pil").to_tuple("jpg;png", "json")
    )
    assert [image.size for image, _ in pairs] == [(80, 60), (64, 48), (50, 70)]
    assert 'to_tuple("jpg;png", "json")' in (out / "README.md").read_text()
    assert "- synthetic\n" not in (out / "README.md").read_text()
    assert [layout.categories for _, _, layout in read_labelled_images(open_store(out))] == [
        ("dog",),
        (),
        ("dog",),
    ]  # crowds are not objects
    assert [e.names for e in read_entries(str(out))] == [("dog",), (), ("dog",)]


def bad_source(folder: Path) -> Path:
    """Write a source with three good entries among bad ones of every kind."""
    first, second, third = document_rows()
    path = write_lines(folder)
    for name in ("broken", "a", "b", "c"):
        make_image(0).save(folder / f"{name}.jpg")
    (folder / "broken.jpg").write_bytes((folder / "broken.jpg").read_bytes()[:-200])
    rows = [
        first,
        {**first, "file_name": "none.jpg"},
        {**first, "file_name": "broken.jpg"},
        {**first, "file_name": "a.jpg", "width": 90, "height": 60},
        {
            **first,
            "file_name": "b.jpg",
            "custom_annotation": ["label_18_bbox_70_0_20_20", "label_18_bbox_0_0_20_61.5"],
        },
        second,
        {**first, "file_name": "c.jpg", "custom_annotation": ["label_999_bbox_0_0_2_2"]},
        {"caption": "x", "custom_annotation": []},
        {**third, "custom_annotation": ["label_18_bbox_-0.5_10_40_60.4"]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not json\n")
    return path


EXPECTED = (
    (":2: ", "none.jpg: the image is not there"),
    (":3: ", "the image does not decode"),
    (":4: ", "the image has 80 x 60 px, its entry says 90 x 60"),
    (":5: ", "box 0 (dog), x 70 to 90, y 0 to 20: outside the image of 80 x 60 px"),
    (":5: ", "box 1 (dog), x 0 to 20, y 0 to 61.5: outside"),
    (":7: ", "'label_999_bbox_0_0_2_2' is not label_ID_bbox_X_Y_W_H with an id of COCO's"),
    (":8: ", "give width and height, or a file_name"),
    (":10: ", "not JSON"),
)


def test_all_bad_entries_are_listed_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bad_source(tmp_path / "source")
    assert cli.main(["import", str(path), str(tmp_path / "out")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("synthgen: ")]
    assert len(lines) == len(EXPECTED) + 1
    for line, (place, why) in zip(lines, EXPECTED, strict=False):
        assert line.startswith(f"synthgen: {path}{place}")
        assert why in line
    assert lines[-1].endswith(
        "8 problems; --skip-bad imports the other 3; --clip clips boxes that stand out"
    )
    assert not (tmp_path / "out").exists()


def test_bad_entries_are_skipped_and_counted_with_skip_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bad_source(tmp_path / "source")
    out = tmp_path / "out"
    status, data = run(capsys, "import", path, out, "--skip-bad")
    assert (status, data["images"], data["skipped"], data["clipped"], data["complete"]) == (
        0,
        3,
        7,
        1,
        True,
    )
    problems = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert problems == data["problems"]
    assert [p["place"] for p in problems] == [f"{path}{place[:-2]}" for place, _ in EXPECTED]
    assert check_dataset(open_store(out))[0] == []
    *_, (_, _, last) = read_labelled_images(open_store(out))
    np.testing.assert_allclose(last.boxes, [[0, 10, 39.5, 70]])
    assert cli.main(["import", str(path), str(out), "--skip-bad"]) == 0
    printed = capsys.readouterr().out
    assert "7 images left out, 8 problems" in printed
    assert f"{path}:2: " in printed


def test_an_interrupted_import_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ImportSpec(
        Source("jsonl", write_lines(tmp_path / "source")), tmp_path / "out", shard_size=1
    )
    whole = ImportSpec(spec.source, tmp_path / "whole", shard_size=1)
    import_dataset(whole)

    def interrupt(what: str, count: int) -> None:
        if what == "written" and len(list_committed_shards(open_store(spec.out))) == 2:
            raise KeyboardInterrupt

    result = import_dataset(spec, report=interrupt)
    written = result.written
    assert (written.made, written.interrupted, written.counts["complete"]) == (
        2,
        True,
        False,
    )
    assert check_dataset(open_store(spec.out))[0] == ["shards: 2 images, the job asks for 3"]
    result = import_dataset(spec)
    written = result.written
    assert (written.made, written.interrupted, written.counts["complete"]) == (
        1,
        False,
        True,
    )
    assert check_dataset(open_store(spec.out))[0] == []
    assert read_shard_bytes(spec.out) == read_shard_bytes(whole.out)
    assert import_dataset(spec).written.made == 0


def test_a_killed_import_does_not_look_complete(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "source")
    out = tmp_path / "out"
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from synthgen.engine import importing\n"
        "from synthgen.formats.source import Source\n"
        "source, out = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "def kill(what, count):\n"
        "    if what == 'written' and list(out.glob('shards/*.json')): os._exit(9)\n"
        "spec = importing.ImportSpec(Source('jsonl', source), out, shard_size=1)\n"
        "importing.import_dataset(spec, report=kill)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code, str(source), str(out)], check=False).returncode
        == 9
    )
    assert len(list_committed_shards(open_store(out))) == 1
    assert not json.loads((out / "dataset.json").read_text())["complete"]
    assert check_dataset(open_store(out))[0] != []
    assert import_dataset(ImportSpec(Source("jsonl", source), out, shard_size=1)).written.made == 2
    assert check_dataset(open_store(out))[0] == []


def test_another_source_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "source")
    out = tmp_path / "out"
    assert cli.main(["import", str(path), str(out)]) == 0
    make_image(9, (80, 60)).save(path.parent / "0.jpg")
    with pytest.raises(ChangedJobError, match=r"holds another job: import\.content: was"):
        import_dataset(ImportSpec(Source("jsonl", path), out))
    assert cli.main(["import", str(path), str(out), "--overwrite"]) == 0
    assert check_dataset(open_store(out))[0] == []


def test_an_output_folder_that_contains_the_source_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_coco(tmp_path / "source")
    before = path.read_bytes()
    for out in (tmp_path / "source", tmp_path):
        assert cli.main(["import", str(tmp_path / "source"), str(out), "--overwrite"]) == 2
        assert "holds the source" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_categories_are_renamed_and_get_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = coco_data()
    data["categories"] = [{"id": 1, "name": "Dog"}, {"id": 5, "name": "fox"}]
    for annotation in data["annotations"]:
        annotation["category_id"] = {18: 1, 17: 5}[annotation["category_id"]]
    source = tmp_path / "source"
    out = tmp_path / "out"
    write_coco(source, data)
    assert run(capsys, "import", source, out)[1]["categories"] == {
        "Dog": 1,
        "fox": 5,
    }  # no name of COCO uses these ids here
    (tmp_path / "map.yaml").write_text("Dog: dog\n")
    status, data = run(
        capsys, "import", source, out, "--overwrite", "--categories", tmp_path / "map.yaml"
    )
    assert (status, data["categories"]) == (0, {"dog": 18, "fox": 5})
    assert (
        run(
            capsys,
            "import",
            source,
            out,
            "--overwrite",
            "--ids",
            "fox=18",
            "--categories",
            "Dog=dog",
        )[0]
        == 2
    )
    assert run(capsys, "import", source, out, "--overwrite", "--ids", "fox=101")[1][
        "categories"
    ] == {"Dog": 1, "fox": 101}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--categories", "pup=dog"], "--categories: 'pup' is not in"),
        (
            ["--categories", "dog=Fox"],
            "'Fox' is not a COCO category; give it an id: --ids 'Fox'=101",
        ),
        (["--categories", "dog=Cat"], "or is it --categories 'Cat'='cat'?"),
        (["--categories", "none.yaml"], "none.yaml: cannot be read"),
        (["--ids", "fox"], "command line: --ids: 'fox': give name=id, such as fox=101"),
        (
            ["--ids", "dog=17"],
            "'cat' and 'dog' have the same id 17; give one of them another with --ids",
        ),
        (["--shard-size", "0"], "command line: --shard-size: 0 must be from 1 to 100000"),
        (["--images", "nowhere"], "command line: --images: nowhere: no such folder"),
        (["--format", "yolo"], "no yolo here"),
        (["--split", "train"], "command line: --split: not for jsonl"),
        (
            ["--caption-column", "text"],
            ":1: text: no such column for a caption; "
            "there are: file_name, caption, custom_annotation",
        ),
    ],
)
def test_mistakes_on_the_command_line_are_reported(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(tmp_path / "source")
    assert cli.main(["import", str(tmp_path / "source"), str(tmp_path / "out"), *argv]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_coco_images_in_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_coco(tmp_path / "source")
    (tmp_path / "source/images").rename(tmp_path / "pictures")
    assert cli.main(["import", str(path), str(tmp_path / "out")]) == 2
    assert "none of its images (0.jpg, 1.jpg, …) is in" in capsys.readouterr().err
    assert (
        cli.main(
            ["import", str(path), str(tmp_path / "out"), "--images", str(tmp_path / "pictures")]
        )
        == 0
    )
    with Image.open(tmp_path / "out/contact_sheet.jpg") as sheet:
        assert sheet.width > 400


def faulty(folder: Path, **changes: Any) -> Path:
    """Write a COCO file whose first annotation has these changes."""
    data = coco_data()
    data["annotations"][0].update(changes)
    return write_coco(folder, data)


def test_only_a_box_of_no_area_is_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = faulty(tmp_path / "source", bbox=[5, 5, 0, 20])
    out = tmp_path / "out"
    assert cli.main(["import", str(path), str(out)]) == 2
    assert (
        "--skip-bad imports the other 2; --drop-empty drops boxes of no area"
        in capsys.readouterr().err
    )
    assert not out.exists()
    status, data = run(capsys, "import", path, out, "--drop-empty")
    assert (status, data["images"], data["boxes"], data["dropped"]) == (0, 3, 2, 1)
    assert [layout.categories for _, _, layout in read_labelled_images(open_store(out))] == [
        ("cat",),
        (),
        ("dog",),
    ]
    assert check_dataset(open_store(out))[0] == []
    assert cli.main(["import", str(path), str(out), "--drop-empty"]) == 0
    assert "3 images, 2 boxes, 1 shards; 1 boxes without area dropped" in capsys.readouterr().out


def test_a_box_outside_the_image_is_clipped_in_an_export_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    polygon = [[-4.0, 5, 36, 5, 36, 45, -4, 45]]
    path = faulty(tmp_path / "source", bbox=[-4, 5, 40, 40], area=1600, segmentation=polygon)
    out = tmp_path / "out"
    assert cli.main(["import", str(path), str(out)]) == 2
    assert "--clip clips boxes that stand out" in capsys.readouterr().err
    status, data = run(capsys, "import", path, out, "--clip")
    assert (status, data["boxes"], data["cut"], data["clipped"]) == (0, 3, 1, 0)
    assert cli.main(["export", str(out), "--to", "coco", str(tmp_path / "coco"), "--val", "0"]) == 0
    first = json.loads((tmp_path / "coco/annotations/instances_train.json").read_text())[
        "annotations"
    ][0]
    assert (first["bbox"], first["area"], first["segmentation"]) == ([0, 5, 36, 40], 1440, polygon)


def test_crowds_are_reported_and_can_be_imported_as_objects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CVAT writes every mask as a crowd."""
    data = coco_data()
    for annotation in data["annotations"]:
        annotation["iscrowd"] = 1
    path = write_coco(tmp_path / "source", data)
    out = tmp_path / "out"
    assert cli.main(["import", str(path), str(out)]) == 0
    output = capsys.readouterr()
    assert "2 of 3 images and the categories cat, dog have only crowds (iscrowd: 1)" in output.err
    assert "--crowds objects converts them to objects" in output.err
    assert "3 images, 3 boxes, 1 shards; 3 of the boxes are crowds" in output.out
    argv = ["export", str(out), "--to", "yolo", str(tmp_path / "yolo"), "--val", "0"]
    assert cli.main(argv) == 0
    output = capsys.readouterr()
    assert "train 3 images 0 boxes" in output.out
    assert "3 crowds left out" in output.out
    assert "2 images and the classes cat, dog have nothing but crowds" in output.err
    status, data = run(capsys, "import", path, tmp_path / "objects", "--crowds", "objects")
    assert (status, data["boxes"], data["crowds"]) == (0, 3, 0)
    assert [
        len(layout.categories)
        for _, _, layout in read_labelled_images(open_store(tmp_path / "objects"))
    ] == [2, 0, 1]
    for form, name in (("yolo", "y"), ("coco", "c")):
        status, data = run(
            capsys, "export", tmp_path / "objects", "--to", form, tmp_path / name, "--val", 0
        )
        assert (data["boxes"], data["crowds"], data["crowd_labels"]) == (
            {"train": 3, "val": 0},
            0,
            [],
        )
    assert sum(len(p.read_text().splitlines()) for p in (tmp_path / "y").rglob("0*.txt")) == 3
    annotations = json.loads((tmp_path / "c/annotations/instances_train.json").read_text())[
        "annotations"
    ]
    assert [a["iscrowd"] for a in annotations] == [0, 0, 0]


def test_an_invalid_mask_is_dropped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = faulty(tmp_path / "source", segmentation=[[]])
    assert cli.main(["import", str(path), str(tmp_path / "out")]) == 0
    assert (
        f"3 boxes, 1 shards; 1 masks dropped, the first: {path}: annotations[0]: seg"
        in capsys.readouterr().out
    )
    assert run(capsys, "import", path, tmp_path / "out")[1]["masks_dropped"] == 1


def test_nan_and_infinity_are_never_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JavaScript, Go and jq cannot read NaN, and pycocotools needs `info`."""
    path = faulty(tmp_path / "source", area=float("nan"), score=float("inf"))
    assert cli.main(["import", str(path), str(tmp_path / "out")]) == 0
    assert (
        cli.main(
            ["export", str(tmp_path / "out"), "--to", "coco", str(tmp_path / "coco"), "--val", "0"]
        )
        == 0
    )
    text = (tmp_path / "coco/annotations/instances_train.json").read_text()
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the export"))
    assert data["annotations"][0]["area"] == 30.25 * 40
    assert "score" not in data["annotations"][0]
    assert {"info", "licenses"} <= data.keys()
    for file in [*(tmp_path / "out").rglob("*.json"), *(tmp_path / "out").rglob("*.jsonl")]:
        assert "NaN" not in file.read_text()


@pytest.mark.parametrize("option", ["-q", "-v", "--json"])
def test_output_of_quiet_verbose_and_json(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main(["import", str(write_lines(tmp_path / "source")), str(tmp_path / "out"), option])
        == 0
    )
    assert (capsys.readouterr().out == "") == (option == "-q")
    assert check_dataset(open_store(tmp_path / "out"))[0] == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"<html>404</html>",
            "0.jpg: the image does not decode: cannot identify image file: "
            "it begins with b'<html>404</h'",
        ),
        (b"", "0.jpg: the image does not decode: the file is empty"),
        (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
            "0.jpg: HEIC is not read: convert it to JPEG or PNG",
        ),
    ],
)
def test_a_file_that_is_no_image_is_reported(
    data: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_coco(tmp_path / "source")
    (tmp_path / "source/images/0.jpg").write_bytes(data)
    for has_size in (True, False):
        if not has_size:
            images = [
                {key: image[key] for key in ("id", "file_name")} for image in coco_data()["images"]
            ]
            path.write_text(json.dumps({**coco_data(), "images": images}))
        assert cli.main(["import", str(path), str(tmp_path / "out")]) == 2
        output = capsys.readouterr().err
        assert message in output
        assert "0x" not in output


def test_images_to_which_stray_labels_may_belong_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = faulty(tmp_path / "source", image_id=99)
    out = tmp_path / "out"
    status, data = run(capsys, "import", path, out, "--skip-bad")
    assert (status, data["images"], data["boxes"], data["skipped"]) == (0, 2, 2, 1)
    problems = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [p["place"] for p in problems] == [f"{path}: annotations[0]", f"{path}: images[1]"]
    path.write_text(path.read_text().replace('"image_id": 99', '"image_id": "0.jpg"'))
    assert cli.main(["import", str(path), str(tmp_path / "none"), "--skip-bad"]) == 2
    assert "annotations without a usable image_id: 1" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
