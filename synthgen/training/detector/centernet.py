"""Training of the project's own small detector."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from synthgen.training.augmentation import Picture
from synthgen.training.detector import CROP, Spec
from synthgen.training.detector.trainee import DetectorTrainee, Example
from synthgen.training.vae.trainee import to_tensor
from synthgen.verification.centernet import STRIDE, CenterNet
from synthgen.verification.detections import Detections
from synthgen.verification.detector.verifier import LEAST_SCORE

SPREAD = 12  # the heat of an object falls off with its side / SPREAD
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


class CenterNetTrainee(DetectorTrainee):
    """The small detector; forward is the loss of one batch: pictures, heat maps, distances, weights of the distances."""

    def __init__(self, spec: Spec, folder: Path | None = None) -> None:
        self.side = spec.crop or CROP
        super().__init__(spec, self.side)
        net = (
            CenterNet(spec.categories, spec.channels)
            if folder is None
            else continued(folder, spec.categories)
        )
        self.net = net.to(memory_format=torch.channels_last)

    def collate(self, examples: Sequence[Example], rng: np.random.Generator) -> Batch:
        pictures = np.stack([padded(example.picture, self.side) for example in examples])
        cells, categories = self.side // STRIDE, len(self.spec.categories)
        parts = zip(*(targets(e.boxes, e.kinds, categories, cells) for e in examples), strict=True)
        return to_tensor(pictures), *(torch.from_numpy(np.stack(part)) for part in parts)  # type: ignore[return-value]

    def forward(self, batch: Batch) -> Tensor:
        """Focal loss of the heat (arXiv 1904.07850, equation 1) and smooth L1 of the log distances."""
        x, heat, distances, weight = (part.to(self.net.device) for part in batch)
        logits, predicted = self.net(x.contiguous(memory_format=torch.channels_last))
        p = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
        peak = heat == 1
        focal = torch.where(peak, (1 - p) ** 2 * p.log(), (1 - heat) ** 4 * p**2 * (1 - p).log())
        apart = F.smooth_l1_loss(predicted, distances, beta=0.1, reduction="none").sum(1) * weight
        return -focal.sum() / peak.sum().clamp(min=1) + apart.sum() / weight.sum().clamp(min=1)

    def detect(self, picture: Picture) -> Detections:
        return self.net.detect(picture, least=LEAST_SCORE)

    def export(self, folder: Path) -> None:
        """Write the detector in fp16."""
        self.net.register_to_config(_name_or_path=self.spec.name, threshold=self.threshold)
        self.net.half().save_pretrained(folder)
        self.net.float()


def continued(folder: Path, categories: tuple[str, ...]) -> CenterNet:
    """The detector of a folder with these categories: what it knew of them it still knows, the others are new."""
    old = CenterNet.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    names = list(old.config["categories"])
    if names == list(categories):
        return old
    net, state = CenterNet(categories, tuple(old.config["channels"])), old.state_dict()
    known = [(i, names.index(name)) for i, name in enumerate(categories) if name in names]
    rows = [
        *known,
        *((len(categories) + k, len(names) + k) for k in range(4)),
    ]  # the four distances come last
    for key, new in net.state_dict().items():
        if key.startswith("head.1."):
            for here, there in rows:
                new[here] = state[key][there]
            state[key] = new
    net.load_state_dict(state)
    return net


def padded(picture: Picture, side: int) -> Picture:
    """A picture at `side` x `side` px, a smaller one continued by its last pixels on the right and below."""
    h, w = picture.shape[:2]
    return (
        picture
        if h == w == side
        else np.pad(picture, ((0, side - h), (0, side - w), (0, 0)), mode="edge")
    )


def targets(
    boxes: NDArray[np.float32], kinds: list[int], categories: int, cells: int
) -> tuple[NDArray[np.float32], ...]:
    """What the detector should say of a crop of `cells` x `cells`.

    Returns:
        heat (categories, cells, cells), 1 where an object's centre is; log distances (4, cells, cells) in cells; and
        their weight (cells, cells), which is 0 where there is no object.
    """
    heat = np.zeros((categories, cells, cells), np.float32)
    distances, weight = (
        np.zeros((4, cells, cells), np.float32),
        np.zeros((cells, cells), np.float32),
    )
    at = np.arange(cells) + 0.5
    for (x0, y0, x1, y1), kind in zip((boxes / STRIDE).tolist(), kinds, strict=True):
        cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
        if not (0 <= cx < cells and 0 <= cy < cells):
            continue
        sx, sy = max(0.7, (x1 - x0) / SPREAD), max(0.7, (y1 - y0) / SPREAD)
        bump = np.outer(np.exp(-0.5 * ((at - cy) / sy) ** 2), np.exp(-0.5 * ((at - cx) / sx) ** 2))
        bump[int(cy), int(cx)] = 1
        heat[kind] = np.maximum(heat[kind], bump)
        rows, columns = np.nonzero((bump > 0.5) & (bump > weight))
        weight[rows, columns] = bump[rows, columns]
        sides = (at[columns] - x0, at[rows] - y0, x1 - at[columns], y1 - at[rows])
        distances[:, rows, columns] = np.log(np.maximum(sides, 0.25))
    return heat, distances, weight
