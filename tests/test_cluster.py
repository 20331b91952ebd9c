"""cluster.yaml and deploy/, checked by Ray's own code and launched on an emulated EC2."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pytest
import ray
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
LAUNCHED = ["cluster.yaml", "deploy/local.yaml"]
REGION = "us-east-1"
NOTICE = 90  # seconds in which a worker must finish its shard


def read(name: str) -> dict[str, Any]:
    """Return the last document of a YAML file of the repository, with CloudFormation's tags."""
    return list(YAML().load_all(ROOT / name))[-1]


def plain(data: Any) -> Any:
    """Return dicts, lists, strings and numbers, as Ray's own reader does."""
    return json.loads(json.dumps(data))


def prepared(name: str) -> dict[str, Any]:
    """Return a configuration as Ray's launcher completes it, without the resources from AWS."""
    config: dict[str, Any] = prepare_config(plain(read(name)))
    for node in config["available_node_types"].values():
        node.setdefault("resources", {})
    return config


def pinned(package: str) -> str:
    """Return the version of a package in constraints.txt."""
    match = re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert match, package
    return match[1]


def worker_group(job: dict[str, Any]) -> dict[str, Any]:
    """Return the only group of workers of a RayJob."""
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return group


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_accepts_the_cluster(name: str) -> None:
    validate_config(prepared(name))


def test_ray_refuses_an_unknown_key() -> None:
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        validate_config(prepared("cluster.yaml") | {"idle_timeout_minute": 5})


@pytest.mark.parametrize("name", LAUNCHED)
def test_file_mounts_exist_and_are_small_and_complete(name: str) -> None:
    mounts = {remote: ROOT / local for remote, local in read(name)["file_mounts"].items()}
    assert all(
        remote == f"~/synthgen/{local.relative_to(ROOT)}" and local.exists()
        for remote, local in mounts.items()
    )
    needed = {
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "NOTICE",
        "synthgen",
        "jobs",
        "layouts",
        "pipelines",
    }
    assert {local.name for local in mounts.values()} == needed
    files = [
        f
        for local in mounts.values()
        for f in ([local] if local.is_file() else local.rglob("*"))
        if f.is_file()
    ]
    assert sum(f.stat().st_size for f in files if "__pycache__" not in f.parts) < 100e6


def test_the_two_clusters_get_the_same_files_and_the_same_package() -> None:
    aws, local_cluster = (read(name) for name in LAUNCHED)
    for key in ("file_mounts", "rsync_exclude"):
        assert aws[key] == local_cluster[key]
    assert (
        aws["setup_commands"][1:] == local_cluster["setup_commands"][1:]
    )  # only the installation of Python's venv differs


@pytest.mark.parametrize("name", LAUNCHED)
def test_nodes_install_the_pinned_ray(name: str) -> None:
    assert any(
        "pip install -q -c constraints.txt -e '.[cluster]'" in command
        for command in read(name)["setup_commands"]
    )
    assert pinned("ray") == ray.__version__


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_node_may_open_many_files(name: str) -> None:
    config = read(name)
    for kind in ("head", "worker"):
        assert all(
            "ulimit -n 65536" in c for c in config[f"{kind}_start_ray_commands"] if "ray start" in c
        )


def test_workers_scale_from_zero_and_the_head_runs_none() -> None:
    config = read("cluster.yaml")
    head = config["available_node_types"]["head"]
    gpu = config["available_node_types"]["gpu"]
    assert head["resources"] == {"CPU": 0}
    assert (head["max_workers"], gpu["min_workers"], gpu["max_workers"]) == (
        0,
        0,
        config["max_workers"],
    )


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Emulate EC2 and IAM with the two instance profiles, and use another home folder for keys."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        iam = boto3.client("iam", REGION)
        for profile in ("synthgen-head", "synthgen-worker"):
            iam.create_instance_profile(InstanceProfileName=profile)
        yield


@pytest.mark.usefixtures("aws")
def test_ray_launches_the_nodes_on_ec2() -> None:
    config = bootstrap_aws(prepared("cluster.yaml"))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    nodes = {}
    for name, node in config["available_node_types"].items():
        (nodes[name],) = provider.create_node(
            node["node_config"], {"ray-node-type": name}, 1
        ).values()
    head = nodes["head"]
    gpu = nodes["gpu"]
    assert head.iam_instance_profile["Arn"].endswith("/synthgen-head")
    assert gpu.iam_instance_profile["Arn"].endswith("/synthgen-worker")
    assert (head.instance_lifecycle, gpu.instance_lifecycle) == (None, "spot")
    assert head.key_name == gpu.key_name == f"ray-autoscaler_{REGION}"
    assert [g["GroupName"] for g in gpu.security_groups] == ["ray-autoscaler-synthgen"]
    assert "ubuntu-24.04" in gpu.image_id  # its Python is 3.12: requires-python is >=3.11


def test_the_roles_file_creates_the_profiles_of_the_cluster() -> None:
    resources = read("deploy/aws-roles.yaml")["Resources"]
    created = {
        r["Properties"]["InstanceProfileName"]
        for r in resources.values()
        if r["Type"] == "AWS::IAM::InstanceProfile"
    }
    nodes = read("cluster.yaml")["available_node_types"].values()
    assert created == {node["node_config"]["IamInstanceProfile"]["Name"] for node in nodes}


def test_ray_reads_the_kubernetes_cluster() -> None:
    job = plain(read("deploy/rayjob.yaml"))
    cluster = {
        "metadata": {"name": "synthgen", "namespace": "default"},
        "spec": job["spec"]["rayClusterSpec"],
    }
    nodes = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    assert (nodes["headgroup"]["resources"]["CPU"], nodes["headgroup"]["max_workers"]) == (0, 0)
    assert (nodes["gpu"]["min_workers"], nodes["gpu"]["max_workers"]) == (0, 8)
    assert (nodes["gpu"]["resources"]["GPU"], nodes["gpu"]["resources"]["CPU"]) == (1, 3)


def test_the_kubernetes_job_stops_its_cluster_and_resumes_from_its_output() -> None:
    account, job = YAML().load_all(ROOT / "deploy/rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    worker = worker_group(job)["template"]["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["backoffLimit"] > 0
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"]
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    for pod in (head, worker):  # required by autoscaler v2
        assert (pod["serviceAccountName"], pod["restartPolicy"]) == (
            account["metadata"]["name"],
            "Never",
        )
    assert worker["terminationGracePeriodSeconds"] > NOTICE
    script, recipe, output, *_ = spec["entrypoint"].split()[1:]
    assert [
        (ROOT / name.removeprefix("/home/ray/synthgen/")).is_file() for name in (script, recipe)
    ] == [True, True]
    assert output.startswith("output.path=s3://")


def test_container_images_have_the_pinned_ray() -> None:
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    assert f"FROM rayproject/ray:{pinned('ray')}-py312\n" in dockerfile
    assert read("deploy/rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == pinned("ray")
    mounts = read("cluster.yaml")["file_mounts"].values()
    copied = {
        source
        for line in re.findall(r"^COPY --\S+ (.+) \S+$", dockerfile, re.MULTILINE)
        for source in line.split()
    }
    assert copied == set(mounts)
