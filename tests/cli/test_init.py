"""The job that `synthgen init` writes is valid, has all keys, and runs."""

import json
import os
from pathlib import Path

import pytest

from synthgen import cli
from synthgen.assets import ASSETS
from synthgen.config import Job, OutputSpec, load_job
from synthgen.scenes.camera import CameraSpec
from synthgen.scenes.scene import SceneSpec
from synthgen.yamlfile import parse_yaml


def test_init_writes_a_valid_job_with_all_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "zoo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": "jobs/zoo.yaml"}
    text = Path("jobs/zoo.yaml").read_text()
    job = load_job("zoo")
    assert (job.name, job.output.path) == ("zoo", "out/zoo")
    written = parse_yaml(text, "zoo").data
    assert set(written) == set(Job.model_fields) - {"spoken"}
    assert set(written["scene"]) == set(SceneSpec.model_fields)
    assert set(written["output"]) >= set(OutputSpec.model_fields) - {"shared"}
    effects = ""
    for line in text.splitlines():
        if line.startswith("  #   "):
            effects += line.strip().removeprefix("# ") + "\n"
    camera = CameraSpec.model_validate(parse_yaml(effects, "camera").data)
    assert set(camera.effects()) == set(CameraSpec.model_fields)
    assert cli.main(["init", "zoo"]) == 2
    assert "exists already; give another name" in capsys.readouterr().err
    assert Path("jobs/zoo.yaml").read_text() == text
    assert cli.main(["init", "../zoo"]) == 2
    assert cli.main(["init", "100dogs"]) == 2
    assert os.listdir("jobs") == ["zoo.yaml"]
    assert not (tmp_path.parent / "zoo.yaml").exists()


def test_the_written_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init"]) == 0
    assert cli.main(["run", "my-dogs", "images=1", "pipeline=paste", "workers=0", "-q"]) == 0
    assert (tmp_path / "out/my-dogs/shards/000000.tar").is_file()


def test_the_template_ships_with_the_package() -> None:
    assert (ASSETS / "job.yaml").is_file()
