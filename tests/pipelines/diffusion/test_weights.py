"""Which files of a folder or of a repository a checkpoint is loaded from."""

from pathlib import Path

import pytest

from synthgen.pipelines.base import ModelNotFoundError
from synthgen.pipelines.diffusion import models
from synthgen.pipelines.diffusion.models import PARTS, find_model
from synthgen.pipelines.diffusion.weights import Weights, choose_weights, select_files
from tests.pipelines.diffusion.test_checkpoint import UNET, to_variant

NETWORK, ENCODER = "diffusion_pytorch_model", "model"
SETTINGS = [
    "scheduler/scheduler_config.json",
    *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder")),
]
WORDS = [
    f"tokenizer/{name}"
    for name in ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
]
UNREAD = [
    ".gitattributes",
    "README.md",
    "model_index.json",
    "feature_extractor/preprocessor_config.json",
]
SAFETY = [
    f"safety_checker/{name}"
    for name in ("config.json", "model.fp16.safetensors", "model.safetensors", "pytorch_model.bin")
]


def forms(part: str, stem: str, *ends: str) -> list[str]:
    return [f"{part}/{stem}.{end}" for end in ends]


BOTH = ("safetensors", "fp16.safetensors")
PICKLED = ("bin", "fp16.bin")
SD15 = [
    *UNREAD, *SETTINGS, *WORDS, *SAFETY, "v1-5-pruned.safetensors", "v1-5-pruned-emaonly.ckpt", "v1-inference.yaml",
    *forms("unet", NETWORK, *BOTH, *PICKLED, "non_ema.safetensors", "non_ema.bin"),
    *forms("vae", NETWORK, *BOTH, *PICKLED), *forms("text_encoder", ENCODER, *BOTH), *forms("text_encoder", "pytorch_model", *PICKLED),
]  # fmt: skip
SD21 = [
    *UNREAD, *SETTINGS, *WORDS, "v2-1_768-ema-pruned.safetensors", "v2-1_768-nonema-pruned.ckpt",
    *forms("unet", NETWORK, *BOTH, *PICKLED), *forms("vae", NETWORK, *BOTH, *PICKLED), *forms("text_encoder", ENCODER, *BOTH),
]  # fmt: skip
SECOND = [
    "text_encoder_2/config.json",
    *(word.replace("tokenizer/", "tokenizer_2/") for word in WORDS),
]
SDXL = [
    *UNREAD, *SETTINGS, *WORDS, *SECOND, "sd_xl_base_1.0.safetensors", "sd_xl_offset_example-lora_1.0.safetensors",
    *forms("unet", NETWORK, *BOTH), "unet/model.onnx", "unet/model.onnx_data", "unet/openvino_model.bin", "unet/openvino_model.xml",
    *forms("vae", NETWORK, *BOTH), *forms("vae_1_0", NETWORK, *BOTH), "vae_1_0/config.json", "vae_decoder/config.json", "vae_decoder/model.onnx",
    *forms("text_encoder", ENCODER, *BOTH, "onnx"), "text_encoder/flax_model.msgpack",
    *forms("text_encoder_2", ENCODER, *BOTH, "onnx", "onnx_data"),
]  # fmt: skip
TURBO = [
    *UNREAD, *SETTINGS, *WORDS, *SECOND, "sd_xl_turbo_1.0.safetensors", "sd_xl_turbo_1.0_fp16.safetensors",
    *forms("unet", NETWORK, *BOTH), *forms("vae", NETWORK, *BOTH), *forms("text_encoder", ENCODER, *BOTH), *forms("text_encoder_2", ENCODER, *BOTH),
]  # fmt: skip


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize(
    "files", [SD15, SD21, SDXL, TURBO], ids=["SD 1.5", "SD 2.1", "SDXL", "SDXL-Turbo"]
)
def test_what_is_fetched_of_a_repository(files: list[str], variant: str | None) -> None:
    encoders = (
        ["text_encoder", "text_encoder_2"]
        if "text_encoder_2/config.json" in files
        else ["text_encoder"]
    )
    end = f"{variant}.safetensors" if variant else "safetensors"
    weights = [f"{part}/{NETWORK}.{end}" for part in ("unet", "vae")] + [
        f"{part}/{ENCODER}.{end}" for part in encoders
    ]
    words = [file for file in files if file.startswith("tokenizer")]
    settings = [*SETTINGS, *(f"{part}/config.json" for part in encoders[1:])]
    assert sorted(select_files(files, PARTS, variant)) == sorted([*weights, *words, *settings])


def test_each_part_is_fetched_in_the_form_that_it_has() -> None:
    text = [*forms("text_encoder", ENCODER, "safetensors")]
    mixed = [
        *SETTINGS,
        *forms("unet", NETWORK, "fp16.safetensors"),
        *forms("vae", NETWORK, *BOTH),
        *text,
    ]
    fetched = select_files(mixed, PARTS, "fp16")
    assert set(
        forms("unet", NETWORK, "fp16.safetensors")
        + forms("vae", NETWORK, "fp16.safetensors")
        + text
    ) <= set(fetched)
    fetched = select_files(mixed, PARTS)
    assert set(
        forms("unet", NETWORK, "fp16.safetensors") + forms("vae", NETWORK, "safetensors") + text
    ) <= set(fetched)
    assert f"vae/{NETWORK}.fp16.safetensors" not in fetched


@pytest.mark.parametrize(
    ("names", "variant", "wanted"),
    [
        (
            ["model.safetensors", "model.fp16.safetensors"],
            None,
            Weights(None, ("model.safetensors",)),
        ),
        (["model.safetensors"], "fp16", Weights(None, ("model.safetensors",))),
        (["model.fp16.safetensors"], None, Weights("fp16", ("model.fp16.safetensors",))),
        (["model.bf16.safetensors"], None, None),
        (["model.bin", "other.safetensors"], None, None),
        (
            ["model-00001-of-00001.safetensors", "model.safetensors.index.json"],
            None,
            Weights(None, ("model-00001-of-00001.safetensors",), "model.safetensors.index.json"),
        ),
        (
            ["model.fp16-00001-of-00001.safetensors", "model.safetensors.index.fp16.json"],
            "fp16",
            Weights(
                "fp16",
                ("model.fp16-00001-of-00001.safetensors",),
                "model.safetensors.index.fp16.json",
            ),
        ),
    ],
)
def test_the_weights_of_a_part(
    names: list[str], variant: str | None, wanted: Weights | None
) -> None:
    assert choose_weights(names, ENCODER, variant) == wanted


def test_a_checkpoint_in_the_cache_is_found_without_a_network(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    repository = tmp_path / "models--owner--cached"
    folder = Path(shutil.copytree(checkpoint, repository / "snapshots" / ("a" * 40)))
    to_variant("fp16", UNET)(folder)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    models._from_hub.cache_clear()
    assert find_model("owner/cached") == folder
    (folder / UNET.replace(".safetensors", ".fp16.safetensors")).write_bytes(b"cut")
    with pytest.raises(
        ModelNotFoundError, match=r"model 'owner/cached': unet/.*fp16.safetensors is cut short"
    ):
        find_model("owner/cached")
