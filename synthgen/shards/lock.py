"""One driver at a time: a lock with a heartbeat."""

import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from synthgen.errors import InputError, StoreFailedError, StoreRefusedError
from synthgen.shards.store import LocalStore, Out, open_store, write_text

log = logging.getLogger(__name__)

HEARTBEAT = 10.0  # seconds between two signs of life
STALE = 60.0  # seconds after which a driver that gave none is taken for dead
NAME = ".lock"
PAUSES = (0.5, 1.5)  # seconds before another try, halved to whole at random, where two drivers claim a store at once
LOOK = 1.0  # seconds between two looks at the lock of another host


class LockedError(InputError):
    """Another driver works on this output; the message says which."""


class Keeper(Protocol):
    """How the lock of one driver is kept in a store; `content` says who it is."""

    def acquire(self, content: str) -> dict[str, Any] | None:
        """Take the lock; returns who has it, if that is another driver that lives."""

    def owned(self) -> bool:
        """Whether the lock is still this driver's."""

    def renew(self, content: str) -> None:
        """Give a sign of life."""

    def release(self) -> None:
        """Give the lock back."""


class Lock:
    """Holds the lock of an output while a driver works; use it as a context manager.

    A lock is taken over when its driver is dead: on this host when its process is gone, else when its heartbeat is
    older than a minute, which is waited for; only a heart that is seen to beat refuses. A driver that was suspended and
    lost its lock finds out before its next commit (`check`).
    """

    def __init__(self, out: Out) -> None:
        store, self.token = open_store(out), uuid.uuid4().hex
        self.out = str(store)
        self.keeper: Keeper = LockFile(store.root, self.token) if isinstance(store, LocalStore) else Claim(store, self.token)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Lock":
        seen: dict[str, Any] = {}
        while (holder := self.keeper.acquire(self._content())) is not None:
            beats = holder.get("token") == seen.get("token") and holder != seen
            if holder and (is_here(holder) or beats):
                raise LockedError(
                    f"{self.out}: another run is working on this output "
                    f"(process {holder.get('pid')} on {holder.get('host')}); wait for it, or stop it"
                )
            seen = self._wait(holder, seen)
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop.set()
        self.thread.join()
        if kind is not StoreFailedError and self.keeper.owned():
            self.keeper.release()

    def check(self) -> None:
        """Raise LockedError if the lock was taken over."""
        if not self.keeper.owned():
            raise LockedError(f"{self.out}: another run has taken over this output, or could have")

    def _content(self) -> str:
        who = {"host": socket.gethostname(), "pid": os.getpid(), "start": process_start(os.getpid())}
        return json.dumps({**who, "time": time.time(), "token": self.token})

    def _wait(self, holder: dict[str, Any], seen: dict[str, Any]) -> dict[str, Any]:
        """A little, for a driver of another host to give a sign of life or to be taken for dead."""
        if holder.get("token") != seen.get("token"):
            log.warning(
                "%s: a run on %s has it, or had: last sign of life %.0f s ago; without another within %.0f s it is dead",
                self.out, holder.get("host"), age(holder), STALE - age(holder),
            )  # fmt: skip
        time.sleep(LOOK)
        return holder

    def _beat(self) -> None:
        while not self.stop.wait(HEARTBEAT):
            try:
                if not self.keeper.owned():
                    return
                self.keeper.renew(self._content())
            except (OSError, StoreFailedError, StoreRefusedError) as error:  # if it lasts, the driver's own writes will say so
                log.warning("no sign of life could be given: %s", error)


class LockFile:
    """The lock of a folder: `.lock`, which a link creates at once."""

    def __init__(self, folder: Path, token: str) -> None:
        self.path, self.token = folder / NAME, token

    def acquire(self, content: str) -> dict[str, Any] | None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._create(content):
            holder = self._read()
            if holder is not None and is_alive(holder, age(holder)):
                return holder
            self._remove_stale()
        return None

    def owned(self) -> bool:
        content = self._read()
        return content is not None and content.get("token") == self.token

    def renew(self, content: str) -> None:
        write_text(self.path, content)

    def release(self) -> None:
        self.path.unlink(missing_ok=True)

    def _create(self, content: str) -> bool:
        """Create the lock file with its content at once: a link to a finished file either exists or does not."""
        draft = self.path.with_name(f".lock-{self.token}.tmp")
        draft.write_text(content)
        try:
            os.link(draft, self.path)
            return True
        except (FileExistsError, FileNotFoundError):  # the second: the holder of the lock tidied our draft away
            return False
        finally:
            draft.unlink(missing_ok=True)

    def _remove_stale(self) -> None:
        """Move the dead driver's lock aside; of several that try, one succeeds, and the rest find a new lock or none."""
        aside = self.path.with_name(f".lock-{self.token}-stale.tmp")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        moved = json.loads(aside.read_text() or "{}")
        if is_alive(moved, age(moved)):  # another run took over between our look and our move: give it back
            os.link(aside, self.path)
        aside.unlink()

    def _read(self) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads(self.path.read_text())
            return content
        except (FileNotFoundError, ValueError):
            return None


class Claim:
    """The lock of an object store, which creates nothing conditionally: `.lock-<token>`, one for each driver that wants it.

    A driver looks who is there; if nobody is, it writes its claim, then lists all claims, and works if there is no other that
    lives. Of two drivers, whichever lists later sees the other's: never do both work, if the store lists what was written
    before (S3, GCS and HDFS do). Of those that claim at once the first by name keeps its claim, and looks again; the others
    withdraw. The age of a claim is told by the store's clock alone, so that a look writes a file too, which nobody heeds.
    """

    def __init__(self, store: Any, token: str) -> None:
        self.store, self.token, self.renewed = store, token, 0.0
        self.name = f"{NAME}-{token}"

    def acquire(self, content: str) -> dict[str, Any] | None:
        kept, look = False, json.dumps({**json.loads(content), "looks": True})
        for pause in (*PAUSES, None):
            others = [] if kept else self._others(look)
            if not others:
                others = self._others(content)
                if not others:
                    return None
                kept = all(self.token < other.get("token", "") for other in others)
            if pause is None or not kept:
                self.release()
            if pause is not None:
                time.sleep(pause * random.uniform(0.5, 1.0))
        return others[0]

    def owned(self) -> bool:
        """Whether the claim is there, and was renewed in time: one that was not may be ignored by others, so it is given up."""
        return time.time() - self.renewed < STALE and self.store.exists(self.name)

    def renew(self, content: str) -> None:
        at = time.time()
        self.store.write(self.name, content)
        self.renewed = at

    def release(self) -> None:
        self.store.delete(self.name)

    def _others(self, content: str) -> list[dict[str, Any]]:
        """Write this, and list the claims of other drivers that live; those of dead ones are removed."""
        self.renew(content)
        changed = {name: at for name, _, at in self.store.listing("") if name.startswith(f"{NAME}-")}
        now = changed.pop(self.name, None)
        if now is None:
            return [{}]
        read = {name: self._read(name) for name in changed}
        dead = [name for name, holder in read.items() if not is_alive(holder, now - changed[name])]
        for name in dead:
            self.store.delete(name)
        return [holder for name, holder in read.items() if name not in dead and not holder.get("looks")]

    def _read(self, name: str) -> dict[str, Any]:
        """What a claim says; nothing if it is gone, or is just being renewed where that moves a file: then it is asked again."""
        try:
            content: dict[str, Any] = json.loads(self.store.read(name))
            return content
        except (FileNotFoundError, ValueError):
            return {}


def age(holder: dict[str, Any]) -> float:
    """Seconds since the last sign of life in a lock file."""
    return time.time() - float(holder.get("time", 0))


def is_alive(holder: dict[str, Any], seconds: float) -> bool:
    """Whether the driver that wrote this lock still works, its last sign of life being so many seconds ago."""
    if seconds > STALE:
        return False
    if not is_here(holder):
        return True
    start = process_start(int(holder.get("pid", -1)))
    return start is not None and start == holder.get("start")


def is_here(holder: dict[str, Any]) -> bool:
    """Whether the driver runs, or ran, on this host."""
    return bool(holder.get("host") == socket.gethostname())


def process_start(pid: int) -> str | None:
    """When a process of this host started, in the kernel's ticks; None if it is gone (or a zombie).

    Where there is no /proc, only whether it runs: then the answer is "".
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return ""
    return ""
