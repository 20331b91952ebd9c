"""`synthgen repair`: it restores the bytes of the output folder after every kind of damage."""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from synthgen import cli
from synthgen.config import Job, load_job
from synthgen.dataset.check import check_dataset
from synthgen.dataset.marker import Marker, read_stored_marker
from synthgen.dataset.shard import StagedShard
from synthgen.engine.generation import build_dataset_info, run
from synthgen.engine.repair import OldShard, Repair, repair
from synthgen.engine.worker import RejectedImageError, Worker, encode_image
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion import precision
from synthgen.pipelines.mixture import Spec as MixtureSpec
from synthgen.storage.base import Store
from synthgen.storage.location import open_store
from synthgen.storage.lock import LockedError
from tests.conftest import SMALL_JOB
from tests.engine.test_driver import snapshot
from tests.s3 import S3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished dataset of three shards of two images."""
    folder = tmp_path_factory.mktemp("repair")
    job = {**SMALL_JOB, "output": {"shard_size": 2, "path": str(folder / "out")}}
    (folder / "job.yaml").write_text(json.dumps(job))
    run(load_job(str(folder / "job.yaml"), ["layout.canvas=[64, 64]", "layout.objects.dog=1"]))
    return folder / "out"


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def flip(path: Path, offset: int = -300) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def flip_all(out: Path) -> None:
    for number, kind in enumerate(("tar", "parquet", "tar")):
        flip(out / f"shards/00000{number}.{kind}", 700)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=1) + "\n")


def remove(out: Path, number: int) -> None:
    for suffix in (".tar", ".parquet", ".json"):
        (out / f"shards/00000{number}{suffix}").unlink()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "bit of an image": lambda out: flip(out / "shards/000000.tar", 1500),
    "cut tar": lambda out: (out / "shards/000001.tar").write_bytes(
        (out / "shards/000001.tar").read_bytes()[:-3000]
    ),
    "empty tar": lambda out: (out / "shards/000001.tar").write_bytes(b""),
    "bit of a table": lambda out: flip(out / "shards/000002.parquet"),
    "missing table": lambda out: (out / "shards/000002.parquet").unlink(),
    "missing shard": lambda out: remove(out, 1),
    "digest in the marker": lambda out: edit(out / "shards/000001.json", sha256="0" * 64),
    "invalid marker": lambda out: (out / "shards/000000.json").write_text('{"count": "two"}'),
    "all shards": lambda out: flip_all(out),
    "manifest": lambda out: (out / "manifest.parquet").write_bytes(b"no"),
    "index": lambda out: (out / "index.json").write_text("[]"),
    "coco": lambda out: (out / "annotations/instances.json").unlink(),
    "dataset.json": lambda out: (out / "dataset.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_dataset_is_restored(
    out: Path, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(out)
    damage(out)
    assert cli.main(["check", str(out)]) == 1
    capsys.readouterr()
    assert cli.main(["repair", str(out), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert (
        output["ok"],
        output["faults"],
        output["left"],
        output["changed"],
        output["finalized"],
    ) == (
        True,
        [],
        {},
        {},
        True,
    )
    after = snapshot(out)
    markers = {name for name in before if name.startswith("shards/") and name.endswith(".json")}
    assert {
        n for n in {*before, *after} if before.get(n) != after.get(n)
    } <= markers  # the time in a lost marker is not known
    for name in markers:
        assert {**json.loads(before[name]), **json.loads(after[name])}["sha256"] == json.loads(
            before[name]
        )["sha256"]


def test_a_dataset_on_an_object_store_is_restored(
    whole: Path, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    url = s3.url(f"repair/{uuid.uuid4().hex}")
    before = snapshot(whole)
    store = open_store(url)
    for name, data in before.items():
        store.write(name, data)
    store.write(
        "shards/000000.tar",
        before["shards/000000.tar"][:1500] + b"?" + before["shards/000000.tar"][1501:],
    )
    store.delete("shards/000001.parquet")
    store.delete("shards/000002.json")
    store.delete("manifest.parquet")
    assert cli.main(["check", url]) == 1
    capsys.readouterr()
    assert cli.main(["repair", url, "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert (sorted(output["restored"]), output["faults"], output["finalized"]) == (
        [0, 1, 2],
        [],
        True,
    )
    assert {name for name in before if store.read(name) != before[name]} <= {
        "shards/000002.json",
        "report.html",
    }
    assert list(store.sizes(".staging")) == []
    log = [store.read(f"log.jsonl/{name}") for name, _ in store.sizes("log.jsonl")]
    assert json.loads(log[0])["event"] == "repair ended"
    assert repair(open_store(url)).lines() == []


def test_only_bad_shards_are_written(out: Path) -> None:
    flip(out / "shards/000001.tar", 1500)
    times = {p.name: p.stat().st_mtime_ns for p in (out / "shards").iterdir()}
    assert repair(open_store(out)).restored == [1]
    touched = {p.name for p in (out / "shards").iterdir() if p.stat().st_mtime_ns != times[p.name]}
    assert touched == {"000001.tar", "000001.parquet", "000001.json"}


def test_an_intact_dataset_is_not_changed(out: Path) -> None:
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    done = repair(open_store(out))
    assert (done.lines(), done.finalized) == ([], False)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == times


def lose_lock(out: Path) -> None:
    """Let another driver take over the lock and stage a shard."""
    (out / ".lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "other"}))
    (out / ".staging").mkdir(exist_ok=True)
    (out / ".staging/other").write_bytes(b"a shard of the other driver")


def test_a_repair_that_loses_its_lock_commits_nothing(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(out / "shards/000001.tar", 1500)
    damaged = (out / "shards/000001.tar").read_bytes()
    make_shard = Worker.make_shard

    def make_and_lose_lock(self: Worker, number: int) -> Iterator[Any]:
        for event in make_shard(self, number):
            if isinstance(event, StagedShard):
                lose_lock(out)
            yield event

    monkeypatch.setattr(Worker, "make_shard", make_and_lose_lock)
    with pytest.raises(LockedError, match="another run has taken over this output"):
        repair(open_store(out))
    assert (out / "shards/000001.tar").read_bytes() == damaged
    assert (out / ".staging/other").exists()


def test_a_repair_that_loses_its_lock_deletes_no_staged_file(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(out / "shards/000001.tar", 1500)

    def make_and_lose_lock(self: Worker, number: int) -> Iterator[Any]:
        yield from ()
        lose_lock(out)
        raise RejectedImageError("no image is good enough")

    monkeypatch.setattr(Worker, "make_shard", make_and_lose_lock)
    with pytest.raises(LockedError, match="another run has taken over this output"):
        repair(open_store(out))
    assert (out / ".staging/other").exists()


def test_a_shard_is_generated_again_with_the_numerics_of_its_marker(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[tuple[Any, ...]] = []

    def create_worker(job: Job, store: Store, device: str, tiled: bool) -> Worker:
        settings.append((job.batch_size, job.chunk, job.threads))
        return Worker(job, store, device, tiled)

    monkeypatch.setattr("synthgen.engine.repair.Worker", create_worker)
    for number, chunk in ((0, 7), (1, 5), (2, 7)):
        path = out / f"shards/00000{number}.json"
        edit(
            path,
            numerics={**json.loads(path.read_text())["numerics"], "chunk": chunk, "batch_size": 1},
        )
        flip(out / f"shards/00000{number}.tar", 1500)
    assert sorted(repair(open_store(out)).restored) == [0, 1, 2]
    assert sorted(settings) == [(1, 5, 1), (1, 7, 1)]  # one worker for each setting
    assert read_stored_marker(open_store(out), 1).numerics["chunk"] == 5  # type: ignore[union-attr]


def test_other_bytes_are_reported_and_committed_only_with_accept(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = out / "shards/000001.json"
    numerics = json.loads(path.read_text())["numerics"]
    edit(path, numerics={**numerics, "versions": {**numerics["versions"], "pillow": "0.1"}})
    flip(out / "shards/000001.tar", 1500)
    monkeypatch.setattr(
        "synthgen.engine.worker.encode_image",
        lambda pixels, output: encode_image(pixels, output.model_copy(update={"quality": 50})),
    )
    before = snapshot(out)
    assert cli.main(["repair", str(out)]) == 1
    printed = capsys.readouterr().out
    assert (
        "shards/000001: not repaired: its bytes differ from the old ones: pillow 0.1 then, "
        in printed
    )
    assert "annotations, manifest" not in printed
    assert snapshot(out) == before
    done = repair(open_store(out), accept=True)
    assert list(done.changed) == [1]
    assert done.faults == []
    assert read_stored_marker(open_store(out), 1).numerics["versions"]["pillow"] != "0.1"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("recorded", "key", "used"),
    [
        (None, "auto", "float32"),  # a version that did not record it
        ("bfloat16", "auto", "bfloat16"),
        ("float32", "auto", "float32"),
        (None, "bfloat16", "bfloat16"),
        ("evil", "auto", "bfloat16"),  # no numerics: as a new shard
    ],
)
def test_a_shard_is_generated_again_in_the_number_format_of_its_marker(
    recorded: str | None,
    key: str,
    used: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "has_amx", lambda: True)
    pipeline = MixtureSpec(model=str(checkpoint), dtype=key)
    job = load_job("100dogs", ["images=1", "workers=0"]).model_copy(update={"pipeline": pipeline})
    numerics = asdict(Numerics(dtype=recorded))
    if recorded is None:
        del numerics["dtype"]
    marker = Marker(1, 0, 1, "0", "0", 1, "0", numerics)
    used_formats = []

    def record(self: Worker, number: int) -> Iterator[Any]:
        used_formats.append(self.numerics.dtype)
        return iter(())

    monkeypatch.setattr(Worker, "make_shard", record)
    info = build_dataset_info(job)
    work = Repair(open_store(tmp_path), info, job, "", accept=False, report=None)
    list(work.generate(job, {0: OldShard(marker, frozenset())}))
    assert used_formats == [used]


def test_a_shard_of_a_gpu_is_not_generated_again_without_a_gpu(out: Path) -> None:
    path = out / "shards/000002.json"
    edit(path, numerics={**json.loads(path.read_text())["numerics"], "device": "cuda"})
    flip(out / "shards/000002.tar", 1500)
    assert repair(open_store(out)).left == {
        2: "it was generated on a GPU, and this machine has none: its bytes would differ"
    }
    assert repair(open_store(out), accept=True).restored == [
        2
    ]  # pasting cut-outs gives the same bytes on every device


def test_a_dataset_whose_extension_generated_nothing_is_finished(out: Path) -> None:
    job = load_job(str(out / "job.yaml"), ["images=7", f"output.path={out}"])
    edit(out / "dataset.json", asked=7)
    (out / "job.yaml").write_text(json.dumps(job.to_dict()))
    assert repair(open_store(out)).unknown == [3]
    assert check_dataset(open_store(out)) == ([], {"images": 7, "boxes": 7, "shards": 4})


def test_a_shard_of_other_versions_is_added_only_with_accept(out: Path) -> None:
    job = load_job(str(out / "job.yaml"), ["images=7", f"output.path={out}"])
    edit(out / "dataset.json", asked=7)
    (out / "job.yaml").write_text(json.dumps(job.to_dict()))
    numerics = json.loads((out / "shards/000000.json").read_text())["numerics"]
    edit(
        out / "shards/000000.json",
        numerics={**numerics, "versions": {**numerics["versions"], "pillow": "0.1"}},
    )
    assert (
        "other shards were generated with other package versions: pillow: was 0.1, is "
        in repair(open_store(out)).left[3]
    )
    done = repair(open_store(out), accept=True)
    assert (list(done.changed), done.faults) == ([3], [])


def test_a_job_file_of_another_job_is_refused(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = load_job(str(out / "job.yaml"), ["seed=8"])
    (out / "job.yaml").write_text(json.dumps(job.to_dict()))
    before = snapshot(out)
    assert cli.main(["repair", str(out)]) == 2
    assert "are not what its shards are of: seed: was 3, is 8" in capsys.readouterr().err
    assert snapshot(out) == before


def test_without_a_job_tables_are_restored_and_images_are_not(out: Path) -> None:
    (out / "job.yaml").write_text("import: {}\n")
    edit(out / "dataset.json", imported="coco: instances.json")
    (out / "shards/000000.parquet").unlink()
    flip(out / "shards/000001.tar", 1500)
    done = repair(open_store(out))
    assert done.restored == [0]
    assert (
        "the dataset was imported (coco: instances.json), so its images cannot be generated again"
        in done.left[1]
    )
    assert any("000001.tar: its bytes are not those" in fault for fault in done.faults)


@pytest.mark.parametrize("name", ["dataset.json", "job.yaml"])
def test_a_folder_without_a_dataset_is_refused(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("[")
    assert cli.main(["repair", str(tmp_path)]) == 2
    assert "no dataset here" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_check_finds_a_shard_of_another_model(out: Path) -> None:
    path = out / "shards/000001.json"
    numerics = json.loads(path.read_text())["numerics"]
    edit(path, numerics={**numerics, "files": {"pipeline.cutouts_sha256": "00"}})
    assert (
        "shards/000001.json: made with another file: pipeline.cutouts_sha256 is '00'"
        in check_dataset(open_store(out))[0][0]
    )
