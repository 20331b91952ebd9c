"""The public names of synthgen are documented, and are loaded when they are first used."""

import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import synthgen

NAMES = [
    "ConfigError",
    "ExportSpec",
    "InputError",
    "Job",
    "Layout",
    "MixturePipeline",
    "as_coco",
    "check_dataset",
    "export_dataset",
    "load_job",
    "open_dataset",
    "open_store",
    "run",
]
HEAVY = {"diffusers", "PIL", "numpy", "pyarrow", "pydantic", "ray", "torch", "transformers"}
ROOT = Path(__file__).parents[1]
FORMER = {
    "synthgen.data": ["as_coco", "open_dataset"],
    "synthgen.export": ["ExportSpec", "export_dataset"],
}


def test_the_public_names_are_these() -> None:
    assert synthgen.__all__ == NAMES
    assert set(NAMES) <= set(dir(synthgen))


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_imported_and_documented(name: str) -> None:
    value = getattr(synthgen, name)
    assert value.__name__ == name
    assert inspect.getdoc(value)
    assert f"`{name}`" in (ROOT / "docs/reference/python.md").read_text()


@pytest.fixture(scope="module")
def folder_of_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the dataset that the examples read."""
    folder = tmp_path_factory.mktemp("examples")
    changes = ["pipeline=paste", "images=2", "workers=0", f"output.path={folder}/out/pasted"]
    synthgen.run(synthgen.load_job("100dogs", changes))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_runs(
    name: str, folder_of_examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder_of_examples)
    names = {public: getattr(synthgen, public) for public in NAMES}
    names |= {"np": np, "Path": Path, "synthgen": synthgen, "torch": torch}
    documentation = inspect.getdoc(names[name])
    assert documentation
    example = doctest.DocTestParser().get_doctest(documentation, names, name, None, 0)
    assert example.examples
    report: list[str] = []
    result = doctest.DocTestRunner().run(example, out=report.append)
    assert result.failed == 0, "".join(report)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'synthgen' has no attribute 'lod_job'"):
        synthgen.lod_job  # noqa: B018


def test_the_import_loads_nothing_heavy() -> None:
    code = "import sys, synthgen; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert "synthgen" in loaded
    assert HEAVY & set(loaded) == set()
    assert [name for name in loaded if name.startswith("synthgen.")] == []


@pytest.mark.parametrize("module", FORMER)
def test_a_former_module_warns_and_has_the_same_objects(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.warns(
        DeprecationWarning, match=f"{module} is deprecated: write `from synthgen import"
    ):
        former = importlib.import_module(module)
    for name in FORMER[module]:
        assert getattr(former, name) is getattr(synthgen, name)
