"""Which shard comes next, and what becomes of one that failed."""

import logging
from itertools import count

import pytest

from synthgen.engine.pool import FailedShard
from synthgen.engine.scheduler import Schedule, Task


def begun(shards: range, attempts: int = 3) -> Schedule:
    schedule = Schedule(attempts)
    schedule.begin(shards)
    return schedule


def taken(task: Task | None) -> Task:
    assert task is not None
    return task


def test_shards_come_in_order_each_once() -> None:
    schedule = begun(range(4))
    assert schedule.waiting(10) == 4
    assert [taken(schedule.take()).shard for _ in range(4)] == [0, 1, 2, 3]
    assert (schedule.take(), schedule.waiting(1)) == (None, 0)


def test_endless_shards_are_not_gathered() -> None:
    schedule = Schedule(3)
    schedule.begin(count())
    assert schedule.waiting(5) == 5
    assert [taken(schedule.take()).shard for _ in range(7)] == list(range(7))
    assert len(schedule.ahead) <= 5


def test_a_failed_shard_comes_next_on_another_node() -> None:
    schedule = begun(range(3))
    task = taken(schedule.take("a", {"a", "b"}))
    assert list(schedule.failed(task, "why", "", node="a")) == []
    assert taken(schedule.take("a", {"a", "b"})).shard == 1
    again = taken(schedule.take("b", {"a", "b"}))
    assert (again.shard, again.attempts, set(again.nodes)) == (0, 1, {"a"})


def test_a_failed_shard_stays_where_there_is_no_other_node() -> None:
    schedule = begun(range(1))
    list(schedule.failed(taken(schedule.take("a", {"a"})), "why", "", node="a"))
    assert schedule.take("a", {"a", "b"}) is None
    assert taken(schedule.take("a", {"a"})).shard == 0


def test_a_shard_is_given_up_after_so_many_failures(caplog: pytest.LogCaptureFixture) -> None:
    schedule = begun(range(1), attempts=2)
    with caplog.at_level(logging.WARNING):
        assert list(schedule.failed(taken(schedule.take()), "first", "trace")) == []
        assert list(schedule.failed(taken(schedule.take()), "second", "trace")) == [
            FailedShard(0, 2, "second", "trace")
        ]
    assert caplog.messages == ["shard 000000: first; attempt 2 of 2 follows"]
    assert schedule.waiting(1) == 0


def test_a_lost_shard_counts_as_no_failure() -> None:
    schedule = begun(range(1), attempts=1)
    for _ in range(5):
        schedule.lost(taken(schedule.take()), "node is gone")
    assert taken(schedule.take()).attempts == 0


def test_nothing_follows_after_the_finish() -> None:
    schedule = begun(range(5))
    schedule.lost(taken(schedule.take()), "node is gone")
    schedule.finish()
    assert (schedule.waiting(3), schedule.take()) == (0, None)
