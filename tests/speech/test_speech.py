"""Whisper tiny.en, with its real weights, on sentences spoken by eSpeak NG.

The recordings in data/ were made by eSpeak NG 1.51: `espeak-ng -v en-us -s 120 -w
one-hundred-dogs.wav "one hundred dogs in a park"` and `espeak-ng -v en-gb -s 130 -w
five-white-cats.wav "five white cats on a beach"`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from synthgen.errors import InputError
from synthgen.speech import speech
from synthgen.speech.audio import RATE, read_wav
from tests.speech.whisper import converted_whisper, write_transformers

DATA = Path(__file__).parent / "data"
SENTENCES = {
    "one-hundred-dogs": "One hundred dogs in a park.",
    "five-white-cats": "Five white cats on a beach.",
}


@pytest.fixture(scope="module")
def converted() -> Path:
    return converted_whisper()


@pytest.fixture(scope="module")
def transformers_whisper(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_transformers(converted, tmp_path_factory.mktemp("speech") / "whisper-tiny.en")


@pytest.fixture
def hiss(tmp_path: Path) -> Path:
    """A recording of two seconds of noise."""
    path = tmp_path / "hiss.wav"
    noise = np.random.default_rng(0).standard_normal(2 * RATE)
    wavfile.write(path, RATE, (0.02 * noise).astype(np.float32))
    return path


def test_transformers_recognises_the_sentences(transformers_whisper: Path, hiss: Path) -> None:
    transcribe = speech.load_whisper(transformers_whisper)
    for name, sentence in SENTENCES.items():
        samples, _ = read_wav(DATA / f"{name}.wav")
        assert transcribe(samples).strip() == sentence
    assert transcribe(read_wav(hiss)[0]) == ""


def test_noise_is_refused(converted: Path, hiss: Path) -> None:
    with pytest.raises(InputError, match=r"hiss\.wav: .* found no words in the recording"):
        speech.transcribe_recording(hiss, str(converted))


def write_folder(tmp_path: Path, config: object, *files: str) -> str:
    """Write a folder with a config.json, and files that are not weights."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    for file in files:
        (tmp_path / file).write_bytes(b"not weights")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("config", "files", "text"),
    [
        ({"model_type": "clip"}, ["model.safetensors"], "not a Whisper, but 'clip'"),
        (
            {"model_type": "whisper"},
            ["pytorch_model.bin"],
            "no safetensors weights there; pickled ones are not loaded",
        ),
        ({"model_type": "whisper"}, ["model.safetensors"], "cannot be loaded: "),
        (
            {"layer_norm_epsilon": 1e-5},
            ["model.bin", "tokenizer.json"],
            "not a Whisper that was converted for CTranslate2",
        ),
        ({"suppress_ids_begin": []}, ["model.bin"], "no tokenizer.json there"),
        ({"suppress_ids_begin": []}, ["model.bin", "tokenizer.json"], "cannot be loaded: "),
        ([], ["model.bin"], "no readable config.json there"),
    ],
)
def test_a_folder_without_a_whisper_is_refused(
    tmp_path: Path, config: object, files: list[str], text: str
) -> None:
    pytest.importorskip("faster_whisper")
    with pytest.raises(InputError) as error:
        speech.transcribe_recording(
            DATA / "one-hundred-dogs.wav", write_folder(tmp_path, config, *files)
        )
    assert str(error.value).startswith("--speech: ")
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_without_a_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"--speech: 'nosuch': no such folder, and no Hugging Face id"
    ):
        speech.find_whisper("nosuch")
    with pytest.raises(InputError, match=r"no readable config\.json there"):
        speech.find_whisper(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError,
        match=r"--speech: model 'no/such'.*or give the folder of a Whisper with --speech FOLDER",
    ):
        speech.find_whisper("no/such")


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speech, "find_spec", lambda name: None)
    folder = write_folder(tmp_path, {"suppress_ids_begin": []}, "model.bin", "tokenizer.json")
    with pytest.raises(
        InputError, match=r"needs faster-whisper: pip install 'synthgen-layouts\[voice\]'"
    ):
        speech.find_whisper(folder)


def test_the_format_of_a_folder_follows_from_its_files(
    transformers_whisper: Path, converted: Path
) -> None:
    assert speech.is_converted(speech.find_whisper(str(converted)))
    assert not speech.is_converted(speech.find_whisper(str(transformers_whisper)))
