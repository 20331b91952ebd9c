"""Two small datasets to export: an imported one and a generated one."""

import json
from pathlib import Path

import pytest

from synthgen.config import load_job
from synthgen.engine.generation import run
from synthgen.engine.importing import ImportSpec, import_dataset
from synthgen.formats.source import Source
from tests.conftest import SMALL_JOB
from tests.formats.sources import write_rich_coco


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images of a COCO file with values of every kind, in three shards."""
    folder = tmp_path_factory.mktemp("imported")
    source = Source("coco", write_rich_coco(folder / "source"))
    import_dataset(ImportSpec(source, folder / "out", shard_size=4))
    return folder / "out"


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images with four dogs or cats each, in five shards."""
    out = tmp_path_factory.mktemp("generated") / "out"
    layout = {**SMALL_JOB["layout"], "objects": {"dog": 2, "cat": 2}}
    job = {
        **SMALL_JOB,
        "images": 10,
        "layout": layout,
        "output": {"shard_size": 2, "path": str(out)},
    }
    (out.parent / "job.yaml").write_text(json.dumps(job))
    run(load_job(str(out.parent / "job.yaml"), []))
    return out
