"""The report: one page that opens from disk, whatever the prompts say."""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from synthgen import cli
from synthgen.annotations import Annotation
from synthgen.dataset.info import DatasetInfo, write_info
from synthgen.dataset.shard import commit, stage
from synthgen.report import write_report
from synthgen.storage.location import open_store
from tests.dataset.test_shard import sample

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
HOSTILE = "</script><img src=x onerror=alert(1)> <!-- @DATA@ @JOB@"


def data_of(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert match is not None
    data: dict[str, Any] = json.loads(match[1])
    return data


@pytest.fixture
def out(job_file: Path) -> Path:
    big = [
        "layout.canvas=[192, 128]",
        "layout.size=[40, 56]",
        "layout.objects={dog: 3}",
        "images=5",
        "verify=detector",
    ]
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
    write_report(open_store(out))
    page = (out / "report.html").read_text()
    assert data_of(page)["pictures"][0]["p"].endswith(HOSTILE)
    assert not re.search(
        r"""(src|href)=["']?(https?:)?//""", page.replace("http://www.w3.org/2000/svg", "")
    )
    assert "<img src=x" not in page


def test_of_a_large_dataset_the_first_are_shown(out: Path) -> None:
    assert write_report(open_store(out), most=2)["shown"] == 2
    assert write_report(open_store(out), most=2)["images"] == 5


def test_a_folder_that_is_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "not a synthgen dataset" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that must not say anything on its console, and has no network."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    opened, said = context.new_page(), []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    yield opened
    context.close()
    assert said == []


def focused(page: Page) -> str:
    found: str = page.evaluate(
        "document.activeElement.id || document.activeElement.getAttribute('aria-label') || ''"
    )
    return found


def test_a_browser_draws_boxes_where_the_labels_say(out: Path, page: Page) -> None:
    write_report(open_store(out))
    page.goto((out / "report.html").as_uri())
    page.wait_for_function("document.querySelectorAll('.tile img').length === 5")
    data = data_of((out / "report.html").read_text())
    rects = page.eval_on_selector_all(
        "#gallery rect",
        "all => all.map(r => ['x', 'y', 'width', 'height'].map(k => +r.getAttribute(k)))",
    )
    assert rects == [b["b"] for p in data["pictures"] for b in p["boxes"]]
    shown, image = (
        page.locator("#gallery rect").first.bounding_box(),
        page.locator("#gallery img").first.bounding_box(),
    )
    assert shown is not None
    assert image is not None
    x, y, width, height = (v * image["width"] / 192 for v in data["pictures"][0]["boxes"][0]["b"])
    edge = 2  # px, half of the line on each side
    assert shown["x"] - image["x"] == pytest.approx(x, abs=edge)
    assert shown["y"] - image["y"] == pytest.approx(y, abs=edge)
    assert (shown["width"], shown["height"]) == pytest.approx((width, height), abs=2 * edge)
    assert page.inner_text("#count") == "5 of 5"
    assert page.locator("figure").count() >= 5


def test_the_keyboard_is_enough(out: Path, page: Page) -> None:
    write_report(open_store(out))
    page.goto((out / "report.html").as_uri())
    page.keyboard.press("b")
    assert not page.is_visible("#gallery svg")
    page.keyboard.press("b")
    order = []
    for _ in range(8):
        page.keyboard.press("Tab")
        order.append(focused(page))
    assert order == [
        "show",
        "sort",
        "category",
        "kind",
        "words",
        "picture 0",
        "picture 1",
        "picture 2",
    ]
    page.keyboard.press("Enter")
    assert page.is_visible("#large")
    assert page.inner_text("#told").startswith("2 ·")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#told").startswith("3 ·")
    page.keyboard.press("Escape")
    assert not page.is_visible("#large")
    page.wait_for_function(
        "document.activeElement.getAttribute('aria-label') === 'picture 3'"
    )  # told when it has closed
    page.focus("#words")
    page.keyboard.type("nothing has these words b")
    assert page.inner_text("#count") == "0 of 5"
    assert page.is_checked("#show")


def test_filters_and_sorting(out: Path, page: Page) -> None:
    write_report(open_store(out))
    page.goto((out / "report.html").as_uri())
    pictures = data_of((out / "report.html").read_text())["pictures"]
    page.select_option("#sort", "worst")

    def badness(p: dict[str, Any]) -> float:
        return (
            min((float(b["s"]) for b in p["boxes"]), default=2.0)
            - int(p["failed"])
            - int(p["unasked"])
        )

    wanted = [f"picture {p['n']}" for p in sorted(pictures, key=badness)]
    assert (
        page.eval_on_selector_all(".tile", "all => all.map(t => t.getAttribute('aria-label'))")
        == wanted
    )
    page.select_option("#kind", "failed")
    assert page.locator(".tile").count() == sum(p["failed"] > 0 for p in pictures)


def test_hostile_names_run_nothing(tmp_path: Path, page: Page) -> None:
    """Every text that comes from a file: name, prompt, category, action, and the job."""
    evil = "</script></pre></title><img src=x onerror=window.hit=1><script>window.hit=1</script>'\"&lt; @NAME@ @JOB@ @DATA@ \u2028"
    out = tmp_path / "out"
    label = Annotation(
        bbox=(1.0, 2.0, 5.5, 6.0),
        category_id=101,
        category=evil,
        phrase=evil,
        area=33.0,
        score=0.4,
        action=evil,
    )
    info = DatasetInfo(evil, 1, {"seed": 0}, {evil: 101}, "png", evil)
    write_info(open_store(out), info, {})
    made = replace(sample(0), prompt=evil, annotations=(label,))
    commit(open_store(out), stage(open_store(out), 0, [made], {}, 0.0, 1))
    (out / "job.yaml").write_text(f"name: {evil}")
    write_report(open_store(out))
    page.goto((out / "report.html").as_uri())
    page.wait_for_function("document.querySelectorAll('.tile img').length === 1")
    page.locator(".tile").first.click()
    assert page.evaluate("window.hit") is None
    assert page.locator("img").count() == 2  # in its tile and large, and none of the names'
    assert page.locator("script").count() == 2
    assert page.text_content("h1") == page.title() == evil
    assert page.text_content("pre") == f"name: {evil}"
    assert evil in str(page.text_content("#told"))
    assert page.locator("#category option").last.get_attribute("value") == evil
    assert page.locator("#boxes td").first.text_content() == evil


@pytest.mark.slow
def test_a_thousand_pictures_are_filled_in_as_they_come_near(job_file: Path, page: Page) -> None:
    small = [
        "images=1000",
        "layout.canvas=[64, 64]",
        "layout.objects={dog: 1}",
        "output.shard_size=500",
        "batch_size=100",
    ]
    assert cli.main(["run", str(job_file), *small]) == 0
    assert write_report(open_store(job_file.parent / "out"))["shown"] == 1000
    page.goto((job_file.parent / "out/report.html").as_uri())
    page.wait_for_selector(".tile img")
    assert page.locator(".tile").count() == 1000
    assert page.locator(".tile img").count() < 120
    page.locator('[aria-label="picture 999"]').scroll_into_view_if_needed()
    page.wait_for_selector('[aria-label="picture 999"] img')
    assert page.locator(".tile img").count() < 300  # those that were jumped over are still empty
