"""The report: one page that opens from disk, whatever the prompts say."""

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from synthgen import cli
from synthgen.report import write_report

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
HOSTILE = "</script><img src=x onerror=alert(1)> <!-- @DATA@ @JOB@"


def data_of(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert match is not None
    data: dict[str, Any] = json.loads(match[1])
    return data


@pytest.fixture
def out(job_file: Path) -> Path:
    big = ["layout.canvas=[192, 128]", "layout.size=[40, 56]", "layout.objects={dog: 3}", "images=5", "verify=detector"]
    assert cli.main(["run", str(job_file), *big, f"scene.background='{HOSTILE}'"]) == 0
    return job_file.parent / "out"


def test_the_page_holds_every_sample(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.main(["report", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    page = (out / "report.html").read_text()
    assert told == {"path": str(out / "report.html"), "images": 5, "shown": 5, "bytes": len(page)}
    data = data_of(page)
    assert [p["n"] for p in data["pictures"]] == list(range(5))
    coco = json.loads((out / "annotations/instances.json").read_text())
    ours = [box["b"] for p in data["pictures"] for box in p["boxes"]]
    for mine, theirs in zip(ours, coco["annotations"], strict=True):
        assert mine == pytest.approx(theirs["bbox"], abs=0.06)
    assert {"failed", "unasked", "repairs"} <= set(data["pictures"][0])
    image = Image.open(io.BytesIO(base64.b64decode(data["pictures"][0]["src"])))
    assert image.size == (192, 128)
    assert sum(shard["count"] for shard in data["shards"]) == 5


def test_nothing_is_loaded_from_elsewhere_and_prompts_are_text(out: Path) -> None:
    write_report(out)
    page = (out / "report.html").read_text()
    assert data_of(page)["pictures"][0]["p"].endswith(HOSTILE)
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.replace("http://www.w3.org/2000/svg", ""))
    assert "<img src=x" not in page


def test_of_a_large_dataset_the_first_are_shown(out: Path) -> None:
    assert write_report(out, most=2)["shown"] == 2
    assert write_report(out, most=2)["images"] == 5


def test_a_folder_that_is_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "not a synthgen dataset" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_draws_boxes_where_the_labels_say(out: Path) -> None:
    assert CHROMIUM is not None
    write_report(out)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,2000", "--enable-logging=stderr"]
    command = [CHROMIUM, *options, "--virtual-time-budget=3000", "--dump-dom", (out / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    rects = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)" stroke=', done.stdout)
    labels = [b["b"] for p in data_of((out / "report.html").read_text())["pictures"] for b in p["boxes"]]
    assert [[float(v) for v in rect] for rect in rects] == labels
    assert "5 of 5" in done.stdout
    assert done.stdout.count("<figure>") >= 5
