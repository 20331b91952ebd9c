"""The small detector: its geometry, and images of any size."""

from pathlib import Path

import numpy as np
import torch

from synthgen.verification.centernet import CenterNet, find_peaks


def test_peaks_are_local_maxima() -> None:
    heat = torch.zeros(2, 8, 8)
    heat[0, 2, 3] = 0.9
    heat[0, 2, 4] = 0.8
    heat[1, 6, 6] = 0.5
    scores, cells = find_peaks(heat, 2)
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.5]))
    assert cells.tolist() == [[0, 2, 3], [1, 6, 6]]


def test_images_of_any_size_and_a_detector_read_from_disk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = CenterNet(("dog", "cat"), (4, 8, 8, 8)).eval()
    image = np.random.default_rng(0).integers(0, 256, (70, 101, 3), dtype=np.uint8)
    found = net.detect(image, most=20)
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [101, 70, 101, 70]).all()
    assert (np.diff(found.scores) <= 0).all()
    net.save_pretrained(tmp_path)
    again = CenterNet.from_pretrained(tmp_path).eval().detect(image, most=20)
    np.testing.assert_allclose(again.boxes, found.boxes, atol=1e-3)
    assert len(found.at_least(2.0).scores) == 0


def test_peaks_below_the_least_score_are_dropped() -> None:
    torch.manual_seed(0)
    net = CenterNet(("dog",), (8, 8, 16, 16)).eval()
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    every = net.detect(picture)
    least = float(np.median(every.scores[every.scores > 0]))
    some = net.detect(picture, least=least)
    wanted = every.at_least(least)
    assert 0 < len(some.scores) < len(every.scores)
    np.testing.assert_array_equal(some.scores, wanted.scores)
    np.testing.assert_array_equal(some.boxes, wanted.boxes)
