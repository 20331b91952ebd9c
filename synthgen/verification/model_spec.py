"""Models of verifiers by name: embedded, in a folder, or on the Hugging Face Hub."""

from pathlib import Path
from typing import Any

from pydantic import Field

from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.base import ModelNotFoundError
from synthgen.pipelines.diffusion.sources import EMBEDDED, download_snapshot, hash_files, is_hub_id
from synthgen.pipelines.diffusion.weights import choose_weights, read_json, read_shapes
from synthgen.verification.base import VerifierSpec

WEIGHTS_STEMS = ("model", "diffusion_pytorch_model")  # used by transformers and by our detector
SETTINGS = ("preprocessor_config.json", "processor_config.json")  # read by the image processor
FILES = ["*.json", "*.txt", "*.safetensors"]


def find_folder(name: str, files: list[str]) -> Path:
    """Return the folder of a model.

    Args:
        name: an embedded model, a folder, or a Hugging Face id.
        files: patterns of the files that are fetched from the Hub.

    Raises:
        ModelNotFoundError: the model cannot be found or fetched.
    """
    for folder in (EMBEDDED / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder
    if Path(name).exists() or not is_hub_id(name):
        embedded = sorted(file.parent.name for file in EMBEDDED.glob("*/config.json"))
        raise ModelNotFoundError(
            f"{name!r}: no folder of that name holds a config.json, "
            f"and it is no Hugging Face id (owner/name); embedded: {', '.join(embedded)}"
        )
    return download_snapshot(name, files, [])


def read_model_config(folder: Path) -> dict[str, Any]:
    """Return the config.json in a model's folder.

    Raises:
        ModelNotFoundError: the file cannot be read.
    """
    return read_json(folder / "config.json")


def find_weights_problem(folder: Path) -> str | None:
    """Return why the weights in a model's folder cannot be loaded; None if they can.

    Only the headers of the files are read.
    """
    names = [file.name for file in folder.glob("*")]
    chosen = None
    for stem in WEIGHTS_STEMS:
        weights = choose_weights(names, stem)
        if chosen is None:
            chosen = weights
    if chosen is None:
        return f"{folder} has no safetensors weights; pickled ones are not loaded"
    if chosen.variant is not None:
        return (
            f"{folder} has only {chosen.variant} weights ({chosen.files[0]}), "
            "which are not loaded; rename the file"
        )
    try:
        read_shapes(folder, chosen)
    except ModelNotFoundError as error:
        return f"{folder}: {error}"
    return None


class ModelVerifierSpec(VerifierSpec):
    """The recipe of a verifier that loads a model."""

    model: str = Field(min_length=1, description="Model: embedded, a folder, or a Hugging Face id.")

    def folder(self) -> Path:
        """Return the folder of the model.

        Raises:
            ModelNotFoundError: the model cannot be found or fetched.
        """
        return find_folder(self.model, FILES)

    def config(self) -> dict[str, Any]:
        """Return the model's config.json."""
        return read_model_config(self.folder())

    def check(self, sampler: SamplerSpec) -> list[str]:
        problems = super().check(sampler)
        try:
            folder = self.folder()
            config = self.config()
        except ModelNotFoundError as error:
            return [*problems, f"model: {error}"]
        reason = find_weights_problem(folder)
        if reason is not None:
            problems.append(f"model: {reason}")
        elif "categories" not in config and not any((folder / name).is_file() for name in SETTINGS):
            problems.append(
                f"model: {folder} has no {SETTINGS[0]}, the settings of its image processor; "
                "download it"
            )
        return problems

    def fingerprint(self) -> dict[str, Any]:
        return {"model_sha256": hash_files(self.folder(), FILES)}
