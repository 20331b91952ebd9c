"""Whisper tiny.en, with its real weights, on sentences that eSpeak NG speaks.

The recordings in data/ were made by eSpeak NG 1.51: `espeak-ng -v en-us -s 120 -w one-hundred-dogs.wav "one hundred dogs in a
park"` and `espeak-ng -v en-gb -s 130 -w five-white-cats.wav "five white cats on a beach"`.
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
def of_transformers(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_transformers(converted, tmp_path_factory.mktemp("speech") / "whisper-tiny.en")


@pytest.fixture
def hiss(tmp_path: Path) -> Path:
    """Two seconds without a word."""
    path = tmp_path / "hiss.wav"
    noise = np.random.default_rng(0).standard_normal(2 * RATE)
    wavfile.write(path, RATE, (0.02 * noise).astype(np.float32))
    return path


def test_transformers_hears_the_same_with_the_same_weights(
    of_transformers: Path, hiss: Path
) -> None:
    listen = speech.load_whisper(of_transformers)
    assert {
        name: listen(read_wav(DATA / f"{name}.wav")[0]).strip() for name in SENTENCES
    } == SENTENCES
    assert listen(read_wav(hiss)[0]) == ""


def test_noise_is_no_sentence(converted: Path, hiss: Path) -> None:
    with pytest.raises(
        InputError, match=r"hiss\.wav: nothing is heard: .* found no words in the recording"
    ):
        speech.hear(hiss, str(converted))


def folder_of(tmp_path: Path, config: object, *files: str) -> str:
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
def test_folders_that_hold_no_whisper(
    tmp_path: Path, config: object, files: list[str], text: str
) -> None:
    pytest.importorskip("faster_whisper")
    with pytest.raises(InputError) as error:
        speech.hear(DATA / "one-hundred-dogs.wav", folder_of(tmp_path, config, *files))
    assert str(error.value).startswith("--speech: ")
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_names_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_extra_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speech, "find_spec", lambda name: None)
    folder = folder_of(tmp_path, {"suppress_ids_begin": []}, "model.bin", "tokenizer.json")
    with pytest.raises(
        InputError, match=r"needs faster-whisper: pip install 'synthgen-layouts\[voice\]'"
    ):
        speech.find_whisper(folder)


def test_a_folder_is_known_by_what_it_holds(of_transformers: Path, converted: Path) -> None:
    assert speech._is_converted(speech.find_whisper(str(converted)))
    assert not speech._is_converted(speech.find_whisper(str(of_transformers)))
