"""JSON lines and tables of other programs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthgen.formats.entries import Entry, Problem, apply_policy
from synthgen.formats.images import read_image
from synthgen.formats.jsonl import reader as jsonl
from synthgen.formats.source import Source
from tests.formats.sources import BOXES, NAMES, SIZES, document_rows, write_images, write_lines

OBJECTS: list[dict[str, Any]] = [
    {"file_name": f"{k}.jpg", "objects": {"bbox": BOXES[k], "categories": NAMES[k]}}
    for k in range(3)
]


def transpose_objects(row: dict[str, Any]) -> dict[str, Any]:
    pairs = zip(row["objects"]["bbox"], row["objects"]["categories"], strict=True)
    return {**row, "objects": [{"bbox": box, "category": name} for box, name in pairs]}


@pytest.mark.parametrize("rows", [OBJECTS, [transpose_objects(row) for row in OBJECTS]])
def test_the_column_objects_of_hugging_face_is_read(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_lines(tmp_path, rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    for path in (tmp_path / "metadata.jsonl", tmp_path / "m.parquet"):
        entries = [e for e in Source("jsonl", path).entries(whole=True) if isinstance(e, Entry)]
        assert [e.names for e in entries] == list(map(tuple, NAMES))
        assert [(e.width, e.height) for e in entries] == list(SIZES)
        np.testing.assert_allclose(
            entries[0].boxes, np.array([[10.5, 5, 40.75, 45], [0, 0, 20, 20]])
        )


def test_images_embedded_in_a_table_are_read(tmp_path: Path) -> None:
    write_images(tmp_path)
    rows = [
        {
            "image": {"bytes": (tmp_path / f"{k}.jpg").read_bytes(), "path": None},
            "objects": row["objects"],
        }
        for k, row in enumerate(OBJECTS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    entries = [e for e in Source("jsonl", tmp_path / "m.parquet").entries() if isinstance(e, Entry)]
    assert [(e.width, e.height) for e in entries] == list(SIZES)
    assert [read_image(e) for e in entries] == [row["image"]["bytes"] for row in rows]


def test_numbers_of_classes_become_names(tmp_path: Path) -> None:
    """A table of `datasets` has their names; in JSON lines the number is the name."""
    row = {"file_name": "0.jpg", "objects": {"bbox": BOXES[0], "categories": [1, 0]}}
    (entry,) = jsonl.read(write_lines(tmp_path, [row]))
    assert isinstance(entry, Entry)
    assert entry.names == ("1", "0")
    classes = {"feature": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "_type": "Sequence"}
    features = {"info": {"features": {"objects": {"categories": classes}}}}
    for number, wanted in (
        (0, ("dog", "cat")),
        (2, "2 is not the number of a class; there are 0 to 1"),
    ):
        row["objects"]["categories"][1] = number  # type: ignore[index]
        table = pa.Table.from_pylist([row]).replace_schema_metadata(
            {"huggingface": json.dumps(features)}
        )
        pq.write_table(table, tmp_path / "m.parquet")
        (result,) = jsonl.read(tmp_path / "m.parquet")
        if isinstance(result, Entry):
            assert result.names == wanted
        else:
            assert str(wanted) in result.why


def test_crowds_of_the_column_objects_are_read(tmp_path: Path) -> None:
    row = {
        "file_name": "0.jpg",
        "objects": {"bbox": BOXES[0], "categories": NAMES[0], "iscrowd": [0, "1"]},
    }
    path = write_lines(tmp_path, [row])
    (plain,) = jsonl.read(path)
    (whole,) = jsonl.read(path, whole=True)
    assert isinstance(plain, Entry)
    assert isinstance(whole, Entry)
    assert (plain.names, whole.names, whole.more) == (
        ("dog",),
        ("dog", "cat"),
        ({}, {"iscrowd": 1}),
    )
    assert plain.boxes.shape == (1, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": [None, "dog"]}, "categories[0]: None is not a name"),
        ({"categories": [True, "dog"]}, "categories[0]: True is not a name"),
        (
            {"boxes": [[True, 0, 5, 5], [0, 0, 5, 5]]},
            "boxes[0]: [True, 0, 5, 5] is not x0, y0, x1, y1",
        ),
        ({"depth": [float("nan"), 1]}, "depth: [nan, 1]: each box needs a finite number"),
        ({"depth": [True, 1]}, "depth: [True, 1]: each box needs a finite number"),
        ({"iscrowd": [0]}, "iscrowd: 1 given for 2 boxes"),
        ({"iscrowd": [0, "maybe"]}, "iscrowd[1]: iscrowd: 'maybe' is neither 0 nor 1"),
        ({"objects": [{"bbox": 1}, {"categories": 2}], "boxes": None}, "objects: "),
    ],
)
def test_a_label_that_is_not_valid_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    row = {
        "file_name": "0.jpg",
        "categories": ["cat", "dog"],
        "boxes": [[0, 0, 5, 5], [1, 1, 9, 9]],
        **changes,
    }
    (problem,) = jsonl.read(
        write_lines(tmp_path, [{k: v for k, v in row.items() if v is not None}])
    )
    assert isinstance(problem, Problem)
    assert message in problem.why


def test_a_mask_that_is_not_valid_is_dropped_without_its_box(tmp_path: Path) -> None:
    masks = [{"size": [60, 80], "counts": [1, 2]}, {"size": [60, 80], "counts": [4790, 10]}]
    row = {
        "file_name": "0.jpg",
        "categories": ["cat", "dog"],
        "boxes": [[0, 0, 5, 5], [1, 1, 9, 9]],
        "masks": masks,
    }
    path = write_lines(tmp_path, [row])
    (entry,) = jsonl.read(path, whole=True)
    assert isinstance(entry, Entry)
    assert [sorted(more) for more in entry.more or ()] == [[], ["segmentation"]]
    assert [str(p) for p in entry.lost_masks] == [
        f"{path}:1: masks[0]: segmentation: not a run-length encoding: counts do not add up"
    ]
    assert apply_policy(entry).entry.names == ("cat", "dog")


def test_rows_of_the_same_image_with_different_labels_are_refused(tmp_path: Path) -> None:
    """Tables often have one row for each box, so that no row has all boxes of the image."""
    first, second, third = document_rows()
    rows = [{**first, "custom_annotation": [label]} for label in first["custom_annotation"]]
    rows += [second, third]
    path = write_lines(tmp_path, rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    for file in (path, tmp_path / "m.parquet"):
        results = list(Source("jsonl", file).entries())
        assert [isinstance(result, Entry) for result in results] == [False, False, True, True]
        assert "'0.jpg' is in 2 rows with different labels" in str(results[0])
    path = write_lines(tmp_path, [first, {**first, "caption": "another"}, second, third])
    assert all(isinstance(result, Entry) for result in Source("jsonl", path).entries())
    assert len(list(jsonl.read(path))) == 4  # layouts may share an image


def test_a_byte_order_mark_and_line_ends_of_windows_are_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert [f.place for f in jsonl.read(path) if isinstance(f, Entry)] == [
        f"{path}:{n}" for n in (1, 2, 3)
    ]


def test_a_file_name_with_backslashes_is_read(tmp_path: Path) -> None:
    write_images(tmp_path / "deep")
    path = tmp_path / "metadata.jsonl"
    path.write_text(json.dumps({**OBJECTS[0], "file_name": "deep\\0.jpg"}) + "\n")
    (entry,) = jsonl.read(path)
    assert isinstance(entry, Entry)
    assert entry.image_path == tmp_path / "deep/0.jpg"
