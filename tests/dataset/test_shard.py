"""Shards on disk: reproducible bytes, commits with a marker, and loading by other libraries."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import webdataset
from PIL import Image

from synthgen.annotations import Annotation
from synthgen.dataset.finalise import finalize
from synthgen.dataset.info import DatasetInfo, write_info
from synthgen.dataset.marker import format_shard_file, list_committed_shards, read_marker
from synthgen.dataset.sample import SCHEMA, Sample, read_annotations
from synthgen.dataset.shard import commit, read_rows, stage
from synthgen.storage.location import open_store


def sample(index: int, boxes: int = 2) -> Sample:
    """Return a sample with a noise image of 32 x 24 px."""
    pixels = np.random.default_rng(index).integers(0, 255, (24, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    annotations = []
    for k in range(boxes):
        annotation = Annotation(
            bbox=(1.0 + k, 2.0, 5.5, 6.0), category_id=18, category="dog", phrase="a dog", area=33.0
        )
        annotations.append(annotation)
    return Sample(index, 32, 24, "2 dog", 7, 0, tuple(annotations), buffer.getvalue(), "png")


def write_dataset(out: Path, counts: list[int]) -> Path:
    """Write a dataset with shards of two images; `counts` are the boxes of each image."""
    info = DatasetInfo("test", len(counts), {"seed": 0}, {"dog": 18}, "png", "Apache-2.0")
    write_info(open_store(out), info, {})
    for number in range(len(counts) // 2):
        samples = [sample(2 * number + k, counts[2 * number + k]) for k in range(2)]
        commit(open_store(out), stage(open_store(out), number, samples, {}, 0.0, 2))
    (out / "job.yaml").write_text("version: 1\n")
    finalize(open_store(out), info)
    return out


def test_bytes_depend_on_the_samples_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    samples = [sample(0), sample(1)]
    first = stage(store, 0, samples, {"threads": 1}, 1.0, 2)
    second = stage(store, 0, samples, {"threads": 2}, 2.0, 2)
    assert (tmp_path / first.tar).read_bytes() == (tmp_path / second.tar).read_bytes()
    assert (tmp_path / first.parquet).read_bytes() == (tmp_path / second.parquet).read_bytes()
    assert first.marker.sha256 == second.marker.sha256
    with tarfile.open(tmp_path / first.tar) as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == [
        "000000000.png",
        "000000000.json",
        "000000001.png",
        "000000001.json",
    ]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


def test_a_shard_exists_if_its_marker_is_valid(tmp_path: Path) -> None:
    staged = stage(open_store(tmp_path), 0, [sample(0)], {}, 0.0, 1)
    assert list_committed_shards(open_store(tmp_path)) == []
    commit(open_store(tmp_path), staged)
    assert list_committed_shards(open_store(tmp_path)) == [0]
    (tmp_path / format_shard_file(0, ".json")).write_text("{half")
    assert read_marker(open_store(tmp_path), 0) is None


@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_a_shard_with_a_truncated_file_does_not_exist(tmp_path: Path, suffix: str) -> None:
    commit(open_store(tmp_path), stage(open_store(tmp_path), 0, [sample(0)], {}, 0.0, 1))
    path = tmp_path / format_shard_file(0, suffix)
    path.write_bytes(path.read_bytes()[:-1])
    assert list_committed_shards(open_store(tmp_path)) == []


def test_rows_and_json_agree(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    samples = [sample(0), sample(1, 0)]
    commit(store, stage(store, 0, samples, {}, 0.0, 2))
    rows = read_rows(store, 0)
    assert list(rows[0]) == SCHEMA.names
    for row, original in zip(rows, samples, strict=True):
        record = json.loads(original.json())
        assert [annotation.to_coco() for annotation in read_annotations(row)] == record[
            "annotations"
        ]
        for name in ("index", "key", "width", "height", "prompt", "seed", "attempt"):
            assert row[name] == record[name]


@pytest.mark.parametrize("counts", [[2, 3, 1, 2], [0, 0, 2, 0, 0, 0, 1, 2], [2, 0, 1, 0]])
def test_webdataset_and_datasets_load_every_box(tmp_path: Path, counts: list[int]) -> None:
    out = write_dataset(tmp_path / "out", counts)
    urls = [str(p) for p in sorted((out / "shards").glob("*.tar"))]
    reader = webdataset.WebDataset(urls, shardshuffle=False)
    pairs = list(reader.decode("pil").to_tuple("png", "json"))
    assert [len(record["annotations"]) for _, record in pairs] == counts
    assert {image.size for image, _ in pairs} == {(32, 24)}
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert [len(record["annotations"]) for record in loaded["json"]] == counts
    for (_, record), row in zip(pairs, loaded, strict=True):
        boxes = [annotation["bbox"] for annotation in row["json"]["annotations"]]
        assert boxes == [annotation["bbox"] for annotation in record["annotations"]]
        assert row["png"].size == (32, 24)


def test_the_wids_index_matches_the_shards(tmp_path: Path) -> None:
    import hashlib

    out = write_dataset(tmp_path / "out", [1, 2, 3, 4])
    index = json.loads((out / "index.json").read_text())
    assert [s["nsamples"] for s in index["shardlist"]] == [2, 2]
    for entry in index["shardlist"]:
        data = (out / entry["url"]).read_bytes()
        assert (len(data), hashlib.md5(data).hexdigest()) == (entry["filesize"], entry["md5sum"])
