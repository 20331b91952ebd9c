"""Training on windows of scenes: what all UNet tasks have in common.

Windows are cut by the functions that cut them when a pipeline generates images, so that the UNet
is trained on the windows that it gets later.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
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
from synthgen.pipelines.diffusion.sizes import compute_unet_multiple, compute_vae_factor
from synthgen.pipelines.diffusion.windows import place_object_windows
from synthgen.randomness import Stream, seed_sequence
from synthgen.scenes.scene import Scene, build_region_prompt
from synthgen.training.augmentation import ImageArray
from synthgen.training.dataset_scenes import MinimumSize
from synthgen.training.lora import merge_lora
from synthgen.training.precision import convert_floats
from synthgen.training.scenes import PastedScenes, Pool, open_scenes
from synthgen.training.vae.trainee import to_tensor

MIN_SIDE = 64  # px of a window
MAX_SIDE = 256  # px of a window
CONTEXT = 0.1  # margin around a box, as a share of its side; the mixture pipeline's default
MAX_NAMED = 4  # objects that the caption of a scene window names
FULL_BATCH_AREA = 80 * 80  # px of a window up to which a batch has its full size
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}


@dataclass(frozen=True)
class Window:
    """A window of a scene with a caption: its corner (y, x) and size (h, w) in latent cells."""

    y: int
    x: int
    h: int
    w: int
    caption: str

    def crop(self, latents: Tensor) -> Tensor:
        """Return the window of latents (C, H, W)."""
        return latents[:, self.y : self.y + self.h, self.x : self.x + self.w]


@dataclass(frozen=True)
class EncodedScene:
    """A scene in latent space.

    Attributes:
        latents: (C, H, W) float16.
        object_windows: a window for each box that is not too large for one.
        boxes: (N, 4) xyxy in latent cells.
        scene: the scene itself.
        mask_latents: (C', H, W) float16, read by the UNet beside the latents; None if it reads
            none.
    """

    latents: Tensor
    object_windows: tuple[Window, ...]
    boxes: np.ndarray
    scene: Scene
    mask_latents: Tensor | None = None


Crop = tuple[EncodedScene, Window]


class WindowTrainee(nn.Module):
    """A UNet that is trained on windows of scenes.

    A task defines which windows are in a batch, and what the loss is.

    Args:
        unet: the UNet; the task sets which of its parameters require gradients.
        text: the text encoder; the task sets which of its parameters require gradients.
        vae: the autoencoder of the scenes; not part of the saved state.
        solver: the scheduler of the checkpoint; its noise schedule and its prediction type are
            used in training too.
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
        self.spec = spec
        self.unet = unet.to(memory_format=torch.channels_last)
        self.text = text
        self.tokenizer = tokenizer
        # A list keeps the autoencoder out of the module's state.
        self.vae = [vae.float().eval().requires_grad_(False)]
        self.factor = compute_vae_factor(vae.config)
        self.scenes = open_scenes(spec.data, spec.seed + 1, self.minimum)
        self.solver = solver or DPMSolverMultistepScheduler(**SCHEDULE, steps_offset=1)
        self.noise_schedule = DDPMScheduler.from_config(self.solver.config)

    @property
    def minimum(self) -> MinimumSize:
        """The smallest image that a window can be cut from."""
        side = self.factor * compute_unet_multiple(self.unet.config)
        return MinimumSize(side, "the smallest window of the checkpoint")

    def batches(self, start: int, rank: int) -> Iterator[Any]:
        pool: Pool[EncodedScene] = Pool(self.scenes, self.spec.data, self.encode)
        for step, scenes in enumerate(pool.steps(start), start):
            sequence = seed_sequence(self.spec.seed, step, Stream.TRAINING_STEP, rank)
            yield self.make_batch(list(scenes), np.random.default_rng(sequence))

    @abstractmethod
    def make_batch(self, scenes: list[EncodedScene], rng: np.random.Generator) -> Any:
        """Return a batch of windows of these scenes."""

    @torch.no_grad()
    def encode(self, scene: Scene, image: ImageArray) -> EncodedScene:
        """Return a scene as it is kept in the pool."""
        vae = self.vae[0].to(self.unet.device)
        height = image.shape[0] // self.factor * self.factor
        width = image.shape[1] // self.factor * self.factor
        pixels = to_tensor(image[None, :height, :width]).to(vae.device)
        latents = vae.encode(pixels).latent_dist.mode()[0] * vae.config.scaling_factor
        return self.add_windows(scene, latents.half())

    def add_windows(self, scene: Scene, latents: Tensor) -> EncodedScene:
        """Return a scene with these latents (C, H, W), and a window for each box.

        Boxes whose window would be larger than MAX_SIDE get none.
        """
        rows, columns = latents.shape[1:]
        smallest = self.unet.config["sample_size"]
        cells = place_object_windows(
            scene.layout.boxes,
            (columns * self.factor, rows * self.factor),
            self.factor,
            compute_unet_multiple(self.unet.config),
            smallest,
            CONTEXT,
        )
        windows = []
        for (x0, y0, x1, y1), phrase in zip(cells.tolist(), scene.phrases, strict=True):
            if max(y1 - y0, x1 - x0) <= smallest * MAX_SIDE // MIN_SIDE:
                caption = build_region_prompt(phrase, scene.background)
                windows.append(Window(y0, x0, y1 - y0, x1 - x0, caption))
        return EncodedScene(latents, tuple(windows), scene.layout.boxes / self.factor, scene)

    def batch_size(self, h: int, w: int) -> int:
        """Return the number of windows of h x w cells in a batch: fewer of larger windows."""
        area = h * w * self.factor**2
        fitting = round(self.spec.batch_size * FULL_BATCH_AREA / area)
        return max(4, min(2 * self.spec.batch_size, fitting))

    def sample_crops(self, scenes: list[EncodedScene], rng: np.random.Generator) -> list[Crop]:
        """Return windows of one random size at random places."""
        multiple = compute_unet_multiple(self.unet.config)
        largest = min(min(scene.latents.shape[1:]) for scene in scenes)
        least = min(self.unet.config["sample_size"], largest)
        most = min(least * MAX_SIDE // MIN_SIDE, largest)
        sizes = rng.integers(least // multiple, most // multiple + 1, 2) * multiple
        h, w = sizes.tolist()
        chosen = rng.integers(len(scenes), size=self.batch_size(h, w))
        crops = []
        for i in chosen.tolist():
            crops.append((scenes[i], sample_scene_window(scenes[i], h, w, rng)))
        return crops

    def sample_object_crops(
        self, scenes: list[EncodedScene], rng: np.random.Generator
    ) -> list[Crop]:
        """Return windows of objects, all of the size of one object's window.

        That object is sampled from a random scene, so that scenes with few large objects count as
        much as those with many.
        """
        scene = scenes[int(rng.integers(len(scenes)))]
        model = scene.object_windows[int(rng.integers(len(scene.object_windows)))]
        candidates = []
        for other in scenes:
            for window in other.object_windows:
                if (window.h, window.w) == (model.h, model.w):
                    candidates.append((other, window))
        chosen = rng.integers(len(candidates), size=self.batch_size(model.h, model.w))
        return [candidates[i] for i in chosen.tolist()]

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Return the token ids (B, T) of prompts."""
        encoding = self.tokenizer(
            prompts, padding="max_length", truncation=True, return_tensors="pt"
        )
        ids: Tensor = encoding.input_ids
        return ids

    def add_noise(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return latents at timestep t."""
        z: Tensor = self.noise_schedule.add_noise(x, noise, t)
        return z

    def predict(self, z: Tensor, t: Tensor, words: Tensor, **conditions: Any) -> Tensor:
        """Return the UNet's prediction (B, C, h, w), in the number format of its weights.

        Args:
            z: latents (B, C, h, w) at the timesteps `t` (B,).
            words: text states (B, T, D).
            conditions: other arguments of the UNet; those that are tensors are converted too.
        """
        convert = partial(convert_floats, dtype=self.unet.dtype)
        z = z.contiguous(memory_format=torch.channels_last)
        predicted: Tensor = self.unet(convert(z), t, convert(words), **convert(conditions)).sample
        return predicted

    def loss(self, predicted: Tensor, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the mean squared error of a prediction of the noise or the velocity.

        With `snr_gamma`, the error is min-SNR weighted (arXiv 2303.09556, section 3.4): by
        min(SNR, gamma) / SNR for the noise, and by min(SNR, gamma) / (SNR + 1) for the velocity.
        """
        velocity = self.noise_schedule.config.prediction_type == "v_prediction"
        target = self.noise_schedule.get_velocity(x, noise, t) if velocity else noise
        errors = (predicted.float() - target).square().mean((1, 2, 3))
        gamma = self.spec.snr_gamma
        if gamma is None:
            return errors.mean()
        snr = compute_snr(self.noise_schedule, t)
        divisor = snr + 1 if velocity else snr.clamp(min=1e-8)
        return (snr.clamp(max=gamma) / divisor * errors).mean()

    def held_out_batches(self, number: int = 8) -> Iterator[Any]:
        """Yield batches of held-out scenes, the same ones at every call."""
        pasted = PastedScenes(384, 1, "heldout").iterate_from(0)
        scenes = [self.encode(*pair) for pair in islice(pasted, 16)]
        for k in range(number):
            rng = np.random.default_rng(seed_sequence(0, k, Stream.HELD_OUT))
            yield self.make_batch(scenes, rng)

    def export(self, folder: Path) -> None:
        """Write an fp16 Stable Diffusion checkpoint.

        A LoRA is merged into it, and written to its folder `lora` too.
        """
        unet = merge_lora(self.unet, folder / "lora")
        save_checkpoint(
            folder, self.spec.name, self.vae[0], self.text, self.tokenizer, unet, self.solver
        )


def is_gated(name: str) -> bool:
    """Return whether a UNet's parameter belongs to GLIGEN's gated layers.

    These layers are called only with boxes.
    """
    return "fuser" in name or "position_net" in name


def crop_latents(crops: Sequence[Crop]) -> Tensor:
    """Return the latents (B, C, h, w) float32 of windows of one size."""
    return torch.stack([window.crop(scene.latents) for scene, window in crops]).float()


def drop_captions(crops: Sequence[Crop], is_dropped: np.ndarray) -> list[str]:
    """Return the captions of windows; those that are dropped are replaced by the null prompt."""
    captions = []
    for dropped, (_, window) in zip(is_dropped, crops, strict=True):
        captions.append("" if dropped else window.caption)
    return captions


def save_checkpoint(
    folder: Path,
    name: str,
    vae: AutoencoderKL,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    solver: Any,
) -> None:
    """Write an fp16 Stable Diffusion checkpoint; the models themselves stay in fp32."""
    for model in (vae, unet):
        model.register_to_config(_name_or_path=name)  # not the folder it was loaded from
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
    for model in (vae, text, unet):
        model.half()
    pipeline.save_pretrained(folder)
    for model in (vae, text, unet):
        model.float()


def sample_scene_window(scene: EncodedScene, h: int, w: int, rng: np.random.Generator) -> Window:
    """Return a window of h x w cells at a random place.

    Its caption names the background, then the objects that are at least half inside, largest first:
    "a field of grass with a brown dog, a cat". The caption of an object's own window is in the
    other order: "a brown dog, a field of grass". So the model can tell one dog that fills the
    window from several that are in it.
    """
    rows, columns = scene.latents.shape[1:]
    y = int(rng.integers(rows - h + 1))
    x = int(rng.integers(columns - w + 1))
    visible = box_areas(clip_boxes(scene.boxes - [x, y, x, y], w, h))
    whole = box_areas(scene.boxes)
    by_size = np.argsort(-visible, kind="stable")
    inside = by_size[visible[by_size] >= 0.5 * whole[by_size]]
    phrases = [scene.scene.phrases[i] for i in inside[:MAX_NAMED].tolist()]
    caption = scene.scene.background
    if phrases:
        caption = f"{caption} with {', '.join(phrases)}"
    return Window(y, x, h, w, caption)
