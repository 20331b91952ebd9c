"""Training of box-conditioned UNets, on windows of scenes and the boxes in them."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from synthgen.geometry import clip_boxes, shares_inside
from synthgen.layouts.base import MIN_SHARE_INSIDE, Layout
from synthgen.layouts.scatter import Spec as ScatterSpec
from synthgen.pipelines.diffusion.pipeline import LatentPipeline, read_pipeline
from synthgen.pipelines.diffusion.sizes import compute_unet_multiple
from synthgen.pipelines.diffusion.sources import find_checkpoint
from synthgen.randomness import Stream, seed_sequence
from synthgen.scenes.scene import Scene, SceneSpec, build_caption
from synthgen.training.box_conditioning_spec import BoxConditioningSpec
from synthgen.training.dataset_scenes import MinimumSize
from synthgen.training.windows import EncodedScene, WindowTrainee

SHEET_SCENES = SceneSpec(
    object=("a brown {category}", "a white {category}", "a black {category}"),
    background="a field of grass",
)


@dataclass(frozen=True)
class BoxWindow:
    """A window of a scene, with boxes.

    Attributes:
        scene: the scene.
        corners: x0, y0, x1, y1 of the window in latent cells of the scene.
        layout: the boxes with at least half of their area in the window, clipped, in px of the
            window; with phrases.
        caption: the prompt that the UNet is given.
        has_boxes: whether the UNet is given the boxes.
    """

    scene: EncodedScene
    corners: tuple[int, int, int, int]
    layout: Layout
    caption: str
    has_boxes: bool

    def crop(self, latents: Tensor) -> Tensor:
        """Return the window of latents (C, H, W) of the scene."""
        x0, y0, x1, y1 = self.corners
        return latents[:, y0:y1, x0:x1]

    @property
    def given_layout(self) -> Layout:
        """The boxes that the UNet is given."""
        return self.layout if self.has_boxes else self.layout.select([])


@dataclass(frozen=True)
class NoisyLatents:
    """Latents (B, C, h, w) of windows, and the noise (B, C, h, w) and timesteps (B,) for them."""

    x: Tensor
    noise: Tensor
    t: Tensor

    def to(self, device: torch.device) -> "NoisyLatents":
        return NoisyLatents(self.x.to(device), self.noise.to(device), self.t.to(device))


class BoxConditioningTrainee(WindowTrainee):
    """A checkpoint whose UNet learns to place objects in boxes.

    A task defines in which form the UNet is given the boxes.

    Args:
        kind: the pipeline that generates images with the result.
        options: the arguments of the pipeline for the sample sheet.
    """

    spec: BoxConditioningSpec

    def __init__(
        self, spec: BoxConditioningSpec, kind: type[LatentPipeline], options: dict[str, Any]
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
        self.pipeline = [pipeline]  # a list: its models are registered already

    @property
    def minimum(self) -> MinimumSize:
        """The largest window, which must fit into each image."""
        return MinimumSize(self.spec.windows[1], "the largest of windows")

    def sample_windows(
        self, scenes: list[EncodedScene], rng: np.random.Generator
    ) -> list[BoxWindow]:
        """Return a batch of windows of one random size at random places."""
        with_objects = [scene for scene in scenes if len(scene.scene.layout)]
        candidates = with_objects or scenes
        multiple = compute_unet_multiple(self.unet.config)
        low, high = (side // self.factor // multiple for side in self.spec.windows)
        h, w = (rng.integers(low, high + 1, 2) * multiple).tolist()
        windows = []
        for _ in range(self.batch_size(h, w)):
            scene = candidates[int(rng.integers(len(candidates)))]
            windows.append(self.sample_window(scene, h, w, rng))
        return windows

    def sample_window(
        self, scene: EncodedScene, h: int, w: int, rng: np.random.Generator
    ) -> BoxWindow:
        """Return a window of h x w cells of a scene.

        If more than `max_boxes` boxes are in it, a random choice of them is kept.
        """
        y, x = self.sample_corner(scene, h, w, rng, self.spec.at_boxes)
        corners = (x, y, x + w, y + h)
        inside = np.flatnonzero(shares_inside(scene.boxes, [corners])[:, 0] >= MIN_SHARE_INSIDE)
        inside = np.sort(rng.permutation(inside)[: self.spec.max_boxes])
        boxes = clip_boxes(scene.boxes[inside] - [x, y, x, y], w, h) * self.factor
        selected = scene.scene.layout.select(inside.tolist())
        layout = Layout(
            w * self.factor,
            h * self.factor,
            boxes.astype(np.float32),
            selected.categories,
            selected.phrases,
        )
        background = scene.scene.background
        prompt = build_caption(layout, background, self.spec.caption)
        if rng.random() < self.spec.prompt_dropout:
            prompt = ""
        elif rng.random() < self.spec.names_dropout:
            prompt = background
        has_boxes = rng.random() >= self.spec.boxes_dropout
        return BoxWindow(scene, corners, layout, prompt, has_boxes)

    def sample_corner(
        self, scene: EncodedScene, h: int, w: int, rng: np.random.Generator, at_boxes: float
    ) -> tuple[int, int]:
        """Return y and x of the corner of a window of h x w cells in a scene, in cells.

        Args:
            at_boxes: the probability that the window contains the centre of a random box; the
                other windows are placed anywhere.
        """
        first = np.zeros(2)
        last = np.maximum(0, np.array(scene.latents.shape[1:]) - (h, w))
        if at_boxes and len(scene.boxes) and rng.random() < at_boxes:
            x0, y0, x1, y1 = scene.boxes[rng.integers(len(scene.boxes))]
            centre = np.array([y0 + y1, x0 + x1]) / 2
            first = np.clip(centre - (h, w), 0, last).round()
            last = np.clip(centre, 0, last).round()
        y, x = rng.integers(first.astype(int), last.astype(int) + 1).tolist()
        return y, x

    def sample_noise(self, windows: Sequence[BoxWindow], rng: np.random.Generator) -> NoisyLatents:
        """Return the latents of windows with noise for them.

        Most timesteps are noisy ones, where the boxes decide what is generated.
        """
        x = torch.stack([window.crop(window.scene.latents) for window in windows]).float()
        t = (1000 * rng.random(len(windows)) ** self.spec.noisy).astype(np.int64)
        noise = rng.standard_normal(tuple(x.shape), np.float32)
        return NoisyLatents(x, torch.from_numpy(noise), torch.from_numpy(t))

    def measure(self) -> dict[str, float]:
        """Return the mean loss of held-out windows, with and without their boxes."""
        batches = list(self.held_out_batches())
        with_boxes = self.mean_loss(batches)
        without_boxes = self.mean_loss(map(self.drop_boxes, batches))
        return {
            "heldout_loss": round(with_boxes, 5),
            "heldout_loss_without_boxes": round(without_boxes, 5),
        }

    def mean_loss(self, batches: Iterable[Any]) -> float:
        """Return the mean loss of batches."""
        return float(np.mean([float(self(batch)) for batch in batches]))

    @abstractmethod
    def drop_boxes(self, batch: Any) -> Any:
        """Return a batch without its boxes."""

    def render_sheet(self) -> Image.Image:
        """Return images generated from four layouts, above the same images with the boxes drawn."""
        side = min(256, self.spec.windows[1])
        scenes = make_sheet_scenes(side)
        pipeline = self.pipeline[0]
        pipeline.vae.to(self.unet.device)
        options = {
            "num_inference_steps": 12,
            "guidance_scale": 2.5,
            "caption": self.spec.caption,
            **self.options,
        }
        images = pipeline(
            [scene.layout for scene in scenes],
            background=[scene.background for scene in scenes],
            generator=[torch.Generator().manual_seed(i) for i in range(len(scenes))],
            **options,
        )
        sheet = Image.new("RGB", (side * len(scenes), 2 * side))
        for i, (image, scene) in enumerate(zip(images, scenes, strict=True)):
            sheet.paste(image, (i * side, 0))
            draw = ImageDraw.Draw(image)
            for box in scene.layout.boxes.tolist():
                draw.rectangle(box, outline="red")
            sheet.paste(image, (i * side, side))
        return sheet


def pad_boxes(layouts: Sequence[Layout], number: int) -> tuple[Tensor, Tensor]:
    """Return the boxes of windows, padded to the same number.

    Returns:
        boxes (B, number, 4) xyxy as shares of their windows, and a mask (B, number), 1 where there
        is a box.
    """
    boxes = torch.zeros(len(layouts), number, 4)
    mask = torch.zeros(len(layouts), number)
    for i, layout in enumerate(layouts):
        size = np.array([layout.width, layout.height] * 2, np.float32)
        boxes[i, : len(layout)] = torch.from_numpy(layout.boxes / size)
        mask[i, : len(layout)] = 1
    return boxes, mask


def make_sheet_scenes(side: int) -> list[Scene]:
    """Return four scenes with one to four dogs on a canvas of `side` px."""
    size = (0.3 * side, 0.4 * side)
    scenes = []
    for i in range(4):
        rng = np.random.default_rng(seed_sequence(0, i, Stream.SHEET))
        spec = ScatterSpec(canvas=(side, side), objects={"dog": i + 1}, size=size, gap=2)
        scenes.append(SHEET_SCENES.draw(spec.sample(rng), rng))
    return scenes
