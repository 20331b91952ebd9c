"""Speech to text with Whisper (arXiv 2212.04356), through transformers or, for its converted models, faster-whisper."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from synthgen.errors import InputError
from synthgen.pipelines.base import ModelNotFoundError
from synthgen.pipelines.diffusion.models import files_hash, snapshot
from synthgen.speech import Spoken
from synthgen.speech.audio import RATE, Samples, read_wav

CONVERTED = "model.bin"  # CTranslate2's own format, which runs no code, unlike transformers' pickled pytorch_model.bin
FILES = ["*.json", "*.txt", "*.safetensors", CONVERTED]
HINT = "A picture of three cats and twelve people in a street."  # what is likely to be said, for Whisper's previous text
NO_SPEECH = 0.6  # probability of silence from which nothing is heard: Whisper would make words up, the hint's first
MOST_TOKENS = 100
Listen = Callable[[Samples], str]


def hear(path: Path, model: str) -> Spoken:
    """What is said in a WAV file.

    Args:
        model: folder or Hugging Face id of a Whisper: transformers' with safetensors, or one converted for CTranslate2.

    Raises:
        InputError: the recording or the model cannot be used, or no words were heard.
    """
    samples, sha256 = read_wav(path)
    folder = find_whisper(model)
    text = _loaded(folder)(samples).strip()
    if not any(c.isalnum() for c in text):
        raise InputError(
            f"{path}: nothing is heard: {model} found no words in the recording; speak slowly, close to it"
        )
    name = Path(model).name if Path(model).is_dir() else model
    return Spoken(
        text=text, model=name, model_sha256=files_hash(folder, FILES), audio_sha256=sha256
    )


def _loaded(folder: Path) -> Listen:
    from safetensors import SafetensorError

    try:
        return load_converted(folder) if _is_converted(folder) else load_whisper(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelNotFoundError(
            f"--speech: {folder} cannot be loaded: {str(error).splitlines()[0]}"
        ) from None


def find_whisper(name: str) -> Path:
    """The local folder of a Whisper, fetched from the Hub if it is not here.

    Raises:
        ModelNotFoundError: it is nowhere, or what is there cannot be loaded.
    """
    folder = Path(name)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise ModelNotFoundError(
                f"--speech: {name!r}: no such folder, and no Hugging Face id (owner/name)"
            )
        folder = _fetched(name)
    if reason := _unusable(folder):
        raise ModelNotFoundError(f"--speech: {name!r}: {reason}")
    return folder


def _fetched(name: str) -> Path:
    try:
        return snapshot(name, FILES, ["*fp32*"])
    except ModelNotFoundError as error:
        reason = str(error).partition("; ")[0]
        raise ModelNotFoundError(
            f"--speech: {reason}; with a network it is fetched once, or give the folder of a Whisper with --speech FOLDER"
        ) from None


def _is_converted(folder: Path) -> bool:
    return (folder / CONVERTED).is_file()


def _unusable(folder: Path) -> str:
    """Why a folder holds no Whisper that can be loaded; empty if it does."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        return "no readable config.json there"
    if _is_converted(folder):
        if find_spec("faster_whisper") is None:
            return "a model for CTranslate2 needs faster-whisper: pip install 'synthgen-layouts[voice]'"
        if "suppress_ids_begin" not in config:
            return "not a Whisper that was converted for CTranslate2"
        return (
            "" if (folder / "tokenizer.json").is_file() else "no tokenizer.json there"
        )  # else it is looked for on the Hub
    if config.get("model_type") != "whisper":
        return f"not a Whisper, but {config.get('model_type')!r}"
    return (
        ""
        if list(folder.glob("*.safetensors"))
        else "no safetensors weights there; pickled ones are not loaded"
    )


def load_whisper(folder: Path) -> Listen:
    """Whisper of transformers; on the CPU, for a GPU is the workers'."""
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    processor = WhisperProcessor.from_pretrained(folder, local_files_only=True)
    model = WhisperForConditionalGeneration.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, dtype=torch.float32
    ).eval()
    config = model.generation_config
    language = (
        {"language": "en", "task": "transcribe"} if getattr(config, "is_multilingual", True) else {}
    )

    @torch.inference_mode()
    def listen(samples: Samples) -> str:
        features = processor(samples, sampling_rate=RATE, return_tensors="pt").input_features
        heard = model.model.encoder(features)
        begin = torch.tensor([[config.decoder_start_token_id]])
        first = model(encoder_outputs=heard, decoder_input_ids=begin).logits[0, -1].softmax(-1)
        if (
            first[config.no_timestamps_token_id - 1] > NO_SPEECH
        ):  # the token before it is the one for silence
            return ""
        hint = processor.get_prompt_ids(HINT, return_tensors="pt")
        ids = model.generate(
            encoder_outputs=heard,
            prompt_ids=hint,
            num_beams=1,
            max_new_tokens=MOST_TOKENS,
            **language,
        )
        return str(processor.batch_decode(ids, skip_special_tokens=True)[0])

    return listen


def load_converted(folder: Path) -> Listen:
    """Whisper of faster-whisper."""
    from faster_whisper import WhisperModel

    model = WhisperModel(str(folder), device="cpu", compute_type="int8", local_files_only=True)

    def listen(samples: Samples) -> str:
        segments, _ = model.transcribe(
            samples, language="en", beam_size=5, temperature=0.0, initial_prompt=HINT, without_timestamps=True,
            no_speech_threshold=NO_SPEECH, log_prob_threshold=None, max_new_tokens=MOST_TOKENS,
        )  # fmt: skip
        return " ".join(segment.text.strip() for segment in segments)

    return listen
