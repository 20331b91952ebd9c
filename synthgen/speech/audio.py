"""A recording as samples."""

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
RATE = 16_000  # Hz, Whisper's
MOST_SECONDS = 30  # Whisper's window
LEAST_SECONDS = 0.1
SILENCE = 1e-3  # of full scale (-60 dB)


def read_wav(path: Path) -> tuple[Samples, str]:
    """A WAV file (PCM of 8 to 32 bits, or floating point; any rate, any number of channels) and the sha256 of its bytes.

    Returns:
        Samples (n,) float32 in [-1, 1], one channel, 16 kHz.

    Raises:
        InputError: it cannot be read, is no such file, is longer than Whisper's window, or holds no sound.
    """
    from scipy.signal import resample_poly

    data = _bytes(path)
    rate, samples = _decode(path, data)
    seconds = len(samples) / rate
    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise InputError(
            f"{path}: {seconds:.1f} s of sound; a prompt takes {LEAST_SECONDS} to {MOST_SECONDS} s"
        )
    mono = samples.mean(1)
    if not np.isfinite(mono).all() or np.abs(mono - mono.mean()).max() < SILENCE:
        raise InputError(
            f"{path}: nothing is heard: the recording is silent; record a sentence, louder"
        )
    common = gcd(rate, RATE)
    return resample_poly(mono, RATE // common, rate // common).clip(-1, 1).astype(
        np.float32
    ), hashlib.sha256(data).hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _decode(path: Path, data: bytes) -> tuple[int, NDArray[np.float64]]:
    """The rate in Hz and samples (n, channels) in [-1, 1]."""
    from scipy.io import wavfile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks that are not sound
        try:
            rate, samples = wavfile.read(io.BytesIO(data))
        except UnboundLocalError:  # scipy's, where no samples follow
            raise InputError(
                f"{path}: not a WAV file that can be read (it holds no samples)"
            ) from None
        except (ValueError, EOFError, KeyError, ZeroDivisionError, struct.error) as error:
            raise InputError(
                f"{path}: not a WAV file that can be read ({error}); give PCM or floating point samples"
            ) from None
    if not rate or samples.ndim not in (1, 2):
        raise InputError(f"{path}: not a WAV file that can be read (no rate)")
    samples = samples[:, None] if samples.ndim == 1 else samples
    if samples.dtype.kind == "f":
        return rate, samples.astype(np.float64)
    full = 2.0 ** (8 * samples.itemsize - 1)
    return rate, samples / full - (1 if samples.dtype == np.uint8 else 0)
