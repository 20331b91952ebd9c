"""What a commit asks of the file system, and in which order; and file systems that cannot do all of it."""

import errno
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synthgen.dataset.info import DatasetInfo
from synthgen.dataset.marker import committed, shard_file
from synthgen.dataset.sample import Sample
from synthgen.dataset.shard import StagedShard, commit, stage, withdraw
from synthgen.engine.driver import Assembly, drive
from synthgen.errors import InputError, explain
from synthgen.storage import local
from synthgen.storage.base import Store
from synthgen.storage.local import LocalStore, replacing, write_text
from synthgen.storage.location import open_store
from synthgen.storage.lock import LockedError
from tests.dataset.test_shard import sample

FILES = [shard_file(0, suffix) for suffix in (".tar", ".parquet", ".json")]


class Recorder:
    """Notes what is asked of the operating system; a file is known by its inode, and told by its last name."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.events = root, list[tuple[str, int | str]]()
        self.names: dict[int, str] = {}
        patch.setattr(local, "fcntl", None)  # on macOS that syncs, here as everywhere os.fsync
        self.fsync, self.replace, self.unlink = os.fsync, os.replace, os.unlink
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

    def told(self) -> list[tuple[str, str]]:
        folders = {path.stat().st_ino: path.name for path in self.root.rglob("*") if path.is_dir()}
        names = {**self.names, **folders}
        return [
            (what, names.get(which, "another") if isinstance(which, int) else which)
            for what, which in self.events
        ]


def durable(name: str) -> list[tuple[str, str]]:
    return [("fsync", name), ("rename", name), ("fsync", name.rpartition("/")[0])]


def test_a_commit_ends_the_old_shard_first_and_writes_its_marker_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(open_store(tmp_path), stage(open_store(tmp_path), 0, [sample(0)], {}, 0.0, 1))
    staged = stage(open_store(tmp_path), 0, [sample(0), sample(1)], {}, 0.0, 2)
    recorder = Recorder(tmp_path, monkeypatch)
    commit(open_store(tmp_path), staged)
    tar, table, marker = FILES
    assert recorder.told() == [("unlink", marker), *durable(tar), *durable(table), *durable(marker)]
    assert list((tmp_path / ".staging").iterdir()) == []


def test_a_shard_is_withdrawn_marker_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(open_store(tmp_path), stage(open_store(tmp_path), 0, [sample(0)], {}, 0.0, 1))
    recorder = Recorder(tmp_path, monkeypatch)
    withdraw(open_store(tmp_path), 0)
    assert recorder.told() == [("unlink", name) for name in reversed(FILES)]


def test_a_file_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path, monkeypatch)
    open_store(tmp_path).write("index/index.json", "text")
    assert recorder.told() == durable("index/index.json")


def write(out: Path, asked: int, samples: Callable[[range], Iterable[Sample]]) -> dict[str, Any]:
    info = DatasetInfo("test", asked, {"seed": 0}, {"dog": 18}, "png", "CC0")
    return drive(
        Assembly(open_store(out), info, {"version": 1}, 2, samples, False, lambda what, count: None)
    ).counts


def test_what_is_left_of_a_shard_is_gone_before_it_is_made_again(tmp_path: Path) -> None:
    def interrupt(indices: range) -> Iterator[Sample]:
        assert not any((tmp_path / name).exists() for name in FILES)
        (tmp_path / ".staging").mkdir(exist_ok=True)
        (tmp_path / ".staging/left").write_bytes(b"half")
        yield sample(indices[0])
        raise KeyboardInterrupt

    assert write(tmp_path, 1, lambda indices: map(sample, indices))["images"] == 1
    assert write(tmp_path, 2, interrupt)["images"] == 0  # not the shorter shard of before
    assert committed(open_store(tmp_path)) == []
    assert not (tmp_path / ".staging").exists()


def test_a_driver_that_lost_its_lock_commits_nothing(tmp_path: Path) -> None:
    def lose(indices: range) -> Iterator[Sample]:
        yield from map(sample, indices)
        (tmp_path / ".lock").write_text(json.dumps({"host": "another", "token": "other"}))

    with pytest.raises(LockedError, match="taken over"):
        write(tmp_path, 2, lose)
    assert committed(open_store(tmp_path)) == []
    assert not any((tmp_path / name).exists() for name in FILES)
    assert (tmp_path / ".lock").exists()


def test_a_driver_that_lost_its_lock_removes_no_shard_of_the_other(tmp_path: Path) -> None:
    write(tmp_path, 4, lambda indices: map(sample, indices))
    whole = {
        name: (tmp_path / name).read_bytes() for name in ("shards/000001.json", "dataset.json")
    }
    for number in (0, 1):
        (tmp_path / shard_file(number, ".json")).unlink()

    def lose(store: Store, shard: StagedShard) -> None:
        commit(store, shard)
        (tmp_path / ".lock").write_text(json.dumps({"host": "another", "token": "other"}))
        for name, content in whole.items():  # the other driver finishes the dataset
            (tmp_path / name).write_bytes(content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("synthgen.engine.driver.commit", lose)
        with pytest.raises(LockedError, match="taken over"):
            write(tmp_path, 4, lambda indices: map(sample, indices))
    assert committed(open_store(tmp_path)) == [0, 1]
    assert (tmp_path / "dataset.json").read_bytes() == whole["dataset.json"]


def test_a_driver_that_lost_its_lock_does_not_tidy_up(tmp_path: Path) -> None:
    def lose(indices: range) -> Iterator[Sample]:
        yield sample(indices[0])
        (tmp_path / ".lock").write_text(json.dumps({"host": "another", "token": "other"}))
        (tmp_path / ".staging").mkdir(exist_ok=True)
        (tmp_path / ".staging/other").write_bytes(b"a shard of the other driver")
        raise KeyboardInterrupt

    with pytest.raises(LockedError, match="taken over"):
        write(tmp_path, 2, lose)
    assert (tmp_path / ".staging/other").exists()
    assert not (tmp_path / "manifest.parquet").exists()


def refuse_folders(monkeypatch: pytest.MonkeyPatch, code: int, files: bool = False) -> None:
    """Let fsync fail, of a folder, or of a file, as on SMB and VirtualBox."""
    sync = os.fsync

    def refuse(handle: int) -> None:
        if os.path.isdir(f"/dev/fd/{handle}") != files:
            raise OSError(code, os.strerror(code))
        sync(handle)

    monkeypatch.setattr(local, "fcntl", None)
    monkeypatch.setattr(os, "fsync", refuse)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES])
def test_a_folder_that_cannot_be_synced_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    monkeypatch.setattr(local, "_told", set())
    refuse_folders(monkeypatch, code)
    with caplog.at_level(logging.INFO, "synthgen"):
        commit(open_store(tmp_path), stage(open_store(tmp_path), 0, [sample(0)], {}, 0.0, 1))
    assert committed(open_store(tmp_path)) == [0]
    assert len([text for text in caplog.messages if os.strerror(code) in text]) == 1


def test_a_folder_that_cannot_be_opened_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = os.open

    def refuse(path: Any, *args: Any, **more: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return begin(path, *args, **more)

    monkeypatch.setattr(os, "open", refuse)
    write_text(tmp_path / "x.json", "{}")
    assert (tmp_path / "x.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("code", "files"), [(errno.EIO, False), (errno.EINVAL, True), (errno.EIO, True)]
)
def test_other_failures_to_sync_are_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, files: bool
) -> None:
    refuse_folders(monkeypatch, code, files)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        write_text(tmp_path / "x.json", "{}")
    assert len(explain(caught.value)) == 1
    assert (tmp_path / "x.json").exists() is not files


def rename_once(monkeypatch: pytest.MonkeyPatch, code: int, before: bool) -> None:
    """Let the first rename fail, before or after it was carried out."""
    rename, calls = os.replace, list[Any]()

    def fail(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) > 1 or not before:
            rename(source, target)
        if len(calls) == 1:
            raise OSError(code, os.strerror(code), str(source))

    monkeypatch.setattr(os, "replace", fail)


@pytest.mark.parametrize(
    ("code", "before"),
    [(errno.ENOENT, False), (errno.EEXIST, True), (errno.EBUSY, True), (errno.EACCES, True)],
)
def test_a_rename_that_a_file_server_makes_hard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, before: bool
) -> None:
    """ENOENT: NFS repeats a request whose answer was lost; the others: SMB and SFTP, where the name is there."""
    write_text(tmp_path / "x.json", "old")
    rename_once(monkeypatch, code, before)
    write_text(tmp_path / "x.json", "new")
    assert (tmp_path / "x.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_file_that_is_gone_is_not_taken_for_renamed(
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
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, under: str) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(
        InputError, match=r"link: is a link to nowhere, which is no folder; make that folder"
    ) as caught:
        write(tmp_path / "link" / under, 1, lambda indices: map(sample, indices))
    assert len(caught.value.problems) == 1
    (tmp_path / "nowhere").mkdir()
    assert write(tmp_path / "link" / under, 1, lambda indices: map(sample, indices))["images"] == 1


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: is a file, not a folder"):
        write_text(tmp_path / "file/out/x.json", "{}")


def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path) -> None:
    with replacing(tmp_path / ("x" * 255)) as temporary:
        temporary.write_text("text")
    assert [path.name for path in tmp_path.iterdir()] == ["x" * 255]


def test_a_file_that_vanishes_does_not_end_a_listing(tmp_path: Path) -> None:
    for name in "abcdef":
        (tmp_path / name).write_text(name)
    listing = LocalStore(tmp_path).sizes("")
    first, _ = next(listing)
    rest = sorted({*"abcdef"} - {first})
    (tmp_path / rest[0]).unlink()
    assert sorted(name for name, _ in listing) == rest[1:]
