#!/usr/bin/env python3
"""Nothing lost, nothing twice: runs that are killed and resumed, workers that hang and wake, files that are damaged.

usage: benchmarks/faults.py [--seed 0] [--json]
  commit     SIGKILL at one step of the driver's work on files, spread over all of a run's steps
  driver     SIGKILL to the driver at a random moment
  ray driver, actor, node   SIGKILL to one of these at a random moment, on a Ray cluster of nodes on this machine (a node:
             `remove_node(allow_graceful=False)`)
  stalled    SIGSTOP to an actor and its node there, past the stall limit; SIGCONT when others have made all shards
  woken      SIGSTOP to a worker at a random moment; SIGCONT when another run has committed its shards
Each is resumed until it is done, and held against the undisturbed run: samples lost and doubled, whether all bytes are equal, and
what `check` finds. A fault that came too late for its run is tried again.
  damaged    100 truncations and 100 flipped bits of committed tars and tables: how many `check` finds
  changed    20 changes of the job: how many are refused, with nothing changed
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
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import table

from synthgen.config import Job, load_job
from synthgen.dataset.check import check_dataset
from synthgen.dataset.info import ChangedJobError
from synthgen.dataset.marker import committed
from synthgen.engine.driver import run
from synthgen.engine.pool import local_device
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
QUICK = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 300,
}  # a lost node is noticed in 2 s instead of 15
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
STEPS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.rmtree")
CHANGES = (
    "seed=1", "layout.gap=3", "layout.size=[24, 41]", "layout.size=[20, 40]", "layout.objects={dog: 2}",
    "layout.objects={dog: 4}", "layout.canvas=[128, 99]", "scene.background=sand", "scene.object=a dog", "pipeline.shadow=0.1",
    "pipeline.cutouts=heldout", "pipeline.grounds=heldout", "output.shard_size=3", "output.image_format=png", "output.quality=80",
    "images=4", "images=15", "categories={unicorn: 400}", "verify=detector", "pipeline=mixture-tiny",
)  # fmt: skip
fork = multiprocessing.get_context("fork")  # the children need import nothing


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with TemporaryDirectory() as folder:
        results = Faults(Path(folder), rng).all()
    print(json.dumps(results, indent=1) if args.json else table(results))


def small(out: Path, *more: str) -> Job:
    return load_job(
        "100dogs", [*SMALL, f"images={IMAGES}", f"output.path={out}", "workers=0", *more]
    )


class Faults:
    """All the runs, in folders of their own."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        run(small(folder / "first"))  # loads what all others find in memory
        began = time.monotonic()
        run(small(folder / "undisturbed"))
        self.seconds, self.wanted = time.monotonic() - began, contents(folder / "undisturbed")
        self.steps = self.count_steps()

    def all(self) -> dict[str, dict[str, Any]]:
        rows = {
            "commit": self.judged("commit", self.at_step),
            "driver": self.judged("driver", self.at_moment),
        }
        rows |= self.on_ray()
        rows["woken"] = self.judged("woken", self.woken)
        return rows | {"damaged": self.damaged(), "changed": self.changed()}

    def judged(self, kind: str, strike: Callable[[Path, int], bool]) -> dict[str, Any]:
        """What came of runs that a fault struck; `strike` makes one, and says whether it was on when the fault came."""
        row: Counter[str] = Counter()
        for attempt in count():
            out = self.folder / f"{kind.replace(' ', '-')}-{attempt}"
            if strike(out, row["runs"]):
                found, keys = contents(out), sample_keys(out)
                row += Counter(
                    runs=1, lost=IMAGES - len(set(keys)), doubled=len(keys) - len(set(keys))
                )
                row += Counter(
                    equal=found == self.wanted, faults=len(check_dataset(open_store(out))[0])
                )
                print(f"{out.name}: equal {found == self.wanted}", file=sys.stderr)
            if row["runs"] == {**RUNS, **RAY_RUNS}[kind]:
                break
        return {name: row[name] for name in ("runs", "lost", "doubled", "equal", "faults")}

    def count_steps(self) -> int:
        """Steps that a whole run makes on files."""
        seen = fork.Value("i", 0)

        def counted() -> None:
            on_step(lambda number: setattr(seen, "value", number))
            run(small(self.folder / "counted"))

        finish(counted)
        return int(seen.value)

    def at_step(self, out: Path, number: int) -> bool:
        """Killed before a step; the steps are spread evenly, with a random shift."""
        step = 1 + int((number + self.rng.random()) / RUNS["commit"] * self.steps)

        def killed() -> None:
            on_step(lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == step else None)
            run(small(out))

        struck = finish(killed) == -signal.SIGKILL
        run(small(out))
        return struck

    def at_moment(self, out: Path, number: int) -> bool:
        child = begin(partial(run, small(out)))
        time.sleep(self.rng.random() * self.seconds)
        struck = child.is_alive()
        child.kill()
        child.join()
        run(small(out))
        return struck

    def woken(self, out: Path, number: int) -> bool:
        """A worker that is stopped while it makes a shard, and goes on after another one's was committed."""
        job = small(out)

        def stray() -> None:
            worker = Worker(job, open_store(out), local_device(job))
            for shard in range(job.shards):
                list(worker.make_shard(shard))

        child = begin(stray)
        time.sleep(self.rng.random() * self.seconds)
        struck = child.is_alive()
        send(child.pid, signal.SIGSTOP)
        run(job)
        send(child.pid, signal.SIGCONT)
        child.join()
        return struck

    def damaged(self) -> dict[str, Any]:
        """Truncations and flipped bits, each undone after it was looked for."""
        out = self.folder / "damaged"
        run(small(out, "images=6"))
        files = sorted(p for p in (out / "shards").iterdir() if p.suffix in (".tar", ".parquet"))
        row: Counter[str] = Counter()
        for i in range(200):
            path = self.rng.choice(files)
            whole = path.read_bytes()
            at = self.rng.randrange(len(whole))
            flipped = whole[:at] + bytes([whole[at] ^ 1 << self.rng.randrange(8)]) + whole[at + 1 :]
            path.write_bytes(whole[:at] if i % 2 else flipped)
            row += Counter(runs=1, found=bool(check_dataset(open_store(out))[0]))
            path.write_bytes(whole)
        return {
            "runs": row["runs"],
            "found": row["found"],
            "faults": len(check_dataset(open_store(out))[0]),
        }

    def changed(self) -> dict[str, Any]:
        out = self.folder / "undisturbed"
        refused = 0
        for change in CHANGES:
            try:
                run(small(out, change))
            except ChangedJobError:
                refused += contents(out) == self.wanted
        return {"runs": len(CHANGES), "refused": refused}

    def on_ray(self) -> dict[str, dict[str, Any]]:
        """The faults that need a cluster: one serves all."""
        there, here = fork.Pipe()
        keeper = begin(lambda: keep_cluster(here))
        try:
            cluster = _Cluster(there, str(there.recv()), keeper)
            return {
                kind: self.judged(kind, partial(self.struck_on_ray, kind, cluster))
                for kind in RAY_RUNS
            }
        finally:
            there.send("stop")
            keeper.join(60)

    def struck_on_ray(self, kind: str, cluster: "_Cluster", out: Path, number: int) -> bool:
        """One run on two nodes; a fault strikes at a random moment after its first shard."""
        job = small(out, "workers=2", "stall_timeout=2")
        child = begin(lambda: run(job, cluster.address))
        while child.is_alive() and not committed(open_store(out)):
            time.sleep(0.01)
        time.sleep(self.rng.random() * self.seconds / 2)
        actors = cluster.actors()
        victim = self.rng.choice(actors) if actors else None
        struck = child.is_alive() and victim is not None
        if kind == "ray driver":
            child.kill()
        elif kind == "node":
            cluster.tell("node")
        elif kind == "actor":
            send(victim, signal.SIGKILL)
        elif struck:
            pause(
                victim,
                lambda: not child.is_alive() or len(committed(open_store(out))) == job.shards,
            )
        child.join()
        finish(lambda: run(job, cluster.address))
        return struck


class _Cluster:
    """The keeper's end of the pipe."""

    def __init__(self, pipe: Connection, address: str, keeper: BaseProcess) -> None:
        self.pipe, self.address, self.keeper = pipe, address, keeper

    def tell(self, word: str) -> None:
        self.pipe.send(word)
        self.pipe.recv()

    def actors(self) -> list[int]:
        return [
            pid
            for pid in descendants(int(self.keeper.pid or 0))
            if command(pid).startswith("ray::Actor")
        ]


def keep_cluster(pipe: Connection) -> None:
    """A head and two nodes of one place each; at "node" one is lost and another joins."""
    from ray.cluster_utils import Cluster

    small_store = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": QUICK, **small_store}
    )
    nodes = [cluster.add_node(num_cpus=1, **small_store) for _ in range(2)]
    pipe.send(cluster.address)
    while pipe.recv() == "node":
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
        nodes.append(cluster.add_node(num_cpus=1, **small_store))
        pipe.send("done")
    cluster.shutdown()


def on_step(act: Callable[[int], None]) -> None:
    """Call `act` with the number of each step on files of this process, before the step."""
    steps = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal steps
        if event in STEPS or (event == "open" and isinstance(args[2], int) and args[2] & WRITES):
            steps += 1
            act(steps)

    sys.addaudithook(hook)


def begin(work: Callable[[], Any]) -> BaseProcess:
    """Work in a process of its own, whose words go to stderr."""

    def told() -> None:
        os.dup2(2, 1)
        work()

    child = fork.Process(target=told)
    child.start()
    return child


def finish(work: Callable[[], Any]) -> int | None:
    """The exit code of work in a process of its own."""
    child = begin(work)
    child.join()
    return child.exitcode


def send(pid: int | None, number: int) -> None:
    """Send a signal to a process that may be gone."""
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def pause(actor: int | None, until: Callable[[], bool]) -> None:
    """Stop an actor, and its node first, which would kill it when it is told to; wake them in the other order."""
    both = [parent(actor), actor]
    for pid in both:
        send(pid, signal.SIGSTOP)
    while not until():
        time.sleep(0.05)
    for pid in reversed(both):
        time.sleep(1)
        send(pid, signal.SIGCONT)


def parent(pid: int | None) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def descendants(pid: int) -> list[int]:
    children = [
        int(c)
        for task in Path(f"/proc/{pid}/task").glob("*/children")
        for c in task.read_text().split()
    ]
    return [found for child in children for found in (child, *descendants(child))]


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def contents(out: Path) -> dict[str, bytes]:
    """The files whose bytes depend on the job alone: all but markers (times), the card and what names the folder."""
    paths = [*(out / "shards").glob("*.tar"), *(out / "shards").glob("*.parquet")]
    paths += [
        out / name
        for name in (
            "annotations/instances.json",
            "manifest.parquet",
            "index.json",
            "contact_sheet.jpg",
        )
    ]
    return {
        str(path.relative_to(out)): path.read_bytes() for path in sorted(paths) if path.exists()
    }


def sample_keys(out: Path) -> list[str]:
    names = []
    for path in (out / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            names += [name for name in tar.getnames() if name.endswith(".json")]
    return names


if __name__ == "__main__":
    main()
