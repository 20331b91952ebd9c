"""Random content of a dataset's files: each command reads it or refuses it in one line.

No command writes outside its output.
"""

import contextlib
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
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
from synthgen.dataset.sample import SCHEMA, Sample
from synthgen.dataset.shard import commit, stage
from synthgen.engine.merging import MergeSpec, merge
from synthgen.engine.repair import repair
from synthgen.errors import InputError, explain
from synthgen.evaluation.labelled_images import read_labelled_images
from synthgen.formats.base import list_writable_formats
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
    """A valid dataset as an import of a COCO file writes it."""
    out = tmp_path_factory.mktemp("whole") / "out"
    head = {"info": {}, "licenses": [], "categories": [{"id": 18, "name": "dog"}]}
    source = {"head": head, "file_names": True, "annotation_ids": False}
    info = DatasetInfo("test", 4, {"seed": 0}, {"dog": 18}, "png", "Apache-2.0", "x", source)
    write_info(open_store(out), info, {})
    for number, counts in enumerate(((2, 1), (0, 1))):
        samples: list[Sample] = []
        for k, n in enumerate(counts):
            image = {"id": k, "file_name": f"{number}/{k}.png"}
            record = json.dumps({"image": image, "annotations": [{}] * n})
            samples.append(replace(sample(2 * number + k, n), source=record))
        commit(open_store(out), stage(open_store(out), number, samples, {}, 0.0, 2))
    (out / "job.yaml").write_text("version: 1\n")
    finalize(open_store(out), info)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


def train(out: Path, on_bad: str) -> None:
    """Read four scenes for training."""
    scenes = ShardScenes(DataSpec(shards=str(out), side=64, resize=True, on_bad=on_bad), 0)
    for k in range(4):
        scenes[k]


def read_everywhere(folder: Path, out: Path, forms: Sequence[str] = ("coco",)) -> None:
    """Run every command that reads shards: errors have one line, and only outputs are written."""
    faults, _ = check_dataset(open_store(out))
    assert all("\n" not in fault for fault in faults)
    readers: list[Callable[[], object]] = [
        lambda: train(out, "refuse"),
        lambda: train(out, "skip"),
        lambda: list(read_labelled_images(open_store(out))),
        lambda: merge(MergeSpec((out,), folder / "merged"), overwrite=True),
        lambda: write_report(open_store(out)),
        lambda: finalize_again(out),
        lambda: list(open_dataset(out)),
    ]
    for form in forms:
        spec = ExportSpec(out, form, folder / form, workers=1)
        readers.append(partial(export_dataset, spec))
    readers.append(lambda: repair(open_store(out)))
    for read in readers:
        try:
            read()
        except (InputError, OSError) as error:
            explain(error)  # raises an error that has no explanation
    with contextlib.suppress(ValueError):  # callers report it in one line
        read_entries(str(out))
    assert {p.name for p in folder.iterdir()} <= {"out", "merged", *list_writable_formats()}
    for name in ("merged", *list_writable_formats()):
        shutil.rmtree(folder / name, ignore_errors=True)


def finalize_again(out: Path) -> None:
    """Finalize a dataset, if its dataset.json is valid."""
    info = read_info(open_store(out))
    if info is not None:
        finalize(open_store(out), info)


def copy_dataset(whole: Path, folder: Path) -> Path:
    """Copy a dataset into a folder, replacing an earlier copy."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    return Path(shutil.copytree(whole, folder / "out"))


def update_marker(out: Path, number: int = 0, **changes: Any) -> None:
    """Write the digests of the files into the marker, so that readers accept them."""
    path = out / f"shards/00000{number}.json"
    tar = path.with_suffix(".tar").read_bytes()
    table = path.with_suffix(".parquet").read_bytes()
    digests = {
        "bytes": len(tar),
        "sha256": hashlib.sha256(tar).hexdigest(),
        "md5": hashlib.md5(tar).hexdigest(),
        "parquet_bytes": len(table),
        "parquet_sha256": hashlib.sha256(table).hexdigest(),
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), **digests, **changes}))


@st.composite
def mutate(draw: st.DrawFn, data: bytes) -> bytes:
    """Change, remove, duplicate or insert some bytes."""
    result = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        last = len(result) if draw(st.booleans()) else min(600, len(result))
        i = draw(st.integers(0, last))
        kind = draw(st.sampled_from(["change", "cut", "insert", "double"]))
        if kind == "change":
            result[i : i + 1] = draw(st.binary(min_size=1, max_size=3))
        elif kind == "cut":
            del result[i : i + draw(st.integers(1, 4000))]
        elif kind == "insert":
            result[i:i] = draw(st.binary(min_size=1, max_size=20))
        else:
            result[i:i] = result[i : i + 1024]
    return bytes(result)


@given(st.data())
@tries(6)
def test_files_with_changed_bytes_are_read_or_refused(
    whole: Path, folder: Path, data: st.DataObject
) -> None:
    out = copy_dataset(whole, folder)
    files = sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    path = out / data.draw(st.sampled_from(files))
    path.write_bytes(data.draw(mutate(path.read_bytes()) | st.binary(max_size=64)))
    if path.suffix in (".tar", ".parquet") and path.parent.name == "shards":
        update_marker(out, int(path.stem))
    read_everywhere(folder, out)


@given(st.data())
@tries(6)
def test_json_with_changed_values_is_read_or_refused(
    whole: Path, folder: Path, data: st.DataObject
) -> None:
    out = copy_dataset(whole, folder)
    path = out / data.draw(
        st.sampled_from(
            ["shards/000000.json", "dataset.json", "index.json", "annotations/instances.json"]
        )
    )
    path.write_text(json.dumps(replace_value(json.loads(path.read_text()), data)))
    read_everywhere(folder, out)


def replace_value(value: Any, data: st.DataObject) -> Any:
    """Return data with some value in it replaced."""
    if not isinstance(value, dict | list) or not value or data.draw(st.integers(0, 5)) == 0:
        return data.draw(values)
    keys = sorted(value) if isinstance(value, dict) else range(len(value))
    key = data.draw(st.sampled_from(keys))
    value[key] = replace_value(value[key], data)
    return value


def read_members(tar: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Return the members of a tar file and their content."""
    with tarfile.open(tar) as archive:
        return [(m, archive.extractfile(m).read()) for m in archive]  # type: ignore[union-attr]


def write_members(
    tar: Path, members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.GNU_FORMAT
) -> None:
    with tarfile.open(tar, "w", format=form) as archive:
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))


@given(st.data())
@tries(6)
def test_records_with_changed_values_are_read_or_refused(
    whole: Path, folder: Path, data: st.DataObject
) -> None:
    out = copy_dataset(whole, folder)
    tar = out / "shards/000000.tar"
    members = read_members(tar)
    member, content = members[1]
    record = replace_value(json.loads(content), data)
    members[1] = (member, json.dumps(record).encode())
    write_members(tar, members)
    update_marker(out)
    read_everywhere(folder, out)


@given(st.data())
@tries(6)
def test_rows_with_changed_values_are_read_or_refused(
    whole: Path, folder: Path, data: st.DataObject
) -> None:
    out = copy_dataset(whole, folder)
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
        rows[0]["source"] = json.dumps(replace_value(json.loads(rows[0]["source"]), data))
    else:
        rows[0][kind.name] = data.draw(
            st.none() | st.lists(one, max_size=3) if pa.types.is_list(kind.type) else one
        )
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
    update_marker(out)
    read_everywhere(folder, out)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"category": "cat"}, "'cat' has id 18, in dataset.json none"),
        ({"category_id": 17}, "'dog' has id 17, in dataset.json 18"),
    ],
)
def test_a_category_that_the_dataset_lacks_is_reported(
    whole: Path, tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    out = copy_dataset(whole, tmp_path)
    members = read_members(out / "shards/000000.tar")
    rows = pq.read_table(out / "shards/000000.parquet").to_pylist()
    record = json.loads(members[1][1])
    for key, value in changes.items():
        record["annotations"][0][key] = value
        rows[0][key][0] = value
    members[1] = (members[1][0], json.dumps(record).encode())
    write_members(out / "shards/000000.tar", members)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), out / "shards/000000.parquet")
    update_marker(out)
    finalize(open_store(out), read_info(open_store(out)))  # type: ignore[arg-type]
    assert check_dataset(open_store(out))[0] == [f"shards/000000.parquet: category {fault}"]
    read_everywhere(tmp_path, out, tuple(list_writable_formats()))


LONG = "x" * 5000
HOSTILE = [
    "../../gone.png",
    "/gone.png",
    "..",
    ".",
    "",
    LONG + ".png",
    "a/../../gone.json",
    "C:\\gone.png",
    "\n.png",
    "000000000.png/../x",
    "\u202e.png",
]
KINDS = {
    "file": tarfile.REGTYPE,
    "link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "pipe": tarfile.FIFOTYPE,
    "folder": tarfile.DIRTYPE,
    "device": tarfile.CHRTYPE,
    "sparse": tarfile.GNUTYPE_SPARSE,
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "file") for name in HOSTILE), *((HOSTILE[0], kind) for kind in KINDS)],
)
def test_names_and_links_of_members_are_not_followed(
    whole: Path, tmp_path: Path, name: str, kind: str
) -> None:
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    out = copy_dataset(whole, folder)
    tar = out / "shards/000000.tar"
    member = tarfile.TarInfo(name)
    member.type = KINDS[kind]
    member.linkname = name if "link" in kind else ""
    members = read_members(whole / "shards/000000.tar")
    members.insert(0, (member, members[0][1]))
    write_members(tar, members, tarfile.PAX_FORMAT if kind == "file" else tarfile.GNU_FORMAT)
    update_marker(out)
    read_everywhere(folder, out)
    assert check_dataset(open_store(out))[0]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
    assert not Path("/gone.png").exists()


def test_a_link_to_a_local_file_is_not_followed(whole: Path, tmp_path: Path) -> None:
    out = copy_dataset(whole, tmp_path)
    (tmp_path / "secret").write_text("secret")
    members = read_members(out / "shards/000000.tar")
    first, _ = members[0]
    first.type = tarfile.SYMTYPE
    first.linkname = "../../secret"
    write_members(out / "shards/000000.tar", members)
    update_marker(out)
    assert "'000000000.png' is not a plain file" in check_dataset(open_store(out))[0][0]


@pytest.mark.parametrize("key", ["../../evil", "/etc/evil", "a/b", "x" * 300, "."])
def test_keys_that_are_paths_are_not_followed(whole: Path, tmp_path: Path, key: str) -> None:
    """Members, records and rows of the shard have the same key."""
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    out = copy_dataset(whole, folder)
    members = read_members(out / "shards/000000.tar")
    image_member, _ = members[0]
    record_member, content = members[1]
    image_member.name = f"{key}.png"
    record_member.name = f"{key}.json"
    record = {**json.loads(content), "key": key}
    members[1] = (record_member, json.dumps(record).encode())
    write_members(out / "shards/000000.tar", members)
    rows = pq.read_table(out / "shards/000000.parquet").to_pylist()
    rows[0]["key"] = key
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), out / "shards/000000.parquet")
    update_marker(out)
    assert any("key does not match index 0" in fault for fault in check_dataset(open_store(out))[0])
    read_everywhere(folder, out, tuple(list_writable_formats()))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]


@pytest.mark.parametrize(
    "source",
    [
        "[",
        "{}",
        '{"image": {"file_name": 1}, "annotations": [{}, {}]}',
        '{"image": {"file_name": "a"}, "annotations": [{}]}',
    ],
)
def test_a_damaged_source_is_refused_by_the_export(
    whole: Path, tmp_path: Path, source: str
) -> None:
    out = copy_dataset(whole, tmp_path)
    rows = pq.read_table(out / "shards/000000.parquet").to_pylist()
    rows[0]["source"] = source
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), out / "shards/000000.parquet")
    update_marker(out)
    with pytest.raises(
        InputError,
        match=r"000000\.parquet: sample 000000000: its source is not what an import writes",
    ):
        export_dataset(ExportSpec(out, "coco", tmp_path / "coco"))


def test_an_image_that_would_exhaust_memory_is_refused(whole: Path, tmp_path: Path) -> None:
    """A small file states 60000 x 60000 px."""
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
    out = copy_dataset(whole, tmp_path)
    members = read_members(out / "shards/000000.tar")
    members[0] = (members[0][0], bomb)
    write_members(out / "shards/000000.tar", members)
    update_marker(out)
    assert any(
        "image does not decode" in fault and "decompression bomb" in fault
        for fault in check_dataset(open_store(out))[0]
    )
    read_everywhere(tmp_path, out)


def test_a_valid_dataset_is_read_by_every_command(whole: Path, tmp_path: Path) -> None:
    """The other tests do not pass because everything is refused."""
    out = copy_dataset(whole, tmp_path)
    assert check_dataset(open_store(out))[0] == []
    train(out, "refuse")
    shapes = [image.shape for _, image, _ in read_labelled_images(open_store(out))]
    assert shapes == [(24, 32, 3)] * 4
    assert merge(MergeSpec((out,), tmp_path / "merged")).written.made == 4
    assert write_report(open_store(out))["shown"] == 4
    assert len(list(open_dataset(out))) == 4
    export_dataset(ExportSpec(out, "coco", tmp_path / "coco", val=0))
    assert (tmp_path / "coco/train/1/0.png").is_file()
    assert repair(open_store(out)).lines() == []
    assert np.sum([len(e.names) for e in read_entries(str(out))]) == 4
