"""`synthgen merge`: every picture and box of the sources, once, with its bytes, and where it came from."""

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
from synthgen.dataset.finalise import begin, finalize
from synthgen.dataset.info import DatasetInfo, write_info
from synthgen.dataset.marker import committed
from synthgen.dataset.sample import Sample, annotations_of
from synthgen.dataset.shard import commit, read_members, read_rows, stage
from synthgen.dataset.shard_reader import parsed_samples
from synthgen.engine.merging import MergeSpec, Samples, merge, read_parts
from synthgen.engine.repair import repair
from synthgen.errors import InputError
from synthgen.storage.local import LocalStore
from synthgen.storage.location import open_store
from tests.conftest import shard_bytes
from tests.dataset.test_shard import sample
from tests.s3 import S3


def write(out: Path, images: int, first: int = 0, size: int = 2, **more: Any) -> Path:
    """A dataset of noise: sample k looks like number first + k."""
    ids, said = more.pop("ids", {"dog": 18}), more.pop("said", [None] * images)
    info = DatasetInfo(
        out.name,
        images,
        {"seed": first, "pipeline.model_sha256": "m"},
        ids,
        "png",
        more.pop("licence", "CC0"),
        **more,
    )
    write_info(open_store(out), info, {})
    names = list(ids)
    for number, start in enumerate(range(0, images, size)):
        group = []
        for index in range(start, min(start + size, images)):
            made = sample(first + index, 1 + index % 2)
            kinds = [names[k % len(names)] for k in range(2)]
            place = (
                float(first + index),
                1.5,
                3.0,
                4.0,
            )  # no two pictures have their boxes in the same places
            boxes = tuple(
                replace(a, bbox=place, category=kind, category_id=ids[kind])
                for a, kind in zip(made.annotations, kinds, strict=False)
            )
            group.append(
                Sample(
                    index,
                    200,
                    24,
                    made.prompt,
                    made.seed,
                    0,
                    boxes,
                    wide(made.image),
                    "png",
                    source=said[index],
                )
            )
        numerics = {"versions": {"torch": "2.13"}, "files": {"pipeline.model_sha256": "m"}}
        commit(open_store(out), stage(open_store(out), number, group, numerics, 0.0, len(group)))
    (out / "job.yaml").write_text("version: 1\n")
    finalize(open_store(out), info)
    return out


def wide(picture: bytes) -> bytes:
    """The picture of 200 x 24 px, so that every box above lies inside."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture)).resize((200, 24)).save(buffer, "PNG")
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


def test_all_samples_are_there_once(
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
        for number in committed(open_store(source))
        for row in read_rows(open_store(source), number)
    ]
    rows = [
        row for number in committed(open_store(to)) for row in read_rows(open_store(to), number)
    ]
    assert [row["origin"] for row in rows] == [
        {"dataset": s.name, "index": r["index"], "key": r["key"]} for s, r in pairs
    ]
    assert [row["image_sha256"] for row in rows] == [r["image_sha256"] for _, r in pairs]
    assert [annotations_of(row) for row in rows] == [annotations_of(r) for _, r in pairs]
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


def test_from_and_to_an_object_store(tmp_path: Path, sources: tuple[Path, ...], s3: S3) -> None:
    folder, url = uuid.uuid4().hex, s3.url(uuid.uuid4().hex)
    there = open_store(s3.url(f"{folder}/b"))
    for path in (p for p in sources[1].rglob("*") if p.is_file()):
        there.write(str(path.relative_to(sources[1])), path.read_bytes())
    merge(MergeSpec(sources[:2], tmp_path / "to", shard_size=3))
    written = merge(MergeSpec((sources[0], str(there)), url, shard_size=3)).written
    assert (written.made, written.counts["complete"]) == (8, True)
    assert check_dataset(open_store(url)) == check_dataset(open_store(tmp_path / "to"))
    for name, data in shard_bytes(tmp_path / "to").items():
        assert open_store(url).read(f"shards/{name}") == data
    with pytest.raises(InputError, match="lies over the output"):
        merge(MergeSpec((sources[0], str(there)), s3.url(folder)))


def test_what_a_coco_file_said_is_kept(tmp_path: Path) -> None:
    from datasets import load_dataset

    said = [json.dumps({"image": {"id": k}, "annotations": [{}]}) for k in range(2)]
    a, b = (
        write(tmp_path / "a", 2, said=said, imported="coco: x.json"),
        write(tmp_path / "b", 2, 10),
    )
    merge(MergeSpec((a, b), tmp_path / "to"))
    assert check_dataset(open_store(tmp_path / "to"))[0] == []
    assert [row["source"] for row in read_rows(open_store(tmp_path / "to"), 0)] == [
        *said,
        None,
        None,
    ]
    rows = load_dataset(str(tmp_path / "to"), split="train", cache_dir=str(tmp_path / "cache"))
    assert [(row["json"]["source"], row["json"]["origin"]["dataset"]) for row in rows] == [
        (said[0], "a"),
        (said[1], "a"),
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


def test_a_merge_that_was_interrupted_goes_on(tmp_path: Path, sources: tuple[Path, ...]) -> None:
    merge(MergeSpec(sources, tmp_path / "whole", shard_size=4))
    spec, told = MergeSpec(sources, tmp_path / "to", shard_size=4), []

    def interrupt(what: str, count: int) -> None:
        told.append(count)
        if len(told) == 7:
            raise KeyboardInterrupt

    written = merge(spec, tell=interrupt).written
    assert (written.made, written.interrupted, written.counts["complete"]) == (4, True, False)
    assert merge(spec).written.made == 8
    assert shard_bytes(tmp_path / "to") == shard_bytes(tmp_path / "whole")
    assert merge(spec).written.made == 0


def test_each_source_shard_is_read_once(
    tmp_path: Path, sources: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, parsed = Counter[str](), list[int]()
    begin = LocalStore.open

    def count(store: LocalStore, name: str) -> Any:
        opened[f"{store.root.name}/{name}"] += 1
        return begin(store, name)

    def noted(*args: Any) -> Iterator[Sample]:
        for found in parsed_samples(*args):
            parsed.append(found.index)
            yield found

    monkeypatch.setattr(LocalStore, "open", count)
    monkeypatch.setattr("synthgen.engine.merging.parsed_samples", noted)
    merge(MergeSpec(sources, tmp_path / "to", shard_size=1))
    tars = {
        name: times for name, times in opened.items() if name[0] in "abc" and name.endswith(".tar")
    }
    assert tars == {
        **{f"a/shards/00000{number}.tar": 1 for number in range(3)},
        "b/shards/000000.tar": 1,
        **{f"c/shards/00000{number}.tar": 1 for number in range(4)},
    }
    assert len(parsed) == 12
    for number in (1, 6):
        (tmp_path / f"to/shards/00000{number}.json").unlink()  # of shards that hold parts of one
    whole = shard_bytes(tmp_path / "to")
    assert merge(MergeSpec(sources, tmp_path / "to", shard_size=1)).written.made == 2
    assert shard_bytes(tmp_path / "to") == whole
    assert check_dataset(open_store(tmp_path / "to"))[0] == []


def test_a_source_that_changes_meanwhile_ends_it(tmp_path: Path, sources: tuple[Path, ...]) -> None:
    samples = Samples(
        read_parts(MergeSpec(sources, tmp_path / "to"), open_store(tmp_path / "to")),
        {"dog": 18, "fox": 101},
    )
    assert [s.index for s in samples(range(1))] == [0]
    commit(open_store(sources[0]), stage(open_store(sources[0]), 1, [sample(2)], {}, 0.0, 1))
    with pytest.raises(
        InputError, match=r"000001.tar: has changed since the merge began; merge again"
    ):
        list(samples(range(1, 5)))


def test_merged_ones_can_be_merged_and_repaired(tmp_path: Path, sources: tuple[Path, ...]) -> None:
    first, last = tmp_path / "first", tmp_path / "last"
    merge(MergeSpec(sources[:2], first))
    merge(MergeSpec((first, sources[2]), last, shard_size=100))
    assert check_dataset(open_store(last))[0] == []
    info = json.loads((last / "dataset.json").read_text())
    assert [s["name"] for s in info["sources"][0]["sources"]] == ["a", "b"]
    (last / "shards/000000.parquet").write_bytes(b"gone")
    assert repair(open_store(last)).restored == [0]
    assert check_dataset(open_store(last))[0] == []


def test_ids_go_by_name(tmp_path: Path) -> None:
    a, b = (
        write(tmp_path / "a", 2, ids={"dog": 1, "fox": 7}),
        write(tmp_path / "b", 2, 9, ids={"dog": 18, "fox": 9}),
    )
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


def test_two_names_with_one_id_clash(tmp_path: Path) -> None:
    a, b = (
        write(tmp_path / "a", 2, ids={"fox": 101}),
        write(tmp_path / "b", 2, 9, ids={"wolf": 101}),
    )
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


def test_what_cannot_be_merged(
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
        f"{a}: mixed inside: shard 000000 was made with torch 2.13, shard 000001 with 2.14;"
    )
    assert short == f"{c}: has 3 of 4 images; finish it first (synthgen run, or synthgen repair)"
    assert none == f"{tmp_path / 'none'}: not a synthgen dataset (no readable dataset.json)"
    assert (
        over
        == f"{tmp_path / 'to/in'}: lies over the output {tmp_path / 'to'}; give another folder to merge into"
    )
    assert twice == f"{same}: has the very samples of {b}; name it once"
    assert not (tmp_path / "to").exists()


def test_mixed_models_inside_are_refused_between_sources_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write(tmp_path / "a", 4), write(tmp_path / "b", 4, 10)
    numerics(a, 1, files={"pipeline.model_sha256": "other"})
    assert cli.main(["merge", str(a), str(b), "--to", str(tmp_path / "to")]) == 2
    assert (
        "shard 000000 was made with pipeline.model_sha256 m, shard 000001 with other"
        in capsys.readouterr().err
    )
    numerics(a, 0, files={"pipeline.model_sha256": "other"})
    assert cli.main(["merge", str(a), str(b), "--to", str(tmp_path / "to")]) == 0
    assert "the sources differ in pipeline.model_sha256: a other, b m" in capsys.readouterr().out
    sources = json.loads((tmp_path / "to/dataset.json").read_text())["sources"]
    assert [s["files"]["pipeline.model_sha256"] for s in sources] == ["other", "m"]


def test_a_damaged_source_ends_it_and_what_was_written_stays(
    tmp_path: Path, sources: tuple[Path, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    tar = sources[1] / "shards/000000.tar"
    data = bytearray(tar.read_bytes())
    tar.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    command = ["merge", *map(str, sources), "--to", str(tmp_path / "to"), "--shard-size", "5"]
    assert cli.main(command) == 2
    assert (
        f"{tar}: its bytes are not those that were committed; make it good first: synthgen repair"
        in capsys.readouterr().err
    )
    assert committed(open_store(tmp_path / "to")) == [0]
    tar.write_bytes(data)
    assert cli.main(command) == 0
    assert check_dataset(open_store(tmp_path / "to"))[0] == []


def test_another_merge_is_refused(tmp_path: Path, sources: tuple[Path, ...]) -> None:
    merge(MergeSpec(sources[:2], tmp_path / "to"))
    with pytest.raises(Exception, match="holds another job"):
        merge(MergeSpec(sources, tmp_path / "to"))
    assert merge(MergeSpec(sources, tmp_path / "to"), overwrite=True).written.made == 12


def test_a_dataset_that_another_version_finished_is_not_mixed(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 4), write(tmp_path / "b", 4, 10)
    versions = {"torch": "2.13", "ray": "99", "synthgen-layouts": "9", "scipy": "1"}
    numerics(
        a,
        1,
        versions=versions,
        files={"pipeline.model_sha256": "m", "scene.backgrounds_sha256": "of a newer version"},
    )
    assert merge(MergeSpec((a, b), tmp_path / "to")).written.made == 8


def test_torch_does_not_matter_where_cut_outs_were_pasted(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 4), write(tmp_path / "b", 4, 10)
    numerics(a, 1, versions={"torch": "2.14"})
    with pytest.raises(InputError, match=r"made with torch 2\.13, shard 000001 with 2\.14"):
        merge(MergeSpec((a, b), tmp_path / "to"))
    edit(a / "dataset.json", fingerprint={"pipeline.method": "paste", "verify": None})
    assert merge(MergeSpec((a, b), tmp_path / "to")).written.made == 8


def test_a_failed_start_does_not_stand_in_the_way(
    tmp_path: Path, sources: tuple[Path, ...]
) -> None:
    other = DatasetInfo("other", 9, {"seed": 1}, {"dog": 18}, "png", "CC0")
    begin(open_store(tmp_path / "to"), other, {"version": 1})
    assert merge(MergeSpec(sources, tmp_path / "to")).written.made == 12
    assert check_dataset(open_store(tmp_path / "to"))[0] == []
