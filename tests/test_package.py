"""The wheel and the source archive can be installed and used outside the checkout."""

import os
import re
import shlex
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from ruamel.yaml import YAML

from synthgen import __version__

ROOT = Path(__file__).parents[1]
LIBRARIES = Path(numpy.__file__).parents[1]
"""The installed dependencies, which replace downloads from a package index."""
MAX_BYTES = 45e6
"""The largest size of a wheel or an archive."""
SMALL = ["images=1", "workers=0", "layout.canvas=[256, 256]", "layout.objects={dog: 2}"]
pytestmark = pytest.mark.slow


def run_program(argv: list[str], cwd: Path, status: int = 0, **more: Any) -> str:
    """Run a program, check its exit status, and return what it printed."""
    result = subprocess.run(
        argv,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **more,
    )
    assert result.returncode == status, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source archive, and a wheel from it; return the folder of both."""
    folder = tmp_path_factory.mktemp("built")
    run_program(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        folder,
    )
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return a function that runs the `synthgen` of the wheel, without the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    site = next(folder.glob("lib/python*/site-packages"))
    run_program(
        [
            sys.executable,
            "-m",
            "pip",
            "-q",
            "--python",
            str(folder),
            "install",
            "--no-deps",
            str(next(built.glob("*.whl"))),
        ],
        folder,
    )
    # The .pth files in LIBRARIES, one of which leads to the checkout, are not read.
    (site / "libraries.pth").write_text(f"{LIBRARIES}\n")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = run_program(
        [str(folder / "bin/python"), "-c", "import synthgen; print(synthgen.__file__)"],
        folder,
        env=clean,
    )
    assert Path(where.strip()).is_relative_to(site)
    return lambda cwd, *argv: run_program([str(folder / "bin/synthgen"), *argv], cwd, env=clean)


def test_the_wheel_contains_recipes_assets_and_weights(built: Path) -> None:
    wheel = next(built.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    recipes = set()
    for kind in ("jobs", "layouts", "pipelines"):
        recipes |= {f"synthgen/recipes/{kind}/{file.name}" for file in (ROOT / kind).glob("*.yaml")}
    assets = {p.relative_to(ROOT).as_posix() for p in (ROOT / "synthgen/assets").rglob("*.webp")}
    models = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "synthgen/weights").rglob("*")
        if p.is_file()
    }
    info = f"synthgen_layouts-{__version__}.dist-info"
    needed = (
        recipes
        | assets
        | models
        | {"synthgen/py.typed", f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"}
    )
    assert needed - names == set()
    assert [n for n in names if not n.startswith(("synthgen/", info)) or "__pycache__" in n] == []
    assert wheel.stat().st_size < MAX_BYTES


def test_the_source_archive_contains_only_the_repository(built: Path) -> None:
    archive = next(built.glob("*.tar.gz"))
    with tarfile.open(archive) as tar:
        names = {member.name.partition("/")[2] for member in tar.getmembers()}
    needed = {
        "LICENSE",
        "NOTICE",
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "constraints.txt",
        "mkdocs.yml",
        "jobs/100dogs.yaml",
    }
    assert needed - names == set()
    generated = r"(out|runs|site|\.venv|\.git)(/|$)|(.*/)?(__pycache__|\.\w+_cache)(/|$)"
    assert [name for name in names if re.match(generated, name)] == []
    assert archive.stat().st_size < MAX_BYTES


def test_the_wheel_works_from_an_empty_folder(
    installed: Callable[..., str], tmp_path: Path
) -> None:
    assert "100dogs" in installed(tmp_path, "list")
    assert installed(tmp_path, "--version") == f"synthgen {__version__}\n"
    installed(tmp_path, "preview", "100dogs")
    assert {p.name for p in tmp_path.iterdir()} == {"preview-100dogs.png"}
    assert "1 images, 2 boxes, 1 shards" in installed(
        tmp_path, "run", "100dogs", "pipeline.steps=1", *SMALL
    )
    assert installed(tmp_path, "check", "out/100dogs") == "ok: 1 images, 2 boxes, 1 shards\n"


def test_the_first_line_of_the_readme(built: Path, tmp_path: Path) -> None:
    """The README's first command works as it is written, in the unpacked source archive.

    The dependencies are those of these tests, and the job is a small one that pastes. The test
    above generates with a checkpoint outside the checkout.
    """
    with tarfile.open(next(built.glob("*.tar.gz"))) as tar:
        tar.extractall(tmp_path, filter="data")
    folder = next(tmp_path.iterdir())
    line = re.search(
        r"^python3 .* run jobs/100dogs\.yaml$", (folder / "README.md").read_text(), re.MULTILINE
    )
    assert line is not None
    variables = {
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this as: do not isolate
        "PYTHONPATH": str(LIBRARIES),
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = run_program(
        ["bash", "-euc", f"{line[0]} pipeline=paste {shlex.join(SMALL)}"],
        folder,
        env={**os.environ, **variables, "PATH": path},
    )
    assert "out/100dogs: 1 images, 2 boxes, 1 shards" in printed


def test_the_citation_and_changelog_name_this_version() -> None:
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert (citation["version"], citation["license"]) == (__version__, "Apache-2.0")
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
