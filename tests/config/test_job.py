"""Tests of `Job`."""

import json
from collections.abc import Callable

import pytest

from synthgen.config import Job


def test_a_tilde_in_the_output_path_is_expanded(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert make_job("output.path=~/out").output.path == "/home/me/out"


def test_the_fingerprint_ignores_number_path_and_speed(make_job: Callable[..., Job]) -> None:
    base = make_job().fingerprint()
    assert make_job("images=7", "output.path=elsewhere", "workers=3").fingerprint() == base
    changed = make_job("seed=4", "pipeline.shadow=0.1", "output.image_format=png").fingerprint()
    assert {k for k in base if base[k] != changed[k]} == {
        "seed",
        "pipeline.shadow",
        "output.image_format",
    }
    json.dumps(base)
