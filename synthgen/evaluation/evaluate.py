"""Figures of a finished dataset, shard by shard."""

import math
from typing import Any

from synthgen.dataset.info import read_info
from synthgen.errors import InputError
from synthgen.evaluation.clip_scores import ClipScores
from synthgen.evaluation.comparison import Comparison
from synthgen.evaluation.detection import DetectionFigures
from synthgen.evaluation.fidelity import FIGURES, NOT_MEASURED
from synthgen.evaluation.labelled_images import read_labelled_images
from synthgen.evaluation.reference_images import Reference
from synthgen.storage.base import Store
from synthgen.verification.clip import Spec as ClipSpec
from synthgen.verification.detector import Spec as DetectorSpec
from synthgen.verification.detector.verifier import DetectorVerifier


def evaluate(
    store: Store,
    detector: DetectorSpec,
    clip: ClipSpec | None = None,
    reference: Reference | None = None,
    limit: int | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Figures of a dataset.

    Args:
        detector: what looks for the objects.
        clip: what holds pictures against words; without one those figures are NOT_MEASURED.
        reference: real pictures, and what they are compared in; without it those figures are NOT_MEASURED.
        limit: look at so many pictures; None: all.

    Returns:
        {"images", "boxes"}, the figures of `DetectionFigures.figures`, those of `ClipScores` and `fidelity`.
    """
    info = read_info(store)
    assert info is not None
    look, words = (
        DetectorVerifier(detector, device),
        None if clip is None else ClipScores(clip, device),
    )
    seen = DetectionFigures(
        info.category_ids, detector.threshold if isinstance(detector.threshold, float) else 0.3
    )
    compared = None if reference is None else Comparison(reference, device)
    for row, image, layout in read_labelled_images(store, limit):
        if unknown := set(layout.categories) - set(info.category_ids):
            raise InputError(
                f"{store}: sample {row['key']!r}: {sorted(unknown)} are no categories of its dataset.json"
            )
        seen.add(layout, look.found([image], [layout])[0])
        if words is not None:
            words.add(image, row["prompt"], layout)
        if compared is not None:
            compared.add(image, layout)
    figures = {k: None if math.isnan(v) else round(v, 4) for k, v in seen.figures().items()}
    spoken = (
        dict.fromkeys(("clip_score", "t2i_sim"), NOT_MEASURED) if words is None else words.figures()
    )
    real = dict.fromkeys(FIGURES, NOT_MEASURED) if compared is None else compared.figures(limit)
    return {"images": seen.images, "boxes": len(seen.truths), **figures, **spoken, **real}
