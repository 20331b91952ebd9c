"""One driver at a time, and a dead one's lock taken over."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from synthgen.shards import lock
from synthgen.shards.lock import Lock, LockedError


def test_a_second_driver_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with Lock(tmp_path), pytest.raises(LockedError, match=f"process {os.getpid()} on "), Lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
    with Lock(tmp_path):
        pass


def write_lock(folder: Path, **changes: object) -> None:
    own = {"host": socket.gethostname(), "pid": os.getpid(), "start": lock.process_start(os.getpid()), "time": time.time()}
    (folder / ".lock").write_text(json.dumps({**own, "token": "other", **changes}))


def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_the_lock_of_a_dead_process_is_taken_over_at_once(tmp_path: Path) -> None:
    write_lock(tmp_path, pid=dead_pid())
    with Lock(tmp_path) as held:
        held.check()


def test_a_reused_process_number_is_not_the_old_driver(tmp_path: Path) -> None:
    write_lock(tmp_path, start="1")
    with Lock(tmp_path):
        pass


def test_elsewhere_an_old_heartbeat_is_a_dead_driver(tmp_path: Path) -> None:
    write_lock(tmp_path, host="another-host", time=time.time() - 120)
    with Lock(tmp_path):
        pass


def test_elsewhere_a_heart_that_does_not_beat_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "LOOK", 0.02)
    write_lock(tmp_path, host="another-host", time=time.time() - lock.STALE + 0.5)
    began = time.monotonic()
    with Lock(tmp_path) as held:
        held.check()
    assert 0.4 < time.monotonic() - began < 30
    (told,) = caplog.messages
    assert f"{tmp_path}: a run on another-host has it, or had" in told


def test_elsewhere_a_heart_that_beats_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOOK", 0.02)
    write_lock(tmp_path, host="another-host", time=time.time() - 5)
    threading.Timer(0.2, lambda: write_lock(tmp_path, host="another-host")).start()
    with pytest.raises(LockedError, match="on another-host"), Lock(tmp_path):
        pass
    assert json.loads((tmp_path / ".lock").read_text())["token"] == "other"


def test_a_driver_that_lost_its_lock_finds_out(tmp_path: Path) -> None:
    with Lock(tmp_path) as held:
        write_lock(tmp_path)
        with pytest.raises(LockedError, match="taken over"):
            held.check()
    assert (tmp_path / ".lock").exists()  # the other's


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    with Lock(tmp_path):
        first = json.loads((tmp_path / ".lock").read_text())["time"]
        deadline = time.time() + 5
        while json.loads((tmp_path / ".lock").read_text())["time"] == first:
            assert time.time() < deadline
            time.sleep(0.02)
    assert list(tmp_path.iterdir()) == []
