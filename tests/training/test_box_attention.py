"""The loss on attention maps."""

import numpy as np
import pytest
import torch

from synthgen.training.box_attention import compute_attention_loss, find_cells_inside


def test_cells_are_inside_the_boxes_that_contain_their_centres() -> None:
    boxes = torch.tensor([[[0, 0, 0.5, 1], [0.5, 0.5, 1, 1]]])
    expected = [[1, 0], [1, 0], [0, 0], [0, 0]]
    expected += [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert find_cells_inside(boxes, 2, 4)[0].tolist() == expected


def test_the_loss_is_the_cross_entropy_of_the_right_attention() -> None:
    """Of two cells, the first is in the box.

    The right attention is 0.9 of the first, and all but 0.2 of the second.
    """
    maps = [torch.tensor([[[0.9, 0.05], [0.2, 0.7]]])]
    boxes = torch.tensor([[[0, 0, 0.5, 1], [0, 0, 1, 1]]])
    mask = torch.tensor([[1.0, 0.0]])  # the second box is padding
    expected = -(np.log(0.9) + np.log(0.8)) / 2
    assert compute_attention_loss(maps, boxes, mask, 1, 2).item() == pytest.approx(expected)
