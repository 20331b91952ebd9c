"""Scenes of shards, COCO and JSON lines: numbered, the same with any number of workers, and what is bad refused or skipped."""

import io
import json
import shutil
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from synthgen import cli
from synthgen.config import ConfigError, load_training
from synthgen.engine.importing import ImportSpec, import_dataset
from synthgen.formats.source import Source
from synthgen.training.base import DataSpec
from synthgen.training.dataset_scenes import (
    BadDataError,
    DatasetScenes,
    Least,
    RecordScenes,
    ShardScenes,
    scene_of,
)
from synthgen.training.loop import read_log
from synthgen.training.scenes import Pool, loaded, open_scenes
from synthgen.training.windows import EncodedScene, scene_window
from tests.formats.sources import coco_data, document_rows, picture, write_coco, write_lines
from tests.training.test_loop import VAE


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of 128 px in shards of two."""
    folder = tmp_path_factory.mktemp("shards")
    for k in range(6):
        picture(k, (128, 128)).save(folder / f"{k}.jpg")
    rows = [
        {
            "file_name": f"{k}.jpg",
            "caption": str(k),
            "custom_annotation": ["label_18_bbox_10_20_60_50"],
        }
        for k in range(6)
    ]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_dataset(ImportSpec(Source("jsonl", folder / "m.jsonl"), folder / "out", shard_size=2))
    return folder / "out"


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "source")


def scenes(seed: int = 0, **data: Any) -> DatasetScenes:
    opened = open_scenes(DataSpec.model_validate({"side": 64, **data}), seed)
    assert isinstance(opened, DatasetScenes)
    return opened


def captions(of: DatasetScenes, start: int, number: int) -> list[str]:
    return [scene.prompt for scene, _ in islice(of.from_number(start), number)]


def test_json_lines_as_scenes(lines: Path) -> None:
    of = scenes(jsonl=str(lines), flip=0.5)
    assert isinstance(of, RecordScenes)
    first = list(islice(of.from_number(0), 6))
    assert {p.shape for _, p in first} == {(64, 64, 3)}  # the shorter side was scaled to it
    for epoch in (first[:3], first[3:]):
        assert sorted(s.prompt for s, _ in epoch) == ["picture 0", "picture 1", "picture 2"]
    for scene, _ in first:
        assert scene.background == scene.layout.caption == scene.prompt
        assert all(
            p == f"a {c}" for p, c in zip(scene.phrases, scene.layout.categories, strict=True)
        )
    np.testing.assert_array_equal(of[5][1], first[5][1])
    assert captions(scenes(1, jsonl=str(lines)), 0, 9) != captions(of, 0, 9)


def test_coco_and_an_import_of_it_give_the_same_scenes(tmp_path: Path) -> None:
    """One shard, no shuffling within: the samples stand in the order of the file."""
    path = write_coco(tmp_path / "source")
    import_dataset(ImportSpec(Source("coco", path), tmp_path / "out"))
    of = scenes(coco=str(path), images=str(tmp_path / "source/images"), side=80, resize=False)
    streamed = scenes(shards=str(tmp_path / "out"), side=80)
    assert isinstance(streamed, ShardScenes)
    ours = {scene.prompt: (scene, picture) for scene, picture in islice(of.from_number(0), 3)}
    for scene, pixels in islice(streamed.from_number(0), 3):
        other, same = ours[scene.prompt]
        np.testing.assert_array_equal(pixels, same)
        np.testing.assert_array_equal(scene.layout.boxes, other.layout.boxes)
        assert scene.layout.categories == other.layout.categories


@pytest.mark.parametrize("workers", [0, 2])
def test_order_does_not_depend_on_workers(workers: int, shards: Path) -> None:
    of = scenes(shards=str(shards))
    for k, (scene, pixels) in enumerate(islice(loaded(of, 3, workers), 7), 3):
        assert isinstance(pixels, np.ndarray)
        np.testing.assert_array_equal(pixels, of[k][1])
        np.testing.assert_array_equal(scene.layout.boxes, of[k][0].layout.boxes)


def test_shards_without_markers_and_with_a_folder_in_their_names(
    shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "other/shards"
    out.mkdir(parents=True)
    with tarfile.open(shards / "shards/000001.tar") as old, tarfile.open(out / "a.tar", "w") as new:
        for member in old:
            data = old.extractfile(member)
            member.name = f"folder/{member.name}"
            new.addfile(member, data)
    of = scenes(shards=str(tmp_path / "other"))
    assert len(of) == 2
    np.testing.assert_array_equal(
        np.sort([p.sum() for _, p in islice(of.from_number(0), 2)]),
        sorted(of[k][1].sum() for k in (0, 1)),
    )
    tar = out / "a.tar"
    tar.write_bytes(tar.read_bytes()[:-11000])  # the end of the archive and of the last picture
    with pytest.raises(
        BadDataError, match=r"a.tar: sample .: the shard breaks off: it has no end of archive"
    ):
        scenes(shards=str(tmp_path / "other"))


def test_a_shard_that_breaks_off(shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shards, tmp_path / "copy")
    tar = copy / "shards/000001.tar"
    with tarfile.open(tar) as archive:
        start = archive.getmembers()[2].offset
    tar.write_bytes(tar.read_bytes()[: start + 700])  # the last sample goes
    with pytest.raises(BadDataError) as caught:
        scenes(shards=str(copy))
    (message,) = caught.value.problems
    assert message.startswith(
        f"{tar}: sample 1: the shard breaks off: it has {start + 700} bytes, its marker says"
    )
    assert message.endswith("data.on_bad=skip leaves out what is bad")
    of = scenes(shards=str(copy), on_bad="skip")
    assert len(of) == 5
    assert list(of.skipped) == [f"{tar}: sample 1"]
    assert len({p.tobytes() for _, p in islice(of.from_number(0), 5)}) == 5


def broken_dataset(out: Path, tmp_path: Path) -> Path:
    """A copy of a dataset in which one sample of the first shard does not decode, and one has a box outside."""
    copy = tmp_path / "broken"
    (copy / "shards").mkdir(parents=True)
    shutil.copy(out / "shards/000001.tar", copy / "shards/000001.tar")
    with (
        tarfile.open(out / "shards/000000.tar") as old,
        tarfile.open(copy / "shards/000000.tar", "w") as new,
    ):
        for member in old:
            data = old.extractfile(member)
            assert data is not None
            content = data.read()
            if member.name == "000000000.jpg":
                content = content[: len(content) // 2]
            if member.name == "000000001.json":
                record = json.loads(content)
                record["annotations"][0]["bbox"][0] = 500.0
                content = json.dumps(record).encode()
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return copy


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_refused_by_name(workers: int, shards: Path, tmp_path: Path) -> None:
    copy = broken_dataset(shards, tmp_path)
    with pytest.raises(BadDataError) as caught:
        list(islice(loaded(scenes(shards=str(copy)), 0, workers), 8))
    (message,) = caught.value.problems
    assert message.startswith(
        (
            f"{copy}/shards/000000.tar: 000000000: the picture does not decode",
            f"{copy}/shards/000000.tar: 000000001: box 0",
        )
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_skipped_and_counted(workers: int, shards: Path, tmp_path: Path) -> None:
    """The numbers of the others stay: a run that goes on from the middle meets the same scenes."""
    copy = broken_dataset(shards, tmp_path)
    of = scenes(shards=str(copy), on_bad="skip")
    whole = list(islice(loaded(of, 0, workers), 12))
    first, second = (of.skipped[f"{copy}/shards/000000.tar: 00000000{k}"] for k in (0, 1))
    assert len(of.skipped) == 2
    assert first.startswith("the picture does not decode")
    assert second == "box 0 (dog), x 500 to 560, y 20 to 70: outside the picture of 128 x 128 px"
    later = list(islice(loaded(scenes(shards=str(copy), on_bad="skip"), 5, 0), 7))
    for (_, a), (_, b) in zip(whole[5:], later, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_bad_in_records_is_known_before_training(lines: Path) -> None:
    rows = document_rows()
    rows[1]["file_name"] = "none.jpg"
    rows[2]["custom_annotation"] = ["label_18_bbox_0_0_60_20"]
    rows += [{"caption": "no picture"}]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    with pytest.raises(BadDataError) as caught:
        scenes(jsonl=str(lines))
    places = [problem.split(": ")[0] for problem in caught.value.problems]
    assert places == [f"{lines}:{n}" for n in (2, 3, 4, 5)]
    of = scenes(jsonl=str(lines), on_bad="skip")
    assert (len(of), len(of.skipped)) == (1, 4)
    (lines.parent / "0.jpg").unlink()
    with pytest.raises(BadDataError, match="holds no entry that can be used"):
        scenes(jsonl=str(lines), on_bad="skip")


def test_a_table_that_holds_its_pictures_is_imported_first(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture(0).save(buffer, "PNG")
    row = {"image": {"bytes": buffer.getvalue()}, "categories": ["dog"], "boxes": [[1, 2, 30, 40]]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "t.parquet")
    with pytest.raises(
        BadDataError, match=r"t.parquet: row 1: holds its picture itself: `synthgen import` it"
    ):
        scenes(jsonl=str(tmp_path / "t.parquet"))


def test_records_whose_pictures_do_not_decode(lines: Path) -> None:
    path = lines.parent / "1.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(
        BadDataError, match=r"metadata.jsonl:2: .*1.jpg: the picture does not decode"
    ):
        list(islice(scenes(jsonl=str(lines)).from_number(0), 3))
    of = scenes(jsonl=str(lines), on_bad="skip")
    assert set(captions(of, 0, 3)) == {"picture 0", "picture 2"}
    assert list(of.skipped) == [f"{lines}:2"]
    for k in (0, 2):
        (lines.parent / f"{k}.jpg").write_bytes(path.read_bytes())
    with pytest.raises(BadDataError, match="not one entry can be used"):
        captions(of, 0, 1)


def test_crowds_are_no_objects(tmp_path: Path) -> None:
    data = coco_data()
    data["annotations"][0]["iscrowd"] = 1
    of = scenes(coco=str(write_coco(tmp_path / "source", data)), side=96, resize=False)
    assert sorted(s.layout.categories for s, _ in islice(of.from_number(0), 3)) == [
        (),
        ("cat",),
        ("dog",),
    ]


def test_captions_of_samples() -> None:
    def scene(prompt: str, *names: str) -> Any:
        annotations = [{"bbox": [1, 1, 5, 5], "category": name} for name in names]
        return scene_of(
            json.dumps(
                {"width": 9, "height": 9, "prompt": prompt, "annotations": annotations}
            ).encode()
        )

    assert (
        scene("2 dog, sand", "dog", "dog").background,
        scene("2 dog, sand", "dog", "dog").layout.caption,
    ) == ("sand", None)
    free = scene("2 dogs and a man", "dog", "dog")
    assert (free.background, free.prompt, free.layout.caption) == (
        "2 dogs and a man",
        "2 dogs and a man",
        "2 dogs and a man",
    )
    assert (scene("1 dog", "dog").background, scene("sand").background) == ("", "sand")


@pytest.fixture
def training_file(tmp_path: Path, lines: Path) -> Path:
    path = tmp_path / "training.yaml"
    data = {"jsonl": str(lines), "side": 64, "scenes": 3, "fresh": 1, "flip": 0.5}
    path.write_text(
        json.dumps(
            {**VAE, "steps": 2, "data": data, "output": {"path": str(tmp_path / "run"), "every": 1}}
        )
    )
    return path


def test_train_on_json_lines(
    training_file: Path, lines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line; refused data leaves what was saved, and the same command goes on once it may skip."""
    path, run = lines.parent / "1.jpg", training_file.parent / "run"
    assert cli.main(["train", str(training_file), "steps=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 0
    path.write_bytes(path.read_bytes()[:-300])
    assert cli.main(["train", str(training_file), "steps=2"]) == 2
    errors = capsys.readouterr().err
    assert f"synthgen: {lines}:2: {path}: the picture does not decode" in errors
    assert "Traceback" not in errors
    assert [entry["step"] for entry in read_log(run / "log.jsonl")] == [1]
    assert (
        cli.main(["train", str(training_file), "data.on_bad=skip", "data.workers=2", "--json"]) == 0
    )
    data = json.loads(capsys.readouterr().out)
    assert (data["step"], data["skipped"]) == (2, 1)
    (listed,) = read_log(run / "skipped.jsonl")
    assert listed["place"] == f"{lines}:2"


def test_what_is_at_hand_is_a_function_of_the_step_though_some_is_skipped(
    shards: Path, tmp_path: Path
) -> None:
    data = DataSpec(
        shards=str(broken_dataset(shards, tmp_path)),
        side=64,
        scenes=3,
        fresh=2,
        on_bad="skip",
        flip=0.5,
    )
    steps = [
        list(items)
        for items in islice(
            Pool(open_scenes(data, 0), data, lambda _, picture: picture.sum()).steps(0), 120
        )
    ]
    again = Pool(open_scenes(data, 0), data, lambda _, picture: picture.sum())
    assert [list(items) for items in islice(again.steps(70), 50)] == steps[70:]
    assert len({tuple(items) for items in steps}) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{jsonl: nowhere.jsonl}", "data.jsonl: 'nowhere.jsonl': no such file"),
        ("{coco: nowhere.json}", "data.coco: 'nowhere.json': no such file"),
        (
            "{jsonl: {lines}, coco: {lines}}",
            "data.jsonl: coco is given too; give one of shards, coco and jsonl",
        ),
        ("{jsonl: {lines}, images: nowhere}", "data.images: 'nowhere': no such folder"),
        (
            "{jsonl: {lines}, on_bad: ignore}",
            "data.on_bad: 'ignore': input should be 'refuse' or 'skip'",
        ),
    ],
)
def test_mistakes_are_named(training_file: Path, lines: Path, data: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_training(str(training_file), [f"data={data.replace('{lines}', str(lines))}"])
    assert message in str(caught.value)


def test_a_missing_column_is_named(
    training_file: Path, lines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", str(training_file), "data.caption_column=text"]) == 2
    assert (
        f"{lines}:1: text: no such column for a caption; there are: file_name, caption"
        in capsys.readouterr().err
    )
    assert not (training_file.parent / "run").exists()


def test_a_picture_of_another_size(lines: Path) -> None:
    picture(5, (20, 30)).save(lines.parent / "0.jpg")
    lines.write_text(json.dumps({**document_rows()[0], "width": 80, "height": 60}) + "\n")
    with pytest.raises(
        BadDataError, match=r"metadata.jsonl:1: the picture has 20 x 30 px, its entry says 80 x 60"
    ):
        captions(scenes(jsonl=str(lines)), 0, 1)


def record(prompt: str, *labels: str, **more: Any) -> bytes:
    boxes = [{"bbox": [8 * k, 0, 8, 8], "category": name, **more} for k, name in enumerate(labels)]
    return json.dumps({"width": 64, "height": 64, "prompt": prompt, "annotations": boxes}).encode()


MASK_TASK: dict[str, Any] = {
    "version": 1, "name": "x", "task": "annotation_mask", "init": "", "batch_size": 1,
    "categories": {"dog": 18, "ball": 98, "tree": 99}, "label_range": 99,
}  # fmt: skip
BALL = frozenset({"dog", "cat", "ball"})


@pytest.mark.parametrize(
    ("prompt", "labels", "names", "background"),
    [
        ("2 dog, grass", ("dog", "dog"), BALL, "grass"),
        ("1 ball, 2 dog, grass", ("dog", "dog"), BALL, "grass"),  # the ball is a distractor
        ("2 dog, 1 ball, grass", ("dog", "dog"), BALL, "grass"),
        ("2 dog, 1 ball", ("dog", "dog"), BALL, ""),
        ("1 ball, grass", (), BALL, "grass"),
        ("2 dog, 1 cat, grass", ("dog",), BALL, "grass"),  # a dog and the cat are hidden
        ("2 dog, 3 trees on a hill", ("dog", "dog"), BALL, "3 trees on a hill"),
        ("grass, 2 hills", (), BALL, "grass, 2 hills"),
        ("1 ball, 2 dog, grass", ("dog", "dog"), None, "grass"),  # without a dataset.json
        ("1 traffic light, 2 dog, grass", ("dog", "dog"), None, "grass"),
        ("1 ball, grass", (), None, "1 ball, grass"),
        ("2 dog, 1 cat", ("dog", "dog", "cat"), frozenset(), ""),  # imported
        ("2 dog", ("dog", "dog"), frozenset(), ""),
    ],
)
def test_of_a_prompt_the_background_alone_is_for_windows(
    prompt: str, labels: tuple[str, ...], names: frozenset[str] | None, background: str
) -> None:
    scene = scene_of(record(prompt, *labels), names)
    assert scene.background == background
    assert scene.layout.caption is None


@pytest.mark.parametrize("names", [None, frozenset(), BALL])
@pytest.mark.parametrize(
    "prompt", ["two dogs on grass", "1 ball, grass", "2 dogs, grass", "1 dog, grass"]
)
def test_a_caption_stays_a_caption(prompt: str, names: frozenset[str] | None) -> None:
    scene = scene_of(record(prompt, "dog", "dog"), names)
    assert scene.layout.caption == scene.background == scene.prompt == prompt


def test_what_is_hidden_is_no_label() -> None:
    """Earlier versions annotated it, with a mask and area of nothing."""
    mask = {"size": [64, 64], "counts": "PPP1"}
    assert len(scene_of(record("1 dog", "dog", area=0.0, segmentation=mask), BALL).layout) == 0
    assert len(scene_of(record("1 dog", "dog", area=9.0, segmentation=mask), BALL).layout) == 1
    assert (
        len(scene_of(record("1 dog", "dog", area=0.0), BALL).layout) == 1
    )  # others leave the area out so


def test_windows_of_a_dataset_with_distractors_are_captioned_with_its_background(
    job_file: Path, tmp_path: Path
) -> None:
    """The whole way: run, read back, and the captions of windows."""
    overrides = [
        "layout.objects={ball: {count: 1, label: false}, dog: 2}",
        "images=4",
        f"output.path={tmp_path / 'out'}",
    ]
    assert cli.main(["run", str(job_file), *overrides, "-q"]) == 0
    of = scenes(shards=str(tmp_path / "out"), side=128)
    for scene, _ in islice(of.from_number(0), 4):
        assert scene.background == "a field of grass"
        assert scene.prompt == "2 dog, a field of grass"
        encoded = EncodedScene(torch.zeros(3, 64, 64), (), scene.layout.boxes / 2, scene)
        for h in (8, 64):
            shown = scene_window(encoded, h, h, np.random.default_rng(0)).caption
            assert "ball" not in shown
            assert "1 " not in shown
    # a copy of the shards alone, without dataset.json
    shutil.copytree(tmp_path / "out/shards", tmp_path / "bare/shards")
    assert {
        s.background
        for s, _ in islice(scenes(shards=str(tmp_path / "bare"), side=128).from_number(0), 4)
    } == {"a field of grass"}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """An imported dataset of three images, one of them 90 px wide."""
    folder = tmp_path / "small"
    folder.mkdir()
    rows = []
    for k, size in enumerate([(128, 100), (90, 128), (128, 128)]):
        picture(k, size).save(folder / f"{k}.jpg")
        rows.append({"file_name": f"{k}.jpg", "custom_annotation": ["label_18_bbox_10_20_60_50"]})
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_dataset(ImportSpec(Source("jsonl", folder / "m.jsonl"), folder / "out", shard_size=2))
    return folder


TOO_SMALL = r"the image is 90 x 128 px, smaller than %s; data.resize=true enlarges it; data.on_bad=skip leaves out what is bad"


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ({**VAE, "crop": 96}, "crop, 96 px"),
        ({**MASK_TASK, "windows": [64, 96]}, "the greatest of windows, 96 px"),
    ],
)
def test_an_image_smaller_than_a_crop_is_named_before_training(
    task: dict[str, Any],
    key: str,
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    checkpoint: Path,
) -> None:
    data = {"side": 128, "scenes": 4, "fresh": 2, "shards": str(small / "out")}
    job = {**task, "data": data, "steps": 1, "output": {"path": str(tmp_path / "train")}}
    if "init" in job:
        job["init"] = str(checkpoint)
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    capsys.readouterr()
    assert cli.main(["train", str(tmp_path / "job.yaml"), "-q"]) == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert told.endswith(TOO_SMALL % key)
    assert "000000001" in told
    assert not (tmp_path / "train").exists()
    if task["task"] != "vae":
        return
    assert cli.main(["train", str(tmp_path / "job.yaml"), "data.on_bad=skip", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 1


def test_an_image_that_is_too_small_is_refused_or_skipped_wherever_it_comes_from(
    small: Path,
) -> None:
    (small / "bare/shards").mkdir(parents=True)
    for tar in (small / "out/shards").glob("*.tar"):
        shutil.copy(
            tar, small / "bare/shards"
        )  # nothing tells the sizes before the images are read
    lines = {"jsonl": str(small / "m.jsonl"), "resize": False}
    for source in ({"shards": str(small / "out")}, lines, {"shards": str(small / "bare")}):
        data = DataSpec.model_validate({"side": 128, **source})
        with pytest.raises(BadDataError, match=TOO_SMALL % "crop, 96 px"):
            list(islice(open_scenes(data, 0, Least(96, "crop")).from_number(0), 3))
        assert len(list(islice(open_scenes(data, 0, Least(90, "crop")).from_number(0), 3))) == 3
        skipping = open_scenes(data.model_copy(update={"on_bad": "skip"}), 0, Least(96, "crop"))
        assert isinstance(skipping, DatasetScenes)
        shapes = {image.shape[:2] for _, image in islice(skipping.from_number(0), 6)}
        assert shapes == {(100, 128), (128, 128)}
        (why,) = skipping.skipped.values()
        assert why.startswith("the image is 90 x 128 px")
        resizing = data.model_copy(update={"resize": True})
        assert len(list(islice(open_scenes(resizing, 0, Least(96, "crop")).from_number(0), 3))) == 3
