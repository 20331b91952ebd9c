"""A label stays the same when it is converted to JSON or to the columns of a table and back."""

import json

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from synthgen.annotations import COCO_KEYS, SAMPLE_KEYS, Annotation, Category, build_default_phrase
from synthgen.dataset import sample as samples
from synthgen.dataset.sample import Sample, parse_sample, read_annotations

WHOLE = Annotation(
    bbox=(1.5, 2.0, 3.0, 4.0),
    category_id=18,
    category="dog",
    phrase="a wet dog",
    area=12.0,
    iscrowd=0,
    score=0.9,
    iou=0.8,
    action="",
    segmentation={"size": [24, 32], "counts": "]81g0"},
)
PLAIN = Annotation(
    bbox=(1.5, 2.0, 3.0, 4.0),
    category_id=18,
    category="dog",
    phrase="a dog",
    area=12.0,
)
numbers = st.floats(0, 1000)
shares = st.none() | st.floats(0, 1)
counts = st.text("01PQ", max_size=6)
labels = st.builds(
    Annotation,
    bbox=st.tuples(numbers, numbers, numbers, numbers),
    category_id=st.integers(1, 1000),
    category=st.text(max_size=6),
    phrase=st.none() | st.text(max_size=6),
    area=numbers,
    iscrowd=st.integers(0, 1),
    score=shares,
    iou=shares,
    action=st.none() | st.sampled_from(["", "repaired", "tightened", "flagged"]),
    segmentation=st.none() | st.fixed_dictionaries({"size": st.just([24, 32]), "counts": counts}),
)


def sample(*annotations: Annotation) -> Sample:
    return Sample(0, 32, 24, "dogs", 7, 0, annotations, b"image", "png")


def test_the_bytes_of_a_sample() -> None:
    text = (
        b'"annotations": [{"bbox": [1.5, 2.0, 3.0, 4.0], "category_id": 18, "category": "dog", '
        b'"phrase": "a wet dog", "score": 0.9, "iou": 0.8, "action": "", "area": 12.0, '
        b'"iscrowd": 0, "segmentation": {"size": [24, 32], "counts": "]81g0"}}, '
        b'{"bbox": [1.5, 2.0, 3.0, 4.0], "category_id": 18, "category": "dog", '
        b'"phrase": "a dog", "area": 12.0, "iscrowd": 0}]}'
    )
    assert sample(WHOLE, PLAIN).json().endswith(text)


def test_the_bytes_of_a_coco_file() -> None:
    assert json.dumps(WHOLE.to_coco()) == (
        '{"bbox": [1.5, 2.0, 3.0, 4.0], "category_id": 18, "category": "dog", '
        '"phrase": "a wet dog", "area": 12.0, "iscrowd": 0, "score": 0.9, "iou": 0.8, '
        '"action": "", "segmentation": {"size": [24, 32], "counts": "]81g0"}}'
    )
    category = json.dumps(Category(18, "dog").to_coco())
    assert category == '{"id": 18, "name": "dog", "supercategory": "dog"}'


def test_both_orders_and_the_table_have_every_key() -> None:
    assert tuple(samples.ANNOTATION_COLUMNS) == COCO_KEYS
    assert sorted(SAMPLE_KEYS) == sorted(COCO_KEYS)


@given(labels)
def test_a_record_converts_back_to_the_same_label(label: Annotation) -> None:
    assert Annotation.from_coco(label.to_coco()) == label
    assert Annotation.from_coco(json.loads(json.dumps(label.to_record()))) == label
    assert label.to_record() == label.to_coco()
    assert None not in label.to_coco().values()


@given(st.lists(labels, max_size=4))
def test_a_table_converts_back_to_the_same_labels(annotations: list[Annotation]) -> None:
    table: pa.Table = samples.table_of([sample(*annotations)], "000000")
    (row,) = table.to_pylist()
    assert read_annotations(row) == annotations
    encoded = sample(*annotations)
    assert parse_sample(encoded.json(), b"image", "png") == encoded


def test_the_default_phrase() -> None:
    assert build_default_phrase("traffic {cone}") == "a traffic {cone}"
