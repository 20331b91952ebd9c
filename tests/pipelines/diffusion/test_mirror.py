"""Checkpoints in an object store are copied to this machine once, and again when they change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthgen import cli
from synthgen.config import Job
from synthgen.engine.generation import run
from synthgen.pipelines.base import ModelNotFoundError
from synthgen.pipelines.diffusion.mirror import copy_checkpoint, copy_file
from synthgen.pipelines.diffusion.sources import find_checkpoint, find_lora
from synthgen.storage.location import open_store
from synthgen.storage.object_store import ObjectStore
from tests.conftest import read_shard_bytes
from tests.pipelines.single_file import write_single_file
from tests.s3 import S3


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a cache of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget_copies()


def forget_copies() -> None:
    """Look for changes in stores again, as a new process does."""
    copy_checkpoint.cache_clear()
    copy_file.cache_clear()


def upload(folder: Path, url: str) -> None:
    """Write all files of a folder to an object store."""
    store = open_store(url)
    for path in folder.rglob("*"):
        if path.is_file():
            store.write(path.relative_to(folder).as_posix(), path.read_bytes())


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the names of downloaded files are added."""
    names: list[str] = []
    original = ObjectStore.download

    def record(self: ObjectStore, name: str, file: Any) -> None:
        names.append(name)
        original(self, name, file)

    monkeypatch.setattr(ObjectStore, "download", record)
    return names


def test_a_job_with_a_checkpoint_in_a_store_generates_the_bytes_of_the_folder(
    checkpoint: Path, s3: S3, tmp_path: Path, make_job: Callable[..., Job]
) -> None:
    url = s3.url("models/tiny")
    upload(checkpoint, url)
    written: list[bytes] = []
    for model in (str(checkpoint), url):
        out = tmp_path / f"out{len(written)}"
        recipe = f"pipeline={{method: mixture, model: '{model}', steps: 1}}"
        run(make_job("images=1", recipe, f"output.path={out}"))
        written.append(read_shard_bytes(out)["000000.tar"])
    assert written[0] == written[1]


def test_a_checkpoint_is_copied_once_and_again_when_it_changes(
    checkpoint: Path, s3: S3, downloads: list[str]
) -> None:
    url = s3.url("models/changing")
    upload(checkpoint, url)
    open_store(url).write("unet/diffusion_pytorch_model.bin", b"not read")
    first = find_checkpoint(url).folder
    assert "unet/diffusion_pytorch_model.safetensors" in downloads
    assert "unet/diffusion_pytorch_model.bin" not in downloads
    count = len(downloads)
    forget_copies()
    assert find_checkpoint(url).folder == first
    assert len(downloads) == count
    config = first / "scheduler/scheduler_config.json"
    open_store(url).write("scheduler/scheduler_config.json", config.read_bytes() + b" ")
    forget_copies()
    second = find_checkpoint(url).folder
    assert second != first
    assert (second / "scheduler/scheduler_config.json").read_bytes().endswith(b" ")


def test_an_interrupted_copy_is_continued(
    checkpoint: Path, s3: S3, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = s3.url("models/interrupted")
    upload(checkpoint, url)
    working = ObjectStore.download

    def fail(self: ObjectStore, name: str, file: Any) -> None:
        if name.startswith("vae/"):
            raise KeyboardInterrupt
        working(self, name, file)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "download", fail)
        with pytest.raises(KeyboardInterrupt):
            find_checkpoint(url)
    copied = set(downloads)
    assert copied
    downloads.clear()
    find_checkpoint(url)
    assert not copied & set(downloads)


def test_a_single_file_and_a_lora_are_copied(checkpoint: Path, s3: S3, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_single_file(checkpoint, file)
    open_store(s3.url("models/files")).write("model.safetensors", file.read_bytes())
    url = s3.url("models/files/model.safetensors")
    copied = find_checkpoint(url, config=str(checkpoint))
    local = find_checkpoint(str(file), config=str(checkpoint))
    assert copied.folder == local.folder
    assert find_lora(url).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", ["nothing", "nothing/model.safetensors"])
def test_what_is_not_in_the_store_is_refused_in_one_line(
    name: str, s3: S3, job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = s3.url(f"models/{name}")
    with pytest.raises(ModelNotFoundError, match="there is no"):
        find_checkpoint(url)
    recipe = ["pipeline.method=mixture", f"pipeline.model={url}"]
    assert cli.main(["run", str(job_file), *recipe]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pipeline.model: " in error
    assert not (tmp_path / "out").exists()
