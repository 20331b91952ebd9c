"""Clusters that do not answer, and folders that Ray cannot use.

They are reported in one line, before anything is written.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from synthgen.cli.main import main
from synthgen.config import Job
from synthgen.engine import cluster
from synthgen.engine.cluster import (
    find_cluster_address,
    find_ray_folder,
    provide_token,
    refuse_unreachable,
)
from synthgen.engine.generation import run
from synthgen.engine.pool import count_cpus, count_workers
from synthgen.errors import InputError


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Return a server of this machine that accepts connections and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def address_of(server: socket.socket) -> str:
    """Return HOST:PORT of a server."""
    host, port = server.getsockname()[:2]
    return f"{host}:{port}"


def unset(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Remove variables for this test, including those that the test itself sets."""
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def closed_port() -> str:
    """Return HOST:PORT of a port that no server listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return address_of(server)


@pytest.mark.parametrize("option", [True, False], ids=["--address", "RAY_ADDRESS"])
def test_a_cluster_that_does_not_answer_is_reported_and_nothing_is_written(
    job_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: bool,
) -> None:
    address = closed_port()
    start = time.monotonic()
    if not option:
        monkeypatch.setenv("RAY_ADDRESS", address)
    options = ["--address", address] if option else []
    assert main(["run", str(job_file), "workers=1", *options]) == 2
    assert time.monotonic() - start < 5
    error = capsys.readouterr().err
    assert error.startswith(
        f"synthgen: no Ray cluster answers at {address}: connection refused; start it, or "
    )
    assert "unset RAY_ADDRESS; workers=0 needs no Ray" in error
    assert len(error.splitlines()) == 1
    assert not (job_file.parent / "out").exists()


def test_the_cluster_is_not_contacted_without_ray_or_missing_shards(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", closed_port())
    assert run(make_job("workers=0")).made == 6
    assert run(make_job("workers=1")).made == 0


def test_a_server_that_is_not_ray_is_reported(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.1)
    with pytest.raises(InputError, match="no answer"):
        refuse_unreachable(f"ray://{address_of(listener)}")

    def serve() -> None:
        connection, _ = listener.accept()  # that of the first call
        connection.close()
        connection, _ = listener.accept()
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 10.0)
    with pytest.raises(InputError, match="something other than Ray listens there"):
        refuse_unreachable(address_of(listener))
    thread.join()


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://10.0.0.5:8265", "is the address of a dashboard"),
        ("10.0.0.5", "is not the address of a Ray cluster: give HOST:PORT"),
        ("10.0.0.5:many", "is not the address of a Ray cluster: give HOST:PORT"),
        ("no-such-host.invalid:6379", "no Ray cluster answers at no-such-host.invalid:6379"),
    ],
)
def test_an_invalid_address_is_refused(address: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        refuse_unreachable(address)


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    unset(monkeypatch, "RAY_ADDRESS")
    assert (find_cluster_address(None), find_cluster_address("local")) == (None, None)
    monkeypatch.setenv("RAY_ADDRESS", "a:1")
    assert (find_cluster_address(None), find_cluster_address("b:2")) == ("a:1", "b:2")
    refuse_unreachable("auto")  # Ray's own search
    assert cluster.parse_endpoint("[::1]:6379") == ("::1", 6379)
    assert cluster.parse_endpoint("ray://head:10001") == ("head", 10001)
    assert cluster.parse_endpoint("anyscale://project") is None


def test_ray_gets_a_short_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unset(monkeypatch, "RAY_TMPDIR", "TMPDIR")
    assert find_ray_folder() is None
    long = tmp_path / ("a_rather_long_folder_of_a_user_on_a_shared_cluster_" * 2)
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    monkeypatch.setattr(cluster, "SHORT_FOLDER", str(tmp_path / "short"))
    with pytest.raises(
        InputError, match=rf"{long}, is too long.* set RAY_TMPDIR to a folder of at most \d+ char"
    ):
        find_ray_folder()
    (tmp_path / "short").mkdir()
    assert find_ray_folder() == str(tmp_path / "short/ray")
    (tmp_path / "short/ray").rmdir()
    (tmp_path / "short/ray").write_text("of another user")
    assert find_ray_folder() == str(tmp_path / f"short/ray-{os.getuid()}")


def test_ray_gets_a_token_without_a_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unset(monkeypatch, "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")
    monkeypatch.setenv("HOME", str(tmp_path))
    provide_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    provide_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.delenv("RAY_AUTH_MODE")
    provide_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.slow
def test_ray_starts_with_a_long_temporary_folder_and_no_home_folder(
    job_file: Path, tmp_path: Path
) -> None:
    """It runs in its own process, because Ray keeps the first token that a process reads."""
    user_folder = tmp_path / "a_rather_long_folder_name_for_temporary_files"
    long = user_folder / "of_a_user_on_a_shared_cluster/job_1234567/tmp"
    long.mkdir(parents=True)
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")
    }
    environment = {**variables, "TMPDIR": str(long), "RAY_TMPDIR": str(long), "HOME": "/proc"}
    command = [
        sys.executable,
        "-m",
        "synthgen",
        "run",
        str(job_file),
        "workers=1",
        "images=2",
        "--json",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["complete"]


def test_all_processors_count_where_there_is_no_cpu_affinity(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert count_cpus() == 3
    assert count_workers(make_job("images=20", "workers=null")) == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_workers(make_job("images=20", "workers=null")) == 1
