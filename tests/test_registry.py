"""Entry points of other packages are found, in the current groups and in the former ones."""

from importlib.metadata import EntryPoint

import pytest

from synthgen import registry


@pytest.mark.parametrize(
    ("kind", "group"),
    [
        ("sampler", "synthgen.layouts"),
        ("method", "synthgen.pipelines"),
        ("task", "synthgen.training"),
        ("task", "synthgen.train.tasks"),
        ("verifier", "synthgen.verification"),
        ("verifier", "synthgen.verify.verifiers"),
    ],
)
def test_an_entry_point_is_found(kind: str, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("another", "decimal:Decimal", group)
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [point] if group == point.group else []
    )
    registry._find_plugins.cache_clear()
    try:
        assert "another" in registry.list_names(kind)
        assert registry.load_spec_class(kind, "another").__name__ == "Decimal"
    finally:
        registry._find_plugins.cache_clear()
