"""The tables of the documentation are those of the measured results."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.docs.commands import PAGES, ROOT

TABLES = runpy.run_path(str(ROOT / "benchmarks/tables.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_tables_are_made_from_the_results(page: Path) -> None:
    assert TABLES["remake"](page.read_text()) == page.read_text(), "run benchmarks/tables.py"


def test_every_result_has_a_table_in_the_documentation() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for name in TABLES["TABLES"]:
        assert f"<!-- table: {name} -->\n" in text


def test_rows_of_methods_have_enough_boxes() -> None:
    rows: list[dict[str, Any]] = json.loads((ROOT / "benchmarks/results/methods.json").read_text())
    assert rows
    assert all(row["boxes"] >= 500 for row in rows)
