"""The system calls of a commit and their order, and file systems that lack some of them."""

import errno
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synthgen.dataset.info import DatasetInfo
from synthgen.dataset.marker import format_shard_file, list_committed_shards
from synthgen.dataset.sample import Sample
from synthgen.dataset.shard import StagedShard, commit, stage, withdraw
from synthgen.engine.assembly import Assembly
from synthgen.engine.driver import drive
from synthgen.errors import InputError, explain
from synthgen.storage import local
from synthgen.storage.base import Store
from synthgen.storage.local import LocalStore, replace_atomically, write_text
from synthgen.storage.location import open_store
from synthgen.storage.lock import LockedError
from tests.dataset.test_shard import sample

FILES = [format_shard_file(0, suffix) for suffix in (".tar", ".parquet", ".json")]


class Recorder:
    """A recorder of system calls; it names each file by its last name, found by its inode."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.events = list[tuple[str, int | str]]()
        self.names: dict[int, str] = {}
        patch.setattr(local, "fcntl", None)  # macOS would sync with it; here os.fsync is recorded
        self.fsync = os.fsync
        self.replace = os.replace
        self.unlink = os.unlink
        patch.setattr(os, "fsync", self.on_fsync)
        patch.setattr(os, "replace", self.on_replace)
        patch.setattr(os, "unlink", self.on_unlink)

    def on_fsync(self, handle: int) -> None:
        self.events.append(("fsync", os.fstat(handle).st_ino))
        self.fsync(handle)

    def on_replace(self, source: Any, target: Any) -> None:
        self.names[os.stat(source).st_ino] = str(Path(target).relative_to(self.root))
        self.events.append(("rename", str(Path(target).relative_to(self.root))))
        self.replace(source, target)

    def on_unlink(self, path: Any, **more: Any) -> None:
        existed = os.path.lexists(path)
        self.unlink(path, **more)
        if existed:
            self.events.append(("unlink", str(Path(path).relative_to(self.root))))

    def named_events(self) -> list[tuple[str, str]]:
        folders = {path.stat().st_ino: path.name for path in self.root.rglob("*") if path.is_dir()}
        names = {**self.names, **folders}
        return [
            (event, names.get(which, "another") if isinstance(which, int) else which)
            for event, which in self.events
        ]


def durable_events(name: str) -> list[tuple[str, str]]:
    return [("fsync", name), ("rename", name), ("fsync", name.rpartition("/")[0])]


def test_a_commit_deletes_the_old_marker_first_and_writes_the_new_one_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(open_store(tmp_path), stage(open_store(tmp_path), 0, [sample(0)], {}, 0.0, 1))
    staged = stage(open_store(tmp_path), 0, [sample(0), sample(1)], {}, 0.0, 2)
    recorder = Recorder(tmp_path, monkeypatch)
    commit(open_store(tmp_path), staged)
    tar, table, marker = FILES
    assert recorder.named_events() == [
        ("unlink", marker),
        *durable_events(tar),
        *durable_events(table),
        *durable_events(marker),
    ]
    assert list((tmp_path / ".staging").iterdir()) == []


def test_withdrawing_a_shard_deletes_its_marker_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(open_store(tmp_path), stage(open_store(tmp_path), 0, [sample(0)], {}, 0.0, 1))
    recorder = Recorder(tmp_path, monkeypatch)
    withdraw(open_store(tmp_path), 0)
    assert recorder.named_events() == [("unlink", name) for name in reversed(FILES)]


def test_a_file_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path, monkeypatch)
    open_store(tmp_path).write("index/index.json", "text")
    assert recorder.named_events() == durable_events("index/index.json")


def write(out: Path, images: int, samples: Callable[[range], Iterable[Sample]]) -> dict[str, Any]:
    info = DatasetInfo("test", images, {"seed": 0}, {"dog": 18}, "png", "CC0")
    return drive(
        Assembly(
            open_store(out), info, {"version": 1}, 2, samples, False, lambda event, count: None
        )
    ).counts


def test_an_old_shard_is_deleted_before_it_is_made_again(tmp_path: Path) -> None:
    def interrupt(indices: range) -> Iterator[Sample]:
        assert not any((tmp_path / name).exists() for name in FILES)
        (tmp_path / ".staging").mkdir(exist_ok=True)
        (tmp_path / ".staging/left").write_bytes(b"half")
        yield sample(indices[0])
        raise KeyboardInterrupt

    assert write(tmp_path, 1, lambda indices: map(sample, indices))["images"] == 1
    assert write(tmp_path, 2, interrupt)["images"] == 0  # the older, shorter shard is gone
    assert list_committed_shards(open_store(tmp_path)) == []
    assert not (tmp_path / ".staging").exists()


def test_a_driver_that_lost_its_lock_commits_nothing(tmp_path: Path) -> None:
    def lose_lock(indices: range) -> Iterator[Sample]:
        yield from map(sample, indices)
        (tmp_path / ".lock").write_text(json.dumps({"host": "another", "token": "other"}))

    with pytest.raises(LockedError, match="taken over"):
        write(tmp_path, 2, lose_lock)
    assert list_committed_shards(open_store(tmp_path)) == []
    assert not any((tmp_path / name).exists() for name in FILES)
    assert (tmp_path / ".lock").exists()


def test_a_driver_that_lost_its_lock_deletes_no_shard_of_the_other_driver(tmp_path: Path) -> None:
    write(tmp_path, 4, lambda indices: map(sample, indices))
    other_files = {
        name: (tmp_path / name).read_bytes() for name in ("shards/000001.json", "dataset.json")
    }
    for number in (0, 1):
        (tmp_path / format_shard_file(number, ".json")).unlink()

    def lose_lock(store: Store, shard: StagedShard) -> None:
        commit(store, shard)
        (tmp_path / ".lock").write_text(json.dumps({"host": "another", "token": "other"}))
        for name, content in other_files.items():  # the other driver finishes the dataset
            (tmp_path / name).write_bytes(content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("synthgen.engine.driver.commit", lose_lock)
        with pytest.raises(LockedError, match="taken over"):
            write(tmp_path, 4, lambda indices: map(sample, indices))
    assert list_committed_shards(open_store(tmp_path)) == [0, 1]
    assert (tmp_path / "dataset.json").read_bytes() == other_files["dataset.json"]


def test_a_driver_that_lost_its_lock_deletes_no_staged_file(tmp_path: Path) -> None:
    def lose_lock(indices: range) -> Iterator[Sample]:
        yield sample(indices[0])
        (tmp_path / ".lock").write_text(json.dumps({"host": "another", "token": "other"}))
        (tmp_path / ".staging").mkdir(exist_ok=True)
        (tmp_path / ".staging/other").write_bytes(b"a shard of the other driver")
        raise KeyboardInterrupt

    with pytest.raises(LockedError, match="taken over"):
        write(tmp_path, 2, lose_lock)
    assert (tmp_path / ".staging/other").exists()
    assert not (tmp_path / "manifest.parquet").exists()


def refuse_folders(monkeypatch: pytest.MonkeyPatch, code: int, files: bool = False) -> None:
    """Let fsync of folders or of files fail, as on SMB and VirtualBox."""
    sync = os.fsync

    def refuse(handle: int) -> None:
        if os.path.isdir(f"/dev/fd/{handle}") != files:
            raise OSError(code, os.strerror(code))
        sync(handle)

    monkeypatch.setattr(local, "fcntl", None)
    monkeypatch.setattr(os, "fsync", refuse)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES])
def test_a_folder_that_cannot_be_synced_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    monkeypatch.setattr(local, "_devices_without_folder_fsync", set())
    refuse_folders(monkeypatch, code)
    with caplog.at_level(logging.INFO, "synthgen"):
        commit(open_store(tmp_path), stage(open_store(tmp_path), 0, [sample(0)], {}, 0.0, 1))
    assert list_committed_shards(open_store(tmp_path)) == [0]
    assert len([text for text in caplog.messages if os.strerror(code) in text]) == 1


def test_a_folder_that_cannot_be_opened_is_not_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os_open = os.open

    def refuse(path: Any, *args: Any, **more: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return os_open(path, *args, **more)

    monkeypatch.setattr(os, "open", refuse)
    write_text(tmp_path / "x.json", "{}")
    assert (tmp_path / "x.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("code", "files"), [(errno.EIO, False), (errno.EINVAL, True), (errno.EIO, True)]
)
def test_other_errors_of_fsync_are_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, files: bool
) -> None:
    refuse_folders(monkeypatch, code, files)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        write_text(tmp_path / "x.json", "{}")
    assert len(explain(caught.value)) == 1
    assert (tmp_path / "x.json").exists() is not files


def rename_once(monkeypatch: pytest.MonkeyPatch, code: int, before: bool) -> None:
    """Let the first rename fail, before or after it is carried out."""
    os_replace = os.replace
    calls = list[Any]()

    def fail(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) > 1 or not before:
            os_replace(source, target)
        if len(calls) == 1:
            raise OSError(code, os.strerror(code), str(source))

    monkeypatch.setattr(os, "replace", fail)


@pytest.mark.parametrize(
    ("code", "before"),
    [(errno.ENOENT, False), (errno.EEXIST, True), (errno.EBUSY, True), (errno.EACCES, True)],
)
def test_a_rename_is_retried_on_a_file_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, before: bool
) -> None:
    """NFS repeats a request whose answer was lost (ENOENT); SMB and SFTP give the other errors."""
    write_text(tmp_path / "x.json", "old")
    rename_once(monkeypatch, code, before)
    write_text(tmp_path / "x.json", "new")
    assert (tmp_path / "x.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_missing_file_does_not_count_as_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "x.json", "old")
    rename_once(monkeypatch, errno.ENOENT, True)
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "x.json", "new")
    with pytest.raises(InputError, match="a worker wrote this file, and it is not here"):
        LocalStore(tmp_path).promote(".staging/none", "x.json")
    assert (tmp_path / "x.json").read_text() == "old"


@pytest.mark.parametrize("under", ["", "out", "a/b"])
def test_a_link_that_leads_nowhere_is_reported(tmp_path: Path, under: str) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(
        InputError, match=r"link: is a link to nowhere, which is no folder; make that folder"
    ) as caught:
        write(tmp_path / "link" / under, 1, lambda indices: map(sample, indices))
    assert len(caught.value.problems) == 1
    (tmp_path / "nowhere").mkdir()
    assert write(tmp_path / "link" / under, 1, lambda indices: map(sample, indices))["images"] == 1


def test_a_file_in_place_of_a_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: is a file, not a folder"):
        write_text(tmp_path / "file/out/x.json", "{}")


def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path) -> None:
    with replace_atomically(tmp_path / ("x" * 255)) as temporary:
        temporary.write_text("text")
    assert [path.name for path in tmp_path.iterdir()] == ["x" * 255]


def test_a_file_deleted_during_a_listing_does_not_end_it(tmp_path: Path) -> None:
    for name in "abcdef":
        (tmp_path / name).write_text(name)
    listing = LocalStore(tmp_path).sizes("")
    first, _ = next(listing)
    rest = sorted({*"abcdef"} - {first})
    (tmp_path / rest[0]).unlink()
    assert sorted(name for name, _ in listing) == rest[1:]
