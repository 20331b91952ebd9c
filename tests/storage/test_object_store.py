"""A dataset on an object store: a real S3 server over HTTP, and what goes wrong on the way to it."""

import json
import pickle
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from synthgen.engine.cluster import refuse_unshared
from synthgen.errors import InputError, StoreFailedError, StoreRefusedError
from synthgen.storage import lock, object_store
from synthgen.storage.base import Store
from synthgen.storage.location import check_url, open_store
from synthgen.storage.lock import Lock, LockedError
from synthgen.storage.object_store import ObjectStore
from tests.s3 import S3, Fault
from tests.storage.test_lock import suspend

MANY = 12_000_000  # bytes: more than one part of an upload


@pytest.fixture
def store(s3: S3, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An empty folder of the bucket; pauses are short."""
    monkeypatch.setattr(object_store, "WAITS", (0.01,) * 4)
    found = open_store(s3.url(uuid.uuid4().hex))
    assert isinstance(found, ObjectStore)
    return found


@pytest.fixture
def renaming(tmp_path: Path) -> ObjectStore:
    """A store that moves files instead of copying objects, as HDFS does."""
    return ObjectStore("hdfs://test/folder", fs.LocalFileSystem(), str(tmp_path))


def names(store: Store) -> list[str]:
    return sorted(
        f"{folder}/{name}"
        for folder in ("", "shards", ".staging")
        for name, _ in store.sizes(folder)
    )


def test_the_verbs(store: ObjectStore, s3: S3) -> None:
    store.write("index.json", "one")
    store.write("index.json", b"two")
    assert (store.read("index.json"), store.size("index.json"), store.exists("no.json")) == (
        b"two",
        3,
        False,
    )
    with store.replacing("shards/a.tar") as file:
        file.write(b"x" * 5)
        assert not store.exists("shards/a.tar")
    staged = store.stage("b.tar", lambda file: file.write(b"y" * MANY))
    assert names(store) == [staged, "/index.json", "shards/a.tar"]
    store.promote(staged, "shards/b.tar")
    with store.open("shards/b.tar") as file:
        file.seek(MANY - 1)
        assert file.read() == b"y"
    s3.fail()
    assert store.read("shards/b.tar") == b"y" * MANY
    assert len(s3.requests()) == 2
    store.delete("shards/a.tar")
    store.delete("shards/a.tar")
    assert dict(store.sizes("shards")) == {"b.tar": MANY}
    store.delete_folder("shards")
    assert names(store) == ["/index.json"]
    with pytest.raises(FileNotFoundError):
        store.read("shards/b.tar")


def test_a_block_that_fails_replaces_nothing(store: ObjectStore) -> None:
    store.write("index.json", "old")
    with suppress(KeyboardInterrupt), store.replacing("index.json") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert store.read("index.json") == b"old"
    assert names(store) == ["/index.json"]


@pytest.mark.parametrize("kind", [500, 503, "cut", "lost"])
def test_what_passes_is_met_by_asking_again(store: ObjectStore, s3: S3, kind: int | str) -> None:
    s3.fail(Fault(kind, "PUT .*partNumber=2"), Fault(kind, "POST .*uploadId"), Fault(kind, "GET"))
    store.promote(store.stage("b.tar", lambda file: file.write(b"y" * MANY)), "shards/b.tar")
    store.write("index.json", "text")
    assert (store.size("shards/b.tar"), store.read("index.json")) == (MANY, b"text")
    assert len([r for r in s3.requests() if "partNumber=2" in r]) >= 2


def test_an_answer_that_does_not_come_is_not_waited_for(
    store: ObjectStore, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "REQUEST_SECONDS", 1.0)
    impatient, began = open_store(store.url), time.monotonic()
    s3.fail(Fault("hang", "PUT"))
    impatient.write("index.json", "text")
    assert time.monotonic() - began < 20  # the server would take 30
    assert store.read("index.json") == b"text"


def test_what_does_not_pass_is_told(
    store: ObjectStore, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "WAITS", (0.01,))
    s3.fail(Fault(500, "PUT", times=99))
    with pytest.raises(
        StoreFailedError,
        match=r"^s3://bucket/\w+/index.json: the store failed 2 times: .*PutObject",
    ):
        store.write("index.json", "text")
    s3.fail()
    assert not store.exists("index.json")


def test_what_is_refused_is_not_asked_again(store: ObjectStore, s3: S3) -> None:
    s3.fail(Fault(403, "PUT", times=99))
    with pytest.raises(StoreRefusedError, match=r"^s3://.*ACCESS_DENIED.*as told$"):
        store.write("index.json", "text")
    assert len(s3.requests()) == 1
    s3.fail()
    with pytest.raises(StoreRefusedError, match="NO_SUCH_BUCKET"):
        open_store("s3://another/folder").write("index.json", "text")


def test_a_cut_upload_counts_nowhere_and_is_cleaned(
    store: ObjectStore, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "WAITS", (0.01,))
    s3.fail(Fault("cut", "PUT", times=99))
    with pytest.raises(StoreFailedError):
        store.stage("b.tar", lambda file: file.write(b"y" * MANY))
    s3.fail()
    store.stage("c.tar", lambda file: file.write(b"y"))
    assert dict(store.sizes("shards")) == {}
    store.clean()
    assert names(store) == []


def test_more_files_than_a_page(store: ObjectStore, s3: S3) -> None:
    store.write("shards/first.json", "1")
    with ThreadPoolExecutor(8) as pool:
        source = store._at("shards/first.json")
        list(
            pool.map(
                lambda n: store.files.copy_file(source, store._at(f"shards/{n:06d}.json")),
                range(1001),
            )
        )
    s3.fail()
    assert len(dict(store.sizes("shards"))) == 1002
    assert len(s3.requests()) == 2


def test_a_store_is_pickled_without_keys(store: ObjectStore) -> None:
    data = pickle.dumps(store)
    assert b"hidden" not in data
    assert b"AKIA" not in data
    again = pickle.loads(data)
    store.write("index.json", "text")
    assert (str(again), again.read("index.json")) == (str(store), b"text")


def test_errors_have_no_keys() -> None:
    error = OSError("signature of AKIATESTKEY with hidden-secret-of-the-test\n is wrong")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-secret-of-the-test")
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTKEY")
        assert (
            object_store.told(error)
            == "signature of [AWS_ACCESS_KEY_ID] with [AWS_SECRET_ACCESS_KEY] is wrong"
        )


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/out", "give a folder, or a URL that begins with s3://"),
        ("s3://key:hidden@bucket/out", "no user or key in a URL"),
        ("s3://key@bucket/out", "no user or key in a URL"),
        ("s3://bucket/out?access_key=hidden", "'access_key' cannot be given in a URL"),
        ("s3:///out", "give s3://BUCKET/FOLDER"),
        ("s3://bucket/../other", "give s3://BUCKET/FOLDER"),
        ("s3://bucket/out#part", "give s3://BUCKET/FOLDER"),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_url(url)
    assert message in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_folder_that_each_node_has_of_its_own(tmp_path: Path, store: ObjectStore) -> None:
    with pytest.raises(
        InputError, match=r"is a folder, and the cluster has 2 nodes.*output.shared=true"
    ):
        refuse_unshared(open_store(tmp_path), False, 2)
    for out, shared, nodes in (
        (open_store(tmp_path), False, 1),
        (open_store(tmp_path), True, 2),
        (store, False, 2),
    ):
        refuse_unshared(out, shared, nodes)


class LosesAnswers:
    """A file system that carries each request of a kind out, and loses its first answer."""

    type_name = "hdfs"

    def __init__(self, *kinds: str) -> None:
        self.files, self.kinds = fs.LocalFileSystem(), set(kinds)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.files, name)

        def lose(*args: Any, **more: Any) -> Any:
            found(*args, **more)
            self.kinds.discard(name)
            raise OSError("connection lost before the answer")

        return lose if name in self.kinds else found


@pytest.mark.parametrize(
    "lost", ["move", "delete_file", "create_dir", "delete_dir", "get_file_info"]
)
def test_a_lost_answer_loses_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr(object_store, "WAITS", (0.01,) * 4)
    store = ObjectStore("hdfs://test/folder", LosesAnswers(lost), str(tmp_path))
    store.write("shards/a.tar", "old")
    store = ObjectStore("hdfs://test/folder", LosesAnswers(lost), str(tmp_path))
    store.promote(store.stage("a.tar", lambda file: file.write(b"precious")), "shards/a.tar")
    assert store.read("shards/a.tar") == b"precious"
    store.delete("shards/none.tar")
    store.clean()
    assert names(store) == ["shards/a.tar"]
    store.delete("shards/a.tar")
    assert names(store) == []


class DeletesAsHdfs(LosesAnswers):
    """As HDFS, also in that a file that is not there cannot be deleted, as if the store had failed."""

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)

        def delete(path: str) -> Any:
            try:
                return found(path)
            except FileNotFoundError as error:
                raise OSError("HDFS delete failed") from error

        return delete if name == "delete_file" else found


def test_a_file_whose_deletion_was_not_answered_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "WAITS", (0.01,) * 4)
    store = ObjectStore("hdfs://test/folder", DeletesAsHdfs("delete_file"), str(tmp_path))
    store.write("shards/a.tar", "old")
    store.delete("shards/a.tar")
    store.delete("shards/a.tar")
    assert names(store) == []


def test_a_staged_file_that_is_gone_leaves_what_is_there(renaming: ObjectStore) -> None:
    renaming.write("shards/a.tar", "old")
    with pytest.raises(FileNotFoundError):
        renaming.promote(".staging/none", "shards/a.tar")
    assert renaming.read("shards/a.tar") == b"old"


@pytest.mark.parametrize("match", ["PUT .*shards/b.tar", "DELETE .*staging"])
def test_a_copy_whose_answer_is_lost_is_made_again(store: ObjectStore, s3: S3, match: str) -> None:
    staged = store.stage("b.tar", lambda file: file.write(b"precious"))
    s3.fail(Fault("lost", match))
    store.promote(staged, "shards/b.tar")
    assert store.read("shards/b.tar") == b"precious"
    assert names(store) == ["shards/b.tar"]


def test_files_are_renamed_where_there_is_no_copy(renaming: ObjectStore) -> None:
    for text in ("old", "new"):
        renaming.write("shards/a.json", text)
    assert renaming.read("shards/a.json") == b"new"
    renaming.clean()
    assert names(renaming) == ["shards/a.json"]


@pytest.fixture(params=["s3", "renaming"])
def out(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    return request.getfixturevalue("store" if request.param == "s3" else "renaming")


def write_claim(store: Store, **changes: object) -> None:
    content = json.loads(Lock(store)._content())
    store.write(".lock-other", json.dumps({**content, "token": "other", **changes}))


def test_a_second_driver_is_refused(out: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PAUSES", (0.01,))
    with Lock(out) as first:
        with pytest.raises(LockedError, match="another run is working on this output"), Lock(out):
            pass
        first.check()
    assert names(out) == []
    with Lock(out):
        pass


def test_a_dead_drivers_claim_is_taken_over(
    out: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PAUSES", (0.01,))
    monkeypatch.setattr(lock, "LOOK", 0.05)
    write_claim(out, start="1")  # this host, a process that is gone
    with Lock(out):
        assert len(names(out)) == 1
    write_claim(out, host="another-host")
    threading.Timer(0.5, lambda: write_claim(out, host="another-host")).start()  # its heart beats
    with pytest.raises(LockedError, match="on another-host"), Lock(out):
        pass
    monkeypatch.setattr(lock, "STALE", -1.0)  # now it gave no sign of life for too long
    assert lock.Claim(out, "new").acquire("{}") is None
    assert names(out) == ["/.lock-new"]


def test_a_driver_that_lost_its_claim_finds_out(out: ObjectStore) -> None:
    with Lock(out) as held:
        held.check()
        out.delete(held.keeper.name)  # type: ignore[attr-defined]
        with pytest.raises(LockedError, match="taken over"):
            held.check()
    with Lock(out) as held:
        suspend(held)  # nobody has ignored it meanwhile
        held.check()
        suspend(held)
        write_claim(out, host="another-host")
        for _ in range(2):
            with pytest.raises(LockedError, match="or could have"):
                held.check()
    assert {".lock-other"} <= {name.strip("/") for name in names(out)}


def test_a_clock_that_is_put_right_costs_no_claim(
    out: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    with Lock(out) as held:
        monkeypatch.setattr(time, "time", lambda: real() + 3600)
        held.check()


def test_of_drivers_that_start_together_one_works(store: ObjectStore) -> None:
    holding, most = [0], [0]

    def drive(number: int) -> bool:
        try:
            with Lock(store):
                holding[0] += 1
                most[0] = max(most[0], holding[0])
                time.sleep(0.2)
                holding[0] -= 1
                return True
        except LockedError:
            return False

    with ThreadPoolExecutor(4) as pool:
        worked = list(pool.map(drive, range(4)))
    assert most[0] == 1
    assert any(worked)
    assert names(store) == []


def test_drivers_that_wait_for_a_dead_one_are_not_in_each_others_way(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at a claim, such as a driver leaves behind that dies while it waits, refuses nobody."""
    write_claim(store, host="another-host", looks=True)
    with Lock(store) as held:
        held.check()
    monkeypatch.setattr(lock, "PAUSES", (0.01,))
    write_claim(store, host="another-host")
    written, write = [], store.write

    def record(name: str, text: str) -> None:
        written.append(json.loads(text))
        write(name, text)

    monkeypatch.setattr(store, "write", record)
    holder = lock.Claim(store, "aaa").acquire(Lock(store)._content())
    assert holder is not None
    assert holder.content["token"] == "other"
    assert len(written) == 2
    assert all(content["looks"] for content in written)
