"""The driver in one process: resume, extend, refuse, and the files of a finished dataset."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from synthgen.cli.main import main
from synthgen.config import Job, load_job
from synthgen.dataset.check import check_dataset
from synthgen.dataset.info import ChangedJobError, read_info
from synthgen.dataset.marker import Marker, list_committed_shards
from synthgen.dataset.sample import Sample
from synthgen.dataset.shard import StagedShard
from synthgen.dataset.versions import read_versions
from synthgen.engine.generation import describe_version_difference, find_missing_shards, run
from synthgen.engine.local_pool import LocalPool
from synthgen.engine.pool import StoppedError, count_workers
from synthgen.engine.worker import GeneratedImage, Progress, Worker
from synthgen.errors import StoreFailedError
from synthgen.storage.location import open_store
from synthgen.storage.lock import Lock, LockedError
from tests.conftest import read_shard_bytes
from tests.engine.stubs import Unloadable
from tests.s3 import S3


def snapshot(out: Path) -> dict[str, bytes]:
    """Return all files except the log, and the first image that the last run finished."""
    files = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    assert files.pop("log.jsonl")
    files.pop("first.jpg", None)
    return files


def test_a_finished_dataset_has_all_files(make_job: Callable[..., Job]) -> None:
    job = make_job()
    result = run(job)
    out = Path(job.output.path)
    assert (result.made, result.interrupted, result.counts["complete"]) == (6, False, True)
    shard_files = []
    for number in range(3):
        for suffix in ("json", "parquet", "tar"):
            shard_files.append(f"shards/00000{number}.{suffix}")
    assert sorted(snapshot(out)) == [
        "README.md",
        "annotations/instances.json",
        "contact_sheet.jpg",
        "dataset.json",
        "index.json",
        "job.yaml",
        "manifest.parquet",
        *shard_files,
    ]
    assert load_job(str(out / "job.yaml")).to_dict() == job.to_dict()
    info = json.loads((out / "dataset.json").read_text())
    assert (info["images"], info["boxes"], info["licence"]) == (6, 24, "Apache-2.0")
    assert info["versions"]["synthgen-layouts"]
    manifest = pq.read_table(out / "manifest.parquet")
    assert manifest["index"].to_pylist() == list(range(6))
    assert set(manifest.column_names) >= {
        "key",
        "shard",
        "seed",
        "attempt",
        "prompt",
        "n_boxes",
        "score",
        "image_sha256",
    }
    assert check_dataset(open_store(out))[0] == []


def test_a_second_run_changes_nothing(make_job: Callable[..., Job]) -> None:
    run(make_job())
    before = snapshot(Path(make_job().output.path))
    assert run(make_job()).made == 0
    assert snapshot(Path(make_job().output.path)) == before


def test_a_strict_dataset_comes_from_one_kind_of_device(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(["card A", "card A", "card B", "card B"])
    monkeypatch.setattr("synthgen.engine.worker.describe_hardware", lambda *given: next(names))
    assert run(make_job("images=2", "numerics=strict")).made == 2
    assert run(make_job("images=4", "numerics=strict")).made == 2
    with pytest.raises(StoppedError, match="on card B, but this dataset was begun on card A"):
        run(make_job("images=6", "numerics=strict"))
    out = open_store(make_job().output.path)
    assert not out.exists("shards/000002.tar")
    assert run(make_job("images=6")).made == 2
    assert check_dataset(out)[0] == []


def test_shards_of_different_versions_are_not_mixed(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    result = run(job)
    out = Path(job.output.path)
    monkeypatch.setattr(
        "synthgen.engine.generation.read_versions", lambda: {**read_versions(), "pillow": "99"}
    )
    assert run(job).counts == result.counts  # no shard is missing
    before = read_shard_bytes(out), (out / "dataset.json").read_bytes()
    change = rf"pillow: was {read_versions()['pillow']}, is 99\."
    with pytest.raises(
        ChangedJobError, match=f"was generated with other package versions: {change}"
    ):
        run(make_job("images=8"))
    assert (read_shard_bytes(out), (out / "dataset.json").read_bytes()) == before
    with pytest.raises(
        StoppedError, match="a worker has other package versions than this driver: pillow: was"
    ):
        run(make_job(f"output.path={out}-elsewhere"))


def test_only_missing_shards_are_generated(make_job: Callable[..., Job]) -> None:
    job = make_job()
    run(job)
    out = Path(job.output.path)
    before = read_shard_bytes(out)
    (out / "shards/000001.json").unlink()
    (out / "shards/000002.tar").write_bytes(b"cut")
    assert find_missing_shards(job, open_store(out)) == [1, 2]
    assert run(job).made == 4
    assert read_shard_bytes(out) == before


def test_an_extended_dataset_equals_a_fresh_one(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    run(make_job("images=3"))
    extended = make_job("images=7")
    run(extended)
    fresh = make_job("images=7", f"output.path={tmp_path / 'fresh'}")
    run(fresh)
    assert read_shard_bytes(Path(extended.output.path)) == read_shard_bytes(tmp_path / "fresh")
    assert check_dataset(open_store(Path(extended.output.path)))[0] == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=4", "seed: was 3, is 4"),
        ("layout.gap=5", r"layout.gap: was 4.0, is 5.0"),
        ("scene.background=sand", "scene.background: was 'a field of grass', is 'sand'"),
        ("output.image_format=png", "output.image_format: was 'jpg', is 'png'"),
        ("pipeline.shadow=0.2", "pipeline.shadow: was 0.4, is 0.2"),
        ("images=2", "images: was 6, is 2; a dataset can be extended, not shortened"),
    ],
)
def test_a_changed_job_is_refused_with_the_key(
    make_job: Callable[..., Job], override: str, message: str
) -> None:
    run(make_job())
    before = snapshot(Path(make_job().output.path))
    with pytest.raises(ChangedJobError, match=message):
        run(make_job(override))
    assert snapshot(Path(make_job().output.path)) == before


def test_overwrite_replaces_the_dataset_and_no_other_file(make_job: Callable[..., Job]) -> None:
    run(make_job())
    notes = Path(make_job().output.path) / "notes.txt"
    notes.write_text("mine")
    assert run(make_job("seed=4"), overwrite=True).made == 6
    assert notes.read_text() == "mine"


def test_a_folder_with_other_shards_is_refused(make_job: Callable[..., Job]) -> None:
    shards = Path(make_job().output.path) / "shards"
    shards.mkdir(parents=True)
    (shards / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ChangedJobError, match="is not a synthgen dataset"):
            run(make_job(), overwrite=overwrite)
    assert (shards / "mine.txt").exists()


def test_files_of_another_program_are_not_replaced(make_job: Callable[..., Job]) -> None:
    out = Path(make_job().output.path)
    out.mkdir(parents=True)
    (out / "README.md").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ChangedJobError, match=r"has README\.md and is not a synthgen dataset"):
            run(make_job(), overwrite=overwrite)
    assert {path.name: path.read_text() for path in out.iterdir()} == {"README.md": "mine"}


def test_a_second_run_is_refused_and_writes_nothing(make_job: Callable[..., Job]) -> None:
    run(make_job())
    out = Path(make_job().output.path)
    with Lock(open_store(out)):
        before = snapshot(out)
        with pytest.raises(LockedError, match="another run is working on this output"):
            run(make_job("images=8"))
        assert snapshot(out) == before


def test_orphaned_files_of_a_killed_run_are_deleted(make_job: Callable[..., Job]) -> None:
    out = Path(make_job().output.path)
    (out / ".staging").mkdir(parents=True)
    (out / ".staging/dead-000000.tar").write_bytes(b"half")
    (out / ".index.json.dead.tmp").write_bytes(b"half")
    run(make_job())
    assert not [p for p in out.rglob("*") if p.name.startswith(".")]


def test_ctrl_c_keeps_committed_shards(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LocalPool.run

    def interrupted(self: LocalPool, shards: Iterator[int]):  # type: ignore[no-untyped-def]
        yield from original(self, [next(shards)])
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalPool, "run", interrupted)
    result = run(make_job())
    assert (result.interrupted, result.made, result.counts["complete"]) == (True, 2, False)
    out = Path(make_job().output.path)
    assert check_dataset(open_store(out))[0] == ["shards: 2 images, the job asks for 6"]
    monkeypatch.undo()
    assert run(make_job()).made == 4
    assert check_dataset(open_store(out))[0] == []


def test_rejected_shards_are_reported_and_the_others_are_kept(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make_job("images=2", "on_reject=fail"))
    monkeypatch.setattr("synthgen.engine.worker.is_blank", lambda painting: True)
    result = run(make_job("on_reject=fail"))
    assert [(f.shard, f.attempts, f.error) for f in result.failed] == [
        (1, 1, "RejectedImageError: samples [2, 3]: blank after 3 attempts"),
        (2, 1, "RejectedImageError: samples [4, 5]: blank after 3 attempts"),
    ]
    monkeypatch.undo()
    out = Path(make_job().output.path)
    assert check_dataset(open_store(out))[0] == ["shards: 2 images, the job asks for 6"]
    assert run(make_job()).made == 4


def test_a_failed_shard_is_retried_then_reported_and_the_others_are_generated(
    make_job: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    job_file: Path,
) -> None:
    encode = Worker.encode
    calls = []

    def encode_or_fail(self: Worker, indices: range, images: list[GeneratedImage]) -> list[Sample]:
        calls.append(indices[0])
        if indices[0] == 0 and calls.count(0) == 1:
            raise ValueError("once")
        if indices[0] == 2:
            raise ValueError("always")
        return encode(self, indices, images)

    monkeypatch.setattr(Worker, "encode", encode_or_fail)
    assert main(["run", str(job_file), "--json"]) == 1
    output = json.loads(capsys.readouterr().out)
    out = Path(make_job().output.path)
    assert calls == [0, 0, 2, 2, 2, 4]
    assert [(f["shard"], f["attempts"], f["error"]) for f in output["failed"]] == [
        (1, 3, "ValueError: always")
    ]
    assert "in encode_or_fail" in output["failed"][0]["traceback"]
    assert [
        json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()
    ] == output["failed"]
    assert (output["images"], output["complete"]) == (4, False)
    assert main(["run", str(job_file), "max_shard_attempts=1"]) == 1
    text = capsys.readouterr().out
    assert (
        "shard 000001 failed 1 time(s): ValueError: always\n1 shard(s) could not be generated"
        in text
    )
    assert "Traceback" not in text
    assert main(["run", str(job_file), "max_shard_attempts=1", "-v"]) == 1
    assert "shard 000001 failed 1 time(s): ValueError: always\nTraceback" in capsys.readouterr().out
    assert calls == [0, 0, 2, 2, 2, 4, 2, 2]
    monkeypatch.undo()
    assert run(make_job()).made == 2
    assert not (out / "failures.jsonl").exists()
    assert check_dataset(open_store(out))[0] == []


def test_a_run_stops_after_too_many_failed_shards(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synthgen.engine.generation.MAX_FAILED_SHARDS", 2)
    monkeypatch.setattr("synthgen.engine.worker.is_blank", lambda painting: True)
    assert [f.shard for f in run(make_job("on_reject=fail", "images=20")).failed] == [0, 1]


def test_a_lost_store_ends_the_run_at_the_first_shard(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def lost(*args: object) -> None:
        calls.append(1)
        raise StoreFailedError("s3://bucket: the store failed 6 times")

    monkeypatch.setattr("synthgen.engine.worker.stage", lost)
    with pytest.raises(StoreFailedError, match="6 times"):
        run(make_job())
    assert len(calls) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a folder on a disk whose size can be set."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder], capture_output=True
    ).returncode:
        pytest.skip("may not mount a disk here")

    def resize(size: str) -> Path:
        subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)
        return folder

    yield resize
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_the_run_and_keeps_committed_shards(
    make_job: Callable[..., Job],
    job_file: Path,
    small_disk: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(make_job("images=20"))
    out = small_disk("200k") / "out"
    assert main(["run", str(job_file), "images=20", f"output.path={out}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(
        f"{out}: No space left on device: make room, or give another output.path."
    )
    kept = list_committed_shards(open_store(out))
    assert 1 < len(kept) < 10
    small_disk("10m")
    assert main(["run", str(job_file), "images=20", f"output.path={out}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made"] == 20 - 2 * len(kept)
    assert read_shard_bytes(out) == read_shard_bytes(Path(make_job().output.path))
    assert check_dataset(open_store(out))[0] == []


def test_the_shard_in_progress_is_finished_after_sigterm(
    make_job: Callable[..., Job],
    job_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop_after_images(self: Any, progress: Progress, first_image: str) -> None:
        if progress.images:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("synthgen.cli.run._ProgressBar.show", stop_after_images)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["run", str(job_file)]) == 143
    assert (
        f"stopped; 2 of 6 images are done. To continue: synthgen run {job_file}"
        in capsys.readouterr().out
    )
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) == before
    assert run(make_job()).made == 4


def test_a_shard_that_takes_long_is_dropped_after_sigterm(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synthgen.engine.termination.FINISH_SECONDS", 0.2)
    paint = Worker.paint

    def slowly(self: Worker, indices: range) -> list[GeneratedImage]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        return paint(self, indices)

    monkeypatch.setattr(Worker, "paint", slowly)
    result = run(make_job())
    assert (result.made, result.interrupted, result.terminated, result.counts["images"]) == (
        0,
        True,
        True,
        0,
    )
    assert result.seconds < 20
    assert not [p for p in Path(make_job().output.path).rglob("*") if p.name.startswith(".")]


@pytest.mark.parametrize(
    ("workers", "count"), [("1", 1), ("2", 2), ("9", 3), ("[1, 2]", 2), ("null", 3)]
)
def test_there_are_never_more_workers_than_shards(
    make_job: Callable[..., Job], workers: str, count: int
) -> None:
    assert count_workers(make_job(f"workers={workers}"), room=5) == count


@pytest.mark.parametrize("where", ["folder", "store"])
def test_an_output_without_a_shard_belongs_to_no_job(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, s3: S3, where: str
) -> None:
    url = f"output.path={s3.url('belongs')}" if where == "store" else "images=6"
    with monkeypatch.context() as broken:
        broken.setattr("synthgen.engine.local_pool.Worker", Unloadable)
        with pytest.raises(FileNotFoundError, match="no such model"):
            run(make_job("seed=4", "images=8", url))
    out = open_store(make_job(url).output.path)
    out.write("failures.jsonl", "of the other job\n")
    assert read_info(out) is not None
    assert run(make_job(url)).counts["complete"]
    assert check_dataset(out)[0] == []
    assert not out.exists("failures.jsonl")
    with pytest.raises(ChangedJobError, match="seed: was 3, is 4"):
        run(make_job("seed=4", url))


def test_a_damaged_shard_still_belongs_to_its_job(make_job: Callable[..., Job]) -> None:
    run(make_job("images=2"))
    (Path(make_job().output.path) / "shards/000000.tar").write_bytes(b"cut")
    with pytest.raises(ChangedJobError, match="seed: was 3, is 4"):
        run(make_job("seed=4", "images=2"))


@pytest.mark.parametrize(
    "package", ["ray", "synthgen-layouts", "torch", "diffusers", "transformers"]
)
def test_other_versions_that_no_pixel_depends_on_are_accepted(
    make_job: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    package: str,
) -> None:
    run(make_job("images=2"))
    other_versions = {**read_versions(), package: "99"}
    for module in ("generation", "worker"):
        monkeypatch.setattr(f"synthgen.engine.{module}.read_versions", lambda: other_versions)
    message = (
        "was started with other package versions, which no pixel depends on: "
        f"{package}: was {read_versions()[package]}, is 99"
    )
    assert run(make_job()).counts["complete"]
    assert caplog.text.count(message) == 1
    assert run(make_job("images=8")).counts["complete"]
    assert caplog.text.count(message) == 1
    out = Path(make_job().output.path)
    markers = [
        json.loads(file.read_text())["numerics"]["versions"][package]
        for file in sorted(out.glob("shards/*.json"))
    ]
    assert markers == [read_versions()[package], "99", "99", "99"]


def test_the_versions_of_a_network_count_if_it_generates_or_verifies(
    make_job: Callable[..., Job],
) -> None:
    old_versions = {
        "numpy": read_versions()["numpy"],
        "torch": "1.0",
        "ray": "1.0",
    }  # as a marker of another machine may say
    marker = Marker(2, 0, 0, "", "", 0, "", {"versions": old_versions})
    assert describe_version_difference(marker, make_job()) == ""
    assert (
        describe_version_difference(marker, make_job("verify={verifier: detector}"))
        == f"torch: was 1.0, is {read_versions()['torch']}"
    )
    assert (
        describe_version_difference(marker, make_job("pipeline=mixture-tiny"))
        == f"torch: was 1.0, is {read_versions()['torch']}"
    )
    unknown = replace(marker, numerics={})
    assert describe_version_difference(unknown, make_job("pipeline=mixture-tiny")) == ""


def test_a_run_that_loses_its_lock_commits_and_deletes_nothing_more(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(make_job().output.path)
    original = LocalPool.run
    files_of_other_run = dict[str, bytes]()

    def run_and_lose_lock(self: LocalPool, shards: Iterator[int]) -> Iterator[object]:
        for event in original(self, shards):
            yield event
            if (
                list_committed_shards(open_store(out)) == [0] and not files_of_other_run
            ):  # another run takes over, and commits the next shard
                (out / ".lock").write_text(
                    json.dumps(
                        {"host": "elsewhere", "pid": 1, "time": time.time(), "token": "other"}
                    )
                )
                files_of_other_run.update(snapshot(out))

    monkeypatch.setattr(LocalPool, "run", run_and_lose_lock)
    with pytest.raises(LockedError, match="another run has taken over this output"):
        run(make_job())
    after = snapshot(out)
    assert {
        name: after[name] for name in files_of_other_run if not name.startswith(".staging")
    } == files_of_other_run
    assert list_committed_shards(open_store(out)) == [0]


def test_a_run_that_loses_its_lock_deletes_no_shard_of_the_other_run(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make_job())
    out = Path(make_job().output.path)
    marker = (out / "shards/000002.json").read_bytes()
    for number in (1, 2):
        (out / f"shards/00000{number}.json").unlink()
    original = LocalPool.run

    def run_and_lose_lock(self: LocalPool, shards: Iterator[int]) -> Iterator[object]:
        for event in original(self, shards):
            if isinstance(event, StagedShard):  # another run takes over, and finishes the dataset
                (out / ".lock").write_text(
                    json.dumps(
                        {"host": "elsewhere", "pid": 1, "time": time.time(), "token": "other"}
                    )
                )
                (out / "shards/000002.json").write_bytes(marker)
                next(shards, None)
            yield event

    monkeypatch.setattr(LocalPool, "run", run_and_lose_lock)
    with pytest.raises(LockedError, match="another run has taken over this output"):
        run(make_job())
    assert list_committed_shards(open_store(out)) == [0, 2]


def test_an_interrupted_run_that_lost_its_lock_deletes_no_staged_file(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(make_job().output.path)

    def run_and_lose_lock(self: LocalPool, shards: Iterator[int]) -> Iterator[object]:
        yield from ()
        (out / ".lock").write_text(
            json.dumps({"host": "elsewhere", "pid": 1, "time": time.time(), "token": "other"})
        )
        (out / ".staging").mkdir(exist_ok=True)
        (out / ".staging/other").write_bytes(b"a shard of the other run")
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalPool, "run", run_and_lose_lock)
    with pytest.raises(LockedError, match="another run has taken over this output"):
        run(make_job())
    assert (out / ".staging/other").exists()
    assert not (out / "manifest.parquet").exists()


def test_a_shard_is_withdrawn_before_it_is_generated_again(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make_job("images=3"))  # the last shard has one image of two
    monkeypatch.setattr("synthgen.engine.worker.is_blank", lambda painting: True)
    result = run(make_job("images=5", "on_reject=fail"))
    out = Path(make_job().output.path)
    assert [failed.shard for failed in result.failed] == [1, 2]
    assert (result.counts["images"], list_committed_shards(open_store(out))) == (2, [0])
    assert sorted(read_shard_bytes(out)) == ["000000.parquet", "000000.tar"]
