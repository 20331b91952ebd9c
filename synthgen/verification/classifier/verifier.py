"""The verifier that scores each box by the probability that a classifier gives its category."""

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
from synthgen.verification.crops import build_verdicts, crop_boxes, split_into_batches

Classify = Callable[[Sequence[Image.Image]], Tensor]
"""n images to logits (n, classes)."""


class ClassifierVerifier:
    """The loaded classifier."""

    def __init__(self, spec: Spec, device: str) -> None:
        self.spec = spec
        self.class_numbers = spec.read_class_numbers()
        if spec.model == PACKAGED:
            self.classify = load_packaged(device)
        else:
            self.classify = load_transformers(spec, device)

    @torch.no_grad()
    def __call__(
        self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]
    ) -> list[Verdict]:
        crops = crop_boxes(images, layouts, self.spec.context)
        probabilities: list[Tensor] = []
        for batch in split_into_batches(crops):
            probabilities += self.classify(batch).float().softmax(1).cpu()
        names: list[str] = []
        for layout in layouts:
            names += layout.categories
        classes = {name: self.spec.find_classes(name, self.class_numbers) for name in set(names)}
        scores = []
        for box_probabilities, name in zip(probabilities, names, strict=True):
            scores.append(float(box_probabilities[classes[name]].sum()))
        return build_verdicts(torch.tensor(scores), layouts)


def load_transformers(spec: Spec, device: str) -> Classify:
    """Load a classifier of transformers."""
    processor = AutoImageProcessor.from_pretrained(spec.folder(), trust_remote_code=False)
    model = AutoModelForImageClassification.from_pretrained(
        spec.folder(), use_safetensors=True, trust_remote_code=False
    )
    model = model.eval().to(device)

    def classify(images: Sequence[Image.Image]) -> Tensor:
        inputs = processor(list(images), return_tensors="pt").to(device)
        return model(**inputs).logits

    return classify


def load_packaged(device: str) -> Classify:
    """Load EfficientNet-Lite0, which has 1000 classes."""
    net = efficientnet.load().to(device)

    def classify(images: Sequence[Image.Image]) -> Tensor:
        return net(efficientnet.pixels(images).to(device))

    return classify
