"""Jobs and recipes are read from files, the package and the command line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from synthgen import registry
from synthgen.config import ConfigError, Job, list_recipe_names, load_job, load_training
from tests.config.test_validation import GOOD


def test_overrides_reach_into_recipes(make_job: Callable[..., Job]) -> None:
    job = make_job(
        "images=9",
        "layout.canvas=[256, 192]",
        "layout.objects.dog=2",
        "pipeline.shadow=0.1",
        "scene.background=sand",
    )
    assert (job.images, job.layout.canvas, job.layout.names()) == (9, (256, 192), {"dog": True})
    data = job.to_dict()
    assert data["pipeline"]["shadow"] == 0.1
    assert data["scene"]["background"] == "sand"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "images",
            "command line: 'images': an override is key=value, such as images=1000 or "
            "pipeline.steps=12",
        ),
        ("images=-1", "command line: images: -1: input should be greater than or equal to 1"),
        ("layot.size=4", "command line: layot: unknown key; did you mean 'layout'?"),
        ("name.x=1", "command line: name.x: name is not a mapping"),
        (
            "images=[1",
            "command line: images:1: not YAML: expected ',' or ']', but got '<stream end>'",
        ),
    ],
)
def test_invalid_overrides_are_named(
    make_job: Callable[..., Job], override: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_job(override)
    assert caught.value.problems == [message]


def test_the_message_for_an_unknown_recipe_lists_the_known_ones(job_file: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"pipeline: pastes: no such pipeline; did you mean 'paste'\?; "
        r"there are: .*mixture-tiny, mixture-turbo, paste.*looked in",
    ):
        load_job(str(job_file), ["pipeline=pastes"])


def test_an_unknown_recipe_does_not_hide_other_problems(job_file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_job(
            str(job_file),
            ["pipeline=pastes", "pipeline.shadow=1", "images=0", "layout.size=[0, 9]"],
        )
    assert [problem.split(": ")[1] for problem in caught.value.problems] == [
        "pipeline",
        "layout.size",
        "images",
    ]


def test_a_path_without_a_dataset_is_reported_as_neither_job_nor_folder() -> None:
    with pytest.raises(
        ConfigError, match=r"^out/frist: no such job, and no such folder; there are: 100dogs"
    ):
        load_job("out/frist")


@pytest.mark.parametrize("name", ["../secret", "a/b", ".."])
def test_recipe_names_cannot_leave_their_folder(name: str) -> None:
    with pytest.raises(ConfigError, match="no such job"):
        load_job(name)


def test_numbers_are_read_as_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(GOOD.replace("method: paste", "method: paste\n  shadow: 1e-1"))
    assert load_job(str(path)).to_dict()["pipeline"]["shadow"] == 0.1


def test_aliases_cannot_expand_without_bound(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))
    path.write_text(f"a0: &a0 [x]\n{levels}\n")
    with pytest.raises(ConfigError, match="more than 100000 values"):
        load_job(str(path))


@pytest.mark.parametrize("name", list_recipe_names("job"))
def test_shipped_jobs_are_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"width": 64, "height": 64, "categories": ["ball"], "boxes": [[0, 0, 9, 9]]}
    (tmp_path / "captions.jsonl").write_text(json.dumps(row))  # as benchmarks/captions.py does
    for folder in ("my/rex", "my/bud"):  # named in train-dreambooth.yaml
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / folder / "1.png")
    monkeypatch.chdir(tmp_path)
    if name.startswith("train-"):
        overrides = ["vae=synthgen-tiny"] if name == "train-tiny" else []
        names = ("synthgen-tiny", "centernet-tiny", name.removeprefix("train-"))
        assert load_training(name, overrides).name in names
    else:
        assert load_job(name, ["pipeline=paste", "scene.backgrounds=null"]).name == name


def test_a_config_error_imports_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(GOOD.replace("method: paste", "method: mixture\n  stepz: 3"))
    code = (
        "import sys; from synthgen.cli.main import main\n"
        f"status = main(['run', {str(path)!r}])\n"
        "heavy = {'torch', 'ray', 'diffusers', 'transformers'}\n"
        "print(status, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.strip() == "2 []"
    message = f"synthgen: {path}:11: pipeline.stepz: unknown key; did you mean 'steps'?"
    assert done.stderr.strip() == message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["job.yaml"]


def test_other_methods_are_loaded_only_for_files_that_are_not_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job loads only its own method."""
    loaded: list[str] = []
    spec_class = registry.load_spec_class

    def record(kind: str, name: str) -> Any:
        loaded.append(name)
        return spec_class(kind, name)

    monkeypatch.setattr(registry, "load_spec_class", record)
    path = tmp_path / "job.yaml"
    path.write_text(GOOD)
    assert load_job(str(path)).pipeline.method == "paste"
    assert loaded == ["scatter", "paste"]
    path.write_text("images: 4\n")
    with pytest.raises(ConfigError) as caught:
        load_job(str(path))
    assert loaded[2:] == registry.list_names("method")
    assert f"{path}:1: version: missing; this key must be given" in caught.value.problems
