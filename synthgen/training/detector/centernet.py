"""Training of CenterNet, the project's own small detector."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from synthgen.training.augmentation import ImageArray
from synthgen.training.detector import CENTERNET_CROP, Spec
from synthgen.training.detector.trainee import DetectorTrainee, Example
from synthgen.training.vae.trainee import to_tensor
from synthgen.verification.centernet import STRIDE, CenterNet
from synthgen.verification.detections import Detections
from synthgen.verification.detector.verifier import LEAST_SCORE

SPREAD = 12  # the standard deviation of an object's heat is its side / SPREAD
MIN_SPREAD = 0.7  # cells, the smallest standard deviation
MIN_DISTANCE = 0.25  # cells, the smallest distance whose logarithm is a target
Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Images, heat maps, log distances, and the weights of the distances."""


class CenterNetTrainee(DetectorTrainee):
    """CenterNet; forward returns the loss of one batch."""

    def __init__(self, spec: Spec, folder: Path | None = None) -> None:
        self.side = spec.crop or CENTERNET_CROP
        super().__init__(spec, self.side)
        if folder is None:
            net = CenterNet(spec.categories, spec.channels)
        else:
            net = load_with_categories(folder, spec.categories)
        self.net = net.to(memory_format=torch.channels_last)

    def collate(self, examples: Sequence[Example], rng: np.random.Generator) -> Batch:
        cells = self.side // STRIDE
        images, heats, distances, weights = [], [], [], []
        for example in examples:
            images.append(pad_image(example.image, self.side))
            heat, distance, weight = make_targets(
                example.boxes, example.category_indices, len(self.spec.categories), cells
            )
            heats.append(heat)
            distances.append(distance)
            weights.append(weight)
        return (
            to_tensor(np.stack(images)),
            torch.from_numpy(np.stack(heats)),
            torch.from_numpy(np.stack(distances)),
            torch.from_numpy(np.stack(weights)),
        )

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of one batch.

        It is the focal loss of the heat (arXiv 1904.07850, equation 1) plus the smooth L1 loss of
        the log distances.
        """
        x, heat, distances, weight = (tensor.to(self.net.device) for tensor in batch)
        logits, predicted = self.net(x.contiguous(memory_format=torch.channels_last))
        p = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
        peak = heat == 1
        focal = torch.where(peak, (1 - p) ** 2 * p.log(), (1 - heat) ** 4 * p**2 * (1 - p).log())
        errors = F.smooth_l1_loss(predicted, distances, beta=0.1, reduction="none").sum(1) * weight
        return -focal.sum() / peak.sum().clamp(min=1) + errors.sum() / weight.sum().clamp(min=1)

    def detect(self, image: ImageArray) -> Detections:
        return self.net.detect(image, least=LEAST_SCORE)

    def export(self, folder: Path) -> None:
        """Write the detector in fp16."""
        self.net.register_to_config(_name_or_path=self.spec.name, threshold=self.threshold)
        self.net.half().save_pretrained(folder)
        self.net.float()


def load_with_categories(folder: Path, categories: tuple[str, ...]) -> CenterNet:
    """Return the detector of a folder with these categories.

    Categories that it has already keep their weights; the others start with new weights.
    """
    old = CenterNet.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    names = list(old.config["categories"])
    if names == list(categories):
        return old
    net = CenterNet(categories, tuple(old.config["channels"]))
    rows: list[tuple[int, int]] = []  # new and old row of each output that is kept
    for i, name in enumerate(categories):
        if name in names:
            rows.append((i, names.index(name)))
    for k in range(4):  # the rows of the four distances come last
        rows.append((len(categories) + k, len(names) + k))
    state = old.state_dict()
    for key, weight in net.state_dict().items():
        if key.startswith("head.1."):
            for new_row, old_row in rows:
                weight[new_row] = state[key][old_row]
            state[key] = weight
    net.load_state_dict(state)
    return net


def pad_image(image: ImageArray, side: int) -> ImageArray:
    """Return an image at `side` x `side` px.

    A smaller image is padded with its last pixels on the right and below.
    """
    height, width = image.shape[:2]
    if height == width == side:
        return image
    return np.pad(image, ((0, side - height), (0, side - width), (0, 0)), mode="edge")


def make_targets(
    boxes: NDArray[np.float32], category_indices: list[int], categories: int, cells: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return what the detector should predict for a crop of `cells` x `cells`.

    Args:
        boxes: (N, 4) xyxy in px.
        category_indices: the index of each box's category.
        categories: the number of categories.

    Returns:
        heat (categories, cells, cells), 1 where an object's centre is; log distances (4, cells,
        cells) in cells; and their weight (cells, cells), which is 0 where there is no object.
    """
    heat = np.zeros((categories, cells, cells), np.float32)
    distances = np.zeros((4, cells, cells), np.float32)
    weight = np.zeros((cells, cells), np.float32)
    centres = np.arange(cells) + 0.5
    corners = (boxes / STRIDE).tolist()
    for (x0, y0, x1, y1), category in zip(corners, category_indices, strict=True):
        cx = (x0 + x1) / 2
        cy = (y0 + y1) / 2
        if not (0 <= cx < cells and 0 <= cy < cells):
            continue
        sx = max(MIN_SPREAD, (x1 - x0) / SPREAD)
        sy = max(MIN_SPREAD, (y1 - y0) / SPREAD)
        rows_heat = np.exp(-0.5 * ((centres - cy) / sy) ** 2)
        columns_heat = np.exp(-0.5 * ((centres - cx) / sx) ** 2)
        bump = np.outer(rows_heat, columns_heat)
        bump[int(cy), int(cx)] = 1
        heat[category] = np.maximum(heat[category], bump)
        rows, columns = np.nonzero((bump > 0.5) & (bump > weight))
        weight[rows, columns] = bump[rows, columns]
        sides = (
            centres[columns] - x0,
            centres[rows] - y0,
            x1 - centres[columns],
            y1 - centres[rows],
        )
        distances[:, rows, columns] = np.log(np.maximum(sides, MIN_DISTANCE))
    return heat, distances, weight
