"""Clusters that do not answer, and folders that Ray cannot use: told in one line, before anything is written."""

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
from synthgen.engine.cluster import cluster_address, provide_token, ray_folder, refuse_unreachable
from synthgen.engine.driver import run
from synthgen.engine.pool import cpu_count, worker_count
from synthgen.errors import InputError


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A port of this machine that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def address_of(server: socket.socket) -> str:
    """HOST:PORT."""
    host, port = server.getsockname()[:2]
    return f"{host}:{port}"


def unset(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Remove variables for this test, also those that it sets itself."""
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def closed_port() -> str:
    """HOST:PORT of nobody."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return address_of(server)


@pytest.mark.parametrize("option", [True, False], ids=["--address", "RAY_ADDRESS"])
def test_a_cluster_that_is_gone_is_named_and_nothing_is_written(
    job_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: bool,
) -> None:
    address, began = closed_port(), time.monotonic()
    if not option:
        monkeypatch.setenv("RAY_ADDRESS", address)
    more = ["--address", address] if option else []
    assert main(["run", str(job_file), "workers=1", *more]) == 2
    assert time.monotonic() - began < 5
    told = capsys.readouterr().err
    assert told.startswith(
        f"synthgen: no Ray cluster answers at {address}: connection refused; start it, or "
    )
    assert "unset RAY_ADDRESS; workers=0 needs no Ray" in told
    assert len(told.splitlines()) == 1
    assert not (job_file.parent / "out").exists()


def test_without_ray_and_with_nothing_to_make_nobody_asks(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", closed_port())
    assert run(make_job("workers=0")).made == 6
    assert run(make_job("workers=1")).made == 0


def test_what_is_no_ray_is_named(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.1)
    with pytest.raises(InputError, match="no answer"):
        refuse_unreachable(f"ray://{address_of(listener)}")

    def serve() -> None:
        connection, _ = listener.accept()  # the first one, which nobody answered
        connection.close()
        connection, _ = listener.accept()
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 10.0)
    with pytest.raises(InputError, match="something else than Ray listens there"):
        refuse_unreachable(address_of(listener))
    thread.join()


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://10.0.0.5:8265", "is the address of a dashboard"),
        ("10.0.0.5", "is no address of a Ray cluster: give HOST:PORT"),
        ("10.0.0.5:many", "is no address of a Ray cluster: give HOST:PORT"),
        ("no-such-host.invalid:6379", "no Ray cluster answers at no-such-host.invalid:6379"),
    ],
)
def test_an_address_that_is_none(address: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        refuse_unreachable(address)


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    unset(monkeypatch, "RAY_ADDRESS")
    assert (cluster_address(None), cluster_address("local")) == (None, None)
    monkeypatch.setenv("RAY_ADDRESS", "a:1")
    assert (cluster_address(None), cluster_address("b:2")) == ("a:1", "b:2")
    refuse_unreachable("auto")  # Ray's own search
    assert cluster.endpoint("[::1]:6379") == ("::1", 6379)
    assert cluster.endpoint("ray://head:10001") == ("head", 10001)
    assert cluster.endpoint("anyscale://project") is None


def test_ray_gets_a_short_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unset(monkeypatch, "RAY_TMPDIR", "TMPDIR")
    assert ray_folder() is None
    long = tmp_path / ("a_rather_long_folder_of_a_user_on_a_shared_cluster_" * 2)
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    monkeypatch.setattr(cluster, "SHORT_FOLDER", str(tmp_path / "short"))
    with pytest.raises(
        InputError, match=rf"{long}, is too long.* set RAY_TMPDIR to a folder of at most \d+ char"
    ):
        ray_folder()
    (tmp_path / "short").mkdir()
    assert ray_folder() == str(tmp_path / "short/ray")
    (tmp_path / "short/ray").rmdir()
    (tmp_path / "short/ray").write_text("of somebody else")
    assert ray_folder() == str(tmp_path / f"short/ray-{os.getuid()}")


def test_ray_gets_a_token_where_there_is_no_home(
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
def test_ray_starts_with_a_long_temporary_folder_and_no_home(
    job_file: Path, tmp_path: Path
) -> None:
    """In a process of its own: Ray keeps the first token that it reads for as long as a process lives."""
    long = (
        tmp_path
        / "a_rather_long_folder_name_for_temporary_files/of_a_user_on_a_shared_cluster/job_1234567/tmp"
    )
    long.mkdir(parents=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    environment = {**kept, "TMPDIR": str(long), "RAY_TMPDIR": str(long), "HOME": "/proc"}
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


def test_where_the_system_tells_no_affinity_all_processors_count(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert cpu_count() == 3
    assert worker_count(make_job("images=20", "workers=null")) == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert worker_count(make_job("images=20", "workers=null")) == 1
