"""The number of windows that go through a network together on a GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synthgen.pipelines.diffusion.chunk_size import (
    MOST_WINDOWS,
    USED_SHARE,
    choose_chunk,
    measure_chunk,
)
from synthgen.pipelines.mixture.pipeline import MixturePipeline


@given(free=st.integers(0, 2**40), window=st.integers(0, 2**36))
def test_the_chunk_is_the_largest_power_of_two_that_fits(free: int, window: int) -> None:
    chunk = choose_chunk(free, window)
    assert chunk & (chunk - 1) == 0
    assert 1 <= chunk <= MOST_WINDOWS
    room = USED_SHARE * free
    assert chunk == 1 or chunk * window <= room
    assert chunk == MOST_WINDOWS or 2 * chunk * max(1, window) > room - max(1, window)


def test_the_memory_of_a_window_is_that_of_two_more_windows(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake allocator counts 100 bytes for each window and 1,000 for the rest."""
    pipeline: Any = MixturePipeline.from_pretrained(checkpoint, use_safetensors=True)
    passes: list[int] = []
    predict = pipeline.predict

    def record(t: Any, x: torch.Tensor, conditions: Any) -> Any:
        passes.append(len(x))
        return predict(t, x, conditions)

    monkeypatch.setattr(pipeline, "predict", record)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1000 + 100 * passes[-1])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10_000, 20_000))
    assert measure_chunk(pipeline) == 64  # 70 windows would fit
    assert passes == [1, 3]
