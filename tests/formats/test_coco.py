"""COCO files as other programs write them: read where they can mean one thing only, else no image is called good."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from synthgen.formats.coco import reader as coco
from synthgen.formats.entries import Entry, Problem, UnreadableSourceError
from synthgen.formats.masks import run_length
from synthgen.formats.source import Source
from tests.formats.sources import coco_data, picture, write_coco

ALL = slice(None)


def found(
    data: dict[str, Any], images: Path = Path(), whole: bool = True
) -> tuple[list[Entry], list[Problem]]:
    """The entries and the problems of a file."""
    every = list(coco.entries(data, Path("i.json"), images, whole))
    return [e for e in every if isinstance(e, Entry)], [p for p in every if isinstance(p, Problem)]


def changed(part: str, which: slice = ALL, **changes: Any) -> dict[str, Any]:
    """`coco_data` with these keys changed; a callable makes the new value of the old."""
    data = coco_data()
    for item in data[part][which]:
        item.update({k: v(item[k]) if callable(v) else v for k, v in changes.items()})
    return data


@pytest.mark.parametrize(
    "data",
    [
        changed("images", id=str),
        changed("images", id=float),
        changed("images", id=lambda i: f"{i:012d}"),
        changed("annotations", image_id=str),
        changed("annotations", image_id=float),
        changed("annotations", category_id=str),
        changed("annotations", category_id=float),
        changed("categories", id=str),
        changed("images", width=str, height=lambda h: f"{h}.0"),
        changed("annotations", iscrowd=str),
    ],
)
def test_numbers_that_are_written_as_texts_or_decimals(
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
            kept = [a for e in entries for a in (e.source or ())[1:]]
            assert [a["category_id"] for a in kept] == [18, 17, 18]
            assert not any(isinstance(a["category_id"], float) for a in kept)


def test_ids_that_may_be_those_of_two_images() -> None:
    data = coco_data()
    for image, own in zip(data["images"], (7, "7", "8"), strict=True):
        image["id"] = own
    for annotation, own in zip(data["annotations"], (7, "7", "007"), strict=True):
        annotation["image_id"] = own
    entries, problems = found(data)
    assert [e.place for e in entries] == [
        "i.json: images[2]"
    ]  # it has another id than the label may mean
    assert (
        str(problems[0])
        == "i.json: annotations[2]: image_id '007' may be any of the images [7, '7']"
    )
    assert {p.entry for p in problems} == {None, "i.json: images[0]", "i.json: images[1]"}


def test_labels_of_no_known_image_make_no_image_one_without_labels() -> None:
    entries, problems = found(changed("annotations", slice(1, 2), image_id=99))
    assert [e.place for e in entries] == ["i.json: images[0]", "i.json: images[2]"]
    assert [(p.place, p.entry) for p in problems] == [
        ("i.json: annotations[1]", None),
        ("i.json: images[1]", "i.json: images[1]"),
    ]
    assert "image_id 99 is not among the images" in problems[0].why
    assert "has no labels; 1 label(s) of its source belong to no known image" in problems[1].why
    entries, problems = found(changed("annotations", image_id=99))
    assert (len(entries), len(problems)) == (0, 6)


@pytest.mark.parametrize("value", [None, [1], True, "", float("nan"), "0.jpg"])
def test_a_label_that_says_no_image_may_be_that_of_any(value: Any) -> None:
    entries, problems = found(changed("annotations", slice(1, 2), image_id=value))
    assert entries == []
    assert [p.place for p in problems] == ["i.json: annotations[1]", "i.json"]
    assert "may be any image's" in problems[1].why


def test_two_images_of_one_id_are_both_left_out() -> None:
    entries, problems = found(changed("images", slice(1, 2), id=7))
    assert [e.place for e in entries] == ["i.json: images[2]"]
    assert [p.entry for p in problems] == ["i.json: images[0]", "i.json: images[1]"]
    assert all("id: 7 stands twice" in p.why for p in problems)


def test_two_images_of_one_file_are_left_out_where_their_labels_differ() -> None:
    data = changed("images", slice(2, 3), file_name="0.jpg")
    entries, problems = found(data)
    assert [e.place for e in entries] == ["i.json: images[1]"]
    assert [str(p) for p in problems] == [
        "i.json: images[0]: file_name: '0.jpg' is that of images[2] too, with other annotations",
        "i.json: images[2]: file_name: '0.jpg' is that of images[0] too, with other annotations",
    ]
    data["annotations"][2:] = [{**a, "image_id": 9} for a in data["annotations"][:2]]
    assert (len(found(data)[0]), found(data)[1]) == (3, [])


@pytest.mark.parametrize("bbox", [[10, 5, -4, 8], [10, 5, 4, -8]])
def test_a_box_with_swapped_corners_is_not_one_of_no_area(bbox: list[float]) -> None:
    _, (problem,) = found(changed("annotations", slice(0, 1), bbox=bbox))
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
def test_a_mask_that_is_none_costs_itself_alone(mask: Any) -> None:
    data = changed("annotations", slice(0, 1), segmentation=mask)
    data["annotations"][1]["segmentation"] = [[0, 0, 20, 0, 20, 20]]
    (first, *_), problems = found(data)
    assert problems == []
    assert first.names == ("dog", "cat")
    np.testing.assert_allclose(first.boxes[0], [10.5, 5, 40.75, 45])
    assert first.more is not None
    assert ["segmentation" in more for more in first.more] == [False, True]
    assert [p.place for p in first.lost_masks] == ["i.json: annotations[0]"]
    assert first.lost_masks[0].why.startswith("segmentation: ")
    assert first.source is not None
    assert "segmentation" not in first.source[1]  # an export must not write it again


@pytest.mark.parametrize("seed", range(4))
def test_compressed_counts_are_read_as_pycocotools_writes_them(seed: int) -> None:
    pixels = np.random.default_rng(seed).random((60, 80)) < (0.5, 0.01, 0.99, 1)[seed]
    mask = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    given = {"size": [60, 80], "counts": mask["counts"].decode()}
    assert run_length(given, 80, 60) == given
    assert (
        run_length({**given, "counts": mask["counts"]}, 80, 60) == given
    )  # as a table of ours holds it


def test_counts_that_are_decimals_or_texts() -> None:
    mask = {"size": [60, 80], "counts": [4700.0, "60", 40]}
    (first, *_), _ = found(changed("annotations", slice(0, 1), segmentation=mask))
    assert first.more is not None
    assert (
        run_length({"size": [60, 80], "counts": [4700, 60, 40]}, 80, 60)
        == first.more[0]["segmentation"]
    )


@pytest.mark.parametrize("area", [float("nan"), float("inf"), "12", True, None])
def test_an_area_that_is_none_is_left_out(area: Any) -> None:
    data = changed(
        "annotations",
        slice(0, 1),
        area=area,
        note={"score": float("nan"), "list": [1.5, float("-inf")]},
    )
    (first, *_), problems = found(data)
    assert problems == []
    assert first.more is not None
    assert "area" not in first.more[0]
    assert first.source is not None
    assert "area" not in first.source[1]
    assert first.source[1]["note"] == {"list": [1.5, None]}
    data["info"] = {"mean": float("nan")}
    assert coco.head(data)["head"]["info"] == {}


def test_names_with_backslashes_and_absolute_names(tmp_path: Path) -> None:
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
        assert [e.picture for e in entries] == [
            images / "deep/0.jpg",
            images / "1.jpg",
            images / "2.jpg",
        ]
        assert [(e.source or [{}])[0]["file_name"] for e in entries] == [
            "deep/0.jpg",
            "1.jpg",
            "2.jpg",
        ]
    picture(1).save(tmp_path / "1.jpg")
    for name in (
        str(tmp_path / "1.jpg"),
        "..\\..\\1.jpg",
        "C:\\1.jpg",
        str(images / "../../1.jpg"),
    ):
        data["images"][1]["file_name"] = name
        entries, problems = found(data, images)
        if problems:
            assert "leads out of" in problems[0].why
        else:  # a name of a file that is not there
            assert entries[1].picture == images / name
            assert not (images / name).is_file()


def test_the_size_of_an_image_where_the_file_does_not_say_it(tmp_path: Path) -> None:
    data = coco_data()
    for image in data["images"]:
        del image["width"], image["height"]
    data["images"][2] |= {"width": None, "height": None}
    path = write_coco(tmp_path, data)
    entries = [e for e in Source("coco", path).entries() if isinstance(e, Entry)]
    assert [(e.width, e.height) for e in entries] == [(80, 60), (64, 48), (50, 70)]
    data["images"][0]["width"] = 80
    data["images"][1] |= {"width": 0, "height": 0}
    assert found(data, tmp_path / "images")[1] == []
    data["images"][1] |= {"width": 0.5, "height": 48}
    assert [p.why for p in found(data, tmp_path / "images")[1]] == [
        "width: 0.5 is not a whole number from 1 to 1e+06"
    ]


def test_a_byte_order_mark_and_text_of_another_code(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(coco_data(), indent=1).replace("\n", "\r\n").encode()
    )
    assert len(list(Source("coco", path).entries())) == 3
    path.write_bytes(json.dumps(coco_data()).encode("utf-16"))
    with pytest.raises(UnreadableSourceError, match=r"instances.json: is not UTF-8 text"):
        Source("coco", path).entries()
