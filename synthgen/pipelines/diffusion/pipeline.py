"""What the pipelines share: a checkpoint's parts, the denoising loop over merged predictions, encoder and decoder."""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, DiffusionPipeline, LMSDiscreteScheduler, UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from synthgen.geometry import box_sides
from synthgen.heartbeat import beat
from synthgen.layouts.base import Layout
from synthgen.pipelines.base import IncompatibleLayoutError, ModelNotFoundError, Numerics
from synthgen.pipelines.diffusion.checkpoint import WITHIN, Checkpoint
from synthgen.pipelines.diffusion.lora import LoraLayer, read_layers
from synthgen.pipelines.diffusion.mixture import Conditions, Predict, Region
from synthgen.pipelines.diffusion.models import (
    ModelSpec,
    find_checkpoint,
    find_lora,
    unet_multiple,
    vae_factor,
)
from synthgen.pipelines.diffusion.schedulers import SCHEDULERS
from synthgen.pipelines.diffusion.text_encoding import TextEncoding
from synthgen.pipelines.diffusion.windows import background_windows

StepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
"""callback_on_step_end: pipeline, step, timestep and {"latents"}; what it returns may hold new latents."""
AfterStep = Callable[[Tensor, Any, int, Tensor | None], Tensor]
"""Latents, scheduler, number of the step just made, and the timestep that the latents are at now (None: the end) to latents."""
Evaluate = Callable[[Tensor, Predict], Tensor]
Generators = torch.Generator | Sequence[torch.Generator] | None
Images = list[Image.Image] | NDArray[np.uint8]
AnyPipeline = TypeVar("AnyPipeline", bound="LatentPipeline")
OLD_ATTENTION = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}
LORA_PARTS = ("unet", "text_encoder", "text_encoder_2")
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
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler
        )
        self.register_modules(text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2)
        self.register_to_config(force_zeros_for_empty_prompt=force_zeros_for_empty_prompt)
        self.factor = vae_factor(vae.config)
        self.multiple = unet_multiple(unet.config)
        self.vae.enable_tiling()

    def check_layouts(self, layouts: Sequence[Layout]) -> None:
        """Raise IncompatibleLayoutError for what no pipeline of this checkpoint can paint."""
        sizes = {(layout.width, layout.height) for layout in layouts}
        if len(sizes) != 1:
            raise IncompatibleLayoutError(
                f"layouts: a batch needs one canvas size, got {sorted(sizes)}"
            )
        least = self.factor * self.multiple
        for name, side in zip(("width", "height"), sizes.pop(), strict=True):
            if side % self.factor or side < least:
                reason = f"must be a multiple of {self.factor} and at least {least}"
                raise IncompatibleLayoutError(f"layouts: canvas {name} {side} px {reason}")
        for n, layout in enumerate(layouts):
            low, high = layout.boxes[:, :2], layout.boxes[:, 2:]
            outside = (low < -OUTSIDE).any(1) | (
                high > np.array([layout.width, layout.height]) + OUTSIDE
            ).any(1)
            small = (box_sides(layout.boxes) < self.factor).any(1)
            for bad, reason in (
                (outside, "is not inside the canvas"),
                (small, f"is smaller than a latent cell ({self.factor} px)"),
            ):
                if bad.any():
                    i = int(bad.argmax())
                    raise IncompatibleLayoutError(
                        f"layouts[{n}].boxes[{i}]: {layout.boxes[i].tolist()} {reason}"
                    )

    def noise(self, layouts: Sequence[Layout], generator: Generators) -> Tensor:
        """Initial noise (B, C, h, w) float32, one CPU generator an image: the same on every device."""
        generators = generator if isinstance(generator, Sequence) else [generator] * len(layouts)
        shape = (
            self.vae.config.latent_channels,
            layouts[0].height // self.factor,
            layouts[0].width // self.factor,
        )
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
        return [
            Region(image, w, *rows, guidance, torch.ones(w[3] - w[1], w[2] - w[0])) for w in windows
        ]

    def covers(
        self,
        size: tuple[int, int],
        rows: Sequence[tuple[int, int]],
        guidance: float,
        side: int | None = None,
    ) -> list[Region]:
        """The same for all images of a batch, each with its own rows."""
        return [
            region
            for image, pair in enumerate(rows)
            for region in self.cover(image, size, pair, guidance, side)
        ]

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
        scheduler, count = self.scheduler, len(evaluations)
        scheduler.set_timesteps(count, device=latents.device)
        if first == 0:
            latents = latents * scheduler.init_noise_sigma
        timesteps = scheduler.timesteps
        step_of = [
            k * count // len(timesteps) for k in range(len(timesteps))
        ]  # Heun and PNDM evaluate some steps twice
        calls = [
            k for k, step in enumerate(step_of) if first <= step < (count if last is None else last)
        ]
        if calls and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(
                calls[0]
            )  # it would look for the step among its timesteps, which a GPU waits for
        known = signature(scheduler.step).parameters
        each = list(generator) if isinstance(generator, Sequence) else generator
        extra = {
            name: value for name, value in (("eta", eta), ("generator", each)) if name in known
        }
        for k in self.progress_bar(calls):
            i, t = step_of[k], timesteps[k]
            z = scheduler.scale_model_input(latents, t)
            noise = evaluations[i](
                z if beside is None else torch.cat([z, beside], 1), partial(self.predict, t)
            )
            latents = scheduler.step(noise, t, latents, **extra).prev_sample
            following = timesteps[k + 1] if k + 1 < len(timesteps) else None
            for change in after:
                latents = change(latents, scheduler, i, following)
            if callback is not None:
                latents = callback(self, i, t, {"latents": latents}).get("latents", latents)
        return latents

    def check_encoder(self) -> None:
        """Raise IncompatibleLayoutError for a checkpoint of two text encoders (SDXL)."""
        if self.text_encoder_2 is not None:
            raise IncompatibleLayoutError(
                "text_encoder_2: this method reads checkpoints with one text encoder, not SDXL's"
            )

    def check_schedule(self) -> None:
        """Raise ValueError for a scheduler that cannot start within its schedule."""
        name = type(self.scheduler).__name__
        if name not in WITHIN:
            shown = "lms" if isinstance(self.scheduler, LMSDiscreteScheduler) else name
            raise ValueError(
                f"scheduler: {shown} cannot start within its schedule; use dpm++, unipc, ddim or euler"
            )

    def merge_lora(self, file: Path, scale: float = 1.0) -> None:
        """Add a LoRA (safetensors, in diffusers' or a common trainer's format) to the weights for good, `scale` times.

        Raises:
            ModelNotFoundError: a tensor of it fits no weight, or it is of a kind that is not read.
        """
        weights = {
            part: _weights(getattr(self, part))
            for part in LORA_PARTS
            if getattr(self, part) is not None
        }
        shapes = {
            part: {name: tuple(weight.shape) for name, weight in own.items()}
            for part, own in weights.items()
        }
        layers = read_layers(file, shapes, self.unet.config)
        with safe_open(file, "pt") as tensors:
            for layer in layers:
                weight = weights[layer.part][layer.weight]
                weight += _change(layer, tensors, scale, weight).to(weight.dtype)

    def load_lora_weights(self, *args: Any, **options: Any) -> None:
        """As diffusers' own, which leaves out the changes of SDXL's second text encoder: there `merge_lora` is to be used."""
        if self.text_encoder_2 is not None:
            raise ValueError(
                "load_lora_weights: of SDXL it would leave out the second text encoder; use merge_lora(file, scale)"
            )
        super().load_lora_weights(*args, **options)

    def encode_pictures(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Latents (B, C, h, w) float32 of pictures (B, H, W, 3)."""
        dtype = self.vae.dtype
        if self._upcast:
            self.vae.to(dtype=torch.float32)
        pixels = (
            torch.from_numpy(np.ascontiguousarray(pictures))
            .permute(0, 3, 1, 2)
            .to(self.vae.device, self.vae.dtype)
            / 127.5
            - 1
        )
        means = torch.cat([_mode(self.vae.encode(p[None])) for p in pixels]).float()
        if self.vae.dtype != dtype:
            self.vae.to(dtype=dtype)
        shift, spread = self._statistics(means)
        return (means - shift) / spread * self.vae.config.scaling_factor

    def decode(self, latents: Tensor, cpu_vae: bool = False) -> NDArray[np.uint8]:
        """Pictures (B, H, W, 3) of latents, one at a time, in overlapping tiles where they are large."""
        device, dtype = self.vae.device, self.vae.dtype
        if cpu_vae or self._upcast:
            self.vae.to("cpu" if cpu_vae else device, torch.float32)
        shift, spread = self._statistics(latents)
        scaled = (latents / self.vae.config.scaling_factor * spread + shift).to(
            self.vae.device, self.vae.dtype
        )
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

    def _statistics(self, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """What the autoencoder's latents are shifted and scaled by: for each channel (1, C, 1, 1), or one number for all."""
        config = self.vae.config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is not None and std is not None:
            of_mean, of_std = (
                latents.new_tensor(values)[None, :, None, None] for values in (mean, std)
            )
            return of_mean, of_std
        return getattr(config, "shift_factor", None) or 0.0, 1.0


def as_output(arrays: NDArray[np.uint8], output_type: str) -> Images:
    """Pictures (B, H, W, 3) as asked: "np" or "pil"."""
    return arrays if output_type == "np" else [Image.fromarray(a) for a in arrays]


def generators_of(seed: int | Sequence[int] | None, generator: Generators) -> list[torch.Generator]:
    """A CPU generator an image: of the seeds if there are any, else those given."""
    if seed is not None:
        return [
            torch.Generator().manual_seed(s) for s in ([seed] if isinstance(seed, int) else seed)
        ]
    if isinstance(generator, Sequence):
        return list(generator)
    return [generator if generator is not None else torch.Generator().manual_seed(torch.seed())]


def load_pipeline(
    kind: type[AnyPipeline], spec: ModelSpec, scheduler: str | None, numerics: Numerics
) -> AnyPipeline:
    """The pipeline of a recipe's checkpoint, on its device, as the engine uses it."""
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()  # loading takes a second, and the bars cut through that of the images
    transformers_logging.disable_progress_bar()
    auto = torch.float16 if numerics.device == "cuda" else torch.float32
    dtype = auto if spec.dtype == "auto" else getattr(torch, spec.dtype)
    checkpoint = find_checkpoint(spec.model, spec.weights)
    pipeline = read_pipeline(kind, checkpoint, dtype).to(numerics.device)
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


def read_pipeline(
    kind: type[AnyPipeline], checkpoint: Checkpoint, dtype: torch.dtype
) -> AnyPipeline:
    """The pipeline of a checkpoint, of each part the variant of its weights that was chosen.

    Raises:
        ModelNotFoundError: a weight of a network is not in the checkpoint's files.
    """
    options = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    parts = {
        part: getattr(diffusers if part in ("unet", "vae") else transformers, name).from_pretrained(
            checkpoint.folder / part, variant=checkpoint.weights[part].variant, **options
        )
        for part, name in checkpoint.classes.items()
        if checkpoint.weights[part].variant is not None
    }
    pipeline: AnyPipeline = kind.from_pretrained(checkpoint.folder, **options, **parts)
    for part, shapes in checkpoint.shapes.items():
        names = {_current(name) for name in shapes}
        missing = sorted(name for name in _weights(getattr(pipeline, part)) if name not in names)
        if missing:
            raise ModelNotFoundError(
                f"model {str(checkpoint.folder)!r}: its {part} lacks {len(missing)} weights, such as {missing[0]}: "
                "of another checkpoint"
            )
    return pipeline


def _weights(network: torch.nn.Module) -> dict[str, Tensor]:
    """The parameters of a network by their names in its files, without "text_model."."""
    return {
        name.removeprefix("text_model."): weight.data for name, weight in network.named_parameters()
    }


def _current(name: str) -> str:
    """A tensor's present name: autoencoders' attention was called otherwise until 2023."""
    for old, new in OLD_ATTENTION.items():
        name = name.replace(old, new)
    return name.removeprefix("text_model.")


def _change(layer: LoraLayer, tensors: Any, scale: float, weight: Tensor) -> Tensor:
    """What a layer of a LoRA adds to a weight, in float32."""
    up, down = (
        tensors.get_tensor(name).to(weight.device, torch.float32).flatten(1)
        for name in (layer.up, layer.down)
    )
    factor = (
        layer.factor if layer.alpha is None else float(tensors.get_tensor(layer.alpha)) / layer.rank
    )
    return ((up @ down) * (factor * scale)).reshape(weight.shape)


def _mode(encoded: Any) -> Tensor:
    """The latents of an encoded image: of the tiny autoencoder they are no distribution."""
    mode: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    return mode


def _nested(conditions: Conditions) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name, value in conditions.items():
        *path, key = name.split(".")
        inner = arguments
        for part in path:
            inner = inner.setdefault(part, {})
        inner[key] = value
    return arguments
