"""Actions on failed boxes: generate them again, tighten them to a detection, or flag them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthgen.geometry import box_centres, box_sides, clip_boxes
from synthgen.heartbeat import begin_activity
from synthgen.layouts.base import Layout
from synthgen.pipelines.base import Painting
from synthgen.scenes.scene import Scene
from synthgen.verification.base import TIGHTEN, Verdict, Verifier, VerifierSpec
from synthgen.verification.detections import LEAST_SIDE, Detections

BLOCK = 8  # side in px of the square blocks in which two images are compared

Seeds = Callable[[int, int], np.random.SeedSequence]
"""Returns the seed of a repair from the index of the image in the batch and the repair's number."""


@dataclass(frozen=True)
class Checked:
    """A generated image and its verdict.

    Attributes:
        painting: the image.
        layout: the labels; boxes may have been tightened.
        verdict: the verdict.
        failed: (N,) whether each box fails after all actions.
        actions: what was done to each of the N boxes: "", "repaired", "tightened" or "flagged".
        repairs: number of times that windows of the image were generated again.
    """

    painting: Painting
    layout: Layout
    verdict: Verdict
    failed: NDArray[np.bool_]
    actions: tuple[str, ...] = ()
    repairs: int = 0

    @property
    def faults(self) -> int:
        """Number of failed boxes and false positives."""
        return int(self.failed.sum()) + len(self.verdict.unasked)

    def annotation(self, i: int) -> dict[str, Any]:
        """Return the entries about the verification in the annotation of box i."""
        record: dict[str, Any] = {"score": round(float(self.verdict.scores[i]), 4)}
        if self.verdict.ious is not None:
            record["iou"] = round(float(self.verdict.ious[i]), 4)
        record["action"] = self.actions[i]
        return record

    def record(self) -> dict[str, int]:
        """Return the entries about the verification in the record of the sample."""
        return {
            "failed": int(self.failed.sum()),
            "unasked": len(self.verdict.unasked),
            "repairs": self.repairs,
        }


@dataclass(frozen=True)
class Inspection:
    """Verifies batches of images, and repairs them as the recipe of the verifier says."""

    spec: VerifierSpec
    verifier: Verifier
    painter: Any

    @property
    def kinds(self) -> tuple[str, ...]:
        """The actions on failed boxes that the recipe allows."""
        return self.spec.on_failure

    def __call__(
        self, scenes: Sequence[Scene], paintings: Sequence[Painting], seeds: Seeds
    ) -> list[Checked]:
        """Verify a batch, and generate failed boxes and the places of false positives again."""
        checked = self.verify(paintings, [scene.layout for scene in scenes])
        by_object = hasattr(self.painter, "regenerate_objects")
        by_window = hasattr(self.painter, "inpaint_boxes")
        if "repair" not in self.kinds or not (by_object or by_window):
            return checked
        repair = self.regenerate_objects if by_object else self.repair_windows
        for number in range(1, self.spec.max_repairs + 1):
            faulty = []
            for k, image in enumerate(checked):
                if image.failed.any() or (by_window and image.faults):
                    faulty.append(k)
            if not faulty:
                break
            old = [checked[k] for k in faulty]
            faulty_scenes = [scenes[k] for k in faulty]
            repaired = repair(faulty_scenes, old, [seeds(k, number) for k in faulty])
            verified = self.verify(repaired, [scene.layout for scene in faulty_scenes])
            for k, new in zip(faulty, verified, strict=True):
                checked[k] = accept_repair(checked[k], new, number)
        return checked

    def repair_windows(
        self,
        scenes: Sequence[Scene],
        faulty: Sequence[Checked],
        seeds: Sequence[np.random.SeedSequence],
    ) -> list[Painting]:
        """Generate failed boxes and the places of false positives of images again.

        A changed part of an image is kept only if it is better than the old part.
        """
        least = getattr(self.painter, "least_side", 1)
        images = [checked.painting.image for checked in faulty]
        faults = []
        for scene, checked in zip(scenes, faulty, strict=True):
            faults.append(select_faults(scene, checked, least))
        inpainted = [Painting(image) for image in self.painter.inpaint_boxes(images, faults, seeds)]
        merged = []
        verified = self.verify(inpainted, [scene.layout for scene in scenes])
        for old, new in zip(faulty, verified, strict=True):
            merged.append(Painting(merge_better_parts(old, new)))
        return merged

    def regenerate_objects(
        self,
        scenes: Sequence[Scene],
        faulty: Sequence[Checked],
        seeds: Sequence[np.random.SeedSequence],
    ) -> list[Painting]:
        """Generate the objects of failed boxes of images again.

        A new object is kept only if it is better than the old one. False positives stay.
        """
        failed = [np.flatnonzero(checked.failed).tolist() for checked in faulty]
        paintings = [checked.painting for checked in faulty]
        regenerated = self.painter.regenerate_objects(paintings, scenes, failed, seeds)
        merged = []
        verified = self.verify(regenerated, [scene.layout for scene in scenes])
        for scene, old, new in zip(scenes, faulty, verified, strict=True):
            better = find_better_boxes(new, old)
            merged.append(self.painter.replace_objects(scene, old.painting, new.painting, better))
        return merged

    def verify(self, paintings: Sequence[Painting], layouts: Sequence[Layout]) -> list[Checked]:
        """Return the images with their verdicts, without any action."""
        begin_activity("verifying")
        verdicts = self.verifier([painting.image for painting in paintings], layouts)
        checked = []
        for painting, layout, raw in zip(paintings, layouts, verdicts, strict=True):
            verdict = clean_verdict(raw, layout)
            failed = self.spec.find_failed_boxes(verdict, layout)
            checked.append(Checked(painting, layout, verdict, failed, ("",) * len(layout)))
        return checked

    def find_failed_boxes(
        self, images: Sequence[NDArray[np.uint8]], layouts: Sequence[Layout]
    ) -> list[NDArray[np.bool_]]:
        """Return which boxes (N,) of each image (H, W, 3) fail."""
        paintings = [Painting(image) for image in images]
        return [checked.failed for checked in self.verify(paintings, layouts)]

    def finish(self, checked: Checked) -> Checked:
        """Tighten the failed boxes that can be tightened, and flag the others."""
        layout = checked.layout
        boxes = layout.boxes.copy()
        actions = list(checked.actions)
        failed = checked.failed.copy()
        tightened = find_tightened_boxes(checked) if "tighten" in self.kinds else {}
        for i in np.flatnonzero(checked.failed).tolist():
            least = self.spec.least(layout.categories[i])
            if checked.verdict.scores[i] >= least and i in tightened:
                boxes[i] = tightened[i]
                actions[i] = "tightened"
                failed[i] = False
            else:
                actions[i] = "flagged"
        return replace(
            checked, layout=replace(layout, boxes=boxes), actions=tuple(actions), failed=failed
        )


def clean_verdict(verdict: Verdict, layout: Layout) -> Verdict:
    """Return a verdict with finite scores and IoUs, and false positives inside the image.

    A score or IoU of NaN becomes 0.
    """
    ious = verdict.ious
    if ious is not None:
        ious = np.nan_to_num(ious, nan=0.0).clip(0, 1)
    count = len(verdict.unasked)
    false_positives = Detections(verdict.unasked, np.ones(count, np.float32), ("",) * count)
    return replace(
        verdict,
        scores=np.nan_to_num(verdict.scores, nan=0.0).clip(0, 1),
        ious=ious,
        unasked=false_positives.clip_to_image(layout.width, layout.height).boxes,
    )


def find_tightened_boxes(checked: Checked) -> dict[int, NDArray[np.float32]]:
    """Return the detections (4,) xyxy in px that can replace boxes, by the index of the box.

    Each detection is clipped to the image, and is left out if it is then too small. If a detection
    matches two boxes, it can replace only the box with the greater IoU.
    """
    ious = checked.verdict.ious
    found = checked.verdict.found
    if ious is None or found is None:
        return {}
    inside = clip_boxes(found, checked.layout.width, checked.layout.height).astype(np.float32)
    is_large_enough = box_sides(inside).min(1) >= LEAST_SIDE
    used: set[bytes] = set()
    boxes = {}
    for i in np.argsort(-ious, kind="stable").tolist():
        key = found[i].tobytes()
        if ious[i] >= TIGHTEN and is_large_enough[i] and key not in used:
            boxes[i] = inside[i]
        used.add(key)
    return boxes


def select_faults(scene: Scene, checked: Checked, least: float = 1) -> Scene:
    """Return a scene that contains only what must be generated again.

    Its boxes are the failed boxes, and a box of background in the place of each false positive.

    Args:
        scene: the scene of the image.
        checked: the image and its verdict.
        least: side in px of the smallest box that the painter accepts. A smaller false positive
            is enlarged, so that some of its surroundings are replaced too.
    """
    width = scene.layout.width
    height = scene.layout.height
    failed = scene.layout.select(np.flatnonzero(checked.failed).tolist())
    false_positives = enlarge_boxes(checked.verdict.unasked, least, (width, height))
    background = ("",) * len(false_positives)
    layout = Layout(
        width,
        height,
        np.concatenate([failed.boxes, false_positives]).astype(np.float32),
        (*failed.categories, *background),
        (*(failed.phrases or ()), *background),
    )
    return replace(scene, layout=layout)


def enlarge_boxes(
    boxes: NDArray[np.float32], least: float, size: tuple[int, int]
) -> NDArray[np.float32]:
    """Return boxes (N, 4) xyxy in px, enlarged where a side is shorter than `least` px.

    Their centres stay about the same. Enlarged boxes lie inside an image of `size` (width, height)
    px.
    """
    image_size = np.array(size, np.float32)
    is_short = box_sides(boxes) < least
    low = (box_centres(boxes) - least / 2).clip(0, (image_size - least).clip(0))
    enlarged = np.concatenate([low, np.minimum(low + least, image_size)], 1)
    return np.where(np.concatenate([is_short, is_short], 1), enlarged, boxes).astype(np.float32)


def merge_better_parts(old: Checked, new: Checked) -> NDArray[np.uint8]:
    """Return the old image (H, W, 3), in which better parts of the new image replace old parts.

    A part is better if it has fewer faults, or the same number of faults and higher scores. Changed
    parts that touch each other count as one part, because they were generated over each other.
    """
    parts, count = find_changed_parts(old.painting.image, new.painting.image)
    better = []
    for number in range(1, count + 1):
        part = parts == number
        if measure_part_cost(new, part) < measure_part_cost(old, part):
            better.append(number)
    is_better = np.isin(parts, better).repeat(BLOCK, 0).repeat(BLOCK, 1)
    height, width = old.painting.image.shape[:2]
    return np.where(is_better[:height, :width, None], new.painting.image, old.painting.image)


def find_changed_parts(
    old: NDArray[np.uint8], new: NDArray[np.uint8]
) -> tuple[NDArray[np.int32], int]:
    """Find the connected parts of an image that changed, in blocks of BLOCK x BLOCK px.

    Returns:
        For each block, the number of its part (counted from 1), or 0 if the block did not change;
        and the number of parts.
    """
    height, width = old.shape[:2]
    rows = -(-height // BLOCK)
    columns = -(-width // BLOCK)
    changed = np.zeros((rows * BLOCK, columns * BLOCK), bool)
    changed[:height, :width] = (old != new).any(2)
    blocks = changed.reshape(rows, BLOCK, columns, BLOCK).any((1, 3))
    parts, count = ndimage.label(blocks, np.ones((3, 3)))
    return parts, int(count)


def find_better_boxes(new: Checked, old: Checked) -> list[int]:
    """Return the failed boxes that pass in the new image, or fail there with a higher score."""
    better = []
    for i in np.flatnonzero(old.failed).tolist():
        has_higher_score = new.verdict.scores[i] > old.verdict.scores[i]
        if not new.failed[i] or has_higher_score:
            better.append(i)
    return better


def measure_part_cost(checked: Checked, part: NDArray[np.bool_]) -> tuple[int, float]:
    """Return the number of faults in a part (a mask of blocks), and its negative sum of scores."""
    in_part = [touches_part(box, part) for box in checked.layout.boxes]
    is_in_part = np.array(in_part, bool).reshape(-1)
    failed = int((checked.failed & is_in_part).sum())
    false_positives = sum(touches_part(box, part) for box in checked.verdict.unasked)
    return failed + false_positives, -float(checked.verdict.scores[is_in_part].sum())


def measure_image_cost(checked: Checked) -> tuple[int, float]:
    """Return the number of faults in an image, and the negative sum of scores."""
    return checked.faults, -float(checked.verdict.scores.sum())


def touches_part(box: NDArray[np.float32], part: NDArray[np.bool_]) -> bool:
    """Return whether any block of a part (a mask of blocks) overlaps a box xyxy in px."""
    x0, y0 = np.maximum(box[:2] // BLOCK, 0).astype(int)
    x1, y1 = np.ceil(box[2:] / BLOCK).astype(int)
    return bool(part[y0:y1, x0:x1].any())


def accept_repair(old: Checked, new: Checked, number: int) -> Checked:
    """Return the new image, or the old one if the new one is worse as a whole.

    This check is needed although only better parts were kept. Each part was compared while all
    parts were new, and a detector reads the whole image: it can give another result for the merged
    image.

    Args:
        old: the image before the repair.
        new: the image after the repair.
        number: number of the repair, counted from 1.
    """
    if measure_image_cost(new) > measure_image_cost(old):
        return replace(old, repairs=number)
    actions = list(old.actions)
    for i in np.flatnonzero(old.failed & ~new.failed).tolist():
        actions[i] = "repaired"
    return replace(new, actions=tuple(actions), repairs=number)
