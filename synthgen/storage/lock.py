"""The lock of an output folder or URL: only one driver at a time works on it.

The driver that holds the lock shows by a heartbeat that it still runs.
"""

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

HEARTBEAT_SECONDS = 10.0  # time between two heartbeats
STALE_SECONDS = 60.0  # time without a heartbeat after which a lock is stale
LOCK_NAME = ".lock"
CLAIM_BACKOFF = (0.5, 1.5)
"""Seconds that a driver waits before each retry if several drivers claim a store at the same time.

Each wait is multiplied by a random factor from 0.5 to 1.
"""
POLL_SECONDS = 1.0  # time between two reads of the lock of another host
LOCK_BYTES = 512  # size of a lock file, which is padded, because heartbeats overwrite it in place


class LockedError(InputError):
    """Another driver works on this output; the message names its process and host."""


@dataclass(frozen=True)
class Holder:
    """The driver that holds a lock.

    Attributes:
        content: the content of its lock; empty while the lock is being written.
        age: seconds since its last heartbeat, by the clock of the file server or object store.
    """

    content: dict[str, Any]
    age: float


class Keeper(Protocol):
    """Keeps the lock of one driver in a store; `content` identifies the driver."""

    def acquire(self, content: str) -> Holder | None:
        """Acquire the lock and return None; if a live driver holds it, return the holder."""

    def is_owned(self, content: str) -> bool:
        """Return whether this driver still holds the lock."""

    def renew(self, content: str) -> None:
        """Write a heartbeat."""

    def release(self) -> None:
        """Release the lock."""


class Lock:
    """The lock of an output, held while a driver works; use it as a context manager.

    A stale lock is taken over. A lock of this machine is stale when the process of its holder has
    ended. A lock of another machine is stale after a minute without a heartbeat. A driver that
    finds such a lock waits until it is stale, and is refused if there is a heartbeat meanwhile. The
    age of a heartbeat is measured only by the clock of the file server, because the clocks of the
    two machines may differ. If a driver was suspended and has lost its lock, `check` raises an
    error before the driver's next commit.
    """

    def __init__(self, store: Store) -> None:
        self.token = uuid.uuid4().hex
        self.out = str(store)
        self.keeper: Keeper
        if isinstance(store, LocalStore):
            self.keeper = LockFile(store.root, self.token)
        else:
            self.keeper = Claim(store, self.token)
        self.warned_tokens: set[str | None] = set()  # a warning about their holders was logged
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._send_heartbeats, daemon=True)

    def __enter__(self) -> "Lock":
        previous: Holder | None = None
        last_known: Holder | None = None  # a look can find a lock empty while it is renewed
        while (holder := self.keeper.acquire(self._content())) is not None:
            self._refuse_living(holder, last_known)
            self._warn_once(holder, previous)
            previous = holder
            if holder.content:
                last_known = holder
            time.sleep(POLL_SECONDS)
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
        if kind is not StoreFailedError and self.keeper.is_owned(self._content()):
            self.keeper.release()

    def check(self) -> None:
        """Raise LockedError if another driver has taken over the lock."""
        if not self.keeper.is_owned(self._content()):
            raise LockedError(f"{self.out}: another run has taken over this output, or could have")

    def _content(self) -> str:
        """Return what this driver writes into its lock now."""
        content = {
            "host": socket.gethostname(),
            "machine": find_machine_id(),
            "pid": os.getpid(),
            "start": read_process_start(os.getpid()),
            "time": time.time(),
            "token": self.token,
        }
        return json.dumps(content)

    def _refuse_living(self, holder: Holder, last_known: Holder | None) -> None:
        """Raise LockedError if the holder is alive.

        The holder is alive if its process runs on this machine, or if it wrote a heartbeat since
        `last_known`, the last look that found a content, was read.
        """
        content = holder.content
        if not content:
            return
        has_heartbeat = False
        if last_known is not None:
            same_holder = content.get("token") == last_known.content.get("token")
            has_heartbeat = same_holder and content != last_known.content
        if is_here(content) or has_heartbeat:
            raise LockedError(
                f"{self.out}: another run is working on this output "
                f"(process {content.get('pid')} on {content.get('host')}); wait for it, or stop it"
            )

    def _warn_once(self, holder: Holder, previous: Holder | None) -> None:
        """Log a warning once for each holder that this driver waits for.

        If the lock is empty, the warning is logged only when it is read for the second time,
        because its holder may still be writing it.
        """
        token = holder.content.get("token")
        if token in self.warned_tokens or (token is None and previous is None):
            return
        self.warned_tokens.add(token)
        log.warning(
            "%s: locked by a run on %s: its last heartbeat was %.0f s ago; "
            "without another one within %.0f s the lock is stale",
            self.out,
            holder.content.get("host", "an unknown machine"),
            holder.age,
            STALE_SECONDS - holder.age,
        )

    def _send_heartbeats(self) -> None:
        while not self.stop.wait(HEARTBEAT_SECONDS):
            try:
                if not self.keeper.is_owned(self._content()):
                    return
                self.keeper.renew(self._content())
            except (OSError, StoreFailedError, StoreRefusedError) as error:
                # If the error persists, the driver's own writes raise it too.
                log.warning("a heartbeat could not be written: %s", error)


class Watch:
    """Measures by this driver's clock how long the locks of other drivers have not changed."""

    def __init__(self) -> None:
        self.last_change: dict[str, tuple[dict[str, Any], float]] = {}

    def unchanged_seconds(self, name: str, content: dict[str, Any]) -> float:
        """Return the seconds since this content was first seen in this file."""
        former_content, since = self.last_change.get(name, ({}, 0.0))
        if name not in self.last_change or former_content != content:
            since = time.monotonic()
            self.last_change[name] = (content, since)
        return time.monotonic() - since


class Renewal:
    """The time of this driver's last heartbeat."""

    def __init__(self) -> None:
        self.clocks = read_clocks()

    def is_overdue(self) -> bool:
        """Return whether the lock is stale, or soon will be, because this driver was suspended."""
        pairs = zip(read_clocks(), self.clocks, strict=True)
        return any(now - then > STALE_SECONDS / 2 for now, then in pairs)


class LockFile:
    """The lock of a folder: the file `.lock`, which only one driver can create."""

    def __init__(self, folder: Path, token: str) -> None:
        self.path = folder / LOCK_NAME
        self.token = token
        self.watch = Watch()
        self.renewal = Renewal()

    def acquire(self, content: str) -> Holder | None:
        make_folder(self.path.parent)
        while True:
            now, created = self._create(content.ljust(LOCK_BYTES))
            if created:
                self.renewal = Renewal()
                return None
            existing = _read_lock(self.path)
            if existing is None or now is None:  # the lock was released, or our draft was deleted
                continue
            other_content, written_at = existing
            if other_content.get("token") == self.token:
                # Another driver took our lock for the stale one, moved it aside, and restored it.
                self.renewal = Renewal()
                return None
            unchanged = self.watch.unchanged_seconds(LOCK_NAME, other_content)
            holder = Holder(other_content, max(now - written_at, unchanged))
            if is_alive(holder.content, holder.age):
                return holder
            self._remove_stale(holder.content)

    def is_owned(self, content: str) -> bool:
        """Return whether the lock file is that of this driver.

        If the heartbeat is overdue, it is written first. Another driver may have found the lock
        stale just before; it then sees that the lock has changed, and restores it.
        """
        if self.renewal.is_overdue():
            with suppress(FileNotFoundError):
                self.renew(content)
        return self._has_own_token()

    def renew(self, content: str) -> None:
        """Overwrite the lock file in place, unless another driver has taken over the lock."""
        renewal = Renewal()
        with self.path.open("r+b") as file:
            if _parse_lock(file.read()).get("token") != self.token:
                return
            file.seek(0)
            file.write(content.ljust(LOCK_BYTES).encode())
            file.flush()
            os.fsync(file.fileno())  # the server sets the time when it receives the write
        self.renewal = renewal

    def release(self) -> None:
        self.path.unlink(missing_ok=True)

    def _has_own_token(self) -> bool:
        existing = _read_lock(self.path)
        return existing is not None and existing[0].get("token") == self.token

    def _create(self, content: str) -> tuple[float | None, bool]:
        """Create the lock file if there is none.

        Returns:
            The current time of the file server, or None if it is not known; and whether the lock
            file was created.
        """
        draft = self.path.with_name(f".lock-{self.token}{TEMPORARY}")
        try:
            now = _write_new(draft, content)
            return now, self._link(draft, content)
        except FileNotFoundError:  # the lock holder deleted our draft as a temporary file
            return None, False
        except OSError as error:
            if error.errno != errno.ESTALE:  # NFS reports ESTALE if the draft was deleted
                raise
            return None, False
        finally:
            draft.unlink(missing_ok=True)

    def _link(self, source: Path, content: str) -> bool:
        """Create the lock file with its content atomically, by a hard link.

        Many file systems have no hard links (FUSE, exFAT, some SMB). On these, the file is created
        exclusively and then written.

        Returns:
            Whether the lock file is now that of this driver.
        """
        try:
            os.link(source, self.path)
        except FileNotFoundError:
            raise
        except FileExistsError:
            # NFS repeats a request whose answer was lost, so the existing file can be ours.
            return self._has_own_token()
        except OSError:  # no hard links; an error such as a full disk is raised again below
            try:
                _write_new(self.path, content)
            except FileExistsError:
                return False
            # FUSE on an object store may let two drivers create the file.
            return self._has_own_token()
        return True

    def _remove_stale(self, judged: dict[str, Any]) -> None:
        """Move a stale lock aside, and delete it.

        If several drivers try this at the same time, one of them moves the stale lock. The others
        find no lock, or a new one.

        Args:
            judged: the content of the lock when it was found to be stale. If the content is
                different now, the lock is not stale: its holder is alive, or another driver has
                taken over. The lock is then restored.
        """
        aside = self.path.with_name(f".lock-{self.token}-stale{TEMPORARY}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        text = aside.read_text()
        moved = _parse_lock(text.encode())
        # An empty lock is not restored: the driver that was writing it creates a new lock.
        if moved and moved != judged:
            self._link(aside, text)
        aside.unlink(missing_ok=True)


def _write_new(path: Path, content: str) -> float:
    """Create a file, and return its modification time in seconds, by the file server's clock.

    Raises:
        FileExistsError: the file exists already.
    """
    with path.open("x", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_mtime


def _read_lock(path: Path) -> tuple[dict[str, Any], float] | None:
    """Return the content of a lock file and its time by the file server's clock; None if missing.

    The time is read from the open file, because an NFS client asks its server for the present state
    when a file is opened, but may answer other requests from its cache.
    """
    try:
        with path.open("rb") as file:
            return _parse_lock(file.read()), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _parse_lock(data: bytes) -> dict[str, Any]:
    """Return the content of a lock; empty if the lock is not completely written."""
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


class Claim:
    """The lock of an object store.

    An object store cannot create a file on the condition that it does not exist yet. Therefore each
    driver that wants the lock writes its own claim, the file `.lock-<token>`.

    A driver first looks at the claims of other drivers. If there are none, it writes its own claim,
    then lists all claims, and acquires the lock if no other claim is alive. If two drivers do this,
    the driver that lists later sees the claim of the other, so they never both hold the lock. This
    requires that a listing contains everything that was written before it (true for S3, GCS and
    HDFS). If several drivers claim at the same time, the driver with the first name keeps its claim
    and looks again, and the others withdraw theirs.

    The age of a claim is measured only by the store's clock. To read this clock, a driver also
    writes its file when it only looks; the file then has the key `looks`, and other drivers ignore
    it.
    """

    def __init__(self, store: Any, token: str) -> None:
        self.store = store
        self.token = token
        self.name = f"{LOCK_NAME}-{token}"
        self.watch = Watch()
        self.renewal = Renewal()
        self.lost = False
        # Some stores write by moving the file to its name; a look meanwhile would not find it.
        self.access = threading.RLock()

    def acquire(self, content: str) -> Holder | None:
        keeps_claim = False
        look = json.dumps({**json.loads(content), "looks": True})
        for pause in (*CLAIM_BACKOFF, None):
            others = [] if keeps_claim else self._list_others(look)
            if not others:
                others = self._list_others(content)
                if not others:
                    return None
                keeps_claim = all(self.token < other.content.get("token", "") for other in others)
            if pause is None or not keeps_claim:
                self.release()
            if pause is not None:
                time.sleep(pause * random.uniform(0.5, 1.0))
        return others[0]

    def is_owned(self, content: str) -> bool:
        """Return whether the claim exists and is valid.

        If the claim was renewed too late, other drivers may have ignored it. If one of them has a
        claim, this driver has lost the lock.
        """
        with self.access:
            if not self.lost:
                self.lost = not self.store.exists(self.name) or (
                    self.renewal.is_overdue() and bool(self._list_others(content))
                )
            return not self.lost

    def renew(self, content: str) -> None:
        renewal = Renewal()
        with self.access:
            self.store.write(self.name, content)
        self.renewal = renewal

    def release(self) -> None:
        self.store.delete(self.name)

    def _list_others(self, content: str) -> list[Holder]:
        """Write our claim, delete stale claims, and return the other drivers that are alive."""
        self.renew(content)
        times = {}
        for name, _, changed_at in self.store.list_files(""):
            if name.startswith(f"{LOCK_NAME}-"):
                times[name] = changed_at
        now = times.pop(self.name, None)
        if now is None:
            return [Holder({}, 0.0)]
        living = []
        for name, changed_at in times.items():
            claim = self._read(name)
            unchanged = self.watch.unchanged_seconds(name, claim)
            holder = Holder(claim, max(now - changed_at, unchanged))
            if not is_alive(claim, holder.age):
                self.store.delete(name)
            elif not claim.get("looks"):
                living.append(holder)
        return living

    def _read(self, name: str) -> dict[str, Any]:
        """Return the content of a claim.

        The content is empty if the file is not there, because the claim was deleted, or because it
        is being renewed in a store that moves files. The driver then looks again.
        """
        try:
            return _parse_lock(self.store.read(name))
        except FileNotFoundError:
            return {}


def read_clocks() -> tuple[float, float]:
    """Return the seconds of two clocks that continue while the machine is suspended.

    The first clock is never adjusted. The second clock may be adjusted, but it also counts the time
    for which a virtual machine was stopped.
    """
    # macOS has no CLOCK_BOOTTIME; its CLOCK_MONOTONIC continues too.
    name = "CLOCK_BOOTTIME" if hasattr(time, "CLOCK_BOOTTIME") else "CLOCK_MONOTONIC"
    return time.clock_gettime(getattr(time, name)), time.time()


def is_alive(holder: dict[str, Any], seconds: float) -> bool:
    """Return whether the driver that wrote a lock is still running.

    Args:
        holder: the content of the lock.
        seconds: the time since its last heartbeat.
    """
    if seconds > STALE_SECONDS:
        return False
    if not is_here(holder):
        return True
    start = read_process_start(int(holder.get("pid", -1)))
    return start is not None and start == holder.get("start")


def is_here(holder: dict[str, Any]) -> bool:
    """Return whether the process of a driver, if it still runs, can be seen from this process.

    This requires the same host, the same boot of the machine, and the same container.
    """
    if holder.get("host") != socket.gethostname():
        return False
    return holder.get("machine", find_machine_id()) == find_machine_id()


def find_machine_id() -> str:
    """Return an id of this boot of the machine and of this container; empty if unknown.

    The host name is not enough, because machines and containers may share it.
    """
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot_id} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def read_process_start(pid: int) -> str | None:
    """Return when a process of this host started, in the kernel's ticks.

    Returns:
        None if the process has ended or is a zombie. Without /proc, an empty string if the process
        runs.
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
