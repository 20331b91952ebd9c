"""One driver at a time, and a dead one's lock taken over."""

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
from synthgen.storage.lock import Lock, LockedError


def test_a_second_driver_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with (
        Lock(open_store(tmp_path)),
        pytest.raises(LockedError, match=f"process {os.getpid()} on "),
        Lock(open_store(tmp_path)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    with Lock(open_store(tmp_path)):
        pass


def write_lock(folder: Path, ago: float = 0.0, **changes: object) -> None:
    """Another's lock, last written so many seconds ago by the clock of the file server."""
    own = json.loads(Lock(open_store(folder))._content())
    path = folder / ".lock"
    path.write_text(json.dumps({**own, "token": "other", **changes}))
    at = time.time() - ago
    os.utime(path, (at, at))


def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_the_lock_of_a_dead_process_is_taken_over_at_once(tmp_path: Path) -> None:
    write_lock(tmp_path, pid=dead_pid())
    with Lock(open_store(tmp_path)) as held:
        held.check()


def test_a_reused_process_number_is_not_the_old_driver(tmp_path: Path) -> None:
    write_lock(tmp_path, start="1")
    with Lock(open_store(tmp_path)):
        pass


def test_elsewhere_an_old_heartbeat_is_a_dead_driver(tmp_path: Path) -> None:
    write_lock(tmp_path, 120, host="another-host")
    with Lock(open_store(tmp_path)):
        pass


@pytest.mark.parametrize("wrong", [-120.0, 120.0])
def test_a_clock_that_is_wrong_costs_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    """Neither that of the driver that has the lock, nor that of the one that wants it."""
    monkeypatch.setattr(lock, "LOOK", 0.02)
    write_lock(tmp_path, host="another-host", time=time.time() + wrong)
    beat = threading.Timer(
        0.3, lambda: write_lock(tmp_path, host="another-host", time=time.time() + wrong + 0.3)
    )
    beat.start()
    with pytest.raises(LockedError, match="on another-host"), Lock(open_store(tmp_path)):
        pass
    beat.join()
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + wrong)
        assert (
            lock.LockFile(tmp_path, "new").acquire(Lock(open_store(tmp_path))._content())
            is not None
        )
    assert json.loads((tmp_path / ".lock").read_text())["token"] == "other"


def test_elsewhere_a_heart_that_does_not_beat_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "LOOK", 0.02)
    write_lock(tmp_path, lock.STALE - 0.5, host="another-host")
    began = time.monotonic()
    with Lock(open_store(tmp_path)) as held:
        held.check()
    assert 0.4 < time.monotonic() - began < 30
    (told,) = caplog.messages
    assert f"{tmp_path}: a run on another-host has it, or had" in told


def test_a_lock_that_never_changes_is_dead_whatever_its_time_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LOOK", 0.02)
    monkeypatch.setattr(lock, "STALE", 0.3)
    write_lock(
        tmp_path, -86400, host="another-host"
    )  # the file server's clock was put right by a day
    began = time.monotonic()
    with Lock(open_store(tmp_path)) as held:
        held.check()
    assert 0.3 < time.monotonic() - began < 30


@pytest.mark.parametrize("text", ["", '{"host": "ha', "[]"])
def test_a_lock_that_says_nothing_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    """Where there are no links, the lock file is there before its content."""
    monkeypatch.setattr(lock, "LOOK", 0.02)
    (tmp_path / ".lock").write_text(text)
    threading.Timer(0.2, lambda: write_lock(tmp_path, pid=os.getpid())).start()
    with pytest.raises(LockedError, match=f"process {os.getpid()} on "), Lock(open_store(tmp_path)):
        pass
    monkeypatch.setattr(lock, "STALE", 0.3)
    caplog.clear()
    (tmp_path / ".lock").write_text(text)
    with Lock(open_store(tmp_path)) as held:  # its driver died before it could write
        held.check()
    (told,) = caplog.messages
    assert "a run on an unknown machine has it, or had" in told


def test_elsewhere_a_heart_that_beats_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LOOK", 0.02)
    write_lock(tmp_path, 5, host="another-host")
    threading.Timer(
        0.2, lambda: write_lock(tmp_path, host="another-host", time=time.time() + 1)
    ).start()
    with pytest.raises(LockedError, match="on another-host"), Lock(open_store(tmp_path)):
        pass
    assert json.loads((tmp_path / ".lock").read_text())["token"] == "other"


def test_another_machine_of_this_name_is_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is not looked up here, where it would be gone: containers share their names."""
    monkeypatch.setattr(lock, "LOOK", 0.02)
    write_lock(tmp_path, machine="another", pid=dead_pid(), start="1")
    holder = lock.LockFile(tmp_path, "new").acquire(Lock(open_store(tmp_path))._content())
    assert holder is not None
    assert holder.content["token"] == "other"


@pytest.fixture(params=[errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP])
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without hard links."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("no_links")
def test_without_links_one_driver_works(tmp_path: Path) -> None:
    write_lock(tmp_path, pid=dead_pid())
    with Lock(open_store(tmp_path)) as held:
        held.check()
        with (
            pytest.raises(LockedError, match=f"process {os.getpid()} on "),
            Lock(open_store(tmp_path)),
        ):
            pass
        held.check()
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_a_lock_that_was_taken_over_meanwhile_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Between the look at a dead driver's lock and its removal, another run took it over."""
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
    """Take the lock, or tell who has it; a lock that is just being written says nothing yet."""
    while (holder := keeper.acquire(content)) is not None and not holder.content:
        time.sleep(0.001)
    return holder


def test_a_lock_that_was_moved_aside_for_a_moment_is_still_ones_own(tmp_path: Path) -> None:
    keeper = lock.LockFile(tmp_path, "mine")
    content = json.dumps({**json.loads(Lock(open_store(tmp_path))._content()), "token": "mine"})
    assert keeper.acquire(content) is None
    assert keeper.acquire(content) is None


def test_of_drivers_that_start_together_one_has_the_lock(
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
                found = list(pool.map(acquire_settled, keepers, content))
            assert found.count(None) >= 1
            assert sum(k.owned(text) for k, text in zip(keepers, content, strict=True)) == 1


def test_a_link_whose_answer_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS repeats the request, and is told that the name is there."""
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    with Lock(open_store(tmp_path)) as held:
        held.check()


def suspend(held: Lock) -> None:
    """Let the last heartbeat lie a minute back, as after the machine was suspended."""
    held.keeper.renewal.at = tuple(at - lock.STALE for at in held.keeper.renewal.at)  # type: ignore[attr-defined]


def test_a_driver_that_was_suspended_gives_its_heartbeat_first(tmp_path: Path) -> None:
    with Lock(open_store(tmp_path)) as held:
        judged = json.loads((tmp_path / ".lock").read_text())
        os.utime(tmp_path / ".lock", (0, 0))  # so it is dead to others
        suspend(held)
        held.check()
        assert time.time() - (tmp_path / ".lock").stat().st_mtime < 30
        lock.LockFile(tmp_path, "new")._remove_stale(judged)  # of one that judged it before
        held.check()
        assert not held.keeper.renewal.is_overdue()  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


def test_a_heartbeat_replaces_no_other_lock(tmp_path: Path) -> None:
    with Lock(open_store(tmp_path)) as held:
        (tmp_path / ".lock").unlink()
        write_lock(tmp_path)
        before = (tmp_path / ".lock").read_bytes()
        held.keeper.renew(held._content())
        suspend(held)
        with pytest.raises(LockedError, match="taken over"):
            held.check()
        assert (tmp_path / ".lock").read_bytes() == before


def test_a_driver_that_lost_its_lock_finds_out(tmp_path: Path) -> None:
    with Lock(open_store(tmp_path)) as held:
        write_lock(tmp_path)
        with pytest.raises(LockedError, match="taken over"):
            held.check()
    assert (tmp_path / ".lock").exists()  # the other's


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    with Lock(open_store(tmp_path)):
        first = json.loads((tmp_path / ".lock").read_text())["time"]
        deadline = time.time() + 5
        while json.loads((tmp_path / ".lock").read_text())["time"] == first:
            assert time.time() < deadline
            time.sleep(0.02)
    assert list(tmp_path.iterdir()) == []
