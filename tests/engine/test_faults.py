"""Ray workers, kills and interrupts, with real processes.

The bytes are those of an undisturbed run.
"""

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
from synthgen.engine.generation import run
from synthgen.storage.location import open_store
from tests.conftest import SMALL_JOB, read_shard_bytes
from tests.s3 import S3

pytestmark = pytest.mark.slow
IMAGES = 40
LONG = [
    f"images={IMAGES}",
    "layout.canvas=[384, 384]",
    "layout.objects.dog=20",
]  # long enough to be killed


@pytest.fixture(scope="module")
def expected_bytes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the shards of the long job, generated in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "small.yaml").write_text(
        json.dumps({**SMALL_JOB, "output": {**SMALL_JOB["output"], "path": str(folder / "out")}})
    )
    run(load_job(str(folder / "small.yaml"), LONG))
    return read_shard_bytes(folder / "out")


@pytest.fixture
def start(job_file: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Return a function that starts `synthgen run` on the small job in its own process."""
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
    """Return the process ids of the Ray actors that descend from a driver."""
    parents = {}
    commands = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
            commands[int(folder.name)] = (folder / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
    actors = []
    for pid, command in commands.items():
        ancestor = pid
        while ancestor in parents and ancestor != driver:
            ancestor = parents[ancestor]
        if ancestor == driver and command.startswith("ray::Actor"):
            actors.append(pid)
    return actors


def test_two_ray_workers_give_the_same_bytes_as_one_in_this_process(
    make_job: Callable[..., Job], checkpoint: Path, tmp_path: Path, s3: S3
) -> None:
    """The Ray workers stage their shards directly on an object store."""
    job = [
        f"pipeline={{method: mixture, model: {checkpoint}, steps: 2}}",
        "layout.canvas=[96, 96]",
        "layout.objects.dog=2",
    ]
    local_out = tmp_path / "here"
    remote_out = s3.url("two-workers")
    for workers, out in ((0, local_out), (2, remote_out)):
        assert run(make_job(*job, f"workers={workers}", f"output.path={out}")).made == 6
    files = read_shard_bytes(local_out)
    store = open_store(remote_out)
    assert {name for name, _ in store.sizes("shards")} == {
        p.name for p in (local_out / "shards").iterdir()
    }
    assert {name: store.read(f"shards/{name}") for name in files} == files
    assert list(store.sizes(".staging")) == []
    assert len(files) == 6


def test_a_killed_and_a_terminated_driver_are_resumed(
    job_file: Path,
    start: Callable[..., "subprocess.Popen[str]"],
    make_job: Callable[..., Job],
    expected_bytes: dict[str, bytes],
) -> None:
    out = Path(make_job().output.path)
    first = start(*LONG, "workers=2")
    wait_for(lambda: markers(out) >= 3, first)
    first.kill()
    first.wait()
    committed = markers(out)
    assert committed < IMAGES // 2
    second = start(*LONG, "workers=2")
    wait_for(lambda: markers(out) > committed, second)
    second.terminate()
    stdout, stderr = second.communicate(timeout=100)
    assert second.returncode == 143, stderr
    output = json.loads(stdout)
    assert (output["interrupted"], output["images"]) == (True, 2 * markers(out))
    assert not [p for p in out.rglob("*") if p.name.startswith(".")]
    assert 0 < run(load_job(str(job_file), LONG)).made < IMAGES
    assert read_shard_bytes(out) == expected_bytes
    assert check_dataset(open_store(out))[0] == []


def test_a_killed_actor_is_replaced_and_ctrl_c_prints_how_to_resume(
    job_file: Path,
    start: Callable[..., "subprocess.Popen[str]"],
    make_job: Callable[..., Job],
    expected_bytes: dict[str, bytes],
) -> None:
    out = Path(make_job().output.path)
    command = [sys.executable, "-m", "synthgen", "run", str(job_file), *LONG, "workers=2"]
    sigint = {
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    }  # a process in the background ignores SIGINT
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **sigint
    )  # type: ignore[call-overload]
    wait_for(lambda: markers(out) >= 2, process)
    actors = workers_of(process.pid)
    os.kill(actors[0], signal.SIGKILL)
    for other in actors[1:]:
        os.kill(other, signal.SIGSTOP)  # so that not all shards are made meanwhile
    refused = start(*LONG, "workers=0")
    assert refused.wait(timeout=60) == 2
    assert "another run is working on this output" in refused.communicate()[1]
    wait_for(lambda: set(workers_of(process.pid)) - set(actors), process)
    for other in actors[1:]:
        os.kill(other, signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert f"To continue: synthgen run {job_file} {LONG[0]} 'layout.canvas=[384, 384]'" in stdout
    assert not [p for p in out.rglob("*") if p.name.startswith(".")]
    faults = check_dataset(open_store(out))[
        0
    ]  # the missing shard of the killed actor may be reported too
    assert any(f"images, the job asks for {IMAGES}" in fault for fault in faults)
    run(load_job(str(job_file), LONG))
    assert read_shard_bytes(out) == expected_bytes
