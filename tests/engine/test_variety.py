"""Weather, light, season, style and camera in a dataset: recorded, repeatable, and optional."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from synthgen import cli
from synthgen.config import Job
from synthgen.dataset.check import check_dataset
from synthgen.dataset.sample import SCHEMA
from synthgen.dataset.shard import read_members, read_rows
from synthgen.engine.generation import run
from synthgen.engine.worker import sample_scene
from synthgen.storage.location import open_store
from tests.conftest import read_shard_bytes

CAMERA = "scene.camera={gaussian_blur: {sigma: [1, 2]}, jpeg: {probability: 1, quality: [20, 60]}}"
WORDS = ("scene.weather=['', in fog, in rain]", "scene.season=in autumn")


def records(out: Path) -> list[dict]:  # type: ignore[type-arg]
    members = [m for tar in sorted((out / "shards").glob("*.tar")) for m in read_members(tar)]
    return [json.loads(data) for name, data in members if name.endswith(".json")]


@pytest.fixture(scope="module")
def words(checkpoint: Path) -> tuple[str, ...]:
    """Return the overrides of a pipeline that follows words, with a tiny random checkpoint."""
    return (
        f"pipeline={{method: mixture, model: {checkpoint}, steps: 1}}",
        "layout.canvas=[64, 64]",
        "layout.objects={dog: 1}",
        *WORDS,
    )


def test_the_words_follow_the_background_and_are_recorded(
    make_job: Callable[..., Job], words: tuple[str, ...]
) -> None:
    job = make_job(*words, CAMERA, "images=4")
    run(job)
    out = Path(job.output.path)
    assert check_dataset(open_store(out))[0] == []
    samples = records(out)
    for record in samples:
        weather = record["conditions"]["weather"]
        suffix = f", {weather}" if weather else ""
        assert record["prompt"] == f"1 dog, a field of grass{suffix}, in autumn"
        assert list(record["conditions"]) == [
            "weather",
            "season",
            "camera_gaussian_blur_sigma",
            "camera_jpeg_quality",
        ]
        assert 20 <= record["conditions"]["camera_jpeg_quality"] <= 60
    manifest = pq.read_table(out / "manifest.parquet").to_pylist()
    rows = [row for number in range(2) for row in read_rows(open_store(out), number)]
    for table in (manifest, rows):
        assert [{key: row[key] for key in samples[0]["conditions"]} for row in table] == [
            r["conditions"] for r in samples
        ]
    loaded = pytest.importorskip("datasets").load_dataset(str(out), split="train", streaming=True)
    assert [sample["json"]["conditions"] for sample in loaded] == [r["conditions"] for r in samples]
    again = make_job(
        *words, CAMERA, "images=4", f"output.path={out.with_name('again')}", "output.shard_size=2"
    )
    run(again)
    assert read_shard_bytes(out) == read_shard_bytes(Path(again.output.path))


def test_conditions_are_sampled_from_the_lists_by_the_index_alone(
    make_job: Callable[..., Job], words: tuple[str, ...]
) -> None:
    job = make_job(*words)
    plain = make_job(*words[:-2])
    scenes = [sample_scene(job, i) for i in range(60)]
    assert {scene.atmosphere["weather"] for scene in scenes} == {"", "in fog", "in rain"}
    for i, scene in enumerate(scenes[:10]):
        assert scene.phrases == sample_scene(plain, i).phrases  # other random choices do not change
        assert (scene.layout.boxes == sample_scene(plain, i).layout.boxes).all()


def test_the_camera_changes_pixels_but_no_label(
    make_job: Callable[..., Job], dataset: Path
) -> None:
    job = make_job(CAMERA, f"output.path={dataset.with_name('taken')}")
    run(job)
    plain = records(dataset)
    with_camera = records(Path(job.output.path))
    for before, after in zip(plain, with_camera, strict=True):
        assert after.pop("conditions")
        assert after == before
    assert all(
        a["image_sha256"] != b["image_sha256"]
        for a, b in zip(
            read_rows(open_store(dataset), 0),
            read_rows(open_store(Path(job.output.path)), 0),
            strict=True,
        )
    )


def test_a_job_without_conditions_has_the_same_bytes_as_before(
    make_job: Callable[..., Job], dataset: Path
) -> None:
    """There are no new columns and keys, and a dataset without the new keys is continued."""
    assert pq.read_schema(dataset / "shards/000000.parquet").names == SCHEMA.names
    assert all("conditions" not in record for record in records(dataset))
    without_effect = make_job(
        "scene.camera={jpeg: {probability: 0}}", f"output.path={dataset.with_name('spared')}"
    )
    run(without_effect)
    hashes = [
        [row["image_sha256"] for n in range(3) for row in read_rows(open_store(out), n)]
        for out in (dataset, Path(without_effect.output.path))
    ]
    assert hashes[0] == hashes[1]
    info = json.loads((dataset / "dataset.json").read_text())
    new = {"scene.weather", "scene.light", "scene.season", "scene.style", "scene.camera"}
    assert new <= set(info["fingerprint"])
    info["fingerprint"] = {
        key: value for key, value in info["fingerprint"].items() if key not in new
    }
    (dataset / "dataset.json").write_text(json.dumps(info))
    assert run(make_job("images=8")).made == 2


def test_a_camera_is_part_of_the_job(
    job_file: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(job_file), "scene.camera={jpeg: {quality: 50}}"]) == 2
    assert "scene.camera.jpeg.quality: was not set, is [50, 50]" in capsys.readouterr().err


def test_mistakes_in_the_job_are_reported(
    job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [
        "scene.weather=fog",
        "scene.wether=fog",
        "scene.camera={jpg: {}, exposure: {stop: 1}, jpeg: {quality: 200}}",
        "scene.light=[]",
    ]
    for override, message in zip(
        [*overrides],
        [
            "paste cannot generate weather",
            "did you mean 'weather'?",
            "did you mean 'jpeg'?",
            "the list is empty",
        ],
        strict=True,
    ):
        assert cli.main(["run", str(job_file), override]) == 2
        assert message in capsys.readouterr().err
    assert not (job_file.parent / "out").exists()
