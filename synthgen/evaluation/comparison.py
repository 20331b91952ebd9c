"""Generated pictures compared with real ones."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from synthgen.evaluation.fidelity import FIGURES, NEIGHBOURS, NOT_MEASURED, fidelity
from synthgen.evaluation.image_encoders import EfficientNetEncoder, Encoder
from synthgen.evaluation.reference_images import Reference
from synthgen.layouts.base import Layout
from synthgen.verification import efficientnet
from synthgen.verification.clip import Spec as ClipSpec
from synthgen.verification.crops import crops_of


class Comparison:
    """Gathers features of generated pictures, and compares them with those of real ones."""

    def __init__(self, reference: Reference, device: str) -> None:
        self.reference = reference
        if reference.encoder == efficientnet.NAME:
            self.encoder: Encoder = EfficientNetEncoder(device)
        else:
            self.encoder = Encoder(ClipSpec(model=reference.encoder).folder(), device)
        self.features: list[Tensor] = []

    def add(self, image: NDArray[np.uint8], layout: Layout | None) -> None:
        """One generated picture."""
        self.features += self.of(image, layout)

    def of(self, image: NDArray[np.uint8], layout: Layout | None) -> list[Tensor]:
        """Features of a picture, or of its boxes."""
        if not self.reference.objects or layout is None:
            return [self.encoder([Image.fromarray(image)])]
        return [self.encoder(crops_of([image], [layout], 0.0))] if len(layout) else []

    def figures(self, limit: int | None) -> dict[str, Any]:
        """The figures of `fidelity`; too few pictures, or features that are no numbers, cannot be compared."""
        real = [
            f for image, layout in self.reference.pictures(limit) for f in self.of(image, layout)
        ]
        generated, wanted = (
            torch.cat(f) if f else torch.zeros(0, 1) for f in (self.features, real)
        )
        if min(len(generated), len(wanted)) <= NEIGHBOURS:
            return dict.fromkeys(
                FIGURES, f"{NOT_MEASURED}: at least {NEIGHBOURS + 1} are needed, of each"
            )
        if not all(bool(features.isfinite().all()) for features in (generated, wanted)):
            return dict.fromkeys(
                FIGURES,
                f"{NOT_MEASURED}: {self.reference.encoder} gives features that are not finite",
            )
        return {name: round(value, 5) for name, value in fidelity(generated, wanted).items()}
