"""Figures of a dataset: on small arrays, against hand-made answers, and on a real one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from synthgen import cli
from synthgen.evaluation.detection import DetectionFigures, average_precision, coco_box
from synthgen.layouts.base import Layout
from synthgen.verification.detections import Detections

IDS = {"dog": 18, "cat": 17}


def grid(n: int, side: int = 8, step: int = 10) -> np.ndarray:
    return np.array(
        [
            (x, y, x + side, y + side)
            for y in range(0, n * step, step)
            for x in range(0, n * step, step)
        ],
        np.float32,
    )


def found(
    boxes: np.ndarray, scores: float | np.ndarray = 0.9, names: tuple[str, ...] | None = None
) -> Detections:
    return Detections(
        boxes, np.broadcast_to(np.float32(scores), len(boxes)), names or ("dog",) * len(boxes)
    )


def test_perfect_detections_of_400_boxes_have_an_ap_of_1() -> None:
    figures = DetectionFigures(IDS)
    boxes = grid(20)
    figures.add(Layout(200, 200, boxes, ("dog",) * 400), found(boxes))
    told = figures.figures()
    assert {k: told[k] for k in ("ap", "ap50", "ap75", "iou", "held", "scale_x")} == pytest.approx(
        {"ap": 1, "ap50": 1, "ap75": 1, "iou": 1, "held": 1, "scale_x": 1}
    )
    assert {
        k: told[k] for k in ("offset_x", "offset_y", "count_error", "unasked")
    } == pytest.approx({"offset_x": 0, "offset_y": 0, "count_error": 0, "unasked": 0}, abs=1e-6)


def test_offsets_and_sizes() -> None:
    """Detections that are a quarter wider, and so an eighth of a side to the right: IoU 0.8."""
    figures = DetectionFigures(IDS)
    boxes = grid(3)
    figures.add(
        Layout(200, 200, boxes, ("dog",) * 9), found(boxes + np.array([0, 0, 2, 0], np.float32))
    )
    told = figures.figures()
    names = ("iou", "offset_x", "offset_y", "scale_x", "scale_y", "ap50", "ap75")
    assert [told[k] for k in names] == pytest.approx([0.8, 0.125, 0, 1.25, 1, 1, 1], abs=1e-5)
    assert told["ap"] == pytest.approx(0.7)  # IoU 0.5 to 0.8 of 0.5 to 0.95


def test_counts_and_strays() -> None:
    figures = DetectionFigures(IDS, threshold=0.5)
    asked = Layout(200, 200, grid(2), ("dog", "dog", "cat", "cat"))
    boxes = np.concatenate([grid(2)[:3], [[100, 100, 120, 120], [150, 150, 170, 170]]]).astype(
        np.float32
    )
    seen = found(boxes, np.array([0.9, 0.8, 0.7, 0.6, 0.2]), ("dog", "dog", "dog", "dog", "dog"))
    figures.add(asked, seen)
    figures.add(Layout(200, 200, grid(0).reshape(-1, 4), ()), found(grid(0).reshape(-1, 4)))
    told = figures.figures()
    assert told["count_error"] == (2 + 2) / 4  # 4 dogs instead of 2, no cat instead of 2
    assert told["held"] == 0.5
    assert told["unasked"] == 0.5  # one that no box accounts for, in two pictures


def test_no_detections_and_no_boxes() -> None:
    assert average_precision([], [], 1, IDS) == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    figures = DetectionFigures(IDS)
    figures.add(Layout(64, 64, grid(2), ("dog",) * 4), found(grid(0).reshape(-1, 4)))
    assert (figures.figures()["ap"], figures.figures()["iou"]) == (0.0, 0.0)
    assert coco_box(np.array([1, 2, 4, 8], np.float32)) == {"bbox": [1, 2, 3, 6], "area": 18}


def test_a_dataset_is_evaluated(job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    big = [
        "layout.canvas=[256, 256]",
        "layout.size=[52, 68]",
        "layout.objects={dog: 5}",
        "pipeline.cutouts=heldout",
        "images=4",
    ]
    assert cli.main(["run", str(job_file), *big, "--json"]) == 0
    out = json.loads(capsys.readouterr().out)["output"]
    assert cli.main(["evaluate", out, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], told["boxes"], told["clip_score"]) == (4, 20, "not measured here")
    assert told["ap50"] > 0.6
    assert told["iou"] > 0.6
    assert abs(told["offset_x"]) < 0.1
    assert cli.main(["evaluate", out, "--limit", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 1
    shutil.rmtree(Path(out) / "shards")
    assert cli.main(["evaluate", out, "--detector", "nowhere"]) == 2
    assert "no folder of that name holds a config.json" in capsys.readouterr().err


def test_a_folder_that_is_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(tmp_path)]) == 2
    assert "not a synthgen dataset" in capsys.readouterr().err
