"""`synthgen.dataset.reader`: every sample is read exactly once, and targets match the rows."""

import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from synthgen.dataset.marker import list_committed_shards
from synthgen.dataset.reader import _Order, _Shard, as_coco, open_dataset
from synthgen.dataset.sample import read_annotations
from synthgen.dataset.shard import read_rows
from synthgen.dataset.shard_reader import split_of
from synthgen.engine.importing import ImportSpec, import_dataset
from synthgen.errors import InputError
from synthgen.formats.export import ExportSpec, export_dataset
from synthgen.formats.source import Source
from synthgen.storage.location import open_store
from tests.formats.sources import write_rich_coco
from tests.s3 import S3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images in five shards, some with boxes, with crowds, or with neither."""
    folder = tmp_path_factory.mktemp("data")
    source = Source("coco", write_rich_coco(folder / "source"))
    import_dataset(ImportSpec(source, folder / "out", shard_size=2))
    return folder / "out"


def read_rows_by_key(out: Path) -> dict[str, dict[str, Any]]:
    rows = {}
    for number in list_committed_shards(open_store(out)):
        for row in read_rows(open_store(out), number):
            rows[row["key"]] = row
    return rows


def list_keys(items: Iterable[tuple[Any, dict[str, Any]]]) -> list[str]:
    return [target["key"] for _, target in items]


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=9),
    world_size=st.integers(1, 5),
    workers=st.integers(1, 4),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_every_sample_is_read_exactly_once(
    counts: list[int], world_size: int, workers: int, shuffle: bool, epoch: int
) -> None:
    shards = tuple(_Shard("x", number, count) for number, count in enumerate(counts))
    orders = [_Order(shards, shuffle, 0, 3, rank, world_size) for rank in range(world_size)]
    samples = []
    sizes = []
    for order in orders:
        read: list[tuple[int, int]] = []
        for worker in range(workers):
            for shard, start, stop in order.iterate_ranges(epoch, worker, workers):
                read += [(shard.number, i) for i in range(start, stop)]
        samples += read
        sizes.append(len(read))
    wanted: list[tuple[int, int]] = []
    for number, count in enumerate(counts):
        wanted += [(number, i) for i in range(count)]
    assert sorted(samples) == wanted
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("split", [None, "train", "val"])
def test_ranks_and_workers_share_the_samples(split: str | None, dataset: Path) -> None:
    wanted = [key for key in read_rows_by_key(dataset) if split in (None, split_of(key, 0.4))]
    read = []
    for rank in range(2):
        data = open_dataset(dataset, split, val=0.4, shuffle=True, rank=rank, world_size=2)
        keys = list_keys(DataLoader(data, batch_size=None, num_workers=2))
        assert len(keys) == len(data)
        read += keys
    assert sorted(read) == wanted


def test_targets_match_the_rows(dataset: Path) -> None:
    data = open_dataset(dataset, crowds=True)
    rows = read_rows_by_key(dataset)
    assert data.id2label == {1: "traffic cone", 2: "cat", 3: "dog"}
    for (image, target), (key, row) in zip(data, rows.items(), strict=True):
        assert (target["key"], target["image_id"]) == (key, row["index"] + 1)
        assert (image.shape, image.dtype) == ((3, 48, 64), torch.uint8)
        annotations = read_annotations(row)
        boxes = np.array([a.bbox for a in annotations]).reshape(-1, 4)
        corners = np.c_[boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]
        np.testing.assert_allclose(target["boxes"], corners, atol=1e-5)
        assert target["boxes"].dtype == torch.float32
        categories = [data.id2label[i] for i in target["labels"].tolist()]
        assert categories == [a.category for a in annotations]
        assert target["iscrowd"].tolist() == [a.iscrowd for a in annotations]
        coco_boxes = [a["bbox"] for a in as_coco(target)["annotations"]]
        assert coco_boxes == [pytest.approx(a.bbox, abs=1e-5) for a in annotations]
    without_crowds = open_dataset(dataset)
    assert not any(target["iscrowd"].any() for _, target in without_crowds)
    count = sum(len(target["boxes"]) for _, target in without_crowds)
    assert count == sum(row["iscrowd"].count(0) for row in rows.values())


def test_the_order_depends_on_seed_and_epoch(dataset: Path) -> None:
    data = open_dataset(dataset, shuffle=True, seed=1, buffer=4)
    first = list_keys(data)
    assert list_keys(data) == first != sorted(first)
    data.set_epoch(1)
    second = list_keys(data)
    assert second != first
    assert sorted(second) == sorted(first) == list(read_rows_by_key(dataset))
    assert list_keys(open_dataset(dataset, shuffle=True, seed=2, buffer=4)) != first
    assert list_keys(open_dataset(dataset)) == sorted(first)


def test_persistent_workers_use_the_new_epoch(dataset: Path) -> None:
    data = open_dataset(dataset, shuffle=True)
    loader = DataLoader(data, batch_size=None, num_workers=1, persistent_workers=True)
    first = list_keys(loader)
    data.set_epoch(1)
    assert list_keys(loader) != first


def test_labels_are_selected_and_items_transformed(dataset: Path) -> None:
    data = open_dataset(
        dataset,
        labels=["dog"],
        first_label=0,
        transform=lambda image, target: (image.float() / 255, target),
    )
    rows = read_rows_by_key(dataset)
    assert data.label2id == {"dog": 0}
    for image, target in data:
        assert image.max() <= 1
        row = rows[target["key"]]
        wanted = [a for a in read_annotations(row) if a.category == "dog" and not a.iscrowd]
        assert target["labels"].tolist() == [0] * len(wanted)


def test_a_pattern_opens_several_datasets_or_shards(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(dataset, tmp_path / "one")
    shutil.copytree(dataset, tmp_path / "two")
    both = open_dataset(str(tmp_path / "*"))
    assert len(both) == len(list(both)) == 18
    some_shards = open_dataset(str(dataset / "shards/00000[13].tar"))
    assert list_keys(some_shards) == [f"00000000{i}" for i in (2, 3, 6, 7)]
    monkeypatch.chdir(dataset)
    assert list_keys(open_dataset("shards/000001.tar")) == ["000000002", "000000003"]


def test_the_split_equals_that_of_an_export(dataset: Path, tmp_path: Path) -> None:
    export_dataset(ExportSpec(dataset, "yolo", tmp_path / "yolo", val=0.3))
    listed = sorted(p.stem for p in (tmp_path / "yolo/images/val").iterdir())
    assert list_keys(open_dataset(dataset, "val", val=0.3)) == listed != []


def test_the_rank_is_read_from_torchrun(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "RANK", "1")
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "3")
    assert list_keys(open_dataset(dataset)) == ["000000003", "000000004", "000000005"]


def test_wrong_arguments_are_named(dataset: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ({"split": "test"}, "split: 'test' is none of train, val"),
        ({"val": 2}, "val: 2 must be from 0 to 1"),
        ({"rank": 1}, "rank, world_size: give both or neither"),
        ({"rank": 2, "world_size": 2}, "rank: 2 must be from 0 to 1"),
        ({"labels": ["dog", "dog"]}, "labels: 'dog' is given more than once"),
        ({"labels": ["dgo"]}, "labels: 'dgo': the dataset has no such category; .*dog"),
    ):
        with pytest.raises(InputError, match=message):
            open_dataset(dataset, **arguments)
    with pytest.raises(InputError, match="no dataset here"):
        open_dataset(tmp_path)
    shutil.copytree(dataset, tmp_path / "cut")
    tar = tmp_path / "cut/shards/000002.tar"
    tar.write_bytes(tar.read_bytes()[:-1024])
    with pytest.raises(InputError, match="000002: differs from its marker"):
        open_dataset(tmp_path / "cut")


def test_an_older_dataset_can_be_read(dataset: Path, tmp_path: Path) -> None:
    """Older tables have no column `source`, and older dataset.json no such key."""
    import pyarrow.parquet as pq

    from synthgen.dataset.check import check_dataset
    from synthgen.dataset.finalise import finalize
    from synthgen.dataset.info import read_info
    from synthgen.storage.local import hash_file

    out = tmp_path / "old"
    shutil.copytree(dataset, out)
    for path in (out / "shards").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["source"]), path)
        marker = json.loads(path.with_suffix(".json").read_text())
        marker |= {"parquet_bytes": path.stat().st_size, "parquet_sha256": hash_file(path)}
        path.with_suffix(".json").write_text(json.dumps(marker))
    data = json.loads((out / "dataset.json").read_text())
    del data["source"]
    (out / "dataset.json").write_text(json.dumps(data))
    info = read_info(open_store(out))
    assert info is not None
    assert finalize(open_store(out), info)["complete"]
    assert check_dataset(open_store(out))[0] == []
    assert list_keys(open_dataset(out)) == list(read_rows_by_key(dataset))
    export_dataset(ExportSpec(out, "coco", tmp_path / "coco", val=0))
    exported = tmp_path / "coco/annotations/instances_train.json"
    assert len(json.loads(exported.read_text())["images"]) == 9


@pytest.fixture
def url(dataset: Path, s3: S3) -> str:
    """The dataset on an object store."""
    store = open_store(s3.url(f"data/{uuid.uuid4().hex}"))
    for path in (p for p in dataset.rglob("*") if p.is_file()):
        store.write(str(path.relative_to(dataset)), path.read_bytes())
    return str(store)


def test_a_dataset_is_read_from_an_object_store(dataset: Path, url: str) -> None:
    for workers in (0, 2):
        remote = list(DataLoader(open_dataset(url), batch_size=None, num_workers=workers))
        local = list(DataLoader(open_dataset(dataset), batch_size=None, num_workers=workers))
        assert list_keys(remote) == list_keys(local)
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(remote, local, strict=True))
    for shards in ("shards/00000[13].tar", "shards/000001.tar"):
        wanted = list_keys(open_dataset(f"{dataset}/{shards}"))
        assert list_keys(open_dataset(f"{url}/{shards}")) == wanted
    for wrong, message in (
        (f"{url}/nothing", "no dataset here"),
        ("s3://bucket/*/shards/0.tar", "only the names of shards"),
    ):
        with pytest.raises(InputError, match=message):
            open_dataset(wrong)


def test_an_export_from_an_object_store_equals_a_local_one(
    dataset: Path, url: str, tmp_path: Path
) -> None:
    for name, out in (("remote", url), ("local", dataset)):
        export_dataset(ExportSpec(out, "coco", tmp_path / name))
    files = {}
    for path in (tmp_path / "local").rglob("*"):
        if path.is_file():
            files[path.relative_to(tmp_path / "local")] = path.read_bytes()
    assert len(files) > 10
    assert files == {path: (tmp_path / "remote" / path).read_bytes() for path in files}
