"""YOLO datasets of other programs: meaning of lines, places of images, and missing files."""

from pathlib import Path

import numpy as np
import pytest

from synthgen.formats.entries import Entry, Policy, Problem, UnreadableSourceError, apply_policy
from synthgen.formats.source import Source, locate_source
from synthgen.formats.yolo import reader as yolo
from tests.formats.sources import make_image, read_yolo, write_yolo

BOX = "0.25 0.375 0.25 0.25"  # of an image of 160 x 120 px: 20, 30 to 60, 60
TRIANGLE = "0.25 0.25 0.5 0.25 0.5 0.5"
SQUARE = "0.25 0.25 0.5 0.25 0.5 0.5 0.25 0.5"


def write_dataset(
    folder: Path, labels: list[str], head: str = "", train: str = "images/train"
) -> Path:
    """Write a dataset with an image of 160 x 120 px for each text of labels."""
    for part in ("images/train", "labels/train"):
        (folder / part).mkdir(parents=True)
    for k, text in enumerate(labels):
        make_image(k, (160, 120)).save(folder / f"images/train/{k}.jpg")
        (folder / f"labels/train/{k}.txt").write_text(text)
    (folder / "data.yaml").write_text(f"train: {train}\n{head}names: [cat, dog]\n")
    return folder


def read_entries(folder: Path, split: str | None = None, task: str | None = None) -> list[Entry]:
    """Return the entries of a dataset without problems."""
    results = list(read_yolo(folder, split, True, task))
    assert [str(result) for result in results if isinstance(result, Problem)] == []
    return [result for result in results if isinstance(result, Entry)]


def read_problems(folder: Path, task: str | None = None) -> list[str]:
    """Return the problems of a dataset as texts."""
    results = read_yolo(folder, None, True, task)
    return [str(result) for result in results if isinstance(result, Problem)]


@pytest.mark.parametrize("shape", [(24, 3), (12, 2), (17, 3), (1, 2)])
def test_poses_are_boxes_and_their_keypoints_are_counted(
    shape: tuple[int, int], tmp_path: Path
) -> None:
    line = f"1 {BOX}" + " 0.3" * (shape[0] * shape[1])
    first, last = read_entries(
        write_dataset(
            tmp_path, [f"{line}\n{line}\n", f"1 {BOX}\n"], f"kpt_shape: [{shape[0]}, {shape[1]}]\n"
        )
    )
    np.testing.assert_allclose(first.boxes, [[20, 30, 60, 60]] * 2)
    assert (first.names, first.left_out) == (("dog", "dog"), ("keypoints", "keypoints"))
    assert first.more == ({}, {})  # no mask
    np.testing.assert_allclose(last.boxes, [[20, 30, 60, 60]])
    assert last.left_out == ()


def test_a_line_with_other_keypoints_is_a_problem(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, [f"1 {BOX} 0.1 0.2\n"], "kpt_shape: [2, 2]\n")
    assert read_problems(folder) == [
        f"{folder}/labels/train/0.txt:1: 6 numbers after the class; "
        "a box has 4, with its keypoints (kpt_shape) 8"
    ]
    (folder / "data.yaml").write_text("train: images/train\nkpt_shape: 3\nnames: [cat, dog]\n")
    with pytest.raises(
        UnreadableSourceError, match=r"data.yaml: kpt_shape: 3: give how many keypoints"
    ):
        read_problems(folder)


def test_lines_of_equal_length_need_a_stated_task(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, [f"1 {SQUARE}\n", f"0 {SQUARE}\n"])
    message = (
        r"all lines have 8 numbers after the class \(.*0.txt:1 is the first\): "
        ".* --task segment, pose, obb or detect"
    )
    with pytest.raises(UnreadableSourceError, match=message):
        read_entries(folder)
    for task in ("segment", "obb", "mixed"):
        first, _ = read_entries(folder, task=task)
        np.testing.assert_allclose(first.boxes, [[40, 30, 80, 60]])
        assert first.more is not None
        assert first.more[0]["segmentation"]["size"] == [120, 160]
    first, _ = read_entries(folder, task="pose")
    np.testing.assert_allclose(first.boxes, [[0, 15, 80, 45]])
    assert first.left_out == ("keypoints",)
    assert read_problems(folder, "detect")[0].endswith(
        "0.txt:1: 8 numbers after the class; a box has 4"
    )


def test_lines_of_several_lengths_are_polygons(tmp_path: Path) -> None:
    first, last = read_entries(
        write_dataset(tmp_path, [f"1 {TRIANGLE}\n", f"0 {SQUARE}\n0 {TRIANGLE}\n"])
    )
    np.testing.assert_allclose(first.boxes, [[40, 30, 80, 60]])
    assert [len(e.more or ()) for e in (first, last)] == [1, 2]


def test_boxes_and_polygons_in_one_dataset_need_a_stated_task(
    tmp_path: Path,
) -> None:
    folder = write_dataset(tmp_path, [f"1 {SQUARE}\n0 {TRIANGLE}\n", f"0 {BOX}\n"])
    with pytest.raises(
        UnreadableSourceError,
        match=r"1.txt:1 has 4 numbers after the class, .*0.txt:1 8: .*--task mixed",
    ):
        read_entries(folder)
    first, last = read_entries(folder, task="mixed")
    assert [[bool(m) for m in e.more or ()] for e in (first, last)] == [[True, True], [False]]
    np.testing.assert_allclose(last.boxes, [[20, 30, 60, 60]])
    assert read_problems(folder, "segment")[0].endswith(
        "4 numbers after the class; a polygon has 6 or more, 2 for each point"
    )


def test_an_odd_count_of_numbers_is_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, [f"1 {BOX} 0.1 0.2 2\n", f"1 {SQUARE}\n"])
    with pytest.raises(
        UnreadableSourceError,
        match=r"0.txt:1 has 7 numbers after the class: no box and no polygon; say which",
    ):
        read_entries(folder)


def test_a_fifth_number_is_a_confidence_only_with_a_stated_task(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, [f"1 {BOX} 0.87\n"])
    (why,) = read_problems(folder)
    assert why.endswith(
        "5 numbers after the class; a box has 4; "
        "if the fifth is a confidence, --task detect leaves it out"
    )
    (entry,) = read_entries(folder, task="detect")
    np.testing.assert_allclose(entry.boxes, [[20, 30, 60, 60]])
    assert entry.left_out == ("confidence",)


def test_a_mask_that_is_not_valid_is_dropped_without_its_box(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, [f"1 {TRIANGLE}\n1 0.1 0.1 4000 0.1 0.2 0.2 0.1 0.2\n"])
    (entry,) = read_entries(folder)
    assert [bool(m) for m in entry.more or ()] == [True, False]
    assert [p.place for p in entry.lost_masks] == [f"{folder}/labels/train/0.txt:2"]


def test_classes_may_be_written_as_decimals(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, [f"0.0 {BOX}\n1.000000000000000000e+00 {BOX}\n"])
    assert read_entries(folder)[0].names == ("cat", "dog")
    for word, why in (
        ("0.5", "class 0.5 is not a whole number"),
        ("inf", "class inf is not"),
        ("nan", "class nan is not"),
    ):
        (folder / "labels/train/0.txt").write_text(f"{word} {BOX}\n")
        assert why in read_problems(folder)[0]
    (folder / "labels/train/0.txt").write_text("0 0.1 nan 0.2 0.1\n")
    assert "all numbers must be finite" in read_problems(folder)[0]


def test_byte_order_marks_are_ignored(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, [f"\ufeff0 {BOX}\r\n1 {BOX}\r\n"])
    assert read_entries(folder)[0].names == ("cat", "dog")
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("\ufeffcat\ndog\n")
    assert read_entries(folder)[0].names == ("cat", "dog")
    (folder / "labels/train/0.txt").write_bytes(b"0 \xff\n")
    assert read_problems(folder)[0].startswith(f"{folder}/labels/train/0.txt: is not UTF-8 text")


def test_a_missing_split_does_not_affect_the_others(tmp_path: Path) -> None:
    folder = write_dataset(
        tmp_path, [f"1 {BOX}\n"], "val: ../valid/images\ntest: ../test/images\n", "../images/train"
    )
    why = "'../valid/images': no such folder or list"
    assert len(read_entries(folder, "train")) == 1
    assert yolo.open_dataset(folder, "train").remarks == ()
    for split in ("all", None):
        assert len(read_entries(folder, split)) == 1
        remarks = yolo.open_dataset(folder, split).remarks
        assert [text.partition(" in ")[0] for text in remarks] == [
            f"{folder}/data.yaml: val: {why}",
            f"{folder}/data.yaml: test: '../test/images': no such folder or list",
        ]
    with pytest.raises(UnreadableSourceError, match=f"data.yaml: val: {why}"):
        read_entries(folder, "val")
    (folder / "data.yaml").write_text("train: nowhere\nval: neither\nnames: [cat, dog]\n")
    with pytest.raises(
        UnreadableSourceError, match=r"data.yaml: train: 'nowhere': no such folder or list"
    ):
        read_entries(folder, "train")


def test_an_image_of_two_splits_is_read_once(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, [f"1 {BOX}\n"], "val: ./images/../images/train\n")
    assert len(read_entries(folder, "all")) == 1


def test_the_path_of_data_yaml_is_followed(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", [f"1 {BOX}\n"])
    (tmp_path / "project").mkdir()
    description = tmp_path / "project/data.yaml"
    for path in ("../data", str(data)):
        description.write_text(f"path: {path}\ntrain: images/train\nnames: [cat, dog]\n")
        (entry,) = read_entries(description)
        assert entry.image_path is not None
        assert entry.image_path.samefile(data / "images/train/0.jpg")
        (remark,) = yolo.open_dataset(description).remarks
        assert remark.endswith(f"images/train: read from there, outside of {tmp_path / 'project'}")


def test_a_path_of_another_machine_is_reported(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, [f"1 {BOX}\n"], "path: /content/datasets/x\n")
    assert len(read_entries(folder)) == 1
    assert yolo.open_dataset(folder).remarks == (
        f"{folder}/data.yaml: path: '/content/datasets/x' contains none of its splits here; "
        f"read from {folder}",
    )


def test_an_ambiguous_place_is_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "inner", [f"1 {BOX}\n"], train="../images/train")
    (tmp_path / "images/train").mkdir(parents=True)
    with pytest.raises(
        UnreadableSourceError,
        match=r"'../images/train' may be .*inner/images/train or .*; write it in full",
    ):
        read_entries(folder)


def test_lists_written_for_another_folder_or_machine_are_read(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "here", [f"1 {BOX}\n", f"0 {BOX}\n"], train="train.txt")
    for leading in ("", "./", "data/", "/home/someone/yolo/", str(folder) + "/", "C:\\yolo\\"):
        (folder / "train.txt").write_text(
            "".join(f"{leading}images/train/{k}.jpg\n" for k in (1, 0))
        )
        assert [e.names for e in read_entries(folder)] == [("cat",), ("dog",)]
        remarks = yolo.open_dataset(folder).remarks
        assert bool(remarks) == (leading in ("data/", "/home/someone/yolo/", "C:\\yolo\\"))
    make_image(3, (160, 120)).save(tmp_path / "9.jpg")
    (tmp_path / "9.txt").write_text(f"1 {BOX}\n")
    (folder / "train.txt").write_text(
        f"{tmp_path}/9.jpg\n{folder}/images/train/0.jpg\n{folder}/images/train/none.jpg\n"
    )
    results = list(read_yolo(folder))
    assert [e.names for e in results if isinstance(e, Entry)] == [("dog",), ("dog",)]
    assert [str(p) for p in results if isinstance(p, Problem)] == [
        f"{folder}/images/train/none.jpg: the image is not there"
    ]
    assert yolo.open_dataset(folder).remarks == (
        f"{folder}/train.txt: names lead to {tmp_path}; read from there, outside of {folder}",
    )


def write_cvat(folder: Path) -> Path:
    """Write a dataset as CVAT does as YOLO 1.1."""
    (folder / "obj_train_data").mkdir(parents=True)
    for k in range(2):
        make_image(k, (160, 120)).save(folder / f"obj_train_data/{k}.jpg")
        (folder / f"obj_train_data/{k}.txt").write_text(f"{k} {BOX}\n")
    (folder / "obj.data").write_text(
        "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    )
    (folder / "obj.names").write_text("cat\ndog\n")
    (folder / "train.txt").write_text("data/obj_train_data/1.jpg\ndata/obj_train_data/0.jpg\n")
    return folder


def test_datasets_of_cvat_and_darknet_are_read(tmp_path: Path) -> None:
    folder = write_cvat(tmp_path)
    assert locate_source(folder) == ("yolo", folder / "obj.data")
    assert [e.names for e in read_entries(folder)] == [("dog",), ("cat",)]
    with (folder / "obj.data").open("a") as file:
        file.write("valid = data/valid.txt\n")
    assert len(read_entries(folder, "train")) == 2
    with pytest.raises(
        UnreadableSourceError, match=r"obj.data: valid: 'data/valid.txt': no such list"
    ):
        read_entries(folder, "val")
    (folder / "obj.names").unlink()
    with pytest.raises(
        UnreadableSourceError, match=r"obj.data: names: 'data/obj.names': no such file"
    ):
        read_entries(folder)


def test_labels_beside_images_are_read(tmp_path: Path) -> None:
    """labelImg writes them so."""
    make_image(0, (160, 120)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(f"1 {BOX}\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert locate_source(tmp_path) == ("yolo", tmp_path)
    assert [e.names for e in read_entries(tmp_path)] == [("dog",)]


def test_files_of_macos_and_other_suffixes(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, [f"1 {BOX}\n", f"0 {BOX}\n", f"1 {BOX}\n"])
    images = folder / "images/train"
    labels = folder / "labels/train"
    (images / "0.jpg").rename(images / "0.Jpg")
    make_image(1, (160, 120)).save(images / "1.avif")
    (images / "1.jpg").unlink()
    (images / "._2.jpg").write_bytes(b"\0\5\x16\7")
    (labels / "._2.txt").write_bytes(b"\0\5\x16\7\xff")
    (folder / "._data.yaml").write_bytes(b"\0\5\x16\7names")
    assert locate_source(folder) == ("yolo", folder / "data.yaml")
    names = [(e.image_path.name if e.image_path else "", e.names) for e in read_entries(folder)]
    assert names == [("0.Jpg", ("dog",)), ("1.avif", ("cat",)), ("2.jpg", ("dog",))]


def test_two_images_with_the_same_file_of_labels_are_bad(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, [f"1 {BOX}\n", f"0 {BOX}\n"])
    make_image(5, (160, 120)).save(folder / "images/train/0.png")
    results = list(read_yolo(folder))
    assert [e.names for e in results if isinstance(e, Entry)] == [("cat",)]
    assert [p.entry for p in results if isinstance(p, Problem)] == [
        f"{folder}/images/train/0.{s}" for s in ("jpg", "png")
    ]
    assert "0.txt with another image; which one is it of?" in str(results[0])


def test_a_box_that_reaches_outside_is_clipped_by_the_policy(tmp_path: Path) -> None:
    (entry,) = read_entries(write_dataset(tmp_path, ["0 -0.01 0.375 0.2 0.25\n"]))
    result = apply_policy(entry, Policy(clip=True))
    np.testing.assert_allclose(result.entry.boxes, [[0, 30, 14.4, 60]])
    assert result.cut == 1


def test_several_descriptions_need_the_name_data_yaml(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path)
    (folder / "other.yaml").write_text((folder / "data.yaml").read_text())
    assert locate_source(folder) == ("yolo", folder / "data.yaml")
    (folder / "data.yaml").rename(folder / "mine.yaml")
    with pytest.raises(
        UnreadableSourceError,
        match=r"more than one source: .*mine.yaml \(yolo\), .*other.yaml \(yolo\)",
    ):
        locate_source(folder)


def test_the_task_is_inferred_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source("yolo", write_dataset(tmp_path, [f"1 {BOX}\n"]))
    assert len(list(source.entries())) == 1
    monkeypatch.setattr(yolo, "infer_task", None)
    assert len(list(source.entries())) == 1


def test_no_line_raises_another_error(tmp_path: Path) -> None:
    """Every line in labels or lists leads to an entry or a problem."""
    folder = write_dataset(tmp_path, [f"1 {BOX}\n", ""], train="train.txt")
    for line in ("/", ".", "..", "a\0b", "x" * 5000, "\\", "images", "images/train/0.jpg/x"):
        (folder / "train.txt").write_text(f"images/train/0.jpg\n{line}\n")
        first, last = read_yolo(folder)
        assert (type(first), type(last)) == (Entry, Problem)
    for line in (
        "1e400 0 0 0 0",
        "-1 0.1 0.1 0.1 0.1",
        "0 1e300 0 1 1",
        "0",
        "a",
        "\0",
        "0 " + "1 " * 9999,
    ):
        (folder / "train.txt").write_text("images/train/0.jpg\nimages/train/1.jpg\n")
        (folder / "labels/train/1.txt").write_text(line)
        first, last = read_yolo(folder, task="detect")
        assert (type(first), type(last)) == (Entry, Problem)


def test_the_suffix_of_labels_may_have_any_case(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, [f"1 {BOX}\n", f"0 {BOX}\n"])
    labels = folder / "labels/train"
    (labels / "0.txt").rename(labels / "0.TXT")
    assert [entry.names for entry in read_entries(folder)] == [("dog",), ("cat",)]
    (labels / "1.txt").rename(labels / "1.Txt")
    (labels / "lost.TXT").write_text(f"1 {BOX}\n")
    assert read_problems(folder) == [f"{labels}/lost.TXT: there is no image of this name"]


def test_a_number_with_an_underscore_is_refused(tmp_path: Path) -> None:
    (problem,) = read_problems(write_dataset(tmp_path, [f"1_0 {BOX}\n"]))
    assert problem.endswith("not a class and numbers")
