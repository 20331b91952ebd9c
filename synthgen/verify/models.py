"""Models that look at pictures, by name: embedded, in a folder, or on the Hugging Face Hub."""

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from synthgen.diffusion.models import EMBEDDED, files_hash, snapshot
from synthgen.layouts import SamplerSpec
from synthgen.pipelines import ModelNotFoundError
from synthgen.verify import VerifierSpec

FILES = ["*.json", "*.txt", "*.safetensors"]


def find_folder(name: str, files: list[str]) -> Path:
    """Where the model of that name is; of one on the Hub, `files` are fetched.

    Raises:
        ModelNotFoundError: it cannot be had.
    """
    for folder in (EMBEDDED / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        have = ", ".join(sorted(p.name for p in EMBEDDED.iterdir() if (p / "config.json").is_file()))
        raise ModelNotFoundError(
            f"{name!r}: no folder of that name holds a config.json, and it is no Hugging Face id (owner/name); embedded: {have}"
        )
    return snapshot(name, files, [])


def read_model_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model's folder."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


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
            folder = self.folder()
        except ModelNotFoundError as error:
            return [*problems, f"model: {error}"]
        if not list(folder.glob("*.safetensors")):
            return [*problems, f"model: {folder} has no safetensors weights; pickled ones are not loaded"]
        return problems

    def fingerprint(self) -> dict[str, Any]:
        return {"model_sha256": files_hash(self.folder(), FILES)}
