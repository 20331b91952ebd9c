"""cluster.yaml against Ray's own schema."""

import json
from pathlib import Path

import jsonschema
import ray
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]


def test_cluster_file_is_valid() -> None:
    cluster = YAML(typ="safe").load(ROOT / "cluster.yaml")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert sum(node["max_workers"] for node in cluster["available_node_types"].values()) <= cluster["max_workers"]
