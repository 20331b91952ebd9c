"""The dataset card."""

import json
from pathlib import Path

from ruamel.yaml import YAML

from synthgen.dataset.card import write_card
from synthgen.dataset.finalise import finalize
from synthgen.dataset.info import DatasetInfo, read_info
from synthgen.storage.local import LocalStore
from synthgen.storage.location import open_store


def test_the_card_names_the_last_shard_and_has_a_schema(dataset: Path) -> None:
    text = (dataset / "README.md").read_text()
    assert 'wds.WebDataset("shards/{000000..000002}.tar")' in text
    header = YAML(typ="safe").load(text.split("---")[1])
    assert [f["name"] for f in header["dataset_info"]["features"]] == [
        "jpg",
        "json",
        "__key__",
        "__url__",
    ]
    assert "| images | 6 |" in text


def test_text_is_escaped_in_the_table(tmp_path: Path) -> None:
    info = DatasetInfo("x", 1, {}, {}, "jpg", "")
    write_card(
        LocalStore(tmp_path),
        info,
        {"shards": 1, "prompt": "a | b\n# <script>"},
        "annotations/instances.json",
        False,
    )
    assert "| prompt | a \\| b # &lt;script&gt; |" in (tmp_path / "README.md").read_text()


def test_a_dataset_without_shards_is_finalized(dataset: Path) -> None:
    for path in (dataset / "shards").iterdir():
        path.unlink()
    info = read_info(open_store(dataset))
    assert info is not None
    counts = finalize(open_store(dataset), info)
    assert (counts["images"], counts["complete"]) == (0, False)
    assert json.loads((dataset / "annotations/instances.json").read_text())["images"] == []
