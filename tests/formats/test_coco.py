"""COCO files of other programs: unambiguous ones are read, ambiguous images are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from synthgen.formats.coco import reader as coco
from synthgen.formats.entries import Entry, Problem, UnreadableSourceError
from synthgen.formats.masks import encode_mask
from synthgen.formats.source import Source
from tests.formats.sources import coco_data, make_image, write_coco

ALL = slice(None)


def read(
    data: dict[str, Any], images: Path = Path(), whole: bool = True
) -> tuple[list[Entry], list[Problem]]:
    """Return the entries and the problems of a file."""
    entries: list[Entry] = []
    problems: list[Problem] = []
    for result in coco.read_entries(data, Path("i.json"), images, whole):
        if isinstance(result, Entry):
            entries.append(result)
        else:
            problems.append(result)
    return entries, problems


def change(part: str, which: slice = ALL, **changes: Any) -> dict[str, Any]:
    """Return `coco_data` with other values; a callable makes the new value of the old one."""
    data = coco_data()
    for item in data[part][which]:
        for key, value in changes.items():
            item[key] = value(item[key]) if callable(value) else value
    return data


@pytest.mark.parametrize(
    "data",
    [
        change("images", id=str),
        change("images", id=float),
        change("images", id=lambda i: f"{i:012d}"),
        change("annotations", image_id=str),
        change("annotations", image_id=float),
        change("annotations", category_id=str),
        change("annotations", category_id=float),
        change("categories", id=str),
        change("images", width=str, height=lambda h: f"{h}.0"),
        change("annotations", iscrowd=str),
    ],
)
def test_numbers_written_as_texts_or_decimals_are_read(
    data: dict[str, Any], tmp_path: Path
) -> None:
    path = write_coco(tmp_path, data)
    for whole in (False, True):
        entries = [e for e in Source("coco", path).entries(whole) if isinstance(e, Entry)]
        assert [(e.names, e.width) for e in entries] == [
            (("dog", "cat"), 80),
            ((), 64),
            (("dog",), 50),
        ]
        json.dumps([e.source for e in entries], allow_nan=False)
        if whole:
            assert [m["iscrowd"] for e in entries for m in e.more or ()] == [0, 0, 0]
            category_ids: list[Any] = []
            for entry in entries:
                category_ids += [record["category_id"] for record in (entry.source or ())[1:]]
            assert category_ids == [18, 17, 18]
            assert not any(isinstance(category_id, float) for category_id in category_ids)


def test_an_ambiguous_image_id_makes_both_images_bad() -> None:
    data = coco_data()
    for image, own in zip(data["images"], (7, "7", "8"), strict=True):
        image["id"] = own
    for annotation, own in zip(data["annotations"], (7, "7", "007"), strict=True):
        annotation["image_id"] = own
    entries, problems = read(data)
    assert [e.place for e in entries] == ["i.json: images[2]"]
    assert (
        str(problems[0])
        == "i.json: annotations[2]: image_id '007' may be any of the images [7, '7']"
    )
    assert {p.entry for p in problems} == {None, "i.json: images[0]", "i.json: images[1]"}


def test_labels_of_an_unknown_image_make_images_without_labels_bad() -> None:
    entries, problems = read(change("annotations", slice(1, 2), image_id=99))
    assert [e.place for e in entries] == ["i.json: images[0]", "i.json: images[2]"]
    assert [(p.place, p.entry) for p in problems] == [
        ("i.json: annotations[1]", None),
        ("i.json: images[1]", "i.json: images[1]"),
    ]
    assert "image_id 99 is not among the images" in problems[0].why
    assert "has no labels; 1 label(s) of its source belong to no known image" in problems[1].why
    entries, problems = read(change("annotations", image_id=99))
    assert (len(entries), len(problems)) == (0, 6)


@pytest.mark.parametrize("value", [None, [1], True, "", float("nan"), "0.jpg"])
def test_a_label_without_an_image_makes_all_images_bad(value: Any) -> None:
    entries, problems = read(change("annotations", slice(1, 2), image_id=value))
    assert entries == []
    assert [p.place for p in problems] == ["i.json: annotations[1]", "i.json"]
    assert "may belong to any image" in problems[1].why


def test_images_with_the_same_id_are_bad() -> None:
    entries, problems = read(change("images", slice(1, 2), id=7))
    assert [e.place for e in entries] == ["i.json: images[2]"]
    assert [p.entry for p in problems] == ["i.json: images[0]", "i.json: images[1]"]
    assert all("id: 7 is a duplicate" in p.why for p in problems)


def test_images_with_the_same_file_and_different_labels_are_bad() -> None:
    data = change("images", slice(2, 3), file_name="0.jpg")
    entries, problems = read(data)
    assert [e.place for e in entries] == ["i.json: images[1]"]
    assert [str(p) for p in problems] == [
        "i.json: images[0]: file_name: '0.jpg' is also that of images[2], with other annotations",
        "i.json: images[2]: file_name: '0.jpg' is also that of images[0], with other annotations",
    ]
    data["annotations"][2:] = [{**a, "image_id": 9} for a in data["annotations"][:2]]
    assert (len(read(data)[0]), read(data)[1]) == (3, [])


@pytest.mark.parametrize("bbox", [[10, 5, -4, 8], [10, 5, 4, -8]])
def test_a_box_with_negative_sides_is_bad_and_not_empty(bbox: list[float]) -> None:
    _, (problem,) = read(change("annotations", slice(0, 1), bbox=bbox))
    assert "width and height must not be negative" in str(problem)


BAD_MASKS: list[Any] = [
    [[]],
    [[10.5, 5, 40.75, 45]],
    [[1, 2]],
    [10, 5, 40, 5, 40, 45, 10, 45],
    [[10, 5, 40, 5, 40, 45], [3, 3]],
    [[[10, 5], [40, 5], [40, 45]]],
    [[1e12, 2, 3, 4, 5, 6]],
    [[True, 2, 3, 4, 5, 6]],
    [[5, 5, 5, 5, 5, 5]],
    {"size": [60, 80], "counts": [4800]},
    {"size": [80, 60], "counts": [4799, 1]},
    {"size": [60, 80], "counts": [1, 2]},
    {"size": [60, 80], "counts": [9999]},
    {"size": [60, 80], "counts": "z~"},
    {"size": [60, 80], "counts": "0"},
    {"size": [60, 80], "counts": "P"},
    {"size": [60, 80], "counts": 7},
    "mask",
    True,
]


@pytest.mark.parametrize("mask", BAD_MASKS)
def test_a_mask_that_is_not_valid_is_dropped_without_its_box(mask: Any) -> None:
    data = change("annotations", slice(0, 1), segmentation=mask)
    data["annotations"][1]["segmentation"] = [[0, 0, 20, 0, 20, 20]]
    (first, *_), problems = read(data)
    assert problems == []
    assert first.names == ("dog", "cat")
    np.testing.assert_allclose(first.boxes[0], [10.5, 5, 40.75, 45])
    assert first.more is not None
    assert ["segmentation" in more for more in first.more] == [False, True]
    assert [p.place for p in first.lost_masks] == ["i.json: annotations[0]"]
    assert first.lost_masks[0].why.startswith("segmentation: ")
    assert first.source is not None
    assert "segmentation" not in first.source[1]  # an export must not write it


@pytest.mark.parametrize("seed", range(4))
def test_compressed_counts_of_pycocotools_are_read(seed: int) -> None:
    pixels = np.random.default_rng(seed).random((60, 80)) < (0.5, 0.01, 0.99, 1)[seed]
    mask = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    given = {"size": [60, 80], "counts": mask["counts"].decode()}
    assert encode_mask(given, 80, 60) == given
    # a dataset's table has bytes
    assert encode_mask({**given, "counts": mask["counts"]}, 80, 60) == given


def test_counts_written_as_decimals_or_texts_are_read() -> None:
    mask = {"size": [60, 80], "counts": [4700.0, "60", 40]}
    (first, *_), _ = read(change("annotations", slice(0, 1), segmentation=mask))
    assert first.more is not None
    assert (
        encode_mask({"size": [60, 80], "counts": [4700, 60, 40]}, 80, 60)
        == first.more[0]["segmentation"]
    )


@pytest.mark.parametrize("area", [float("nan"), float("inf"), "12", True, None])
def test_an_area_that_is_not_valid_is_left_out(area: Any) -> None:
    data = change(
        "annotations",
        slice(0, 1),
        area=area,
        note={"score": float("nan"), "list": [1.5, float("-inf")]},
    )
    (first, *_), problems = read(data)
    assert problems == []
    assert first.more is not None
    assert "area" not in first.more[0]
    assert first.source is not None
    assert "area" not in first.source[1]
    assert first.source[1]["note"] == {"list": [1.5, None]}
    data["info"] = {"mean": float("nan")}
    assert coco.make_head(data)["head"]["info"] == {}


def test_names_with_backslashes_and_absolute_names_must_lie_in_the_folder(tmp_path: Path) -> None:
    data = coco_data()
    path = write_coco(tmp_path / "source", data)
    images = path.parent.parent / "images"
    (images / "deep").mkdir()
    (images / "0.jpg").rename(images / "deep/0.jpg")
    data["images"][0]["file_name"] = "deep\\0.jpg"
    data["images"][1]["file_name"] = str(images / "1.jpg")
    path.write_text(json.dumps(data))
    for source in (Source("coco", path), Source("coco", path, images)):
        entries = [e for e in source.entries(whole=True) if isinstance(e, Entry)]
        assert [e.image_path for e in entries] == [
            images / "deep/0.jpg",
            images / "1.jpg",
            images / "2.jpg",
        ]
        assert [(e.source or [{}])[0]["file_name"] for e in entries] == [
            "deep/0.jpg",
            "1.jpg",
            "2.jpg",
        ]
    make_image(1).save(tmp_path / "1.jpg")
    for name in (
        str(tmp_path / "1.jpg"),
        "..\\..\\1.jpg",
        "C:\\1.jpg",
        str(images / "../../1.jpg"),
    ):
        data["images"][1]["file_name"] = name
        entries, problems = read(data, images)
        if problems:
            assert "leads out of" in problems[0].why
        else:  # the name of a missing file
            assert entries[1].image_path == images / name
            assert not (images / name).is_file()


def test_a_missing_size_is_read_from_the_image(tmp_path: Path) -> None:
    data = coco_data()
    for image in data["images"]:
        del image["width"], image["height"]
    data["images"][2] |= {"width": None, "height": None}
    path = write_coco(tmp_path, data)
    entries = [e for e in Source("coco", path).entries() if isinstance(e, Entry)]
    assert [(e.width, e.height) for e in entries] == [(80, 60), (64, 48), (50, 70)]
    data["images"][0]["width"] = 80
    data["images"][1] |= {"width": 0, "height": 0}
    assert read(data, tmp_path / "images")[1] == []
    data["images"][1] |= {"width": 0.5, "height": 48}
    assert [p.why for p in read(data, tmp_path / "images")[1]] == [
        "width: 0.5 is not a whole number from 1 to 1e+06"
    ]


def test_a_byte_order_mark_is_read_and_another_encoding_refused(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(coco_data(), indent=1).replace("\n", "\r\n").encode()
    )
    assert len(list(Source("coco", path).entries())) == 3
    path.write_bytes(json.dumps(coco_data()).encode("utf-16"))
    with pytest.raises(UnreadableSourceError, match=r"instances.json: is not UTF-8 text"):
        Source("coco", path).entries()
