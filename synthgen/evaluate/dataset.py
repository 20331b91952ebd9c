"""Figures of a finished dataset, shard by shard."""

import math
from typing import Any

from synthgen.errors import InputError
from synthgen.evaluate.compared import Compared
from synthgen.evaluate.detection import DetectionFigures
from synthgen.evaluate.fidelity import FIGURES, NOT_MEASURED
from synthgen.evaluate.reference import Reference
from synthgen.evaluate.samples import samples
from synthgen.evaluate.words import Words
from synthgen.shards.dataset import read_info
from synthgen.shards.store import Out
from synthgen.verify.detector import DetectorVerifier
from synthgen.verify.verifiers.clip import Spec as ClipSpec
from synthgen.verify.verifiers.detector import Spec as DetectorSpec


def evaluate(
    out: Out,
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
        {"images", "boxes"}, the figures of `DetectionFigures.figures`, those of `Words` and `fidelity`.
    """
    info = read_info(out)
    assert info is not None
    look, words = DetectorVerifier(detector, device), None if clip is None else Words(clip, device)
    seen = DetectionFigures(info.category_ids, detector.threshold if isinstance(detector.threshold, float) else 0.3)
    compared = None if reference is None else Compared(reference, device)
    for row, image, layout in samples(out, limit):
        if unknown := set(layout.categories) - set(info.category_ids):
            raise InputError(f"{out}: sample {row['key']!r}: {sorted(unknown)} are no categories of its dataset.json")
        seen.add(layout, look.found([image], [layout])[0])
        if words is not None:
            words.add(image, row["prompt"], layout)
        if compared is not None:
            compared.add(image, layout)
    figures = {k: None if math.isnan(v) else round(v, 4) for k, v in seen.figures().items()}
    spoken = dict.fromkeys(("clip_score", "t2i_sim"), NOT_MEASURED) if words is None else words.figures()
    real = dict.fromkeys(FIGURES, NOT_MEASURED) if compared is None else compared.figures(limit)
    return {"images": seen.images, "boxes": len(seen.truths), **figures, **spoken, **real}
