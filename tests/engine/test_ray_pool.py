"""Ray actors that fail, are lost or hang, and nodes that come and go.

The nodes are real ones, on this machine.
"""

import hashlib
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from synthgen.config import Job
from synthgen.dataset.shard import StagedShard
from synthgen.engine import ray_pool
from synthgen.engine.cluster import refuse_unreachable
from synthgen.engine.pool import FailedShard, StoppedError
from synthgen.engine.ray_pool import RayPool
from synthgen.engine.worker import Progress
from synthgen.storage.location import open_store
from tests.engine.stubs import Stub, Unloadable

pytestmark = pytest.mark.slow


def node_args(cpus: int) -> dict[str, Any]:
    """Return the arguments of a small node.

    With ports that are known beforehand it also starts on a busy machine.
    """
    ports = (
        "metrics_agent_port",
        "runtime_env_agent_port",
        "dashboard_agent_listen_port",
        "metrics_export_port",
    )
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in ports]
        for s in sockets:
            s.bind(("", 0))
        numbers = [s.getsockname()[1] for s in sockets]
    return {
        "num_cpus": cpus,
        "object_store_memory": 80 * 2**20,
        **dict(zip(ports, numbers, strict=True)),
    }


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Start a head without CPUs for workers, and one node with two."""
    import ray
    from ray.cluster_utils import Cluster

    quick_health_checks = {
        "health_check_initial_delay_ms": 100,
        "health_check_period_ms": 200,
        "health_check_failure_threshold": 3,
    }
    cluster = Cluster(
        initialize_head=True, head_node_args={**node_args(0), "_system_config": quick_health_checks}
    )
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.first = cluster.add_node(**node_args(2))
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_running_cluster_answers(cluster: Any) -> None:
    refuse_unreachable(cluster.address)


def test_each_shard_is_staged_or_failed_once_whatever_happens_to_actors(
    cluster: Any, make_job: Callable[..., Job], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Actors are stopped, killed, fail, reject an image, or work longer than the timeout."""
    plans = {0: "stop 1", 1: "fail", 2: "fail 2", 3: "work", 4: "die 1", 5: "reject"}
    for number, plan in plans.items():
        (tmp_path / str(number)).write_text(plan)
    pool = RayPool(
        make_job("images=24", "workers=2", "stall_timeout=1.5"), open_store(tmp_path), load=Stub
    )
    events = list(pool.run(range(12)))
    pool.close()
    staged = [
        e.shard if isinstance(e, FailedShard) else e.number
        for e in events
        if not isinstance(e, Progress)
    ]
    assert sorted(staged) == list(range(12))
    failed = {e.shard: e for e in events if isinstance(e, FailedShard)}
    assert {shard: f.attempts for shard, f in failed.items()} == {1: 3, 5: 1}
    assert failed[1].error == "ValueError: this shard is not to be made"
    assert "in fail" in failed[1].traceback
    assert "stubs.py" in failed[1].traceback
    assert failed[5].error == "RejectedImageError: samples [7]: blank after 3 attempts"
    reported = sum(e.images for e in events if isinstance(e, Progress))
    assert reported == 10, "the progress of failed attempts is taken back"
    attempts = {n: (tmp_path / f"{n}.tried").read_text().split() for n in range(12)}
    assert {n: len(pids) for n, pids in attempts.items() if len(pids) > 1} == {
        0: 2,
        1: 3,
        2: 3,
        4: 2,
    }
    assert all(len(set(pids)) == len(pids) for pids in attempts.values()), (
        "a shard is tried again on another actor"
    )
    assert "shard 000000: no progress for 1.5 s" in caplog.text


def test_a_new_node_gets_work_and_a_shard_of_a_lost_node_is_retried(
    cluster: Any, make_job: Callable[..., Job], tmp_path: Path
) -> None:
    """More workers are wanted than fit; those that are placed on a node work meanwhile."""

    def shards() -> Iterator[int]:
        """Yield shards until the first node is lost, and a few more."""
        remaining = 10
        for number in range(2000):
            (tmp_path / str(number)).write_text("nap")
            yield number
            remaining -= cluster.first is None
            if not remaining:
                return

    pool = RayPool(
        make_job("images=4000", "workers=[1, 4]", "max_shard_attempts=1"),
        open_store(tmp_path),
        load=Stub,
    )
    numbers = []
    nodes = []
    added = False
    for event in pool.run(shards()):
        assert not isinstance(event, FailedShard)
        if isinstance(event, StagedShard):
            numbers.append(event.number)
            nodes.append({actor.node for actor in pool.actors if actor.node})
            if not added:
                assert len(pool.actors) == 4
                cluster.add_node(**node_args(2))
                added = True
            elif cluster.first is not None and len(nodes[-1]) == 2:
                cluster.remove_node(cluster.first, allow_graceful=False)
                cluster.first = None
    pool.close()
    assert sorted(numbers) == list(range(len(numbers)))
    assert len(nodes[0]) == 1
    assert cluster.first is None, "the new node got work"
    assert nodes[-1]
    assert nodes[-1] != nodes[0]


def test_the_token_for_the_hub_reaches_the_workers_and_no_file(
    cluster: Any,
    make_job: Callable[..., Job],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = f"hf_{uuid.uuid4().hex}"
    monkeypatch.setenv("HF_TOKEN", token)
    (tmp_path / "0").write_text("token")
    job = make_job("images=2", "workers=1", f"pipeline={{method: mixture, model: {checkpoint}}}")
    pool = RayPool(job, open_store(tmp_path), load=Stub)
    list(pool.run([0]))
    pool.close()
    received = (tmp_path / "token").read_text()
    assert received == hashlib.sha256(token.encode()).hexdigest()
    logs = Path(cluster.head_node.get_session_dir_path()) / "logs"
    files = [path for path in (*logs.rglob("*"), *tmp_path.rglob("*")) if path.is_file()]
    assert files
    assert not [path for path in files if token.encode() in path.read_bytes()]


def test_the_run_ends_if_workers_do_not_start(
    cluster: Any, make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pool, "FAILED_STARTS", 2)
    pool = RayPool(make_job("workers=1"), open_store(tmp_path), load=Unloadable)
    with pytest.raises(
        StoppedError, match="workers do not start: FileNotFoundError: no such model"
    ):
        list(pool.run(range(3)))
    pool.close()
