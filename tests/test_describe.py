"""`init` and `describe`: what a new user reads first is true."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from synthgen import cli
from synthgen.assets import ASSETS
from synthgen.camera import CameraSpec
from synthgen.commands.catalogue import all_names
from synthgen.config import Job, OutputSpec, load_job
from synthgen.describe import describe
from synthgen.scene import SceneSpec
from synthgen.yamlfile import parse_yaml


def test_everything_that_is_listed_is_described() -> None:
    for name in all_names():
        for description in describe(name):
            assert description.text, name
            assert description.parameters, name
            assert "\n".join(description.lines()).startswith(f"{name}: {description.kind}")
            assert any(p.description for p in description.parameters)


def test_a_method_with_types_defaults_ranges_source_and_checkpoint() -> None:
    (mixture,) = describe("mixture")
    keys = {p.name: p for p in mixture.parameters}
    assert (keys["steps"].type, keys["steps"].default, keys["steps"].range) == ("integer", 20, "1 to 1000")
    assert keys["background_overlap"].range == "0 to 0.9"
    assert keys["background_weight"].range == "more than 0"
    assert keys["mask"].type == "box | gaussian | quartic | constant"
    assert keys["window"].type == "integer | null"
    assert keys["guidance_interval"].type == "[number, number]"
    assert {"arXiv 2302.02412", "arXiv 2404.07724"} <= set(mixture.sources)
    assert mixture.checkpoints == ["pipeline.model, synthgen-tiny unless given: embedded checkpoint, folder, or Hugging Face id"]
    assert any("1708.01642" in source for source in describe("paste")[0].sources)
    recipe = describe("mixture-sd15")[0]
    assert (recipe.kind, recipe.values["method"], recipe.checkpoints) == ("pipeline", "mixture", [recipe.values["model"]])


def test_inner_keys_are_told_with_their_own_ranges() -> None:
    keys = {p.name: p for p in describe("100dogs")[0].parameters}
    kinds = {d.kind for d in describe("100dogs")}
    assert kinds == {"layout", "job"}
    keys = {p.name: p for d in describe("100dogs") if d.kind == "job" for p in d.parameters}
    assert keys["output.quality"].range == "1 to 100"
    assert (keys["scene.camera.jpeg.quality"].range, keys["scene.camera.exposure.stops"].range) == ("1 to 100", "-6 to 6")


def test_describe_prints_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["describe", "scatter", "--json"]) == 0
    (data,) = json.loads(capsys.readouterr().out)["descriptions"]
    assert (data["kind"], data["name"]) == ("sampler", "scatter")
    assert "  seed" in "\n".join(describe("train-tiny")[0].lines())
    assert "default 0\n" in "\n".join(describe("train-tiny")[0].lines())
    assert {"name", "type", "default", "required", "range", "description"} == set(data["parameters"][0])
    assert cli.main(["describe", "scater"]) == 2
    assert "did you mean 'scatter'?" in capsys.readouterr().err


def test_init_writes_a_job_that_is_valid_and_says_all_keys(
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
    effects = "\n".join(line.strip().removeprefix("# ") for line in text.splitlines() if line.startswith("  #   "))
    assert set(CameraSpec.model_validate(parse_yaml(effects, "camera").data).effects()) == set(CameraSpec.model_fields)
    assert cli.main(["init", "zoo"]) == 2
    assert "is there already; give another name" in capsys.readouterr().err
    assert Path("jobs/zoo.yaml").read_text() == text
    assert cli.main(["init", "../zoo"]) == cli.main(["init", "100dogs"]) == 2
    assert os.listdir("jobs") == ["zoo.yaml"]
    assert not (tmp_path.parent / "zoo.yaml").exists()


def test_the_written_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init"]) == 0
    assert cli.main(["run", "my-dogs", "images=1", "pipeline=paste", "workers=0", "-q"]) == 0
    assert (tmp_path / "out/my-dogs/shards/000000.tar").is_file()


def test_the_shell_is_told_what_could_come_next() -> None:
    line = "synthgen describe regional"
    shell = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    code = "import os,sys; sys.argv=['synthgen']; os.dup2(1, 8); from synthgen.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **shell}, capture_output=True, text=True)
    assert done.stdout.split("\n") == ["regional-attention-sd15", "regional-attention-tiny", "regional_attention"]


def test_the_template_ships_with_the_package() -> None:
    assert (ASSETS / "job.yaml").is_file()
