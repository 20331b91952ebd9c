"""Workers as Ray actors, on this machine or on a cluster whose nodes come and go.

This and `cluster.py` are the only modules that know Ray.
"""

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
    NO_RAY_HINT,
    find_cluster_address,
    find_ray_folder,
    provide_token,
    refuse_unreachable,
    refuse_unshared,
)
from synthgen.engine.pool import Event, StoppedError, count_workers
from synthgen.engine.scheduler import Schedule, Task
from synthgen.engine.worker import Progress, Worker, is_fatal, is_final
from synthgen.errors import get_first_line
from synthgen.storage.base import Store

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # how soon a Ctrl-C and a hanging worker are noticed
GROW_SECONDS = 5.0  # how soon a new node is noticed
HEARTBEAT_SECONDS = 1.0  # least time between two heartbeats of a worker within one batch
HEARTBEATS_PER_SECOND = 200  # of all workers, so that the driver is not busy with them
LOAD_FACTOR = 6  # a worker that loads its model may take the stall timeout so many times
START_ATTEMPTS = 3  # a busy machine may need more than Ray's own timeout of 15 s
FAILED_STARTS = 4  # workers in a row that fail to start, after which the run stops
NO_WORKER_SECONDS = 60.0  # time without any worker after which a warning is logged
NODE_SECONDS = 30.0
"""How long a node may be lost without Ray knowing it: Ray asks a node 5 times, every 3 s."""


class Actor:
    """A Ray actor that makes shards, and reports heartbeats while it generates.

    Args:
        load: returns the `Worker`; called with the first shard.
        heartbeat_seconds: the time between two heartbeats.
        token: the driver's token for the Hugging Face Hub, for nodes that have none.
    """

    def __init__(
        self, load: Callable[[], Any], heartbeat_seconds: float, token: str | None = None
    ) -> None:
        if token is not None:
            os.environ.setdefault("HF_TOKEN", token)
        self.load = load
        self.heartbeat_seconds = heartbeat_seconds
        self.worker: Any = None
        self.executor = ThreadPoolExecutor(max_workers=1)

    def node(self) -> str:
        """Return the id of the node that this actor was placed on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def make_shard(self, number: int) -> Iterator[Event]:
        """Yield the worker's events, and in between heartbeats while the work makes progress.

        A heartbeat is a `Progress` of no images, which says how much of the batch in progress is
        done. It is left out if no beat was counted since the last one.
        """
        if self.worker is None:
            self.worker = self.load()
        yield Progress(number, 0)
        events: SimpleQueue[Event | None] = SimpleQueue()
        pulse = heartbeat.read_pulse()
        last_beats = pulse.beats
        work = self.executor.submit(_move_events, self.worker.make_shard(number), events)
        while True:
            try:
                event = events.get(timeout=self.heartbeat_seconds)
            except Empty:
                if pulse.beats == last_beats:
                    continue
                last_beats = pulse.beats
                event = Progress(number, 0, pulse.part, pulse.activity)
            if event is None:
                break
            yield event
        work.result()


def _move_events(source: Iterator[Event], target: "SimpleQueue[Event | None]") -> None:
    """Move events to a queue, followed by None even after an error."""
    try:
        for event in source:
            target.put(event)
    finally:
        target.put(None)


@dataclass(eq=False)
class _ActorState:
    """The state of an actor, which may still be pending.

    Attributes:
        handle: Ray's handle of the actor.
        reply: the reply that is waited for: first the node's id, then the events of a shard.
        node: the id of its node; empty until the actor is placed.
        last_report: when it last reported, in seconds of `time.monotonic`.
        loaded: it has reported an event of a shard.
    """

    handle: Any
    reply: Any
    node: str = ""
    task: Task | None = None
    last_report: float = field(default_factory=time.monotonic)
    loaded: bool = False


@dataclass(frozen=True, eq=False)
class _LostActor:
    """An actor that was lost, whose shard is not yet back in the schedule.

    Attributes:
        known_at: when it is known whether the node was lost with it, in seconds of
            `time.monotonic`.
    """

    actor: _ActorState
    error: str
    traceback: str
    known_at: float
    preempted: bool = False


class RayPool:
    """A pool (`synthgen.engine.pool.Pool`) of Ray actors, each with a loaded pipeline.

    As many actors as the job asks for are created immediately. Those that fit on no node stay
    pending, which tells an autoscaler what to add; the others do not wait for them. An actor that
    is lost, fails or hangs is replaced, and its shard is retried on another actor.

    Args:
        job: the job of every worker.
        store: the output of every worker.
        address: the address of a running cluster; None to use RAY_ADDRESS, or to start Ray on this
            machine.
        load: returns a worker for (job, store, device).
    """

    def __init__(
        self, job: Job, store: Store, address: str | None = None, load: Callable[..., Any] = Worker
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self.ray = ray
        self.job = job
        self.store = store
        self.schedule = Schedule(job.max_shard_attempts)
        self.actors: list[_ActorState] = []
        self.lost_actors: list[_LostActor] = []
        self.target = 0  # number of actors
        self.target_time = 0.0  # when the target was computed
        self.next_start = 0.0  # no actor is created before
        self.failed_starts = 0
        self.without_worker_since: float | None = time.monotonic()
        address = find_cluster_address(address)
        self.owns_ray = not ray.is_initialized()
        self.on_cluster = address is not None or not self.owns_ray
        if self.owns_ray:
            self._start_ray(address)
        self._refuse_unshared()
        self.gpus = self._gpus_per_worker()
        stall_timeout = job.stall_timeout or float("inf")
        self.load = partial(load, job, store, "cuda" if self.gpus else "cpu")
        self.actor_class = ray.remote(Actor).options(num_cpus=job.threads, num_gpus=self.gpus)
        interval = max(HEARTBEAT_SECONDS, self._compute_target() / HEARTBEATS_PER_SECOND)
        self.heartbeat_seconds = min(interval, stall_timeout / 4)
        self.token = self._read_token()

    def _start_ray(self, address: str | None) -> None:
        """Join the cluster at an address, or start Ray on this machine.

        Raises:
            StoppedError: Ray does not start.
        """
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address is not None:
            self._join_cluster(address, options)
            return
        provide_token()
        folder = find_ray_folder()
        if folder is not None:
            options["_temp_dir"] = folder
        options["num_cpus"] = count_workers(self.job) * self.job.threads
        options["include_dashboard"] = False
        options["object_store_memory"] = 128 * 2**20
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                self.ray.init(address="local", **options)
                return
            except Exception as error:  # Ray has no class of its own for it
                self.ray.shutdown()
                if attempt == START_ATTEMPTS:
                    raise StoppedError(
                        f"Ray does not start on this machine: {get_first_line(error)}; "
                        f"{NO_RAY_HINT}"
                    ) from error
                log.warning("Ray did not start (%s); retrying", get_first_line(error))

    def _join_cluster(self, address: str, options: dict[str, Any]) -> None:
        """Join a running cluster.

        Raises:
            InputError: no cluster answers at the address.
            StoppedError: the cluster cannot be used, for example because of its version of Ray.
        """
        from ray._private import services

        try:
            if address == "auto":  # Ray remembers the last cluster of this machine
                address = services.canonicalize_bootstrap_address("auto") or address
            refuse_unreachable(address)
            self.ray.init(address=address, **options)
        except (OSError, ValueError, RuntimeError, self.ray.exceptions.RayError) as error:
            self.ray.shutdown()
            reason = get_first_line(error).rstrip(".")
            raise StoppedError(
                f"the Ray cluster at {address} cannot be used: {reason}; {NO_RAY_HINT}"
            ) from error

    def _refuse_unshared(self) -> None:
        """Raise InputError if the machines of the cluster would each write to their own folder."""
        machines = {node["NodeManagerAddress"] for node in self.ray.nodes() if node["Alive"]}
        refuse_unshared(self.store, self.job.output.shared, len(machines))

    def _read_token(self) -> str | None:
        """Return the token for the Hugging Face Hub that workers on a cluster may need.

        It travels as an argument of the actors: Ray shows environment variables of jobs and actors
        in its dashboard and logs.
        """
        if not self.on_cluster or not self.job.pipeline.uses_torch:
            return None
        from huggingface_hub import get_token

        token: str | None = get_token()
        return token

    def _gpus_per_worker(self) -> float:
        if self.job.gpus is not None or not self.job.pipeline.uses_torch:
            return self.job.gpus or 0
        return 1 if self.ray.cluster_resources().get("GPU", 0) > 0 else 0

    def run(self, shards: Iterable[int]) -> Iterator[Event]:
        self.schedule.begin(shards)
        while self._has_work():
            self._adjust_actors()
            self._assign_tasks()
            yield from self._receive_events()
            yield from self._replace_hanging_actors()
            yield from self._resolve_losses()

    def _has_work(self) -> bool:
        if self.schedule.count_waiting(1) or self.lost_actors:
            return True
        return any(actor.task for actor in self.actors)

    def finish(self) -> None:
        self.schedule.finish()

    def close(self) -> None:
        for actor in self.actors:
            self.ray.kill(actor.handle)
        self.actors = []
        if self.owns_ray:
            self.ray.shutdown()

    def _compute_target(self) -> int:
        """Return the number of actors that the job asks for, or that fit on the cluster now.

        It is at least one, so that an autoscaler may add a node.
        """
        if isinstance(self.job.workers, tuple) and self.on_cluster:
            return count_workers(self.job, self.job.workers[1])
        if self.job.workers is not None or not self.on_cluster:
            return count_workers(self.job)
        resources = self.ray.cluster_resources()
        if self.gpus:
            room = int(resources.get("GPU", 0) / self.gpus)
        else:
            room = int(resources.get("CPU", 0) / self.job.threads)
        return count_workers(self.job, room)

    def _adjust_actors(self) -> None:
        """Create the actors that are missing, and stop those that no shard is left for."""
        now = time.monotonic()
        if now - self.target_time > GROW_SECONDS:
            self.target = self._compute_target()
            self.target_time = now
        idle = [actor for actor in self.actors if actor.task is None]
        busy = len(self.actors) - len(idle)
        waiting = self.schedule.count_waiting(self.target)
        wanted = min(self.target, busy + len(self.lost_actors) + waiting)
        idle.sort(key=lambda actor: bool(actor.node))  # pending actors are stopped first
        surplus = max(0, len(self.actors) - wanted)
        for actor in idle[:surplus]:
            self._stop_actor(actor)
        if now >= self.next_start:
            for _ in range(wanted - len(self.actors)):
                handle = self.actor_class.remote(self.load, self.heartbeat_seconds, self.token)
                self.actors.append(_ActorState(handle, handle.node.remote()))
        self._warn_without_workers(now)

    def _warn_without_workers(self, now: float) -> None:
        """Log a warning if no actor has been placed on a node for a while."""
        if any(actor.node for actor in self.actors):
            self.without_worker_since = None
        elif self.without_worker_since is None:
            self.without_worker_since = now
        elif now - self.without_worker_since > NO_WORKER_SECONDS:
            self.without_worker_since = float("inf")
            need = f"{self.job.threads} CPU(s)"
            if self.gpus:
                need += f" and {self.gpus:g} GPU(s)"
            log.warning(
                "no worker has been placed on a node yet: each needs %s; the cluster has %s",
                need,
                self.ray.cluster_resources(),
            )

    def _assign_tasks(self) -> None:
        """Give each idle actor a shard."""
        nodes = {actor.node for actor in self.actors if actor.node}
        for actor in self.actors:
            if not actor.node or actor.task is not None:
                continue
            actor.task = self.schedule.take(actor.node, nodes)
            if actor.task is not None:
                make_shard = actor.handle.make_shard.options(num_returns="streaming")
                actor.reply = make_shard.remote(actor.task.shard)
                actor.last_report = time.monotonic()

    def _receive_events(self) -> Iterator[Event]:
        """Yield one event of each actor that has one."""
        waiting = {actor.reply: actor for actor in self.actors if actor.reply is not None}
        if not waiting:
            time.sleep(POLL_SECONDS)
            return
        wait = partial(self.ray.wait, list(waiting), fetch_local=False)
        ready, _ = wait(num_returns=1, timeout=POLL_SECONDS)
        if ready:
            ready, _ = wait(num_returns=len(waiting), timeout=0)
            for reply in ready:
                yield from self._receive_event(waiting[reply])

    def _receive_event(self, actor: _ActorState) -> Iterator[Event]:
        """Take an actor's next event.

        With a staged shard the actor is given its next one, before the shard is committed.
        """
        actor.last_report = time.monotonic()
        try:
            if actor.task is None:
                actor.node = self.ray.get(actor.reply)
                actor.reply = None
                self._refuse_unshared()  # nodes may join later
                return
            event: Event = self.ray.get(next(actor.reply))
        except StopIteration:
            actor.task = None
            actor.reply = None
        except self.ray.exceptions.RayError as error:
            yield from self._handle_error(actor, error)
        else:
            actor.loaded = True
            self.failed_starts = 0
            actor.task.record(event)
            if isinstance(event, StagedShard):
                actor.task = None
                actor.reply = None
                self._assign_tasks()
            yield event

    def _handle_error(self, actor: _ActorState, error: Exception) -> Iterator[Event]:
        """Handle an actor that failed at its shard, was lost, or did not start."""
        cause = getattr(error, "cause", None)
        if cause is not None and is_fatal(cause):
            raise cause
        text = f"{type(cause or error).__name__}: {get_first_line(cause or error)}"
        if actor.loaded and is_final(cause):
            yield from self._revert_progress(actor)
            yield from self._fail_task(actor, text, str(error))
        else:
            node_may_be_lost = isinstance(error, self.ray.exceptions.ActorUnavailableError)
            delay = NODE_SECONDS if node_may_be_lost else 0.0
            preempted = getattr(error, "preempted", False)
            yield from self._replace_actor(actor, text, str(error), delay, preempted)

    def _fail_task(self, actor: _ActorState, error: str, traceback: str) -> Iterator[Event]:
        """Fail a shard for which a retry would fail as well; the actor takes another one."""
        task = actor.task
        actor.task = None
        actor.reply = None
        if task is not None:
            yield from self.schedule.fail(task, error, traceback, retry=False)

    def _replace_actor(
        self,
        actor: _ActorState,
        error: str,
        traceback: str,
        delay: float = 0.0,
        preempted: bool = False,
    ) -> Iterator[Event]:
        """Stop an actor, and note that its shard is lost.

        Args:
            delay: the time in seconds after which it is known whether its node is lost too.
        """
        self._stop_actor(actor)
        yield from self._revert_progress(actor)
        known_at = time.monotonic() + delay
        self.lost_actors.append(_LostActor(actor, error, traceback, known_at, preempted))

    def _revert_progress(self, actor: _ActorState) -> Iterator[Event]:
        if actor.task is not None:
            yield Progress(actor.task.shard, -actor.task.reported_images)

    def _resolve_losses(self) -> Iterator[Event]:
        """Return lost shards to the schedule.

        They count as failed, except those that were lost with their nodes or before the actor had
        started.
        """
        for loss in list(self.lost_actors):
            node = loss.actor.node
            node_alive = not loss.preempted and (not node or self._is_alive(node))
            if node_alive and time.monotonic() < loss.known_at:
                continue
            self.lost_actors.remove(loss)
            if node_alive and not loss.actor.loaded:
                self._record_failed_start(loss.error)
            task = loss.actor.task
            if task is None:
                continue
            if not node_alive:
                self.schedule.requeue(task, f"node {node[:8]} is gone")
            elif not loss.actor.loaded:
                self.schedule.requeue(task, loss.error)
            else:
                yield from self.schedule.fail(task, loss.error, loss.traceback, node=node)

    def _record_failed_start(self, error: str) -> None:
        """Delay the next start of an actor, with a growing backoff.

        Raises:
            StoppedError: no worker at all starts.
        """
        self.failed_starts += 1
        self.next_start = time.monotonic() + min(60, 2**self.failed_starts)
        any_loaded = any(actor.loaded for actor in self.actors)
        if self.failed_starts >= FAILED_STARTS and not any_loaded:
            raise StoppedError(f"workers do not start: {error}")
        log.warning("a worker did not start: %s", error)

    def _is_alive(self, node: str) -> bool:
        return any(known["NodeID"] == node and known["Alive"] for known in self.ray.nodes())

    def _replace_hanging_actors(self) -> Iterator[Event]:
        if self.job.stall_timeout is None:
            return
        for actor in list(self.actors):
            if actor.task is None:
                continue
            limit = self.job.stall_timeout
            if not actor.loaded:
                limit *= LOAD_FACTOR
            if time.monotonic() - actor.last_report > limit:
                error = f"no progress for {limit:g} s on node {actor.node[:8]}"
                yield from self._replace_actor(actor, error, error)

    def _stop_actor(self, actor: _ActorState) -> None:
        self.actors.remove(actor)
        self.ray.kill(actor.handle)
