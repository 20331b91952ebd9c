"""Checkpoints by name: embedded, in a folder, or on the Hugging Face Hub. Finds and hashes files; loads nothing."""

import hashlib
import json
from functools import lru_cache
from glob import escape
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.base import MethodSpec, ModelNotFoundError
from synthgen.pipelines.diffusion.checkpoint import (
    EDM,
    SPLIT,
    WITHIN,
    Checkpoint,
    input_problem,
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
ABOUT = "synthgen.json"  # in a checkpoint's folder: the sizes that it was made for
CONCEPTS = "concepts.json"  # in a checkpoint's folder: the classes that it learnt by identifiers
LICENCES = {"synthgen-tiny": "Apache-2.0"}
KNOWN = {
    "synthgen-tiny": ("dog", "cat", "ball", "tree")
}  # all that a checkpoint has seen, where that is not much
SchedulerName = Literal["dpm++", "unipc", "ddim", "euler", "lms", "lcm"]
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
DRAWN_SHARE = (
    0.4,
    0.8,
)  # longer sides of the objects that a checkpoint draws well, in its native windows
FAR_BELOW, FAR_ABOVE = 0.75, 1.5  # of these sizes: boxes beyond are warned of
MOST_FEW_STEP_GUIDANCE = 2.0  # a checkpoint distilled to few steps burns with more
FEW_STEP_WORDS = (
    "lcm",
    "turbo",
    "hyper",
    "lightning",
)  # in the names of such checkpoints and LoRAs
Scale = Annotated[float, Field(ge=1, le=LARGEST_SCALE)] | Literal["native"]
PRK_STEPS = 4  # of Runge-Kutta, with which PNDM begins unless its settings skip them
LCM_STEPS = 50  # as many as its schedule has


def _is_no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no number; give one, such as 0.8")
    return value


class ModelSpec(MethodSpec):
    """A pipeline recipe that names a checkpoint in Stable Diffusion format."""

    model: str = Field(
        "synthgen-tiny", min_length=1, description="embedded checkpoint, folder, or Hugging Face id"
    )
    weights: str | None = Field(
        None,
        pattern=r"^\w+$",
        description="variant of the weights, such as fp16; null: the plain ones, or fp16 where a part has these alone",
    )
    dtype: str = Field(
        "auto",
        pattern="^(auto|float32|float16|bfloat16)$",
        description="auto: float16 on a GPU, else float32",
    )

    lora: str | None = Field(
        None,
        min_length=1,
        description="merged into the checkpoint: a .safetensors, its folder, or a Hub id",
    )
    lora_scale: Annotated[float, BeforeValidator(_is_no_boolean)] = Field(
        1.0, allow_inf_nan=False, description="how much of it"
    )
    scale: Scale = Field(
        1.0,
        description="generate on a canvas so many times as large, and shrink the image; "
        "native: the least scale at which the checkpoint draws objects of these sizes well",
    )
    compile: bool = Field(
        False,
        description="compile the UNet once a worker: pays off on a GPU, for jobs of many images",
    )

    @property
    def uses_torch(self) -> bool:
        return True

    @property
    def reads_sdxl(self) -> bool:
        """Whether the method reads checkpoints with two text encoders."""
        return True

    @property
    def reads_masks(self) -> bool:
        """Whether the method reads UNets that `synthgen train` has widened by the latents of a mask."""
        return False

    @property
    def starts_within(self) -> bool:
        """Whether denoising starts within the schedule."""
        return False

    def folder(self) -> Path:
        """Where the checkpoint is.

        Raises:
            ModelNotFoundError: it cannot be had.
        """
        return find_checkpoint(self.model, self.weights).folder

    def fit_to_layouts(self, sampler: SamplerSpec) -> "ModelSpec":
        """Return the recipe with a number for the scale `native`; as it is if its checkpoint cannot be had."""
        if self.scale != "native":
            return self
        try:
            least, _ = drawn_sizes(self.folder())
        except ModelNotFoundError:
            return self
        scale = choose_scale(measure_boxes(sampler), sampler.canvas, least)
        return self.model_copy(update={"scale": scale})

    def generation_scale(self) -> float:
        """Return the scale as a number.

        Raises:
            ValueError: it is `native`, which only the layouts of a job decide (`fit_to_layouts`).
        """
        if self.scale == "native":
            raise ValueError("scale: native depends on a job's layouts; give a number")
        return self.scale

    def generation_canvas(self, canvas: tuple[int, int]) -> tuple[int, int]:
        return enlarge_canvas(
            canvas, self.generation_scale(), vae_factor(read_config(self.folder(), "vae"))
        )

    def fingerprint(self) -> dict[str, Any]:
        index = self.folder() / "model_index.json"  # says how the parts work together
        found = {"model_sha256": folder_hash(self.folder())}
        if index.is_file():
            found["model_index_sha256"] = hashlib.sha256(index.read_bytes()).hexdigest()
        if self.lora is not None:
            found["lora_sha256"] = lora_hash(find_lora(self.lora))
        return found

    def licence(self) -> str:
        return LICENCES.get(self.model, f"that of the outputs of the model {self.model}")


class LayoutModelSpec(ModelSpec):
    """A pipeline recipe whose checkpoint paints layouts.

    Attributes:
        PIPELINE: import path of the `LatentPipeline` that the painter loads the checkpoint as.
    """

    PAINTER: ClassVar[str] = "synthgen.pipelines.diffusion.painter:LayoutPainter"
    PIPELINE: ClassVar[str]

    steps: int = Field(20, ge=1, le=1000, description="denoising steps")
    scheduler: SchedulerName | None = Field("dpm++", description="null: the checkpoint's")
    guidance_scale: float = Field(7.5, ge=0, description="classifier-free guidance")

    @property
    def paints_into_pictures(self) -> bool:
        """Whether it can paint into the user's own pictures."""
        return False

    @classmethod
    def pipeline_class(cls) -> Any:
        """Import the class that `PIPELINE` names."""
        return load_implementation(cls.PIPELINE)

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        problems = canvas_problems(self, sampler.canvas)
        if scene.backgrounds is not None and not self.paints_into_pictures:
            problems.append(
                "method: cannot paint into your own pictures (scene.backgrounds); `mixture` and `paste` can"
            )
        return problems

    def doubts(self, sampler: SamplerSpec) -> list[str]:
        return [
            *self._doubt_names(sampler),
            *self._doubt_guidance(),
            *self._doubt_window(),
            *self._doubt_sizes(sampler),
        ]

    def _doubt_names(self, sampler: SamplerSpec) -> list[str]:
        known = KNOWN.get(self.model)
        if known is None or self.lora is not None:
            return []
        unknown = ", ".join(
            repr(name) for name in sampler.names() if not set(name.split()) & set(known)
        )
        return (
            [f"model: {self.model} has never seen {unknown}; it knows {', '.join(known)}"]
            if unknown
            else []
        )

    def _doubt_guidance(self) -> list[str]:
        """Warn of guidance that burns the images of checkpoints distilled to few steps."""
        if self.guidance_scale <= MOST_FEW_STEP_GUIDANCE or not self._takes_few_steps():
            return []
        why = "lcm, turbo, hyper and lightning checkpoints burn above 2"
        return [f"guidance_scale: {self.guidance_scale:g} is much: {why}; give 1"]

    def _takes_few_steps(self) -> bool:
        """Tell whether the checkpoint or its LoRA is distilled to few steps, by scheduler and name."""
        checkpoint = find_checkpoint(self.model, self.weights)
        if checkpoint.configs["unet"].get("time_cond_proj_dim") is not None:
            return False  # it reads the guidance scale as a condition
        is_lcm = self.scheduler == "lcm" or (
            self.scheduler is None and checkpoint.scheduler == "LCMScheduler"
        )
        names = f"{self.model} {self.lora or ''}".lower()
        return is_lcm or any(word in names for word in FEW_STEP_WORDS)

    def _doubt_window(self) -> list[str]:
        """Warn of a window of another size than the checkpoint was trained at."""
        window: int | None = getattr(self, "window", None)
        least, most = native_windows(self.folder())
        if window is None or least <= window <= most:
            return []
        native = f"{least} px" if least == most else f"{least} to {most} px"
        return [
            f"window: {window} px is not what {self.model} was trained at, {native}; leave it out, or give that"
        ]

    def _doubt_sizes(self, sampler: SamplerSpec) -> list[str]:
        """Warn of boxes far smaller or larger than what the checkpoint draws."""
        sides = measure_boxes(sampler)
        if not len(sides) or self.scale == "native":
            return []
        least, most = drawn_sizes(self.folder())
        side = float(np.median(sides)) * self.scale
        what = f"boxes of {side:.0f} px (median of the longer sides, at scale {self.scale:g})"
        drawn = f"{self.model} draws objects of {least:.0f} to {most:.0f} px"
        if side < FAR_BELOW * least:
            scale = choose_scale(sides, sampler.canvas, least)
            return [
                f"scale: {what} are small: {drawn}; pipeline.scale=native generates at {scale:g}"
            ]
        if side > FAR_ABOVE * most:
            return [
                f"scale: {what} are large: {drawn}; a smaller canvas with smaller boxes would suit it"
            ]
        return []


def canvas_problems(spec: ModelSpec, canvas: tuple[int, int]) -> list[str]:
    """What stands against painting a canvas of width x height px with a recipe's checkpoint, each as `key: reason`."""
    problems = model_problems(spec)
    if problems:
        return problems
    folder = spec.folder()
    factor = vae_factor(read_config(folder, "vae"))
    least = factor * unet_multiple(read_config(folder, "unet"))
    canvas = spec.generation_canvas(canvas)
    return [
        f"model: canvas {name} {side} px must be a multiple of {factor} and at least {least} for {spec.model}"
        for name, side in zip(("width", "height"), canvas, strict=True)
        if side % factor or side < least
    ]


def model_problems(spec: ModelSpec) -> list[str]:
    """What stands against loading a recipe's checkpoint and LoRA and using them with its method, each as `key: reason`."""
    try:
        checkpoint = find_checkpoint(spec.model, spec.weights)
    except VariantNotFoundError as error:
        return [f"weights: {error}"]
    except ModelNotFoundError as error:
        return [f"model: {error}"]
    problems = []
    if (reason := input_problem(checkpoint, spec.reads_masks)) is not None:
        problems.append(f"model: {spec.model}: {reason}")
    if checkpoint.has_two_encoders and not spec.reads_sdxl:
        reason = f"{spec.method} reads checkpoints with one text encoder"
        problems.append(
            f"model: {spec.model} has two (SDXL); {reason}: Stable Diffusion 1 or 2, or use `mixture`"
        )
    problems += scheduler_problems(spec, checkpoint)
    if spec.lora is not None:
        try:
            read_layers(find_lora(spec.lora), checkpoint.shapes, checkpoint.configs["unet"])
        except ModelNotFoundError as error:
            problems.append(f"lora: {error}")
    return problems


def scheduler_problems(spec: ModelSpec, checkpoint: Checkpoint) -> list[str]:
    """What stands against the scheduler that a recipe names, or against the checkpoint's where it names none."""
    named, own, steps = (
        getattr(spec, "scheduler", None),
        checkpoint.scheduler,
        getattr(spec, "steps", 1),
    )
    if named is not None and own in EDM:
        return [
            f"scheduler: {named} cannot replace the {own} of {spec.model}, for which its unet was trained; give null"
        ]
    if named is None and spec.starts_within and own not in WITHIN:
        kind = (
            "takes two evaluations a step" if own in SPLIT else "can start at its first step only"
        )
        why = f"and {spec.method} starts within the schedule"
        return [f"scheduler: the {own} of {spec.model} {kind}, {why}; give ddim or dpm++"]
    settings = checkpoint.configs["scheduler"]
    if (
        named is None
        and own == "PNDMScheduler"
        and not settings.get("skip_prk_steps")
        and steps < PRK_STEPS
    ):
        return [
            f"steps: {steps} are fewer than the {PRK_STEPS} that the PNDMScheduler of {spec.model} begins with"
        ]
    most = int(settings.get("original_inference_steps") or LCM_STEPS)
    if (named == "lcm" or (named is None and own == "LCMScheduler")) and steps > most:
        return [f"steps: {steps} are more than the {most} of the scheduler lcm; give 4 to 8"]
    return []


def find_model(name: str, variant: str | None = None) -> Path:
    """The local folder of a checkpoint, fetched from the Hub if it is not here.

    Raises:
        ModelNotFoundError: it is nowhere, or cannot be loaded.
    """
    return find_checkpoint(name, variant).folder


def find_checkpoint(name: str, variant: str | None = None) -> Checkpoint:
    """A checkpoint as its settings and the heads of its files say it is; fetched from the Hub if it is not here.

    Raises:
        ModelNotFoundError: it is nowhere, or cannot be loaded.
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
    for folder in (EMBEDDED / name, Path(name)):
        if (folder / "model_index.json").is_file():
            return folder
    if Path(name).is_file():
        raise ModelNotFoundError(f"model {name!r}: {_single_file(Path(name))}")
    is_id = (
        name.count("/") == 1
        and not name.startswith((".", "/", "~"))
        and not name.endswith(SINGLE_FILES)
    )
    if Path(name).is_dir() or not is_id:
        have = sorted(p.parent.name for p in EMBEDDED.glob("*/model_index.json"))
        raise ModelNotFoundError(
            f"model {name!r}: no folder of that name holds a model_index.json, and it is no Hugging Face id (owner/name); "
            f"embedded: {', '.join(have)}"
        )
    return _from_hub(name, variant)


def _single_file(file: Path) -> str:
    """What to say of a file that is given as a checkpoint."""
    if file.suffix != ".safetensors":
        return (
            "is a file; give a folder in diffusers' format (pickled and GGUF files are not loaded)"
        )
    names = read_head(file)[0]
    if any("lora_" in name or ".lora" in name for name in names):
        return "is a LoRA; give it as `pipeline.lora`, and its checkpoint as `pipeline.model`"
    kinds = {
        "conditioner.embedders.": ("Stable Diffusion XL", "StableDiffusionXLPipeline"),
        "cond_stage_model.": ("Stable Diffusion", "StableDiffusionPipeline"),
    }
    for mark, (kind, pipeline) in kinds.items():
        if any(name.startswith(mark) for name in names):
            way_on = f"diffusers.{pipeline}.from_single_file(FILE).save_pretrained(FOLDER)"
            return f"is a {kind} checkpoint in one file, and folders are read: convert it with `{way_on}`, then give FOLDER"
    return "is a file without the names of a Stable Diffusion checkpoint; give a folder in diffusers' format"


def find_lora(name: str) -> Path:
    """The file of a LoRA, fetched from the Hub if it is not here.

    Raises:
        ModelNotFoundError: it is nowhere, or there is not just one safetensors file.
    """
    path = Path(name)
    if not path.exists() and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        path = snapshot(name, ["*.safetensors", ADAPTER], [])
    found = (
        [path]
        if path.is_file() and path.suffix == ".safetensors"
        else sorted(path.glob("*.safetensors"))
    )
    if len(found) != 1:
        have = (
            f"{len(found)} .safetensors files"
            if path.is_dir()
            else "no such .safetensors file, and it is no Hugging Face id"
        )
        raise ModelNotFoundError(
            f"LoRA {name!r}: {have}; give one file, or a folder or Hub id that holds one"
        )
    return found[0]


def lora_hash(file: Path) -> str:
    """sha256 of a LoRA's file, and of the settings beside it where these belong to it."""
    digest = hashlib.sha256(file.read_bytes())
    if reads_adapter_config(file, read_head(file)[0]):
        digest.update((file.parent / ADAPTER).read_bytes())
    return digest.hexdigest()


@lru_cache
def _from_hub(name: str, variant: str | None) -> Path:
    """Fetch what a checkpoint is loaded from: once for each process, which asks several times where it is."""
    files = ["model_index.json", ABOUT, CONCEPTS, *select_files(_list_files(name), PARTS, variant)]
    return snapshot(name, [escape(file) for file in files], [])


def _list_files(name: str) -> list[str]:
    """The paths of a repository's files on the Hub, or of those in the local cache where the Hub does not answer."""
    from huggingface_hub import HfApi

    try:
        return list(HfApi().list_repo_files(name))
    except Exception:  # each version of the client has its own errors of the network; `snapshot` says in words what is wrong
        folder = snapshot(name, [], [])
        return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


def snapshot(name: str, wanted: list[str], skipped: list[str]) -> Path:
    """The local folder of files of a repository of the Hub.

    Raises:
        ModelNotFoundError: it is not here and cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=skipped))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = str(error).splitlines()[0][:160]
        raise ModelNotFoundError(
            f"model {name!r}: not a local folder, not in the local cache, and not to be had from the Hugging Face Hub "
            f"({type(error).__name__}: {reason}); check the name and the network, or give a folder with `pipeline.model=FOLDER`"
        ) from None


def folder_hash(folder: Path) -> str:
    """sha256 over names and bytes of all files that a checkpoint is loaded from."""
    digest = hashlib.sha256()
    for part in PARTS:
        for file in sorted(
            p for p in (folder / part).glob("*") if p.suffix in (".json", ".txt", ".safetensors")
        ):
            with file.open("rb") as stream:
                digest.update(
                    f"{part}/{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\0".encode()
                )
    return digest.hexdigest()


def files_hash(folder: Path, patterns: list[str]) -> str:
    """sha256 over names and bytes of the files of a folder that match."""
    digest = hashlib.sha256()
    for file in sorted(f for pattern in patterns for f in folder.glob(pattern)):
        with file.open("rb") as stream:
            digest.update(
                f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\0".encode()
            )
    return digest.hexdigest()


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """The config.json of a part of a checkpoint."""
    config: dict[str, Any] = json.loads((folder / part / "config.json").read_text())
    return config


def vae_factor(config: dict[str, Any]) -> int:
    """Pixels a latent cell: 2 to the number of the autoencoder's halvings."""
    channels = config.get("block_out_channels") or config["encoder_block_out_channels"]
    return int(2 ** (len(channels) - 1))


def native_windows(folder: Path) -> tuple[int, int]:
    """Return the least and largest side in px of the windows that a checkpoint was trained at."""
    about = _about(folder)
    if "window_sizes" in about:
        least, most = about["window_sizes"]
        return int(least), int(most)
    side = int(read_config(folder, "unet").get("sample_size") or 64) * vae_factor(
        read_config(folder, "vae")
    )
    return side, side


def drawn_sizes(folder: Path) -> tuple[float, float]:
    """Return the least and largest longer side in px of the objects that a checkpoint draws well."""
    about = _about(folder)
    if "object_sizes" in about:
        least, most = about["object_sizes"]
        return float(least), float(most)
    side, _ = native_windows(folder)
    return DRAWN_SHARE[0] * side, DRAWN_SHARE[1] * side


def _about(folder: Path) -> dict[str, Any]:
    """Read the sizes that a checkpoint's own file says it was made for; nothing if it has no such file."""
    file = folder / ABOUT
    about: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return about


def unet_multiple(config: dict[str, Any]) -> int:
    """Windows must be multiples of this many cells: 2 to the number of the UNet's halvings."""
    return int(2 ** (len(config["block_out_channels"]) - 1))
