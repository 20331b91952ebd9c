"""Runs with an output on an object store that fails at times.

The dataset is the same as that of an undisturbed run with an output folder.
"""

import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from synthgen import cli
from synthgen.config import Job
from synthgen.dataset.check import check_dataset
from synthgen.engine.generation import run
from synthgen.storage import object_store
from synthgen.storage.base import Store
from synthgen.storage.location import open_store
from synthgen.storage.lock import LockedError
from tests.s3 import S3, Fault

WHOLE = [
    "annotations/instances.json",
    "manifest.parquet",
    "index.json",
    "README.md",
    "contact_sheet.jpg",
]
SHARDS = [f"shards/00000{n}.{suffix}" for n in range(3) for suffix in ("tar", "parquet")]
DISTURBED = [
    Fault("cut", r"PUT .*\.staging", times=3, every=3),
    Fault("lost", "PUT .*shards/", times=3, every=4),
    Fault(503, ".", times=8, every=7),
    Fault(500, "DELETE", times=2),
]


@pytest.fixture
def url(s3: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of an empty folder of the bucket, with a short backoff."""
    monkeypatch.setattr(object_store, "BACKOFF", (0.01,) * 6)
    return s3.url(f"runs/{uuid.uuid4().hex}")


def assert_same(store: Store, local: Path) -> None:
    """Assert that all files without times are the same, and that no file is orphaned."""
    for name in (*WHOLE, *SHARDS):
        assert store.read(name) == (local / name).read_bytes(), name
    assert sorted(name for name, _ in store.sizes("shards")) == sorted(
        p.name for p in (local / "shards").iterdir()
    )
    assert [
        name
        for name, _ in (*store.sizes(""), *store.sizes(".staging"))
        if name.startswith(".") or "-" in name
    ] == []


def test_a_disturbed_run_equals_an_undisturbed_one(
    make_job: Callable[..., Job], dataset: Path, url: str, s3: S3
) -> None:
    s3.fail(*DISTURBED)
    job = make_job(f"output.path={url}")
    result = run(job)
    assert (result.made, result.counts["complete"]) == (6, True)
    assert len(s3.requests()) > 60
    s3.fail()
    store = open_store(url)
    assert_same(store, dataset)
    assert check_dataset(open_store(url)) == check_dataset(open_store(dataset))
    assert run(job).made == 0
    assert_same(store, dataset)


def test_a_killed_run_is_resumed(
    job_file: Path, make_job: Callable[..., Job], dataset: Path, url: str, s3: S3
) -> None:
    s3.fail(Fault("hang", "PUT .*shards/000001.json", times=9))
    process = subprocess.Popen(
        [sys.executable, "-m", "synthgen", "run", str(job_file), f"output.path={url}"]
    )
    try:
        deadline = time.monotonic() + 240
        while not any("PUT /bucket/runs" in r and "000001.json" in r for r in s3.requests()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        with pytest.raises(LockedError, match=f"process {process.pid} on"):
            run(make_job(f"output.path={url}"))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    s3.fail()
    store = open_store(url)
    assert store.exists("shards/000000.json")
    assert not store.exists("shards/000001.json")
    assert any(name.startswith(".lock-") for name, _ in store.sizes(""))
    assert run(make_job(f"output.path={url}")).made == 4
    assert_same(store, dataset)


def test_the_commands_take_a_url(
    job_file: Path,
    url: str,
    s3: S3,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cli.main(["run", str(job_file), f"output.path={url}"]) == 0
    assert cli.main(["check", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 6
    assert cli.main(["finalize", url]) == 0
    assert cli.main(["report", url]) == 0
    store = open_store(url)
    events = [
        json.loads(line)
        for name, _ in store.sizes("log.jsonl")
        for line in store.read(f"log.jsonl/{name}").splitlines()
    ]
    assert [line["event"] for line in events] == [
        "run started",
        *["shard committed"] * 3,
        "run ended",
    ]
    assert b"AKIATESTKEY" not in store.read("job.yaml") + store.read("dataset.json") + store.read(
        "report.html"
    )
    store.write("shards/000001.tar", b"cut")
    assert cli.main(["check", url]) == 1
    capsys.readouterr()
    s3.fail(Fault(500, "GET|HEAD", times=99))
    monkeypatch.setattr(object_store, "BACKOFF", (0.01,))
    assert cli.main(["check", url]) == 1
    assert capsys.readouterr().err.startswith(
        f"synthgen: {url}/dataset.json: the store failed 2 times: "
    )


def test_a_store_that_refuses_is_reported_in_one_line(
    job_file: Path, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(job_file), "output.path=s3://no-such-bucket/out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("synthgen: s3://no-such-bucket/out/")
    assert "NO_SUCH_BUCKET" in error
    assert error.count("\n") == 1
    assert cli.main(["check", "s3://key:hidden@bucket/out"]) == 2
    assert "hidden" not in capsys.readouterr().err
