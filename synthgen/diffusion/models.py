"""Checkpoints by name: embedded, in a folder, or on the Hugging Face Hub. Finds and hashes files; loads nothing."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from synthgen.layouts import SamplerSpec
from synthgen.pipelines import MethodSpec, ModelNotFoundError
from synthgen.scene import SceneSpec

EMBEDDED = Path(__file__).parent.parent / "models"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
CONCEPTS = "concepts.json"  # in a checkpoint's folder: the classes that it learnt by identifiers
LICENCES = {"synthgen-tiny": "Apache-2.0"}
KNOWN = {"synthgen-tiny": ("dog", "cat", "ball", "tree")}  # all that a checkpoint has seen, where that is not much
SchedulerName = Literal["dpm++", "unipc", "ddim", "euler", "lms", "lcm"]


class ModelSpec(MethodSpec):
    """A pipeline recipe that names a checkpoint in Stable Diffusion format."""

    model: str = Field("synthgen-tiny", min_length=1, description="embedded checkpoint, folder, or Hugging Face id")
    weights: str | None = Field(None, pattern=r"^\w+$", description="variant of the weights on the Hub, such as fp16")
    dtype: str = Field("auto", pattern="^(auto|float32|float16|bfloat16)$", description="auto: float16 on a GPU, else float32")

    lora: str | None = Field(
        None, min_length=1, description="merged into the checkpoint: a .safetensors, its folder, or a Hub id"
    )
    lora_scale: float = Field(1.0, description="how much of it")
    compile: bool = Field(False, description="compile the UNet once a worker: pays off on a GPU, for jobs of many images")

    @property
    def uses_torch(self) -> bool:
        return True

    def folder(self) -> Path:
        """Where the checkpoint is.

        Raises:
            ModelNotFoundError: it cannot be had.
        """
        return find_model(self.model, self.weights)

    def fingerprint(self) -> dict[str, Any]:
        index = self.folder() / "model_index.json"  # says how the parts work together
        found = {"model_sha256": folder_hash(self.folder())}
        if index.is_file():
            found["model_index_sha256"] = hashlib.sha256(index.read_bytes()).hexdigest()
        if self.lora is not None:
            found["lora_sha256"] = hashlib.sha256(find_lora(self.lora).read_bytes()).hexdigest()
        return found

    def licence(self) -> str:
        return LICENCES.get(self.model, f"that of the outputs of the model {self.model}")


class LayoutModelSpec(ModelSpec):
    """A pipeline recipe whose checkpoint paints layouts."""

    steps: int = Field(20, ge=1, le=1000, description="denoising steps")
    scheduler: SchedulerName | None = Field("dpm++", description="null: the checkpoint's")
    guidance_scale: float = Field(7.5, ge=0, description="classifier-free guidance")

    @property
    def paints_into_pictures(self) -> bool:
        """Whether it can paint into the user's own pictures."""
        return False

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        problems = canvas_problems(self, sampler.canvas)
        if scene.backgrounds is not None and not self.paints_into_pictures:
            problems.append("method: cannot paint into your own pictures (scene.backgrounds); `mixture` and `paste` can")
        return problems

    def doubts(self, sampler: SamplerSpec) -> list[str]:
        known = KNOWN.get(self.model)
        if known is None or self.lora is not None:
            return []
        unknown = ", ".join(repr(name) for name in sampler.names() if not set(name.split()) & set(known))
        return [f"model: {self.model} has never seen {unknown}; it knows {', '.join(known)}"] if unknown else []


def canvas_problems(spec: ModelSpec, canvas: tuple[int, int]) -> list[str]:
    """What stands against painting a canvas of width x height px with a recipe's checkpoint, each as `key: reason`."""
    try:
        folder = spec.folder()
    except ModelNotFoundError as error:
        return [f"model: {error}"]
    try:
        if spec.lora is not None:
            find_lora(spec.lora)
    except ModelNotFoundError as error:
        return [f"lora: {error}"]
    factor = vae_factor(read_config(folder, "vae"))
    least = factor * unet_multiple(read_config(folder, "unet"))
    return [
        f"model: canvas {name} {side} px must be a multiple of {factor} and at least {least} for {spec.model}"
        for name, side in zip(("width", "height"), canvas, strict=True)
        if side % factor or side < least
    ]


def find_model(name: str, variant: str | None = None) -> Path:
    """The local folder of a checkpoint, fetched from the Hub if it is not here.

    Raises:
        ModelNotFoundError: it is nowhere; or it has no safetensors weights.
    """
    for folder in (EMBEDDED / name, Path(name)):
        if (folder / "model_index.json").is_file():
            return _with_safetensors(folder, name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        have = sorted(p.parent.name for p in EMBEDDED.glob("*/model_index.json"))
        raise ModelNotFoundError(
            f"model {name!r}: no folder of that name holds a model_index.json, and it is no Hugging Face id (owner/name); "
            f"embedded: {', '.join(have)}"
        )
    return _with_safetensors(_from_hub(name, variant), name)


def find_lora(name: str) -> Path:
    """The file of a LoRA, fetched from the Hub if it is not here.

    Raises:
        ModelNotFoundError: it is nowhere, or there is not just one safetensors file.
    """
    path = Path(name)
    if not path.exists() and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        path = snapshot(name, ["*.safetensors"], [])
    found = [path] if path.is_file() and path.suffix == ".safetensors" else sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        have = f"{len(found)} .safetensors files" if path.is_dir() else "no such .safetensors file, and it is no Hugging Face id"
        raise ModelNotFoundError(f"LoRA {name!r}: {have}; give one file, or a folder or Hub id that holds one")
    return found[0]


def _from_hub(name: str, variant: str | None) -> Path:
    weights = f"*.{variant}.safetensors" if variant else "*.safetensors"
    wanted = ["model_index.json", CONCEPTS, *(f"{part}/{kind}" for part in PARTS for kind in ("*.json", "*.txt", weights))]
    return snapshot(name, wanted, ["*non_ema*"] if variant else ["*non_ema*", "*.fp16.*"])


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


def _with_safetensors(folder: Path, name: str) -> Path:
    missing = [part for part in ("unet", "vae", "text_encoder") if not list((folder / part).glob("*.safetensors"))]
    if missing:
        raise ModelNotFoundError(
            f"model {name!r}: {folder} has no safetensors weights for {', '.join(missing)}; "
            "pickled weights are not loaded: convert them with `save_pretrained(..., safe_serialization=True)`"
        )
    return folder


def folder_hash(folder: Path) -> str:
    """sha256 over names and bytes of all files that a checkpoint is loaded from."""
    digest = hashlib.sha256()
    for part in PARTS:
        for file in sorted(p for p in (folder / part).glob("*") if p.suffix in (".json", ".txt", ".safetensors")):
            with file.open("rb") as stream:
                digest.update(f"{part}/{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


def files_hash(folder: Path, patterns: list[str]) -> str:
    """sha256 over names and bytes of the files of a folder that match."""
    digest = hashlib.sha256()
    for file in sorted(f for pattern in patterns for f in folder.glob(pattern)):
        with file.open("rb") as stream:
            digest.update(f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """The config.json of a part of a checkpoint."""
    config: dict[str, Any] = json.loads((folder / part / "config.json").read_text())
    return config


def vae_factor(config: dict[str, Any]) -> int:
    """Pixels a latent cell: 2 to the number of the autoencoder's halvings."""
    channels = config.get("block_out_channels") or config["encoder_block_out_channels"]
    return int(2 ** (len(channels) - 1))


def unet_multiple(config: dict[str, Any]) -> int:
    """Windows must be multiples of this many cells: 2 to the number of the UNet's halvings."""
    return int(2 ** (len(config["block_out_channels"]) - 1))
