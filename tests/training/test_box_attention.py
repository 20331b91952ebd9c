"""Where attention layers are told to look."""

import numpy as np
import pytest
import torch

from synthgen.training.box_attention import contains, look_loss


def test_cells_are_in_the_boxes_that_hold_their_centres() -> None:
    boxes = torch.tensor([[[0, 0, 0.5, 1], [0.5, 0.5, 1, 1]]])
    assert contains(boxes, 2, 4)[0].tolist() == [
        [1, 0],
        [1, 0],
        [0, 0],
        [0, 0],
        [1, 0],
        [1, 0],
        [0, 1],
        [0, 1],
    ]


def test_layers_are_told_where_to_look() -> None:
    """Two cells, the first in the box: what is right is 0.9 of its look, and all but 0.2 of the other's."""
    looks = [torch.tensor([[[0.9, 0.05], [0.2, 0.7]]])]
    boxes, mask = (
        torch.tensor([[[0, 0, 0.5, 1], [0, 0, 1, 1]]]),
        torch.tensor([[1.0, 0.0]]),
    )  # the second is padding
    assert look_loss(looks, boxes, mask, 1, 2).item() == pytest.approx(
        -(np.log(0.9) + np.log(0.8)) / 2
    )
