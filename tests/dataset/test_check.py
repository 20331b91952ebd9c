"""`check` finds what is wrong with a dataset."""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "written", [2, 3, 0, 1])


def test_a_good_dataset_has_no_faults(out: Path, dataset: Path) -> None:
    assert check_dataset(open_store(out)) == ([], {"images": 4, "boxes": 6, "shards": 2})
    assert check_dataset(open_store(dataset)) == ([], {"images": 6, "boxes": 24, "shards": 3})


@pytest.mark.parametrize("name", ["000000.tar", "000001.tar", "000001.parquet"])
def test_flipped_bits_are_found(out: Path, name: str) -> None:
    path, rng = out / "shards" / name, random.Random(0)
    good = path.read_bytes()
    for _ in range(20):
        data = bytearray(good)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        assert any(name in fault for fault in check_dataset(open_store(out))[0])


@pytest.mark.parametrize("name", ["000000.tar", "000001.parquet"])
def test_truncated_shards_are_found(out: Path, name: str) -> None:
    path, rng = out / "shards" / name, random.Random(0)
    good = path.read_bytes()
    for _ in range(10):
        path.write_bytes(good[: rng.randrange(len(good))])
        assert any(name.split(".")[0] in fault for fault in check_dataset(open_store(out))[0])


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
    faults, _ = check_dataset(open_store(out))
    assert any(message in fault for fault in faults), faults


def test_a_missing_shard_is_found(out: Path) -> None:
    for suffix in (".tar", ".parquet", ".json"):
        (out / f"shards/000000{suffix}").unlink()
    assert "shards: samples [0, 1] are missing" in check_dataset(open_store(out))[0]


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no dataset here; name the output folder"):
        check_dataset(open_store(tmp_path))
    (tmp_path / "dataset.json").write_text("{}")
    assert check_dataset(open_store(tmp_path))[0] == [
        f"{tmp_path}: no dataset here (dataset.json is missing or damaged)"
    ]


@pytest.fixture
def two_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset of more than two shards has several COCO files."""
    monkeypatch.setattr(coco, "SHARDS_A_FILE", 2)


@pytest.mark.usefixtures("two_a_file")
@pytest.mark.parametrize("left", [[".tar"], [".tar", ".parquet"], [".json"]])
@pytest.mark.parametrize("number", [0, 2, 4])
def test_a_shard_that_was_not_finished_is_its_only_fault(
    tmp_path: Path, number: int, left: list[str]
) -> None:
    """The number of shards at which a dataset gets several COCO files is the same to `finalize` and to `check`."""
    out = write_dataset(tmp_path / "out", [1] * 10)
    for suffix in {".tar", ".parquet", ".json"}.difference(left):
        (out / f"shards/00000{number}{suffix}").unlink()
    for other in {0, 1, 2, 3, 4} - {number, 0, 1}:
        for suffix in (".tar", ".parquet", ".json"):
            (out / f"shards/00000{other}{suffix}").unlink(missing_ok=True)
    info = read_info(open_store(out))
    assert info is not None
    finalize(open_store(out), replace(info, asked=4))
    faults, _ = check_dataset(open_store(out))
    assert [
        fault
        for fault in faults
        if not fault.startswith(("shards: ", f"shards/00000{number}.json: no valid marker"))
    ] == []
    assert any(fault.startswith(f"shards/00000{number}.json: no valid marker") for fault in faults)


def recommit(out: Path, **changes: object) -> None:
    """Commit shard 0 anew, a column of its table changed; the marker fits."""
    table = read_table(open_store(out), 0)
    for name, value in changes.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(
            at, table.schema.field(at), pa.array(value, table.schema.field(at).type)
        )
    data = encode_table(table)
    (out / "shards/000000.parquet").write_bytes(data)
    marker = {"parquet_bytes": len(data), "parquet_sha256": hashlib.sha256(data).hexdigest()}
    edit_json(out / "shards/000000.json", lambda d: d.update(marker))


NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"area": [[NAN, 33.0], [33.0, 33.0, 33.0]]},
            "sample 0: area nan of a box is no finite number",
        ),
        (
            {"score": [[None, None], [0.5, float("inf"), 0.5]]},
            "sample 1: score inf of a box is no finite number",
        ),
        (
            {"bbox": [[[1.0, NAN, 1.0, 1.0]] * 2, [[1.0] * 4] * 3]},
            "sample 0: bbox [1.0, nan, 1.0, 1.0] is not four finite numbers",
        ),
        (
            {"source": ['{"image": {}, "annotations": [{"area": NaN}, {}]}', None]},
            "source is no JSON: NaN is no number of JSON",
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
def test_what_is_no_json_for_others_is_a_fault(out: Path, name: str) -> None:
    path = out / name
    path.write_text(path.read_text().replace("{", '{"more": NaN, ', 1))
    faults, _ = check_dataset(open_store(out))
    assert any(fault.startswith(name) for fault in faults), faults
