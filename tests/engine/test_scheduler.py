"""The order of shards, and the retries of those that failed."""

import logging
from itertools import count

import pytest

from synthgen.engine.pool import FailedShard
from synthgen.engine.scheduler import Schedule, Task


def create_schedule(shards: range, attempts: int = 3) -> Schedule:
    schedule = Schedule(attempts)
    schedule.begin(shards)
    return schedule


def assert_task(task: Task | None) -> Task:
    assert task is not None
    return task


def test_each_shard_is_taken_once_in_order() -> None:
    schedule = create_schedule(range(4))
    assert schedule.count_waiting(10) == 4
    assert [assert_task(schedule.take()).shard for _ in range(4)] == [0, 1, 2, 3]
    assert (schedule.take(), schedule.count_waiting(1)) == (None, 0)


def test_an_endless_list_of_shards_is_not_stored() -> None:
    schedule = Schedule(3)
    schedule.begin(count())
    assert schedule.count_waiting(5) == 5
    assert [assert_task(schedule.take()).shard for _ in range(7)] == list(range(7))
    assert len(schedule.next_shards) <= 5


def test_a_failed_shard_is_retried_next_on_another_node() -> None:
    schedule = create_schedule(range(3))
    task = assert_task(schedule.take("a", {"a", "b"}))
    assert list(schedule.fail(task, "why", "", node="a")) == []
    assert assert_task(schedule.take("a", {"a", "b"})).shard == 1
    retry = assert_task(schedule.take("b", {"a", "b"}))
    assert (retry.shard, retry.attempts, set(retry.nodes)) == (0, 1, {"a"})


def test_a_failed_shard_is_retried_on_its_node_if_there_is_no_other() -> None:
    schedule = create_schedule(range(1))
    list(schedule.fail(assert_task(schedule.take("a", {"a"})), "why", "", node="a"))
    assert schedule.take("a", {"a", "b"}) is None
    assert assert_task(schedule.take("a", {"a"})).shard == 0


def test_a_shard_fails_after_the_last_attempt(caplog: pytest.LogCaptureFixture) -> None:
    schedule = create_schedule(range(1), attempts=2)
    with caplog.at_level(logging.WARNING):
        assert list(schedule.fail(assert_task(schedule.take()), "first", "trace")) == []
        assert list(schedule.fail(assert_task(schedule.take()), "second", "trace")) == [
            FailedShard(0, 2, "second", "trace")
        ]
    assert caplog.messages == ["shard 000000: first; attempt 2 of 2 follows"]
    assert schedule.count_waiting(1) == 0


def test_a_lost_shard_does_not_count_as_an_attempt() -> None:
    schedule = create_schedule(range(1), attempts=1)
    for _ in range(5):
        schedule.requeue(assert_task(schedule.take()), "node is gone")
    assert assert_task(schedule.take()).attempts == 0


def test_nothing_is_taken_after_finish() -> None:
    schedule = create_schedule(range(5))
    schedule.requeue(assert_task(schedule.take()), "node is gone")
    schedule.finish()
    assert (schedule.count_waiting(3), schedule.take()) == (0, None)
