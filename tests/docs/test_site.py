"""The site: built without a warning, and nothing that is registered is missing in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from synthgen import registry
from tests.docs.commands import ROOT


@pytest.mark.parametrize("method", registry.names("method"))
def test_every_method_has_a_page_with_a_picture(method: str) -> None:
    page = (ROOT / f"docs/methods/{method}.md").read_text()
    assert f"({method}.jpg)" in page
    assert (ROOT / f"docs/methods/{method}.jpg").stat().st_size > 10_000
    assert f"| [`{method}`](methods/{method}.md) |" in (ROOT / "docs/methods.md").read_text()


@pytest.mark.slow
def test_it_is_built_without_warnings(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(
        argv,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    shown = {
        p.relative_to(tmp_path / "site").as_posix(): p.read_text()
        for p in (tmp_path / "site").rglob("*.html")
    }
    assert "0.62" in shown["methods/mixture.html"]  # its row of the measured table
    assert "background_window" in shown["methods/mixture.html"]
    assert "synthgen evaluate" in shown["reference/commands.html"]
    assert "(N, 4) float32, xyxy in px" in shown["reference/python/synthgen.layouts.html"]
    assert "(N, 4) float32, xyxy in px" in shown["reference/python/index.html"]
    assert "reference/python/synthgen.data.html" not in shown
    assert "fonts.googleapis" not in "".join(shown.values())
