"""One driver at a time: a lock file with a heartbeat."""

import json
import logging
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from synthgen.errors import InputError
from synthgen.shards.store import write_text

log = logging.getLogger(__name__)

HEARTBEAT = 10.0  # seconds between two signs of life
STALE = 60.0  # seconds after which a driver that gave none is taken for dead
LOOK = 1.0  # seconds between two looks at the lock of another host


class LockedError(InputError):
    """Another driver works on this output; the message says which."""


class Lock:
    """Holds `<out>/.lock` while a driver works; use it as a context manager.

    A lock is taken over when its driver is dead: on this host when its process is gone, else when its heartbeat is
    older than a minute, which is waited for; only a heart that is seen to beat refuses. A driver that was suspended and
    lost its lock finds out before its next commit (`check`).
    """

    def __init__(self, out: Path) -> None:
        self.path = out / ".lock"
        self.token = uuid.uuid4().hex
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Lock":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        seen: dict[str, Any] | None = None
        while not self._create():
            holder = self._read()
            if holder is None or not is_alive(holder):
                self._remove_stale()
            elif is_here(holder) or (seen is not None and holder != seen):
                raise LockedError(
                    f"{self.path.parent}: another run is working on this output "
                    f"(process {holder.get('pid')} on {holder.get('host')}); wait for it, or stop it"
                )
            else:
                seen = self._wait(holder, seen is None)
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop.set()
        self.thread.join()
        if self._owned():
            self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise LockedError if the lock was taken over."""
        if not self._owned():
            raise LockedError(f"{self.path.parent}: another run has taken over this output")

    def _content(self) -> str:
        who = {"host": socket.gethostname(), "pid": os.getpid(), "start": process_start(os.getpid())}
        return json.dumps({**who, "time": time.time(), "token": self.token})

    def _wait(self, holder: dict[str, Any], first: bool) -> dict[str, Any]:
        """A little, for a driver of another host to give a sign of life or to be taken for dead."""
        if first:
            log.warning(
                "%s: a run on %s has it, or had: last sign of life %.0f s ago; without another within %.0f s it is dead",
                self.path.parent, holder.get("host"), age(holder), STALE - age(holder),
            )  # fmt: skip
        time.sleep(LOOK)
        return holder

    def _create(self) -> bool:
        """Create the lock file with its content at once: a link to a finished file either exists or does not."""
        draft = self.path.with_name(f".lock-{self.token}.tmp")
        draft.write_text(self._content())
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
        if is_alive(moved):  # another run took over between our look and our move: give it back
            os.link(aside, self.path)
        aside.unlink()

    def _read(self) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads(self.path.read_text())
            return content
        except (FileNotFoundError, ValueError):
            return None

    def _owned(self) -> bool:
        content = self._read()
        return content is not None and content.get("token") == self.token

    def _beat(self) -> None:
        while not self.stop.wait(HEARTBEAT):
            if not self._owned():
                return
            with suppress(OSError):  # no room, or the draft was tidied away as a dead run's: the next beat comes soon
                write_text(self.path, self._content())


def is_alive(holder: dict[str, Any]) -> bool:
    """Whether the driver that wrote this lock still works."""
    if age(holder) > STALE:
        return False
    if not is_here(holder):
        return True
    start = process_start(int(holder.get("pid", -1)))
    return start is not None and start == holder.get("start")


def age(holder: dict[str, Any]) -> float:
    """Seconds since the last sign of life."""
    return time.time() - float(holder.get("time", 0))


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
