"""Jobs that are sent to a Ray cluster as a user sends them.

`ray submit --start` sends them over ssh to one's own machines, `ray job submit` over HTTP. Two
"machines" are on loopback: a private sshd gives 127.0.0.1 (head) and 127.0.0.2 (worker) a home
folder each. Ray's launcher copies the files, starts the head, whose autoscaler starts the worker,
and runs the script. Everything is as in deploy/local.yaml, except for ports, addresses, and the
installation, which is replaced by the environment of the tests.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from ruamel.yaml import YAML

from synthgen.dataset.check import check_dataset
from synthgen.storage.location import open_store

ROOT = Path(__file__).parents[1]
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:" + os.environ.get("PATH", ""))
MISSING = [
    name
    for name, path in (
        ("openssh-server", SSHD),
        ("ssh", shutil.which("ssh")),
        ("rsync", shutil.which("rsync")),
    )
    if not path
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (docs/how-to/cluster.md#tests)"
    ),
]
HEAD = "127.0.0.1"
WORKER = "127.0.0.2"
TRIES = 3  # on a busy machine a head may take longer than the 30 s that Ray waits for it
MARK = "SYNTHGEN_TEST_CLUSTER"  # in the environment of every process that the cluster starts
SMALL = ["images=2", "output.shard_size=1", "pipeline=paste", "workers=1"]
SHARED = "output.shared=true"  # both machines are this one


@dataclass
class Cluster:
    """The cluster, and the environment of the laptop that calls the launcher."""

    folder: Path
    dashboard: int
    env: dict[str, str]

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the `ray` of the environment of the tests, in the root of this repository."""
        command = [str(Path(sys.executable).with_name("ray")), *arguments]
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.env,
            text=True,
            capture_output=True,
            timeout=900,
            check=False,
        )

    def submit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.ray("submit", *arguments)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(
        mkdtemp(prefix="sg", dir="/tmp")
    )  # the paths of Ray's sockets below it must be short
    ssh, gcs, dashboard = free_ports(3)
    daemon = start_sshd(folder, ssh)
    try:
        write_config(folder, gcs, dashboard)
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        env |= {
            "PATH": f"{folder}/bin:{env['PATH']}",
            "TMPDIR": str(folder),
            "RAY_TMPDIR": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        yield Cluster(folder, dashboard, env)
    finally:
        daemon.terminate()
        daemon.wait()
        end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Return ports that no server listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def agent_ports() -> str:
    """Return options with the ports of a node's agents.

    If two nodes use the same ports, one has no agents, and no jobs can be submitted to it.
    """
    names = ("dashboard-agent-listen-port", "metrics-export-port", "runtime-env-agent-port")
    return " ".join(
        f"--{name}={port}" for name, port in zip(names, free_ports(len(names)), strict=True)
    )


def start_sshd(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start a private sshd with a new key; each of its addresses has its own home folder.

    The wrapper `bin/ssh` uses its port and key.
    """
    for name in ("host", "key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
        )
    session = folder / "session.sh"
    session.write_text(
        f"export {MARK}={folder} HOME={folder}/$(echo $SSH_CONNECTION | cut -d' ' -f3)\n"
        'mkdir -p $HOME && cd && eval "$SSH_ORIGINAL_COMMAND"\n'
    )
    settings = folder / "sshd_config"
    settings.write_text(
        f"Port {port}\nListenAddress {HEAD}\nListenAddress {WORKER}\nHostKey {folder}/host\n"
        f"AuthorizedKeysFile {folder}/key.pub\nPasswordAuthentication no\nUsePAM no\n"
        f"StrictModes no\nPidFile none\nForceCommand bash {session}\n"
    )
    wrapper = folder / "bin/ssh"
    wrapper.parent.mkdir()
    # ssh ignores HOME and takes "~" from the system, so the wrapper names the key for the worker.
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -p {port} -i {folder}/key "$@"\n')
    wrapper.chmod(0o755)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd needs it if root starts it
    daemon = subprocess.Popen([str(SSHD), "-D", "-E", folder / "sshd.log", "-f", settings])
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex((HEAD, port)) == 0:
                return daemon
        time.sleep(0.1)
    daemon.kill()
    raise AssertionError((folder / "sshd.log").read_text())


def write_config(folder: Path, gcs: int, dashboard: int) -> None:
    """Write deploy/local.yaml with these machines."""
    config: dict[str, Any] = YAML(typ="safe").load(ROOT / "deploy/local.yaml")
    config["cluster_name"] = folder.name
    config["provider"] |= {"head_ip": HEAD, "worker_ips": [WORKER]}
    config["auth"] = {"ssh_user": getuser(), "ssh_private_key": str(folder / "key")}
    path = f"{folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
    exports = (
        f"PATH={path} PYTHONPATH=~/synthgen RAY_TMPDIR={folder} AUTOSCALER_UPDATE_INTERVAL_S=1"
    )
    config["setup_commands"] = [f"echo 'export {exports}' > ~/.bashrc"]
    head = config["head_start_ray_commands"][-1]
    worker = config["worker_start_ray_commands"][-1]
    small = "--object-store-memory=100000000"
    head += f" --temp-dir={folder}/ray {small} --dashboard-port={dashboard} {agent_ports()}"
    worker += f" --node-ip-address={WORKER} --num-cpus=1 {small} {agent_ports()}"
    # `ray stop` is left out: it would stop every Ray of this machine
    config["head_start_ray_commands"] = [head.replace("6379", str(gcs))]
    config["worker_start_ray_commands"] = [worker.replace("6379", str(gcs))]
    YAML().dump(config, folder / "cluster.yaml")


def end_processes(folder: Path) -> None:
    """Kill the processes that the cluster started, and no others."""
    mark = f"{MARK}={folder}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has exited, or belongs to another user


def assert_holds(out: Path, images: int) -> None:
    faults, counts = check_dataset(open_store(out))
    assert (faults, counts["images"]) == ([], images)


def test_ray_submit_starts_the_cluster_and_runs_the_job_on_its_worker(cluster: Cluster) -> None:
    config = str(cluster.folder / "cluster.yaml")
    out = cluster.folder / "out"
    for _ in range(TRIES):
        done = cluster.submit(
            "--start",
            config,
            "jobs/submit.py",
            "jobs/100dogs.yaml",
            f"output.path={out}",
            *SMALL,
            SHARED,
        )
        if "Failed to setup head node" not in done.stdout:
            break
        end_processes(cluster.folder)  # instead of `ray stop`
    assert done.returncode == 0, done.stdout + done.stderr
    assert_holds(out, 2)


def test_a_wrong_job_is_reported_and_fails(cluster: Cluster) -> None:
    done = cluster.submit(
        str(cluster.folder / "cluster.yaml"), "jobs/submit.py", "jobs/100dogs.yaml", "imags=2"
    )
    assert done.returncode != 0
    assert "imags" in done.stdout


def test_a_folder_that_machines_do_not_share_is_refused(cluster: Cluster) -> None:
    out = cluster.folder / "own"
    done = cluster.submit(
        str(cluster.folder / "cluster.yaml"),
        "jobs/submit.py",
        "jobs/100dogs.yaml",
        f"output.path={out}",
        *SMALL,
    )
    assert done.returncode != 0
    assert "is a folder, and the cluster has 2 nodes" in " ".join(done.stdout.split())
    assert not (out / "shards").exists()


def test_ray_job_submit_runs_on_the_running_cluster(cluster: Cluster) -> None:
    address = f"http://127.0.0.1:{cluster.dashboard}"
    out = cluster.folder / "job"
    script = ["python", "jobs/submit.py", "jobs/100dogs.yaml", f"output.path={out}", *SMALL, SHARED]
    done = cluster.ray("job", "submit", "--address", address, "--working-dir", ".", "--", *script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_holds(out, 2)
