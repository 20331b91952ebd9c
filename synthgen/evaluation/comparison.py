"""Comparison of generated images with real ones."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from synthgen.evaluation.fidelity import FIGURES, NEIGHBOURS, NOT_MEASURED, measure_fidelity
from synthgen.evaluation.image_encoders import EfficientNetEncoder, Encoder
from synthgen.evaluation.reference_images import Reference
from synthgen.layouts.base import Layout
from synthgen.verification import efficientnet
from synthgen.verification.clip import Spec as ClipSpec
from synthgen.verification.crops import crop_boxes


class Comparison:
    """Collects features of generated images, and compares them with those of real images."""

    def __init__(self, reference: Reference, device: str) -> None:
        self.reference = reference
        if reference.encoder == efficientnet.NAME:
            self.encoder: Encoder = EfficientNetEncoder(device)
        else:
            self.encoder = Encoder(ClipSpec(model=reference.encoder).folder(), device)
        self.features: list[Tensor] = []

    def add(self, image: NDArray[np.uint8], layout: Layout | None) -> None:
        """Add one generated image."""
        self.features += self.encode(image, layout)

    def encode(self, image: NDArray[np.uint8], layout: Layout | None) -> list[Tensor]:
        """Return the features of an image, or of its boxes if objects are compared."""
        if not self.reference.objects or layout is None:
            return [self.encoder([Image.fromarray(image)])]
        if len(layout) == 0:
            return []
        return [self.encoder(crop_boxes([image], [layout], 0.0))]

    def compute_figures(self, limit: int | None) -> dict[str, Any]:
        """Return the figures of `measure_fidelity`.

        Each is a text if there are too few images, or a feature is not finite.

        Args:
            limit: compare with so many real images; None: all.
        """
        real_features: list[Tensor] = []
        for image, layout in self.reference.read_images(limit):
            real_features += self.encode(image, layout)
        generated = _concatenate(self.features)
        real = _concatenate(real_features)
        if min(len(generated), len(real)) <= NEIGHBOURS:
            reason = f"{NOT_MEASURED}: at least {NEIGHBOURS + 1} are needed, of each"
            return dict.fromkeys(FIGURES, reason)
        if not (generated.isfinite().all() and real.isfinite().all()):
            reason = f"{NOT_MEASURED}: {self.reference.encoder} gives features that are not finite"
            return dict.fromkeys(FIGURES, reason)
        return {name: round(value, 5) for name, value in measure_fidelity(generated, real).items()}


def _concatenate(features: list[Tensor]) -> Tensor:
    return torch.cat(features) if features else torch.zeros(0, 1)
