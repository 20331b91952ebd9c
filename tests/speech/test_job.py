"""Jobs with a spoken prompt: what it sets, what is shown, and what is stored."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from synthgen import cli
from synthgen.config import Job, load_job
from synthgen.dataset.check import check_dataset
from synthgen.dataset.shard import read_members
from synthgen.speech import Spoken
from synthgen.storage.location import open_store
from tests.conftest import read_shard_bytes
from tests.speech.test_speech import DATA
from tests.speech.whisper import converted_whisper


def load_spoken_job(text: str, *overrides: str, job: str = "100dogs") -> Job:
    return load_job(job, ["pipeline=paste", *overrides], Spoken(text=text))


def read_annotations(tar: Path) -> list[dict[str, Any]]:
    """Return the annotations of all samples of a shard."""
    annotations = []
    for name, data in read_members(tar):
        if name.endswith(".json"):
            annotations += json.loads(data)["annotations"]
    return annotations


def count_objects(job: Job) -> dict[str, int]:
    objects = job.to_dict()["layout"]["objects"]
    return {name: options["count"][0] for name, options in objects.items()}


def test_the_prompt_overrides_the_job_and_the_command_line_overrides_the_prompt() -> None:
    job = load_spoken_job(
        "ten cats and three brown dogs in a park", "scene.background=a beach", "seed=4"
    )
    assert count_objects(job) == {"cat": 10, "dog": 3}
    assert job.scene.background == "a beach"
    assert job.scene.phrases == {"dog": ("a brown {category}",)}
    assert job.seed == 4
    assert job.spoken is not None
    assert job.spoken.background == "a park"
    assert "spoken" not in {key.partition(".")[0] for key in job.fingerprint()}


def test_without_a_count_the_layout_is_not_changed() -> None:
    job = load_spoken_job("a foggy street")
    assert count_objects(job) == {"dog": 100}
    assert job.scene.background == "a foggy street"


def test_categories_of_the_job_are_known() -> None:
    job = load_spoken_job("three balls and two dogs", "categories={ball: 101}")
    assert count_objects(job) == {"ball": 3, "dog": 2}
    # a recipe with a total
    job = load_spoken_job("four trees", "layout=mixed", "categories={tree: 102}")
    assert count_objects(job) == {"tree": 4}


@pytest.mark.parametrize(
    ("text", "overrides", "problem"),
    [
        (
            "five thousand dogs",
            [],
            "spoken ('five thousand dogs'): layout.objects: 5000 boxes of 56-88 px with gap 8 do "
            "not fit 1024 x 1024; the largest number that does is 181",
        ),
        (
            "ten dogs",
            ["layout={sampler: file, path: x.jsonl}"],
            "spoken ('ten dogs'): layout.objects: unknown key",
        ),
        ("a park", ["scene=3"], "spoken ('a park'): scene.background: scene is not a mapping"),
        ("...", [], "spoken: '...' holds no words; right would be: one hundred dogs in a park"),
    ],
)
def test_a_prompt_that_the_job_cannot_fulfil_is_refused(
    text: str, overrides: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["preview", "100dogs", "--say", text, *overrides]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"synthgen: {problem}" in captured.err.splitlines()


def test_the_prompt_is_shown_and_stored_and_the_run_can_be_resumed(
    job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = job_file.parent / "out"
    say = ["--say", "two white cats and a dog in a park"]
    assert cli.main(["run", str(job_file), *say, "images=2", "--json"]) == 0
    captured = capsys.readouterr()
    spoken = json.loads(captured.out)["spoken"]
    assert spoken["objects"] == {"cat": 2, "dog": 1}
    assert (
        "understood: 2 x cat, 1 x dog, cat as 'a white cat', background 'a park'"
        in captured.err.splitlines()
    )
    assert YAML(typ="safe").load(out / "job.yaml")["spoken"] == spoken
    phrases = []
    for tar in (out / "shards").glob("*.tar"):
        phrases += [annotation["phrase"] for annotation in read_annotations(tar)]
    assert phrases.count("a white cat") == 4
    assert check_dataset(open_store(out))[0] == []
    before = read_shard_bytes(out)
    # The prompt has the same meaning, so that the run is resumed.
    assert cli.main(["run", str(job_file), *say, "images=6"]) == 0
    assert before.items() <= read_shard_bytes(out).items()
    typed = [
        "layout.objects={cat: 2, dog: 1}",
        "scene.phrases={cat: ['a white {category}']}",
        "scene.background=a park",
    ]
    assert cli.main(["run", str(job_file), *typed]) == 0
    assert "all existed already" in capsys.readouterr().out
    assert cli.main(["run", str(out / "job.yaml")]) == 0


def test_a_recording_sets_layout_and_background(
    job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(converted_whisper())
    wav = str(DATA / "one-hundred-dogs.wav")
    sizes = ["layout.canvas=[512, 512]", "layout.size=[16, 24]"]
    preview = ["preview", str(job_file), "-n", "1", "-o", str(tmp_path / "p.png")]
    assert cli.main([*preview, "--voice", wav, "--speech", model, *sizes, "--json"]) == 0
    captured = capsys.readouterr()
    assert "heard: One hundred dogs in a park." in captured.err.splitlines()
    data = json.loads(captured.out)
    assert model not in json.dumps(data["spoken"])
    assert data["boxes"] == 100
    assert data["spoken"]["background"] == "a park"
    assert data["spoken"]["model"] == "model"


def test_transcribe_shows_the_text_and_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["transcribe", str(DATA / "five-white-cats.wav"), "--speech", str(converted_whisper())]
    assert cli.main(argv) == 0
    lines = [
        "heard: Five white cats on a beach.",
        "understood: 5 x cat, cat as 'a white cat', background 'a beach'",
    ]
    assert capsys.readouterr().out.splitlines() == lines


def test_an_error_of_the_job_comes_before_the_recording_is_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["run", "nosuchjob", "--voice", "nowhere.wav"]) == 2
    assert "nosuchjob: no such job" in capsys.readouterr().err
    assert cli.main(["run", "100dogs", "--voice", "nowhere.wav"]) == 2
    error = capsys.readouterr().err
    assert error == "synthgen: nowhere.wav: cannot be read: No such file or directory\n"


def test_the_command_to_resume_an_interrupted_run_has_the_prompt(
    job_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from synthgen.engine import driver as engine
    from synthgen.engine import generation

    result = engine.RunResult(
        0, 1.0, True, {"images": 0, "boxes": 0, "shards": 0, "complete": False}
    )
    monkeypatch.setattr(generation, "run", lambda *_: result)
    assert cli.main(["run", str(job_file), "--say", "a dog's park"]) == 130
    output = capsys.readouterr().out.rstrip()
    assert output.endswith(f"synthgen run {job_file} --say 'a dog'\"'\"'s park'")
