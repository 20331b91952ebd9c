"""Checkpoints are found by name, or one line says why they are not."""

import shutil
from pathlib import Path

import pytest

from synthgen.pipelines.base import ModelNotFoundError
from synthgen.pipelines.diffusion.sizes import (
    compute_unet_multiple,
    compute_vae_factor,
    read_config,
)
from synthgen.pipelines.diffusion.sources import EMBEDDED, find_model, hash_folder


def test_a_folder_is_found_and_its_configuration_is_read(checkpoint: Path) -> None:
    assert find_model(str(checkpoint)) == checkpoint
    assert compute_vae_factor(read_config(checkpoint, "vae")) == 2
    assert compute_unet_multiple(read_config(checkpoint, "unet")) == 2


def test_the_hash_covers_every_byte(checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    assert hash_folder(copy) == hash_folder(checkpoint)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert hash_folder(copy) != hash_folder(checkpoint)


@pytest.mark.parametrize("name", ["nosuchmodel", "./nowhere", "a/b/c"])
def test_the_error_for_an_unknown_name_lists_the_embedded_checkpoints(name: str) -> None:
    with pytest.raises(
        ModelNotFoundError,
        match=r"no folder of that name holds a model_index.json.*embedded: synthgen-tiny",
    ) as caught:
        find_model(name)
    assert "\n" not in str(caught.value)


def test_the_error_for_an_unreachable_hub_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelNotFoundError, match=r"model 'owner/name': not a local folder, not in the local cache"
    ) as caught:
        find_model("owner/name")
    assert "\n" not in str(caught.value)
    assert "give a local folder" in str(caught.value)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "diffusion_pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(
        ModelNotFoundError, match="no safetensors weights for unet, vae, text_encoder"
    ):
        find_model(str(tmp_path))


def test_the_embedded_checkpoint_is_small() -> None:
    files = [p for p in (EMBEDDED / "synthgen-tiny").rglob("*") if p.is_file()]
    assert find_model("synthgen-tiny") == EMBEDDED / "synthgen-tiny"
    assert sum(p.stat().st_size for p in files) <= 25_000_000
    assert not [p for p in files if p.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
