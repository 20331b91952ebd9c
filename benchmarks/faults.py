#!/usr/bin/env python3
"""Inject faults into runs, and compare the finished datasets with that of an undisturbed run.

usage: benchmarks/faults.py [--seed 0] [--json]
rows:
  commit     SIGKILL before one of the driver's file operations, spread over all those of a run
  driver     SIGKILL to the driver at a random moment
  ray driver, actor, node
             SIGKILL to one of these at a random moment, on a Ray cluster whose nodes are on this
             machine (a node is killed by `remove_node(allow_graceful=False)`)
  stalled    SIGSTOP to an actor and its node of this cluster, for longer than the stall timeout;
             SIGCONT when other actors have made all shards
  woken      SIGSTOP to a worker at a random moment; SIGCONT when another run has committed its
             shards
Each run is resumed until it is finished. The table gives the number of runs, lost and duplicate
samples, runs whose bytes are all equal to those of the undisturbed run, and faults that `check`
finds. A run that ends before its fault is repeated.
  damaged    100 truncations and 100 flipped bits of committed tars and tables, and how many of them
             `check` finds
  changed    20 changes of the job, and how many are refused without a change of the dataset
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import format_table

from synthgen.config import Job, load_job
from synthgen.dataset.check import check_dataset
from synthgen.dataset.info import ChangedJobError
from synthgen.dataset.marker import list_committed_shards
from synthgen.engine.generation import run
from synthgen.engine.pool import find_local_device
from synthgen.engine.worker import Worker
from synthgen.storage.location import open_store

SMALL = [
    "pipeline=paste",
    "layout.canvas=[128, 128]",
    "layout.objects={dog: 3}",
    "layout.size=[24, 40]",
    "output.shard_size=2",
]
IMAGES = 16
RUNS = {"commit": 20, "driver": 10, "woken": 10}
RAY_RUNS = {"ray driver": 6, "actor": 8, "node": 6, "stalled": 3}
# With these settings Ray notices a lost node after 2 s instead of 15 s.
HEALTH_CHECKS = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 300}
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT
WRITE_EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.rmtree")
CHANGES = (
    "seed=1",
    "layout.gap=3",
    "layout.size=[24, 41]",
    "layout.size=[20, 40]",
    "layout.objects={dog: 2}",
    "layout.objects={dog: 4}",
    "layout.canvas=[128, 99]",
    "scene.background=sand",
    "scene.object=a dog",
    "pipeline.shadow=0.1",
    "pipeline.cutouts=heldout",
    "pipeline.grounds=heldout",
    "output.shard_size=3",
    "output.image_format=png",
    "output.quality=80",
    "images=4",
    "images=15",
    "categories={unicorn: 400}",
    "verify=detector",
    "pipeline=mixture-tiny",
)
fork = multiprocessing.get_context("fork")  # forked processes import nothing again


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with TemporaryDirectory() as folder:
        rows = FaultRuns(Path(folder), rng).run_all()
    print(json.dumps(rows, indent=1) if args.json else format_table(rows))


def make_job(out: Path, *overrides: str) -> Job:
    """Return a small job that writes to `out`, without Ray unless the overrides set workers."""
    keys = [f"images={IMAGES}", f"output.path={out}", "workers=0"]
    return load_job("100dogs", [*SMALL, *keys, *overrides])


class FaultRuns:
    """The runs of all rows, each in a new folder.

    Attributes:
        seconds: of the undisturbed run.
        expected: the files of the undisturbed run.
        steps: the number of file operations of a run.
    """

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder = folder
        self.rng = rng
        run(make_job(folder / "first"))  # later runs find its data in memory
        start = time.monotonic()
        run(make_job(folder / "undisturbed"))
        self.seconds = time.monotonic() - start
        self.expected = read_files(folder / "undisturbed")
        self.steps = self.count_steps()

    def run_all(self) -> dict[str, dict[str, Any]]:
        """Return all rows."""
        rows = {"commit": self.repeat("commit", self.kill_at_step)}
        rows["driver"] = self.repeat("driver", self.kill_driver)
        rows |= self.run_on_ray()
        rows["woken"] = self.repeat("woken", self.stop_worker)
        rows["damaged"] = self.damage_files()
        rows["changed"] = self.change_job()
        return rows

    def repeat(self, kind: str, run_with_fault: Callable[[Path, int], bool]) -> dict[str, Any]:
        """Return the figures of a kind of fault.

        Args:
            run_with_fault: makes a dataset in a folder, given the number of earlier runs, and
                returns whether the fault was early enough to interrupt the run.
        """
        row: Counter[str] = Counter()
        attempt = 0
        while row["runs"] < {**RUNS, **RAY_RUNS}[kind]:
            out = self.folder / f"{kind.replace(' ', '-')}-{attempt}"
            attempt += 1
            if not run_with_fault(out, row["runs"]):
                continue
            is_equal = read_files(out) == self.expected
            keys = list_sample_keys(out)
            row["runs"] += 1
            row["lost"] += IMAGES - len(set(keys))
            row["doubled"] += len(keys) - len(set(keys))
            row["equal"] += is_equal
            row["faults"] += len(check_dataset(open_store(out))[0])
            print(f"{out.name}: equal {is_equal}", file=sys.stderr)
        return {name: row[name] for name in ("runs", "lost", "doubled", "equal", "faults")}

    def count_steps(self) -> int:
        """Return the number of file operations of a whole run."""
        steps = fork.Value("i", 0)

        def store_number(number: int) -> None:
            steps.value = number

        def run_counted() -> None:
            call_before_steps(store_number)
            run(make_job(self.folder / "counted"))

        run_process(run_counted)
        return int(steps.value)

    def kill_at_step(self, out: Path, number: int) -> bool:
        """Kill a run before a file operation.

        The operations of all runs are evenly spread, with a random offset.
        """
        last_step = 1 + int((number + self.rng.random()) / RUNS["commit"] * self.steps)

        def kill_at_last_step(step: int) -> None:
            if step == last_step:
                os.kill(os.getpid(), signal.SIGKILL)

        def run_and_kill() -> None:
            call_before_steps(kill_at_last_step)
            run(make_job(out))

        was_running = run_process(run_and_kill) == -signal.SIGKILL
        run(make_job(out))
        return was_running

    def kill_driver(self, out: Path, number: int) -> bool:
        """Kill a run at a random moment."""
        child = start_process(partial(run, make_job(out)))
        time.sleep(self.rng.random() * self.seconds)
        was_running = child.is_alive()
        child.kill()
        child.join()
        run(make_job(out))
        return was_running

    def stop_worker(self, out: Path, number: int) -> bool:
        """Stop a worker at a random moment, and continue it after another run."""
        job = make_job(out)

        def make_all_shards() -> None:
            worker = Worker(job, open_store(out), find_local_device(job))
            for shard in range(job.shards):
                list(worker.make_shard(shard))

        child = start_process(make_all_shards)
        time.sleep(self.rng.random() * self.seconds)
        was_running = child.is_alive()
        send_signal(child.pid, signal.SIGSTOP)
        run(job)
        send_signal(child.pid, signal.SIGCONT)
        child.join()
        return was_running

    def damage_files(self) -> dict[str, Any]:
        """Return the figures of truncations and flipped bits, each undone after `check`."""
        out = self.folder / "damaged"
        run(make_job(out, "images=6"))
        files = [*(out / "shards").glob("*.tar"), *(out / "shards").glob("*.parquet")]
        files.sort()
        runs = 200
        detected = 0
        for number in range(runs):
            path = self.rng.choice(files)
            data = path.read_bytes()
            position = self.rng.randrange(len(data))
            flipped = bytearray(data)
            flipped[position] ^= 1 << self.rng.randrange(8)
            path.write_bytes(data[:position] if number % 2 else flipped)
            detected += bool(check_dataset(open_store(out))[0])
            path.write_bytes(data)
        faults = len(check_dataset(open_store(out))[0])
        return {"runs": runs, "found": detected, "faults": faults}

    def change_job(self) -> dict[str, Any]:
        """Return the figures of changed jobs, which are run on the undisturbed dataset."""
        out = self.folder / "undisturbed"
        refused = 0
        for change in CHANGES:
            try:
                run(make_job(out, change))
            except ChangedJobError:
                refused += read_files(out) == self.expected
        return {"runs": len(CHANGES), "refused": refused}

    def run_on_ray(self) -> dict[str, dict[str, Any]]:
        """Return the rows that need a cluster; all of them use the same one."""
        pipe, child_pipe = fork.Pipe()
        process = start_process(partial(serve_cluster, child_pipe))
        rows = {}
        try:
            cluster = LocalCluster(pipe, str(pipe.recv()), process)
            for kind in RAY_RUNS:
                rows[kind] = self.repeat(kind, partial(self.disturb_on_ray, kind, cluster))
        finally:
            pipe.send("stop")
            process.join(60)
        return rows

    def disturb_on_ray(self, kind: str, cluster: "LocalCluster", out: Path, number: int) -> bool:
        """Run a job on two nodes, with a fault at a random moment after its first shard."""
        job = make_job(out, "workers=2", "stall_timeout=2")
        child = start_process(partial(run, job, cluster.address))
        while child.is_alive() and not list_committed_shards(open_store(out)):
            time.sleep(0.01)
        time.sleep(self.rng.random() * self.seconds / 2)
        actors = cluster.list_actors()
        actor = self.rng.choice(actors) if actors else None
        was_running = child.is_alive() and actor is not None

        def is_finished() -> bool:
            return not child.is_alive() or len(list_committed_shards(open_store(out))) == job.shards

        if kind == "ray driver":
            child.kill()
        elif kind == "node":
            cluster.replace_node()
        elif kind == "actor":
            send_signal(actor, signal.SIGKILL)
        elif was_running:
            stop_actor(actor, is_finished)
        child.join()
        run_process(partial(run, job, cluster.address))
        return was_running


class LocalCluster:
    """A Ray cluster that `serve_cluster` runs in a child process."""

    def __init__(self, pipe: Connection, address: str, process: BaseProcess) -> None:
        self.pipe = pipe
        self.address = address
        self.process = process

    def replace_node(self) -> None:
        """Kill a node, add another one, and wait until this is done."""
        self.pipe.send("node")
        self.pipe.recv()

    def list_actors(self) -> list[int]:
        """Return the process ids of the workers of a job."""
        pids = list_descendants(int(self.process.pid or 0))
        return [pid for pid in pids if read_command(pid).startswith("ray::Actor")]


def serve_cluster(pipe: Connection) -> None:
    """Run a cluster of a head and two nodes with a CPU each, until the pipe says "stop".

    The address is sent through the pipe. At each "node" the older node is killed, and a new node
    joins.
    """
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 80 * 2**20}
    head = {"num_cpus": 0, "_system_config": HEALTH_CHECKS, **memory}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, **memory) for _ in range(2)]
    pipe.send(cluster.address)
    while pipe.recv() == "node":
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
        nodes.append(cluster.add_node(num_cpus=1, **memory))
        pipe.send("done")
    cluster.shutdown()


def call_before_steps(function: Callable[[int], None]) -> None:
    """Call a function with the number of each file operation of this process, before it happens."""
    steps = 0

    def count_step(event: str, args: tuple[Any, ...]) -> None:
        nonlocal steps
        is_step = event in WRITE_EVENTS
        if event == "open" and isinstance(args[2], int):
            is_step = bool(args[2] & WRITE_FLAGS)
        if is_step:
            steps += 1
            function(steps)

    sys.addaudithook(count_step)


def start_process(function: Callable[[], Any]) -> BaseProcess:
    """Start a function in a new process, whose standard output goes to standard error."""

    def run_function() -> None:
        os.dup2(2, 1)
        function()

    child = fork.Process(target=run_function)
    child.start()
    return child


def run_process(function: Callable[[], Any]) -> int | None:
    """Run a function in a new process, and return the exit code."""
    child = start_process(function)
    child.join()
    return child.exitcode


def send_signal(pid: int | None, number: int) -> None:
    """Send a signal to a process that may have ended."""
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def stop_actor(actor: int | None, is_finished: Callable[[], bool]) -> None:
    """Stop an actor until a condition is true.

    Its node is stopped first and continued last, because it would kill the actor when the driver
    requests it.
    """
    processes = [read_parent(actor), actor]
    for pid in processes:
        send_signal(pid, signal.SIGSTOP)
    while not is_finished():
        time.sleep(0.05)
    for pid in reversed(processes):
        time.sleep(1)
        send_signal(pid, signal.SIGCONT)


def read_parent(pid: int | None) -> int:
    """Return the process id of the parent of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    return int(fields.split()[1])


def list_descendants(pid: int) -> list[int]:
    """Return the process ids of the children of a process, and of their children."""
    descendants = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in file.read_text().split():
            descendants += [int(child), *list_descendants(int(child))]
    return descendants


def read_command(pid: int) -> str:
    """Return the command line of a process, or "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def read_files(out: Path) -> dict[str, bytes]:
    """Return the files of a dataset whose bytes only depend on the job.

    These are all files but the markers, which contain times, the dataset card, and files that
    contain the name of the folder.
    """
    paths = [*(out / "shards").glob("*.tar"), *(out / "shards").glob("*.parquet")]
    for name in (
        "annotations/instances.json",
        "manifest.parquet",
        "index.json",
        "contact_sheet.jpg",
    ):
        if (out / name).exists():
            paths.append(out / name)
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(paths)}


def list_sample_keys(out: Path) -> list[str]:
    """Return the names of the JSON files in all tars of a dataset, one for each sample."""
    names = []
    for path in (out / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            names += [name for name in tar.getnames() if name.endswith(".json")]
    return names


if __name__ == "__main__":
    main()
