"""Pascal VOC of the development kit, labelImg, CVAT, Roboflow and synthgen itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthgen import cli
from synthgen.formats.entries import (
    BadEntryError,
    Entry,
    Policy,
    Problem,
    UnreadableSourceError,
    apply_policy,
)
from synthgen.formats.source import locate_source
from synthgen.formats.voc import reader as voc
from tests.formats.sources import make_image

SIZE = "<size><width>160</width><height>120</height><depth>3</depth></size>"


def make_object(
    ends: tuple[object, ...] = (20, 30, 60, 80), name: str = "dog", more: str = ""
) -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    bounds = "".join(f"<{key}>{end}</{key}>" for key, end in zip(keys, ends, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{bounds}</bndbox></object>"


def make_annotation(body: str, filename: str = "0.jpg", writer: str = "", size: str = SIZE) -> str:
    source = (
        f"<source><database>x</database><annotation>{writer}</annotation></source>"
        if writer
        else ""
    )
    return f"<annotation><filename>{filename}</filename>{source}{size}{body}</annotation>"


def write_dataset(
    folder: Path, *files: str, names: str = "JPEGImages", xml: str = "Annotations"
) -> Path:
    """Write a dataset with an image of 160 x 120 px for each file."""
    for part in (names, xml):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for k, text in enumerate(files):
        make_image(k, (160, 120)).save(folder / names / f"{k}.jpg")
        (folder / xml / f"{k}.xml").write_text(text)
    return folder


def read(folder: Path, **options: Any) -> tuple[list[Entry], list[str]]:
    """Return the entries, and the problems as texts."""
    results = list(voc.open_dataset(folder, **options).entries(True))
    entries = [result for result in results if isinstance(result, Entry)]
    return entries, [str(result) for result in results if isinstance(result, Problem)]


@pytest.mark.parametrize(
    ("names", "xml"),
    [("JPEGImages", "Annotations"), ("images", "annotations"), (".", "."), ("images", "xml")],
)
def test_folders_may_have_usual_names(names: str, xml: str, tmp_path: Path) -> None:
    folder = write_dataset(
        tmp_path,
        make_annotation(make_object(name="dog") + make_object(name="cat")),
        make_annotation("", "1.jpg"),
        names=names,
        xml=xml,
    )
    folder = folder / "xml" if xml == "xml" else folder  # a folder with another name must be given
    assert locate_source(folder) == ("voc", folder)
    (first, last), problems = read(folder)
    assert problems == []
    np.testing.assert_array_equal(first.boxes, [[20, 30, 60, 80]] * 2)
    assert (first.names, last.names) == (("dog", "cat"), ())
    assert first.image_path is not None
    assert first.image_path.name == "0.jpg"


def test_the_writer_of_a_file_decides_what_its_corners_mean(tmp_path: Path) -> None:
    body = make_object((1, 1, 160, 120))
    folder = write_dataset(
        tmp_path,
        make_annotation(body),
        make_annotation(body, "1.jpg", "PASCAL VOC2007"),
        make_annotation(body, "2.jpg", "synthgen"),
        make_annotation(body, "3.jpg", "Unknown"),
    )
    edges = [1, 1, 160, 120]
    pixels = [0, 0, 160, 120]
    for corners, expected in (
        (None, [edges, pixels, pixels, edges]),
        ("pixels", [pixels] * 4),
        ("edges", [edges] * 4),
    ):
        assert [e.boxes[0].tolist() for e in read(folder, corners=corners)[0]] == expected


def test_equal_corners_are_a_pixel_or_a_box_without_area(tmp_path: Path) -> None:
    body = make_object((20, 30, 20, 30)) + make_object()
    clicked, pixel = read(
        write_dataset(tmp_path, make_annotation(body), make_annotation(body, "1.jpg", "synthgen"))
    )[0]
    with pytest.raises(BadEntryError, match="has no area"):
        apply_policy(clicked)
    assert apply_policy(clicked, Policy(drop_empty=True)).dropped == 1
    assert apply_policy(pixel).entry.boxes[0].tolist() == [19, 29, 20, 30]


@pytest.mark.parametrize("size", ["", "<size/>", "<size><width>0</width><height>0</height></size>"])
def test_a_missing_size_is_read_from_the_image(size: str, tmp_path: Path) -> None:
    ((entry,), problems) = read(write_dataset(tmp_path, make_annotation(make_object(), size=size)))
    assert problems == []
    assert (entry.width, entry.height) == (160, 120)


def test_without_the_named_image_the_name_of_the_file_counts(tmp_path: Path) -> None:
    folder = write_dataset(
        tmp_path,
        make_annotation(make_object(), "old name.jpg"),
        make_annotation(make_object(), "C:\\photographs\\1.JPG"),
        make_annotation(make_object(), ""),
    )
    entries, problems = read(folder)
    assert problems == []
    assert [e.image_path.name if e.image_path else "" for e in entries] == [
        "0.jpg",
        "1.jpg",
        "2.jpg",
    ]
    assert voc.open_dataset(folder).remarks == ()


def test_without_an_image_of_its_own_name_the_filename_counts(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, make_annotation(make_object()))
    (folder / "Annotations/0.xml").rename(folder / "Annotations/other.xml")
    ((entry,), _) = read(folder)
    assert entry.image_path == folder / "JPEGImages/0.jpg"


def test_ambiguous_images_are_bad(tmp_path: Path) -> None:
    folder = write_dataset(
        tmp_path,
        make_annotation(make_object()),
        make_annotation(make_object(), "0.jpg"),
        make_annotation(make_object(), "2.jpg"),
    )
    entries, (doubt, problem) = read(folder)
    image = f"{folder}/JPEGImages/0.jpg"
    assert doubt == f"{folder}/Annotations/0.xml: its image {image} may be that of another file"
    both = f"{folder}/JPEGImages/0.jpg or {folder}/JPEGImages/1.jpg"
    assert (
        problem == f"{folder}/Annotations/1.xml: filename: '0.jpg' may be {both}; keep one of them"
    )
    assert [e.image_path for e in entries] == [folder / "JPEGImages/2.jpg"]
    (folder / "JPEGImages/1.jpg").unlink()
    entries, problems = read(folder)  # now 0.xml and 1.xml have the same image
    assert [p.partition(": ")[2] for p in problems] == [
        f"its image {folder}/JPEGImages/0.jpg is also that of another file"
    ] * 2
    assert [e.image_path for e in entries] == [folder / "JPEGImages/2.jpg"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            '<!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>',
            "holds a DOCTYPE, which is not read",
        ),
        (
            '<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>',
            "holds a DOCTYPE, which is not read",
        ),
        ("<annotation>&xxe;</annotation>", "not XML: undefined entity"),
        ("<annotation>", "not XML: no element found"),
        (
            "<annotations/>",
            "CVAT's own XML is not read; export it as COCO 1.0, YOLO 1.1 or Pascal VOC",
        ),
        ("<html/>", "not Pascal VOC: its root is <html>, not <annotation>"),
        (make_annotation("<object><name>dog</name></object>"), "object[0]: has no <bndbox>"),
        (
            make_annotation(make_object() + make_object((1, 2, "x", 4))),
            "object[1]: xmax: 'x' is not a number",
        ),
        (
            make_annotation(make_object((1, 2, "nan", 4))),
            "object[0]: [1.0, 2.0, nan, 4.0]: all four must be finite",
        ),
        (
            make_annotation(make_object((60, 30, 20, 80))),
            "xmin must be no greater than xmax, and ymin than ymax",
        ),
        (make_annotation(make_object(name=" ")), "object[0]: name: missing"),
        (
            make_annotation(make_object(), size="<size><width>a</width></size>"),
            "size/width: 'a' is not a number",
        ),
        (
            make_annotation(
                make_object(), size="<size><width>1.5</width><height>9</height></size>"
            ),
            "size/width: 1.5 is not a whole number",
        ),
        (make_annotation(make_object(), "none.jpg"), "filename: 'none.jpg': no such image"),
    ],
)
def test_a_file_that_is_not_valid_is_a_problem(text: str, why: str, tmp_path: Path) -> None:
    folder = write_dataset(
        tmp_path, make_annotation(make_object()), make_annotation(make_object(), "1.jpg")
    )
    (folder / "Annotations/0.xml").write_text(text)
    if "none.jpg" in text:
        (folder / "JPEGImages/0.jpg").unlink()
    entries, (problem,) = read(folder)
    assert problem.startswith(f"{folder}/Annotations/0.xml: ")
    assert why in problem
    assert len(entries) == 1


def test_a_doctype_is_found_in_every_encoding(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, "")
    (folder / "Annotations/0.xml").write_bytes(
        '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a><annotation/>'.encode("utf-16")
    )
    assert "holds a DOCTYPE" in read(folder)[1][0]


def test_parts_of_an_object_are_ignored_and_its_flags_kept(tmp_path: Path) -> None:
    bounds = "<xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax>"
    part = f"<part><name>head</name><bndbox>{bounds}</bndbox></part>"
    flags = (
        "<pose>Left</pose><truncated>1</truncated><difficult>1</difficult><occluded>0</occluded>"
    )
    ((entry,), _) = read(
        write_dataset(
            tmp_path, make_annotation(make_object((20.25, 30, 60.5, 80), more=flags + part))
        )
    )
    assert entry.boxes.tolist() == [[20.25, 30, 60.5, 80]]
    assert entry.source == (
        {"file_name": "0.jpg"},
        {"pose": "Left", "truncated": "1", "difficult": "1"},
    )
    assert entry.more == ({"iscrowd": 0},)  # difficult means a crowd only in exports of synthgen


def test_splits_are_lists_or_folders(tmp_path: Path) -> None:
    folder = write_dataset(
        tmp_path / "a", *(make_annotation(make_object(), f"{k}.jpg") for k in range(3))
    )
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "ImageSets/Main/train.txt").write_text("\ufeff2\n0\n")
    (folder / "ImageSets/Main/dog_val.txt").write_text("1  1\n")
    (folder / "ImageSets/Main/bad.txt").write_text("../../etc/x\n")
    (folder / "ImageSets/Main/gone.txt").write_text("7\n")
    for split, expected in ((None, "012"), ("all", "012"), ("train", "20"), ("dog_val", "1")):
        assert (
            "".join(e.image_path.stem for e in read(folder, split=split)[0] if e.image_path)
            == expected
        )
    with pytest.raises(
        UnreadableSourceError, match=r"bad.txt:1: name: '../../etc/x.xml' leads out of"
    ):
        read(folder, split="bad")
    with pytest.raises(
        UnreadableSourceError, match="has no split 'val'; it has bad, dog_val, gone, train"
    ):
        read(folder, split="val")
    assert read(folder, split="gone")[1] == [
        f"{folder}/Annotations/7.xml: cannot be read: No such file or directory"
    ]
    folder = tmp_path / "b"
    for split in ("train", "valid"):
        write_dataset(folder, make_annotation(make_object()), names=split, xml=split)
    assert locate_source(folder) == ("voc", folder)
    assert [len(read(folder, split=s)[0]) for s in ("train", "val", "all")] == [1, 1, 2]
    with pytest.raises(
        UnreadableSourceError, match="has train, val; name one, or all: --split train"
    ):
        read(folder)


def test_images_without_a_file_are_reported(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, make_annotation(make_object()))
    make_image(1).save(folder / "JPEGImages/9.jpg")
    assert voc.open_dataset(folder).remarks == (
        f"{folder}: 1 images without a file of annotations; left out",
    )


def test_import_gives_ids_to_names_that_coco_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = make_object(name="zebu") + make_object(name="dog") + make_object((3, 3, 3, 3), "cell")
    folder = write_dataset(tmp_path / "in", make_annotation(body))
    out = tmp_path / "out"
    assert cli.main(["import", str(folder), str(out)]) == 2
    assert "--drop-empty drops boxes of no area" in capsys.readouterr().err
    assert cli.main(["import", str(folder), str(out), "--drop-empty", "--ids", "zebu=101"]) == 0
    assert "1 boxes without area dropped" in capsys.readouterr().out
    argv = ["import", str(folder), str(out), "--overwrite", "--drop-empty", "--json"]
    assert cli.main(argv) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["format"], data["boxes"], data["categories"]) == (
        "voc",
        2,
        {"zebu": 101, "dog": 18},
    )
    assert cli.main([*argv[:-1], "--split", "val"]) == 2
    assert cli.main([*argv[:-1], "--task", "pose"]) == 2
    assert f"--task: not for voc, the format of {folder}" in capsys.readouterr().err
    (folder / "Annotations/0.xml").write_text(make_annotation(make_object(name="Dog")))
    assert cli.main(argv[:-1]) == 2
    assert "is it --categories 'Dog'='dog'?" in capsys.readouterr().err
    (folder / "Annotations/0.xml").write_text(
        make_annotation(make_object(name="b") + make_object(name="a"))
    )
    assert cli.main(argv[:-1]) == 0
    assert (
        "ids of categories that COCO does not have: a=101, b=102 (to change them: --ids NAME=ID)"
        in capsys.readouterr().out
    )
