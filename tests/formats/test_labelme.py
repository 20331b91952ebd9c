"""labelme's JSON files: shapes of every type, and images beside or in the files."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from synthgen import cli
from synthgen.dataset.shard import read_members
from synthgen.formats.entries import Entry, Problem, UnreadableSourceError
from synthgen.formats.labelme import reader as labelme
from synthgen.formats.source import Source, locate_source
from tests.formats.sources import coco_data, make_image, write_coco, write_lines


def make_shape(
    kind: str | None = "rectangle",
    points: Any = ((20, 30), (60, 80)),
    label: Any = "dog",
    **more: Any,
) -> dict[str, Any]:
    return {
        "label": label,
        "points": points,
        "shape_type": kind,
        "group_id": None,
        "flags": {},
        **more,
    }


def write_file(folder: Path, *shapes: dict[str, Any], name: str = "0", **more: Any) -> Path:
    """Write an image of 160 x 120 px and its file."""
    folder.mkdir(parents=True, exist_ok=True)
    make_image(0, (160, 120)).save(folder / f"{name}.jpg")
    data: dict[str, Any] = {
        "version": "5.2.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": f"{name}.jpg",
        "imageData": None,
    }
    (folder / f"{name}.json").write_text(
        json.dumps(data | {"imageHeight": 120, "imageWidth": 160} | more)
    )
    return folder


def read(folder: Path, images: Path | None = None) -> tuple[list[Entry], list[str]]:
    """Return the entries, and the problems as texts."""
    results = list(labelme.open_dataset(folder, images).entries(True))
    entries = [result for result in results if isinstance(result, Entry)]
    return entries, [str(result) for result in results if isinstance(result, Problem)]


def mask_area(entry: Entry, i: int) -> int:
    """Return the number of pixels in the mask of box i."""
    return int(coco_mask.area((entry.more or ())[i]["segmentation"]))


def test_shapes_with_an_area_are_boxes_and_others_are_counted(tmp_path: Path) -> None:
    folder = write_file(
        tmp_path,
        make_shape("rectangle", [[60, 80], [20, 30]]),
        make_shape("polygon", [[20, 30], [60, 30], [60, 80], [20, 80]], "cat"),
        make_shape(None, [[20, 30], [60, 30], [60, 80]], "cat"),
        make_shape("circle", [[50, 50], [53, 54]]),
        make_shape("rotation", [[40, 20], [60, 40], [40, 60], [20, 40]]),
        make_shape("point", [[1, 1]]),
        make_shape("line", [[1, 1], [2, 2]]),
        make_shape("linestrip", [[1, 1], [2, 2], [3, 1]]),
        make_shape("point", [[4, 1]]),
    )
    assert locate_source(folder) == ("labelme", folder)
    ((entry,), problems) = read(folder)
    assert problems == []
    expected = [[20, 30, 60, 80]] * 3 + [[45, 45, 55, 55], [20, 20, 60, 60]]
    np.testing.assert_allclose(entry.boxes, expected)
    assert entry.names == ("dog", "cat", "cat", "dog", "dog")
    assert entry.left_out == ("point", "line", "linestrip", "point")
    assert [bool(m) for m in entry.more or ()] == [False, True, True, False, True]
    assert mask_area(entry, 1) == 40 * 50
    assert entry.places[4] == f"{folder}/0.json: shapes[4]"


def test_shapes_of_a_group_are_one_object(tmp_path: Path) -> None:
    square = [[10, 10], [20, 10], [20, 20], [10, 20]]
    folder = write_file(
        tmp_path,
        make_shape("polygon", square, group_id=1),
        make_shape("rectangle", [[30, 10], [40, 20]], group_id=1),
        make_shape("polygon", square, "cat", group_id=1),
        make_shape("rectangle", [[30, 10], [40, 20]], group_id=2),
        make_shape("rectangle", [[50, 10], [60, 25]], group_id=2),
    )
    ((entry,), _) = read(folder)
    assert entry.boxes.tolist() == [[10, 10, 40, 20], [10, 10, 20, 20], [30, 10, 60, 25]]
    assert entry.names == ("dog", "cat", "dog")
    assert [mask_area(entry, i) for i in (0, 1)] == [200, 100]
    assert (entry.more or ())[2] == {}


def encode_triangle(width: int, height: int) -> str:
    """Return a mask of a triangle as labelme stores it."""
    buffer = io.BytesIO()
    Image.fromarray(np.tri(height, width, dtype=np.uint8) * 255).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_masks_include_their_last_pixels(tmp_path: Path) -> None:
    square = [[50, 10], [60, 10], [60, 20], [50, 20]]
    more = make_shape("mask", [[10, 20], [14, 24]], mask=encode_triangle(5, 5), group_id=3)
    folder = write_file(
        tmp_path, {**more, "group_id": None}, more, make_shape("polygon", square, group_id=3)
    )
    ((entry,), problems) = read(folder)
    assert problems == []
    assert entry.boxes.tolist() == [[10, 20, 15, 25], [10, 10, 60, 25]]
    assert [mask_area(entry, i) for i in (0, 1)] == [15, 115]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"label": ""}, "label: missing; the name of the object"),
        ({"points": []}, "points: [] is not a list of points"),
        ({"points": [[1, 2, 3], [4, 5, 6]]}, "points: [1, 2, 3] is not x, y"),
        ({"points": [[1, True], [4, 5]]}, "points: [1, True] is not x, y"),
        ({"points": [[1, 1e9], [4, 5]]}, "points: [1, 1000000000.0] is not x, y"),
        (
            {"shape_type": "cuboid"},
            "shape_type: 'cuboid' with 2 points; what is read: rectangle, circle, mask, polygon",
        ),
        ({"shape_type": "polygon"}, "shape_type: 'polygon' with 2 points"),
        ({"shape_type": "mask", "mask": "!"}, "mask: not a PNG in base64"),
        (
            {"shape_type": "mask", "mask": encode_triangle(3, 3)},
            "mask: 3 x 3 px do not fill the pixels from 20, 30 to 60, 80 of 160 x 120",
        ),
    ],
)
def test_a_shape_that_is_not_valid_is_a_problem(
    wrong: dict[str, Any], why: str, tmp_path: Path
) -> None:
    folder = write_file(tmp_path, make_shape(), {**make_shape(), **wrong})
    entries, (problem,) = read(folder)
    assert entries == []
    assert problem.startswith(f"{folder}/0.json: shapes[1]: {why}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[1]", "not labelme: it needs shapes, a list"),
        ('{"shapes": {}}', "not labelme: it needs shapes, a list"),
        ("{", "not JSON"),
        (
            '{"shapes": [], "imagePath": "none.jpg"}',
            "imagePath: 'none.jpg': the image is not there, and imageData is empty",
        ),
        ('{"shapes": [], "imagePath": "none.jpg", "imageData": "?"}', "imageData: not base64"),
        (
            '{"shapes": [], "imagePath": "none.jpg", "imageData": "AAAA"}',
            "the image does not decode: cannot identify image file",
        ),
        (
            '{"shapes": [], "imagePath": "0.jpg", "imageWidth": "x", "imageHeight": 3}',
            "imageWidth: 'x' is not a whole number",
        ),
    ],
)
def test_a_file_that_is_not_valid_is_a_problem(text: str, why: str, tmp_path: Path) -> None:
    folder = write_file(tmp_path)
    (folder / "0.json").write_text(text)
    entries, (problem,) = read(folder)
    assert entries == []
    assert problem.startswith(f"{folder}/0.json: {why}")


@pytest.mark.parametrize(
    "name", ["../images/0.jpg", "..\\images\\0.jpg", "C:\\x\\0.jpg", "/home/someone/0.jpg", "0.jpg"]
)
def test_images_are_found_by_path_or_name(name: str, tmp_path: Path) -> None:
    folder = write_file(tmp_path / "labels", make_shape(), imagePath=name)
    wanted = tmp_path / "images" if "images" in name else folder
    wanted.mkdir(exist_ok=True)
    (folder / "0.jpg").rename(wanted / "0.jpg")
    ((entry,), problems) = read(folder)
    assert problems == []
    assert entry.image_path is not None
    assert entry.image_path.samefile(wanted / "0.jpg")
    assert read(folder, wanted)[1] == []


def test_two_files_with_the_same_image_are_bad(tmp_path: Path) -> None:
    write_file(tmp_path, make_shape())
    write_file(tmp_path, make_shape(), name="1", imagePath="0.jpg")
    entries, problems = read(tmp_path)
    assert entries == []
    assert [p.partition(": ")[2] for p in problems] == [
        f"imagePath: {tmp_path}/0.jpg is also the image of another file"
    ] * 2


def test_an_embedded_image_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    out = tmp_path / "out"
    more = {"imageWidth": None, "imageHeight": None}
    write_file(folder, make_shape(), make_shape("point", [[1, 1]]), name="0", **more)
    original = (folder / "0.jpg").read_bytes()
    (folder / "0.jpg").unlink()
    path = folder / "0.json"
    data = json.loads(path.read_text())
    data["imageData"] = base64.b64encode(original).decode()
    path.write_text(json.dumps(data))
    assert cli.main(["import", str(folder), str(out), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["format"], data["images"], data["boxes"], data["left_out"]) == (
        "labelme",
        1,
        1,
        {"point": 1},
    )
    members = dict(read_members(out / "shards/000000.tar"))
    assert members["000000000.jpg"] == original
    assert json.loads(members["000000000.json"])["annotations"][0]["bbox"] == [20, 30, 40, 50]
    assert cli.main(["import", str(path), str(out)]) == 0  # the file itself is the same source
    assert "1 x point left out" in capsys.readouterr().out


def test_formats_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    write_coco(tmp_path / "a")
    write_file(tmp_path / "a", make_shape(), name="9")
    with pytest.raises(
        UnreadableSourceError,
        match=r"more than one source: .*instances.json \(coco\), .*a \(labelme\)",
    ):
        locate_source(tmp_path / "a")
    assert locate_source(tmp_path / "a", "labelme")[0] == "labelme"
    data = coco_data()
    data["categories"].append({"id": 3, "name": "shapes"})  # a word of labelme in another format
    assert locate_source(write_coco(tmp_path / "c", data))[0] == "coco"
    assert locate_source(tmp_path / "c")[0] == "coco"
    write_lines(tmp_path / "b")
    assert locate_source(tmp_path / "b")[0] == "jsonl"


def test_a_folder_without_a_source_is_refused_with_all_formats(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n")
    message = (
        r"nothing here that can be read; .*: COCO \(.*JSON lines.*YOLO.*"
        r"Pascal VOC \(Annotations/\*.xml.*labelme"
    )
    with pytest.raises(UnreadableSourceError, match=message):
        locate_source(tmp_path)
    with pytest.raises(
        UnreadableSourceError,
        match=r"which format is it\? --format coco \| jsonl \| yolo \| voc \| labelme",
    ):
        locate_source(tmp_path / "x.csv")
    for form in ("voc", "labelme", "yolo"):
        with pytest.raises(UnreadableSourceError):
            list(Source(form, tmp_path).entries())


ODD: list[Any] = [
    None,
    True,
    -1,
    1.5,
    10**400,
    float("nan"),
    "",
    "x",
    "x" * 5000,
    "a\0b",
    [],
    [[]],
    {},
    [None],
    {"a": 1},
]


def test_no_value_raises_another_error(tmp_path: Path) -> None:
    """Every value leads to an entry or a problem."""
    folder = write_file(tmp_path, make_shape("mask", [[1, 2], [3, 4]], mask=encode_triangle(3, 3)))
    path = folder / "0.json"
    data = json.loads(path.read_text())
    for key in (
        "shapes",
        "imagePath",
        "imageData",
        "imageWidth",
        "imageHeight",
        *data["shapes"][0],
    ):
        for value in ODD:
            changed = {**data, "shapes": [dict(data["shapes"][0])]}
            record = changed["shapes"][0] if key in changed["shapes"][0] else changed
            record[key] = value
            path.write_text(json.dumps(changed))
            assert list(labelme.open_dataset(folder).entries(True))
