"""The evaluation of a finished dataset, image by image."""

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

DEFAULT_THRESHOLD = 0.3
"""Score from which a detection counts, for a detector that has a threshold for each category."""


def evaluate(
    store: Store,
    detector: DetectorSpec,
    clip: ClipSpec | None = None,
    reference: Reference | None = None,
    limit: int | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Return the figures of a dataset.

    Args:
        detector: detects the objects.
        clip: compares images and text; without it the figures of `ClipScores` are NOT_MEASURED.
        reference: real images and their encoder; without it the figures of `measure_fidelity` are
            NOT_MEASURED.
        limit: evaluate so many images; None: all.

    Returns:
        {"images", "boxes"}, the figures of `DetectionFigures.figures`, and those of `ClipScores`
        and `measure_fidelity`.

    Raises:
        InputError: an image has a category that dataset.json lacks.
    """
    info = read_info(store)
    assert info is not None
    verifier = DetectorVerifier(detector, device)
    scores = None if clip is None else ClipScores(clip, device)
    threshold = detector.threshold
    detection = DetectionFigures(
        info.category_ids, threshold if isinstance(threshold, float) else DEFAULT_THRESHOLD
    )
    comparison = None if reference is None else Comparison(reference, device)
    for row, image, layout in read_labelled_images(store, limit):
        unknown = set(layout.categories) - set(info.category_ids)
        if unknown:
            raise InputError(
                f"{store}: sample {row['key']!r}: dataset.json lacks its categories "
                f"{', '.join(sorted(unknown))}"
            )
        (detections,) = verifier.found([image], [layout])
        detection.add(layout, detections)
        if scores is not None:
            scores.add(image, row["prompt"], layout)
        if comparison is not None:
            comparison.add(image, layout)
    figures: dict[str, Any] = {"images": detection.images, "boxes": len(detection.truths)}
    for name, value in detection.figures().items():
        figures[name] = None if math.isnan(value) else round(value, 4)
    if scores is None:
        figures |= dict.fromkeys(("clip_score", "t2i_sim"), NOT_MEASURED)
    else:
        figures |= scores.compute_figures()
    if comparison is None:
        figures |= dict.fromkeys(FIGURES, NOT_MEASURED)
    else:
        figures |= comparison.compute_figures(limit)
    return figures
