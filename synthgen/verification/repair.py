"""What happens to boxes that do not hold: painted again, tightened to what is there, or kept with their score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthgen.geometry import box_centres, box_sides, clip_boxes
from synthgen.layouts.base import Layout
from synthgen.pipelines.base import Painting
from synthgen.scenes.scene import Scene
from synthgen.verification.base import TIGHTEN, Verdict, Verifier, VerifierSpec
from synthgen.verification.detections import LEAST_SIDE, Detections

BLOCK = 8  # px, side of the squares in which it is told what changed

Seeds = Callable[[int, int], np.random.SeedSequence]
"""Number in the batch and number of the repair to the randomness of that repair."""


@dataclass(frozen=True)
class Checked:
    """A painted scene, looked at.

    Attributes:
        layout: as it is labelled: boxes may have been tightened.
        failed: (N,) boxes that do not hold in the end.
        actions: N, what was done to each box: "", "repaired", "tightened" or "flagged".
        repairs: how often windows were painted again.
    """

    painting: Painting
    layout: Layout
    verdict: Verdict
    failed: NDArray[np.bool_]
    actions: tuple[str, ...] = ()
    repairs: int = 0

    @property
    def faults(self) -> int:
        """Boxes that do not hold, and objects that nobody asked for."""
        return int(self.failed.sum()) + len(self.verdict.unasked)

    def annotation(self, i: int) -> dict[str, Any]:
        """What the annotation of box i says of it."""
        ious = self.verdict.ious
        found = {} if ious is None else {"iou": round(float(ious[i]), 4)}
        return {
            "score": round(float(self.verdict.scores[i]), 4),
            **found,
            "action": self.actions[i],
        }

    def record(self) -> dict[str, int]:
        """What the sample says of the picture."""
        return {
            "failed": int(self.failed.sum()),
            "unasked": len(self.verdict.unasked),
            "repairs": self.repairs,
        }


@dataclass(frozen=True)
class Inspection:
    """Looks at batches and does what the recipe says."""

    spec: VerifierSpec
    verifier: Verifier
    painter: Any

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is done about failures."""
        return self.spec.on_failure

    def __call__(
        self, scenes: Sequence[Scene], paintings: Sequence[Painting], seeds: Seeds
    ) -> list[Checked]:
        """Look at a batch, and paint again what does not hold."""
        checked = self.look(paintings, [scene.layout for scene in scenes])
        if "repair" not in self.kinds or not hasattr(self.painter, "repaint"):
            return checked
        for number in range(1, self.spec.max_repairs + 1):
            todo = [k for k, c in enumerate(checked) if c.faults]
            if not todo:
                break
            least = getattr(self.painter, "least_side", 1)
            parts = [faulty(scenes[k], checked[k], least) for k in todo]
            images = self.painter.repaint(
                [checked[k].painting.image for k in todo], parts, [seeds(k, number) for k in todo]
            )
            layouts = [scenes[k].layout for k in todo]
            again = self.look([Painting(image) for image in images], layouts)
            best = [
                replace(new.painting, image=better(checked[k], new))
                for k, new in zip(todo, again, strict=True)
            ]
            for k, final in zip(todo, self.look(best, layouts), strict=True):
                checked[k] = repaired(checked[k], final, number)
        return checked

    def look(self, paintings: Sequence[Painting], layouts: Sequence[Layout]) -> list[Checked]:
        """Verdicts, nothing done about them."""
        verdicts = self.verifier([p.image for p in paintings], layouts)
        looked = []
        for painting, layout, raw in zip(paintings, layouts, verdicts, strict=True):
            verdict = sound(raw, layout)
            looked.append(
                Checked(
                    painting, layout, verdict, self.spec.fails(verdict, layout), ("",) * len(layout)
                )
            )
        return looked

    def finish(self, checked: Checked) -> Checked:
        """Tighten what can be, flag the rest."""
        layout = checked.layout
        boxes, actions, failed = layout.boxes.copy(), list(checked.actions), checked.failed.copy()
        near = tight(checked) if "tighten" in self.kinds else {}
        for i in np.flatnonzero(checked.failed).tolist():
            enough = checked.verdict.scores[i] >= self.spec.least(layout.categories[i])
            if enough and i in near:
                boxes[i], actions[i], failed[i] = near[i], "tightened", False
            else:
                actions[i] = "flagged"
        return replace(
            checked, layout=replace(layout, boxes=boxes), actions=tuple(actions), failed=failed
        )


def sound(verdict: Verdict, layout: Layout) -> Verdict:
    """Return a verdict without anything that is no number: such a score, or IoU, is 0, and no box stands outside the image."""
    none = Detections(
        verdict.unasked, np.ones(len(verdict.unasked), np.float32), ("",) * len(verdict.unasked)
    )
    return replace(
        verdict,
        scores=np.nan_to_num(verdict.scores, nan=0.0).clip(0, 1),
        ious=None if verdict.ious is None else np.nan_to_num(verdict.ious, nan=0.0).clip(0, 1),
        unasked=none.inside(layout.width, layout.height).boxes,
    )


def tight(checked: Checked) -> dict[int, NDArray[np.float32]]:
    """Return the boxes (4,) xyxy in px that may become labels, by the number of the box that they were found for.

    Each is inside the image and has an area. What was found for two boxes is the object of the one that it fits best.
    """
    ious, found, layout = checked.verdict.ious, checked.verdict.found, checked.layout
    if ious is None or found is None:
        return {}
    inside = clip_boxes(found, layout.width, layout.height).astype(np.float32)
    large = box_sides(inside).min(1) >= LEAST_SIDE
    taken: set[bytes] = set()
    boxes = {}
    for i in np.argsort(-ious, kind="stable").tolist():
        key = found[i].tobytes()
        if ious[i] >= TIGHTEN and large[i] and key not in taken:
            boxes[i] = inside[i]
        taken.add(key)
    return boxes


def faulty(scene: Scene, checked: Checked, least: float = 1) -> Scene:
    """What is to be painted again: the boxes that do not hold, and background where nobody asked for anything.

    Args:
        least: side in px of the smallest box that the painter takes; a smaller object is painted over with some
            of what is round it.
    """
    failed = scene.layout.select(np.flatnonzero(checked.failed).tolist())
    extra = enlarged(checked.verdict.unasked, least, (scene.layout.width, scene.layout.height))
    layout = Layout(
        scene.layout.width,
        scene.layout.height,
        np.concatenate([failed.boxes, extra]).astype(np.float32),
        (*failed.categories, *("",) * len(extra)),
        (*(failed.phrases or ()), *("",) * len(extra)),
    )
    return replace(scene, layout=layout)


def enlarged(
    boxes: NDArray[np.float32], least: float, size: tuple[int, int]
) -> NDArray[np.float32]:
    """Return boxes (N, 4) xyxy in px with sides of at least `least` px, about the same centres, inside width x height px."""
    room = np.array(size, np.float32)
    short = box_sides(boxes) < least
    low = (box_centres(boxes) - least / 2).clip(0, (room - least).clip(0))
    grown = np.concatenate([low, np.minimum(low + least, room)], 1)
    return np.where(np.concatenate([short, short], 1), grown, boxes).astype(np.float32)


def better(old: Checked, new: Checked) -> NDArray[np.uint8]:
    """The picture (H, W, 3) with each part that was painted again as it has fewer faults; scores decide between equals.

    Parts that touch are one: they were painted over each other.
    """
    parts, count = parts_of(old.painting.image, new.painting.image)
    accepted = [
        part for part in range(1, count + 1) if cost(new, parts == part) < cost(old, parts == part)
    ]
    chosen = np.isin(parts, accepted).repeat(BLOCK, 0).repeat(BLOCK, 1)
    height, width = old.painting.image.shape[:2]
    return np.where(chosen[:height, :width, None], new.painting.image, old.painting.image)


def parts_of(old: NDArray[np.uint8], new: NDArray[np.uint8]) -> tuple[NDArray[np.int32], int]:
    """Number of the changed part, from 1, that each block of BLOCK x BLOCK px belongs to, 0 where nothing changed; how many."""
    height, width = (-(-n // BLOCK) * BLOCK for n in old.shape[:2])
    changed = np.zeros((height, width), bool)
    changed[: old.shape[0], : old.shape[1]] = (old != new).any(2)
    blocks = changed.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK).any((1, 3))
    parts, count = ndimage.label(blocks, np.ones((3, 3)))
    return parts, int(count)


def cost(checked: Checked, part: NDArray[np.bool_]) -> tuple[int, float]:
    """Faults of boxes and of objects that nobody asked for in a part, given in blocks, and the scores' negative sum."""
    boxes = np.array([touches(box, part) for box in checked.layout.boxes], bool).reshape(-1)
    unasked = sum(touches(box, part) for box in checked.verdict.unasked)
    return int((checked.failed & boxes).sum()) + unasked, -float(
        checked.verdict.scores[boxes].sum()
    )


def total(checked: Checked) -> tuple[int, float]:
    """Faults of a whole picture, and the scores' negative sum."""
    return checked.faults, -float(checked.verdict.scores.sum())


def touches(box: NDArray[np.float32], part: NDArray[np.bool_]) -> bool:
    """Whether a box xyxy in px lies in a part, given in blocks, if only with a corner."""
    x0, y0 = (max(0, int(v // BLOCK)) for v in box[:2])
    x1, y1 = (int(-(-v // BLOCK)) for v in box[2:])
    return bool(part[y0:y1, x0:x1].any())


def repaired(old: Checked, final: Checked, number: int) -> Checked:
    """A picture after a repair, as it was before if that made it worse as a whole; number: of the repair.

    A part is judged by what was seen when all parts were new, and a detector looks at the whole image.
    """
    if total(final) > total(old):
        return replace(old, repairs=number)
    fixed = old.failed & ~final.failed
    actions = tuple("repaired" if f else a for f, a in zip(fixed, old.actions, strict=True))
    return replace(final, actions=actions, repairs=number)
