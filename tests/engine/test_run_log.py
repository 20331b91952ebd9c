"""log.jsonl: the events of several runs, without secrets."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthgen.config import Job
from synthgen.engine.generation import run
from synthgen.engine.run_log import collect_facts, log_to_output
from synthgen.storage.location import open_store


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_run_and_its_continuation_are_logged(make_job: Callable[..., Job]) -> None:
    job = make_job("images=4")
    out = Path(job.output.path)
    run(job)
    with (out / "log.jsonl").open("a") as file:
        file.write('{"time": "2026-01-01T')  # the last line of a killed run
    run(make_job("images=6"))
    lines = (out / "log.jsonl").read_text().splitlines()
    cut_line = lines.pop(4)
    assert cut_line == '{"time": "2026-01-01T'
    events = [json.loads(line) for line in lines]
    committed = "shard committed"
    assert [e["event"] for e in events] == [
        "run started",
        committed,
        committed,
        "run ended",
        "run started",
        committed,
        "run ended",
    ]
    assert [e["shard"] for e in events if e["event"] == committed] == [0, 1, 2]
    assert all(
        e["seconds"] > 0 and e["attempts"] == 2 and e["images"] == 2
        for e in events
        if e["event"] == committed
    )
    assert (events[-1]["images"], events[-1]["made"], events[4]["missing_shards"]) == (6, 2, 1)


def test_warnings_and_errors_are_logged_without_secrets(tmp_path: Path) -> None:
    log = logging.getLogger("synthgen.somewhere")

    def fails() -> None:
        with log_to_output(open_store(tmp_path)):
            log.warning(
                "shard 000001: attempt 1 of 3 failed",
                extra=collect_facts(url="https://me:pass@host/x?token=abc&y=1"),
            )
            log.debug("nothing for the log")
            raise ValueError("hf_abcdefghij was refused")

    with pytest.raises(ValueError, match="hf_abcdefghij"):
        fails()
    log.warning("after it")
    warning, error = lines(tmp_path)
    assert (warning["level"], warning["url"]) == ("warning", "https://***@host/x?token=***&y=1")
    assert (error["level"], error["event"]) == ("error", "run failed: *** was refused")


def test_a_refused_run_logs_nothing(make_job: Callable[..., Job], dataset: Path) -> None:
    before = (dataset / "log.jsonl").read_bytes()
    with pytest.raises(Exception, match="holds another job"):
        run(make_job("seed=9"))
    assert (dataset / "log.jsonl").read_bytes() == before
