"""Ray workers, kills and interrupts, with real processes: the bytes are those of an undisturbed run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from synthgen.config import Job, load_job
from synthgen.dataset.check import check_dataset
from synthgen.engine.driver import run
from synthgen.storage.location import open_store
from tests.conftest import SMALL_JOB, shard_bytes
from tests.s3 import S3

pytestmark = pytest.mark.slow
IMAGES = 40
LONG = [
    f"images={IMAGES}",
    "layout.canvas=[384, 384]",
    "layout.objects.dog=20",
]  # long enough to be killed in


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of the long job, made in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "small.yaml").write_text(
        json.dumps({**SMALL_JOB, "output": {**SMALL_JOB["output"], "path": str(folder / "out")}})
    )
    run(load_job(str(folder / "small.yaml"), LONG))
    return shard_bytes(folder / "out")


@pytest.fixture
def start(job_file: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start `synthgen run` on the small job in a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def begin(*overrides: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "synthgen", "run", str(job_file), *overrides, "--json"]
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def wait_for(
    condition: Callable[[], object], process: "subprocess.Popen[str]", seconds: float = 120
) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.02)


def markers(out: Path) -> int:
    return len(list((out / "shards").glob("*.json")))


def workers_of(driver: int) -> list[int]:
    """Process ids of the Ray actors that descend from a driver."""
    parent, name = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
            name[int(folder.name)] = (folder / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = []
    for pid, command in name.items():
        above = pid
        while above in parent and above != driver:
            above = parent[above]
        if above == driver and command.startswith("ray::Actor"):
            found.append(pid)
    return found


def test_two_workers_give_the_same_bytes_as_one_here(
    make_job: Callable[..., Job], checkpoint: Path, tmp_path: Path, s3: S3
) -> None:
    """And stage them straight to an object store."""
    job = [
        f"pipeline={{method: mixture, model: {checkpoint}, steps: 2}}",
        "layout.canvas=[96, 96]",
        "layout.objects.dog=2",
    ]
    here, there = tmp_path / "here", s3.url("two-workers")
    for workers, out in ((0, here), (2, there)):
        assert run(make_job(*job, f"workers={workers}", f"output.path={out}")).made == 6
    made, store = shard_bytes(here), open_store(there)
    assert {name for name, _ in store.sizes("shards")} == {
        p.name for p in (here / "shards").iterdir()
    }
    assert {name: store.read(f"shards/{name}") for name in made} == made
    assert list(store.sizes(".staging")) == []
    assert len(made) == 6


def test_a_killed_driver_is_resumed_and_a_terminated_one_too(
    job_file: Path,
    start: Callable[..., "subprocess.Popen[str]"],
    make_job: Callable[..., Job],
    undisturbed: dict[str, bytes],
) -> None:
    out = Path(make_job().output.path)
    first = start(*LONG, "workers=2")
    wait_for(lambda: markers(out) >= 3, first)
    first.kill()
    first.wait()
    left = markers(out)
    assert left < IMAGES // 2
    second = start(*LONG, "workers=2")
    wait_for(lambda: markers(out) > left, second)
    second.terminate()
    stdout, stderr = second.communicate(timeout=100)
    assert second.returncode == 143, stderr
    said = json.loads(stdout)
    assert (said["interrupted"], said["images"]) == (True, 2 * markers(out))
    assert not [p for p in out.rglob("*") if p.name.startswith(".")]
    assert 0 < run(load_job(str(job_file), LONG)).made < IMAGES
    assert shard_bytes(out) == undisturbed
    assert check_dataset(open_store(out))[0] == []


def test_a_killed_actor_is_replaced_and_ctrl_c_says_how_to_go_on(
    job_file: Path,
    start: Callable[..., "subprocess.Popen[str]"],
    make_job: Callable[..., Job],
    undisturbed: dict[str, bytes],
) -> None:
    out = Path(make_job().output.path)
    command = [sys.executable, "-m", "synthgen", "run", str(job_file), *LONG, "workers=2"]
    heed = {
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    }  # a test run in the background ignores it
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heed
    )  # type: ignore[call-overload]
    wait_for(lambda: markers(out) >= 2, process)
    actors = workers_of(process.pid)
    os.kill(actors[0], signal.SIGKILL)
    for other in actors[1:]:
        os.kill(other, signal.SIGSTOP)  # lest all be made meanwhile
    refused = start(*LONG, "workers=0")
    assert refused.wait(timeout=60) == 2
    assert "another run is working on this output" in refused.communicate()[1]
    wait_for(lambda: set(workers_of(process.pid)) - set(actors), process)
    for other in actors[1:]:
        os.kill(other, signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert f"To go on: synthgen run {job_file} {LONG[0]} 'layout.canvas=[384, 384]'" in stdout
    assert not [p for p in out.rglob("*") if p.name.startswith(".")]
    faults = check_dataset(open_store(out))[
        0
    ]  # where the killed actor's shard is a gap, it is named as well
    assert any(f"images, the job asks for {IMAGES}" in fault for fault in faults)
    run(load_job(str(job_file), LONG))
    assert shard_bytes(out) == undisturbed
