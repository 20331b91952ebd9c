"""Recordings: WAV files as samples for Whisper."""

import hashlib
import io
import struct
import warnings
from math import gcd
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthgen.errors import InputError

Samples = NDArray[np.float32]
RATE = 16_000  # Hz, the rate of Whisper
MAX_SECONDS = 30  # the window of Whisper
MIN_SECONDS = 0.1
SILENCE = 1e-3  # share of full scale (-60 dB)


def read_wav(path: Path) -> tuple[Samples, str]:
    """Return the samples of a WAV file, and the sha256 of its bytes.

    The file may hold PCM of 8 to 32 bits, or floating point; any rate; any number of channels.

    Returns:
        Samples (n,) float32 in [-1, 1], one channel, at RATE.

    Raises:
        InputError: the file cannot be read, is not a WAV file, is too short or longer than the
            window of Whisper, or is silent.
    """
    from scipy.signal import resample_poly

    data = _read_bytes(path)
    rate, samples = _decode(path, data)
    seconds = len(samples) / rate
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise InputError(
            f"{path}: {seconds:.1f} s of sound; a prompt takes {MIN_SECONDS} to {MAX_SECONDS} s"
        )
    mono = samples.mean(1)
    if not np.isfinite(mono).all() or np.abs(mono - mono.mean()).max() < SILENCE:
        raise InputError(f"{path}: the recording is silent; record the sentence again, louder")
    common = gcd(rate, RATE)
    resampled = resample_poly(mono, RATE // common, rate // common)
    return resampled.clip(-1, 1).astype(np.float32), hashlib.sha256(data).hexdigest()


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _decode(path: Path, data: bytes) -> tuple[int, NDArray[np.float64]]:
    """Return the rate in Hz, and samples (n, channels) in [-1, 1]."""
    from scipy.io import wavfile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks that are not sound
        try:
            rate, samples = wavfile.read(io.BytesIO(data))
        except UnboundLocalError:  # raised by scipy for a file without samples
            raise InputError(
                f"{path}: not a WAV file that can be read (it holds no samples)"
            ) from None
        except (ValueError, EOFError, KeyError, ZeroDivisionError, struct.error) as error:
            raise InputError(
                f"{path}: not a WAV file that can be read ({error}); give PCM or floating point "
                "samples"
            ) from None
    if not rate or samples.ndim not in (1, 2):
        raise InputError(f"{path}: not a WAV file that can be read (no rate)")
    if samples.ndim == 1:
        samples = samples[:, None]
    if samples.dtype.kind == "f":
        return rate, samples.astype(np.float64)
    full_scale = 2.0 ** (8 * samples.itemsize - 1)
    offset = 1 if samples.dtype == np.uint8 else 0
    return rate, samples / full_scale - offset
