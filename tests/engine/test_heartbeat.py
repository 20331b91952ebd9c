"""The reports of an actor, without Ray: the events of its worker, and heartbeats."""

import time
from collections.abc import Iterator
from functools import partial

import pytest

from synthgen import heartbeat
from synthgen.engine.ray_pool import Actor
from synthgen.engine.worker import Progress


class Worker:
    """A worker that reports once, then works or hangs for a while."""

    def __init__(self, beats: bool, fails: bool = False) -> None:
        self.beats = beats
        self.fails = fails

    def make_shard(self, number: int) -> Iterator[Progress]:
        yield Progress(number, 2)
        for _ in range(10):
            time.sleep(0.02)
            if self.beats:
                heartbeat.record_beat()
        if self.fails:
            raise ValueError("not this one")
        yield Progress(number, 3)


def test_work_within_a_batch_reports_heartbeats() -> None:
    images = [
        e.images
        for e in Actor(partial(Worker, True), 0.05).make_shard(7)
        if isinstance(e, Progress)
    ]
    assert [n for n in images if n] == [2, 3]
    assert images[:2] == [0, 2], "the first report says that the model is loaded"
    assert 0 in images[2:-1]


def test_a_worker_that_hangs_reports_no_heartbeat() -> None:
    assert [
        e.images
        for e in Actor(partial(Worker, False), 0.05).make_shard(7)
        if isinstance(e, Progress)
    ] == [0, 2, 3]


def test_an_error_is_raised_after_the_events_before_it() -> None:
    events = Actor(partial(Worker, False, True), 0.05).make_shard(7)
    assert [next(events), next(events)] == [Progress(7, 0), Progress(7, 2)]
    with pytest.raises(ValueError, match="not this one") as error:
        next(events)
    assert error.traceback[-1].name == "make_shard"


def test_the_model_is_loaded_once() -> None:
    loads = []

    def load() -> Worker:
        loads.append(1)
        return Worker(False)

    actor = Actor(load, 0.05)
    list(actor.make_shard(0))
    list(actor.make_shard(1))
    assert len(loads) == 1


def test_the_end_is_reported_without_delay() -> None:
    start = time.monotonic()
    list(Actor(partial(Worker, False), 60).make_shard(0))
    assert time.monotonic() - start < 30


class BatchWorker:
    """A worker that does half of the known work of a batch of four images, and waits."""

    def make_shard(self, number: int) -> Iterator[Progress]:
        heartbeat.begin_batch(4)
        heartbeat.expect(10)
        heartbeat.begin_activity("denoising")
        heartbeat.record_beat(5)
        time.sleep(0.2)
        heartbeat.begin_batch(0)
        yield Progress(number, 4)


def test_a_heartbeat_says_which_part_of_a_batch_is_done() -> None:
    first, *within, last = Actor(BatchWorker, 0.05).make_shard(7)
    assert first == Progress(7, 0)
    assert within == [Progress(7, 0, part=2.0, activity="denoising")]
    assert last == Progress(7, 4)


def test_the_part_that_is_done_never_decreases() -> None:
    parts = []
    heartbeat.begin_batch(1)
    with heartbeat.watch(lambda pulse: parts.append(pulse.part)):
        heartbeat.record_beat(1)  # nothing is known yet of the work that there is
        heartbeat.expect(4)
        heartbeat.record_beat(2)
        heartbeat.expect(12)  # such as a repair
        heartbeat.record_beat(1)
        heartbeat.record_beat(20)
    heartbeat.record_beat(1)  # nobody watches
    assert parts == [0.0, 0.75, 0.75, 1.0]
