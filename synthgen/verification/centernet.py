"""A small detector that finds every object of a crowded picture: one peak of a heat map an object.

Source: Zhou, Wang, Krähenbühl, "Objects as Points" (arXiv 1904.07850); boxes are four distances from the peak, as in
FCOS (Tian et al., arXiv 1904.01355), so that a peak need not stand at the exact centre.
"""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from synthgen.geometry import non_maximum_suppression
from synthgen.verification.detections import Detections

STRIDE = 4  # px a cell of the heat map
MULTIPLE = 32  # a picture's sides are padded to multiples of this many px


class CenterNet(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Fully convolutional: pictures of any size.

    Args:
        categories: names, a heat map each.
        channels: at 1/2, 1/4, 1/8 and 1/16 (and 1/32) of the picture's size.
        threshold: score from which a detection counts, chosen on held-out pictures.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        categories: tuple[str, ...] = ("dog",),
        channels: tuple[int, ...] = (16, 32, 64, 96),
        threshold: float = 0.3,
    ) -> None:
        super().__init__()
        c2, c4, c8, c16 = channels
        self.stem = nn.Sequential(conv(3, c2, 2), conv(c2, c4, 2), Block(c4))
        self.down8 = nn.Sequential(conv(c4, c8, 2), Block(c8), Block(c8))
        self.down16 = nn.Sequential(conv(c8, c16, 2), Block(c16), Block(c16))
        self.down32 = nn.Sequential(conv(c16, c16, 2), Block(c16))
        self.lateral = nn.ModuleList(
            [nn.Conv2d(c16, c16, 1), nn.Conv2d(c16, c8, 1), nn.Conv2d(c8, c4, 1)]
        )
        self.smooth = nn.ModuleList([Block(c16), Block(c8), Block(c4)])
        out = nn.Conv2d(c4, len(categories) + 4, 1)
        with (
            torch.no_grad()
        ):  # at first: almost every cell is empty, and boxes are about 60 px wide
            out.bias.copy_(torch.tensor([-4.0] * len(categories) + [2.0] * 4))  # type: ignore[union-attr]
        self.head = nn.Sequential(conv(c4, c4), out)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Heat map logits (N, K, h, w) and log distances (N, 4, h, w), in cells, to left, top, right and bottom.

        Args:
            x: (N, 3, H, W) in [-1, 1], H and W multiples of 32.
        """
        x4 = self.stem(x)
        x8 = self.down8(x4)
        x16 = self.down16(x8)
        y = self.down32(x16)
        for lateral, smooth, skip in zip(self.lateral, self.smooth, (x16, x8, x4), strict=True):
            y = smooth(F.interpolate(lateral(y), scale_factor=2.0) + skip)
        out = self.head(y)
        return out[:, :-4], out[:, -4:]

    def detect(self, image: NDArray[np.uint8], most: int = 1000, least: float = 0.0) -> Detections:
        """What is in a picture (H, W, 3) uint8."""
        return self.detect_all([image], most, least)[0]

    @torch.no_grad()
    def detect_all(
        self, images: Sequence[NDArray[np.uint8]], most: int = 1000, least: float = 0.0
    ) -> list[Detections]:
        """What is in pictures (H, W, 3) uint8 of one size: the `most` best peaks of each, less what overlaps (IoU > 0.5).

        `least`: score from which a peak is looked at; where there are few good ones, a higher one saves most of the time.
        """
        h, w = images[0].shape[:2]
        x = (
            torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(self.device, self.dtype)
            / 127.5
            - 1
        )
        x = F.pad(x, (0, -w % MULTIPLE, 0, -h % MULTIPLE), mode="replicate")
        heat, distances = self(x.contiguous(memory_format=torch.channels_last))
        pairs = zip(heat.float(), distances.float(), strict=True)
        return [self.read(of.sigmoid(), d, (w, h), most, least) for of, d in pairs]

    def read(
        self, heat: Tensor, distances: Tensor, size: tuple[int, int], most: int, least: float = 0.0
    ) -> Detections:
        """What heat map (K, h, w) and log distances (4, h, w) say of a picture of that size, in px."""
        scores, cells = peaks(heat, most)
        scores, cells = scores[scores >= least], cells[scores >= least]
        boxes = boxes_at(distances, cells).cpu()
        boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([*size, *size]))
        keep = non_maximum_suppression(boxes.numpy())
        names = self.config["categories"]
        kinds = tuple(names[int(cells[i, 0])] for i in keep)
        return Detections(boxes.numpy()[keep], scores.cpu().numpy()[keep], kinds)


class Block(nn.Module):
    """Two convolutions round a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, channels), nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        )
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.norm(self.body(x)))


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.SiLU())


def peaks(heat: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Scores (N,), descending, and places (N, 3) as (category, row, column) of the local maxima of (K, h, w)."""
    top = heat * (F.max_pool2d(heat[None], 3, 1, 1)[0] == heat)
    scores, flat = top.flatten().topk(min(most, top.numel()))
    return scores, torch.stack(torch.unravel_index(flat, heat.shape), 1)


def boxes_at(distances: Tensor, cells: Tensor) -> Tensor:
    """Boxes (N, 4) xyxy in px from log distances (4, h, w) at places (N, 3)."""
    y, x = cells[:, 1], cells[:, 2]
    left, top, right, bottom = distances[:, y, x].clamp(max=6).exp()
    return STRIDE * torch.stack(
        [x + 0.5 - left, y + 0.5 - top, x + 0.5 + right, y + 0.5 + bottom], 1
    )
