"""JSON lines and tables as other programs write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthgen.formats.entries import Entry, Problem, cleaned
from synthgen.formats.images import image_bytes
from synthgen.formats.jsonl import reader as jsonl
from synthgen.formats.source import Source
from tests.formats.sources import BOXES, NAMES, SIZES, document_rows, write_lines, write_pictures

OBJECTS: list[dict[str, Any]] = [
    {"file_name": f"{k}.jpg", "objects": {"bbox": BOXES[k], "categories": NAMES[k]}}
    for k in range(3)
]


def as_lists(row: dict[str, Any]) -> dict[str, Any]:
    pairs = zip(row["objects"]["bbox"], row["objects"]["categories"], strict=True)
    return {**row, "objects": [{"bbox": box, "category": name} for box, name in pairs]}


@pytest.mark.parametrize("rows", [OBJECTS, [as_lists(row) for row in OBJECTS]])
def test_objects_of_hugging_face(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    write_lines(tmp_path, rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    for path in (tmp_path / "metadata.jsonl", tmp_path / "m.parquet"):
        entries = [e for e in Source("jsonl", path).entries(whole=True) if isinstance(e, Entry)]
        assert [e.names for e in entries] == list(map(tuple, NAMES))
        assert [(e.width, e.height) for e in entries] == list(SIZES)
        np.testing.assert_allclose(
            entries[0].boxes, np.array([[10.5, 5, 40.75, 45], [0, 0, 20, 20]])
        )


def test_pictures_that_a_table_holds(tmp_path: Path) -> None:
    write_pictures(tmp_path)
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
    assert [image_bytes(e) for e in entries] == [row["image"]["bytes"] for row in rows]


def test_numbers_of_classes(tmp_path: Path) -> None:
    """A table of `datasets` names them; of JSON lines the number is the name, for `--categories` to rename."""
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
        (found,) = jsonl.read(tmp_path / "m.parquet")
        assert wanted in (found.names,) if isinstance(found, Entry) else str(wanted) in found.why


def test_crowds_of_objects(tmp_path: Path) -> None:
    row = {
        "file_name": "0.jpg",
        "objects": {"bbox": BOXES[0], "categories": NAMES[0], "iscrowd": [0, "1"]},
    }
    path = write_lines(tmp_path, [row])
    (plain,), (whole,) = jsonl.read(path), jsonl.read(path, whole=True)
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
        ({"depth": [float("nan"), 1]}, "depth: [nan, 1]: not of the kind"),
        ({"depth": [True, 1]}, "depth: [True, 1]: not of the kind"),
        ({"iscrowd": [0]}, "iscrowd: 1 given for 2 boxes"),
        ({"iscrowd": [0, "maybe"]}, "iscrowd[1]: iscrowd: 'maybe' is neither 0 nor 1"),
        ({"objects": [{"bbox": 1}, {"categories": 2}], "boxes": None}, "objects: "),
    ],
)
def test_what_is_no_label(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
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


def test_a_mask_that_is_none_costs_itself_alone(tmp_path: Path) -> None:
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
    assert cleaned(entry).entry.names == ("cat", "dog")


def test_rows_that_tear_the_labels_of_a_picture_apart(tmp_path: Path) -> None:
    """A row a box, as tables often are: each row alone says that the other boxes are not there."""
    first, second, third = document_rows()
    rows = [{**first, "custom_annotation": [label]} for label in first["custom_annotation"]] + [
        second,
        third,
    ]
    path = write_lines(tmp_path, rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    for file in (path, tmp_path / "m.parquet"):
        every = list(Source("jsonl", file).entries())
        assert [isinstance(found, Entry) for found in every] == [False, False, True, True]
        assert "'0.jpg' stands in 2 rows with different labels" in str(every[0])
    path = write_lines(tmp_path, [first, {**first, "caption": "another"}, second, third])
    assert all(isinstance(found, Entry) for found in Source("jsonl", path).entries())
    assert len(list(jsonl.read(path))) == 4  # layouts may share a picture


def test_a_byte_order_mark_and_lines_of_windows(tmp_path: Path) -> None:
    path = write_lines(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert [f.place for f in jsonl.read(path) if isinstance(f, Entry)] == [
        f"{path}:{n}" for n in (1, 2, 3)
    ]


def test_names_with_backslashes(tmp_path: Path) -> None:
    write_pictures(tmp_path / "deep")
    path = tmp_path / "metadata.jsonl"
    path.write_text(json.dumps({**OBJECTS[0], "file_name": "deep\\0.jpg"}) + "\n")
    (entry,) = jsonl.read(path)
    assert isinstance(entry, Entry)
    assert entry.picture == tmp_path / "deep/0.jpg"
