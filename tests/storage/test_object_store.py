"""A dataset on an object store: a real S3 server over HTTP, and requests that fail."""

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
    """Return an empty folder of the bucket, with a short backoff."""
    monkeypatch.setattr(object_store, "BACKOFF", (0.01,) * 4)
    found = open_store(s3.url(uuid.uuid4().hex))
    assert isinstance(found, ObjectStore)
    return found


@pytest.fixture
def renaming_store(tmp_path: Path) -> ObjectStore:
    """Return a store that moves files instead of copying objects, like HDFS."""
    return ObjectStore("hdfs://test/folder", fs.LocalFileSystem(), str(tmp_path))


def names(store: Store) -> list[str]:
    return sorted(
        f"{folder}/{name}"
        for folder in ("", "shards", ".staging")
        for name, _ in store.sizes(folder)
    )


def test_files_are_written_read_listed_and_deleted(store: ObjectStore, s3: S3) -> None:
    store.write("index.json", "one")
    store.write("index.json", b"two")
    assert (store.read("index.json"), store.size("index.json"), store.exists("no.json")) == (
        b"two",
        3,
        False,
    )
    with store.open_replacement("shards/a.tar") as file:
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
    with suppress(KeyboardInterrupt), store.open_replacement("index.json") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert store.read("index.json") == b"old"
    assert names(store) == ["/index.json"]


@pytest.mark.parametrize("kind", [500, 503, "cut", "lost"])
def test_a_transient_error_is_retried(store: ObjectStore, s3: S3, kind: int | str) -> None:
    s3.fail(Fault(kind, "PUT .*partNumber=2"), Fault(kind, "POST .*uploadId"), Fault(kind, "GET"))
    store.promote(store.stage("b.tar", lambda file: file.write(b"y" * MANY)), "shards/b.tar")
    store.write("index.json", "text")
    assert (store.size("shards/b.tar"), store.read("index.json")) == (MANY, b"text")
    assert len([r for r in s3.requests() if "partNumber=2" in r]) >= 2


def test_a_request_without_an_answer_times_out(
    store: ObjectStore, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "REQUEST_SECONDS", 1.0)
    quick_store = open_store(store.url)
    start = time.monotonic()
    s3.fail(Fault("hang", "PUT"))
    quick_store.write("index.json", "text")
    assert time.monotonic() - start < 20  # the server would answer after 30 s
    assert store.read("index.json") == b"text"


def test_an_error_that_persists_is_raised(
    store: ObjectStore, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "BACKOFF", (0.01,))
    s3.fail(Fault(500, "PUT", times=99))
    with pytest.raises(
        StoreFailedError,
        match=r"^s3://bucket/\w+/index.json: the store failed 2 times: .*PutObject",
    ):
        store.write("index.json", "text")
    s3.fail()
    assert not store.exists("index.json")


def test_a_refused_request_is_not_retried(store: ObjectStore, s3: S3) -> None:
    s3.fail(Fault(403, "PUT", times=99))
    with pytest.raises(StoreRefusedError, match=r"^s3://.*ACCESS_DENIED.*as told$"):
        store.write("index.json", "text")
    assert len(s3.requests()) == 1
    s3.fail()
    with pytest.raises(StoreRefusedError, match="NO_SUCH_BUCKET"):
        open_store("s3://another/folder").write("index.json", "text")


def test_a_cut_upload_is_not_listed_and_is_cleaned(
    store: ObjectStore, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "BACKOFF", (0.01,))
    s3.fail(Fault("cut", "PUT", times=99))
    with pytest.raises(StoreFailedError):
        store.stage("b.tar", lambda file: file.write(b"y" * MANY))
    s3.fail()
    store.stage("c.tar", lambda file: file.write(b"y"))
    assert dict(store.sizes("shards")) == {}
    store.clean()
    assert names(store) == []


def test_a_folder_of_more_files_than_one_page_is_listed(store: ObjectStore, s3: S3) -> None:
    store.write("shards/first.json", "1")
    with ThreadPoolExecutor(8) as pool:
        source = store._full_path("shards/first.json")
        list(
            pool.map(
                lambda n: store.files.copy_file(source, store._full_path(f"shards/{n:06d}.json")),
                range(1001),
            )
        )
    s3.fail()
    assert len(dict(store.sizes("shards"))) == 1002
    assert len(s3.requests()) == 2


def test_a_store_is_pickled_without_credentials(store: ObjectStore) -> None:
    data = pickle.dumps(store)
    assert b"hidden" not in data
    assert b"AKIA" not in data
    again = pickle.loads(data)
    store.write("index.json", "text")
    assert (str(again), again.read("index.json")) == (str(store), b"text")


def test_errors_contain_no_credentials() -> None:
    error = OSError("signature of AKIATESTKEY with hidden-secret-of-the-test\n is wrong")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-secret-of-the-test")
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTKEY")
        assert (
            object_store.describe_error(error)
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
def test_an_invalid_url_is_refused(url: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_url(url)
    assert message in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_folder_that_nodes_do_not_share_is_refused(tmp_path: Path, store: ObjectStore) -> None:
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
    """A file system that carries out the first request of a kind, and loses its answer."""

    type_name = "hdfs"

    def __init__(self, *kinds: str) -> None:
        self.files = fs.LocalFileSystem()
        self.kinds = set(kinds)

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
    monkeypatch.setattr(object_store, "BACKOFF", (0.01,) * 4)
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
    """The same, with an error like that of HDFS if a file to delete does not exist."""

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)

        def delete(path: str) -> Any:
            try:
                return found(path)
            except FileNotFoundError as error:
                raise OSError("HDFS delete failed") from error

        return delete if name == "delete_file" else found


def test_a_deletion_whose_answer_is_lost_deletes_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "BACKOFF", (0.01,) * 4)
    store = ObjectStore("hdfs://test/folder", DeletesAsHdfs("delete_file"), str(tmp_path))
    store.write("shards/a.tar", "old")
    store.delete("shards/a.tar")
    store.delete("shards/a.tar")
    assert names(store) == []


def test_promoting_a_missing_staged_file_keeps_the_existing_file(
    renaming_store: ObjectStore,
) -> None:
    renaming_store.write("shards/a.tar", "old")
    with pytest.raises(FileNotFoundError):
        renaming_store.promote(".staging/none", "shards/a.tar")
    assert renaming_store.read("shards/a.tar") == b"old"


@pytest.mark.parametrize("match", ["PUT .*shards/b.tar", "DELETE .*staging"])
def test_a_copy_whose_answer_is_lost_is_retried(store: ObjectStore, s3: S3, match: str) -> None:
    staged = store.stage("b.tar", lambda file: file.write(b"precious"))
    s3.fail(Fault("lost", match))
    store.promote(staged, "shards/b.tar")
    assert store.read("shards/b.tar") == b"precious"
    assert names(store) == ["shards/b.tar"]


def test_files_are_renamed_in_a_store_that_renames(renaming_store: ObjectStore) -> None:
    for text in ("old", "new"):
        renaming_store.write("shards/a.json", text)
    assert renaming_store.read("shards/a.json") == b"new"
    renaming_store.clean()
    assert names(renaming_store) == ["shards/a.json"]


@pytest.fixture(params=["s3", "renaming"])
def out(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    return request.getfixturevalue("store" if request.param == "s3" else "renaming_store")


def write_claim(store: Store, **changes: object) -> None:
    content = json.loads(Lock(store)._content())
    store.write(".lock-other", json.dumps({**content, "token": "other", **changes}))


def test_a_second_driver_is_refused(out: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "CLAIM_BACKOFF", (0.01,))
    with Lock(out) as first:
        with pytest.raises(LockedError, match="another run is working on this output"), Lock(out):
            pass
        first.check()
    assert names(out) == []
    with Lock(out):
        pass


def test_a_stale_claim_is_taken_over(out: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "CLAIM_BACKOFF", (0.01,))
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.05)
    write_claim(out, start="1")  # a process of this host that is gone
    with Lock(out):
        assert len(names(out)) == 1
    write_claim(out, host="another-host")
    threading.Timer(0.5, lambda: write_claim(out, host="another-host")).start()  # a heartbeat
    with pytest.raises(LockedError, match="on another-host"), Lock(out):
        pass
    monkeypatch.setattr(lock, "STALE_SECONDS", -1.0)  # now its heartbeat is too old
    assert lock.Claim(out, "new").acquire("{}") is None
    assert names(out) == ["/.lock-new"]


def test_check_raises_after_the_claim_is_lost(out: ObjectStore) -> None:
    with Lock(out) as own_lock:
        own_lock.check()
        out.delete(own_lock.keeper.name)  # type: ignore[attr-defined]
        with pytest.raises(LockedError, match="taken over"):
            own_lock.check()
    with Lock(out) as own_lock:
        suspend(own_lock)  # no other driver has ignored it meanwhile
        own_lock.check()
        suspend(own_lock)
        write_claim(out, host="another-host")
        for _ in range(2):
            with pytest.raises(LockedError, match="or could have"):
                own_lock.check()
    assert {".lock-other"} <= {name.strip("/") for name in names(out)}


def test_a_claim_survives_an_adjusted_clock(
    out: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    with Lock(out) as own_lock:
        monkeypatch.setattr(time, "time", lambda: real() + 3600)
        own_lock.check()


def test_only_one_of_several_drivers_acquires_the_claim_at_a_time(store: ObjectStore) -> None:
    holders = [0]
    most_holders = [0]

    def drive(number: int) -> bool:
        try:
            with Lock(store):
                holders[0] += 1
                most_holders[0] = max(most_holders[0], holders[0])
                time.sleep(0.2)
                holders[0] -= 1
                return True
        except LockedError:
            return False

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(drive, range(4)))
    assert most_holders[0] == 1
    assert any(results)
    assert names(store) == []


def test_a_look_at_a_claim_refuses_no_other_driver(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a look is orphaned if a driver is killed while it waits."""
    write_claim(store, host="another-host", looks=True)
    with Lock(store) as own_lock:
        own_lock.check()
    monkeypatch.setattr(lock, "CLAIM_BACKOFF", (0.01,))
    write_claim(store, host="another-host")
    looks = []
    write = store.write

    def record(name: str, text: str) -> None:
        looks.append(json.loads(text))
        write(name, text)

    monkeypatch.setattr(store, "write", record)
    holder = lock.Claim(store, "aaa").acquire(Lock(store)._content())
    assert holder is not None
    assert holder.content["token"] == "other"
    assert len(looks) == 2
    assert all(content["looks"] for content in looks)
