"""The figures of a dataset, on small arrays with known answers and on a generated dataset."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from synthgen import cli
from synthgen.evaluation.detection import DetectionFigures, average_precision, convert_to_coco_box
from synthgen.layouts.base import Layout
from synthgen.verification.detections import Detections

IDS = {"dog": 18, "cat": 17}


NO_BOXES = np.zeros((0, 4), np.float32)


def grid(n: int, side: int = 8, step: int = 10) -> np.ndarray:
    """Return n x n square boxes, xyxy, row by row."""
    y, x = np.mgrid[0 : n * step : step, 0 : n * step : step]
    corners = np.stack([x, y, x + side, y + side], axis=-1)
    return corners.reshape(-1, 4).astype(np.float32)


def detections(
    boxes: np.ndarray, scores: float | np.ndarray = 0.9, names: tuple[str, ...] | None = None
) -> Detections:
    """Return detections of dogs, or of other names."""
    all_scores = np.broadcast_to(np.float32(scores), len(boxes))
    return Detections(boxes, all_scores, names or ("dog",) * len(boxes))


def test_perfect_detections_of_400_boxes_have_ap_1() -> None:
    figures = DetectionFigures(IDS)
    boxes = grid(20)
    figures.add(Layout(200, 200, boxes, ("dog",) * 400), detections(boxes))
    result = figures.figures()
    for name in ("ap", "ap50", "ap75", "iou", "held", "scale_x"):
        assert result[name] == pytest.approx(1), name
    for name in ("offset_x", "offset_y", "count_error", "unasked"):
        assert result[name] == pytest.approx(0, abs=1e-6), name


def test_offsets_and_scales_are_measured() -> None:
    """Detections a quarter wider than the boxes are an eighth of a side off: IoU 0.8."""
    figures = DetectionFigures(IDS)
    boxes = grid(3)
    wider = boxes + np.array([0, 0, 2, 0], np.float32)
    figures.add(Layout(200, 200, boxes, ("dog",) * 9), detections(wider))
    result = figures.figures()
    names = ("iou", "offset_x", "offset_y", "scale_x", "scale_y", "ap50", "ap75")
    assert [result[k] for k in names] == pytest.approx([0.8, 0.125, 0, 1.25, 1, 1, 1], abs=1e-5)
    assert result["ap"] == pytest.approx(0.7)  # IoU 0.5 to 0.8 of 0.5 to 0.95


def test_wrong_counts_and_false_positives_are_counted() -> None:
    figures = DetectionFigures(IDS, threshold=0.5)
    asked = Layout(200, 200, grid(2), ("dog", "dog", "cat", "cat"))
    others = np.array([[100, 100, 120, 120], [150, 150, 170, 170]], np.float32)
    boxes = np.concatenate([grid(2)[:3], others])
    figures.add(asked, detections(boxes, np.array([0.9, 0.8, 0.7, 0.6, 0.2])))
    figures.add(Layout(200, 200, NO_BOXES, ()), detections(NO_BOXES))
    result = figures.figures()
    assert result["count_error"] == (2 + 2) / 4  # 4 dogs instead of 2, no cat instead of 2
    assert result["held"] == 0.5
    assert result["unasked"] == 0.5  # one detection without a label, in two images


def test_an_image_without_detections_has_ap_0() -> None:
    assert average_precision([], [], 1, IDS) == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    figures = DetectionFigures(IDS)
    figures.add(Layout(64, 64, grid(2), ("dog",) * 4), detections(NO_BOXES))
    assert (figures.figures()["ap"], figures.figures()["iou"]) == (0.0, 0.0)
    assert convert_to_coco_box(np.array([1, 2, 4, 8], np.float32)) == {
        "bbox": [1, 2, 3, 6],
        "area": 18,
    }


def test_a_dataset_is_evaluated(job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [
        "layout.canvas=[256, 256]",
        "layout.size=[52, 68]",
        "layout.objects={dog: 5}",
        "pipeline.cutouts=heldout",
        "images=4",
    ]
    assert cli.main(["run", str(job_file), *overrides, "--json"]) == 0
    out = json.loads(capsys.readouterr().out)["output"]
    assert cli.main(["evaluate", out, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["boxes"], result["clip_score"]) == (4, 20, "not measured here")
    assert result["ap50"] > 0.6
    assert result["iou"] > 0.6
    assert abs(result["offset_x"]) < 0.1
    assert cli.main(["evaluate", out, "--limit", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 1
    shutil.rmtree(Path(out) / "shards")
    assert cli.main(["evaluate", out, "--detector", "nowhere"]) == 2
    assert "no folder of that name holds a config.json" in capsys.readouterr().err


def test_a_folder_without_a_dataset_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(tmp_path)]) == 2
    assert "not a synthgen dataset" in capsys.readouterr().err
