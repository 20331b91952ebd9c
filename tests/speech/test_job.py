"""Jobs that are spoken to: what changes, what is shown, what is recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from synthgen import cli
from synthgen.config import Job, load_job
from synthgen.dataset.check import check_dataset
from synthgen.speech import Spoken
from synthgen.storage.location import open_store
from tests.conftest import shard_bytes
from tests.speech.test_speech import DATA
from tests.speech.whisper import converted_whisper


def spoken_job(text: str, *overrides: str, job: str = "100dogs") -> Job:
    return load_job(job, ["pipeline=paste", *overrides], Spoken(text=text))


def counts(job: Job) -> dict[str, int]:
    return {name: o["count"][0] for name, o in job.resolved()["layout"]["objects"].items()}


def test_words_replace_keys_and_the_command_line_goes_before_them() -> None:
    job = spoken_job(
        "ten cats and three brown dogs in a park", "scene.background=a beach", "seed=4"
    )
    assert counts(job) == {"cat": 10, "dog": 3}
    assert (job.scene.background, job.scene.phrases, job.seed) == (
        "a beach",
        {"dog": ("a brown {category}",)},
        4,
    )
    assert job.spoken is not None
    assert job.spoken.background == "a park"
    assert "spoken" not in {key.partition(".")[0] for key in job.fingerprint()}


def test_without_a_count_the_layout_stays() -> None:
    job = spoken_job("a foggy street")
    assert (counts(job), job.scene.background) == ({"dog": 100}, "a foggy street")


def test_categories_of_the_job_are_known() -> None:
    job = spoken_job("three balls and two dogs", "categories={ball: 101}")
    assert counts(job) == {"ball": 3, "dog": 2}
    assert counts(spoken_job("four trees", "layout=mixed", "categories={tree: 102}")) == {
        "tree": 4
    }  # a recipe with a total


@pytest.mark.parametrize(
    ("text", "overrides", "problem"),
    [
        ("five thousand dogs", [], "spoken ('five thousand dogs'): layout.objects: 5000 boxes of 56-88 px with gap 8 do not fit 1024 x 1024; the largest number that does is 181"),
        ("ten dogs", ["layout={sampler: file, path: x.jsonl}"], "spoken ('ten dogs'): layout.objects: unknown key"),
        ("a park", ["scene=3"], "spoken ('a park'): scene.background: scene is not a mapping"),
        ("...", [], "spoken: '...' holds no words; right would be: one hundred dogs in a park"),
    ],
)  # fmt: skip
def test_what_the_job_cannot_do_is_named(
    text: str, overrides: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["preview", "100dogs", "--say", text, *overrides]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"synthgen: {problem}" in captured.err.splitlines()


def test_said_shown_recorded_and_resumed(
    job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, say = job_file.parent / "out", ["--say", "two white cats and a dog in a park"]
    assert cli.main(["run", str(job_file), *say, "images=2", "--json"]) == 0
    captured = capsys.readouterr()
    spoken = json.loads(captured.out)["spoken"]
    assert spoken["objects"] == {"cat": 2, "dog": 1}
    assert (
        "understood: 2 x cat, 1 x dog, cat as 'a white cat', background 'a park'"
        in captured.err.splitlines()
    )
    assert YAML(typ="safe").load(out / "job.yaml")["spoken"] == spoken
    boxes = [a for file in sorted((out / "shards").glob("*.tar")) for a in _annotations(file)]
    assert sorted(a["phrase"] for a in boxes).count("a white cat") == 4
    assert check_dataset(open_store(out))[0] == []
    before = shard_bytes(out)
    assert (
        cli.main(["run", str(job_file), *say, "images=6"]) == 0
    )  # goes on, for the words mean the same
    assert before.items() <= shard_bytes(out).items()
    typed = [
        "layout.objects={cat: 2, dog: 1}",
        "scene.phrases={cat: ['a white {category}']}",
        "scene.background=a park",
    ]
    assert cli.main(["run", str(job_file), *typed]) == 0
    assert "all were there" in capsys.readouterr().out
    assert cli.main(["run", str(out / "job.yaml")]) == 0


def _annotations(tar: Path) -> list[dict[str, Any]]:
    from synthgen.dataset.shard import read_members

    return [
        a
        for name, data in read_members(tar)
        if name.endswith(".json")
        for a in json.loads(data)["annotations"]
    ]


def test_voice_sets_layout_and_background(
    job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, wav = str(converted_whisper()), str(DATA / "one-hundred-dogs.wav")
    sizes = ["layout.canvas=[512, 512]", "layout.size=[16, 24]"]
    preview = ["preview", str(job_file), "-n", "1", "-o", str(tmp_path / "p.png")]
    assert cli.main([*preview, "--voice", wav, "--speech", model, *sizes, "--json"]) == 0
    captured = capsys.readouterr()
    assert "heard: One hundred dogs in a park." in captured.err.splitlines()
    data = json.loads(captured.out)
    assert model not in json.dumps(data["spoken"])
    assert (data["boxes"], data["spoken"]["background"], data["spoken"]["model"]) == (
        100,
        "a park",
        "model",
    )


def test_transcribe(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["transcribe", str(DATA / "five-white-cats.wav"), "--speech", str(converted_whisper())]
    assert cli.main(argv) == 0
    lines = [
        "heard: Five white cats on a beach.",
        "understood: 5 x cat, cat as 'a white cat', background 'a beach'",
    ]
    assert capsys.readouterr().out.splitlines() == lines


def test_a_wrong_job_is_told_before_the_recording_is_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["run", "nosuchjob", "--voice", "nowhere.wav"]) == 2
    assert "nosuchjob: no such job" in capsys.readouterr().err
    assert cli.main(["run", "100dogs", "--voice", "nowhere.wav"]) == 2
    assert (
        capsys.readouterr().err
        == "synthgen: nowhere.wav: cannot be read: No such file or directory\n"
    )


def test_an_interrupted_run_says_the_words_again(
    job_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from synthgen.engine import driver as engine

    result = engine.RunResult(
        0, 1.0, True, {"images": 0, "boxes": 0, "shards": 0, "complete": False}
    )
    monkeypatch.setattr(engine, "run", lambda *_: result)
    assert cli.main(["run", str(job_file), "--say", "a dog's park"]) == 130
    assert (
        capsys.readouterr()
        .out.rstrip()
        .endswith(f"synthgen run {job_file} --say 'a dog'\"'\"'s park'")
    )
