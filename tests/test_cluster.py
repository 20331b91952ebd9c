"""cluster.yaml and what is in deploy/, against Ray's own schema and code, and launched on an emulated EC2."""

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
NOTICE = 90  # seconds that a worker has to end its shard in


def read(name: str) -> dict[str, Any]:
    """The last document of a YAML file of the repository; CloudFormation's tags stay what they are."""
    return list(YAML().load_all(ROOT / name))[-1]


def plain(data: Any) -> Any:
    """Dicts, lists, strings and numbers alone, as Ray's own reader gives them."""
    return json.loads(json.dumps(data))


def prepared(name: str) -> dict[str, Any]:
    """As Ray's launcher completes it, but for what it asks AWS about an instance type."""
    config: dict[str, Any] = prepare_config(plain(read(name)))
    for node in config["available_node_types"].values():
        node.setdefault("resources", {})
    return config


def pinned(package: str) -> str:
    """The version in constraints.txt."""
    found = re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, package
    return found[1]


def worker_group(job: dict[str, Any]) -> dict[str, Any]:
    """The one group of workers of a RayJob."""
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return group


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_accepts_the_cluster(name: str) -> None:
    validate_config(prepared(name))


def test_ray_refuses_an_unknown_key() -> None:
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        validate_config(prepared("cluster.yaml") | {"idle_timeout_minute": 5})


@pytest.mark.parametrize("name", LAUNCHED)
def test_mounts_are_there_and_small_and_hold_what_is_installed(name: str) -> None:
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
    aws, own = (read(name) for name in LAUNCHED)
    for key in ("file_mounts", "rsync_exclude"):
        assert aws[key] == own[key]
    assert (
        aws["setup_commands"][1:] == own["setup_commands"][1:]
    )  # only how Python's venv gets there differs


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


def test_workers_come_from_zero_and_the_head_paints_nothing() -> None:
    config = read("cluster.yaml")
    head, gpu = config["available_node_types"]["head"], config["available_node_types"]["gpu"]
    assert head["resources"] == {"CPU": 0}
    assert (head["max_workers"], gpu["min_workers"], gpu["max_workers"]) == (
        0,
        0,
        config["max_workers"],
    )


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """EC2 and IAM in this process, with the two instance profiles; keys are written to a home of their own."""
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
    head, gpu = nodes["head"], nodes["gpu"]
    assert head.iam_instance_profile["Arn"].endswith("/synthgen-head")
    assert gpu.iam_instance_profile["Arn"].endswith("/synthgen-worker")
    assert (head.instance_lifecycle, gpu.instance_lifecycle) == (None, "spot")
    assert head.key_name == gpu.key_name == f"ray-autoscaler_{REGION}"
    assert [g["GroupName"] for g in gpu.security_groups] == ["ray-autoscaler-synthgen"]
    assert "ubuntu-24.04" in gpu.image_id  # its Python is 3.12: requires-python is >=3.11


def test_roles_make_the_profiles_that_the_cluster_names() -> None:
    resources = read("deploy/aws-roles.yaml")["Resources"]
    made = {
        r["Properties"]["InstanceProfileName"]
        for r in resources.values()
        if r["Type"] == "AWS::IAM::InstanceProfile"
    }
    nodes = read("cluster.yaml")["available_node_types"].values()
    assert made == {node["node_config"]["IamInstanceProfile"]["Name"] for node in nodes}


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


def test_the_kubernetes_job_ends_its_cluster_and_goes_on_by_its_output() -> None:
    account, job = YAML().load_all(ROOT / "deploy/rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec, worker = job["spec"], worker_group(job)["template"]["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["backoffLimit"] > 0
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"]
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    for pod in (head, worker):  # autoscaler v2 asks for Never
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


def test_images_hold_the_pinned_ray() -> None:
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
