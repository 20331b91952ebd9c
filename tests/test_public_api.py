"""The public names of synthgen are documented, and are loaded when they are first used."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

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
