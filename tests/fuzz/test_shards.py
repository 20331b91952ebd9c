"""Whatever stands in a dataset's files: whoever reads it goes on, or says in one line what is wrong, and writes nowhere else."""

import contextlib
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.dataset.check import check_dataset
from synthgen.dataset.finalise import finalize
from synthgen.dataset.info import DatasetInfo, read_info, write_info
from synthgen.dataset.reader import open_dataset
from synthgen.dataset.sample import SCHEMA
from synthgen.dataset.shard import commit, stage
from synthgen.engine.merging import MergeSpec, merge
from synthgen.engine.repair import repair
from synthgen.errors import InputError, explain
from synthgen.evaluation.labelled_images import read_labelled_images
from synthgen.formats.base import writable_formats
from synthgen.formats.export import ExportSpec, export_dataset
from synthgen.layouts.rows import read_entries
from synthgen.report import write_report
from synthgen.storage.location import open_store
from synthgen.training.base import DataSpec
from synthgen.training.dataset_scenes import ShardScenes
from tests.dataset.test_shard import sample
from tests.fuzz import tries

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset as if it were imported from a COCO file."""
    out, head = (
        tmp_path_factory.mktemp("whole") / "out",
        {"info": {}, "licenses": [], "categories": [{"id": 18, "name": "dog"}]},
    )
    source = {"head": head, "file_names": True, "annotation_ids": False}
    info = DatasetInfo("test", 4, {"seed": 0}, {"dog": 18}, "png", "Apache-2.0", "x", source)
    write_info(open_store(out), info, {})
    for number, counts in enumerate(((2, 1), (0, 1))):
        said = [
            {"image": {"id": k, "file_name": f"{number}/{k}.png"}, "annotations": [{}] * n}
            for k, n in enumerate(counts)
        ]
        group = [
            replace(sample(2 * number + k, n), source=json.dumps(said[k]))
            for k, n in enumerate(counts)
        ]
        commit(open_store(out), stage(open_store(out), number, group, {}, 0.0, 2))
    (out / "job.yaml").write_text("version: 1\n")
    finalize(open_store(out), info)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


def train(out: Path, on_bad: str) -> None:
    scenes = ShardScenes(DataSpec(shards=str(out), side=64, resize=True, on_bad=on_bad), 0)
    for k in range(4):
        scenes[k]


def read_everywhere(folder: Path, out: Path, forms: Sequence[str] = ("coco",)) -> None:
    """Every command that reads shards: what may come of it is told in a line, and nothing outside of its output is written."""
    faults, _ = check_dataset(open_store(out))
    assert all("\n" not in fault for fault in faults)
    readers: list[Callable[[], object]] = [
        lambda: train(out, "refuse"),
        lambda: train(out, "skip"),
        lambda: list(read_labelled_images(open_store(out))),
        lambda: merge(MergeSpec((out,), folder / "merged"), overwrite=True),
        lambda: write_report(open_store(out)),
        lambda: (info := read_info(open_store(out))) and finalize(open_store(out), info),
        lambda: list(open_dataset(out)),
        *(
            lambda form=form: export_dataset(ExportSpec(out, form, folder / form, workers=1))
            for form in forms
        ),
        lambda: repair(open_store(out)),
    ]
    for read in readers:
        try:
            read()
        except (InputError, OSError) as error:
            explain(error)  # raises what is none of ours to tell
    with contextlib.suppress(ValueError):  # whose callers say it in one line
        read_entries(str(out))
    assert {p.name for p in folder.iterdir()} <= {"out", "merged", *writable_formats()}
    for name in ("merged", *writable_formats()):
        shutil.rmtree(folder / name, ignore_errors=True)


def copy(whole: Path, folder: Path) -> Path:
    shutil.rmtree(folder / "out", ignore_errors=True)
    return Path(shutil.copytree(whole, folder / "out"))


def mark(out: Path, number: int = 0, **changes: Any) -> None:
    """Make the marker fit the files, so that readers get further."""
    path = out / f"shards/00000{number}.json"
    tar, table = path.with_suffix(".tar").read_bytes(), path.with_suffix(".parquet").read_bytes()
    found = {
        "bytes": len(tar),
        "sha256": hashlib.sha256(tar).hexdigest(),
        "md5": hashlib.md5(tar).hexdigest(),
    }
    found |= {"parquet_bytes": len(table), "parquet_sha256": hashlib.sha256(table).hexdigest()}
    path.write_text(json.dumps({**json.loads(path.read_text()), **found, **changes}))


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """Some bytes changed, cut off, doubled or thrown in."""
    result = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = (
            draw(st.integers(0, len(result)))
            if draw(st.booleans())
            else draw(st.integers(0, min(600, len(result))))
        )
        kind = draw(st.sampled_from(["change", "cut", "insert", "double"]))
        if kind == "change":
            result[at : at + 1] = draw(st.binary(min_size=1, max_size=3))
        elif kind == "cut":
            del result[at : at + draw(st.integers(1, 4000))]
        elif kind == "insert":
            result[at:at] = draw(st.binary(min_size=1, max_size=20))
        else:
            result[at:at] = result[at : at + 1024]
    return bytes(result)


@given(st.data())
@tries(6)
def test_bytes_of_any_file(whole: Path, folder: Path, data: st.DataObject) -> None:
    out = copy(whole, folder)
    files = sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    path = out / data.draw(st.sampled_from(files))
    path.write_bytes(data.draw(mutated(path.read_bytes()) | st.binary(max_size=64)))
    if path.suffix in (".tar", ".parquet") and path.parent.name == "shards":
        mark(out, int(path.stem))
    read_everywhere(folder, out)


@given(st.data())
@tries(6)
def test_values_of_any_json(whole: Path, folder: Path, data: st.DataObject) -> None:
    out = copy(whole, folder)
    path = out / data.draw(
        st.sampled_from(
            ["shards/000000.json", "dataset.json", "index.json", "annotations/instances.json"]
        )
    )
    path.write_text(json.dumps(changed(json.loads(path.read_text()), data)))
    read_everywhere(folder, out)


def changed(whole: Any, data: st.DataObject) -> Any:
    """Data with some value in it replaced."""
    if not isinstance(whole, dict | list) or not whole or data.draw(st.integers(0, 5)) == 0:
        return data.draw(values)
    key = data.draw(
        st.sampled_from(sorted(whole) if isinstance(whole, dict) else range(len(whole)))
    )
    whole[key] = changed(whole[key], data)
    return whole


def members(tar: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(tar) as archive:
        return [(m, archive.extractfile(m).read()) for m in archive]  # type: ignore[union-attr]


def write_members(
    tar: Path, found: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.GNU_FORMAT
) -> None:
    with tarfile.open(tar, "w", format=form) as archive:
        for member, content in found:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))


@given(st.data())
@tries(6)
def test_records_of_any_values(whole: Path, folder: Path, data: st.DataObject) -> None:
    out = copy(whole, folder)
    tar = out / "shards/000000.tar"
    found = members(tar)
    found[1] = (found[1][0], json.dumps(changed(json.loads(found[1][1]), data)).encode())
    write_members(tar, found)
    mark(out)
    read_everywhere(folder, out)


@given(st.data())
@tries(6)
def test_rows_of_any_values(whole: Path, folder: Path, data: st.DataObject) -> None:
    out = copy(whole, folder)
    path = out / "shards/000000.parquet"
    rows = pq.read_table(path).to_pylist()
    kind = data.draw(st.sampled_from(list(SCHEMA)))
    inner = {
        pa.int64(): st.integers(-(2**63), 2**63 - 1),
        pa.float64(): st.floats(),
        pa.string(): st.text(max_size=6),
    }
    item = kind.type.value_type if pa.types.is_list(kind.type) else kind.type
    one = st.none() | (
        st.lists(st.none() | st.floats(), max_size=5) if pa.types.is_list(item) else inner[item]
    )
    if kind.name == "source" and data.draw(st.booleans()):
        rows[0]["source"] = json.dumps(changed(json.loads(rows[0]["source"]), data))
    else:
        rows[0][kind.name] = data.draw(
            st.none() | st.lists(one, max_size=3) if pa.types.is_list(kind.type) else one
        )
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
    mark(out)
    read_everywhere(folder, out)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"category": "cat"}, "'cat' has id 18, in dataset.json none"),
        ({"category_id": 17}, "'dog' has id 17, in dataset.json 18"),
    ],
)
def test_a_category_that_the_dataset_lacks(
    whole: Path, tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    out = copy(whole, tmp_path)
    found, rows = (
        members(out / "shards/000000.tar"),
        pq.read_table(out / "shards/000000.parquet").to_pylist(),
    )
    record = json.loads(found[1][1])
    for key, value in changes.items():
        record["annotations"][0][key] = rows[0][key][0] = value
    write_members(
        out / "shards/000000.tar",
        [found[0], (found[1][0], json.dumps(record).encode()), *found[2:]],
    )
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), out / "shards/000000.parquet")
    mark(out)
    finalize(open_store(out), read_info(open_store(out)))  # type: ignore[arg-type]
    assert check_dataset(open_store(out))[0] == [f"shards/000000.parquet: category {fault}"]
    read_everywhere(tmp_path, out, tuple(writable_formats()))


LONG = "x" * 5000
HOSTILE = ["../../gone.png", "/gone.png", "..", ".", "", LONG + ".png", "a/../../gone.json", "C:\\gone.png", "\n.png", "000000000.png/../x", "\u202e.png"]  # fmt: skip
KINDS = {"file": tarfile.REGTYPE, "link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE, "folder": tarfile.DIRTYPE,
         "device": tarfile.CHRTYPE, "sparse": tarfile.GNUTYPE_SPARSE}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "file") for name in HOSTILE), *((HOSTILE[0], kind) for kind in KINDS)],
)
def test_names_and_links_lead_nowhere(whole: Path, tmp_path: Path, name: str, kind: str) -> None:
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    out = copy(whole, folder)
    tar = out / "shards/000000.tar"
    member = tarfile.TarInfo(name)
    member.type, member.linkname = KINDS[kind], name if "link" in kind else ""
    found = members(whole / "shards/000000.tar")
    write_members(
        tar,
        [(member, found[0][1]), *found],
        tarfile.PAX_FORMAT if kind == "file" else tarfile.GNU_FORMAT,
    )
    mark(out)
    read_everywhere(folder, out)
    assert check_dataset(open_store(out))[0]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
    assert not Path("/gone.png").exists()


def test_a_link_to_a_file_of_this_machine_is_not_followed(whole: Path, tmp_path: Path) -> None:
    out = copy(whole, tmp_path)
    (tmp_path / "secret").write_text("secret")
    found = members(out / "shards/000000.tar")
    found[0][0].type, found[0][0].linkname = tarfile.SYMTYPE, "../../secret"
    write_members(out / "shards/000000.tar", found)
    mark(out)
    assert "'000000000.png' is not a plain file" in check_dataset(open_store(out))[0][0]


@pytest.mark.parametrize("key", ["../../evil", "/etc/evil", "a/b", "x" * 300, "."])
def test_keys_lead_nowhere(whole: Path, tmp_path: Path, key: str) -> None:
    """A shard whose members, records and rows all agree on a key that is a path."""
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    out = copy(whole, folder)
    found = members(out / "shards/000000.tar")
    record = {**json.loads(found[1][1]), "key": key}
    found[0][0].name, found[1][0].name = f"{key}.png", f"{key}.json"
    write_members(
        out / "shards/000000.tar",
        [found[0], (found[1][0], json.dumps(record).encode()), *found[2:]],
    )
    rows = pq.read_table(out / "shards/000000.parquet").to_pylist()
    rows[0]["key"] = key
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), out / "shards/000000.parquet")
    mark(out)
    assert any("key does not match index 0" in fault for fault in check_dataset(open_store(out))[0])
    read_everywhere(folder, out, tuple(writable_formats()))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]


@pytest.mark.parametrize("source", ["[", "{}", '{"image": {"file_name": 1}, "annotations": [{}, {}]}', '{"image": {"file_name": "a"}, "annotations": [{}]}'])  # fmt: skip
def test_what_no_import_wrote_is_told_by_the_export(
    whole: Path, tmp_path: Path, source: str
) -> None:
    out = copy(whole, tmp_path)
    rows = pq.read_table(out / "shards/000000.parquet").to_pylist()
    rows[0]["source"] = source
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), out / "shards/000000.parquet")
    mark(out)
    with pytest.raises(
        InputError,
        match=r"000000\.parquet: sample 000000000: its source is not what an import writes",
    ):
        export_dataset(ExportSpec(out, "coco", tmp_path / "coco"))


def test_a_picture_that_would_fill_the_memory_is_refused(whole: Path, tmp_path: Path) -> None:
    """A few bytes that say they are 60000 x 60000 px."""
    import struct
    import zlib

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
    out = copy(whole, tmp_path)
    found = members(out / "shards/000000.tar")
    write_members(out / "shards/000000.tar", [(found[0][0], bomb), *found[1:]])
    mark(out)
    assert any(
        "picture does not decode" in fault and "decompression bomb" in fault
        for fault in check_dataset(open_store(out))[0]
    )
    read_everywhere(tmp_path, out)


def test_the_readers_do_read(whole: Path, tmp_path: Path) -> None:
    """Of a dataset that is whole nobody complains: what is above would not pass by refusing all."""
    out = copy(whole, tmp_path)
    assert check_dataset(open_store(out))[0] == []
    train(out, "refuse")
    assert [image.shape for _, image, _ in read_labelled_images(open_store(out))] == [
        (24, 32, 3)
    ] * 4
    assert merge(MergeSpec((out,), tmp_path / "merged")).written.made == 4
    assert write_report(open_store(out))["shown"] == 4
    assert len(list(open_dataset(out))) == 4
    export_dataset(ExportSpec(out, "coco", tmp_path / "coco", val=0))
    assert (tmp_path / "coco/train/1/0.png").is_file()
    assert repair(open_store(out)).lines() == []
    assert np.sum([len(e.names) for e in read_entries(str(out))]) == 4
