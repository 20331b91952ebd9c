"""A checkpoint in one file gives the images of the folder that it was written from."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from synthgen import cli
from synthgen.config import Job
from synthgen.engine.generation import run
from synthgen.pipelines.base import ModelNotFoundError, Numerics
from synthgen.pipelines.diffusion import single_file, sources
from synthgen.pipelines.diffusion.pipeline import load_pipeline
from synthgen.pipelines.diffusion.single_file import FAMILIES, convert_single_file, find_family
from synthgen.pipelines.diffusion.sources import find_checkpoint
from synthgen.pipelines.inpaint import Spec as InpaintSpec
from synthgen.pipelines.inpaint.pipeline import InpaintPipeline
from tests.conftest import read_shard_bytes
from tests.pipelines.diffusion.test_checkpoint import tiny_sdxl, widen
from tests.pipelines.single_file import write_single_file


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a cache of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sources._download_configurations.cache_clear()


def make_folder(kind: str, checkpoint: Path, folder: Path) -> Path:
    """Save a random checkpoint of a family."""
    if kind == "sdxl":
        return tiny_sdxl(checkpoint, folder)
    shutil.copytree(checkpoint, folder)
    if kind.endswith("inpainting"):
        widen(7, "StableDiffusionInpaintPipeline")(folder)
    return folder


def write_file(kind: str, checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Save a checkpoint of a family, and return its folder and the file with the same weights."""
    folder = make_folder(kind, checkpoint, tmp_path / "model")
    file = tmp_path / "model.safetensors"
    write_single_file(folder, file, open_clip=kind.startswith("sd2"))
    return folder, file


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_the_weights_are_those_of_the_folder(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    folder, file = write_file(kind, checkpoint, tmp_path)
    assert find_family(file) == FAMILIES[kind]

    def load(**keys: Any) -> InpaintPipeline:
        return load_pipeline(InpaintPipeline, InpaintSpec(**keys), None, Numerics())

    wanted = load(model=str(folder))
    got = load(model=str(file), config=str(folder))
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if getattr(wanted, part) is None:
            continue
        state = getattr(wanted, part).state_dict()
        converted = getattr(got, part).state_dict()
        assert converted.keys() == state.keys()
        assert all(torch.equal(converted[name], state[name]) for name in state)
    assert got.scheduler.config == wanted.scheduler.config
    words = ["a brown dog", "sand"]
    assert got.tokenizer(words).input_ids == wanted.tokenizer(words).input_ids


def test_a_job_generates_the_bytes_of_the_folder(
    checkpoint: Path, tmp_path: Path, make_job: Callable[..., Job]
) -> None:
    folder, file = write_file("sd1", checkpoint, tmp_path)
    written: list[bytes] = []
    for model in (f"model: {folder}", f"model: {file}, config: {folder}"):
        out = tmp_path / f"out{len(written)}"
        recipe = f"pipeline={{method: mixture, {model}, steps: 1}}"
        run(make_job("images=1", recipe, f"output.path={out}"))
        written.append(read_shard_bytes(out)["000000.tar"])
    assert written[0] == written[1]


def test_a_file_is_converted_once_and_in_its_number_format(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = write_file("sd1", checkpoint, tmp_path)
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    first = find_checkpoint(str(file), config=str(folder)).folder
    weights = load_file(first / "unet/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    monkeypatch.setattr(single_file, "_write_folder", None)
    moved = shutil.copy(file, tmp_path / "other.safetensors")
    assert find_checkpoint(str(moved), config=str(folder)).folder == first


def test_a_failed_conversion_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    _, file = write_file("sd1", checkpoint, tmp_path)
    other = tiny_sdxl(checkpoint, tmp_path / "sdxl")
    with pytest.raises(ModelNotFoundError, match="does not fit the configurations"):
        convert_single_file(file, FAMILIES["sd1"], other)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix == ".safetensors"]


def test_the_configurations_of_the_family_come_from_the_hub(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = write_file("sd1", checkpoint, tmp_path)
    asked: list[Any] = []

    def download(name: str, wanted: list[str], *others: Any) -> Path:
        asked.append((name, wanted))
        return folder

    monkeypatch.setattr("synthgen.pipelines.diffusion.sources.download_snapshot", download)
    find_checkpoint(str(file))
    ((name, wanted),) = asked
    assert name == FAMILIES["sd1"].model
    assert not any(pattern.endswith("safetensors") for pattern in wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"model: .* is a Stable Diffusion 1 checkpoint in one file, and its configurations "),
        (["pipeline.config=./nowhere"], r"model: .*`pipeline.config`: './nowhere' is no folder"),
        (["pipeline.revision=main"], "revision: .* is not on the Hugging Face Hub"),
        (["pipeline.model=$folder", "pipeline.config=$folder"], "config: .* omit the key"),
        (["pipeline.model=$folder", "pipeline.revision=v1"], "revision: .* has no revisions"),
        (["pipeline.model=lost.safetensors"], "model: .*there is no such file"),
    ],
)
def test_keys_that_do_not_fit_are_refused_in_one_line(
    options: list[str],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    job_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder, file = write_file("sd1", checkpoint, tmp_path)
    given = [option.replace("$folder", str(folder)) for option in options]
    recipe = ["pipeline.method=mixture", f"pipeline.model={file}", *given]
    assert cli.main(["run", str(job_file), *recipe]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()
