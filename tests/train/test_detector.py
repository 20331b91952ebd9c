"""Training of the small detector: its targets say what its decoding reads, and it learns."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.layouts import Layout
from synthgen.scene import Scene
from synthgen.train.detector import DetectorTrainee, count_error, matches, targets
from synthgen.train.tasks.detector import Spec
from synthgen.verify.centernet import Detections, boxes_at, peaks


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_targets_decode_to_the_boxes(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    columns = rng.permutation(6)[:count]
    low = np.stack([columns * 40.0, rng.uniform(0, 100, count)], 1)
    boxes = np.concatenate([low, low + rng.uniform(20, 36, (count, 2))], 1).astype(np.float32)
    kinds = rng.integers(0, 2, count).tolist()
    heat, distances, _ = targets(boxes, kinds, 2, 64)
    scores, cells = peaks(torch.from_numpy(heat), count)
    assert (scores == 1).all()
    order = np.argsort(cells[:, 2].numpy())
    found = boxes_at(torch.from_numpy(distances), cells).numpy()[order]
    by_column = np.argsort(boxes[:, 0])
    np.testing.assert_allclose(found, boxes[by_column], atol=1e-3)
    assert cells[order, 0].tolist() == [kinds[i] for i in by_column]


def test_it_learns_one_batch() -> None:
    base = {"version": 1, "name": "x", "steps": 1, "output": {"path": "x"}, "channels": (8, 8, 16, 16), "crop": 64}
    trainee = DetectorTrainee(Spec.model_validate({**base, "batch_size": 2, "data": {"side": 128, "scenes": 4}}))
    batch = next(trainee.batches(0, 0))
    optimiser = torch.optim.AdamW(trainee.parameters(), 5e-3)
    losses = []
    for _ in range(15):
        loss = trainee(batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_figures() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    scene = Scene(Layout(64, 64, boxes, ("dog", "cat")), "")
    found = Detections(boxes, np.array([0.9, 0.5], np.float32), ("dog", "dog"))
    assert matches(scene, found) == 1
    assert count_error([(scene, np.zeros(0, np.uint8))], [found], 0.4) == 0
    assert count_error([(scene, np.zeros(0, np.uint8))], [found], 0.6) == 0.5
