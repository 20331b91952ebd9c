"""The site is built without a warning, and contains everything that is registered."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from synthgen import registry
from tests.docs.commands import ROOT

METHODS = ROOT / "docs/explanation/methods.md"
METHOD_PAGES = ROOT / "docs/reference/methods"


@pytest.mark.parametrize("method", registry.list_names("method"))
def test_every_method_has_a_page_with_an_image(method: str) -> None:
    page = (METHOD_PAGES / f"{method}.md").read_text()
    assert f"({method}.jpg)" in page
    assert (METHOD_PAGES / f"{method}.jpg").stat().st_size > 10_000
    assert f"| [`{method}`](../reference/methods/{method}.md) |" in METHODS.read_text()


def test_every_page_is_of_one_kind_and_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in sorted((ROOT / "docs").rglob("*.md")):
        path = page.relative_to(ROOT).as_posix()
        assert path.split("/")[1] in ("tutorial", "how-to", "reference", "explanation"), path
        assert page.parent == METHOD_PAGES or f"({path})" in readme, path


@pytest.mark.slow
def test_the_site_is_built_without_warnings(tmp_path: Path) -> None:
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    pages = {}
    for path in site.rglob("*.html"):
        pages[path.relative_to(site).as_posix()] = path.read_text()
    mixture = pages["reference/methods/mixture.html"]
    assert "0.89" in mixture  # its row of the measured table
    assert "background_window" in mixture
    assert "synthgen evaluate" in pages["reference/commands.html"]
    assert "(N, 4) float32, xyxy in px" in pages["reference/python/synthgen.layouts.html"]
    assert "(N, 4) float32, xyxy in px" in pages["reference/python.html"]
    assert "reference/python/synthgen.data.html" not in pages
    assert "fonts.googleapis" not in "".join(pages.values())
