"""Common mistakes and failures are reported in one line that says what to do next."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, UnidentifiedImageError

from synthgen import cli, errors
from synthgen.config import Job
from synthgen.errors import InputError, explain, get_first_line, remove_addresses
from synthgen.storage.location import open_store
from synthgen.storage.lock import Lock


def read_error(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the message on stderr, which has to be a single line."""
    text = capsys.readouterr().err.strip()
    assert "\n" not in text
    assert text.startswith("synthgen: ")
    return text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["run", "100dog"], "did you mean '100dogs'?"),
        (["run", "@", "pipeline=mixtur-tiny"], "did you mean 'mixture-tiny'?"),
        (["run", "@", "layout.sampler=scater"], "did you mean 'scatter'?"),
        (["run", "@", "layout.objects={dog: 400}"], "layout.objects"),
        (["run", "@", "pipeline={method: mixture, model: ./nowhere}"], "embedded: synthgen-tiny"),
        (["train", "100dogs"], "for a dataset: synthgen run 100dogs"),
        (["run", "train-tiny"], "use: synthgen train train-tiny"),
        (["report", "."], "not a synthgen dataset"),
    ],
)
def test_bad_input_is_one_line_that_says_what_would_be_right(
    argv: list[str], words: str, job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([str(job_file) if a == "@" else a for a in argv]) == 2
    assert words in read_error(capsys)


def test_a_locked_output_is_one_line(
    make_job: Callable[..., Job], job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Lock(open_store(job_file.parent / "out")):
        assert cli.main(["run", str(job_file)]) == 2
    assert "wait for it, or stop it" in read_error(capsys)


def test_a_full_disk_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def raise_disk_full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "x"))

    monkeypatch.setattr("synthgen.storage.local.write_text", raise_disk_full)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init"]) == 1
    assert "no space left on device; free some space" in read_error(capsys)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = [
        "torch>=2.6",
        "matplotlib>=3.9; extra == 'train'",
        'faster-whisper>=1.2; extra == "voice"',
    ]
    monkeypatch.setattr(errors, "requires", lambda _: requirements)
    endings = {
        "faster_whisper.audio": "[voice]'",
        "matplotlib": "[train]'",
        "torch": "synthgen-layouts'",
    }
    for module, ending in endings.items():
        (line,) = explain(ModuleNotFoundError(name=module))
        assert line.endswith(ending)
    with pytest.raises(ModuleNotFoundError):
        explain(ModuleNotFoundError(name="ours_by_mistake"))


@pytest.mark.parametrize(
    "code",
    [errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ESTALE, errno.EEXIST, errno.EIO, errno.EFBIG],
)
def test_an_error_of_a_file_system_is_one_line(code: int) -> None:
    (line,) = explain(OSError(code, os.strerror(code), "/out/x"))
    assert line.startswith(f"/out/x: {os.strerror(code).lower()}; ")


def test_other_errors_keep_their_traceback() -> None:
    # Without a file name the error may be that of a connection.
    with pytest.raises(OSError, match="odd"):
        explain(OSError(errno.ETIMEDOUT, "odd"))
    with pytest.raises(OSError, match="odd"):
        explain(OSError(errno.EPIPE, "odd"))


def test_quiet_prints_nothing_and_verbose_prints_every_shard(job_file: Path) -> None:
    outputs = {}
    for option in ("-q", "-v"):
        command = [
            sys.executable,
            "-m",
            "synthgen",
            "run",
            str(job_file),
            f"output.path={job_file.parent / option}",
            option,
        ]
        outputs[option] = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (outputs["-q"].stdout, outputs["-q"].stderr) == ("", "")
    assert outputs["-v"].stderr.count("shard committed") == 3
    first_line_of_log = (job_file.parent / "-q/log.jsonl").read_text().splitlines()[0]
    assert json.loads(first_line_of_log)["event"] == "run started"


def test_messages_have_no_representations_of_python_objects() -> None:
    error = InputError(
        "a/b.jpg: not an image: cannot identify image file "
        "<_io.BytesIO object at 0x7f0a1b2c3d40>\nmore"
    )
    assert error.problems == ["a/b.jpg: not an image: cannot identify image file", "more"]
    assert get_first_line(error) == "a/b.jpg: not an image: cannot identify image file"
    assert get_first_line(ValueError("\n")) == "ValueError"
    assert remove_addresses("a <b> at 0x1f") == "a <b> at 0x1f"


def test_a_file_that_is_not_an_image_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "0.jpg"
    file.write_text("no image")
    with pytest.raises(UnidentifiedImageError) as caught:
        Image.open(file)
    expected = (
        f"cannot identify image file {str(file)!r}; remove the file, or replace it with an image"
    )
    assert explain(caught.value) == [expected]
