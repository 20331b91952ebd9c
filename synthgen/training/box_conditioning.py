"""Training of UNets that are told of boxes: windows of scenes with the boxes in them, as the pipelines cut them."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from synthgen.geometry import clip_boxes, shares_inside
from synthgen.layouts.base import HELD, Layout
from synthgen.layouts.scatter import Spec as ScatterSpec
from synthgen.pipelines.diffusion.models import find_checkpoint, unet_multiple
from synthgen.pipelines.diffusion.pipeline import LatentPipeline, read_pipeline
from synthgen.randomness import Stream, seed_sequence
from synthgen.scenes.scene import Scene, SceneSpec, caption
from synthgen.training.box_conditioning_spec import BoxedSpec
from synthgen.training.dataset_scenes import Least
from synthgen.training.windows import EncodedScene, WindowTrainee

SHEET_SCENES = SceneSpec(
    object=("a brown {category}", "a white {category}", "a black {category}"),
    background="a field of grass",
)


@dataclass(frozen=True)
class BoxedWindow:
    """A window of a scene.

    Attributes:
        scene: that it is of.
        window: x0, y0, x1, y1 in latent cells of the scene.
        layout: boxes of which it holds at least half, clipped, in px of the window; with phrases.
        caption: that the UNet reads.
        told: whether the UNet is told of the boxes.
    """

    scene: EncodedScene
    window: tuple[int, int, int, int]
    layout: Layout
    caption: str
    told: bool

    def of(self, latents: Tensor) -> Tensor:
        """The window of the scene's (C, H, W)."""
        x0, y0, x1, y1 = self.window
        return latents[:, y0:y1, x0:x1]

    @property
    def told_of(self) -> Layout:
        """The boxes that the UNet is told of."""
        return self.layout if self.told else self.layout.select([])


@dataclass(frozen=True)
class Noised:
    """Latents (B, C, h, w) of windows, and the noise (B, C, h, w) and timesteps (B,) that they get."""

    x: Tensor
    noise: Tensor
    t: Tensor

    def to(self, device: torch.device) -> "Noised":
        return Noised(self.x.to(device), self.noise.to(device), self.t.to(device))


class BoxedTrainee(WindowTrainee):
    """A checkpoint whose UNet learns to put objects into boxes; a task fills in how it is told of them.

    Args:
        kind: the pipeline that paints with the result.
        options: what it is called with for the sheet.
    """

    spec: BoxedSpec

    def __init__(
        self, spec: BoxedSpec, kind: type[LatentPipeline], options: dict[str, Any]
    ) -> None:
        pipeline: Any = read_pipeline(kind, find_checkpoint(spec.init), torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        super().__init__(
            spec,
            pipeline.unet,
            pipeline.text_encoder,
            pipeline.tokenizer,
            pipeline.vae,
            pipeline.scheduler,
        )
        self.options = options
        self.painter = [pipeline]  # in a list: its parts are registered already

    @property
    def least(self) -> Least:
        """The largest window, which each image must hold."""
        return Least(self.spec.windows[1], "the greatest of windows")

    def windows(self, scenes: list[EncodedScene], rng: np.random.Generator) -> list[BoxedWindow]:
        """A batch of windows of one random size, anywhere."""
        filled = [s for s in scenes if len(s.scene.layout)] or scenes
        multiple = unet_multiple(self.unet.config)
        low, high = (side // self.factor // multiple for side in self.spec.windows)
        h, w = (int(v) * multiple for v in rng.integers(low, high + 1, 2))
        return [
            self.window(filled[int(rng.integers(len(filled)))], h, w, rng)
            for _ in range(self.batch_size(h, w))
        ]

    def window(self, scene: EncodedScene, h: int, w: int, rng: np.random.Generator) -> BoxedWindow:
        """A window of h x w cells in a scene; of the boxes that it holds, a random choice if they are too many."""
        y, x = self.corner(scene, h, w, rng, self.spec.at_boxes)
        inside = np.flatnonzero(shares_inside(scene.boxes, [(x, y, x + w, y + h)])[:, 0] >= HELD)
        inside = np.sort(rng.permutation(inside)[: self.spec.max_boxes])
        boxes = clip_boxes(scene.boxes[inside] - [x, y, x, y], w, h) * self.factor
        own = scene.scene.layout.select(inside.tolist())
        layout = Layout(
            w * self.factor, h * self.factor, boxes.astype(np.float32), own.categories, own.phrases
        )
        words, kind = caption(layout, scene.scene.background, self.spec.caption), rng.random()
        if kind < self.spec.prompt_dropout:
            words = ""
        elif rng.random() < self.spec.names_dropout:
            words = scene.scene.background
        return BoxedWindow(
            scene, (x, y, x + w, y + h), layout, words, rng.random() >= self.spec.boxes_dropout
        )

    def corner(
        self, scene: EncodedScene, h: int, w: int, rng: np.random.Generator, at_boxes: float
    ) -> tuple[int, int]:
        """Where a window begins, y and x in cells: anywhere, or with this probability so that it holds a random box's centre."""
        least, most = np.zeros(2), np.maximum(0, np.array(scene.latents.shape[1:]) - (h, w))
        if at_boxes and len(scene.boxes) and rng.random() < at_boxes:
            x0, y0, x1, y1 = scene.boxes[rng.integers(len(scene.boxes))]
            centre = np.array([y0 + y1, x0 + x1]) / 2
            least, most = (np.clip(edge, 0, most).round() for edge in (centre - (h, w), centre))
        y, x = (int(v) for v in rng.integers(least.astype(int), most.astype(int) + 1))
        return y, x

    def noised(self, windows: Sequence[BoxedWindow], rng: np.random.Generator) -> Noised:
        """Their latents with the noise they get: mostly much, since there boxes decide what is painted."""
        x = torch.stack([w.of(w.scene.latents) for w in windows]).float()
        t = torch.from_numpy((1000 * rng.random(len(windows)) ** self.spec.noisy).astype(np.int64))
        return Noised(x, torch.from_numpy(rng.standard_normal(tuple(x.shape), np.float32)), t)

    def measure(self) -> dict[str, float]:
        """The loss of windows of held-out scenes, and the same if they are not told of their boxes."""
        batches = list(self.held_out())
        told, untold = (
            float(np.mean([float(self(b)) for b in of]))
            for of in (batches, map(self.untold, batches))
        )
        return {"heldout_loss": round(told, 5), "heldout_loss_without_boxes": round(untold, 5)}

    @abstractmethod
    def untold(self, batch: Any) -> Any:
        """The same batch without its boxes."""

    def sheet(self) -> Image.Image:
        """Four layouts painted by the pipeline, without and with their boxes drawn."""
        side = min(256, self.spec.windows[1])
        scenes = sheet_scenes(side)
        pipeline = self.painter[0]
        pipeline.vae.to(self.unet.device)
        images = pipeline(
            [s.layout for s in scenes],
            background=[s.background for s in scenes],
            generator=[torch.Generator().manual_seed(i) for i in range(len(scenes))],
            **{
                "num_inference_steps": 12,
                "guidance_scale": 2.5,
                "caption": self.spec.caption,
                **self.options,
            },
        )
        sheet = Image.new("RGB", (side * len(scenes), 2 * side))
        for i, (image, scene) in enumerate(zip(images, scenes, strict=True)):
            sheet.paste(image, (i * side, 0))
            draw = ImageDraw.Draw(image)
            for box in scene.layout.boxes.tolist():
                draw.rectangle(box, outline="red")
            sheet.paste(image, (i * side, side))
        return sheet


def padded_boxes(layouts: Sequence[Layout], most: int) -> tuple[Tensor, Tensor]:
    """Boxes (B, most, 4) as shares of their windows, and a mask (B, most), 1 where there is a box."""
    boxes, mask = torch.zeros(len(layouts), most, 4), torch.zeros(len(layouts), most)
    for i, own in enumerate(layouts):
        boxes[i, : len(own)] = torch.from_numpy(
            own.boxes / np.array([own.width, own.height] * 2, np.float32)
        )
        mask[i, : len(own)] = 1
    return boxes, mask


def sheet_scenes(side: int) -> list[Scene]:
    """One to four dogs on a canvas of `side` px."""
    size = (0.3 * side, 0.4 * side)
    specs = [
        ScatterSpec(canvas=(side, side), objects={"dog": n}, size=size, gap=2) for n in (1, 2, 3, 4)
    ]
    rngs = [np.random.default_rng(seed_sequence(0, i, Stream.SHEET)) for i in range(len(specs))]
    return [SHEET_SCENES.draw(spec.sample(rng), rng) for spec, rng in zip(specs, rngs, strict=True)]
