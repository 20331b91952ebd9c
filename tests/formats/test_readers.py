"""Readers of all formats give the same entries, and each Problem names its place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from synthgen.formats.coco import reader as coco
from synthgen.formats.entries import (
    BadEntryError,
    Entry,
    Policy,
    UnreadableSourceError,
    apply_policy,
)
from synthgen.formats.jsonl import reader as jsonl
from synthgen.formats.masks import encode_mask
from synthgen.formats.source import Columns, Source, locate_source
from tests.formats.sources import (
    BOXES,
    NAMES,
    SIZES,
    coco_data,
    document_rows,
    read_yolo,
    write_coco,
    write_images,
    write_labelme,
    write_lines,
    write_voc,
    write_yolo,
)


def make_source(folder: Path, form: str) -> Source:
    """Write the three images in a format."""
    write: dict[str, Callable[[Path], Path]] = {
        "coco": write_coco,
        "jsonl": write_lines,
        "yolo": write_yolo,
        "voc": write_voc,
        "labelme": write_labelme,
    }
    write[form](folder)
    located_form, path = locate_source(folder)
    assert located_form == form
    return Source(form, path, split="all" if form == "yolo" else None)


@pytest.mark.parametrize("form", ["coco", "jsonl", "yolo", "voc", "labelme"])
def test_every_format_gives_the_same_entries(tmp_path: Path, form: str) -> None:
    entries = [e for e in make_source(tmp_path, form).entries() if isinstance(e, Entry)]
    assert [(e.width, e.height) for e in entries] == list(SIZES)
    for entry, boxes, names in zip(entries, BOXES, NAMES, strict=True):
        wanted = np.array(boxes, float).reshape(-1, 4)
        wanted[:, 2:] += wanted[:, :2]
        np.testing.assert_allclose(entry.boxes, wanted, atol=1e-5)
        assert entry.names == tuple(names)
        assert entry.image_path is not None
        assert entry.image_path.is_file()


def list_coco_problems(data: dict[str, Any]) -> list[str]:
    """Return the problems of a COCO file as texts."""
    results = coco.read_entries(data, Path("i.json"), Path(), True)
    return [str(result) for result in results if not isinstance(result, Entry)]


@pytest.mark.parametrize(
    ("part", "index", "changes", "message"),
    [
        ("annotations", 2, {"category_id": 99}, "category_id 99 is not among the categories"),
        ("annotations", 0, {"bbox": [True, 2, 3, 4]}, "[True, 2, 3, 4] is not x, y, width, height"),
        ("annotations", 0, {"category_id": True}, "category_id True is not among the categories"),
        ("annotations", 0, {"iscrowd": "no"}, "iscrowd: 'no' is neither 0 nor 1"),
        ("annotations", 0, {"iscrowd": 2}, "iscrowd: 2 is neither 0 nor 1"),
        ("images", 0, {"width": True}, "width: True is not a whole number from 1 to 1e+06"),
        (
            "annotations",
            0,
            {"bbox": [1, 2, float("nan"), 4]},
            "[1, 2, nan, 4]: all four must be finite",
        ),
        ("annotations", 0, {"bbox": [1, 2, 10**400, 4]}, "all four must be finite"),
        ("annotations", 0, {"bbox": [1, 2, 3]}, "[1, 2, 3] is not x, y, width, height"),
        ("images", 0, {"width": -3}, "width: -3 is not a whole number from 1 to 1e+06"),
        (
            "images",
            0,
            {"height": 10**9},
            "height: 1000000000 is not a whole number from 1 to 1e+06",
        ),
        (
            "images",
            0,
            {"file_name": "../../etc/0.jpg"},
            "file_name: '../../etc/0.jpg' leads out of",
        ),
        ("images", 0, {"file_name": "/etc/0.jpg"}, "file_name: '/etc/0.jpg' leads out of"),
    ],
)
def test_a_coco_file_with_a_value_that_is_not_valid_has_one_problem(
    part: str, index: int, changes: dict[str, Any], message: str
) -> None:
    data = coco_data()
    data[part][index].update(changes)
    (problem,) = list_coco_problems(data)
    assert problem.startswith(f"i.json: {part}[{index}]: ")
    assert message in problem


def test_all_problems_are_listed_and_the_rest_is_read() -> None:
    data = coco_data()
    data["annotations"][0]["bbox"][2] = "wide"
    data["annotations"][1]["category_id"] = -1
    results = list(coco.read_entries(data, Path("i.json"), Path(), False))
    types = [type(result).__name__ for result in results]
    assert types == ["Problem", "Problem", "Entry", "Entry"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", ":1: not JSON"),
        ("{}", ": not a COCO file: it needs images, annotations and categories"),
        (
            '{"images": [], "annotations": {}, "categories": []}',
            ": annotations: not a list of mappings",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, '
            '{"id": 1, "name": "b"}]}',
            "duplicate id 1",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1}]}',
            "categories: {'id': 1} needs an id (a number) and a name",
        ),
    ],
)
def test_a_file_that_is_not_coco_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(UnreadableSourceError) as caught:
        list(Source("coco", path).entries())
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_masks_of_a_coco_file_are_run_length_encodings() -> None:
    data = coco_data()
    counts = coco_mask.encode(np.asfortranarray(np.eye(60, 80, dtype=np.uint8)))
    plain = [60 * 80 - 5, 5]
    segmentations: list[Any] = [
        [[10, 5, 30, 5, 30, 25, 10, 25]],
        {"size": [60, 80], "counts": counts["counts"].decode()},
        [],
    ]
    for annotation, segmentation in zip(data["annotations"], segmentations, strict=True):
        annotation["segmentation"] = segmentation
    first, *_ = coco.read_entries(data, Path("i.json"), Path(), True)
    assert isinstance(first, Entry)
    assert first.more is not None
    assert [int(coco_mask.area(m["segmentation"])) for m in first.more] == [400, 60]
    assert coco_mask.area(encode_mask({"size": [60, 80], "counts": plain}, 80, 60)) == 5


def test_crowds_are_read_only_on_request() -> None:
    data = coco_data()
    data["annotations"][1]["iscrowd"] = 1
    for whole, names in ((False, ("dog",)), (True, ("dog", "cat"))):
        first, *_ = coco.read_entries(data, Path("i.json"), Path(), whole)
        assert isinstance(first, Entry)
        assert first.names == names


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    rows = [
        {"photo": r["file_name"], "text": [r["caption"], "x"], "labels": r["custom_annotation"]}
        for r in document_rows()
    ]
    path = write_lines(tmp_path, rows)
    results = list(jsonl.read(path, columns=Columns("text", "photo", "labels")))
    captions = [result.caption for result in results if isinstance(result, Entry)]
    assert captions == ["picture 0, x", "picture 1, x", "picture 2, x"]
    assert len(results) == 3
    for columns, message in (
        (
            Columns("words", "photo", "labels"),
            ":1: words: no such column for a caption; there are: photo, text, labels",
        ),
        (
            Columns("text", "pic", "labels"),
            ":1: pic: no such column for the image; there are: photo, text, labels",
        ),
        (
            Columns("text", "photo", "boxes"),
            ":1: boxes: no such column for annotations; there are: photo, text, labels",
        ),
    ):
        first, *_ = jsonl.read(path, columns=columns)
        assert message in str(first)


def test_a_column_may_be_both_caption_and_annotations(tmp_path: Path) -> None:
    """`datasets` renames the column file_name to image when it loads an image folder."""
    (first, *_) = jsonl.read(
        write_lines(tmp_path), columns=Columns("custom_annotation", "image", "custom_annotation")
    )
    assert isinstance(first, Entry)
    assert first.caption == "label_18_bbox_10.5_5.0_30.25_40.0, label_17_bbox_0_0_20_20"
    assert first.image_path == tmp_path / "0.jpg"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[1]", ":2: '[1]' is not a mapping"),
        ("{nonsense", ":2: not JSON"),
        ('{"file_name": "none.jpg", "custom_annotation": []}', ":2: "),
        ('{"file_name": 3, "custom_annotation": []}', ":2: file_name: 3 is not the name of a file"),
        (
            '{"file_name": "../0.jpg", "custom_annotation": []}',
            ":2: file_name: '../0.jpg' leads out of",
        ),
        (
            '{"file_name": "0.jpg", "custom_annotation": ["label_999_bbox_1_2_3_4"]}',
            "custom_annotation[0]: 'label_999_bbox_1_2_3_4'",
        ),
        (
            '{"file_name": "0.jpg", "custom_annotation": ["label_1_bbox_nan_2_3_4"]}',
            "is not label_ID_bbox_X_Y_W_H",
        ),
        (
            '{"file_name": "0.jpg", "custom_annotation": "label_1"}',
            "custom_annotation: 'label_1' is not a list of strings",
        ),
        (
            '{"file_name": "0.jpg", "caption": 7, "custom_annotation": []}',
            "caption: 7 is not a text",
        ),
        (
            '{"file_name": "0.jpg"}',
            ":2: categories: missing; a name for each box (or a column custom_annotation)",
        ),
        (
            '{"file_name": "0.jpg", "width": "x", "height": 3, "custom_annotation": []}',
            "width: 'x' is not a whole number",
        ),
    ],
)
def test_a_line_that_is_not_valid_is_a_problem(tmp_path: Path, row: str, message: str) -> None:
    write_images(tmp_path)
    path = tmp_path / "m.jsonl"
    good = json.dumps(document_rows()[0])
    path.write_text(f"{good}\n{row}\n{good}\n")
    first, problem, last = jsonl.read(path)
    assert isinstance(first, Entry)
    assert isinstance(last, Entry)
    assert str(problem).startswith(f"{path}:2: ")
    assert message in str(problem)


def test_annotation_strings_may_use_category_ids_of_the_user(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path, [{"file_name": "0.jpg", "custom_annotation": ["label_101_bbox_1_2_3_4"]}]
    )
    (entry,) = jsonl.read(path, ids={"fox": 101})
    assert isinstance(entry, Entry)
    assert entry.names == ("fox",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7 0.5 0.5 0.1 0.1", "0.txt:3: class 7 has no name; there are 0 to 1"),
        ("dog 0.5 0.5 0.1 0.1", "0.txt:3: 'dog 0.5 0.5 0.1 0.1': not a class and numbers"),
        ("0 0.5 0.5 0.1", "0.txt:3: 3 numbers after the class"),
        ("0 nan 0.5 0.1 0.1", "0.txt:3: "),
    ],
)
def test_a_line_of_yolo_labels_that_is_not_valid_is_a_problem(
    tmp_path: Path, line: str, message: str
) -> None:
    labels = write_yolo(tmp_path) / "labels/train/0.txt"
    labels.write_text(labels.read_text() + line + "\n")
    (problem,) = (p for p in read_yolo(tmp_path, "train") if not isinstance(p, Entry))
    assert message in str(problem)


def test_yolo_labels_without_an_image_are_a_problem(tmp_path: Path) -> None:
    (write_yolo(tmp_path) / "labels/train/9.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    problem, doubt = (p for p in read_yolo(tmp_path, "train") if not isinstance(p, Entry))
    assert str(problem).endswith("labels/train/9.txt: there is no image of this name")
    # the labels may belong to the image without labels
    assert doubt.entry == str(tmp_path / "images/train/1.jpg")


def test_yolo_polygons_and_classes_txt_are_read(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/classes.txt").write_text("dog\n")
    (tmp_path / "labels/0.txt").write_text("0 0.25 0.5 0.5 0.5 0.5 1 0.25 1\n")
    first, *_ = read_yolo(tmp_path, whole=True, task="segment")
    assert isinstance(first, Entry)
    np.testing.assert_allclose(first.boxes, [[20, 30, 40, 60]])
    assert first.more is not None
    assert coco_mask.area(first.more[0]["segmentation"]) == 20 * 30


def test_a_split_of_yolo_must_be_named(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    with pytest.raises(UnreadableSourceError, match="has train, val; name one, or all"):
        list(read_yolo(tmp_path))
    with pytest.raises(UnreadableSourceError, match="has no split 'test'; it has train, val"):
        list(read_yolo(tmp_path, "test"))
    assert len(list(read_yolo(tmp_path / "data.yaml", "val"))) == 1


def test_lists_of_yolo_are_read(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "train.txt").write_text("./images/train/0.jpg\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nnames: {0: cat, 1: dog}\n")
    assert [len(e.names) for e in read_yolo(tmp_path) if isinstance(e, Entry)] == [2]
    (tmp_path / "train.txt").write_text("/etc/0.jpg\n")
    with pytest.raises(UnreadableSourceError, match=r"no labels/\*.txt for its images"):
        list(read_yolo(tmp_path))


def test_a_folder_with_more_than_one_source_is_refused(tmp_path: Path) -> None:
    write_coco(tmp_path)
    write_lines(tmp_path)
    with pytest.raises(
        UnreadableSourceError,
        match=r"more than one source: .*instances.json \(coco\), .*metadata.jsonl \(jsonl\)",
    ):
        locate_source(tmp_path)
    assert locate_source(tmp_path, "jsonl") == ("jsonl", tmp_path / "metadata.jsonl")
    with pytest.raises(UnreadableSourceError, match="no yolo here; what is read: YOLO"):
        locate_source(tmp_path, "yolo")


def make_entry(box: list[float]) -> Entry:
    """Return an entry of an image of 100 x 50 px with a dog, and a cat with this box."""
    return Entry("x", 100, 50, np.array([[0, 0, 10, 10], box], float), ("dog", "cat"))


def test_boxes_are_clipped_by_a_pixel_at_most() -> None:
    inside = apply_policy(make_entry([-0.6, 20, 100.4, 50.9]))
    assert (inside.clipped, inside.cut, inside.dropped) == (1, 0, 0)
    np.testing.assert_array_equal(inside.entry.boxes[1], [0, 20, 100, 50])
    assert apply_policy(make_entry([0, 0, 100, 50])).clipped == 0
    for box in ([-1.2, 0, 20, 20], [90, 0, 101.5, 20]):
        with pytest.raises(
            BadEntryError,
            match=r"box 1 \(cat\), x .* y 0 to 20: outside the image of 100 x 50 px",
        ):
            apply_policy(make_entry(box))
    for box in ([100.0, 0, 100.5, 20], [-0.9, 0, 0, 20]):
        with pytest.raises(
            BadEntryError,
            match=r"box 1 \(cat\), x .* y 0 to 20: has no area in the image of 100 x 50 px",
        ):
            apply_policy(make_entry(box))


def test_boxes_without_area_are_dropped_by_the_policy() -> None:
    policy = Policy(drop_empty=True)
    for box in ([5.0, 5, 5, 20], [20.0, 5, 10, 20], [100, 0, 100.5, 20], [300.0, 0, 300, 20]):
        with pytest.raises(BadEntryError, match=r"box 1 \(cat\), .*: has no area"):
            apply_policy(make_entry(box))
        result = apply_policy(make_entry(box), policy)
        assert (result.entry.names, result.dropped, result.clipped, result.cut) == (
            ("dog",),
            1,
            0,
            0,
        )
        np.testing.assert_array_equal(result.entry.boxes, [[0, 0, 10, 10]])
    with pytest.raises(BadEntryError, match="outside the image"):
        apply_policy(
            make_entry([90, 0, 120, 20]), policy
        )  # it has an area, so that it is not dropped


def test_boxes_that_reach_outside_are_clipped_by_the_policy() -> None:
    result = apply_policy(make_entry([-5, 20, 40, 80]), Policy(clip=True))
    assert (result.cut, result.clipped, result.dropped) == (1, 0, 0)
    np.testing.assert_array_equal(result.entry.boxes[1], [0, 20, 40, 50])
    outside = make_entry([120, 0, 140, 20])
    with pytest.raises(BadEntryError, match="has no area in the image of 100 x 50 px"):
        apply_policy(outside, Policy(clip=True))
    assert apply_policy(outside, Policy(clip=True, drop_empty=True)).dropped == 1


def test_values_of_a_dropped_box_are_dropped_too() -> None:
    boxes = np.array([[0, 0, 0, 9], [1, 1, 5, 5], [90, 10, 130, 20]], float)
    lists: dict[str, Any] = {
        "phrases": ("p", "q", "r"),
        "depth": (0.1, 0.2, 0.3),
        "places": ("f:1", "f:2", "f:3"),
    }
    more: tuple[dict[str, Any], ...] = (
        {},
        {"iscrowd": 1, "area": 3.0},
        {"iscrowd": 0, "area": 400.0},
    )
    source = (
        {"id": 1},
        {"id": 10},
        {"id": 20, "iscrowd": 1},
        {"id": 30, "bbox": [90, 10, 40, 10], "area": 400.0},
    )
    whole = Entry("x", 100, 50, boxes, ("a", "b", "c"), more=more, source=source, **lists)
    kept = apply_policy(whole, Policy(True, True, True)).entry
    assert (kept.names, kept.phrases, kept.depth, kept.places) == (
        ("b", "c"),
        ("q", "r"),
        (0.2, 0.3),
        ("f:2", "f:3"),
    )
    assert kept.more == (
        {"iscrowd": 0, "area": 3.0},
        {"iscrowd": 0},
    )  # the area of 400 px² was that of the whole box
    assert kept.source == ({"id": 1}, {"id": 20}, {"id": 30})
    with pytest.raises(BadEntryError) as caught:
        apply_policy(whole)
    assert [p.place for p in caught.value.problems("x")] == ["f:1", "f:3"]


RLE = {"size": [60, 80], "counts": [4799, 1]}
ODD: list[Any] = [
    [],
    {},
    None,
    True,
    1.5,
    "x",
    -1,
    10**400,
    float("nan"),
    [None],
    {"size": 3},
    {**RLE, "counts": {}},
    {**RLE, "counts": "z~\0"},
    {**RLE, "counts": ["a"]},
    {**RLE, "counts": None},
    {**RLE, "counts": "\u1234"},
    [[1, 2, 3, 4, 5, float("nan")]],
    [[1] * 6, []],
]


@pytest.mark.parametrize("part", ["images", "annotations"])
def test_no_value_in_a_coco_file_raises_another_error(part: str) -> None:
    """Every value leads to an entry or a problem."""
    for key in (
        "id",
        "file_name",
        "width",
        "height",
        "caption",
        "image_id",
        "category_id",
        "bbox",
        "segmentation",
        "area",
        "iscrowd",
    ):
        for value in ODD:
            data = coco_data()
            data[part][0][key] = value
            assert list(coco.read_entries(data, Path("i.json"), Path(), True))


@pytest.mark.parametrize("left_out", ["custom_annotation", "boxes", "width"])
def test_no_value_in_a_line_raises_another_error(tmp_path: Path, left_out: str) -> None:
    row = {
        **{
            "file_name": "0.jpg",
            "width": 80,
            "height": 60,
            "caption": "x",
            "custom_annotation": ["label_1_bbox_1_2_3_4"],
        },
        **{
            "categories": ["dog"],
            "boxes": [[1, 2, 3, 4]],
            "masks": [RLE],
            "phrases": ["a dog"],
            "depth": [1.0],
        },
    }
    del row[left_out]
    rows: list[dict[str, Any]] = []
    for key in row:
        for odd in ODD:
            rows.append({**row, key: odd})
            rows.append({**row, key: [odd]})
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = list(jsonl.read(path, whole=True))
    assert len({result.place for result in results}) == len(rows)
    assert any(isinstance(result, Entry) for result in results) == (left_out != "width")
