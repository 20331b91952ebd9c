"""What the pipelines share: a checkpoint's parts, the denoising loop, encoder and decoder."""

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
from synthgen.heartbeat import begin_activity, expect, record_beat
from synthgen.layouts.base import Layout
from synthgen.pipelines.base import IncompatibleLayoutError, ModelNotFoundError, Numerics
from synthgen.pipelines.diffusion.checkpoint import PARTIAL_SCHEDULERS, Checkpoint
from synthgen.pipelines.diffusion.cpu_layers import use_cpu_layers
from synthgen.pipelines.diffusion.image_coding import DECODE_COST, ImageCoding, count_cells
from synthgen.pipelines.diffusion.lora import LoraLayer, read_layers
from synthgen.pipelines.diffusion.mixture import Conditions, Evaluate, Region, select
from synthgen.pipelines.diffusion.models import ModelSpec
from synthgen.pipelines.diffusion.offloading import place_networks
from synthgen.pipelines.diffusion.schedulers import SCHEDULERS
from synthgen.pipelines.diffusion.sizes import compute_unet_multiple, compute_vae_factor
from synthgen.pipelines.diffusion.sources import find_lora
from synthgen.pipelines.diffusion.text_encoding import TextEncoding
from synthgen.pipelines.diffusion.windows import place_background_windows

StepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
"""callback_on_step_end: called with pipeline, step, timestep and {"latents"}.

The mapping that it returns may contain new latents.
"""
AfterStep = Callable[[Tensor, Any, int, Tensor | None], Tensor]
"""Called with latents, scheduler, number of the finished step, and timestep; returns new latents.

The timestep is that of the latents; None after the last step.
"""
Generators = torch.Generator | Sequence[torch.Generator] | None
Images = list[Image.Image] | NDArray[np.uint8]
AnyPipeline = TypeVar("AnyPipeline", bound="LatentPipeline")
# Names in the attention of autoencoders before 2023, and the present ones.
OLD_ATTENTION = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}
LORA_PARTS = ("unet", "text_encoder", "text_encoder_2")
LEAST_CELLS = 2048  # of a window in a chunk; the overhead of smaller chunks is large
TOLERANCE = 1e-3  # px by which a box may extend beyond its canvas, for float32


class LatentPipeline(
    TextEncoding,
    ImageCoding,
    DiffusionPipeline,  # type: ignore[misc]  # diffusers is untyped
    StableDiffusionLoraLoaderMixin,  # type: ignore[misc]
):
    """A checkpoint in Stable Diffusion or SDXL format; the base of all pipelines.

    Attributes:
        factor: px per latent cell.
        multiple: window sides are multiples of this many latent cells.
        tiled: whether images larger than the autoencoder's own size are encoded and decoded in
            tiles; those larger than `UNTILED_SIDE` always are.
        padded_cells: latent cells of every pass, for a compiled UNet: smaller chunks are padded,
            because another number of windows would compile it again. None: nothing is padded.
    """

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
        self.factor = compute_vae_factor(vae.config)
        self.multiple = compute_unet_multiple(unet.config)
        self.tiled = False
        self.padded_cells: int | None = None

    def check_layouts(self, layouts: Sequence[Layout]) -> None:
        """Raise IncompatibleLayoutError for layouts that this checkpoint cannot generate."""
        sizes = {(layout.width, layout.height) for layout in layouts}
        if len(sizes) != 1:
            raise IncompatibleLayoutError(
                f"layouts: a batch needs one canvas size, got {sorted(sizes)}"
            )
        least = self.factor * self.multiple
        for name, side in zip(("width", "height"), sizes.pop(), strict=True):
            if side % self.factor or side < least:
                raise IncompatibleLayoutError(
                    f"layouts: canvas {name} {side} px must be a multiple of {self.factor} "
                    f"and at least {least}"
                )
        for n, layout in enumerate(layouts):
            low = layout.boxes[:, :2]
            high = layout.boxes[:, 2:]
            canvas = np.array([layout.width, layout.height])
            outside = (low < -TOLERANCE) | (high > canvas + TOLERANCE)
            _check_boxes(layout, outside, n, "is not inside the canvas")
            small = box_sides(layout.boxes) < self.factor
            _check_boxes(layout, small, n, f"is smaller than a latent cell ({self.factor} px)")

    def check_pictures(self, layouts: Sequence[Layout], pictures: NDArray[np.uint8] | None) -> None:
        """Raise IncompatibleLayoutError for images that do not have the shape of the layouts."""
        if pictures is None:
            return
        shape = (len(layouts), layouts[0].height, layouts[0].width, 3)
        if pictures.shape != shape:
            raise IncompatibleLayoutError(
                f"`pictures`: shape {pictures.shape} must be {shape}: "
                "one image per layout, at its size"
            )

    def noise(self, layouts: Sequence[Layout], generator: Generators) -> Tensor:
        """Sample the initial noise (B, C, h, w) float32, with one CPU generator per image.

        It is the same on every device.
        """
        generators = generator if isinstance(generator, Sequence) else [generator] * len(layouts)
        shape = (
            self.vae.config.latent_channels,
            layouts[0].height // self.factor,
            layouts[0].width // self.factor,
        )
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
        expect(DECODE_COST * count_cells(noise))  # what starts as noise is decoded at the end
        return noise.to(self._execution_device)

    def cells(self, side: int) -> int:
        """Return the side in cells of the smallest window that holds `side` px.

        It is a multiple of `multiple`, so that the UNet can halve it.
        """
        return -(-side // (self.factor * self.multiple)) * self.multiple

    def cells_at_once(self, chunk: int) -> int:
        """Return the latent cells of `chunk` windows of the size that the UNet was trained at.

        Smaller windows than `LEAST_CELLS` count as so many cells.
        """
        return chunk * max(int(self.unet.config.sample_size) ** 2, LEAST_CELLS)

    def cover(
        self,
        image: int,
        size: tuple[int, int],
        rows: tuple[int, int],
        guidance: float,
        side: int | None = None,
        overlap: float = 0.25,
    ) -> list[Region]:
        """Return regions of equal weight that cover an image.

        Args:
            image: index in the batch.
            size: width, height in px.
            rows: the rows of the prompt and of the negative prompt.
            guidance: classifier-free guidance scale.
            side: the side of a window in px; None: one window of the size of the image.
            overlap: least share of a window that its neighbour also covers.
        """
        cells = max(size) // self.factor if side is None else self.cells(side)
        windows = place_background_windows(size, self.factor, self.multiple, cells, overlap)
        prompt, negative = rows
        regions = []
        for x0, y0, x1, y1 in windows.tolist():
            weight = torch.ones(y1 - y0, x1 - x0)
            regions.append(Region(image, (x0, y0, x1, y1), prompt, negative, guidance, weight))
        return regions

    def covers(
        self,
        size: tuple[int, int],
        rows: Sequence[tuple[int, int]],
        guidance: float,
        side: int | None = None,
    ) -> list[Region]:
        """Return regions that cover all images of a batch, each with its own rows (see `cover`)."""
        regions = []
        for image, image_rows in enumerate(rows):
            regions += self.cover(image, size, image_rows, guidance, side)
        return regions

    def predict(self, t: Tensor, x: Tensor, conditions: Conditions) -> Tensor:
        """Return the UNet's prediction for latents of one timestep.

        Args:
            conditions: the values of the UNet's arguments, by name; a.b.c is the entry c of the
                entry b of the argument a.
        """
        count = len(x)
        x = x.to(self.unet.dtype, memory_format=torch.channels_last)
        if self.padded_cells is not None:
            wanted = max(1, self.padded_cells // x[0, 0].numel())
            rows = torch.arange(max(count, wanted), device=x.device).clamp(max=count - 1)
            x = x[rows]
            conditions = select(conditions, rows)
        prediction: Tensor = self.unet(x, t, **_nest_conditions(conditions)).sample[:count]
        record_beat(cost=count_cells(x[:count]))
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
        expected: bool = False,
    ) -> Tensor:
        """Run the steps [first, last) of the schedule on the whole canvas of every image.

        Args:
            latents: (B, C, h, w): standard normal noise if first is 0, else latents at the level of
                that step.
            evaluations: functions that predict the noise, one for each step of the schedule.
            callback: called after each step, see `StepEnd`.
            after: functions that change the latents after each step, see `AfterStep`.
            generator: one CPU generator per image, or one for all, for the noise that some
                schedulers add at each step.
            eta: factor of this noise, for DDIM.
            first: number of the first step.
            last: number of the step before which denoising stops; None: all steps.
            beside: (B, C', h, w) that the UNet reads as additional channels.
            expected: whether the progress of the batch already expects this work.
        """
        scheduler = self.scheduler
        count = len(evaluations)
        stop = count if last is None else last
        scheduler.set_timesteps(count, device=latents.device)
        if first == 0:
            latents = latents * scheduler.init_noise_sigma
        timesteps = scheduler.timesteps
        # Heun and PNDM have several timesteps for some steps.
        steps = [k * count // len(timesteps) for k in range(len(timesteps))]
        calls = [k for k in range(len(timesteps)) if first <= steps[k] < stop]
        if calls and hasattr(scheduler, "set_begin_index"):
            # Otherwise the scheduler searches its timesteps, for which a GPU has to wait.
            scheduler.set_begin_index(calls[0])
        options = self._scheduler_options(eta, generator)
        if not expected:
            expect(sum(evaluations[steps[k]].cells for k in calls))
        begin_activity("denoising")
        for k in self.progress_bar(calls):
            step = steps[k]
            t = timesteps[k]
            z = scheduler.scale_model_input(latents, t)
            if beside is not None:
                z = torch.cat([z, beside], 1)
            noise = evaluations[step](z, partial(self.predict, t))
            latents = scheduler.step(noise, t, latents, **options).prev_sample
            following = timesteps[k + 1] if k + 1 < len(timesteps) else None
            for change in after:
                latents = change(latents, scheduler, step, following)
            if callback is not None:
                latents = callback(self, step, t, {"latents": latents}).get("latents", latents)
        return latents

    def _scheduler_options(self, eta: float, generator: Generators) -> dict[str, Any]:
        """Return the arguments of the scheduler's `step` that it accepts."""
        accepted = signature(self.scheduler.step).parameters
        options: dict[str, Any] = {}
        if "eta" in accepted:
            options["eta"] = eta
        if "generator" in accepted:
            options["generator"] = list(generator) if isinstance(generator, Sequence) else generator
        return options

    def check_encoder(self) -> None:
        """Raise IncompatibleLayoutError for a checkpoint of two text encoders (SDXL)."""
        if self.text_encoder_2 is not None:
            raise IncompatibleLayoutError(
                "text_encoder_2: this method reads checkpoints with one text encoder, not SDXL's"
            )

    def check_schedule(self) -> None:
        """Raise ValueError for a scheduler that cannot start within its schedule."""
        name = type(self.scheduler).__name__
        if name not in PARTIAL_SCHEDULERS:
            shown = "lms" if isinstance(self.scheduler, LMSDiscreteScheduler) else name
            raise ValueError(
                f"scheduler: {shown} cannot start within its schedule; "
                "use dpm++, unipc, ddim or euler"
            )

    def merge_lora(self, file: Path, scale: float = 1.0) -> None:
        """Add a LoRA, multiplied by `scale`, to the weights; this cannot be undone.

        Args:
            file: safetensors, in the format of diffusers or of a common trainer.

        Raises:
            ModelNotFoundError: one of its tensors fits no weight, or its kind is not read.
        """
        weights: dict[str, dict[str, Tensor]] = {}
        shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        for part in LORA_PARTS:
            network = getattr(self, part)
            if network is not None:
                weights[part] = _read_weights(network)
                shapes[part] = {name: tuple(w.shape) for name, w in weights[part].items()}
        layers = read_layers(file, shapes, self.unet.config)
        with safe_open(file, "pt") as tensors:
            for layer in layers:
                weight = weights[layer.part][layer.weight]
                weight += _compute_change(layer, tensors, scale, weight).to(weight.dtype)

    def load_lora_weights(self, *args: Any, **options: Any) -> None:
        """Load a LoRA as diffusers does.

        Raises:
            ValueError: the checkpoint is an SDXL one: diffusers would ignore the changes of the
                second text encoder; `merge_lora` does not.
        """
        if self.text_encoder_2 is not None:
            raise ValueError(
                "load_lora_weights: of SDXL it would leave out the second text encoder; "
                "use merge_lora(file, scale)"
            )
        super().load_lora_weights(*args, **options)


def _check_boxes(layout: Layout, wrong: NDArray[np.bool_], number: int, reason: str) -> None:
    """Raise IncompatibleLayoutError for the first wrong box of a layout, if there is one.

    Args:
        wrong: (N, 2): whether a box is wrong along x and y.
        number: the number of the layout in the batch.
    """
    if wrong.any():
        i = int(wrong.any(1).argmax())
        raise IncompatibleLayoutError(
            f"layouts[{number}].boxes[{i}]: {layout.boxes[i].tolist()} {reason}"
        )


def as_output(arrays: NDArray[np.uint8], output_type: str) -> Images:
    """Return images (B, H, W, 3) in the requested form: "np" or "pil"."""
    return arrays if output_type == "np" else [Image.fromarray(a) for a in arrays]


def make_generators(
    seed: int | Sequence[int] | None, generator: Generators
) -> list[torch.Generator]:
    """Return a CPU generator per image: new ones if there are seeds, else the given ones."""
    if seed is not None:
        seeds = [seed] if isinstance(seed, int) else seed
        return [torch.Generator().manual_seed(s) for s in seeds]
    if isinstance(generator, Sequence):
        return list(generator)
    if generator is not None:
        return [generator]
    return [torch.Generator().manual_seed(torch.seed())]


def load_pipeline(
    kind: type[AnyPipeline], spec: ModelSpec, scheduler: str | None, numerics: Numerics
) -> AnyPipeline:
    """Load the pipeline of a recipe's checkpoint on its device, as the engine uses it.

    Args:
        kind: class of the pipeline.
        scheduler: name of a scheduler in `SCHEDULERS`; None: the checkpoint's.
    """
    diffusers_logging.set_verbosity_error()
    # Loading takes a second, and its progress bars would interrupt that of the images.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    dtype = getattr(torch, numerics.dtype or spec.former_dtype(numerics.device))
    pipeline = read_pipeline(kind, spec.checkpoint(), dtype)
    if spec.memory == "fast":
        pipeline.to(numerics.device)
    if scheduler is not None:
        pipeline.scheduler = SCHEDULERS[scheduler].from_config(pipeline.scheduler.config)
    if spec.lora is not None:
        pipeline.merge_lora(find_lora(spec.lora), spec.lora_scale)
    for network in (pipeline.unet, pipeline.vae):
        network.to(memory_format=torch.channels_last)
        if spec.compile and network is pipeline.unet:
            network.compile()  # torch's compiler fuses layers itself
        elif numerics.device == "cpu":
            use_cpu_layers(network)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.embedded = {}
    pipeline.tiled = numerics.tiled
    if spec.compile:
        pipeline.padded_cells = pipeline.cells_at_once(numerics.chunk)
    place_networks(pipeline, numerics.device, spec.memory)
    return pipeline


def read_pipeline(
    kind: type[AnyPipeline], checkpoint: Checkpoint, dtype: torch.dtype
) -> AnyPipeline:
    """Load the pipeline of a checkpoint, each part from the weights that were chosen for it.

    Raises:
        ModelNotFoundError: a weight of a network is not in the checkpoint's files.
    """
    options = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    parts = {}
    for part, name in checkpoint.classes.items():
        variant = checkpoint.weights[part].variant
        if variant is not None:
            library = diffusers if part in ("unet", "vae") else transformers
            network = getattr(library, name)
            folder = checkpoint.folder / part
            parts[part] = network.from_pretrained(folder, variant=variant, **options)
    pipeline: AnyPipeline = kind.from_pretrained(checkpoint.folder, **options, **parts)
    for part, shapes in checkpoint.shapes.items():
        stored = {_modernise_name(name) for name in shapes}
        missing = sorted(_read_weights(getattr(pipeline, part)).keys() - stored)
        if missing:
            raise ModelNotFoundError(
                f"model {str(checkpoint.folder)!r}: its {part} lacks {len(missing)} weights, "
                f"such as {missing[0]}: of another checkpoint"
            )
    return pipeline


def _read_weights(network: torch.nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a network by their names in its files, without "text_model."."""
    parameters = network.named_parameters()
    return {name.removeprefix("text_model."): weight.data for name, weight in parameters}


def _modernise_name(name: str) -> str:
    """Return a tensor's present name; attention in autoencoders had other names until 2023."""
    for old, new in OLD_ATTENTION.items():
        name = name.replace(old, new)
    return name.removeprefix("text_model.")


def _compute_change(layer: LoraLayer, tensors: Any, scale: float, weight: Tensor) -> Tensor:
    """Return what a layer of a LoRA adds to a weight, in float32."""
    up = tensors.get_tensor(layer.up).to(weight.device, torch.float32).flatten(1)
    down = tensors.get_tensor(layer.down).to(weight.device, torch.float32).flatten(1)
    factor = layer.factor
    if layer.alpha is not None:
        factor = float(tensors.get_tensor(layer.alpha)) / layer.rank
    return ((up @ down) * (factor * scale)).reshape(weight.shape)


def _nest_conditions(conditions: Conditions) -> dict[str, Any]:
    """Return conditions as arguments of the UNet: a value named a.b.c becomes {a: {b: {c: …}}}."""
    arguments: dict[str, Any] = {}
    for name, value in conditions.items():
        *path, key = name.split(".")
        inner = arguments
        for entry in path:
            inner = inner.setdefault(entry, {})
        inner[key] = value
    return arguments
