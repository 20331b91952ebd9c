"""Models that look at pictures, by name: embedded, in a folder, or on the Hugging Face Hub."""

from pathlib import Path
from typing import Any

from pydantic import Field

from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.base import ModelNotFoundError
from synthgen.pipelines.diffusion.models import EMBEDDED, files_hash, snapshot
from synthgen.pipelines.diffusion.weights import choose_weights, read_json, read_shapes
from synthgen.verification.base import VerifierSpec

STEMS_OF_MODELS = (
    "model",
    "diffusion_pytorch_model",
)  # of transformers' weights, and of our own detector's
SETTINGS = ("preprocessor_config.json", "processor_config.json")  # of a model's image processor
FILES = ["*.json", "*.txt", "*.safetensors"]


def find_folder(name: str, files: list[str]) -> Path:
    """Where the model of that name is; of one on the Hub, `files` are fetched.

    Raises:
        ModelNotFoundError: it cannot be had.
    """
    for folder in (EMBEDDED / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder
    if Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        have = ", ".join(
            sorted(p.name for p in EMBEDDED.iterdir() if (p / "config.json").is_file())
        )
        raise ModelNotFoundError(
            f"{name!r}: no folder of that name holds a config.json, and it is no Hugging Face id (owner/name); embedded: {have}"
        )
    return snapshot(name, files, [])


def read_model_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model's folder.

    Raises:
        ModelNotFoundError: it cannot be read.
    """
    return read_json(folder / "config.json")


def weights_problem(folder: Path) -> str | None:
    """Why the weights in a model's folder cannot be loaded, by the heads of their files; None if they can."""
    names = [file.name for file in folder.glob("*")]
    choices = [choose_weights(names, stem) for stem in STEMS_OF_MODELS]
    chosen = next((choice for choice in choices if choice is not None), None)
    if chosen is None:
        return f"{folder} has no safetensors weights; pickled ones are not loaded"
    if chosen.variant is not None:
        return f"{folder} has {chosen.variant} weights alone ({chosen.files[0]}), which are not looked for; rename the file"
    try:
        read_shapes(folder, chosen)
    except ModelNotFoundError as error:
        return f"{folder}: {error}"
    return None


class ModelVerifierSpec(VerifierSpec):
    """A verifier that loads a model."""

    model: str = Field(min_length=1, description="embedded, a folder, or a Hugging Face id")

    def folder(self) -> Path:
        """Where the model is.

        Raises:
            ModelNotFoundError: it cannot be had.
        """
        return find_folder(self.model, FILES)

    def config(self) -> dict[str, Any]:
        """The model's config.json."""
        return read_model_config(self.folder())

    def check(self, sampler: SamplerSpec) -> list[str]:
        problems = super().check(sampler)
        try:
            folder, config = self.folder(), self.config()
        except ModelNotFoundError as error:
            return [*problems, f"model: {error}"]
        if (reason := weights_problem(folder)) is not None:
            problems.append(f"model: {reason}")
        elif "categories" not in config and not any((folder / name).is_file() for name in SETTINGS):
            problems.append(
                f"model: {folder} has no {SETTINGS[0]}, the settings of its image processor; download it"
            )
        return problems

    def fingerprint(self) -> dict[str, Any]:
        return {"model_sha256": files_hash(self.folder(), FILES)}
