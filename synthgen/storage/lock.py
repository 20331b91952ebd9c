"""One driver at a time: a lock with a heartbeat."""

import errno
import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from synthgen.errors import InputError, StoreFailedError, StoreRefusedError
from synthgen.storage.base import TEMPORARY, Store
from synthgen.storage.local import LocalStore, make_folder

log = logging.getLogger(__name__)

HEARTBEAT = 10.0  # seconds between two heartbeats
STALE = 60.0  # seconds after which a driver without a heartbeat is taken for dead
NAME = ".lock"
PAUSES = (
    0.5,
    1.5,
)  # seconds before another try, halved to whole at random, where two drivers claim a store at once
LOOK = 1.0  # seconds between two looks at the lock of another host
LENGTH = 512  # bytes of a lock file, which is padded with blanks: a heartbeat writes over it


class LockedError(InputError):
    """Another driver works on this output; the message says which."""


@dataclass(frozen=True)
class Holder:
    """The driver that has a lock.

    Attributes:
        content: what its lock says of it; nothing, if that is just being written.
        age: seconds since its last heartbeat, by the clock of whoever keeps the file.
    """

    content: dict[str, Any]
    age: float


class Keeper(Protocol):
    """How the lock of one driver is kept in a store; `content` says who it is."""

    def acquire(self, content: str) -> Holder | None:
        """Take the lock; returns who has it, if that is another driver that lives."""

    def owned(self, content: str) -> bool:
        """Whether the lock is still this driver's."""

    def renew(self, content: str) -> None:
        """Give a heartbeat."""

    def release(self) -> None:
        """Give the lock back."""


class Lock:
    """Holds the lock of an output while a driver works; use it as a context manager.

    A lock is taken over when its driver is dead: on this machine when its process is gone, else when its heartbeat is
    older than a minute, which is waited for; only a heart that is seen to beat refuses. How old it is the file server's
    clock tells alone: those of the two machines may differ. A driver that was suspended and lost its lock finds out
    before its next commit (`check`).
    """

    def __init__(self, store: Store) -> None:
        self.token = uuid.uuid4().hex
        self.out = str(store)
        self.keeper: Keeper = (
            LockFile(store.root, self.token)
            if isinstance(store, LocalStore)
            else Claim(store, self.token)
        )
        self.told: set[str | None] = set()  # tokens of holders that were warned of
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Lock":
        seen: Holder | None = None
        while (holder := self.keeper.acquire(self._content())) is not None:
            self._refuse_living(holder.content, seen.content if seen else {})
            self._tell(holder, seen)
            seen = holder
            time.sleep(LOOK)
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop.set()
        self.thread.join()
        if kind is not StoreFailedError and self.keeper.owned(self._content()):
            self.keeper.release()

    def check(self) -> None:
        """Raise LockedError if the lock was taken over."""
        if not self.keeper.owned(self._content()):
            raise LockedError(f"{self.out}: another run has taken over this output, or could have")

    def _content(self) -> str:
        who = {
            "host": socket.gethostname(),
            "machine": machine(),
            "pid": os.getpid(),
            "start": process_start(os.getpid()),
        }
        return json.dumps({**who, "time": time.time(), "token": self.token})

    def _refuse_living(self, content: dict[str, Any], seen: dict[str, Any]) -> None:
        """Raise LockedError if the process of the holder runs here, or its heart has beaten between two looks."""
        beats = bool(seen) and content.get("token") == seen.get("token") and content != seen
        if content and (is_here(content) or beats):
            raise LockedError(
                f"{self.out}: another run is working on this output "
                f"(process {content.get('pid')} on {content.get('host')}); wait for it, or stop it"
            )

    def _tell(self, holder: Holder, seen: Holder | None) -> None:
        """Warn once of a holder that is waited for; of one whose lock says nothing yet at the second look."""
        token = holder.content.get("token")
        if token in self.told or (token is None and seen is None):
            return
        self.told.add(token)
        log.warning(
            "%s: a run on %s has it, or had: last heartbeat %.0f s ago; without another within %.0f s it is dead",
            self.out, holder.content.get("host", "an unknown machine"), holder.age, STALE - holder.age,
        )  # fmt: skip

    def _beat(self) -> None:
        while not self.stop.wait(HEARTBEAT):
            try:
                if not self.keeper.owned(self._content()):
                    return
                self.keeper.renew(self._content())
            except (
                OSError,
                StoreFailedError,
                StoreRefusedError,
            ) as error:  # if it lasts, the driver's own writes will say so
                log.warning("no heartbeat could be given: %s", error)


class Watch:
    """Tells how long the locks of others have not changed while this driver looked, whatever a clock says of them."""

    def __init__(self) -> None:
        self.since: dict[str, tuple[dict[str, Any], float]] = {}

    def seconds(self, name: str, content: dict[str, Any]) -> float:
        """Return the seconds since the first look that found this content in this file."""
        before, since = self.since.get(name, ({}, 0.0))
        if name not in self.since or before != content:
            since = time.monotonic()
            self.since[name] = (content, since)
        return time.monotonic() - since


class Renewal:
    """Remembers when this driver gave its last heartbeat."""

    def __init__(self) -> None:
        self.at = clocks()

    def is_overdue(self) -> bool:
        """Whether others may take this driver for dead, or soon will: it was suspended, or stopped."""
        return any(now - at > STALE / 2 for now, at in zip(clocks(), self.at, strict=True))


class LockFile:
    """The lock of a folder: the file `.lock`, which one driver alone can create."""

    def __init__(self, folder: Path, token: str) -> None:
        self.path, self.token = folder / NAME, token
        self.watch, self.renewal = Watch(), Renewal()

    def acquire(self, content: str) -> Holder | None:
        make_folder(self.path.parent)
        while True:
            now, created = self._create(content.ljust(LENGTH))
            if created:
                self.renewal = Renewal()
                return None
            found = _read_lock(self.path)
            if found is None or now is None:  # given back meanwhile, or our draft was tidied away
                continue
            if (
                found[0].get("token") == self.token
            ):  # moved aside for a moment by one that judged the lock before ours
                self.renewal = Renewal()
                return None
            holder = Holder(found[0], max(now - found[1], self.watch.seconds(NAME, found[0])))
            if is_alive(holder.content, holder.age):
                return holder
            self._remove_stale(holder.content)

    def owned(self, content: str) -> bool:
        """Whether the file is this driver's. An overdue heartbeat comes first: whoever judged it before gives the lock back."""
        if self.renewal.is_overdue():
            with suppress(FileNotFoundError):
                self.renew(content)
        return self._is_ours()

    def renew(self, content: str) -> None:
        """Write over the file, in place: over that of another driver never, whenever that takes over."""
        renewal = Renewal()
        with self.path.open("r+b") as file:
            if _parse_lock(file.read()).get("token") != self.token:
                return
            file.seek(0)
            file.write(content.ljust(LENGTH).encode())
            file.flush()
            os.fsync(file.fileno())  # the server's clock counts from when it gets it
        self.renewal = renewal

    def release(self) -> None:
        self.path.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        found = _read_lock(self.path)
        return found is not None and found[0].get("token") == self.token

    def _create(self, content: str) -> tuple[float | None, bool]:
        """Create the lock file, if there is none.

        Returns:
            What time the file server has now; None if that is not known. And whether the file was created.
        """
        draft = self.path.with_name(f".lock-{self.token}{TEMPORARY}")
        try:
            now = _write_new(draft, content)
            return now, self._link(draft, content)
        except FileNotFoundError:  # the holder of the lock tidied our draft away
            return None, False
        except OSError as error:
            if error.errno != errno.ESTALE:  # NFS says so of a draft that was tidied away
                raise
            return None, False
        finally:
            draft.unlink(missing_ok=True)

    def _link(self, source: Path, content: str) -> bool:
        """Create the lock file with its content at once, by a link, which either exists or does not.

        Many a file system has no links (FUSE, exFAT, some SMB): there it is created exclusively, then written.
        """
        try:
            os.link(source, self.path)
        except FileNotFoundError:
            raise
        except FileExistsError:
            return self._is_ours()  # NFS repeats a request whose answer was lost
        except OSError:  # what else is wrong, such as a full disk, the other way meets too
            try:
                _write_new(self.path, content)
            except FileExistsError:
                return False
            return self._is_ours()  # a FUSE of an object store may let two create it
        return True

    def _remove_stale(self, judged: dict[str, Any]) -> None:
        """Move a dead driver's lock aside; of several that try, one succeeds, and the rest find a new lock or none.

        Args:
            judged: what the lock said. If it says something else now, its driver lives, or another has taken over since.
        """
        aside = self.path.with_name(f".lock-{self.token}-stale{TEMPORARY}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        text = aside.read_text()
        moved = _parse_lock(text.encode())
        if (
            moved and moved != judged
        ):  # of one that is just being written, its driver finds no file, and writes another
            self._link(aside, text)
        aside.unlink(missing_ok=True)


def _write_new(path: Path, content: str) -> float:
    """Create a file; returns when that was, by the clock of the file server (seconds).

    Raises:
        FileExistsError: there is one.
    """
    with path.open("x", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_mtime


def _read_lock(path: Path) -> tuple[dict[str, Any], float] | None:
    """What a lock file says, and when it was written, by the clock of the file server; None if there is none."""
    try:
        with path.open(
            "rb"
        ) as file:  # NFS asks its server when a file is opened, not when it is looked up
            return _parse_lock(file.read()), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _parse_lock(data: bytes) -> dict[str, Any]:
    """What a lock says; nothing if it is just being written."""
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


class Claim:
    """The lock of an object store, which creates nothing conditionally: `.lock-<token>`, one for each driver that wants it.

    A driver looks who is there; if nobody is, it writes its claim, then lists all claims, and works if there is no other that
    lives. Of two drivers, whichever lists later sees the other's: never do both work, if the store lists what was written
    before (S3, GCS and HDFS do). Of those that claim at once the first by name keeps its claim, and looks again; the others
    withdraw. The age of a claim is told by the store's clock alone, so that a look writes a file too, which nobody heeds.
    """

    def __init__(self, store: Any, token: str) -> None:
        self.store = store
        self.token = token
        self.name = f"{NAME}-{token}"
        self.watch, self.renewal, self.lost = Watch(), Renewal(), False
        self.asking = (
            threading.RLock()
        )  # where a renewal moves a file, a look in the middle of it finds none

    def acquire(self, content: str) -> Holder | None:
        kept, look = False, json.dumps({**json.loads(content), "looks": True})
        for pause in (*PAUSES, None):
            others = [] if kept else self._others(look)
            if not others:
                others = self._others(content)
                if not others:
                    return None
                kept = all(self.token < other.content.get("token", "") for other in others)
            if pause is None or not kept:
                self.release()
            if pause is not None:
                time.sleep(pause * random.uniform(0.5, 1.0))
        return others[0]

    def owned(self, content: str) -> bool:
        """Whether the claim is there. One that was renewed too late others may have ignored: if there is one, it is lost."""
        with self.asking:
            if not self.lost:
                self.lost = not self.store.exists(self.name) or (
                    self.renewal.is_overdue() and bool(self._others(content))
                )
            return not self.lost

    def renew(self, content: str) -> None:
        renewal = Renewal()
        with self.asking:
            self.store.write(self.name, content)
        self.renewal = renewal

    def release(self) -> None:
        self.store.delete(self.name)

    def _others(self, content: str) -> list[Holder]:
        """Write this, and list the claims of other drivers that live; those of dead ones are removed."""
        self.renew(content)
        changed = {
            name: at for name, _, at in self.store.listing("") if name.startswith(f"{NAME}-")
        }
        now = changed.pop(self.name, None)
        if now is None:
            return [Holder({}, 0.0)]
        living = []
        for name, at in changed.items():
            said = self._read(name)
            holder = Holder(said, max(now - at, self.watch.seconds(name, said)))
            if not is_alive(said, holder.age):
                self.store.delete(name)
            elif not said.get("looks"):
                living.append(holder)
        return living

    def _read(self, name: str) -> dict[str, Any]:
        """What a claim says; nothing if it is gone, or is just being renewed where that moves a file: then it is asked again."""
        try:
            return _parse_lock(self.store.read(name))
        except FileNotFoundError:
            return {}


def clocks() -> tuple[float, float]:
    """Seconds by two clocks that go on while the machine is suspended.

    The first is never put right, and the second, which is, also knows of a time for which a virtual machine was stopped.
    """
    name = (
        "CLOCK_BOOTTIME" if hasattr(time, "CLOCK_BOOTTIME") else "CLOCK_MONOTONIC"
    )  # the latter on macOS
    return time.clock_gettime(getattr(time, name)), time.time()


def is_alive(holder: dict[str, Any], seconds: float) -> bool:
    """Whether the driver that wrote this lock still works, its last heartbeat being so many seconds ago."""
    if seconds > STALE:
        return False
    if not is_here(holder):
        return True
    start = process_start(int(holder.get("pid", -1)))
    return start is not None and start == holder.get("start")


def is_here(holder: dict[str, Any]) -> bool:
    """Whether the driver runs, or ran, on this machine since that was started, where its process can be looked up."""
    return (
        holder.get("host") == socket.gethostname() and holder.get("machine", machine()) == machine()
    )


def machine() -> str:
    """What tells this machine, since it was started, and this container from others of the same name; "" if nothing does."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


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
