"""`synthgen.dataset.reader`: every sample once, however many read it, and targets as the rows say."""

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

from synthgen.dataset.marker import committed
from synthgen.dataset.reader import _Order, _Shard, as_coco, open_dataset
from synthgen.dataset.sample import annotations_of
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
    """Nine pictures with boxes, crowds and none, in five shards."""
    folder = tmp_path_factory.mktemp("data")
    import_dataset(
        ImportSpec(Source("coco", write_rich_coco(folder / "source")), folder / "out", shard_size=2)
    )
    return folder / "out"


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    return {
        row["key"]: row
        for number in committed(open_store(out))
        for row in read_rows(open_store(out), number)
    }


def keys(items: Iterable[tuple[Any, dict[str, Any]]]) -> list[str]:
    return [target["key"] for _, target in items]


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=9),
    world_size=st.integers(1, 5),
    workers=st.integers(1, 4),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_no_sample_is_read_twice_or_never(
    counts: list[int], world_size: int, workers: int, shuffle: bool, epoch: int
) -> None:
    shards = tuple(_Shard("x", number, count) for number, count in enumerate(counts))
    orders = [_Order(shards, shuffle, 0, 3, rank, world_size) for rank in range(world_size)]
    read = [
        [
            (shard.number, i)
            for worker in range(workers)
            for shard, first, last in order.pieces(epoch, worker, workers)
            for i in range(first, last)
        ]
        for order in orders
    ]
    every = [sample for of_rank in read for sample in of_rank]
    assert sorted(every) == [
        (number, i) for number, count in enumerate(counts) for i in range(count)
    ]
    assert max(map(len, read)) - min(map(len, read)) <= 1


@pytest.mark.parametrize("split", [None, "train", "val"])
def test_ranks_and_real_workers_share_the_samples(split: str | None, dataset: Path) -> None:
    wanted = [key for key in rows_of(dataset) if split in (None, split_of(key, 0.4))]
    read = []
    for rank in range(2):
        data = open_dataset(dataset, split, val=0.4, shuffle=True, rank=rank, world_size=2)
        found = keys(DataLoader(data, batch_size=None, num_workers=2))
        assert len(found) == len(data)
        read += found
    assert sorted(read) == wanted


def test_targets_are_what_the_rows_say(dataset: Path) -> None:
    data, rows = open_dataset(dataset, crowds=True), rows_of(dataset)
    assert data.id2label == {1: "traffic cone", 2: "cat", 3: "dog"}
    for (image, target), (key, row) in zip(data, rows.items(), strict=True):
        assert (target["key"], target["image_id"], image.shape, image.dtype) == (
            key,
            row["index"] + 1,
            (3, 48, 64),
            torch.uint8,
        )
        annotations = annotations_of(row)
        boxes = np.array([a.bbox for a in annotations]).reshape(-1, 4)
        np.testing.assert_allclose(
            target["boxes"], np.c_[boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], atol=1e-5
        )
        assert target["boxes"].dtype == torch.float32
        assert [data.id2label[i] for i in target["labels"].tolist()] == [
            a.category for a in annotations
        ]
        assert target["iscrowd"].tolist() == [a.iscrowd for a in annotations]
        assert [a["bbox"] for a in as_coco(target)["annotations"]] == [
            pytest.approx(a.bbox, abs=1e-5) for a in annotations
        ]
    without = open_dataset(dataset)
    assert not any(target["iscrowd"].any() for _, target in without)
    assert sum(len(t["boxes"]) for _, t in without) == sum(
        row["iscrowd"].count(0) for row in rows.values()
    )


def test_shuffled_by_seed_and_epoch(dataset: Path) -> None:
    data = open_dataset(dataset, shuffle=True, seed=1, buffer=4)
    first = keys(data)
    assert keys(data) == first != sorted(first)
    data.set_epoch(1)
    second = keys(data)
    assert second != first
    assert sorted(second) == sorted(first) == list(rows_of(dataset))
    assert keys(open_dataset(dataset, shuffle=True, seed=2, buffer=4)) != first
    assert keys(open_dataset(dataset)) == sorted(first)


def test_workers_that_persist_see_the_epoch(dataset: Path) -> None:
    data = open_dataset(dataset, shuffle=True)
    loader = DataLoader(data, batch_size=None, num_workers=1, persistent_workers=True)
    first = keys(loader)
    data.set_epoch(1)
    assert keys(loader) != first


def test_labels_and_transform(dataset: Path) -> None:
    data = open_dataset(
        dataset,
        labels=["dog"],
        first_label=0,
        transform=lambda image, target: (image.float() / 255, target),
    )
    rows = rows_of(dataset)
    assert data.label2id == {"dog": 0}
    for image, target in data:
        assert image.max() <= 1
        row = rows[target["key"]]
        wanted = [a for a in annotations_of(row) if a.category == "dog" and not a.iscrowd]
        assert target["labels"].tolist() == [0] * len(wanted)


def test_patterns_and_several_datasets(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(dataset, tmp_path / "one")
    shutil.copytree(dataset, tmp_path / "two")
    assert (
        len(open_dataset(str(tmp_path / "*"))) == len(list(open_dataset(str(tmp_path / "*")))) == 18
    )
    assert keys(open_dataset(str(dataset / "shards/00000[13].tar"))) == [
        f"00000000{i}" for i in (2, 3, 6, 7)
    ]
    monkeypatch.chdir(dataset)
    assert keys(open_dataset("shards/000001.tar")) == ["000000002", "000000003"]


def test_the_split_is_that_of_an_export(dataset: Path, tmp_path: Path) -> None:

    export_dataset(ExportSpec(dataset, "yolo", tmp_path / "yolo", val=0.3))
    listed = sorted(p.stem for p in (tmp_path / "yolo/images/val").iterdir())
    assert keys(open_dataset(dataset, "val", val=0.3)) == listed != []


def test_torchrun_says_which_rank(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "RANK", "1")
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "3")
    assert keys(open_dataset(dataset)) == ["000000003", "000000004", "000000005"]


def test_mistakes_are_named(dataset: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ({"split": "test"}, "split: 'test' is none of train, val"),
        ({"val": 2}, "val: 2 must be from 0 to 1"),
        ({"rank": 1}, "rank, world_size: give both or neither"),
        ({"rank": 2, "world_size": 2}, "rank: 2 must be from 0 to 1"),
        ({"labels": ["dog", "dog"]}, "labels: 'dog' stands twice"),
        ({"labels": ["dgo"]}, "labels: 'dgo': nothing here is called so; there are .*dog"),
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


def test_an_older_dataset_is_readable(dataset: Path, tmp_path: Path) -> None:
    """Tables had no column `source`, and dataset.json no key of that name."""
    import pyarrow.parquet as pq

    from synthgen.dataset.check import check_dataset
    from synthgen.dataset.finalise import finalize
    from synthgen.dataset.info import read_info
    from synthgen.storage.local import digest

    out = tmp_path / "old"
    shutil.copytree(dataset, out)
    for path in (out / "shards").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["source"]), path)
        marker = json.loads(path.with_suffix(".json").read_text())
        marker |= {"parquet_bytes": path.stat().st_size, "parquet_sha256": digest(path)}
        path.with_suffix(".json").write_text(json.dumps(marker))
    data = json.loads((out / "dataset.json").read_text())
    del data["source"]
    (out / "dataset.json").write_text(json.dumps(data))
    info = read_info(open_store(out))
    assert info is not None
    assert finalize(open_store(out), info)["complete"]
    assert check_dataset(open_store(out))[0] == []
    assert keys(open_dataset(out)) == list(rows_of(dataset))
    export_dataset(ExportSpec(out, "coco", tmp_path / "coco", val=0))
    assert (
        len(json.loads((tmp_path / "coco/annotations/instances_train.json").read_text())["images"])
        == 9
    )


@pytest.fixture
def url(dataset: Path, s3: S3) -> str:
    """The dataset on an object store."""
    store = open_store(s3.url(f"data/{uuid.uuid4().hex}"))
    for path in (p for p in dataset.rglob("*") if p.is_file()):
        store.write(str(path.relative_to(dataset)), path.read_bytes())
    return str(store)


def test_from_an_object_store(dataset: Path, url: str) -> None:
    for workers in (0, 2):
        there, here = (
            list(DataLoader(open_dataset(out), batch_size=None, num_workers=workers))
            for out in (url, dataset)
        )
        assert keys(there) == keys(here)
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(there, here, strict=True))
    some = "shards/00000[13].tar"
    assert keys(open_dataset(f"{url}/{some}")) == keys(open_dataset(f"{dataset}/{some}"))
    assert keys(open_dataset(f"{url}/shards/000001.tar")) == keys(
        open_dataset(f"{dataset}/shards/000001.tar")
    )
    for wrong, message in (
        (f"{url}/nothing", "no dataset here"),
        ("s3://bucket/*/shards/0.tar", "only the names of shards"),
    ):
        with pytest.raises(InputError, match=message):
            open_dataset(wrong)


def test_an_export_from_an_object_store(dataset: Path, url: str, tmp_path: Path) -> None:
    for name, out in (("there", url), ("here", dataset)):
        export_dataset(ExportSpec(out, "coco", tmp_path / name))
    files = {
        p.relative_to(tmp_path / "here"): p.read_bytes()
        for p in (tmp_path / "here").rglob("*")
        if p.is_file()
    }
    assert len(files) > 10
    assert files == {p: (tmp_path / "there" / p).read_bytes() for p in files}
