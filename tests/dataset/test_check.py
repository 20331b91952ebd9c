"""`check` finds the faults of a dataset."""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from synthgen.dataset import coco
from synthgen.dataset.check import check_dataset
from synthgen.dataset.finalise import finalize
from synthgen.dataset.info import read_info
from synthgen.dataset.shard import read_table
from synthgen.errors import InputError
from synthgen.storage.location import open_store
from synthgen.storage.parquet import encode_table
from tests.dataset.test_shard import write_dataset

COCO_FILE = "annotations/instances.json"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "written", [2, 3, 0, 1])


def test_a_good_dataset_has_no_faults(out: Path, dataset: Path) -> None:
    assert check_dataset(open_store(out)) == ([], {"images": 4, "boxes": 6, "shards": 2})
    assert check_dataset(open_store(dataset)) == ([], {"images": 6, "boxes": 24, "shards": 3})


def test_a_check_reports_every_shard(dataset: Path) -> None:
    calls: list[tuple[int, int]] = []
    check_dataset(open_store(dataset), lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("name", ["000000.tar", "000001.tar", "000001.parquet"])
def test_flipped_bits_are_found(out: Path, name: str) -> None:
    path = out / "shards" / name
    rng = random.Random(0)
    good = path.read_bytes()
    for _ in range(20):
        data = bytearray(good)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        assert any(name in fault for fault in check_dataset(open_store(out))[0])


@pytest.mark.parametrize("name", ["000000.tar", "000001.parquet"])
def test_truncated_shards_are_found(out: Path, name: str) -> None:
    path = out / "shards" / name
    rng = random.Random(0)
    good = path.read_bytes()
    for _ in range(10):
        path.write_bytes(good[: rng.randrange(len(good))])
        assert any(name.split(".")[0] in fault for fault in check_dataset(open_store(out))[0])


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def delete_marker(out: Path) -> None:
    (out / "shards/000001.json").unlink()


def delete_card(out: Path) -> None:
    (out / "README.md").unlink()


def shorten_index(out: Path) -> None:
    edit_json(out / "index.json", lambda data: data["shardlist"].pop())


def move_box(out: Path) -> None:
    def change(data: Any) -> None:
        data["annotations"][0]["bbox"][0] = 9

    edit_json(out / COCO_FILE, change)


def set_id_to_0(out: Path) -> None:
    edit_json(out / COCO_FILE, lambda data: data["annotations"][0].update(id=0))


def delete_category(out: Path) -> None:
    edit_json(out / COCO_FILE, lambda data: data["categories"].pop())


def ask_for_more(out: Path) -> None:
    edit_json(out / "dataset.json", lambda data: data.update(asked=9))


def damage_manifest(out: Path) -> None:
    (out / "manifest.parquet").write_bytes(b"no")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (delete_marker, "000001.json: no valid marker"),
        (delete_card, "README.md: missing"),
        (shorten_index, "index.json: its shards differ"),
        (move_box, "its boxes differ"),
        (set_id_to_0, "annotation ids are not 1, 2, 3"),
        (delete_category, "its categories differ"),
        (ask_for_more, "4 images, the job asks for 9"),
        (damage_manifest, "manifest.parquet: cannot be read"),
    ],
)
def test_faults_are_named(out: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(out)
    faults, _ = check_dataset(open_store(out))
    assert any(message in fault for fault in faults), faults


def test_a_missing_shard_is_found(out: Path) -> None:
    for suffix in (".tar", ".parquet", ".json"):
        (out / f"shards/000000{suffix}").unlink()
    assert "shards: samples [0, 1] are missing" in check_dataset(open_store(out))[0]


def test_a_folder_without_a_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no dataset here; name the output folder"):
        check_dataset(open_store(tmp_path))
    (tmp_path / "dataset.json").write_text("{}")
    assert check_dataset(open_store(tmp_path))[0] == [
        f"{tmp_path}: no dataset here (dataset.json is missing or damaged)"
    ]


@pytest.fixture
def two_shards_per_coco_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a dataset of more than two shards several COCO files."""
    monkeypatch.setattr(coco, "SHARDS_PER_FILE", 2)


@pytest.mark.usefixtures("two_shards_per_coco_file")
@pytest.mark.parametrize("remaining", [[".tar"], [".tar", ".parquet"], [".json"]])
@pytest.mark.parametrize("number", [0, 2, 4])
def test_an_unfinished_shard_is_the_only_fault(
    tmp_path: Path, number: int, remaining: list[str]
) -> None:
    """`finalize` and `check` agree on the number of shards of a dataset with several COCO files."""
    out = write_dataset(tmp_path / "out", [1] * 10)
    for suffix in {".tar", ".parquet", ".json"}.difference(remaining):
        (out / f"shards/00000{number}{suffix}").unlink()
    for other in {0, 1, 2, 3, 4} - {number, 0, 1}:
        for suffix in (".tar", ".parquet", ".json"):
            (out / f"shards/00000{other}{suffix}").unlink(missing_ok=True)
    info = read_info(open_store(out))
    assert info is not None
    finalize(open_store(out), replace(info, asked=4))
    faults, _ = check_dataset(open_store(out))
    no_marker = f"shards/00000{number}.json: no valid marker"
    assert [f for f in faults if not f.startswith(("shards: ", no_marker))] == []
    assert any(fault.startswith(no_marker) for fault in faults)


def recommit(out: Path, **changes: object) -> None:
    """Commit shard 0 again with changed columns of its table, and a marker that fits."""
    table = read_table(open_store(out), 0)
    for name, value in changes.items():
        column = table.schema.get_field_index(name)
        field = table.schema.field(column)
        table = table.set_column(column, field, pa.array(value, field.type))
    data = encode_table(table)
    (out / "shards/000000.parquet").write_bytes(data)
    marker = {"parquet_bytes": len(data), "parquet_sha256": hashlib.sha256(data).hexdigest()}
    edit_json(out / "shards/000000.json", lambda data: data.update(marker))


NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"area": [[NAN, 33.0], [33.0, 33.0, 33.0]]},
            "sample 0: area nan of a box is not a finite number",
        ),
        (
            {"score": [[None, None], [0.5, float("inf"), 0.5]]},
            "sample 1: score inf of a box is not a finite number",
        ),
        (
            {"bbox": [[[1.0, NAN, 1.0, 1.0]] * 2, [[1.0] * 4] * 3]},
            "sample 0: bbox [1.0, nan, 1.0, 1.0] is not four finite numbers",
        ),
        (
            {"source": ['{"image": {}, "annotations": [{"area": NaN}, {}]}', None]},
            "source is no JSON: NaN is not valid JSON",
        ),
    ],
)
def test_nan_in_a_table_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    out = write_dataset(tmp_path / "out", [2, 3])
    recommit(out, **changes)
    assert any(message in fault for fault in check_dataset(open_store(out))[0])


@pytest.mark.parametrize(
    "name", ["annotations/instances.json", "index.json", "dataset.json", "shards/000000.json"]
)
def test_json_that_is_not_strict_is_a_fault(out: Path, name: str) -> None:
    path = out / name
    path.write_text(path.read_text().replace("{", '{"more": NaN, ', 1))
    faults, _ = check_dataset(open_store(out))
    assert any(fault.startswith(name) for fault in faults), faults
