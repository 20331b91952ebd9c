"""Boxes looked at one by one by a classifier: the score is a probability."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification

from synthgen.layouts.base import Layout
from synthgen.verification import efficientnet
from synthgen.verification.base import Verdict
from synthgen.verification.classifier import PACKAGED, Spec
from synthgen.verification.crops import batches, crops_of, verdicts


class ClassifierVerifier:
    """The loaded classifier."""

    def __init__(self, spec: Spec, device: str) -> None:
        self.spec, self.known = spec, spec.known()
        self.shares = packaged(device) if spec.model == PACKAGED else of_transformers(spec, device)

    @torch.no_grad()
    def __call__(
        self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]
    ) -> list[Verdict]:
        crops = crops_of(images, layouts, self.spec.context)
        found = [self.shares(part).float().softmax(1).cpu() for part in batches(crops)]
        names = [name for layout in layouts for name in layout.categories]
        wanted = {name: self.spec.classes(name, self.known) for name in set(names)}
        rows = zip(torch.cat(found) if found else [], names, strict=True)
        return verdicts(
            torch.tensor([float(shares[wanted[name]].sum()) for shares, name in rows]), layouts
        )


def of_transformers(spec: Spec, device: str) -> Callable[[Sequence[Image.Image]], Tensor]:
    """Pictures to logits (n, classes) by a classifier of transformers."""
    processor = AutoImageProcessor.from_pretrained(spec.folder(), trust_remote_code=False)
    safe = {"use_safetensors": True, "trust_remote_code": False}
    model = AutoModelForImageClassification.from_pretrained(spec.folder(), **safe).eval().to(device)
    return lambda pictures: (
        model(**processor(list(pictures), return_tensors="pt").to(device)).logits
    )


def packaged(device: str) -> Callable[[Sequence[Image.Image]], Tensor]:
    """Pictures to logits (n, 1000) by EfficientNet-Lite0."""
    net = efficientnet.load().to(device)
    return lambda pictures: net(efficientnet.pixels(pictures).to(device))
