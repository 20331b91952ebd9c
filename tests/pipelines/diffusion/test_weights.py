"""A checkpoint is loaded from the right files of a folder or of a repository."""

import shutil
from pathlib import Path

import pytest

from synthgen.pipelines.base import ModelNotFoundError
from synthgen.pipelines.diffusion import sources
from synthgen.pipelines.diffusion.sources import PARTS, find_model
from synthgen.pipelines.diffusion.weights import Weights, choose_weights, select_files
from tests.pipelines.diffusion.test_checkpoint import UNET, to_variant

NETWORK = "diffusion_pytorch_model"
ENCODER = "model"
CONFIGS = [
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
]
WORDS = ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
TOKENIZER = [f"tokenizer/{name}" for name in WORDS]
UNREAD = [
    ".gitattributes",
    "README.md",
    "model_index.json",
    "feature_extractor/preprocessor_config.json",
]
SAFETY = [
    "safety_checker/config.json",
    "safety_checker/model.fp16.safetensors",
    "safety_checker/model.safetensors",
    "safety_checker/pytorch_model.bin",
]


def forms(part: str, stem: str, *ends: str) -> list[str]:
    """Return the files of a part's weights with these ends."""
    return [f"{part}/{stem}.{end}" for end in ends]


BOTH = ("safetensors", "fp16.safetensors")
PICKLED = ("bin", "fp16.bin")
SD15 = [
    *UNREAD,
    *CONFIGS,
    *TOKENIZER,
    *SAFETY,
    "v1-5-pruned.safetensors",
    "v1-5-pruned-emaonly.ckpt",
    "v1-inference.yaml",
    *forms("unet", NETWORK, *BOTH, *PICKLED, "non_ema.safetensors", "non_ema.bin"),
    *forms("vae", NETWORK, *BOTH, *PICKLED),
    *forms("text_encoder", ENCODER, *BOTH),
    *forms("text_encoder", "pytorch_model", *PICKLED),
]
SD21 = [
    *UNREAD,
    *CONFIGS,
    *TOKENIZER,
    "v2-1_768-ema-pruned.safetensors",
    "v2-1_768-nonema-pruned.ckpt",
    *forms("unet", NETWORK, *BOTH, *PICKLED),
    *forms("vae", NETWORK, *BOTH, *PICKLED),
    *forms("text_encoder", ENCODER, *BOTH),
]
SECOND = ["text_encoder_2/config.json", *(f"tokenizer_2/{name}" for name in WORDS)]
SDXL = [
    *UNREAD,
    *CONFIGS,
    *TOKENIZER,
    *SECOND,
    "sd_xl_base_1.0.safetensors",
    "sd_xl_offset_example-lora_1.0.safetensors",
    *forms("unet", NETWORK, *BOTH),
    "unet/model.onnx",
    "unet/model.onnx_data",
    "unet/openvino_model.bin",
    "unet/openvino_model.xml",
    *forms("vae", NETWORK, *BOTH),
    *forms("vae_1_0", NETWORK, *BOTH),
    "vae_1_0/config.json",
    "vae_decoder/config.json",
    "vae_decoder/model.onnx",
    *forms("text_encoder", ENCODER, *BOTH, "onnx"),
    "text_encoder/flax_model.msgpack",
    *forms("text_encoder_2", ENCODER, *BOTH, "onnx", "onnx_data"),
]
TURBO = [
    *UNREAD,
    *CONFIGS,
    *TOKENIZER,
    *SECOND,
    "sd_xl_turbo_1.0.safetensors",
    "sd_xl_turbo_1.0_fp16.safetensors",
    *forms("unet", NETWORK, *BOTH),
    *forms("vae", NETWORK, *BOTH),
    *forms("text_encoder", ENCODER, *BOTH),
    *forms("text_encoder_2", ENCODER, *BOTH),
]


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize(
    "files", [SD15, SD21, SDXL, TURBO], ids=["SD 1.5", "SD 2.1", "SDXL", "SDXL-Turbo"]
)
def test_only_the_files_that_are_read_are_downloaded(files: list[str], variant: str | None) -> None:
    end = f"{variant}.safetensors" if variant else "safetensors"
    wanted = [
        *CONFIGS,
        f"unet/{NETWORK}.{end}",
        f"vae/{NETWORK}.{end}",
        f"text_encoder/{ENCODER}.{end}",
    ]
    if "text_encoder_2/config.json" in files:
        wanted += ["text_encoder_2/config.json", f"text_encoder_2/{ENCODER}.{end}"]
    wanted += [file for file in files if file.startswith("tokenizer")]
    assert sorted(select_files(files, PARTS, variant)) == sorted(wanted)


def test_each_part_is_downloaded_in_an_available_variant() -> None:
    unet = f"unet/{NETWORK}.fp16.safetensors"
    plain_vae = f"vae/{NETWORK}.safetensors"
    fp16_vae = f"vae/{NETWORK}.fp16.safetensors"
    text = f"text_encoder/{ENCODER}.safetensors"
    repository = [*CONFIGS, unet, plain_vae, fp16_vae, text]
    assert {unet, fp16_vae, text} <= set(select_files(repository, PARTS, "fp16"))
    downloaded = select_files(repository, PARTS)
    assert {unet, plain_vae, text} <= set(downloaded)
    assert fp16_vae not in downloaded


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
def test_the_weights_of_a_part_are_chosen_by_variant(
    names: list[str], variant: str | None, wanted: Weights | None
) -> None:
    assert choose_weights(names, ENCODER, variant) == wanted


def test_a_checkpoint_in_the_cache_is_found_without_a_network(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--owner--cached"
    folder = Path(shutil.copytree(checkpoint, repository / "snapshots" / ("a" * 40)))
    to_variant("fp16", UNET)(folder)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    sources._download_checkpoint.cache_clear()
    assert find_model("owner/cached") == folder
    (folder / UNET.replace(".safetensors", ".fp16.safetensors")).write_bytes(b"cut")
    with pytest.raises(
        ModelNotFoundError, match=r"model 'owner/cached': unet/.*fp16.safetensors is cut short"
    ):
        find_model("owner/cached")
