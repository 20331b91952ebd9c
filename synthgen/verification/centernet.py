"""A small detector for crowded images, with one peak of a heat map for each object.

Source: Zhou, Wang, Krähenbühl, "Objects as Points" (arXiv 1904.07850); boxes are four distances
from the peak, as in FCOS (Tian et al., arXiv 1904.01355), so that a peak need not be at the exact
centre.
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
MULTIPLE = 32  # px; an image's sides are padded to multiples of this
EMPTY_LOGIT = -4.0  # initial bias of the heat map: almost every cell is empty
LOG_DISTANCE = 2.0  # initial bias of the log distances: boxes are about 60 px wide


class CenterNet(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """A fully convolutional detector for images of any size.

    Args:
        categories: names, with a heat map each.
        channels: channels at 1/2, 1/4, 1/8 and 1/16 (and 1/32) of the image's size.
        threshold: score from which a detection counts, chosen on held-out images.
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
        self.stem = nn.Sequential(convolution(3, c2, 2), convolution(c2, c4, 2), Block(c4))
        self.down8 = nn.Sequential(convolution(c4, c8, 2), Block(c8), Block(c8))
        self.down16 = nn.Sequential(convolution(c8, c16, 2), Block(c16), Block(c16))
        self.down32 = nn.Sequential(convolution(c16, c16, 2), Block(c16))
        self.lateral = nn.ModuleList(
            [nn.Conv2d(c16, c16, 1), nn.Conv2d(c16, c8, 1), nn.Conv2d(c8, c4, 1)]
        )
        self.smooth = nn.ModuleList([Block(c16), Block(c8), Block(c4)])
        out = nn.Conv2d(c4, len(categories) + 4, 1)
        bias = torch.tensor([EMPTY_LOGIT] * len(categories) + [LOG_DISTANCE] * 4)
        with torch.no_grad():
            out.bias.copy_(bias)  # type: ignore[union-attr]
        self.head = nn.Sequential(convolution(c4, c4), out)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return heat map logits (N, K, h, w) and log distances (N, 4, h, w).

        The distances are those to left, top, right and bottom, in cells.

        Args:
            x: (N, 3, H, W) in [-1, 1], H and W multiples of 32.
        """
        x4 = self.stem(x)
        x8 = self.down8(x4)
        x16 = self.down16(x8)
        y = self.down32(x16)
        for lateral, smooth, skip in zip(self.lateral, self.smooth, (x16, x8, x4), strict=True):
            upsampled = F.interpolate(lateral(y), scale_factor=2.0)
            y = smooth(upsampled + skip)
        out = self.head(y)
        return out[:, :-4], out[:, -4:]

    def detect(self, image: NDArray[np.uint8], most: int = 1000, least: float = 0.0) -> Detections:
        """Return the detections in an image (H, W, 3) uint8; arguments as for `detect_all`."""
        return self.detect_all([image], most, least)[0]

    @torch.no_grad()
    def detect_all(
        self, images: Sequence[NDArray[np.uint8]], most: int = 1000, least: float = 0.0
    ) -> list[Detections]:
        """Return the detections in images (H, W, 3) uint8 of one size.

        Peaks whose boxes overlap a better one (IoU > 0.5) are dropped.

        Args:
            images: the images.
            most: greatest number of peaks of an image, those with the best scores.
            least: score below which peaks are dropped. Where few peaks are good, a higher score
                saves most of the time.
        """
        height, width = images[0].shape[:2]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        x = pixels.to(self.device, self.dtype) / 127.5 - 1
        x = F.pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")
        all_heat, all_distances = self(x.contiguous(memory_format=torch.channels_last))
        all_detections = []
        for heat, distances in zip(all_heat.float(), all_distances.float(), strict=True):
            all_detections.append(
                self.read_maps(heat.sigmoid(), distances, (width, height), most, least)
            )
        return all_detections

    def read_maps(
        self, heat: Tensor, distances: Tensor, size: tuple[int, int], most: int, least: float = 0.0
    ) -> Detections:
        """Return the detections that heat map and log distances stand for.

        Args:
            heat: (K, h, w) in [0, 1].
            distances: (4, h, w) log distances in cells.
            size: width, height of the image in px.
            most: see `detect_all`, as for `least`.
        """
        scores, cells = find_peaks(heat, most)
        is_good = scores >= least
        scores = scores[is_good]
        cells = cells[is_good]
        boxes = boxes_at(distances, cells).cpu()
        boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([*size, *size]))
        kept = non_maximum_suppression(boxes.numpy())
        names = self.config["categories"]
        categories = tuple(names[int(cells[i, 0])] for i in kept)
        return Detections(boxes.numpy()[kept], scores.cpu().numpy()[kept], categories)


class Block(nn.Module):
    """Two convolutions with a skip connection around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(channels, channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.norm(self.body(x)))


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a 3 x 3 convolution with batch normalisation and activation."""
    layer = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.SiLU())


def find_peaks(heat: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the `most` highest local maxima of a heat map (K, h, w).

    Returns:
        Scores (N,), descending, and places (N, 3) as (category, row, column).
    """
    is_peak = F.max_pool2d(heat[None], 3, 1, 1)[0] == heat
    top = heat * is_peak
    scores, flat = top.flatten().topk(min(most, top.numel()))
    return scores, torch.stack(torch.unravel_index(flat, heat.shape), 1)


def boxes_at(distances: Tensor, cells: Tensor) -> Tensor:
    """Return boxes (N, 4) xyxy in px from log distances (4, h, w) at places (N, 3)."""
    y = cells[:, 1]
    x = cells[:, 2]
    left, top, right, bottom = distances[:, y, x].clamp(max=6).exp()
    edges = [x + 0.5 - left, y + 0.5 - top, x + 0.5 + right, y + 0.5 + bottom]
    return STRIDE * torch.stack(edges, 1)
