"""Training on windows of scenes: what all UNet tasks have in common.

Windows are cut by the same functions that cut them when a pipeline paints: what the UNet meets there is what it was trained on.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import compute_snr
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from synthgen.geometry import box_areas, clip_boxes
from synthgen.pipelines.diffusion.models import unet_multiple, vae_factor
from synthgen.pipelines.diffusion.windows import object_windows
from synthgen.randomness import Stream, seed_sequence
from synthgen.scenes.scene import Scene, region_prompt
from synthgen.training.augmentation import Picture
from synthgen.training.dataset_scenes import Least
from synthgen.training.lora import merged
from synthgen.training.scenes import PastedScenes, Pool, open_scenes
from synthgen.training.vae.trainee import to_tensor

LEAST, MOST = 64, 256  # window sides, px
CONTEXT = 0.1  # share of a box's side round it, as the mixture pipeline's default
NAMED = 4  # objects that a scene window's caption names at most
BATCH_AREA = (
    80 * 80
)  # px of a window at which a batch has its full size; a batch of larger windows is smaller
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}


@dataclass(frozen=True)
class Window:
    """A part of a scene with a caption: y0, x0, h, w in latent cells."""

    y: int
    x: int
    h: int
    w: int
    caption: str


@dataclass(frozen=True)
class EncodedScene:
    """Latents (C, H, W) float16 of a scene, a window for each of its boxes, and what is where in cells.

    Attributes:
        beside: (C', H, W) float16 that the UNet reads beside the latents, if it does.
    """

    latents: Tensor
    objects: tuple[Window, ...]
    boxes: np.ndarray
    scene: Scene
    beside: Tensor | None = None


class WindowTrainee(nn.Module):
    """A UNet trained on windows of scenes; a task fills in which windows a batch has, and what the loss is.

    Args:
        unet: what is trained; which of its parameters require gradients, the task says.
        text: likewise.
        vae: encodes the scenes; not part of the state.
        solver: what the checkpoint is painted with; its schedule of the noise, and what it predicts, are trained with.
    """

    def __init__(
        self,
        spec: Any,
        unet: UNet2DConditionModel,
        text: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        vae: AutoencoderKL,
        solver: SchedulerMixin | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.unet, self.text, self.tokenizer = (
            spec,
            unet.to(memory_format=torch.channels_last),
            text,
            tokenizer,
        )
        self.vae = [vae.float().eval().requires_grad_(False)]  # in a list: not part of our state
        self.factor = vae_factor(vae.config)
        self.scenes = open_scenes(spec.data, spec.seed + 1, self.least)
        self.solver = solver or DPMSolverMultistepScheduler(**SCHEDULE, steps_offset=1)
        self.noise_schedule = DDPMScheduler.from_config(self.solver.config)

    @property
    def least(self) -> Least:
        """The smallest image that a window can be cut out of."""
        return Least(
            self.factor * unet_multiple(self.unet.config), "the smallest window of the checkpoint"
        )

    def batches(self, start: int, rank: int) -> Iterator[Any]:
        pool: Pool[EncodedScene] = Pool(self.scenes, self.spec.data, self.encode)
        for step, scenes in enumerate(pool.steps(start), start):
            rng = np.random.default_rng(
                seed_sequence(self.spec.seed, step, Stream.TRAINING_STEP, rank)
            )
            yield self.batch(list(scenes), rng)

    @abstractmethod
    def batch(self, scenes: list[EncodedScene], rng: np.random.Generator) -> Any:
        """One batch of windows of these scenes."""

    @torch.no_grad()
    def encode(self, scene: Scene, picture: Picture) -> EncodedScene:
        """A scene as it is kept in the pool."""
        vae = self.vae[0].to(self.unet.device)
        height, width = (n // self.factor * self.factor for n in picture.shape[:2])
        pixels = to_tensor(picture[None, :height, :width]).to(vae.device)
        latents = vae.encode(pixels).latent_dist.mode()[0] * vae.config.scaling_factor
        return self.with_windows(scene, latents.half())

    def with_windows(self, scene: Scene, latents: Tensor) -> EncodedScene:
        """A scene of these latents (C, H, W), with the window of each box that a window may be as large as."""
        size, least = (
            (latents.shape[2] * self.factor, latents.shape[1] * self.factor),
            self.unet.config["sample_size"],
        )
        cells = object_windows(
            scene.layout.boxes, size, self.factor, unet_multiple(self.unet.config), least, CONTEXT
        )
        windows = tuple(
            Window(y0, x0, y1 - y0, x1 - x0, region_prompt(phrase, scene.background))
            for (x0, y0, x1, y1), phrase in zip(cells.tolist(), scene.phrases, strict=True)
            if max(y1 - y0, x1 - x0) <= least * MOST // LEAST
        )
        return EncodedScene(latents, windows, scene.layout.boxes / self.factor, scene)

    def batch_size(self, h: int, w: int) -> int:
        area = h * w * self.factor**2
        return max(
            4, min(2 * self.spec.batch_size, round(self.spec.batch_size * BATCH_AREA / area))
        )

    def anywhere(
        self, scenes: list[EncodedScene], rng: np.random.Generator
    ) -> list[tuple[EncodedScene, Window]]:
        """Windows of one random size, anywhere."""
        multiple = unet_multiple(self.unet.config)
        least = min(
            self.unet.config["sample_size"], *(n for s in scenes for n in s.latents.shape[1:])
        )
        most = min(least * MOST // LEAST, *(n for s in scenes for n in s.latents.shape[1:]))
        h, w = (int(v) * multiple for v in rng.integers(least // multiple, most // multiple + 1, 2))
        picked = [scenes[int(i)] for i in rng.integers(len(scenes), size=self.batch_size(h, w))]
        return [(s, scene_window(s, h, w, rng)) for s in picked]

    def same_sized(
        self, scenes: list[EncodedScene], rng: np.random.Generator
    ) -> list[tuple[EncodedScene, Window]]:
        """Windows of objects, all of the size of one.

        That one is drawn from a random scene: so scenes of few, large objects count as much as those of many.
        """
        scene = scenes[int(rng.integers(len(scenes)))]
        like = scene.objects[int(rng.integers(len(scene.objects)))]
        same = [(s, w) for s in scenes for w in s.objects if (w.h, w.w) == (like.h, like.w)]
        return [same[int(i)] for i in rng.integers(len(same), size=self.batch_size(like.h, like.w))]

    def tokens(self, prompts: list[str]) -> Tensor:
        ids: Tensor = self.tokenizer(
            prompts, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return ids

    def noisy(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Latents at timestep t, as the UNet takes them."""
        z: Tensor = self.noise_schedule.add_noise(x, noise, t)
        return z.contiguous(memory_format=torch.channels_last)

    def loss(self, predicted: Tensor, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Mean squared error of the prediction, of noise or of velocity.

        With `snr_gamma` min-SNR weighted (arXiv 2303.09556, section 3.4): min(SNR, gamma) / SNR for noise, and for velocity
        min(SNR, gamma) / (SNR + 1).
        """
        velocity = self.noise_schedule.config.prediction_type == "v_prediction"
        target = self.noise_schedule.get_velocity(x, noise, t) if velocity else noise
        errors = (predicted.float() - target).square().mean((1, 2, 3))
        gamma = self.spec.snr_gamma
        if gamma is None:
            return errors.mean()
        snr = compute_snr(self.noise_schedule, t)
        return (
            snr.clamp(max=gamma) / (snr + 1 if velocity else snr.clamp(min=1e-8)) * errors
        ).mean()

    def held_out(self, batches: int = 8) -> Iterator[Any]:
        """Batches of held-out scenes, always the same ones."""
        scenes = [
            self.encode(*pair)
            for pair in islice(PastedScenes(384, 1, "heldout").from_number(0), 16)
        ]
        rngs = (np.random.default_rng(seed_sequence(0, k, Stream.HELD_OUT)) for k in range(batches))
        return (self.batch(scenes, rng) for rng in rngs)

    def export(self, folder: Path) -> None:
        """Write an fp16 Stable Diffusion checkpoint; a LoRA is merged into it, and stands beside it too."""
        unet = merged(self.unet, folder / "lora")
        save_checkpoint(
            folder, self.spec.name, self.vae[0], self.text, self.tokenizer, unet, self.solver
        )


def is_gated(name: str) -> bool:
    """Whether a UNet's parameter is one of GLIGEN's gated layers, which are called only with boxes."""
    return "fuser" in name or "position_net" in name


def save_checkpoint(
    folder: Path,
    name: str,
    vae: AutoencoderKL,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    solver: Any,
) -> None:
    """Write an fp16 Stable Diffusion checkpoint; the parts stay in fp32."""
    for part in (vae, unet):
        part.register_to_config(_name_or_path=name)  # not the folder that it was loaded from
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=solver,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (vae, text, unet):
        part.half()
    pipeline.save_pretrained(folder)
    for part in (vae, text, unet):
        part.float()


def scene_window(scene: EncodedScene, h: int, w: int, rng: np.random.Generator) -> Window:
    """A window anywhere. Its caption names the ground, then the objects that are at least half inside, largest first:

    "a field of grass with a brown dog, a cat", where that of an object's own window is "a brown dog, a field of grass".
    So the model can tell one dog that fills the window from some that stand in it.
    """
    rows, columns = scene.latents.shape[1:]
    y, x = int(rng.integers(rows - h + 1)), int(rng.integers(columns - w + 1))
    inside = clip_boxes(scene.boxes - [x, y, x, y], w, h)
    shown = box_areas(inside)
    whole = box_areas(scene.boxes)
    order = [int(i) for i in np.argsort(-shown, kind="stable") if shown[i] >= 0.5 * whole[i]]
    named = ", ".join(scene.scene.phrases[i] for i in order[:NAMED])
    return Window(
        y, x, h, w, f"{scene.scene.background} with {named}" if named else scene.scene.background
    )
