"""`check` finds what is wrong with a dataset."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from synthgen.errors import InputError
from synthgen.shards.check import check_dataset
from tests.shards.test_shard import write_dataset


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "written", [2, 3, 0, 1])


def test_a_good_dataset_has_no_faults(out: Path, dataset: Path) -> None:
    assert check_dataset(out) == ([], {"images": 4, "boxes": 6, "shards": 2})
    assert check_dataset(dataset) == ([], {"images": 6, "boxes": 24, "shards": 3})


@pytest.mark.parametrize("name", ["000000.tar", "000001.tar", "000001.parquet"])
def test_flipped_bits_are_found(out: Path, name: str) -> None:
    path, rng = out / "shards" / name, random.Random(0)
    good = path.read_bytes()
    for _ in range(20):
        data = bytearray(good)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        assert any(name in fault for fault in check_dataset(out)[0])


@pytest.mark.parametrize("name", ["000000.tar", "000001.parquet"])
def test_truncated_shards_are_found(out: Path, name: str) -> None:
    path, rng = out / "shards" / name, random.Random(0)
    good = path.read_bytes()
    for _ in range(10):
        path.write_bytes(good[: rng.randrange(len(good))])
        assert any(name.split(".")[0] in fault for fault in check_dataset(out)[0])


def edit_json(path: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


FAULTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("no marker", lambda out: (out / "shards/000001.json").unlink(), "000001.json: no valid marker"),
    ("no card", lambda out: (out / "README.md").unlink(), "README.md: missing"),
    ("old index", lambda out: edit_json(out / "index.json", lambda d: d["shardlist"].pop()), "index.json: its shards differ"),
    ("moved box", lambda out: edit_json(out / "annotations/instances.json", lambda d: d["annotations"][0]["bbox"].__setitem__(0, 9)), "its boxes differ"),
    ("id 0", lambda out: edit_json(out / "annotations/instances.json", lambda d: d["annotations"][0].update(id=0)), "annotation ids are not 1, 2, 3"),
    ("category", lambda out: edit_json(out / "annotations/instances.json", lambda d: d["categories"].pop()), "its categories differ"),
    ("asked for more", lambda out: edit_json(out / "dataset.json", lambda d: d.update(asked=9)), "4 images, the job asks for 9"),
    ("no manifest", lambda out: (out / "manifest.parquet").write_bytes(b"no"), "manifest.parquet: cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("harm", "message"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_faults_are_named(out: Path, harm: Callable[[Path], object], message: str) -> None:
    harm(out)
    faults, _ = check_dataset(out)
    assert any(message in fault for fault in faults), faults


def test_a_missing_shard_is_found(out: Path) -> None:
    for suffix in (".tar", ".parquet", ".json"):
        (out / f"shards/000000{suffix}").unlink()
    assert "shards: samples [0, 1] are missing" in check_dataset(out)[0]


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no dataset here; name the output folder"):
        check_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{}")
    assert check_dataset(tmp_path)[0] == [f"{tmp_path}: no dataset here (dataset.json is missing or damaged)"]
