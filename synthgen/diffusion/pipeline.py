"""What the pipelines share: a checkpoint's parts, the denoising loop over merged predictions, encoder and decoder."""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, LMSDiscreteScheduler, UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from synthgen.diffusion.mixture import Conditions, Predict, Region
from synthgen.diffusion.models import ModelSpec, find_lora, unet_multiple, vae_factor
from synthgen.diffusion.schedulers import SCHEDULERS
from synthgen.diffusion.text import TextEncoding
from synthgen.diffusion.windows import background_windows
from synthgen.layouts import Layout
from synthgen.pipelines import IncompatibleLayoutError, Numerics
from synthgen.pulse import beat

StepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
"""callback_on_step_end: pipeline, step, timestep and {"latents"}; what it returns may hold new latents."""
AfterStep = Callable[[Tensor, Any, int, Tensor | None], Tensor]
"""Latents, scheduler, number of the step just made, and the timestep that the latents are at now (None: the end) to latents."""
Evaluate = Callable[[Tensor, Predict], Tensor]
Generators = torch.Generator | Sequence[torch.Generator] | None
Images = list[Image.Image] | NDArray[np.uint8]
AnyPipeline = TypeVar("AnyPipeline", bound="LatentPipeline")
OUTSIDE = 1e-3  # px that a box may stand over the edge of its canvas: float32


class LatentPipeline(TextEncoding, DiffusionPipeline, StableDiffusionLoraLoaderMixin):  # type: ignore[misc]  # diffusers is untyped
    """A checkpoint in Stable Diffusion or SDXL format, whatever is painted with it."""

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _optional_components: ClassVar = ["text_encoder_2", "tokenizer_2"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        tokenizer_2: CLIPTokenizer | None = None,
        force_zeros_for_empty_prompt: bool = False,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.register_modules(text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2)
        self.register_to_config(force_zeros_for_empty_prompt=force_zeros_for_empty_prompt)
        self.factor = vae_factor(vae.config)
        self.multiple = unet_multiple(unet.config)
        self.vae.enable_tiling()

    def check_layouts(self, layouts: Sequence[Layout]) -> None:
        """Raise IncompatibleLayoutError for what no pipeline of this checkpoint can paint."""
        sizes = {(layout.width, layout.height) for layout in layouts}
        if len(sizes) != 1:
            raise IncompatibleLayoutError(f"layouts: a batch needs one canvas size, got {sorted(sizes)}")
        least = self.factor * self.multiple
        for name, side in zip(("width", "height"), sizes.pop(), strict=True):
            if side % self.factor or side < least:
                reason = f"must be a multiple of {self.factor} and at least {least}"
                raise IncompatibleLayoutError(f"layouts: canvas {name} {side} px {reason}")
        for n, layout in enumerate(layouts):
            low, high = layout.boxes[:, :2], layout.boxes[:, 2:]
            outside = (low < -OUTSIDE).any(1) | (high > np.array([layout.width, layout.height]) + OUTSIDE).any(1)
            small = (high - low < self.factor).any(1)
            for bad, reason in (
                (outside, "is not inside the canvas"),
                (small, f"is smaller than a latent cell ({self.factor} px)"),
            ):
                if bad.any():
                    i = int(bad.argmax())
                    raise IncompatibleLayoutError(f"layouts[{n}].boxes[{i}]: {layout.boxes[i].tolist()} {reason}")

    def noise(self, layouts: Sequence[Layout], generator: Generators) -> Tensor:
        """Initial noise (B, C, h, w) float32, one CPU generator an image: the same on every device."""
        generators = generator if isinstance(generator, Sequence) else [generator] * len(layouts)
        shape = (self.vae.config.latent_channels, layouts[0].height // self.factor, layouts[0].width // self.factor)
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
        return noise.to(self._execution_device)

    def cells(self, side: int) -> int:
        """The least side of a window in cells that holds `side` px and that the UNet can halve."""
        return -(-side // (self.factor * self.multiple)) * self.multiple

    def cells_at_once(self, chunk: int) -> int:
        """Latent cells of `chunk` windows of the size that the checkpoint was trained at."""
        return int(chunk * self.unet.config.sample_size**2)

    def cover(
        self,
        image: int,
        size: tuple[int, int],
        rows: tuple[int, int],
        guidance: float,
        side: int | None = None,
        overlap: float = 0.25,
    ) -> list[Region]:
        """Regions of equal weight that cover an image: windows of `side` px, or one of its size.

        Args:
            size: width, height in px.
            rows: of the prompt and of the negative prompt.
            overlap: least share of a window that its neighbour covers too.
        """
        cells = max(size) // self.factor if side is None else self.cells(side)
        found = background_windows(size, self.factor, self.multiple, cells, overlap)
        windows = [(x0, y0, x1, y1) for x0, y0, x1, y1 in found.tolist()]
        return [Region(image, w, *rows, guidance, torch.ones(w[3] - w[1], w[2] - w[0])) for w in windows]

    def covers(
        self, size: tuple[int, int], rows: Sequence[tuple[int, int]], guidance: float, side: int | None = None
    ) -> list[Region]:
        """The same for all images of a batch, each with its own rows."""
        return [region for image, pair in enumerate(rows) for region in self.cover(image, size, pair, guidance, side)]

    def predict(self, t: Tensor, x: Tensor, conditions: Conditions) -> Tensor:
        """The UNet's prediction for latents of one timestep; a condition named a.b.c is entry c of entry b of argument a."""
        x = x.to(self.unet.dtype, memory_format=torch.channels_last)
        prediction: Tensor = self.unet(x, t, **_nested(conditions)).sample
        beat()
        return prediction

    def denoise(
        self,
        latents: Tensor,
        evaluations: Sequence[Evaluate],
        callback: StepEnd | None = None,
        after: Sequence[AfterStep] = (),
        generator: Generators = None,
        eta: float = 0.0,
        first: int = 0,
        last: int | None = None,
        beside: Tensor | None = None,
    ) -> Tensor:
        """Run the steps [first, last) of the schedule on the whole canvas of every image.

        Args:
            latents: (B, C, h, w): standard normal noise if first is 0, else latents at the level of that step.
            evaluations: what predicts the noise, one for each step of the schedule.
            after: what else happens to the latents after each step.
            generator: one CPU generator an image, or one for all: of the noise that some schedulers add at each step.
            eta: how much of it, for DDIM.
            beside: (B, C', h, w) that the UNet reads as further channels.
        """
        scheduler = self.scheduler
        scheduler.set_timesteps(len(evaluations), device=latents.device)
        if first == 0:
            latents = latents * scheduler.init_noise_sigma
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)  # it would look for the step among its timesteps, which a GPU waits for
        known = signature(scheduler.step).parameters
        each = list(generator) if isinstance(generator, Sequence) else generator
        extra = {name: value for name, value in (("eta", eta), ("generator", each)) if name in known}
        steps = list(enumerate(scheduler.timesteps))[first:last]
        for i, t in self.progress_bar(steps):
            z = scheduler.scale_model_input(latents, t)
            noise = evaluations[i](z if beside is None else torch.cat([z, beside], 1), partial(self.predict, t))
            latents = scheduler.step(noise, t, latents, **extra).prev_sample
            following = scheduler.timesteps[i + 1] if i + 1 < len(evaluations) else None
            for change in after:
                latents = change(latents, scheduler, i, following)
            if callback is not None:
                latents = callback(self, i, t, {"latents": latents}).get("latents", latents)
        return latents

    def check_encoder(self) -> None:
        """Raise IncompatibleLayoutError for a checkpoint of two text encoders (SDXL)."""
        if self.text_encoder_2 is not None:
            raise IncompatibleLayoutError("text_encoder_2: this method reads checkpoints with one text encoder, not SDXL's")

    def check_schedule(self) -> None:
        """Raise ValueError for a scheduler that cannot start within its schedule."""
        if isinstance(self.scheduler, LMSDiscreteScheduler):
            raise ValueError("scheduler: lms cannot start within its schedule; use dpm++, unipc, ddim or euler")

    def merge_lora(self, file: Path, scale: float = 1.0) -> None:
        """Add a LoRA (safetensors, in diffusers' or a common trainer's format) to the weights for good, `scale` times.

        Raises:
            ValueError: it holds nothing for this UNet or text encoder.
        """
        options = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
        state, alphas = self.lora_state_dict(str(file.parent), unet_config=self.unet.config, **options)
        self.load_lora_into_unet(state, alphas, self.unet)
        self.load_lora_into_text_encoder(state, alphas, self.text_encoder)
        if not getattr(self.unet, "peft_config", None) and not getattr(self.text_encoder, "peft_config", None):
            raise ValueError(f"lora: {file} holds nothing for this checkpoint")
        self.fuse_lora(lora_scale=scale)
        self.unload_lora_weights()

    def encode_pictures(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Latents (B, C, h, w) float32 of pictures (B, H, W, 3)."""
        dtype = self.vae.dtype
        if self._upcast:
            self.vae.to(dtype=torch.float32)
        pixels = (
            torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).to(self.vae.device, self.vae.dtype) / 127.5 - 1
        )
        means = torch.cat([self.vae.encode(p[None]).latent_dist.mode() for p in pixels]).float()
        if self.vae.dtype != dtype:
            self.vae.to(dtype=dtype)
        return (means - self._shift) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor, cpu_vae: bool = False) -> NDArray[np.uint8]:
        """Pictures (B, H, W, 3) of latents, one at a time, in overlapping tiles where they are large."""
        device, dtype = self.vae.device, self.vae.dtype
        if cpu_vae or self._upcast:
            self.vae.to("cpu" if cpu_vae else device, torch.float32)
        scaled = (latents / self.vae.config.scaling_factor + self._shift).to(self.vae.device, self.vae.dtype)
        pixels = torch.cat([self.vae.decode(z[None]).sample.float().cpu() for z in scaled])
        self.vae.to(device, dtype)
        pixels = torch.nan_to_num((pixels.clamp(-1, 1) + 1) * 127.5).round().byte()
        arrays: NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        return arrays

    @property
    def _upcast(self) -> bool:
        """Whether the autoencoder overflows in float16: SDXL's. Others have the same setting, by default, and do not."""
        sdxl = self.text_encoder_2 is not None
        return sdxl and bool(self.vae.config.force_upcast) and self.vae.dtype == torch.float16

    @property
    def _shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0


def as_output(arrays: NDArray[np.uint8], output_type: str) -> Images:
    """Pictures (B, H, W, 3) as asked: "np" or "pil"."""
    return arrays if output_type == "np" else [Image.fromarray(a) for a in arrays]


def generators_of(seed: int | Sequence[int] | None, generator: Generators) -> list[torch.Generator]:
    """A CPU generator an image: of the seeds if there are any, else those given."""
    if seed is not None:
        return [torch.Generator().manual_seed(s) for s in ([seed] if isinstance(seed, int) else seed)]
    if isinstance(generator, Sequence):
        return list(generator)
    return [generator if generator is not None else torch.Generator().manual_seed(torch.seed())]


def load_pipeline(kind: type[AnyPipeline], spec: ModelSpec, scheduler: str | None, numerics: Numerics) -> AnyPipeline:
    """The pipeline of a recipe's checkpoint, on its device, as the engine uses it."""
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()  # loading takes a second, and the bars cut through that of the images
    transformers_logging.disable_progress_bar()
    auto = torch.float16 if numerics.device == "cuda" else torch.float32
    dtype = auto if spec.dtype == "auto" else getattr(torch, spec.dtype)
    pipeline: AnyPipeline = kind.from_pretrained(
        spec.folder(), dtype=dtype, variant=spec.weights, use_safetensors=True, local_files_only=True
    ).to(numerics.device)
    if scheduler is not None:
        pipeline.scheduler = SCHEDULERS[scheduler].from_config(pipeline.scheduler.config)
    if spec.lora is not None:
        pipeline.merge_lora(find_lora(spec.lora), spec.lora_scale)
    pipeline.unet.to(memory_format=torch.channels_last)
    if spec.compile:
        pipeline.unet.compile()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.embedded = {}
    return pipeline


def _nested(conditions: Conditions) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name, value in conditions.items():
        *path, key = name.split(".")
        inner = arguments
        for part in path:
            inner = inner.setdefault(part, {})
        inner[key] = value
    return arguments
