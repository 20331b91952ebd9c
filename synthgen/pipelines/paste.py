"""Cut-outs pasted at the boxes over backgrounds.

Source: Dwibedi, Misra, Hebert, "Cut, Paste and Learn" (arXiv 1708.01642).
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from pycocotools import mask as coco_mask
from pydantic import Field

from synthgen.assets import ASSETS
from synthgen.layouts.base import Boxes, SamplerSpec
from synthgen.pipelines.backgrounds import choose_by_words, ground, words
from synthgen.pipelines.base import MethodSpec, Numerics, Painting
from synthgen.scenes.scene import Scene, SceneSpec, describe_damage, hash_pictures, pictures

ASPECT_TOLERANCE = 0.1  # of the logarithm of width / height
OPAQUE = 128  # alpha from which a pixel belongs to the object
NEAREST = 6  # cut-outs to choose from when none is within the tolerance
SHIPPED = ("train", "heldout")


class Spec(MethodSpec):
    """Cut-outs (RGBA, one subfolder a category) pasted at the boxes over backgrounds: exact labels and masks."""

    method: Literal["paste"] = "paste"
    cutouts: str = Field(
        "train",
        description="folder of cut-outs, one subfolder a category; or train | heldout: those that ship",
    )
    grounds: str = Field(
        "train", description="folder of backgrounds; or train | heldout: those that ship"
    )
    shadow: float = Field(
        0.4, ge=0, le=1, description="darkness of the shadow where an object stands"
    )

    @property
    def follows_words(self) -> bool:
        return False

    @property
    def cutout_folder(self) -> Path:
        return ASSETS / "cutouts" / self.cutouts if self.cutouts in SHIPPED else Path(self.cutouts)

    def ground_folder(self, scene: SceneSpec) -> Path:
        if scene.backgrounds is not None:
            return Path(scene.backgrounds)
        return ASSETS / "grounds" / self.grounds if self.grounds in SHIPPED else Path(self.grounds)

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        folder = self.cutout_folder
        missing = [name for name in sampler.names() if not pictures(folder / name)]
        have = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
        names = ", ".join(map(repr, missing))
        problems = (
            [f"cutouts: no cut-outs of {names} in {self.cutouts!r}; it has {have}"]
            if missing
            else []
        )
        if not pictures(self.ground_folder(scene)):
            problems.append(f"grounds: no pictures in {self.grounds!r}")
        own = {
            "cutouts": [] if self.cutouts in SHIPPED else pictures(folder),
            "grounds": []
            if self.grounds in SHIPPED or scene.backgrounds
            else pictures(Path(self.grounds)),
        }
        damage = {key: describe_damage(files) for key, files in own.items()}
        return problems + [f"{key}: {text}" for key, text in damage.items() if text]

    def fingerprint(self) -> dict[str, Any]:
        files = pictures(self.cutout_folder)
        names = "\0".join(file.relative_to(self.cutout_folder).as_posix() for file in files)
        # the first knows of each file only the folder that it is in
        return {
            "cutouts_sha256": files_hash(files),
            "cutouts_names_sha256": hashlib.sha256(names.encode()).hexdigest(),
        }

    def revision(self, sampler: SamplerSpec) -> int:
        return (
            2 if sampler.may_overlap else 1
        )  # since objects without a visible pixel have no label

    def scene_fingerprint(self, scene: SceneSpec) -> dict[str, Any]:
        return (
            {}
            if scene.backgrounds is not None
            else {"grounds_sha256": hash_pictures(self.ground_folder(scene))}
        )

    def licence(self) -> str:
        shipped = self.cutouts in SHIPPED and self.grounds in SHIPPED
        return (
            "Apache-2.0"
            if shipped
            else f"that of the cut-outs ({self.cutouts}) and backgrounds ({self.grounds})"
        )

    def load(self, scene: SceneSpec, numerics: Numerics) -> "PastePainter":
        """Read the cut-outs; this painter is in the same module, as it imports no torch."""
        return PastePainter(self.cutout_folder, self.ground_folder(scene), self.shadow)


class PastePainter:
    """Pastes cut-outs; needs no model and no GPU."""

    def __init__(self, cutouts: Path, grounds: Path, shadow: float = 0.4) -> None:
        self.cutouts = {
            p.name: [CutOut(f) for f in pictures(p)]
            for p in sorted(cutouts.iterdir())
            if p.is_dir()
        }
        self.grounds = pictures(grounds)
        self.shadow = shadow

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        return [
            self.paint(scene, np.random.default_rng(seed))
            for scene, seed in zip(scenes, seeds, strict=True)
        ]

    def paint(self, scene: Scene, rng: np.random.Generator) -> Painting:
        """One scene, painted from far to near; masks are what of each object stays visible."""
        layout = scene.layout
        canvas = ground(
            choose_by_words(self.grounds, scene.background, rng), layout.width, layout.height, rng
        )
        boxes = whole_pixels(layout.boxes, (layout.width, layout.height))
        order = np.argsort(boxes[:, 3] if layout.depth is None else -layout.depth, kind="stable")
        alphas: dict[int, NDArray[np.bool_]] = {}
        for i in order:
            cutout = choose_cutout(
                self.cutouts[layout.categories[i]], scene.phrases[i], boxes[i], rng
            )
            alphas[int(i)] = stamp(canvas, cutout, boxes[i], self.shadow)
        return Painting(
            np.array(canvas), visible_masks(boxes, alphas, order, (layout.height, layout.width))
        )


def whole_pixels(boxes: Boxes, canvas: tuple[int, int]) -> NDArray[np.int_]:
    """Round boxes (N, 4) xyxy to whole pixels of a canvas (width, height), at least 1 px wide and high."""
    low, high = np.split(np.round(boxes).astype(int), 2, axis=1)
    low = np.minimum(low, np.array(canvas) - 1)
    return np.concatenate([low, np.maximum(high, low + 1)], 1)


class CutOut:
    """One RGBA picture of an object; its aspect is read at once, its pixels when they are first needed."""

    def __init__(self, path: Path) -> None:
        self.path, self.words = path, words(path)
        with Image.open(path) as image:
            self.log_aspect = float(np.log(image.width / image.height))

    def pixels(self) -> Image.Image:
        return _load_rgba(self.path)


@lru_cache(maxsize=2048)
def _load_rgba(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert(
            "RGBa"
        )  # premultiplied: resizing must not bleed hidden colours into the edge


def choose_cutout(
    cutouts: list[CutOut], phrase: str, box: NDArray[np.int_], rng: np.random.Generator
) -> Image.Image:
    """A cut-out that fits the phrase and the box's aspect, at the box's size, mirrored half of the time."""
    asked = set(phrase.lower().split())
    score = [len(c.words & asked) - 0.1 * len(c.words - asked) for c in cutouts]
    best = max(score)
    named = [c for c, s in zip(cutouts, score, strict=True) if s == best] if best > 0 else cutouts
    w, h = int(box[2] - box[0]), int(box[3] - box[1])
    log_aspect = float(np.log(w / h))
    named = sorted(named, key=lambda c: abs(c.log_aspect - log_aspect))
    near = sum(abs(c.log_aspect - log_aspect) < ASPECT_TOLERANCE for c in named)
    picked = named[int(rng.integers(max(near, min(NEAREST, len(named)))))].pixels()
    if rng.random() < 0.5:
        picked = picked.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return fit(picked, w, h).convert("RGBA")


def fit(cutout: Image.Image, w: int, h: int) -> Image.Image:
    """A cut-out (RGBa) at (w, h) whose mask touches all four sides.

    Resizing fades thin tails and ears below half opacity; then it is drawn that much larger and cropped.
    """
    image = _resize(cutout, w, h)
    x0, y0, x1, y1 = _mask_box(image)
    if x1 == x0:
        return _shown(image)
    if (x1 - x0, y1 - y0) == (w, h):
        return image
    image = _resize(cutout, -(-w * w // (x1 - x0)), -(-h * h // (y1 - y0)))
    x0, y0, x1, y1 = _mask_box(image)
    left = min(max((x0 + x1 - w) // 2, 0), image.width - w)
    top = min(max((y0 + y1 - h) // 2, 0), image.height - h)
    return image.crop((left, top, left + w, top + h))


def _resize(cutout: Image.Image, w: int, h: int) -> Image.Image:
    return cutout.resize(
        (w, h), Image.Resampling.BOX if w * 2 < cutout.width else Image.Resampling.BICUBIC
    )


def _shown(cutout: Image.Image) -> Image.Image:
    """Make the most opaque pixels of a cut-out (RGBa) opaque: of 1 or 2 px it would be a label of nothing."""
    pixels = np.array(cutout.convert("RGBA"))
    pixels[pixels[..., 3] == pixels[..., 3].max(), 3] = 255
    return Image.fromarray(pixels).convert("RGBa")


def _mask_box(cutout: Image.Image) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of what is at least half opaque."""
    return cutout.getchannel("a").point(lambda a: 255 * (a >= OPAQUE)).getbbox() or (0, 0, 0, 0)


def stamp(
    canvas: Image.Image, cutout: Image.Image, box: NDArray[np.int_], shadow: float
) -> NDArray[np.bool_]:
    """Paste a cut-out of the box's size, over the shadow it casts on the ground; returns its mask (h, w)."""
    if shadow > 0:
        cast_shadow(canvas, box, shadow)
    canvas.paste(cutout, (int(box[0]), int(box[1])), cutout)
    return np.asarray(cutout)[..., 3] >= OPAQUE


def cast_shadow(canvas: Image.Image, box: NDArray[np.int_], darkness: float) -> None:
    """Darken a soft ellipse at the foot of the box."""
    x0, y0, x1, y1 = (int(v) for v in box)
    w, h = x1 - x0, y1 - y0
    yy, xx = np.mgrid[0:h, 0:w]
    r = ((xx - w / 2) / (0.5 * w)) ** 2 + ((yy - 0.93 * h) / (0.16 * h)) ** 2
    alpha = Image.fromarray((np.clip(1.2 - r, 0, 1) * darkness * 255).astype(np.uint8))
    canvas.paste((0, 0, 0), (x0, y0), alpha.filter(ImageFilter.GaussianBlur(max(1.0, h / 40))))


def visible_masks(
    boxes: NDArray[np.int_],
    alphas: dict[int, NDArray[np.bool_]],
    order: NDArray[np.intp],
    size: tuple[int, int],
) -> tuple[dict[str, Any], ...]:
    """Run-length encodings of what stays visible of each object when they are painted in `order`."""
    owner = np.full(size, -1, np.int32)
    for i in order:
        x0, y0, x1, y1 = boxes[i]
        owner[y0:y1, x0:x1][alphas[int(i)]] = i
    return tuple(encode_mask(owner, i, boxes[i]) for i in range(len(boxes)))


def encode_mask(owner: NDArray[np.int32], i: int, box: NDArray[np.int_]) -> dict[str, Any]:
    """COCO run-length encoding of `owner == i`, which is all inside the box."""
    mask = np.zeros(owner.shape, np.uint8, order="F")
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = owner[y0:y1, x0:x1] == i
    rle = coco_mask.encode(mask)
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode("ascii")}


def files_hash(files: list[Path]) -> str:
    """sha256 over the names and bytes of files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.parent.name}/{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()
