"""Find checkpoints by name: shipped with the package, in a folder, or on the Hugging Face Hub.

This module finds, checks and hashes files. It loads no weights and does not import torch.
"""

import hashlib
import json
from functools import lru_cache
from glob import escape
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from synthgen.file_hashes import hash_file
from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.base import MethodSpec, ModelNotFoundError
from synthgen.pipelines.diffusion.checkpoint import (
    EDM_SCHEDULERS,
    PARTIAL_SCHEDULERS,
    TWO_EVALUATION_SCHEDULERS,
    Checkpoint,
    find_input_problem,
    read_checkpoint,
)
from synthgen.pipelines.diffusion.lora import ADAPTER, read_layers, reads_adapter_config
from synthgen.pipelines.diffusion.scaling import (
    LARGEST_SCALE,
    choose_scale,
    enlarge_canvas,
    measure_boxes,
)
from synthgen.pipelines.diffusion.weights import VariantNotFoundError, read_head, select_files
from synthgen.scenes.scene import SceneSpec
from synthgen.spec import load_implementation

EMBEDDED = Path(__file__).parents[2] / "weights"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
SIZES_FILE = "synthgen.json"  # lists the sizes that a checkpoint was trained for, in its folder
CONCEPTS = "concepts.json"  # lists the classes of a checkpoint's identifiers, in its folder
LICENCES = {"synthgen-tiny": "Apache-2.0"}
# All classes that a checkpoint was trained on, for those that were trained on few.
KNOWN_CLASSES = {"synthgen-tiny": ("dog", "cat", "ball", "tree")}
SchedulerName = Literal["dpm++", "unipc", "ddim", "euler", "lms", "lcm"]
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
# Longer sides of the objects that a checkpoint generates well, as shares of its native window.
LEAST_OBJECT_SHARE = 0.4
MOST_OBJECT_SHARE = 0.8
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
        description="Embedded checkpoint, folder, or Hugging Face id.",
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
        description="LoRA that is merged into the checkpoint: a .safetensors file, its folder, or "
        "a Hugging Face id.",
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
    compile: bool = Field(
        False,
        description="Compile the UNet once per worker; faster on a GPU, for jobs of many images.",
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

    def folder(self) -> Path:
        """Return the local folder of the checkpoint.

        Raises:
            ModelNotFoundError: the checkpoint cannot be found or loaded.
        """
        return find_checkpoint(self.model, self.weights).folder

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
        folder = self.folder()
        hashes = {"model_sha256": hash_folder(folder)}
        index = folder / "model_index.json"  # says how the parts work together
        if index.is_file():
            hashes["model_index_sha256"] = hashlib.sha256(index.read_bytes()).hexdigest()
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
        checkpoint = find_checkpoint(self.model, self.weights)
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
    try:
        checkpoint = find_checkpoint(spec.model, spec.weights)
    except VariantNotFoundError as error:
        return [f"weights: {error}"]
    except ModelNotFoundError as error:
        return [f"model: {error}"]
    problems = []
    reason = find_input_problem(checkpoint, spec.reads_masks, spec.reads_masked_images)
    if reason is not None:
        problems.append(f"model: {spec.model}: {reason}")
    if checkpoint.has_two_encoders and not spec.reads_sdxl:
        problems.append(
            f"model: {spec.model} has two text encoders (SDXL), but {spec.method} reads "
            "checkpoints with one; use Stable Diffusion 1 or 2, or the method `mixture`"
        )
    problems += _find_scheduler_problems(spec, checkpoint)
    if spec.lora is not None:
        try:
            read_layers(find_lora(spec.lora), checkpoint.shapes, checkpoint.configs["unet"])
        except ModelNotFoundError as error:
            problems.append(f"lora: {error}")
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


def find_model(name: str, variant: str | None = None) -> Path:
    """Return the local folder of a checkpoint, which is downloaded from the Hub if necessary.

    Raises:
        ModelNotFoundError: the checkpoint cannot be found or loaded.
    """
    return find_checkpoint(name, variant).folder


def find_checkpoint(name: str, variant: str | None = None) -> Checkpoint:
    """Return a checkpoint by name, with its configurations and headers.

    It is downloaded from the Hub if necessary.

    Raises:
        ModelNotFoundError: the checkpoint cannot be found or loaded.
        VariantNotFoundError: it has no weights of this variant.
    """
    folder = _find_folder(name, variant)
    try:
        return read_checkpoint(folder, variant)
    except VariantNotFoundError:
        raise
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"model {name!r}: {error}") from None


def _find_folder(name: str, variant: str | None) -> Path:
    """Return the local folder of a checkpoint."""
    path = Path(name)
    for folder in (EMBEDDED / name, path):
        if (folder / "model_index.json").is_file():
            return folder
    if path.is_file():
        raise ModelNotFoundError(f"model {name!r}: {_describe_single_file(path)}")
    if path.is_dir() or not _is_hub_id(name) or name.endswith(SINGLE_FILES):
        embedded = sorted(file.parent.name for file in EMBEDDED.glob("*/model_index.json"))
        raise ModelNotFoundError(
            f"model {name!r}: no folder of that name holds a model_index.json, "
            f"and it is no Hugging Face id (owner/name); embedded: {', '.join(embedded)}"
        )
    return _download_checkpoint(name, variant)


def _is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a Hugging Face id, owner/name."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _describe_single_file(file: Path) -> str:
    """Return the reason why a file cannot be used as a checkpoint, and the solution."""
    if file.suffix != ".safetensors":
        return (
            "is a file; give a folder in diffusers' format (pickled and GGUF files are not loaded)"
        )
    names = read_head(file)[0]
    if any("lora_" in name or ".lora" in name for name in names):
        return "is a LoRA; give it as `pipeline.lora`, and its checkpoint as `pipeline.model`"
    if any(name.startswith("conditioner.embedders.") for name in names):
        return _describe_conversion("Stable Diffusion XL", "StableDiffusionXLPipeline")
    if any(name.startswith("cond_stage_model.") for name in names):
        return _describe_conversion("Stable Diffusion", "StableDiffusionPipeline")
    return (
        "is a file without the names of a Stable Diffusion checkpoint; "
        "give a folder in diffusers' format"
    )


def _describe_conversion(kind: str, pipeline: str) -> str:
    """Return how a checkpoint in one file is converted to a folder."""
    command = f"diffusers.{pipeline}.from_single_file(FILE).save_pretrained(FOLDER)"
    return (
        f"is a {kind} checkpoint in one file, but only folders are read: "
        f"convert it with `{command}`, then give FOLDER"
    )


def find_lora(name: str) -> Path:
    """Return the file of a LoRA, which is downloaded from the Hub if necessary.

    Raises:
        ModelNotFoundError: it cannot be found, or there is not exactly one safetensors file.
    """
    path = Path(name)
    if not path.exists() and _is_hub_id(name):
        path = download_snapshot(name, ["*.safetensors", ADAPTER], [])
    if path.is_file() and path.suffix == ".safetensors":
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    reason = "no such .safetensors file, and it is no Hugging Face id"
    if path.is_dir():
        reason = f"{len(files)} .safetensors files"
    raise ModelNotFoundError(
        f"LoRA {name!r}: {reason}; give one file, or a folder or Hub id that holds one"
    )


def hash_lora(file: Path) -> str:
    """Return the sha256 of a LoRA's file, and of the configuration beside it if it is read."""
    digest = hashlib.sha256(file.read_bytes())
    if reads_adapter_config(file, read_head(file)[0]):
        digest.update((file.parent / ADAPTER).read_bytes())
    return digest.hexdigest()


@lru_cache
def _download_checkpoint(name: str, variant: str | None) -> Path:
    """Download the files from which a checkpoint is loaded, once per process."""
    weights = select_files(_list_files(name), PARTS, variant)
    files = ["model_index.json", SIZES_FILE, CONCEPTS, *weights]
    return download_snapshot(name, [escape(file) for file in files], [])


def _list_files(name: str) -> list[str]:
    """Return the paths of a repository's files on the Hub, or in the local cache if it fails."""
    from huggingface_hub import HfApi

    try:
        return list(HfApi().list_repo_files(name))
    except Exception:
        # Each version of the client has its own network errors; `download_snapshot` explains what
        # is wrong.
        folder = download_snapshot(name, [], [])
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file.relative_to(folder).as_posix() for file in files]


def download_snapshot(name: str, wanted: list[str], skipped: list[str]) -> Path:
    """Return the local folder of a Hub repository's files, which are downloaded if necessary.

    Args:
        wanted: patterns of the files that are downloaded.
        skipped: patterns of the files that are not.

    Raises:
        ModelNotFoundError: the files are not in the local cache and cannot be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=skipped))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = str(error).splitlines()[0][:160]
        raise ModelNotFoundError(
            f"model {name!r}: not a local folder, not in the local cache, and it cannot be "
            f"downloaded from the Hugging Face Hub ({type(error).__name__}: {reason}); "
            "check the name and the network, or give a local folder"
        ) from None


def hash_folder(folder: Path) -> str:
    """Return the sha256 over names and bytes of all files from which a checkpoint is loaded."""
    digest = hashlib.sha256()
    for part in PARTS:
        for file in sorted((folder / part).glob("*")):
            if file.suffix in (".json", ".txt", ".safetensors"):
                digest.update(_hash_file(file, f"{part}/{file.name}"))
    return digest.hexdigest()


def hash_files(folder: Path, patterns: list[str]) -> str:
    """Return the sha256 over names and bytes of the files of a folder that match a pattern."""
    digest = hashlib.sha256()
    files: list[Path] = []
    for pattern in patterns:
        files += folder.glob(pattern)
    for file in sorted(files):
        digest.update(_hash_file(file, file.name))
    return digest.hexdigest()


def _hash_file(file: Path, name: str) -> bytes:
    """Return the name and the sha256 of a file, each followed by a zero byte."""
    return f"{name}\0{hash_file(file)}\0".encode()


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """Return the config.json of a part of a checkpoint."""
    config: dict[str, Any] = json.loads((folder / part / "config.json").read_text())
    return config


def compute_vae_factor(config: dict[str, Any]) -> int:
    """Return the px per latent cell: 2 to the number of the autoencoder's halvings."""
    channels = config.get("block_out_channels") or config["encoder_block_out_channels"]
    return int(2 ** (len(channels) - 1))


def read_native_windows(folder: Path) -> tuple[int, int]:
    """Return the least and largest side in px of the windows that a checkpoint was trained at."""
    sizes = _read_sizes(folder)
    if "window_sizes" in sizes:
        least, most = sizes["window_sizes"]
        return int(least), int(most)
    cells = int(read_config(folder, "unet").get("sample_size") or 64)
    side = cells * compute_vae_factor(read_config(folder, "vae"))
    return side, side


def read_object_sizes(folder: Path) -> tuple[float, float]:
    """Return the limits in px of the longer sides of objects that a checkpoint generates well."""
    sizes = _read_sizes(folder)
    if "object_sizes" in sizes:
        least, most = sizes["object_sizes"]
        return float(least), float(most)
    side, _ = read_native_windows(folder)
    return LEAST_OBJECT_SHARE * side, MOST_OBJECT_SHARE * side


def _read_sizes(folder: Path) -> dict[str, Any]:
    """Return the sizes in a checkpoint's `synthgen.json`; {} if it has no such file."""
    file = folder / SIZES_FILE
    if not file.is_file():
        return {}
    sizes: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return sizes


def compute_unet_multiple(config: dict[str, Any]) -> int:
    """Return the multiple of window sides in cells: 2 to the number of the UNet's halvings."""
    return int(2 ** (len(config["block_out_channels"]) - 1))
