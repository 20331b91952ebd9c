"""Samplers that take layouts from data: replayed, from a file, or fitted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import stats

from synthgen import cli
from synthgen.geometry import box_sides
from synthgen.layouts import coco, file, fit
from synthgen.layouts.base import InfeasibleLayoutError
from synthgen.layouts.rows import read_entries
from synthgen.layouts.scatter import Spec as ScatterSpec
from tests.formats.sources import write_voc, write_yolo

ROWS: list[dict[str, Any]] = [
    {
        "width": 100,
        "height": 50,
        "categories": ["dog", "cat"],
        "boxes": [[0, 0, 50, 25], [60, 10, 100, 50]],
        "phrases": ["a", "b"],
    },
    {"width": 100, "height": 50, "categories": ["dog"], "bbox": [[10, 10, 20, 30]]},
    {"width": 100, "height": 50, "categories": [], "boxes": []},
]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Return a file of JSON lines with the rows."""
    path = tmp_path / "layouts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def write_coco_file(path: Path, **changes: Any) -> Path:
    """Write a COCO file with a box, with other values of some keys."""
    data = {
        "images": [{"id": 1, "width": 100, "height": 50}],
        "annotations": [{"image_id": 1, "category_id": 18, "bbox": [10, 10, 20, 30]}],
        "categories": [{"id": 18, "name": "dog"}],
    }
    path.write_text(json.dumps({**data, **changes}))
    return path


def test_rows_are_replayed_by_index_and_stretched(lines: Path) -> None:
    spec = file.Spec(source=str(lines), canvas=(200, 200))
    rng = np.random.default_rng(0)
    first, second, third, fourth = [spec.sample(rng, i) for i in range(4)]
    np.testing.assert_array_equal(first.boxes, [[0, 0, 100, 100], [120, 40, 200, 200]])
    assert (first.categories, first.phrases) == (("dog", "cat"), ("a", "b"))
    np.testing.assert_array_equal(second.boxes, [[20, 40, 60, 160]])
    assert len(third) == 0
    np.testing.assert_array_equal(fourth.boxes, first.boxes)
    assert spec.names() == {"dog": True, "cat": True}


def test_a_parquet_table_gives_the_same_layouts_as_lines(lines: Path, tmp_path: Path) -> None:
    keys = ("width", "height", "categories", "boxes")
    rows = [{key: row.get(key) for key in keys} for row in ROWS[::2]]
    table = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    from_lines = file.Spec(source=str(lines), canvas=(200, 200)).sample(np.random.default_rng(0))
    from_table = file.Spec(source=str(table), canvas=(200, 200)).sample(np.random.default_rng(0))
    np.testing.assert_array_equal(from_lines.boxes, from_table.boxes)


def test_masks_give_boxes_and_are_stretched_to_the_canvas(tmp_path: Path) -> None:
    from pycocotools import mask as coco_mask

    mask = np.zeros((50, 100), np.uint8, order="F")
    mask[10:30, 20:60] = 1
    rle = coco_mask.encode(mask)
    row = {
        "width": 100,
        "height": 50,
        "categories": ["dog"],
        "masks": [{"size": [50, 100], "counts": rle["counts"].decode()}],
    }
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    spec = file.Spec(source=str(tmp_path / "m.jsonl"), canvas=(200, 100))
    layout = spec.sample(np.random.default_rng(0))
    np.testing.assert_array_equal(layout.boxes, [[40, 20, 120, 60]])
    assert layout.masks is not None
    assert coco_mask.area(layout.masks[0]) == 80 * 40


def test_boxes_can_be_strings(tmp_path: Path) -> None:
    """Boxes are written as label_ID_bbox_X_Y_W_H, and sizes are read from the image files."""
    from PIL import Image

    Image.new("RGB", (640, 480)).save(tmp_path / "a.jpg")
    row = {
        "file_name": "a.jpg",
        "caption": "x",
        "custom_annotation": ["label_18_bbox_359.17_146.17_112.45_213.57"],
    }
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    (entry,) = read_entries(str(tmp_path / "metadata.jsonl"))
    assert (entry.width, entry.height, entry.names) == (640, 480, ("dog",))
    np.testing.assert_allclose(entry.boxes, [[359.17, 146.17, 471.62, 359.74]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "layouts.jsonl:4: not JSON"),
        ("[]", "layouts.jsonl:4: '[]' is not a mapping"),
        ('{"width": 9, "height": 9, "boxes": []}', "layouts.jsonl:4: categories: missing"),
        (
            '{"width": 9, "height": 9, "categories": ["dog"], "boxes": [[5, 5, 2, 9]]}',
            "layouts.jsonl:4: box 0 (dog), x 5 to 2, y 5 to 9: has no area",
        ),
        (
            '{"width": 9, "height": 9, "categories": ["dog"], "bbox": [[5, 5, -2, 9]]}',
            "width and height must not be negative",
        ),
        (
            '{"width": 9, "height": 9, "categories": ["dog"], "bbox": []}',
            "layouts.jsonl:4: categories: 1 names for 0 boxes",
        ),
        (
            '{"categories": [], "boxes": []}',
            "layouts.jsonl:4: give width and height, or a file_name",
        ),
        (
            '{"custom_annotation": ["label_0_bbox_1_2_3_4"]}',
            "layouts.jsonl:4: custom_annotation[0]: 'label_0_bbox_1_2_3_4' is not",
        ),
    ],
)
def test_an_invalid_line_is_named(lines: Path, line: str, message: str) -> None:
    lines.write_text(lines.read_text() + line + "\n")
    with pytest.raises(ValidationError) as caught:
        file.Spec(source=str(lines))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": []}, "contains no boxes"),
        ({"categories": []}, "annotations[0]: category_id 18 is not among the categories"),
        ({"images": []}, "annotations[0]: image_id 1 is not among the images"),
        (
            {"annotations": [{"image_id": 1, "category_id": 18, "bbox": [1, 2, 0, 4]}]},
            "annotations[0]: box 0 (dog), x 1 to 1, y 2 to 6: has no area",
        ),
    ],
)
def test_an_invalid_entry_of_a_coco_file_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_coco_file(tmp_path / "instances.json", **changes)
    with pytest.raises(ValidationError) as caught:
        coco.Spec(source=str(path))
    assert message in str(caught.value)


def test_filters_that_match_nothing_are_named(tmp_path: Path) -> None:
    source = str(write_coco_file(tmp_path / "instances.json"))
    with pytest.raises(ValidationError, match=r"'cat' is not in .*; it has dog"):
        coco.Spec(source=source, categories=("cat",))
    with pytest.raises(ValidationError, match=r"no layout of .* has 5 to 9 boxes after the filter"):
        coco.Spec(source=source, boxes=(5, 9))
    with pytest.raises(ValidationError, match="'nowhere' is neither a file"):
        coco.Spec(source="nowhere")


def test_replay_without_variation_is_the_original(tmp_path: Path) -> None:
    source = str(write_coco_file(tmp_path / "instances.json"))

    def sample_boxes(seed: int, **variation: float) -> NDArray[np.float32]:
        spec = coco.Spec(source=source, canvas=(200, 100), **variation)
        return spec.sample(np.random.default_rng(seed)).boxes

    np.testing.assert_array_equal(sample_boxes(0, jitter=0, flip=0), [[20, 20, 60, 80]])
    np.testing.assert_array_equal(sample_boxes(0, jitter=0, flip=1), [[140, 20, 180, 80]])
    jittered = [sample_boxes(seed, jitter=0.1) for seed in range(20)]
    assert len({boxes.tobytes() for boxes in jittered}) == 20
    for boxes in jittered:
        assert (boxes >= 0).all()
        assert (boxes <= [200, 100, 200, 100]).all()


def test_fitted_layouts_are_like_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {
        "objects": {"dog": [5, 15], "cat": {"count": 3, "probability": 0.5}},
        "size": [40, 100],
        "gap": 4,
    }
    real = ScatterSpec.model_validate(recipe)
    layouts = [real.sample(np.random.default_rng(k)) for k in range(120)]
    source = tmp_path / "real.jsonl"
    model = tmp_path / "fit.json"
    with source.open("w") as stream:
        for layout in layouts:
            row = {"width": 1024, "height": 1024, "boxes": layout.boxes.tolist()}
            stream.write(json.dumps({**row, "categories": list(layout.categories)}) + "\n")
    assert cli.main(["fit", str(source), "-o", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 120
    assert model.stat().st_size < 200_000
    spec = fit.Spec(model=str(model))
    spec.check_feasible()
    sampled = [spec.sample(np.random.default_rng((1, k))) for k in range(240)]
    real_boxes = np.concatenate([layout.boxes for layout in layouts])
    sampled_boxes = np.concatenate([layout.boxes for layout in sampled])
    pairs = {
        "number of boxes": (list(map(len, layouts)), list(map(len, sampled))),
        "width": (box_sides(real_boxes)[:, 0], box_sides(sampled_boxes)[:, 0]),
        "left edge": (real_boxes[:, 0], sampled_boxes[:, 0]),
    }
    for name, (a, b) in pairs.items():
        assert stats.ks_2samp(a, b).pvalue > 1e-3, name
    share = np.mean(["cat" in layout.categories for layout in layouts])
    sampled_share = np.mean(["cat" in layout.categories for layout in sampled])
    assert sampled_share == pytest.approx(share, abs=0.12)
    known = {layout.boxes.tobytes() for layout in layouts}
    assert any(layout.boxes.tobytes() not in known for layout in sampled)
    assert len(spec.examples()) == 16


def test_fit_refuses_a_file_that_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="no such file; write it with: synthgen fit DATA"):
        fit.Spec(model=str(tmp_path / "none.json"))
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValidationError, match="was not written by `synthgen fit`"):
        fit.Spec(model=str(tmp_path / "other.json"))


def test_fit_refuses_a_model_whose_boxes_do_not_fit(tmp_path: Path) -> None:
    model = {
        "format": fit.FORMAT,
        "counts": [{"dog": 40}],
        "boxes": {"dog": [[0.5, 0.5, -0.2, -0.2]]},
        "max_iou": 0.0,
        "examples": [],
    }
    (tmp_path / "fit.json").write_text(json.dumps(model))
    with pytest.raises(InfeasibleLayoutError, match="40 boxes like those of"):
        fit.Spec(model=str(tmp_path / "fit.json")).check_feasible()


@st.composite
def random_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Random rows of a file: images of any size with any boxes inside, and at least one box."""
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        width = draw(st.integers(20, 800))
        height = draw(st.integers(20, 800))
        boxes = []
        for _ in range(draw(st.integers(0, 6))):
            x0 = draw(st.floats(0, width - 10))
            y0 = draw(st.floats(0, height - 10))
            boxes.append([x0, y0, draw(st.floats(x0 + 2, width)), draw(st.floats(y0 + 2, height))])
        category = st.sampled_from(["dog", "cat", "cow"])
        names = draw(st.lists(category, min_size=len(boxes), max_size=len(boxes)))
        rows.append({"width": width, "height": height, "boxes": boxes, "categories": names})
    rows.append(
        {"width": 100, "height": 100, "boxes": [[10.0, 10.0, 60.0, 70.0]], "categories": ["dog"]}
    )
    return rows


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(random_rows(), st.integers(0, 2**32), st.tuples(st.integers(64, 600), st.integers(64, 600)))
def test_any_data_gives_layouts_on_the_canvas(
    tmp_path: Path, rows: list[dict[str, Any]], seed: int, canvas: tuple[int, int]
) -> None:
    source = tmp_path / f"{seed}.jsonl"
    model = tmp_path / f"{seed}.json"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model.write_text(json.dumps(fit.fit_model(str(source))))
    specs = (
        file.Spec(source=str(source), canvas=canvas),
        coco.Spec(source=str(source), canvas=canvas, least=1, boxes=(0, 100)),
        fit.Spec(model=str(model), canvas=canvas),
    )
    for spec in specs:
        try:
            layout = spec.sample(np.random.default_rng(seed), index=seed)
        except InfeasibleLayoutError as error:
            assert "boxes after" in str(error)  # noqa: PT017
            continue
        assert (layout.boxes >= 0).all()
        assert (layout.boxes <= [*canvas, *canvas]).all()
        assert (layout.boxes[:, 2:] > layout.boxes[:, :2]).all()
        assert set(layout.categories) <= set(spec.names())
        again = spec.sample(np.random.default_rng(seed), index=seed)
        np.testing.assert_array_equal(layout.boxes, again.boxes)


@pytest.mark.parametrize("write", [write_yolo, write_voc])
def test_fit_reads_every_format_that_import_reads(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    """It reads all splits, and reports invalid annotations."""
    folder = write(tmp_path / "source")
    model = tmp_path / "fit.json"
    assert cli.main(["fit", str(folder), "-o", str(model)]) == 0
    fitted = json.loads(model.read_text())
    assert fitted["pictures"] == 3
    assert set(fitted["boxes"]) == {"dog", "cat"}
    annotations = [path for path in folder.rglob("0.*") if path.suffix in (".txt", ".xml")]
    annotations[0].write_text("nonsense")
    assert cli.main(["fit", str(folder), "-o", str(model)]) == 2
