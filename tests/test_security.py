"""Secrets of the environment are not revealed, and hostile names do no harm in the card."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from synthgen import cli
from synthgen.dataset.card import escape_markdown, quote_yaml
from synthgen.dataset.finalise import finalize
from synthgen.dataset.info import DatasetInfo, write_info
from synthgen.formats.export import ExportSpec, export_dataset
from synthgen.storage.location import open_store
from tests.dataset.test_shard import write_dataset

SECRETS = {
    "HF_TOKEN": "do-not-tell-0",
    "HUGGING_FACE_HUB_TOKEN": "do-not-tell-1",
    "AWS_ACCESS_KEY_ID": "do-not-tell-2",
    "AWS_SECRET_ACCESS_KEY": "do-not-tell-3",
    "AWS_SESSION_TOKEN": "do-not-tell-4",
}


def test_secrets_of_the_environment_are_neither_printed_nor_written(
    job_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    out = job_file.parent / "out"
    other = job_file.parent / "merged"
    caplog.set_level("DEBUG")
    assert cli.main(["run", str(job_file), "images=2", "--json"]) == 0
    (out / "shards/000000.json").write_text("{}")
    assert cli.main(["repair", str(out), "--json"]) == 0
    assert cli.main(["merge", str(out), "--to", str(other), "--json"]) == 0
    assert cli.main(["run", str(job_file), "images=2", "seed=9"]) == 2
    printed = capfd.readouterr()
    texts = [printed.out, printed.err, caplog.text]
    texts += [p.read_bytes().decode("latin-1") for p in job_file.parent.rglob("*") if p.is_file()]
    assert len(texts) > 20
    for secret in SECRETS.values():
        assert not any(secret in text for text in texts)


HOSTILE = (
    "x\n---\nlicense: evil\n# <script>alert(1)</script> | ![p](http://evil/p.png) "
    "[l](javascript:alert(1)) `c` <!-- *b* _i_ {{x}} {name} ~s~ \\ 🐕\x85\u2028\x07"
)


def test_hostile_names_are_text_in_the_card(tmp_path: Path) -> None:
    out = write_dataset(tmp_path / "out", [1, 2])
    info = DatasetInfo(
        HOSTILE,
        2,
        {"seed": 0, "pipeline.model": HOSTILE},
        {"dog": 18, HOSTILE: 99},
        "png",
        HOSTILE,
        HOSTILE,
    )
    finalize(open_store(out), info)
    text = (out / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    data = YAML(typ="safe").load(header)
    assert data["pretty_name"] == HOSTILE
    assert set(data) == {"pretty_name", "task_categories", "tags", "configs", "dataset_info"}
    prose, code = body.split("## Reading it")
    assert "evil" not in code
    assert "<" not in prose
    assert prose.count("\n# ") == 1
    assert prose.count("\n") == 16 + 1  # as many lines as with harmless names
    for mark in ("![p](", "[l](", "`c`", "*b*"):
        assert mark not in prose
    coco = json.loads((out / "annotations/instances.json").read_text())
    assert coco["categories"][1]["name"] == HOSTILE


@given(st.text(max_size=20))
def test_quoted_text_is_the_same_text_in_yaml(text: str) -> None:
    assert YAML(typ="safe").load(f"a: {quote_yaml(text)}") == {"a": text}
    assert len(quote_yaml(text).splitlines()) == 1


def test_hostile_names_are_text_in_the_card_of_an_export(tmp_path: Path) -> None:
    out = write_dataset(tmp_path / "out", [1, 2])
    write_info(
        open_store(out),
        DatasetInfo(HOSTILE, 2, {"seed": 0}, {"dog": 18, HOSTILE: 99}, "png", HOSTILE),
        {},
    )
    export_dataset(ExportSpec(out, "hf", tmp_path / "hf", val=0))
    _, header, body = (tmp_path / "hf/README.md").read_text().split("---\n", 2)
    data = YAML(typ="safe").load(header)
    assert (data["pretty_name"], set(data)) == (
        HOSTILE,
        {"pretty_name", "task_categories", "tags", "configs", "dataset_info"},
    )
    features = {feature["name"]: feature for feature in data["dataset_info"]["features"]}
    classes = features["objects"]["struct"][2]["list"]["class_label"]
    assert list(classes["names"].values()) == ["dog", HOSTILE]
    assert "<" not in body
    assert body.count("\n# ") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a | b", "a \\| b"),
        ("two\nlines\u2028three\x85four", "two lines three four"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("[x](y)", "\\[x\\](y)"),
        ("\\", "\\\\"),
        (3, "3"),
    ],
)
def test_text_is_escaped_for_a_table(text: object, expected: str) -> None:
    assert escape_markdown(text) == expected
