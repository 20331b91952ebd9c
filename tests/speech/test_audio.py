"""WAV files of all formats are read as the tone that they contain."""

import io
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.io import wavfile

from synthgen.errors import InputError
from synthgen.speech.audio import RATE, read_wav

KINDS = {
    "u8": (1, 8),
    "i16": (1, 16),
    "i24": (1, 24),
    "i32": (1, 32),
    "f32": (3, 32),
    "f64": (3, 64),
}


def make_tone(rate: int, seconds: float = 0.5) -> NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)


def write_wav(path: Path, samples: NDArray[np.float64], rate: int, kind: str = "i16") -> Path:
    """Write samples (n,) or (n, channels) in [-1, 1] as a WAV file, byte by byte.

    The format is written here and not by a library, so that the reader is tested against it.
    """
    code, bits = KINDS[kind]
    if code == 3:
        data = samples.astype(f"<f{bits // 8}").tobytes()
    elif kind == "u8":
        data = np.round(samples * 127 + 128).astype(np.uint8).tobytes()
    else:
        whole = (
            np.round(samples * (2 ** (bits - 1) - 1)).astype("<i8").reshape(-1, 1).view(np.uint8)
        )
        data = whole[:, : bits // 8].tobytes()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    block = channels * bits // 8
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, code, channels, rate, rate * block, block, bits)
    body = b"WAVE" + head + struct.pack("<4sI", b"data", len(data)) + data
    path.write_bytes(struct.pack("<4sI", b"RIFF", len(body)) + body)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_all_formats_and_rates_are_read(tmp_path: Path, kind: str, rate: int) -> None:
    samples, sha256 = read_wav(write_wav(tmp_path / "a.wav", make_tone(rate), rate, kind))
    assert (samples.dtype, len(sha256)) == (np.dtype("float32"), 64)
    assert len(samples) == RATE // 2
    middle = slice(500, -500)  # resampling rings at the ends
    np.testing.assert_allclose(samples[middle], make_tone(RATE)[middle], atol=0.02)


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.stack([make_tone(RATE), np.zeros(RATE // 2)], 1)
    samples, _ = read_wav(write_wav(tmp_path / "a.wav", stereo, RATE))
    np.testing.assert_allclose(samples, make_tone(RATE) / 2, atol=1e-3)


def write_bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Write files that cannot be used; return the path and the message of each by name."""
    (folder / "text.wav").write_text("one hundred dogs")
    (folder / "empty.wav").write_bytes(b"")
    whole = write_wav(folder / "cut.wav", make_tone(RATE), RATE).read_bytes()
    (folder / "cut.wav").write_bytes(whole[:30])
    compressed = io.BytesIO(whole)
    compressed.seek(20)
    compressed.write(struct.pack("<H", 0x55))  # MP3 in a WAV file
    (folder / "mp3.wav").write_bytes(compressed.getvalue())
    (folder / "rate.wav").write_bytes(whole[:24] + struct.pack("<I", 0) + whole[28:])
    nan = np.full(RATE, np.nan)
    return {
        "missing": (folder / "nowhere.wav", "cannot be read: No such file or directory"),
        "folder": (folder, "cannot be read: Is a directory"),
        "text": (folder / "text.wav", "not a WAV file that can be read"),
        "empty": (folder / "empty.wav", "not a WAV file that can be read"),
        "cut": (folder / "cut.wav", "not a WAV file that can be read"),
        "mp3": (folder / "mp3.wav", "not a WAV file that can be read"),
        "rate": (folder / "rate.wav", "not a WAV file that can be read"),
        "no samples": (
            write_wav(folder / "none.wav", np.zeros(0), RATE),
            "0.0 s of sound; a prompt takes 0.1 to 30 s",
        ),
        "long": (
            write_wav(folder / "long.wav", make_tone(8000, 30.5), 8000),
            "30.5 s of sound; a prompt takes 0.1 to 30 s",
        ),
        "silent": (
            write_wav(folder / "silent.wav", np.full(RATE, 0.1), RATE),
            "the recording is silent",
        ),
        "not finite": (write_wav(folder / "nan.wav", nan, RATE, "f32"), "the recording is silent"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "missing",
        "folder",
        "text",
        "empty",
        "cut",
        "mp3",
        "rate",
        "no samples",
        "long",
        "silent",
        "not finite",
    ],
)
def test_errors_name_the_file_and_the_problem(tmp_path: Path, name: str) -> None:
    path, text = write_bad_files(tmp_path)[name]
    with pytest.raises(InputError) as error:
        read_wav(path)
    assert str(error.value).startswith(f"{path}: ")
    assert text in str(error.value)
    assert "\n" not in str(error.value)


@given(st.integers(0, 60), st.lists(st.tuples(st.integers(0, 47), st.integers(0, 255)), max_size=3))
def test_a_damaged_header_is_read_or_refused(cut: int, changes: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_wav(Path(folder) / "a.wav", make_tone(8000, 0.2), 8000)
        data = bytearray(path.read_bytes())
        for offset, value in changes:
            data[offset] = value
        path.write_bytes(data[: len(data) - cut])
        try:
            samples, _ = read_wav(path)
        except InputError:
            return
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() <= 1


def test_scipy_reads_what_the_tests_write(tmp_path: Path) -> None:
    rate, samples = wavfile.read(write_wav(tmp_path / "a.wav", make_tone(RATE), RATE))
    assert (rate, samples.dtype) == (RATE, np.dtype("int16"))
