"""The recipes of methods that use a checkpoint, and why a method cannot use one.

This module loads no weights and does not import torch.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.base import MethodSpec, ModelNotFoundError
from synthgen.pipelines.diffusion.checkpoint import (
    EDM_SCHEDULERS,
    PARTIAL_SCHEDULERS,
    TWO_EVALUATION_SCHEDULERS,
    Checkpoint,
    find_input_problem,
)
from synthgen.pipelines.diffusion.lora import read_layers
from synthgen.pipelines.diffusion.scaling import (
    LARGEST_SCALE,
    choose_scale,
    enlarge_canvas,
    measure_boxes,
)
from synthgen.pipelines.diffusion.sizes import (
    compute_unet_multiple,
    compute_vae_factor,
    read_config,
    read_native_windows,
    read_object_sizes,
)
from synthgen.pipelines.diffusion.sources import (
    RevisionNotFoundError,
    find_checkpoint,
    find_lora,
    find_single_file,
    hash_checkpoint,
    hash_lora,
    is_on_hub,
)
from synthgen.pipelines.diffusion.weights import VariantNotFoundError
from synthgen.scenes.scene import SceneSpec
from synthgen.spec import load_implementation

LICENCES = {"synthgen-tiny": "Apache-2.0"}
# All classes that a checkpoint was trained on, for those that were trained on few.
KNOWN_CLASSES = {"synthgen-tiny": ("dog", "cat", "ball", "tree")}
SchedulerName = Literal["dpm++", "unipc", "ddim", "euler", "lms", "lcm"]
# Boxes are warned of if they are smaller or larger than these multiples of the limits.
FAR_BELOW = 0.75
FAR_ABOVE = 1.5
MOST_FEW_STEP_GUIDANCE = 2.0  # above it, checkpoints distilled to few steps oversaturate
# Words in the names of checkpoints and LoRAs that are distilled to few steps.
FEW_STEP_WORDS = ("lcm", "turbo", "hyper", "lightning")
Scale = Annotated[float, Field(ge=1, le=LARGEST_SCALE)] | Literal["native"]
PRK_STEPS = 4  # Runge-Kutta steps with which PNDM begins unless its configuration skips them
LCM_STEPS = 50  # default number of steps in LCM's schedule


def _refuse_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no number; give one, such as 0.8")
    return value


class ModelSpec(MethodSpec):
    """A pipeline recipe that names a checkpoint in Stable Diffusion format."""

    model: str = Field(
        "synthgen-tiny",
        min_length=1,
        description="Embedded checkpoint, folder, .safetensors file, Hugging Face id "
        "(owner/name), file of one (owner/name/FILE), or URL of a folder or file (s3://…).",
    )
    revision: str | None = Field(
        None,
        min_length=1,
        description="Branch, tag or commit of the checkpoint on the Hugging Face Hub; null: its "
        "default branch.",
    )
    config: str | None = Field(
        None,
        min_length=1,
        description="Folder or Hugging Face id of a checkpoint with the configurations of a "
        "checkpoint in one file; null: those of its family.",
    )
    weights: str | None = Field(
        None,
        pattern=r"^\w+$",
        description="Variant of the weights, such as fp16; null: the weights without a variant, "
        "or fp16 for a part that has only those.",
    )
    dtype: str = Field(
        "auto",
        pattern="^(auto|float32|float16|bfloat16)$",
        description="Number format of the networks; auto: float16 on a GPU, bfloat16 on a CPU with "
        "AMX, float32 on other CPUs.",
    )
    lora: str | None = Field(
        None,
        min_length=1,
        description="LoRA that is merged into the checkpoint: a .safetensors file, its folder, a "
        "Hugging Face id (owner/name), a file of one (owner/name/FILE), or the URL of a file.",
    )
    lora_scale: Annotated[float, BeforeValidator(_refuse_boolean)] = Field(
        1.0, allow_inf_nan=False, description="Factor by which the LoRA is multiplied."
    )
    scale: Scale = Field(
        1.0,
        description="Factor by which the canvas is enlarged for generation; the image is then "
        "shrunk to its size. native: the smallest factor at which the checkpoint generates objects "
        "of these sizes well.",
    )
    memory: Literal["fast", "balanced", "least"] = Field(
        "fast",
        description="Where the weights are on a GPU; fast: in its memory; balanced: each network "
        "only while it is used; least: each layer only while it is used, and those of the UNet in "
        "8 bits, which is slow.",
    )
    compile: bool = Field(
        False,
        description="Compile the UNet once per worker; faster on a GPU, for jobs of many images. "
        "All passes then have one shape if the windows have one size.",
    )

    @property
    def uses_torch(self) -> bool:
        return True

    def choose_dtype(self, device: str) -> str:
        """Choose the number format of the networks on "cpu" or "cuda"."""
        if self.dtype != "auto":
            return self.dtype
        # Recipes do not import torch before a network is loaded.
        from synthgen.pipelines.diffusion.precision import choose_dtype

        return choose_dtype(device)

    def former_dtype(self, device: str) -> str:
        """Return the number format where it was not recorded: `auto` was float32 on every CPU."""
        if self.dtype != "auto":
            return self.dtype
        return "float16" if device == "cuda" else "float32"

    @property
    def reads_sdxl(self) -> bool:
        """Whether the method reads checkpoints with two text encoders."""
        return True

    @property
    def reads_masks(self) -> bool:
        """Whether the method reads UNets that `synthgen train` has extended by a mask's latents."""
        return False

    @property
    def reads_masked_images(self) -> bool:
        """Whether the method reads UNets for inpainting."""
        return False

    @property
    def starts_within_schedule(self) -> bool:
        """Whether denoising starts within the schedule instead of at its first step."""
        return False

    def checkpoint(self) -> Checkpoint:
        """Return the checkpoint, with its configurations and headers.

        Raises:
            ModelNotFoundError: the checkpoint cannot be found or loaded.
        """
        return find_checkpoint(self.model, self.weights, self.revision, self.config)

    def folder(self) -> Path:
        """Return the local folder of the checkpoint.

        Raises:
            ModelNotFoundError: the checkpoint cannot be found or loaded.
        """
        return self.checkpoint().folder

    def fit_to_layouts(self, sampler: SamplerSpec) -> "ModelSpec":
        """Return the recipe with a number for the scale `native`.

        The recipe is returned unchanged if its checkpoint cannot be found.
        """
        if self.scale != "native":
            return self
        try:
            least, _ = read_object_sizes(self.folder())
        except ModelNotFoundError:
            return self
        scale = choose_scale(measure_boxes(sampler), sampler.canvas, least)
        return self.model_copy(update={"scale": scale})

    def generation_scale(self) -> float:
        """Return the scale as a number.

        Raises:
            ValueError: it is `native`, which depends on the layouts of a job (`fit_to_layouts`).
        """
        if self.scale == "native":
            raise ValueError("scale: native depends on a job's layouts; give a number")
        return self.scale

    def generation_canvas(self, canvas: tuple[int, int]) -> tuple[int, int]:
        factor = compute_vae_factor(read_config(self.folder(), "vae"))
        return enlarge_canvas(canvas, self.generation_scale(), factor)

    def fingerprint(self) -> dict[str, Any]:
        hashes: dict[str, Any] = dict(
            hash_checkpoint(self.model, self.weights, self.revision, self.config)
        )
        if self.lora is not None:
            hashes["lora_sha256"] = hash_lora(find_lora(self.lora))
        return hashes

    def licence(self) -> str:
        return LICENCES.get(self.model, f"that of the outputs of the model {self.model}")


class LayoutModelSpec(ModelSpec):
    """A pipeline recipe whose checkpoint generates images from layouts.

    Attributes:
        PIPELINE: import path of the `LatentPipeline` as which the painter loads the checkpoint.
    """

    PAINTER: ClassVar[str] = "synthgen.pipelines.diffusion.painter:LayoutPainter"
    PIPELINE: ClassVar[str]

    steps: int = Field(20, ge=1, le=1000, description="Number of denoising steps.")
    scheduler: SchedulerName | None = Field(
        "dpm++", description="Noise scheduler; null: that of the checkpoint."
    )
    guidance_scale: float = Field(7.5, ge=0, description="Scale of classifier-free guidance.")

    @property
    def accepts_backgrounds(self) -> bool:
        """Whether the method can generate objects into the user's own images."""
        return False

    @classmethod
    def pipeline_class(cls) -> Any:
        """Import the class that `PIPELINE` names."""
        return load_implementation(cls.PIPELINE)

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        problems = find_canvas_problems(self, sampler.canvas)
        if scene.backgrounds is not None and not self.accepts_backgrounds:
            problems.append(
                "method: cannot generate into your own images (scene.backgrounds); "
                "`mixture` and `paste` can"
            )
        return problems

    def find_warnings(self, sampler: SamplerSpec) -> list[str]:
        return [
            *self._warn_about_names(sampler),
            *self._warn_about_guidance(),
            *self._warn_about_window(),
            *self._warn_about_sizes(sampler),
        ]

    def _warn_about_names(self, sampler: SamplerSpec) -> list[str]:
        """Warn about categories that the checkpoint was not trained on."""
        known = KNOWN_CLASSES.get(self.model)
        if known is None or self.lora is not None:
            return []
        unknown = []
        for name in sampler.names():
            if set(known).isdisjoint(name.split()):
                unknown.append(repr(name))
        if not unknown:
            return []
        names = ", ".join(unknown)
        return [f"model: {self.model} has never seen {names}; it knows {', '.join(known)}"]

    def _warn_about_guidance(self) -> list[str]:
        """Warn about guidance that oversaturates images of checkpoints distilled to few steps."""
        if self.guidance_scale <= MOST_FEW_STEP_GUIDANCE or not self._takes_few_steps():
            return []
        reason = "lcm, turbo, hyper and lightning checkpoints oversaturate above 2"
        return [f"guidance_scale: {self.guidance_scale:g} is high: {reason}; give 1"]

    def _takes_few_steps(self) -> bool:
        """Return whether the checkpoint or its LoRA is distilled to few steps.

        This is concluded from the scheduler and the names.
        """
        checkpoint = self.checkpoint()
        if checkpoint.configs["unet"].get("time_cond_proj_dim") is not None:
            return False  # it reads the guidance scale as a condition
        if self.scheduler == "lcm":
            return True
        if self.scheduler is None and checkpoint.scheduler == "LCMScheduler":
            return True
        names = f"{self.model} {self.lora or ''}".lower()
        return any(word in names for word in FEW_STEP_WORDS)

    def _warn_about_window(self) -> list[str]:
        """Warn about a window of another size than the checkpoint was trained at."""
        window: int | None = getattr(self, "window", None)
        least, most = read_native_windows(self.folder())
        if window is None or least <= window <= most:
            return []
        native = f"{least} px" if least == most else f"{least} to {most} px"
        return [
            f"window: {window} px is not the size that {self.model} was trained at, {native}; "
            "omit the key, or give that size"
        ]

    def _warn_about_sizes(self, sampler: SamplerSpec) -> list[str]:
        """Warn about boxes far smaller or larger than what the checkpoint generates well."""
        sides = measure_boxes(sampler)
        if not len(sides) or self.scale == "native":
            return []
        least, most = read_object_sizes(self.folder())
        side = float(np.median(sides)) * self.scale
        boxes = f"boxes of {side:.0f} px (median of the longer sides, at scale {self.scale:g})"
        objects = f"{self.model} generates objects of {least:.0f} to {most:.0f} px"
        if side < FAR_BELOW * least:
            scale = choose_scale(sides, sampler.canvas, least)
            return [
                f"scale: {boxes} are small: {objects}; pipeline.scale=native generates at "
                f"{scale:g}, and the method inpaint enlarges each box by itself"
            ]
        if side > FAR_ABOVE * most:
            return [f"scale: {boxes} are large: {objects}; use a smaller canvas with smaller boxes"]
        return []


def find_canvas_problems(spec: ModelSpec, canvas: tuple[int, int]) -> list[str]:
    """Return why a recipe's checkpoint cannot generate a canvas, each as `key: reason`.

    Args:
        canvas: width, height in px.
    """
    problems = find_model_problems(spec)
    if problems:
        return problems
    folder = spec.folder()
    factor = compute_vae_factor(read_config(folder, "vae"))
    least = factor * compute_unet_multiple(read_config(folder, "unet"))
    for name, side in zip(("width", "height"), spec.generation_canvas(canvas), strict=True):
        if side % factor or side < least:
            problems.append(
                f"model: canvas {name} {side} px must be a multiple of {factor} "
                f"and at least {least} for {spec.model}"
            )
    return problems


def find_model_problems(spec: ModelSpec) -> list[str]:
    """Return why a recipe's method cannot use its checkpoint or LoRA, each as `key: reason`."""
    problems = _find_unused_keys(spec)
    if problems:
        return problems
    try:
        checkpoint = spec.checkpoint()
    except VariantNotFoundError as error:
        return [f"weights: {error}"]
    except RevisionNotFoundError as error:
        return [f"revision: {error}"]
    except ModelNotFoundError as error:
        return [f"model: {error}"]
    reason = find_input_problem(checkpoint, spec.reads_masks, spec.reads_masked_images)
    if reason is not None:
        problems.append(f"model: {spec.model}: {reason}")
    if checkpoint.has_two_encoders and not spec.reads_sdxl:
        problems.append(
            f"model: {spec.model} has two text encoders (SDXL), but {spec.method} reads "
            "checkpoints with one; use Stable Diffusion 1 or 2, or the method `mixture`"
        )
    if spec.compile and spec.memory != "fast":
        problems.append(
            f"compile: a UNet that is not always on the GPU (memory: {spec.memory}) is not "
            "compiled; omit one of the two"
        )
    problems += _find_scheduler_problems(spec, checkpoint)
    if spec.lora is not None:
        try:
            read_layers(find_lora(spec.lora), checkpoint.shapes, checkpoint.configs["unet"])
        except ModelNotFoundError as error:
            problems.append(f"lora: {error}")
    return problems


def _find_unused_keys(spec: ModelSpec) -> list[str]:
    """Return why keys that say where a checkpoint is have no meaning for this one."""
    problems = []
    if spec.revision is not None and not is_on_hub(spec.model):
        problems.append(
            f"revision: {spec.model} is not on the Hugging Face Hub, and has no revisions; "
            "omit the key"
        )
    if spec.config is not None:
        try:
            is_single = find_single_file(spec.model, spec.revision) is not None
        except ModelNotFoundError as error:
            return [f"model: {error}"]
        if not is_single:
            problems.append(
                f"config: {spec.model} has its own configurations; omit the key, which is for "
                "checkpoints in one file"
            )
    return problems


def _find_scheduler_problems(spec: ModelSpec, checkpoint: Checkpoint) -> list[str]:
    """Return why the scheduler of a recipe, or of its checkpoint, cannot be used."""
    named = getattr(spec, "scheduler", None)
    if named is None:
        return _find_own_scheduler_problems(spec, checkpoint)
    if checkpoint.scheduler in EDM_SCHEDULERS:
        return [
            f"scheduler: {named} cannot replace the {checkpoint.scheduler} of {spec.model}, "
            "for which its unet was trained; give null"
        ]
    if named == "lcm":
        return _find_lcm_problems(spec, checkpoint)
    return []


def _find_own_scheduler_problems(spec: ModelSpec, checkpoint: Checkpoint) -> list[str]:
    """Return why a recipe without a scheduler cannot use that of its checkpoint."""
    scheduler = checkpoint.scheduler
    if spec.starts_within_schedule and scheduler not in PARTIAL_SCHEDULERS:
        limit = "can start at its first step only"
        if scheduler in TWO_EVALUATION_SCHEDULERS:
            limit = "takes two evaluations a step"
        return [
            f"scheduler: the {scheduler} of {spec.model} {limit}, "
            f"and {spec.method} starts within the schedule; give ddim or dpm++"
        ]
    steps = getattr(spec, "steps", 1)
    skips_prk_steps = checkpoint.configs["scheduler"].get("skip_prk_steps")
    if scheduler == "PNDMScheduler" and not skips_prk_steps and steps < PRK_STEPS:
        return [
            f"steps: {steps} are fewer than the {PRK_STEPS} with which the PNDMScheduler of "
            f"{spec.model} begins"
        ]
    if scheduler == "LCMScheduler":
        return _find_lcm_problems(spec, checkpoint)
    return []


def _find_lcm_problems(spec: ModelSpec, checkpoint: Checkpoint) -> list[str]:
    """Return a problem if a recipe has more steps than the schedule of LCM."""
    steps = getattr(spec, "steps", 1)
    most = int(checkpoint.configs["scheduler"].get("original_inference_steps") or LCM_STEPS)
    if steps <= most:
        return []
    return [f"steps: {steps} are more than the {most} of the scheduler lcm; give 4 to 8"]
