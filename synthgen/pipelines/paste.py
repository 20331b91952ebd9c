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
from synthgen.pipelines.backgrounds import (
    choose_by_words,
    crop_background,
    read_words,
    score_words,
)
from synthgen.pipelines.base import MethodSpec, Numerics, Painting
from synthgen.scenes.scene import Scene, SceneSpec, describe_damage, hash_images, list_image_files

ASPECT_TOLERANCE = 0.1  # tolerance of the logarithm of width / height
OPAQUE = 128  # alpha from which a pixel belongs to the object
NEAREST = 6  # cut-outs to choose from when none is within the tolerance
SHIPPED = ("train", "heldout")


class Spec(MethodSpec):
    """Paste cut-outs (RGBA) at the boxes over backgrounds, with exact labels and masks."""

    method: Literal["paste"] = "paste"
    cutouts: str = Field(
        "train",
        description="Folder of cut-outs, one subfolder for each category; "
        "or `train` or `heldout`, which ship with synthgen.",
    )
    grounds: str = Field(
        "train",
        description="Folder of backgrounds; or `train` or `heldout`, which ship with synthgen.",
    )
    shadow: float = Field(
        0.4, ge=0, le=1, description="Darkness of the shadow at the foot of each object."
    )

    @property
    def follows_background_prompt(self) -> bool:
        return False

    @property
    def cutout_folder(self) -> Path:
        if self.cutouts in SHIPPED:
            return ASSETS / "cutouts" / self.cutouts
        return Path(self.cutouts)

    def ground_folder(self, scene: SceneSpec) -> Path:
        if scene.backgrounds is not None:
            return Path(scene.backgrounds)
        if self.grounds in SHIPPED:
            return ASSETS / "grounds" / self.grounds
        return Path(self.grounds)

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        problems = []
        missing = [
            name for name in sampler.names() if not list_image_files(self.cutout_folder / name)
        ]
        if missing:
            names = ", ".join(map(repr, missing))
            available = []
            if self.cutout_folder.is_dir():
                available = sorted(path.name for path in list_subfolders(self.cutout_folder))
            problems.append(
                f"cutouts: no cut-outs of {names} in {self.cutouts!r}; it has {available}"
            )
        if not list_image_files(self.ground_folder(scene)):
            problems.append(f"grounds: no images in {self.grounds!r}")
        for key, files in self.user_files(scene).items():
            damage = describe_damage(files)
            if damage:
                problems.append(f"{key}: {damage}")
        return problems

    def user_files(self, scene: SceneSpec) -> dict[str, list[Path]]:
        """Return the image files, by key of the recipe, that do not ship with synthgen."""
        files = {}
        if self.cutouts not in SHIPPED:
            files["cutouts"] = list_image_files(self.cutout_folder)
        if self.grounds not in SHIPPED and not scene.backgrounds:
            files["grounds"] = list_image_files(Path(self.grounds))
        return files

    def fingerprint(self) -> dict[str, Any]:
        files = list_image_files(self.cutout_folder)
        names = "\0".join(file.relative_to(self.cutout_folder).as_posix() for file in files)
        # The first hash contains each file's folder, but not the path to that folder.
        return {
            "cutouts_sha256": hash_files(files),
            "cutouts_names_sha256": hashlib.sha256(names.encode()).hexdigest(),
        }

    def method_revision(self, sampler: SamplerSpec) -> int:
        # Revision 2 gives no label to objects without a visible pixel.
        return 2 if sampler.may_overlap else 1

    def scene_fingerprint(self, scene: SceneSpec) -> dict[str, Any]:
        if scene.backgrounds is not None:
            return {}
        return {"grounds_sha256": hash_images(self.ground_folder(scene))}

    def licence(self) -> str:
        if self.cutouts in SHIPPED and self.grounds in SHIPPED:
            return "Apache-2.0"
        return f"that of the cut-outs ({self.cutouts}) and backgrounds ({self.grounds})"

    def load(self, scene: SceneSpec, numerics: Numerics) -> "PastePainter":
        """Read the cut-outs. The painter is in this module, because it does not import torch."""
        return PastePainter(self.cutout_folder, self.ground_folder(scene), self.shadow)


class PastePainter:
    """A painter that pastes cut-outs. It needs neither a model nor a GPU."""

    def __init__(self, cutouts: Path, grounds: Path, shadow: float = 0.4) -> None:
        self.cutouts: dict[str, list[CutOut]] = {}
        for folder in sorted(list_subfolders(cutouts)):
            self.cutouts[folder.name] = [CutOut(file) for file in list_image_files(folder)]
        self.grounds = list_image_files(grounds)
        self.shadow = shadow

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        paintings = []
        for scene, seed in zip(scenes, seeds, strict=True):
            paintings.append(self.paint(scene, np.random.default_rng(seed)))
        return paintings

    def paint(self, scene: Scene, rng: np.random.Generator) -> Painting:
        """Paste the objects of one scene from far to near.

        The masks contain the visible part of each object.
        """
        layout = scene.layout
        background = choose_by_words(self.grounds, scene.background, rng)
        canvas = crop_background(background, layout.width, layout.height, rng)
        boxes = round_to_pixels(layout.boxes, (layout.width, layout.height))
        order = np.argsort(boxes[:, 3] if layout.depth is None else -layout.depth, kind="stable")
        opaque: dict[int, NDArray[np.bool_]] = {}
        for i in order:
            candidates = self.cutouts[layout.categories[i]]
            cutout = choose_cutout(candidates, scene.phrases[i], boxes[i], rng)
            opaque[int(i)] = paste_object(canvas, cutout, boxes[i], self.shadow)
        masks = encode_visible_masks(boxes, opaque, order, (layout.height, layout.width))
        return Painting(np.array(canvas), masks)


def list_subfolders(folder: Path) -> list[Path]:
    """Return the folders inside a folder."""
    return [path for path in folder.iterdir() if path.is_dir()]


def round_to_pixels(boxes: Boxes, canvas: tuple[int, int]) -> NDArray[np.int_]:
    """Round boxes (N, 4) xyxy to whole pixels of a canvas (width, height).

    The rounded boxes are at least 1 px wide and high.
    """
    low, high = np.split(np.round(boxes).astype(int), 2, axis=1)
    low = np.minimum(low, np.array(canvas) - 1)
    return np.concatenate([low, np.maximum(high, low + 1)], 1)


class CutOut:
    """An RGBA image of one object.

    Its aspect ratio is read when it is created, its pixels when they are first used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.words = read_words(path)
        with Image.open(path) as image:
            self.log_aspect = float(np.log(image.width / image.height))

    def pixels(self) -> Image.Image:
        """Return the image with premultiplied alpha (RGBa)."""
        return _load_rgba(self.path)


@lru_cache(maxsize=2048)
def _load_rgba(path: Path) -> Image.Image:
    with Image.open(path) as image:
        # Alpha is premultiplied so that resizing does not mix hidden colours into the edges.
        return image.convert("RGBa")


def choose_cutout(
    cutouts: list[CutOut], phrase: str, box: NDArray[np.int_], rng: np.random.Generator
) -> Image.Image:
    """Sample a cut-out that suits the phrase and the aspect ratio of a box.

    Returns:
        The cut-out (RGBA) at the size of the box, mirrored in half of the cases.
    """
    phrase_words = set(phrase.lower().split())
    scores = [score_words(cutout.words, phrase_words) for cutout in cutouts]
    highest = max(scores)
    candidates = cutouts
    if highest > 0:
        pairs = zip(cutouts, scores, strict=True)
        candidates = [cutout for cutout, score in pairs if score == highest]
    width = int(box[2] - box[0])
    height = int(box[3] - box[1])
    log_aspect = float(np.log(width / height))

    def aspect_difference(cutout: CutOut) -> float:
        return abs(cutout.log_aspect - log_aspect)

    candidates = sorted(candidates, key=aspect_difference)
    near = sum(aspect_difference(cutout) < ASPECT_TOLERANCE for cutout in candidates)
    count = max(near, min(NEAREST, len(candidates)))
    chosen = candidates[int(rng.integers(count))].pixels()
    if rng.random() < 0.5:
        chosen = chosen.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return fit_to_size(chosen, width, height).convert("RGBA")


def fit_to_size(cutout: Image.Image, width: int, height: int) -> Image.Image:
    """Resize a cut-out (RGBa) to width x height px so that its mask touches all four sides.

    Resizing can reduce the opacity of thin tails and ears below one half. The cut-out is then
    resized to a larger size and cropped.
    """
    image = _resize(cutout, width, height)
    x0, y0, x1, y1 = _opaque_box(image)
    if x1 == x0:
        return _make_opaque(image)
    if (x1 - x0, y1 - y0) == (width, height):
        return image
    larger_width = -(-width * width // (x1 - x0))
    larger_height = -(-height * height // (y1 - y0))
    image = _resize(cutout, larger_width, larger_height)
    x0, y0, x1, y1 = _opaque_box(image)
    left = min(max((x0 + x1 - width) // 2, 0), image.width - width)
    top = min(max((y0 + y1 - height) // 2, 0), image.height - height)
    return image.crop((left, top, left + width, top + height))


def _resize(cutout: Image.Image, width: int, height: int) -> Image.Image:
    is_much_smaller = width * 2 < cutout.width
    resampling = Image.Resampling.BOX if is_much_smaller else Image.Resampling.BICUBIC
    return cutout.resize((width, height), resampling)


def _make_opaque(cutout: Image.Image) -> Image.Image:
    """Make the most opaque pixels of a cut-out (RGBa) fully opaque.

    Otherwise an object of 1 or 2 px would have a label but no visible pixel.
    """
    pixels = np.array(cutout.convert("RGBA"))
    pixels[pixels[..., 3] == pixels[..., 3].max(), 3] = 255
    return Image.fromarray(pixels).convert("RGBa")


def _opaque_box(cutout: Image.Image) -> tuple[int, int, int, int]:
    """Return the box x0, y0, x1, y1 of the pixels that are at least half opaque."""
    mask = cutout.getchannel("a").point(lambda alpha: 255 * (alpha >= OPAQUE))
    return mask.getbbox() or (0, 0, 0, 0)


def paste_object(
    canvas: Image.Image, cutout: Image.Image, box: NDArray[np.int_], shadow: float
) -> NDArray[np.bool_]:
    """Paste a cut-out of the box's size over its shadow, and return its mask (h, w)."""
    if shadow > 0:
        cast_shadow(canvas, box, shadow)
    canvas.paste(cutout, (int(box[0]), int(box[1])), cutout)
    return np.asarray(cutout)[..., 3] >= OPAQUE


def cast_shadow(canvas: Image.Image, box: NDArray[np.int_], darkness: float) -> None:
    """Darken a soft ellipse at the foot of the box."""
    x0, y0, x1, y1 = box.tolist()
    w = x1 - x0
    h = y1 - y0
    yy, xx = np.mgrid[0:h, 0:w]
    r = ((xx - w / 2) / (0.5 * w)) ** 2 + ((yy - 0.93 * h) / (0.16 * h)) ** 2
    alpha = Image.fromarray((np.clip(1.2 - r, 0, 1) * darkness * 255).astype(np.uint8))
    blurred = alpha.filter(ImageFilter.GaussianBlur(max(1.0, h / 40)))
    canvas.paste((0, 0, 0), (x0, y0), blurred)


def encode_visible_masks(
    boxes: NDArray[np.int_],
    opaque: dict[int, NDArray[np.bool_]],
    order: NDArray[np.intp],
    size: tuple[int, int],
) -> tuple[dict[str, Any], ...]:
    """Return run-length encodings of the visible part of each object.

    Args:
        boxes: (N, 4) xyxy in whole px.
        opaque: the mask (h, w) of each object in its box, by its index.
        order: (N,) indices in the order in which the objects are pasted.
        size: height, width of the canvas in px.
    """
    owner = np.full(size, -1, np.int32)
    for i in order:
        x0, y0, x1, y1 = boxes[i]
        owner[y0:y1, x0:x1][opaque[int(i)]] = i
    return tuple(encode_mask(owner, i, boxes[i]) for i in range(len(boxes)))


def encode_mask(owner: NDArray[np.int32], i: int, box: NDArray[np.int_]) -> dict[str, Any]:
    """Return the COCO run-length encoding of `owner == i`, all of which lies inside the box."""
    mask = np.zeros(owner.shape, np.uint8, order="F")
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = owner[y0:y1, x0:x1] == i
    rle = coco_mask.encode(mask)
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode("ascii")}


def hash_files(files: list[Path]) -> str:
    """Return the sha256 of the folder names, file names and bytes of files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.parent.name}/{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()
