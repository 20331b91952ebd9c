"""Scenes of shards, COCO and JSON lines: numbered, in one order, and without unusable entries."""

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
from synthgen.scenes.scene import Scene
from synthgen.training.base import DataSpec
from synthgen.training.dataset_scenes import (
    BadDataError,
    DatasetScenes,
    MinimumSize,
    RecordScenes,
    ShardScenes,
    parse_scene,
)
from synthgen.training.loop import read_log
from synthgen.training.scenes import Pool, load_scenes, open_scenes
from synthgen.training.windows import EncodedScene, sample_scene_window
from tests.formats.sources import coco_data, document_rows, make_image, write_coco, write_lines
from tests.training.test_loop import VAE


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def import_images(folder: Path, sizes: list[tuple[int, int]]) -> None:
    """Import images of these sizes from `folder`/m.jsonl as `folder`/out, in shards of two."""
    rows = []
    for k, size in enumerate(sizes):
        make_image(k, size).save(folder / f"{k}.jpg")
        rows.append(
            {
                "file_name": f"{k}.jpg",
                "caption": str(k),
                "custom_annotation": ["label_18_bbox_10_20_60_50"],
            }
        )
    write_rows(folder / "m.jsonl", rows)
    import_dataset(ImportSpec(Source("jsonl", folder / "m.jsonl"), folder / "out", shard_size=2))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of six images of 128 px in shards of two."""
    folder = tmp_path_factory.mktemp("shards")
    import_images(folder, [(128, 128)] * 6)
    return folder / "out"


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "source")


def make_scenes(seed: int = 0, **data: Any) -> DatasetScenes:
    scenes = open_scenes(DataSpec.model_validate({"side": 64, **data}), seed)
    assert isinstance(scenes, DatasetScenes)
    return scenes


def read_prompts(scenes: DatasetScenes, start: int, number: int) -> list[str]:
    return [scene.prompt for scene, _ in islice(scenes.iterate_from(start), number)]


def count_images(scenes: DatasetScenes, number: int) -> int:
    """Return how many of the first scenes have different images."""
    return len({image.tobytes() for _, image in islice(scenes.iterate_from(0), number)})


def test_json_lines_are_read_as_scenes(lines: Path) -> None:
    scenes = make_scenes(jsonl=str(lines), flip=0.5)
    assert isinstance(scenes, RecordScenes)
    first = list(islice(scenes.iterate_from(0), 6))
    assert {image.shape for _, image in first} == {(64, 64, 3)}  # images are resized to the side
    for epoch in (first[:3], first[3:]):
        prompts = sorted(scene.prompt for scene, _ in epoch)
        assert prompts == ["picture 0", "picture 1", "picture 2"]
    for scene, _ in first:
        assert scene.background == scene.layout.caption == scene.prompt
        assert scene.phrases == tuple(f"a {category}" for category in scene.layout.categories)
    np.testing.assert_array_equal(scenes[5][1], first[5][1])
    assert read_prompts(make_scenes(1, jsonl=str(lines)), 0, 9) != read_prompts(scenes, 0, 9)


def test_coco_and_its_import_give_the_same_scenes(tmp_path: Path) -> None:
    """There is one shard, and its samples are in the order of the file."""
    path = write_coco(tmp_path / "source")
    import_dataset(ImportSpec(Source("coco", path), tmp_path / "out"))
    direct = make_scenes(
        coco=str(path), images=str(tmp_path / "source/images"), side=80, resize=False
    )
    imported = make_scenes(shards=str(tmp_path / "out"), side=80)
    assert isinstance(imported, ShardScenes)
    by_prompt = {}
    for scene, image in islice(direct.iterate_from(0), 3):
        by_prompt[scene.prompt] = (scene, image)
    for scene, image in islice(imported.iterate_from(0), 3):
        same_scene, same_image = by_prompt[scene.prompt]
        np.testing.assert_array_equal(image, same_image)
        np.testing.assert_array_equal(scene.layout.boxes, same_scene.layout.boxes)
        assert scene.layout.categories == same_scene.layout.categories


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_does_not_depend_on_workers(workers: int, shards: Path) -> None:
    scenes = make_scenes(shards=str(shards))
    for k, (scene, image) in enumerate(islice(load_scenes(scenes, 3, workers), 7), 3):
        assert isinstance(image, np.ndarray)
        np.testing.assert_array_equal(image, scenes[k][1])
        np.testing.assert_array_equal(scene.layout.boxes, scenes[k][0].layout.boxes)


def test_shards_may_lack_markers_and_have_folders_in_member_names(
    shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "other/shards"
    out.mkdir(parents=True)
    tar = out / "a.tar"
    with tarfile.open(shards / "shards/000001.tar") as old, tarfile.open(tar, "w") as new:
        for member in old:
            data = old.extractfile(member)
            member.name = f"folder/{member.name}"
            new.addfile(member, data)
    scenes = make_scenes(shards=str(tmp_path / "other"))
    assert len(scenes) == 2
    sums = [image.sum() for _, image in islice(scenes.iterate_from(0), 2)]
    np.testing.assert_array_equal(sorted(sums), sorted(scenes[k][1].sum() for k in (0, 1)))
    tar.write_bytes(tar.read_bytes()[:-11000])  # cuts the end of the archive and of the last image
    with pytest.raises(
        BadDataError, match=r"a.tar: sample .: the shard breaks off: it has no end of archive"
    ):
        make_scenes(shards=str(tmp_path / "other"))


def test_the_samples_before_the_end_of_a_cut_shard_are_used(shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shards, tmp_path / "copy")
    tar = copy / "shards/000001.tar"
    with tarfile.open(tar) as archive:
        start = archive.getmembers()[2].offset
    tar.write_bytes(tar.read_bytes()[: start + 700])  # cuts the last sample
    with pytest.raises(BadDataError) as caught:
        make_scenes(shards=str(copy))
    (message,) = caught.value.problems
    assert message.startswith(
        f"{tar}: sample 1: the shard breaks off: it has {start + 700} bytes, its marker says"
    )
    assert message.endswith("data.on_bad=skip leaves out unusable entries")
    scenes = make_scenes(shards=str(copy), on_bad="skip")
    assert len(scenes) == 5
    assert list(scenes.skipped) == [f"{tar}: sample 1"]
    assert count_images(scenes, 5) == 5


def write_broken_dataset(out: Path, tmp_path: Path) -> Path:
    """Copy a dataset with two unusable samples in its first shard.

    The image of one does not decode, and the other one has a box outside of its image.
    """
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
def test_unusable_samples_are_refused_by_name(workers: int, shards: Path, tmp_path: Path) -> None:
    copy = write_broken_dataset(shards, tmp_path)
    with pytest.raises(BadDataError) as caught:
        list(islice(load_scenes(make_scenes(shards=str(copy)), 0, workers), 8))
    (message,) = caught.value.problems
    assert message.startswith(
        (
            f"{copy}/shards/000000.tar: 000000000: the image does not decode",
            f"{copy}/shards/000000.tar: 000000001: box 0",
        )
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_unusable_samples_are_skipped_and_counted(
    workers: int, shards: Path, tmp_path: Path
) -> None:
    """The numbers of the others stay: a resumed run gets the same scenes."""
    copy = write_broken_dataset(shards, tmp_path)
    scenes = make_scenes(shards=str(copy), on_bad="skip")
    whole = list(islice(load_scenes(scenes, 0, workers), 12))
    assert len(scenes.skipped) == 2
    first = scenes.skipped[f"{copy}/shards/000000.tar: 000000000"]
    second = scenes.skipped[f"{copy}/shards/000000.tar: 000000001"]
    assert first.startswith("the image does not decode")
    assert second == "box 0 (dog), x 500 to 560, y 20 to 70: outside the image of 128 x 128 px"
    resumed = make_scenes(shards=str(copy), on_bad="skip")
    later = list(islice(load_scenes(resumed, 5, 0), 7))
    for (_, a), (_, b) in zip(whole[5:], later, strict=True):
        np.testing.assert_array_equal(a, b)


def test_unusable_records_are_found_before_training(lines: Path) -> None:
    rows = document_rows()
    rows[1]["file_name"] = "none.jpg"
    rows[2]["custom_annotation"] = ["label_18_bbox_0_0_60_20"]
    rows += [{"caption": "no picture"}]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    with pytest.raises(BadDataError) as caught:
        make_scenes(jsonl=str(lines))
    places = [problem.split(": ")[0] for problem in caught.value.problems]
    assert places == [f"{lines}:{n}" for n in (2, 3, 4, 5)]
    scenes = make_scenes(jsonl=str(lines), on_bad="skip")
    assert (len(scenes), len(scenes.skipped)) == (1, 4)
    (lines.parent / "0.jpg").unlink()
    with pytest.raises(BadDataError, match="holds no usable entry"):
        make_scenes(jsonl=str(lines), on_bad="skip")


def test_a_table_with_embedded_images_must_be_imported(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    make_image(0).save(buffer, "PNG")
    row = {"image": {"bytes": buffer.getvalue()}, "categories": ["dog"], "boxes": [[1, 2, 30, 40]]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "t.parquet")
    with pytest.raises(
        BadDataError,
        match=r"t.parquet: row 1: the image is stored in the table itself: `synthgen import` it",
    ):
        make_scenes(jsonl=str(tmp_path / "t.parquet"))


def test_records_whose_images_do_not_decode_are_refused_or_skipped(lines: Path) -> None:
    path = lines.parent / "1.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(BadDataError, match=r"metadata.jsonl:2: .*1.jpg: the image does not decode"):
        read_prompts(make_scenes(jsonl=str(lines)), 0, 3)
    scenes = make_scenes(jsonl=str(lines), on_bad="skip")
    assert set(read_prompts(scenes, 0, 3)) == {"picture 0", "picture 2"}
    assert list(scenes.skipped) == [f"{lines}:2"]
    for k in (0, 2):
        (lines.parent / f"{k}.jpg").write_bytes(path.read_bytes())
    with pytest.raises(BadDataError, match="no entry can be used"):
        read_prompts(scenes, 0, 1)


def test_crowds_are_not_objects(tmp_path: Path) -> None:
    data = coco_data()
    data["annotations"][0]["iscrowd"] = 1
    scenes = make_scenes(coco=str(write_coco(tmp_path / "source", data)), side=96, resize=False)
    categories = [scene.layout.categories for scene, _ in islice(scenes.iterate_from(0), 3)]
    assert sorted(categories) == [(), ("cat",), ("dog",)]


@pytest.fixture
def training_file(tmp_path: Path, lines: Path) -> Path:
    path = tmp_path / "training.yaml"
    data = {"jsonl": str(lines), "side": 64, "scenes": 3, "fresh": 1, "flip": 0.5}
    output = {"path": str(tmp_path / "run"), "every": 1}
    path.write_text(json.dumps({**VAE, "steps": 2, "data": data, "output": output}))
    return path


def test_a_training_on_json_lines_is_resumed_after_unusable_entries(
    training_file: Path, lines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The saved state is kept, and the same command resumes once it may skip the entry."""
    path = lines.parent / "1.jpg"
    run = training_file.parent / "run"
    assert cli.main(["train", str(training_file), "steps=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 0
    path.write_bytes(path.read_bytes()[:-300])
    assert cli.main(["train", str(training_file), "steps=2"]) == 2
    errors = capsys.readouterr().err
    assert f"synthgen: {lines}:2: {path}: the image does not decode" in errors
    assert "Traceback" not in errors
    assert [entry["step"] for entry in read_log(run / "log.jsonl")] == [1]
    skip = ["data.on_bad=skip", "data.workers=2"]
    assert cli.main(["train", str(training_file), *skip, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["step"], data["skipped"]) == (2, 1)
    (skipped,) = read_log(run / "skipped.jsonl")
    assert skipped["place"] == f"{lines}:2"


def test_the_pool_is_a_function_of_the_step_though_entries_are_skipped(
    shards: Path, tmp_path: Path
) -> None:
    data = DataSpec(
        shards=str(write_broken_dataset(shards, tmp_path)),
        side=64,
        scenes=3,
        fresh=2,
        on_bad="skip",
        flip=0.5,
    )
    pool = Pool(open_scenes(data, 0), data, lambda _, image: image.sum())
    steps = [list(items) for items in islice(pool.steps(0), 120)]
    again = Pool(open_scenes(data, 0), data, lambda _, image: image.sum())
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
def test_errors_of_the_data_keys_name_the_key(
    training_file: Path, lines: Path, data: str, message: str
) -> None:
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


def test_an_image_of_another_size_than_its_entry_is_refused(lines: Path) -> None:
    make_image(5, (20, 30)).save(lines.parent / "0.jpg")
    write_rows(lines, [{**document_rows()[0], "width": 80, "height": 60}])
    with pytest.raises(
        BadDataError, match=r"metadata.jsonl:1: the image has 20 x 30 px, its entry says 80 x 60"
    ):
        read_prompts(make_scenes(jsonl=str(lines)), 0, 1)


def make_record(prompt: str, *labels: str, **more: Any) -> bytes:
    """Return the JSON of a sample."""
    annotations = []
    for k, name in enumerate(labels):
        annotations.append({"bbox": [8 * k, 0, 8, 8], "category": name, **more})
    record = {"width": 64, "height": 64, "prompt": prompt, "annotations": annotations}
    return json.dumps(record).encode()


def summarise(scene: Scene) -> tuple[str, str, str | None]:
    return scene.background, scene.prompt, scene.layout.caption


def test_a_prompt_is_counts_and_background_or_a_caption() -> None:
    counted = parse_scene(make_record("2 dog, sand", "dog", "dog"))
    assert summarise(counted) == ("sand", "2 dog, sand", None)
    caption = "2 dogs and a man"
    assert summarise(parse_scene(make_record(caption, "dog", "dog"))) == (caption,) * 3
    assert parse_scene(make_record("1 dog", "dog")).background == ""
    assert parse_scene(make_record("sand")).background == "sand"


MASK_TASK: dict[str, Any] = {
    "version": 1,
    "name": "x",
    "task": "annotation_mask",
    "init": "",
    "batch_size": 1,
    "categories": {"dog": 18, "ball": 98, "tree": 99},
    "label_range": 99,
}
NAMES = frozenset({"dog", "cat", "ball"})


@pytest.mark.parametrize(
    ("prompt", "labels", "names", "background"),
    [
        ("2 dog, grass", ("dog", "dog"), NAMES, "grass"),
        ("1 ball, 2 dog, grass", ("dog", "dog"), NAMES, "grass"),  # the ball is a distractor
        ("2 dog, 1 ball, grass", ("dog", "dog"), NAMES, "grass"),
        ("2 dog, 1 ball", ("dog", "dog"), NAMES, ""),
        ("1 ball, grass", (), NAMES, "grass"),
        ("2 dog, 1 cat, grass", ("dog",), NAMES, "grass"),  # a dog and the cat are hidden
        ("2 dog, 3 trees on a hill", ("dog", "dog"), NAMES, "3 trees on a hill"),
        ("grass, 2 hills", (), NAMES, "grass, 2 hills"),
        ("1 ball, 2 dog, grass", ("dog", "dog"), None, "grass"),  # without a dataset.json
        ("1 traffic light, 2 dog, grass", ("dog", "dog"), None, "grass"),
        ("1 ball, grass", (), None, "1 ball, grass"),
        ("2 dog, 1 cat", ("dog", "dog", "cat"), frozenset(), ""),  # imported
        ("2 dog", ("dog", "dog"), frozenset(), ""),
    ],
)
def test_the_background_is_what_follows_the_counts(
    prompt: str, labels: tuple[str, ...], names: frozenset[str] | None, background: str
) -> None:
    scene = parse_scene(make_record(prompt, *labels), names)
    assert scene.background == background
    assert scene.layout.caption is None


@pytest.mark.parametrize("names", [None, frozenset(), NAMES])
@pytest.mark.parametrize(
    "prompt", ["two dogs on grass", "1 ball, grass", "2 dogs, grass", "1 dog, grass"]
)
def test_a_caption_stays_a_caption(prompt: str, names: frozenset[str] | None) -> None:
    scene = parse_scene(make_record(prompt, "dog", "dog"), names)
    assert scene.layout.caption == scene.background == scene.prompt == prompt


def test_hidden_objects_are_not_labels() -> None:
    """Earlier versions annotated them, with an empty mask and no area."""
    mask = {"size": [64, 64], "counts": "PPP1"}
    hidden = make_record("1 dog", "dog", area=0.0, segmentation=mask)
    visible = make_record("1 dog", "dog", area=9.0, segmentation=mask)
    without_mask = make_record("1 dog", "dog", area=0.0)  # other programs do not know the area
    assert len(parse_scene(hidden, NAMES).layout) == 0
    assert len(parse_scene(visible, NAMES).layout) == 1
    assert len(parse_scene(without_mask, NAMES).layout) == 1


def test_windows_of_a_dataset_with_distractors_are_captioned_with_its_background(
    job_file: Path, tmp_path: Path
) -> None:
    """The dataset is generated and read, and its windows are captioned."""
    overrides = [
        "layout.objects={ball: {count: 1, label: false}, dog: 2}",
        "images=4",
        f"output.path={tmp_path / 'out'}",
    ]
    assert cli.main(["run", str(job_file), *overrides, "-q"]) == 0
    scenes = make_scenes(shards=str(tmp_path / "out"), side=128)
    for scene, _ in islice(scenes.iterate_from(0), 4):
        assert scene.background == "a field of grass"
        assert scene.prompt == "2 dog, a field of grass"
        encoded = EncodedScene(torch.zeros(3, 64, 64), (), scene.layout.boxes / 2, scene)
        for side in (8, 64):
            window = sample_scene_window(encoded, side, side, np.random.default_rng(0))
            assert "ball" not in window.caption
            assert "1 " not in window.caption
    # a copy of the shards alone, without dataset.json
    shutil.copytree(tmp_path / "out/shards", tmp_path / "bare/shards")
    bare = make_scenes(shards=str(tmp_path / "bare"), side=128)
    backgrounds = {scene.background for scene, _ in islice(bare.iterate_from(0), 4)}
    assert backgrounds == {"a field of grass"}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with an imported dataset of three images, one of them 90 px wide."""
    folder = tmp_path / "small"
    folder.mkdir()
    import_images(folder, [(128, 100), (90, 128), (128, 128)])
    return folder


TOO_SMALL = (
    "the image is 90 x 128 px, smaller than %s; data.resize=true enlarges it; "
    "data.on_bad=skip leaves out unusable entries"
)


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ({**VAE, "crop": 96}, "crop, 96 px"),
        ({**MASK_TASK, "windows": [64, 96]}, "the largest of windows, 96 px"),
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
    (message,) = capsys.readouterr().err.strip().splitlines()
    assert message.endswith(TOO_SMALL % key)
    assert "000000001" in message
    assert not (tmp_path / "train").exists()
    if task["task"] != "vae":
        return
    assert cli.main(["train", str(tmp_path / "job.yaml"), "data.on_bad=skip", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 1


def test_an_image_that_is_too_small_is_refused_or_skipped_in_every_source(small: Path) -> None:
    (small / "bare/shards").mkdir(parents=True)
    for tar in (small / "out/shards").glob("*.tar"):
        shutil.copy(tar, small / "bare/shards")  # without the tables, sizes are in the images alone
    lines = {"jsonl": str(small / "m.jsonl"), "resize": False}
    for source in ({"shards": str(small / "out")}, lines, {"shards": str(small / "bare")}):
        data = DataSpec.model_validate({"side": 128, **source})
        minimum = MinimumSize(96, "crop")
        with pytest.raises(BadDataError, match=TOO_SMALL % "crop, 96 px"):
            list(islice(open_scenes(data, 0, minimum).iterate_from(0), 3))
        large_enough = open_scenes(data, 0, MinimumSize(90, "crop"))
        assert len(list(islice(large_enough.iterate_from(0), 3))) == 3
        skipping = open_scenes(data.model_copy(update={"on_bad": "skip"}), 0, minimum)
        assert isinstance(skipping, DatasetScenes)
        shapes = {image.shape[:2] for _, image in islice(skipping.iterate_from(0), 6)}
        assert shapes == {(100, 128), (128, 128)}
        (reason,) = skipping.skipped.values()
        assert reason.startswith("the image is 90 x 128 px")
        resizing = open_scenes(data.model_copy(update={"resize": True}), 0, minimum)
        assert len(list(islice(resizing.iterate_from(0), 3))) == 3
