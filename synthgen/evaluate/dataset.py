"""Figures of a finished dataset, shard by shard."""

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthgen.evaluate.detection import DetectionFigures
from synthgen.layouts import Layout
from synthgen.shards.dataset import read_info
from synthgen.shards.sample import annotations_of
from synthgen.shards.shard import committed, read_members, read_rows, shard_path
from synthgen.verify.verifiers.clip import Spec as ClipSpec
from synthgen.verify.verifiers.detector import Spec as DetectorSpec

NOT_MEASURED = "not measured here"


def samples(out: Path, limit: int | None = None) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8], Layout]]:
    """Row, picture (H, W, 3) and labels of each sample, in order."""
    done = 0
    for number in committed(out):
        rows = {f"{row['key']}.{row['image_format']}": row for row in read_rows(out, number)}
        for name, data in read_members(shard_path(out, number, ".tar")):
            if name in rows:
                if limit is not None and done == limit:
                    return
                done += 1
                yield rows[name], np.array(Image.open(io.BytesIO(data)).convert("RGB")), labels(rows[name])


def labels(row: dict[str, Any]) -> Layout:
    """The annotations of a row, as a layout."""
    annotations = annotations_of(row)
    boxes = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    names = tuple(a["category"] for a in annotations)
    phrases = tuple(a.get("phrase") or f"a {a['category']}" for a in annotations)
    return Layout(row["width"], row["height"], boxes.astype(np.float32), names, phrases)


def evaluate(
    out: Path, detector: DetectorSpec, clip: ClipSpec | None = None, limit: int | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Figures of a dataset.

    Args:
        detector: what looks for the objects.
        clip: what holds pictures against words; without one those figures are NOT_MEASURED.
        limit: look at so many pictures; None: all.

    Returns:
        {"images", "boxes"}, the figures of `DetectionFigures.figures`, and: clip_score, the mean over images of
        100 max(cos(image, prompt), 0) (Hessel et al., arXiv 2104.08718); t2i_sim, the mean over boxes of
        cos(crop, "a photo of a {category}").
    """
    from synthgen.verify.crops import ClipVerifier, crops_of
    from synthgen.verify.detector import DetectorVerifier

    info = read_info(out)
    assert info is not None
    look, words = DetectorVerifier(detector, device), ClipVerifier(clip, device) if clip is not None else None
    seen = DetectionFigures(info.category_ids, detector.threshold if isinstance(detector.threshold, float) else 0.3)
    scores: list[float] = []
    similar: list[float] = []
    for row, image, layout in samples(out, limit):
        seen.add(layout, look.found(image, layout))
        if words is not None:
            whole = words.seen([Image.fromarray(image)]) @ words.words([row["prompt"]]).T
            scores.append(100 * max(0.0, float(whole[0, 0])))
            texts = [words.spec.text.format(category=name, phrase="") for name in layout.categories]
            if texts:
                pairs = words.seen(crops_of([image], [layout], words.spec.context)) * words.words(texts)
                similar += pairs.sum(1).tolist()
    told = {"clip_score": scores, "t2i_sim": similar}
    means = {name: float(np.mean(values)) if values else NOT_MEASURED for name, values in told.items()}
    figures = {k: None if math.isnan(v) else round(v, 4) for k, v in seen.figures().items()}
    return {"images": seen.images, "boxes": len(seen.truths), **figures, **means}
