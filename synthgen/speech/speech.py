"""Speech to text with Whisper (arXiv 2212.04356), through transformers or faster-whisper."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from synthgen.errors import InputError
from synthgen.pipelines.base import ModelNotFoundError
from synthgen.pipelines.diffusion.sources import download_snapshot, hash_files
from synthgen.speech import Spoken
from synthgen.speech.audio import RATE, Samples, read_wav

# The weights in CTranslate2's format. Unlike the pickled pytorch_model.bin of transformers, reading
# them runs no code.
CONVERTED = "model.bin"
FILES = ["*.json", "*.txt", "*.safetensors", CONVERTED]
HINT = "A picture of three cats and twelve people in a street."  # Whisper's previous text
# The probability of silence from which the text is empty: Whisper would make up words, mostly those
# of the hint.
NO_SPEECH = 0.6
MAX_TOKENS = 100
Transcribe = Callable[[Samples], str]


def transcribe_recording(path: Path, model: str) -> Spoken:
    """Return the text that is spoken in a WAV file.

    Args:
        model: folder or Hugging Face id of a Whisper, either of transformers with safetensors or
            converted for CTranslate2.

    Raises:
        InputError: the recording or the model cannot be used, or no words were recognised.
    """
    samples, sha256 = read_wav(path)
    folder = find_whisper(model)
    transcribe = _load(folder)
    text = transcribe(samples).strip()
    if not any(character.isalnum() for character in text):
        raise InputError(
            f"{path}: {model} found no words in the recording; speak slowly, close to the "
            "microphone"
        )
    name = Path(model).name if Path(model).is_dir() else model
    return Spoken(
        text=text, model=name, model_sha256=hash_files(folder, FILES), audio_sha256=sha256
    )


def _load(folder: Path) -> Transcribe:
    from safetensors import SafetensorError

    try:
        return load_converted(folder) if is_converted(folder) else load_whisper(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelNotFoundError(
            f"--speech: {folder} cannot be loaded: {str(error).splitlines()[0]}"
        ) from None


def find_whisper(name: str) -> Path:
    """Return the local folder of a Whisper, downloaded from the Hub if necessary.

    Raises:
        ModelNotFoundError: it cannot be found or cannot be loaded.
    """
    folder = Path(name)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise ModelNotFoundError(
                f"--speech: {name!r}: no such folder, and no Hugging Face id (owner/name)"
            )
        folder = _download(name)
    problem = _find_problem(folder)
    if problem:
        raise ModelNotFoundError(f"--speech: {name!r}: {problem}")
    return folder


def _download(name: str) -> Path:
    try:
        return download_snapshot(name, FILES, ["*fp32*"])
    except ModelNotFoundError as error:
        reason = str(error).partition("; ")[0]
        raise ModelNotFoundError(
            f"--speech: {reason}; with a network it is downloaded once, or give the folder of a "
            "Whisper with --speech FOLDER"
        ) from None


def is_converted(folder: Path) -> bool:
    """Return whether a folder holds a Whisper converted for CTranslate2."""
    return (folder / CONVERTED).is_file()


def _find_problem(folder: Path) -> str:
    """Return why a folder holds no Whisper that can be loaded; empty if it does."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        return "no readable config.json there"
    if is_converted(folder):
        if find_spec("faster_whisper") is None:
            return (
                "a model for CTranslate2 needs faster-whisper: "
                "pip install 'synthgen-layouts[voice]'"
            )
        if "suppress_ids_begin" not in config:
            return "not a Whisper that was converted for CTranslate2"
        if not (folder / "tokenizer.json").is_file():  # faster-whisper would download one
            return "no tokenizer.json there"
        return ""
    if config.get("model_type") != "whisper":
        return f"not a Whisper, but {config.get('model_type')!r}"
    if not list(folder.glob("*.safetensors")):
        return "no safetensors weights there; pickled ones are not loaded"
    return ""


def load_whisper(folder: Path) -> Transcribe:
    """Return a Whisper of transformers; it runs on the CPU, because workers use the GPU."""
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
    language = {}
    if getattr(config, "is_multilingual", True):
        language = {"language": "en", "task": "transcribe"}

    @torch.inference_mode()
    def transcribe(samples: Samples) -> str:
        features = processor(samples, sampling_rate=RATE, return_tensors="pt").input_features
        encoded = model.model.encoder(features)
        start = torch.tensor([[config.decoder_start_token_id]])
        logits = model(encoder_outputs=encoded, decoder_input_ids=start).logits
        probabilities = logits[0, -1].softmax(-1)
        no_speech = config.no_timestamps_token_id - 1  # the token of silence is the one before it
        if probabilities[no_speech] > NO_SPEECH:
            return ""
        hint = processor.get_prompt_ids(HINT, return_tensors="pt")
        ids = model.generate(
            encoder_outputs=encoded,
            prompt_ids=hint,
            num_beams=1,
            max_new_tokens=MAX_TOKENS,
            **language,
        )
        return str(processor.batch_decode(ids, skip_special_tokens=True)[0])

    return transcribe


def load_converted(folder: Path) -> Transcribe:
    """Return a Whisper of faster-whisper."""
    from faster_whisper import WhisperModel

    model = WhisperModel(str(folder), device="cpu", compute_type="int8", local_files_only=True)

    def transcribe(samples: Samples) -> str:
        segments, _ = model.transcribe(
            samples,
            language="en",
            beam_size=5,
            temperature=0.0,
            initial_prompt=HINT,
            without_timestamps=True,
            no_speech_threshold=NO_SPEECH,
            log_prob_threshold=None,
            max_new_tokens=MAX_TOKENS,
        )
        return " ".join(segment.text.strip() for segment in segments)

    return transcribe
