"""Workers as Ray actors, on this machine or over a cluster whose nodes come and go. The only place that knows Ray."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from synthgen import heartbeat
from synthgen.config.job import Job
from synthgen.dataset.shard import StagedShard
from synthgen.engine.cluster import (
    WITHOUT,
    cluster_address,
    provide_token,
    ray_folder,
    refuse_unreachable,
    refuse_unshared,
)
from synthgen.engine.pool import Event, StoppedError, worker_count
from synthgen.engine.scheduler import Schedule, Task
from synthgen.engine.worker import Progress, Worker, ends_all, is_final
from synthgen.errors import first_line
from synthgen.storage.base import Store

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # how soon a Ctrl-C and a stall are noticed
GROW_SECONDS = 5.0  # how soon a new node is
BEAT_SECONDS = 5.0  # between two signs of life of a worker within one batch
LOADING = 6  # a worker that loads its model may take so many times the stall timeout
START_ATTEMPTS = (
    3  # of Ray on this machine, which gives up by itself after 15 s where the machine is busy
)
FAILED_STARTS = 4  # workers in a row that do not even start
LONELY_SECONDS = 60.0  # without any worker, until that is said
NODE_SECONDS = 30.0  # until a node whose actor cannot be reached is known to be lost: Ray asks 5 times, every 3 s


class Actor:
    """Makes shards in a process of its own: loads with the first one, and gives signs of life while it paints.

    Args:
        load: makes what makes shards: a `Worker`.
        beat_seconds: between two signs of life.
    """

    def __init__(self, load: Callable[[], Any], beat_seconds: float) -> None:
        self.load, self.beat_seconds = load, beat_seconds
        self.worker: Any = None
        self.thread = ThreadPoolExecutor(max_workers=1)

    def node(self) -> str:
        """Id of the node that this actor was placed on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def make_shard(self, number: int) -> Iterator[Event]:
        """What the worker reports, and in between a report of no images for as long as its pulse beats."""
        if self.worker is None:
            self.worker = self.load()
        yield Progress(number, 0)
        reports: SimpleQueue[Event | None] = SimpleQueue()
        done = self.thread.submit(_drain, self.worker.make_shard(number), reports)
        seen = heartbeat.beats()
        while True:
            try:
                event = reports.get(timeout=self.beat_seconds)
            except Empty:
                seen, before = heartbeat.beats(), seen
                if seen == before:
                    continue
                event = Progress(number, 0)
            if event is None:
                break
            yield event
        done.result()


def _drain(events: Iterator[Event], reports: "SimpleQueue[Event | None]") -> None:
    """Move events to a queue; None ends them, also where an error does."""
    try:
        for event in events:
            reports.put(event)
    finally:
        reports.put(None)


@dataclass(eq=False)
class _Seat:
    """An actor, wanted or there.

    Attributes:
        reply: what is waited for: its node's id, then what it reports of a shard.
        node: "" until it is placed.
        heard: when it last reported, in seconds of `time.monotonic`.
        loaded: whether it has reported anything of a shard.
    """

    actor: Any
    reply: Any
    node: str = ""
    task: Task | None = None
    heard: float = field(default_factory=time.monotonic)
    loaded: bool = False


@dataclass(frozen=True, eq=False)
class _Loss:
    """An actor that is gone, and why; whether its node is gone too is known at `settled` (`time.monotonic`) at the latest."""

    seat: _Seat
    why: str
    traceback: str
    settled: float
    preempted: bool = False


class RayPool:
    """Ray actors that each hold a loaded pipeline; a pool as `synthgen.engine.pool.Pool` says.

    As many actors as the job asks for are created at once. Those that no node has room for yet stay pending, which tells an
    autoscaler what to add; the others do not wait for them. An actor that dies, fails or stalls is replaced, and its shard
    goes to another one.

    Args:
        job: what every worker makes shards of.
        store: the output, which every worker gets.
        address: of a running cluster; None: RAY_ADDRESS, or Ray on this machine.
        load: (job, store, device) to what makes the shards.
    """

    def __init__(
        self, job: Job, store: Store, address: str | None = None, load: Callable[..., Any] = Worker
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self.ray, self.job, self.store = ray, job, store
        self.schedule = Schedule(job.max_shard_attempts)
        self.seats: list[_Seat] = []
        self.losses: list[_Loss] = []
        self.asked_at, self.not_before, self.target, self.failed_starts = 0.0, 0.0, 0, 0
        self.lonely_since: float | None = time.monotonic()
        address = cluster_address(address)
        self.ours = not ray.is_initialized()
        self.cluster = address is not None or not self.ours
        if self.ours:
            self._start(address)
        self._refuse_unshared()
        self.gpus = self._gpus()
        stall = job.stall_timeout or float("inf")
        self.load = partial(load, job, store, "cuda" if self.gpus else "cpu")
        self.remote = ray.remote(Actor).options(num_cpus=job.threads, num_gpus=self.gpus)
        self.beat_seconds = min(BEAT_SECONDS, stall / 4)

    def _start(self, address: str | None) -> None:
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address is not None:
            self._connect(address, options)
            return
        provide_token()
        folder = ray_folder()
        if folder is not None:
            options["_temp_dir"] = folder
        cpus = worker_count(self.job) * self.job.threads
        options |= {
            "num_cpus": cpus,
            "include_dashboard": False,
            "object_store_memory": 128 * 2**20,
        }
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                self.ray.init(address="local", **options)
                return
            except Exception as error:  # Ray has no class of its own for it
                self.ray.shutdown()
                if attempt == START_ATTEMPTS:
                    raise StoppedError(
                        f"Ray does not start on this machine: {first_line(error)}; {WITHOUT}"
                    ) from error
                log.warning("Ray did not start (%s); again", first_line(error))

    def _connect(self, address: str, options: dict[str, Any]) -> None:
        """Join a running cluster.

        Raises:
            InputError: none answers there.
            StoppedError: it does, and cannot be used, as with another version of Ray.
        """
        from ray._private import services

        try:
            if address == "auto":  # Ray remembers the last one that was here
                address = services.canonicalize_bootstrap_address("auto") or address
            refuse_unreachable(address)
            self.ray.init(address=address, **options)
        except (OSError, ValueError, RuntimeError, self.ray.exceptions.RayError) as error:
            self.ray.shutdown()
            why = first_line(error).rstrip(".")
            raise StoppedError(
                f"the Ray cluster at {address} cannot be used: {why}; {WITHOUT}"
            ) from error

    def _refuse_unshared(self) -> None:
        """Raise InputError if the cluster's machines would each write to a folder of their own."""
        machines = {node["NodeManagerAddress"] for node in self.ray.nodes() if node["Alive"]}
        refuse_unshared(self.store, self.job.output.shared, len(machines))

    def _gpus(self) -> float:
        if self.job.gpus is not None or not self.job.pipeline.uses_torch:
            return self.job.gpus or 0
        return 1 if self.ray.cluster_resources().get("GPU", 0) > 0 else 0

    def run(self, shards: Iterable[int]) -> Iterator[Event]:
        self.schedule.begin(shards)
        while self.schedule.waiting(1) or self.losses or any(seat.task for seat in self.seats):
            self._fill()
            self._hand_out()
            yield from self._listen()
            yield from self._replace_stalled()
            yield from self._settle()

    def finish(self) -> None:
        self.schedule.finish()

    def close(self) -> None:
        for seat in self.seats:
            self.ray.kill(seat.actor)
        self.seats = []
        if self.ours:
            self.ray.shutdown()

    def _wanted(self) -> int:
        """How many actors: what the job says, or what the cluster has room for now; at least one, so that it may grow."""
        if isinstance(self.job.workers, tuple) and self.cluster:
            return worker_count(self.job, self.job.workers[1])
        if self.job.workers is not None or not self.cluster:
            return worker_count(self.job)
        there = self.ray.cluster_resources()
        return worker_count(
            self.job,
            int(
                there.get("GPU", 0) / self.gpus
                if self.gpus
                else there.get("CPU", 0) / self.job.threads
            ),
        )

    def _fill(self) -> None:
        """Create the actors that are missing, and take back those that nothing is left for."""
        now = time.monotonic()
        if now - self.asked_at > GROW_SECONDS:
            self.target, self.asked_at = self._wanted(), now
        busy = sum(seat.task is not None for seat in self.seats)
        wanted = min(self.target, busy + len(self.losses) + self.schedule.waiting(self.target))
        idle = sorted(
            (s for s in self.seats if s.task is None), key=lambda seat: bool(seat.node)
        )  # pending ones first
        for seat in idle[: max(0, len(self.seats) - wanted)]:
            self._dismiss(seat)
        for _ in range(wanted - len(self.seats) if now >= self.not_before else 0):
            actor = self.remote.remote(self.load, self.beat_seconds)
            self.seats.append(_Seat(actor, actor.node.remote()))
        self._tell_lonely(now)

    def _tell_lonely(self, now: float) -> None:
        if any(seat.node for seat in self.seats):
            self.lonely_since = None
        elif self.lonely_since is None:
            self.lonely_since = now
        elif now - self.lonely_since > LONELY_SECONDS:
            self.lonely_since = float("inf")
            need = f"{self.job.threads} CPU(s)" + (
                f" and {self.gpus:g} GPU(s)" if self.gpus else ""
            )
            log.warning(
                "no worker has found a place yet: each takes %s; the cluster has %s",
                need,
                self.ray.cluster_resources(),
            )

    def _hand_out(self) -> None:
        nodes = {seat.node for seat in self.seats if seat.node}
        for seat in self.seats:
            if seat.node and seat.task is None:
                seat.task = self.schedule.take(seat.node, nodes)
                if seat.task is not None:
                    seat.reply = seat.actor.make_shard.options(num_returns="streaming").remote(
                        seat.task.shard
                    )
                    seat.heard = time.monotonic()

    def _listen(self) -> Iterator[Event]:
        """One report of each actor that has one."""
        waiting = {seat.reply: seat for seat in self.seats if seat.reply is not None}
        wait = partial(self.ray.wait, list(waiting), fetch_local=False)
        if not waiting:
            time.sleep(POLL_SECONDS)
        elif wait(num_returns=1, timeout=POLL_SECONDS)[0]:
            for reply in wait(num_returns=len(waiting), timeout=0)[0]:
                yield from self._hear(waiting[reply])

    def _hear(self, seat: _Seat) -> Iterator[Event]:
        """Take an actor's next report; with a staged shard it gets its next one, before that one is committed."""
        seat.heard = time.monotonic()
        try:
            if seat.task is None:
                seat.node, seat.reply = self.ray.get(seat.reply), None
                self._refuse_unshared()  # nodes join later, too
                return
            event: Event = self.ray.get(next(seat.reply))
        except StopIteration:
            seat.task, seat.reply = None, None
        except self.ray.exceptions.RayError as error:
            yield from self._failed(seat, error)
        else:
            seat.loaded, self.failed_starts = True, 0
            seat.task.note(event)
            if isinstance(event, StagedShard):
                seat.task, seat.reply = None, None
                self._hand_out()
            yield event

    def _failed(self, seat: _Seat, error: Exception) -> Iterator[Event]:
        """An actor failed at its shard, died, or did not even start."""
        cause = getattr(error, "cause", None)
        if cause is not None and ends_all(cause):
            raise cause
        why = f"{type(cause or error).__name__}: {first_line(cause or error)}"
        if seat.loaded and is_final(cause):
            yield from self._take_back(seat)
            yield from self._give_up(seat, why, str(error))
        else:
            doubt = (
                NODE_SECONDS
                if isinstance(error, self.ray.exceptions.ActorUnavailableError)
                else 0.0
            )
            yield from self._replace(
                seat, why, str(error), doubt, getattr(error, "preempted", False)
            )

    def _give_up(self, seat: _Seat, why: str, traceback: str) -> Iterator[Event]:
        """The shard would fail so every time; the actor goes on with another one."""
        task, seat.task, seat.reply = seat.task, None, None
        if task is not None:
            yield from self.schedule.failed(task, why, traceback, again=False)

    def _replace(
        self, seat: _Seat, why: str, traceback: str, doubt: float = 0.0, preempted: bool = False
    ) -> Iterator[Event]:
        """Stop an actor; what becomes of its shard is settled when it is known whether its node is there, in `doubt` seconds."""
        self._dismiss(seat)
        yield from self._take_back(seat)
        self.losses.append(_Loss(seat, why, traceback, time.monotonic() + doubt, preempted))

    def _take_back(self, seat: _Seat) -> Iterator[Event]:
        if seat.task is not None:
            yield Progress(seat.task.shard, -seat.task.painted)

    def _settle(self) -> Iterator[Event]:
        """Return lost shards to the schedule: as failed, but for those that were lost with their nodes."""
        for loss in list(self.losses):
            node = loss.seat.node
            alive = not loss.preempted and (not node or self._is_alive(node))
            if alive and time.monotonic() < loss.settled:
                continue
            self.losses.remove(loss)
            if alive and not loss.seat.loaded:
                self._note_failed_start(loss.why)
            if loss.seat.task is None:
                continue
            if alive and loss.seat.loaded:
                yield from self.schedule.failed(loss.seat.task, loss.why, loss.traceback, node=node)
            else:
                self.schedule.lost(
                    loss.seat.task, loss.why if alive else f"node {node[:8]} is gone"
                )

    def _note_failed_start(self, why: str) -> None:
        """Wait a little before the next start; where no worker at all gets going, give up."""
        self.failed_starts += 1
        self.not_before = time.monotonic() + min(60, 2**self.failed_starts)
        if self.failed_starts >= FAILED_STARTS and not any(seat.loaded for seat in self.seats):
            raise StoppedError(f"workers do not start: {why}")
        log.warning("a worker did not start: %s", why)

    def _is_alive(self, node: str) -> bool:
        return any(n["NodeID"] == node and n["Alive"] for n in self.ray.nodes())

    def _replace_stalled(self) -> Iterator[Event]:
        if self.job.stall_timeout is None:
            return
        for seat in [s for s in self.seats if s.task is not None]:
            limit = self.job.stall_timeout * (1 if seat.loaded else LOADING)
            if time.monotonic() - seat.heard > limit:
                why = f"no progress for {limit:g} s on node {seat.node[:8]}"
                yield from self._replace(seat, why, why)

    def _dismiss(self, seat: _Seat) -> None:
        self.seats.remove(seat)
        self.ray.kill(seat.actor)
