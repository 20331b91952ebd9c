"""The work of a pipeline over layouts, counted without loading weights.

The pipeline runs as it is, but its networks have shapes and no weights: the UNet predicts zeros,
images are black, and every use is recorded. The operations of each kind of use are then counted
once, on torch's meta device. Text encoding is not counted, because jobs cache the embeddings.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from math import prod
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.models.attention import GatedSelfAttentionDense
from diffusers.models.attention_processor import Attention
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig
from transformers.utils import logging as transformers_logging

from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion.checkpoint import Checkpoint
from synthgen.pipelines.diffusion.mixture import Conditions
from synthgen.pipelines.diffusion.models import LayoutModelSpec
from synthgen.pipelines.diffusion.painter import collect_options, generate
from synthgen.pipelines.diffusion.pipeline import LatentPipeline
from synthgen.pipelines.diffusion.scaling import enlarge_canvas, enlarge_scene
from synthgen.pipelines.diffusion.schedulers import SCHEDULERS
from synthgen.pipelines.diffusion.token_attention import TokenProbe
from synthgen.pipelines.inpaint import Spec as InpaintSpec
from synthgen.pipelines.inpaint.collage import Collage
from synthgen.pipelines.inpaint.objects import FindFailed, WantedObject
from synthgen.pipelines.inpaint.pipeline import InpaintPipeline
from synthgen.randomness import Stream, seed_sequence
from synthgen.scenes.scene import Scene

META = torch.device("meta")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Counts:
    """The work for an image, as the mean of some images.

    Attributes:
        images: the number of these images.
        passes: windows that go through the UNet; a batch of n windows counts n.
        unet_flop: floating-point operations of these passes; a product and its sum are two.
        vae_flop: floating-point operations of encoding and decoding images.
        weight_bytes: size of all weights in the number format of a GPU.
        dtype: this number format.
    """

    images: int
    passes: float
    unet_flop: float
    vae_flop: float
    weight_bytes: int
    dtype: str


@dataclass(frozen=True)
class PassKind:
    """What the number of operations of a pass over one window depends on.

    Attributes:
        height, width: size of the window in latent cells.
        tokens: number of text tokens that the UNet reads.
        boxes: number of boxes that it reads; 0 if it has no gated layers.
        gated: whether the gated layers are on.
    """

    height: int
    width: int
    tokens: int
    boxes: int
    gated: bool


@dataclass
class Record:
    """How often networks were used.

    Attributes:
        passes: number of passes of each kind.
        conditions: what the UNet reads in a pass of each kind, for one window, without data.
        encoded, decoded: number of images of each height and width in latent cells.
    """

    passes: Counter[PassKind] = field(default_factory=Counter)
    conditions: dict[PassKind, Conditions] = field(default_factory=dict)
    encoded: Counter[tuple[int, int]] = field(default_factory=Counter)
    decoded: Counter[tuple[int, int]] = field(default_factory=Counter)


class CountedPipeline(LatentPipeline):
    """A pipeline that records how often its networks are used, and does not use them.

    The class that is counted derives from this one and from that of a method.

    Attributes:
        record: what was used.
        copies: how often each use is recorded.
        attention_layers, gated_layers: layers of the UNet.
    """

    record: Record
    copies = 1
    attention_layers: Sequence[Attention]
    gated_layers: Sequence[GatedSelfAttentionDense]
    _execution_device = torch.device("cpu")  # only the networks are on the meta device

    def predict(self, t: Tensor, x: Tensor, conditions: Conditions) -> Tensor:
        """Record the passes of a batch of windows (n, C, h, w), and return zeros."""
        grounding = conditions.get("cross_attention_kwargs", {}).get("gligen")
        boxes = 0 if grounding is None else grounding["boxes"].shape[1]
        kind = PassKind(
            height=x.shape[2],
            width=x.shape[3],
            tokens=conditions["encoder_hidden_states"].shape[1],
            boxes=boxes,
            gated=boxes > 0 and any(layer.enabled for layer in self.gated_layers),
        )
        self.record.passes[kind] += len(x) * self.copies
        if kind not in self.record.conditions:
            self.record.conditions[kind] = keep_shapes(conditions)
        probes = {layer.processor for layer in self.attention_layers}
        for probe in probes:
            if isinstance(probe, TokenProbe):
                probe.layer_maps.append(torch.zeros(len(x), kind.height * kind.width))
        return torch.zeros(len(x), self.unet.config.out_channels, kind.height, kind.width)

    def encode_images(self, images: NDArray[np.uint8]) -> Tensor:
        """Record that images (B, H, W, 3) are encoded, and return zeros (B, C, h, w)."""
        height, width = (side // self.factor for side in images.shape[1:3])
        self.record.encoded[height, width] += len(images) * self.copies
        return torch.zeros(len(images), self.vae.config.latent_channels, height, width)

    def decode(
        self, latents: Tensor, cpu_vae: bool = False, norms: Any = None
    ) -> NDArray[np.uint8]:
        """Record that latents (B, C, h, w) are decoded, and return black images (B, H, W, 3)."""
        height, width = latents.shape[2:]
        self.record.decoded[height, width] += len(latents) * self.copies
        size = (height * self.factor, width * self.factor)
        return np.zeros((len(latents), *size, 3), np.uint8)

    def count_unet_flop(self) -> int:
        """Return the floating-point operations of all recorded passes.

        Regional attention counts as plain attention, which differs by a few per cent.
        """
        known: dict[PassKind, dict[int, int]] = {}
        total = 0
        for kind, count in self.record.passes.items():
            same_inputs = known.setdefault(replace(kind, height=0, width=0), {})
            total += count * self.find_pass_flop(kind, same_inputs)
        return total

    def find_pass_flop(self, kind: PassKind, known: dict[int, int]) -> int:
        """Return the operations of a pass, which are counted or follow from those of other passes.

        Convolutions are linear in the number of cells, and attention is quadratic. Three sizes
        therefore determine all others, whose sides are multiples of `multiple`. Only a window that
        is the whole canvas has other sides, and all such windows have one size.

        Args:
            known: operations by number of cells, of passes that read the same; a counted pass is
                added.
        """
        cells = kind.height * kind.width
        if cells not in known and len(known) < 3:
            known[cells] = self.count_pass_flop(kind)
        return interpolate(known, cells)

    def count_pass_flop(self, kind: PassKind) -> int:
        """Return the operations of a pass, counted."""
        for layer in self.gated_layers:
            layer.enabled = kind.gated
        channels = self.unet.config.in_channels
        x = torch.zeros(1, channels, kind.height, kind.width, device=META)
        timestep = torch.zeros((), device=META)
        return count_flop(partial(super().predict, timestep, x, self.record.conditions[kind]))

    def count_vae_flop(self) -> int:
        """Return the floating-point operations of encoding and decoding, without tiles."""
        total = 0
        for (height, width), count in self.record.encoded.items():
            size = (height * self.factor, width * self.factor)
            image = torch.zeros(1, self.vae.config.in_channels, *size, device=META)
            total += count * count_flop(partial(self.vae.encode, image))
        for (height, width), count in self.record.decoded.items():
            z = torch.zeros(1, self.vae.config.latent_channels, height, width, device=META)
            total += count * count_flop(partial(self.vae.decode, z))
        return total


class CountedInpainting(CountedPipeline, InpaintPipeline):
    """Inpainting in which each object has one attempt, as if every object were found."""

    def generate_objects(
        self,
        collages: Sequence[Collage],
        objects: Sequence[WantedObject],
        conditions: Conditions,
        schedule: Any,
        attempts: int,
        find_failed: FindFailed | None,
    ) -> None:
        """Generate the objects of a round; they are neither searched for nor pasted.

        Of objects that take the same work, one is generated and counted for all.
        """
        groups: dict[tuple[tuple[int, int], bool], list[WantedObject]] = {}
        for each in objects:
            # A prompt that is also the negative one takes one pass instead of two.
            key = (each.crop.size, each.prompt == each.negative)
            groups.setdefault(key, []).append(each)
        for ((width, height), _), group in groups.items():
            self.copies = len(group)
            crop = np.zeros((1, height, width, 3), np.uint8)
            self.generate_crops(crop, group[:1], conditions, schedule, [None])
        self.copies = 1


@dataclass(frozen=True)
class BlankEncoding:
    """The output of a text encoder, with the names that transformers uses.

    Attributes:
        last_hidden_state: (P, T, D).
        pooler_output: (P, D').
    """

    last_hidden_state: Tensor
    pooler_output: Tensor

    @property
    def hidden_states(self) -> tuple[Tensor, Tensor]:
        """The states of the last two layers, (P, T, D) each."""
        return self.last_hidden_state, self.last_hidden_state

    def __getitem__(self, number: int) -> Tensor:
        """Return an output by its position: encoders with a projection return it first."""
        return (self.pooler_output, self.last_hidden_state)[number]


class BlankTextEncoder(torch.nn.Module):
    """A text encoder without weights, whose embeddings are zeros.

    Args:
        name: the class of the text encoder that it replaces.
        config: the configuration of this text encoder.
    """

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = CLIPTextConfig(**config)
        self.dtype = torch.float32
        self.width = int(self.config.hidden_size)
        projects = name.endswith("WithProjection")
        self.pooled_width = int(self.config.projection_dim) if projects else self.width

    def forward(self, ids: Tensor, output_hidden_states: bool = False) -> BlankEncoding:
        """Return the embeddings of token ids (P, T)."""
        states = torch.zeros(*ids.shape, self.width)
        return BlankEncoding(states, torch.zeros(len(ids), self.pooled_width))


def count_work(
    spec: LayoutModelSpec, scenes: Sequence[Scene], has_backgrounds: bool = False
) -> Counts:
    """Count the work that an image takes, as the mean over some scenes.

    Args:
        spec: a recipe whose scale is a number.
        scenes: at least one.
        has_backgrounds: whether objects are generated into the user's own images.

    Raises:
        ModelNotFoundError: the checkpoint cannot be found.
        IncompatibleLayoutError: this checkpoint cannot generate a canvas or a box.
    """
    kind = derive_counted_class(spec.pipeline_class())
    pipelines = [build_pipeline(kind, spec)]
    options = collect_options(kind, spec, Numerics())
    weight_bytes = count_weight_bytes(spec.checkpoint(), spec)
    background_spec = spec.background_spec() if isinstance(spec, InpaintSpec) else None
    if background_spec is not None:
        pipelines.append(build_pipeline(kind, background_spec))
        options["background_pipeline"] = pipelines[1]
        weight_bytes += count_weight_bytes(background_spec.checkpoint(), background_spec)
    seed = seed_sequence(0, 0, Stream.NOISE)  # the work does not depend on it
    for scene in scenes:
        size = (scene.layout.width, scene.layout.height)
        width, height = enlarge_canvas(size, spec.generation_scale(), pipelines[0].factor)
        if has_backgrounds:
            options["pictures"] = np.zeros((1, height, width, 3), np.uint8)
        larger = enlarge_scene(scene, (width, height))
        generate(pipelines[0], [larger], [seed], **options)
    passes = sum(pipeline.record.passes.total() for pipeline in pipelines)
    unet_flop = sum(pipeline.count_unet_flop() for pipeline in pipelines)
    vae_flop = sum(pipeline.count_vae_flop() for pipeline in pipelines)
    return Counts(
        images=len(scenes),
        passes=passes / len(scenes),
        unet_flop=unet_flop / len(scenes),
        vae_flop=vae_flop / len(scenes),
        weight_bytes=weight_bytes,
        dtype=spec.choose_dtype("cuda"),
    )


def derive_counted_class(kind: type[LatentPipeline]) -> type[Any]:
    """Return a class that counts the work of a method's pipeline."""
    if issubclass(kind, InpaintPipeline):
        return CountedInpainting
    return type(f"Counted{kind.__name__}", (CountedPipeline, kind), {})


def build_pipeline(kind: type[Any], spec: LayoutModelSpec) -> Any:
    """Return the pipeline of a recipe's checkpoint, whose networks have no weights.

    Args:
        kind: a class that derives from `CountedPipeline`.
    """
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    checkpoint = spec.checkpoint()
    parts: dict[str, Any] = dict.fromkeys(TEXT_ENCODERS)
    with META:
        for part in ("unet", "vae"):
            network = getattr(diffusers, checkpoint.classes[part])
            parts[part] = network.from_config(checkpoint.configs[part])
    options = {"use_safetensors": True, "local_files_only": True}
    pipeline = kind.from_pretrained(checkpoint.folder, **options, **parts)
    for part in TEXT_ENCODERS:
        if part in checkpoint.classes:
            encoder = BlankTextEncoder(checkpoint.classes[part], checkpoint.configs[part])
            setattr(pipeline, part, encoder)
    if spec.scheduler is not None:
        pipeline.scheduler = SCHEDULERS[spec.scheduler].from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.empty_is_none = True
    pipeline.record = Record()
    modules = list(pipeline.unet.modules())
    pipeline.attention_layers = [m for m in modules if isinstance(m, Attention)]
    pipeline.gated_layers = [m for m in modules if isinstance(m, GatedSelfAttentionDense)]
    return pipeline


def keep_shapes(conditions: Conditions) -> dict[str, Any]:
    """Return the first row of each table, without data.

    The plans of regional attention are left out; other attention does not read them.
    """
    kept: dict[str, Any] = {}
    for name, table in conditions.items():
        if isinstance(table, Tensor):
            kept[name] = table[:1].to(META)
        elif isinstance(table, dict):
            kept[name] = keep_shapes(table)
    return kept


def interpolate(points: Mapping[int, int], x: int) -> int:
    """Return the value at x of the polynomial through points (Lagrange), without its fraction."""
    total = Fraction(0)
    for place, value in points.items():
        share = Fraction(1)
        for other in points:
            if other != place:
                share *= Fraction(x - other, place - other)
        total += value * share
    return int(total)


@torch.no_grad()
def count_flop(run: Callable[[], Any]) -> int:
    """Return the floating-point operations of a function; a product and its sum are two."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def count_weight_bytes(checkpoint: Checkpoint, spec: LayoutModelSpec) -> int:
    """Return the size of a checkpoint's weights in the number format of a GPU, from its headers."""
    count = 0
    for shapes in checkpoint.shapes.values():
        count += sum(prod(shape) for shape in shapes.values())
    dtype: torch.dtype = getattr(torch, spec.choose_dtype("cuda"))
    return count * dtype.itemsize
