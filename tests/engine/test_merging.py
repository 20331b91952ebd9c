"""`synthgen merge`: every image and box of the sources once, with its bytes and its origin."""

import contextlib
import io
import json
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO

from synthgen import cli
from synthgen.dataset.check import check_dataset
from synthgen.dataset.finalise import begin_dataset, finalize
from synthgen.dataset.info import DatasetInfo, write_info
from synthgen.dataset.marker import list_committed_shards
from synthgen.dataset.sample import Sample, read_annotations
from synthgen.dataset.shard import commit, read_members, read_rows, stage
from synthgen.dataset.shard_reader import parse_samples
from synthgen.engine.merging import MergeSpec, SampleReader, merge, read_sources
from synthgen.engine.repair import repair
from synthgen.errors import InputError
from synthgen.storage.local import LocalStore
from synthgen.storage.location import open_store
from tests.conftest import read_shard_bytes
from tests.dataset.test_shard import sample
from tests.s3 import S3


def write(out: Path, images: int, first: int = 0, size: int = 2, **fields: Any) -> Path:
    """Write a dataset of noise; sample k shows the image of number first + k."""
    ids = fields.pop("ids", {"dog": 18})
    source_records = fields.pop("records", [None] * images)
    info = DatasetInfo(
        out.name,
        images,
        {"seed": first, "pipeline.model_sha256": "m"},
        ids,
        "png",
        fields.pop("licence", "CC0"),
        **fields,
    )
    write_info(open_store(out), info, {})
    names = list(ids)
    for number, start in enumerate(range(0, images, size)):
        group = []
        for index in range(start, min(start + size, images)):
            noise = sample(first + index, 1 + index % 2)
            kinds = [names[k % len(names)] for k in range(2)]
            place = (
                float(first + index),
                1.5,
                3.0,
                4.0,
            )  # boxes of different images have different places
            boxes = tuple(
                replace(a, bbox=place, category=kind, category_id=ids[kind])
                for a, kind in zip(noise.annotations, kinds, strict=False)
            )
            group.append(
                Sample(
                    index,
                    200,
                    24,
                    noise.prompt,
                    noise.seed,
                    0,
                    boxes,
                    wide(noise.image),
                    "png",
                    source=source_records[index],
                )
            )
        numerics = {"versions": {"torch": "2.13"}, "files": {"pipeline.model_sha256": "m"}}
        commit(open_store(out), stage(open_store(out), number, group, numerics, 0.0, len(group)))
    (out / "job.yaml").write_text("version: 1\n")
    finalize(open_store(out), info)
    return out


def wide(data: bytes) -> bytes:
    """Return the image at 200 x 24 px, so that every box above lies inside."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).resize((200, 24)).save(buffer, "PNG")
    return buffer.getvalue()


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict[str, Any]]:
    status = cli.main([*map(str, argv), "--json"])
    return status, json.loads(capsys.readouterr().out)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path, Path]:
    return (
        write(tmp_path / "a", 5),
        write(tmp_path / "b", 3, 10, size=3, ids={"dog": 18, "fox": 101}, licence="MIT"),
        write(tmp_path / "c", 4, 20, size=1, imported="coco: x.json"),
    )


def test_every_sample_is_merged_once(
    tmp_path: Path, sources: tuple[Path, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "to"
    status, data = run(capsys, "merge", *sources, "--to", to, "--shard-size", 4)
    assert status == 0
    assert (data["images"], data["shards"], data["made"], data["complete"], data["categories"]) == (
        12,
        3,
        12,
        True,
        {"dog": 18, "fox": 101},
    )
    assert check_dataset(open_store(to))[0] == []
    pairs = [
        (source, row)
        for source in sources
        for number in list_committed_shards(open_store(source))
        for row in read_rows(open_store(source), number)
    ]
    rows = [
        row
        for number in list_committed_shards(open_store(to))
        for row in read_rows(open_store(to), number)
    ]
    assert [row["origin"] for row in rows] == [
        {"dataset": s.name, "index": r["index"], "key": r["key"]} for s, r in pairs
    ]
    assert [row["image_sha256"] for row in rows] == [r["image_sha256"] for _, r in pairs]
    assert [read_annotations(row) for row in rows] == [read_annotations(r) for _, r in pairs]
    records = [
        json.loads(d)
        for t in sorted((to / "shards").glob("*.tar"))
        for n, d in read_members(t)
        if n.endswith("json")
    ]
    assert [(r["index"], r["key"], r["origin"]) for r in records] == [
        (i, f"{i:09d}", row["origin"]) for i, row in enumerate(rows)
    ]
    assert pq.read_table(to / "manifest.parquet")["origin"].to_pylist() == [
        row["origin"] for row in rows
    ]
    info = json.loads((to / "dataset.json").read_text())
    assert [(s["name"], s["first_index"], s["images"]) for s in info["sources"]] == [
        ("a", 0, 5),
        ("b", 5, 3),
        ("c", 8, 4),
    ]
    assert info["licence"] == "CC0; MIT"
    assert info["sources"][0]["fingerprint"]["pipeline.model_sha256"] == "m"


def test_merge_from_and_to_an_object_store(
    tmp_path: Path, sources: tuple[Path, ...], s3: S3
) -> None:
    folder = uuid.uuid4().hex
    url = s3.url(uuid.uuid4().hex)
    remote = open_store(s3.url(f"{folder}/b"))
    for path in (p for p in sources[1].rglob("*") if p.is_file()):
        remote.write(str(path.relative_to(sources[1])), path.read_bytes())
    merge(MergeSpec(sources[:2], tmp_path / "to", shard_size=3))
    written = merge(MergeSpec((sources[0], str(remote)), url, shard_size=3)).written
    assert (written.made, written.counts["complete"]) == (8, True)
    assert check_dataset(open_store(url)) == check_dataset(open_store(tmp_path / "to"))
    for name, data in read_shard_bytes(tmp_path / "to").items():
        assert open_store(url).read(f"shards/{name}") == data
    with pytest.raises(InputError, match="lies over the output"):
        merge(MergeSpec((sources[0], str(remote)), s3.url(folder)))


def test_the_records_of_a_coco_file_are_kept(tmp_path: Path) -> None:
    from datasets import load_dataset

    records = [json.dumps({"image": {"id": k}, "annotations": [{}]}) for k in range(2)]
    a = write(tmp_path / "a", 2, records=records, imported="coco: x.json")
    b = write(tmp_path / "b", 2, 10)
    merge(MergeSpec((a, b), tmp_path / "to"))
    assert check_dataset(open_store(tmp_path / "to"))[0] == []
    assert [row["source"] for row in read_rows(open_store(tmp_path / "to"), 0)] == [
        *records,
        None,
        None,
    ]
    rows = load_dataset(str(tmp_path / "to"), split="train", cache_dir=str(tmp_path / "cache"))
    assert [(row["json"]["source"], row["json"]["origin"]["dataset"]) for row in rows] == [
        (records[0], "a"),
        (records[1], "a"),
        (None, "b"),
        (None, "b"),
    ]


def test_other_programs_read_it(tmp_path: Path, sources: tuple[Path, ...]) -> None:
    from datasets import load_dataset

    to = tmp_path / "to"
    merge(MergeSpec(sources, to, shard_size=5))
    rows = load_dataset(str(to), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["json"]["origin"]["dataset"] for row in rows] == ["a"] * 5 + ["b"] * 3 + ["c"] * 4
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(to / "annotations/instances.json"))
    assert sorted(coco.imgs) == list(range(1, 13))
    assert check_dataset(open_store(to))[0] == []


def test_an_interrupted_merge_is_continued(tmp_path: Path, sources: tuple[Path, ...]) -> None:
    merge(MergeSpec(sources, tmp_path / "whole", shard_size=4))
    spec = MergeSpec(sources, tmp_path / "to", shard_size=4)
    reports = []

    def interrupt(what: str, count: int) -> None:
        reports.append(count)
        if len(reports) == 7:
            raise KeyboardInterrupt

    written = merge(spec, report=interrupt).written
    assert (written.made, written.interrupted, written.counts["complete"]) == (4, True, False)
    assert merge(spec).written.made == 8
    assert read_shard_bytes(tmp_path / "to") == read_shard_bytes(tmp_path / "whole")
    assert merge(spec).written.made == 0


def test_each_source_shard_is_read_once(
    tmp_path: Path, sources: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_files = Counter[str]()
    parsed_indices = list[int]()
    open_file = LocalStore.open

    def count(store: LocalStore, name: str) -> Any:
        opened_files[f"{store.root.name}/{name}"] += 1
        return open_file(store, name)

    def parse_and_count(*args: Any) -> Iterator[Sample]:
        for parsed in parse_samples(*args):
            parsed_indices.append(parsed.index)
            yield parsed

    monkeypatch.setattr(LocalStore, "open", count)
    monkeypatch.setattr("synthgen.engine.merging.parse_samples", parse_and_count)
    merge(MergeSpec(sources, tmp_path / "to", shard_size=1))
    tars = {
        name: times
        for name, times in opened_files.items()
        if name[0] in "abc" and name.endswith(".tar")
    }
    assert tars == {
        **{f"a/shards/00000{number}.tar": 1 for number in range(3)},
        "b/shards/000000.tar": 1,
        **{f"c/shards/00000{number}.tar": 1 for number in range(4)},
    }
    assert len(parsed_indices) == 12
    for number in (1, 6):
        (
            tmp_path / f"to/shards/00000{number}.json"
        ).unlink()  # of shards with samples of a larger source shard
    whole = read_shard_bytes(tmp_path / "to")
    assert merge(MergeSpec(sources, tmp_path / "to", shard_size=1)).written.made == 2
    assert read_shard_bytes(tmp_path / "to") == whole
    assert check_dataset(open_store(tmp_path / "to"))[0] == []


def test_a_source_that_changes_during_the_merge_ends_it(
    tmp_path: Path, sources: tuple[Path, ...]
) -> None:
    samples = SampleReader(
        read_sources(MergeSpec(sources, tmp_path / "to"), open_store(tmp_path / "to")),
        {"dog": 18, "fox": 101},
    )
    assert [s.index for s in samples(range(1))] == [0]
    commit(open_store(sources[0]), stage(open_store(sources[0]), 1, [sample(2)], {}, 0.0, 1))
    with pytest.raises(
        InputError, match=r"000001.tar: has changed since the merge began; merge again"
    ):
        list(samples(range(1, 5)))


def test_a_merged_dataset_can_be_merged_and_repaired(
    tmp_path: Path, sources: tuple[Path, ...]
) -> None:
    first = tmp_path / "first"
    last = tmp_path / "last"
    merge(MergeSpec(sources[:2], first))
    merge(MergeSpec((first, sources[2]), last, shard_size=100))
    assert check_dataset(open_store(last))[0] == []
    info = json.loads((last / "dataset.json").read_text())
    assert [s["name"] for s in info["sources"][0]["sources"]] == ["a", "b"]
    (last / "shards/000000.parquet").write_bytes(b"gone")
    assert repair(open_store(last)).restored == [0]
    assert check_dataset(open_store(last))[0] == []


def test_ids_belong_to_names(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 2, ids={"dog": 1, "fox": 7})
    b = write(tmp_path / "b", 2, 9, ids={"dog": 18, "fox": 9})
    with pytest.raises(
        Exception, match="'fox' has different ids: 7 in a, 9 in b; say which: --ids 'fox'=9"
    ):
        merge(MergeSpec((a, b), tmp_path / "to"))
    assert not (tmp_path / "to").exists()
    result = merge(MergeSpec((a, b), tmp_path / "to", {"fox": 7}))
    assert result.info.category_ids == {"dog": 18, "fox": 7}
    assert {i for row in read_rows(open_store(tmp_path / "to"), 0) for i in row["category_id"]} == {
        18,
        7,
    }
    assert check_dataset(open_store(tmp_path / "to"))[0] == []


def test_two_names_with_the_same_id_are_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 2, ids={"fox": 101})
    b = write(tmp_path / "b", 2, 9, ids={"wolf": 101})
    with pytest.raises(
        Exception,
        match="'wolf' and 'fox' have the same id 101; give one of them another with --ids",
    ):
        merge(MergeSpec((a, b), tmp_path / "to"))
    assert merge(MergeSpec((a, b), tmp_path / "to", {"wolf": 102})).info.category_ids == {
        "fox": 101,
        "wolf": 102,
    }


def numerics(out: Path, number: int, **changes: object) -> None:
    path = out / f"shards/00000{number}.json"
    edit(path, numerics={**json.loads(path.read_text())["numerics"], **changes})


def test_sources_that_cannot_be_merged_are_listed(
    tmp_path: Path, sources: tuple[Path, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c = sources
    numerics(a, 1, versions={"torch": "2.14"})
    numerics(b, 0, files={"pipeline.model_sha256": "other"})
    numerics(b, 0, files={"pipeline.model_sha256": "m"})
    (c / "shards/000003.json").unlink()
    same = Path(shutil.copytree(b, tmp_path / "same"))
    status, data = run(
        capsys,
        "merge",
        a,
        b,
        c,
        same,
        tmp_path / "none",
        tmp_path / "to/in",
        "--to",
        tmp_path / "to",
    )
    assert status == 2
    mixed, short, none, over, twice = data["error"]
    assert mixed.startswith(
        f"{a}: its shards were generated differently: shard 000000 with torch 2.13, "
        "shard 000001 with 2.14;"
    )
    assert short == f"{c}: has 3 of 4 images; finish it first (synthgen run, or synthgen repair)"
    assert none == f"{tmp_path / 'none'}: not a synthgen dataset (no readable dataset.json)"
    out = tmp_path / "to"
    assert over == f"{out / 'in'}: lies over the output {out}; give another folder to merge into"
    assert twice == f"{same}: has the same samples as {b}; name it once"
    assert not (tmp_path / "to").exists()


def test_a_mixed_source_is_refused_and_different_sources_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a", 4)
    b = write(tmp_path / "b", 4, 10)
    numerics(a, 1, files={"pipeline.model_sha256": "other"})
    assert cli.main(["merge", str(a), str(b), "--to", str(tmp_path / "to")]) == 2
    assert (
        "shard 000000 with pipeline.model_sha256 m, shard 000001 with other"
        in capsys.readouterr().err
    )
    numerics(a, 0, files={"pipeline.model_sha256": "other"})
    assert cli.main(["merge", str(a), str(b), "--to", str(tmp_path / "to")]) == 0
    assert "the sources differ in pipeline.model_sha256: a other, b m" in capsys.readouterr().out
    sources = json.loads((tmp_path / "to/dataset.json").read_text())["sources"]
    assert [s["files"]["pipeline.model_sha256"] for s in sources] == ["other", "m"]


def test_a_damaged_source_ends_the_merge_and_committed_shards_stay(
    tmp_path: Path, sources: tuple[Path, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    tar = sources[1] / "shards/000000.tar"
    data = bytearray(tar.read_bytes())
    tar.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    command = ["merge", *map(str, sources), "--to", str(tmp_path / "to"), "--shard-size", "5"]
    assert cli.main(command) == 2
    assert (
        f"{tar}: its bytes are not those that were committed; repair it first: synthgen repair"
        in capsys.readouterr().err
    )
    assert list_committed_shards(open_store(tmp_path / "to")) == [0]
    tar.write_bytes(data)
    assert cli.main(command) == 0
    assert check_dataset(open_store(tmp_path / "to"))[0] == []


def test_an_output_of_another_merge_is_refused(tmp_path: Path, sources: tuple[Path, ...]) -> None:
    merge(MergeSpec(sources[:2], tmp_path / "to"))
    with pytest.raises(Exception, match="holds another job"):
        merge(MergeSpec(sources, tmp_path / "to"))
    assert merge(MergeSpec(sources, tmp_path / "to"), overwrite=True).written.made == 12


def test_a_dataset_finished_by_another_version_is_not_mixed(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 4)
    b = write(tmp_path / "b", 4, 10)
    versions = {"torch": "2.13", "ray": "99", "synthgen-layouts": "9", "scipy": "1"}
    numerics(
        a,
        1,
        versions=versions,
        files={"pipeline.model_sha256": "m", "scene.backgrounds_sha256": "of a newer version"},
    )
    assert merge(MergeSpec((a, b), tmp_path / "to")).written.made == 8


def test_the_version_of_torch_does_not_matter_for_pasted_cut_outs(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 4)
    b = write(tmp_path / "b", 4, 10)
    numerics(a, 1, versions={"torch": "2.14"})
    with pytest.raises(InputError, match=r"with torch 2\.13, shard 000001 with 2\.14"):
        merge(MergeSpec((a, b), tmp_path / "to"))
    edit(a / "dataset.json", fingerprint={"pipeline.method": "paste", "verify": None})
    assert merge(MergeSpec((a, b), tmp_path / "to")).written.made == 8


def test_an_output_without_a_shard_does_not_prevent_a_merge(
    tmp_path: Path, sources: tuple[Path, ...]
) -> None:
    other = DatasetInfo("other", 9, {"seed": 1}, {"dog": 18}, "png", "CC0")
    begin_dataset(open_store(tmp_path / "to"), other, {"version": 1})
    assert merge(MergeSpec(sources, tmp_path / "to")).written.made == 12
    assert check_dataset(open_store(tmp_path / "to"))[0] == []
