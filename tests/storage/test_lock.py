"""The lock: one driver at a time, and stale locks are taken over."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from synthgen.storage import lock
from synthgen.storage.location import open_store
from synthgen.storage.lock import Holder, Lock, LockedError


def test_a_second_driver_is_refused_while_the_first_is_alive(tmp_path: Path) -> None:
    with (
        Lock(open_store(tmp_path)),
        pytest.raises(LockedError, match=f"process {os.getpid()} on "),
        Lock(open_store(tmp_path)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    with Lock(open_store(tmp_path)):
        pass


def write_lock(folder: Path, age: float = 0.0, **changes: object) -> None:
    """Write the lock of another driver.

    Args:
        age: seconds since its last heartbeat, by the clock of the file server.
    """
    content = json.loads(Lock(open_store(folder))._content())
    path = folder / ".lock"
    path.write_text(json.dumps({**content, "token": "other", **changes}))
    written_at = time.time() - age
    os.utime(path, (written_at, written_at))


def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_the_lock_of_a_dead_process_is_taken_over_immediately(tmp_path: Path) -> None:
    write_lock(tmp_path, pid=dead_pid())
    with Lock(open_store(tmp_path)) as own_lock:
        own_lock.check()


def test_a_reused_process_number_is_not_the_old_driver(tmp_path: Path) -> None:
    write_lock(tmp_path, start="1")
    with Lock(open_store(tmp_path)):
        pass


def test_a_lock_of_another_host_with_an_old_heartbeat_is_stale(tmp_path: Path) -> None:
    write_lock(tmp_path, 120, host="another-host")
    with Lock(open_store(tmp_path)):
        pass


@pytest.mark.parametrize("error", [-120.0, 120.0])
def test_a_wrong_clock_makes_no_lock_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    """This holds for the clock of the lock holder, and for that of the driver that waits."""
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.02)
    write_lock(tmp_path, host="another-host", time=time.time() + error)
    beat = threading.Timer(
        0.3, lambda: write_lock(tmp_path, host="another-host", time=time.time() + error + 0.3)
    )
    beat.start()
    with pytest.raises(LockedError, match="on another-host"), Lock(open_store(tmp_path)):
        pass
    beat.join()
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + error)
        assert (
            lock.LockFile(tmp_path, "new").acquire(Lock(open_store(tmp_path))._content())
            is not None
        )
    assert json.loads((tmp_path / ".lock").read_text())["token"] == "other"


def test_a_lock_of_another_host_is_waited_for_until_it_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.02)
    write_lock(tmp_path, lock.STALE_SECONDS - 0.5, host="another-host")
    start = time.monotonic()
    with Lock(open_store(tmp_path)) as own_lock:
        own_lock.check()
    assert 0.4 < time.monotonic() - start < 30
    (message,) = caplog.messages
    assert f"{tmp_path}: locked by a run on another-host" in message


def test_a_lock_that_never_changes_is_stale_whatever_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.3)
    write_lock(
        tmp_path, -86400, host="another-host"
    )  # the file server's clock was adjusted by a day
    start = time.monotonic()
    with Lock(open_store(tmp_path)) as own_lock:
        own_lock.check()
    assert 0.3 < time.monotonic() - start < 30


@pytest.mark.parametrize("text", ["", '{"host": "ha', "[]"])
def test_an_empty_lock_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    """Without hard links, the lock file exists before its content."""
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.02)
    (tmp_path / ".lock").write_text(text)
    threading.Timer(0.2, lambda: write_lock(tmp_path, pid=os.getpid())).start()
    with pytest.raises(LockedError, match=f"process {os.getpid()} on "), Lock(open_store(tmp_path)):
        pass
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.3)
    caplog.clear()
    (tmp_path / ".lock").write_text(text)
    with Lock(open_store(tmp_path)) as own_lock:  # its driver was killed before it could write
        own_lock.check()
    (message,) = caplog.messages
    assert "locked by a run on an unknown machine" in message


def test_a_heartbeat_is_noticed_across_a_look_that_found_the_lock_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store can show a lock without content while its holder renews it."""
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.0)
    holder = {"host": "another-host", "machine": "another", "pid": 1, "token": "other"}
    looks = iter(
        [Holder({**holder, "time": 1}, 0), Holder({}, 0), Holder({**holder, "time": 2}, 0)]
    )
    own_lock = Lock(open_store(tmp_path))
    monkeypatch.setattr(own_lock.keeper, "acquire", lambda content: next(looks, None))
    with pytest.raises(LockedError, match="on another-host"), own_lock:
        pass


def test_a_heartbeat_of_another_host_refuses_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.02)
    write_lock(tmp_path, 5, host="another-host")
    threading.Timer(
        0.2, lambda: write_lock(tmp_path, host="another-host", time=time.time() + 1)
    ).start()
    with pytest.raises(LockedError, match="on another-host"), Lock(open_store(tmp_path)):
        pass
    assert json.loads((tmp_path / ".lock").read_text())["token"] == "other"


def test_another_machine_of_the_same_name_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is not looked up on this machine; containers may share a host name."""
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.02)
    write_lock(tmp_path, machine="another", pid=dead_pid(), start="1")
    holder = lock.LockFile(tmp_path, "new").acquire(Lock(open_store(tmp_path))._content())
    assert holder is not None
    assert holder.content["token"] == "other"


@pytest.fixture(params=[errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP])
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a file system without hard links."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("no_links")
def test_only_one_driver_works_without_hard_links(tmp_path: Path) -> None:
    write_lock(tmp_path, pid=dead_pid())
    with Lock(open_store(tmp_path)) as own_lock:
        own_lock.check()
        with (
            pytest.raises(LockedError, match=f"process {os.getpid()} on "),
            Lock(open_store(tmp_path)),
        ):
            pass
        own_lock.check()
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_a_lock_that_was_taken_over_meanwhile_is_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Another run took over a stale lock between the look at it and its removal."""
    if not links:
        monkeypatch.setattr(
            os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "no links"))
        )
    write_lock(tmp_path)
    before = json.loads((tmp_path / ".lock").read_text())
    lock.LockFile(tmp_path, "new")._remove_stale({**before, "token": "dead"})
    assert json.loads((tmp_path / ".lock").read_text()) == before
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    lock.LockFile(tmp_path, "new")._remove_stale(before)
    assert list(tmp_path.iterdir()) == []


def acquire_settled(keeper: lock.LockFile, content: str) -> lock.Holder | None:
    """Acquire the lock, or return its holder; wait while a lock is being written."""
    while (holder := keeper.acquire(content)) is not None and not holder.content:
        time.sleep(0.001)
    return holder


def test_a_driver_recognises_its_lock_after_it_was_moved_aside(tmp_path: Path) -> None:
    keeper = lock.LockFile(tmp_path, "mine")
    content = json.dumps({**json.loads(Lock(open_store(tmp_path))._content()), "token": "mine"})
    assert keeper.acquire(content) is None
    assert keeper.acquire(content) is None


def test_only_one_of_several_drivers_acquires_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for links in (True, False):
        if not links:
            monkeypatch.setattr(
                os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "no links"))
            )
        for turn in range(20):
            folder = tmp_path / f"{links}{turn}"
            folder.mkdir()
            write_lock(folder, pid=dead_pid() if turn == 0 else -1)
            keepers = [lock.LockFile(folder, f"{k}") for k in range(4)]
            content = [
                json.dumps(
                    {**json.loads(Lock(open_store(folder))._content()), "token": keeper.token}
                )
                for keeper in keepers
            ]
            with ThreadPoolExecutor(4) as pool:
                holders = list(pool.map(acquire_settled, keepers, content))
            assert holders.count(None) >= 1
            assert sum(k.is_owned(text) for k, text in zip(keepers, content, strict=True)) == 1


def test_a_link_whose_answer_was_lost_acquires_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS repeats the request, and the server answers that the name exists."""
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    with Lock(open_store(tmp_path)) as own_lock:
        own_lock.check()


def suspend(own_lock: Lock) -> None:
    """Move the last heartbeat back by a minute, as if the machine had been suspended."""
    renewal = own_lock.keeper.renewal  # type: ignore[attr-defined]
    renewal.clocks = tuple(clock - lock.STALE_SECONDS for clock in renewal.clocks)


def test_a_suspended_driver_writes_a_heartbeat_before_it_continues(tmp_path: Path) -> None:
    with Lock(open_store(tmp_path)) as own_lock:
        judged = json.loads((tmp_path / ".lock").read_text())
        os.utime(tmp_path / ".lock", (0, 0))  # so it is stale for others
        suspend(own_lock)
        own_lock.check()
        assert time.time() - (tmp_path / ".lock").stat().st_mtime < 30
        lock.LockFile(tmp_path, "new")._remove_stale(judged)  # by a driver that judged it before
        own_lock.check()
        assert not own_lock.keeper.renewal.is_overdue()  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


def test_a_heartbeat_does_not_overwrite_another_lock(tmp_path: Path) -> None:
    with Lock(open_store(tmp_path)) as own_lock:
        (tmp_path / ".lock").unlink()
        write_lock(tmp_path)
        before = (tmp_path / ".lock").read_bytes()
        own_lock.keeper.renew(own_lock._content())
        suspend(own_lock)
        with pytest.raises(LockedError, match="taken over"):
            own_lock.check()
        assert (tmp_path / ".lock").read_bytes() == before


def test_check_raises_after_the_lock_is_lost(tmp_path: Path) -> None:
    with Lock(open_store(tmp_path)) as own_lock:
        write_lock(tmp_path)
        with pytest.raises(LockedError, match="taken over"):
            own_lock.check()
    assert (tmp_path / ".lock").exists()  # that of the other driver


def test_heartbeats_are_written_while_the_lock_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    with Lock(open_store(tmp_path)):
        first = json.loads((tmp_path / ".lock").read_text())["time"]
        deadline = time.time() + 5
        while json.loads((tmp_path / ".lock").read_text())["time"] == first:
            assert time.time() < deadline
            time.sleep(0.02)
    assert list(tmp_path.iterdir()) == []
