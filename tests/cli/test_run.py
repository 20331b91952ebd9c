"""The progress bar of `synthgen run`, and the first image that it names."""

import io
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from synthgen.cli.main import main
from synthgen.cli.run import _ProgressBar
from synthgen.config import Job
from synthgen.engine.generation import run
from synthgen.engine.worker import Progress


def test_the_bar_adds_the_parts_of_all_batches(capsys: pytest.CaptureFixture[str]) -> None:
    bar = _ProgressBar()
    show = bar.open(20, 4)
    assert "starting workers  20%" in capsys.readouterr().err
    show(Progress(1, 0, 1.5, "denoising"), "")
    show(Progress(2, 0, 1.0, "decoding"), "")
    assert bar.bar.n == 6.5
    show(Progress(1, 2), "out/first.jpg")
    assert bar.bar.n == 7
    show(Progress(2, 0, 1.75, "verifying"), "")
    assert bar.bar.n == 7.75
    show(Progress(1, -2), "")  # the attempt failed
    assert bar.bar.n == 5.75
    bar.close()
    error = capsys.readouterr().err
    assert "verifying" in error
    assert "5.8/20 images" in error
    assert "first image: out/first.jpg\n" in error


def test_the_clock_starts_with_the_first_part_of_an_image() -> None:
    bar = _ProgressBar()
    show = bar.open(10, 0)
    time.sleep(0.3)
    show(Progress(0, 0), "")  # the worker has started
    show(Progress(0, 0, 0.1, "denoising"), "")
    assert bar.bar.format_dict["elapsed"] < 0.2
    bar.close()


def test_a_quiet_bar_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    bar = _ProgressBar(hidden=True)
    show = bar.open(2, 0)
    show(Progress(0, 0, 0.5, "denoising"), "")
    show(Progress(0, 2), "out/first.jpg")
    bar.close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("workers", [0, 1])
def test_the_first_image_is_written_and_named(
    workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data"
    arguments = ["images=4", f"workers={workers}", "batch_size=1", "output.shard_size=2"]
    arguments += ["layout.objects={dog: 2}", "layout.canvas=[128, 128]", "layout.size=[20, 40]"]
    status = main(["run", "100dogs", *arguments, f"output.path={out}", "pipeline=paste"])
    assert status == 0
    error = capsys.readouterr().err
    assert error.count(f"first image: {out / 'first.jpg'}\n") == 1
    with Image.open(out / "first.jpg") as image:
        assert image.size == (128, 128)
    assert re.search(r"4\.0/4 images", error)


def test_the_first_image_is_shown_before_its_shard_is_finished(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job("images=6", "batch_size=2", "output.shard_size=6", "workers=0")
    seen = []

    def report(total: int, done: int) -> Callable[[Progress, str], None]:
        assert (total, done) == (6, 0)

        def show(progress: Progress, path: str) -> None:
            if path:
                shards = list((Path(job.output.path) / "shards").glob("*.tar"))
                size = Image.open(io.BytesIO(Path(path).read_bytes())).size
                seen.append((progress.images, len(shards), size))

        return show

    run(job, report=report)
    assert seen == [(2, 0, (128, 128))]
