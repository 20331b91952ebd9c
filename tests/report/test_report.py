"""The report: one page that opens from disk, and escapes all text of the dataset."""

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

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
HOSTILE = "</script><img src=x onerror=alert(1)> <!-- @DATA@ @JOB@"


def read_data(page: str) -> dict[str, Any]:
    """Return the data that the page holds for its script."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert match is not None
    data: dict[str, Any] = json.loads(match[1])
    return data


@pytest.fixture
def out(job_file: Path) -> Path:
    """The folder of a dataset of five verified images, whose prompts hold HTML."""
    overrides = [
        "layout.canvas=[192, 128]",
        "layout.size=[40, 56]",
        "layout.objects={dog: 3}",
        "images=5",
        "verify=detector",
    ]
    assert cli.main(["run", str(job_file), *overrides, f"scene.background='{HOSTILE}'"]) == 0
    return job_file.parent / "out"


def test_the_page_holds_every_sample(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.main(["report", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    path = out / "report.html"
    page = path.read_text()
    assert printed == {"path": str(path), "images": 5, "shown": 5, "bytes": len(page)}
    data = read_data(page)
    assert [p["n"] for p in data["pictures"]] == list(range(5))
    coco = json.loads((out / "annotations/instances.json").read_text())
    boxes = [box["b"] for p in data["pictures"] for box in p["boxes"]]
    for box, annotation in zip(boxes, coco["annotations"], strict=True):
        assert box == pytest.approx(annotation["bbox"], abs=0.06)
    assert {"failed", "unasked", "repairs"} <= set(data["pictures"][0])
    image = Image.open(io.BytesIO(base64.b64decode(data["pictures"][0]["src"])))
    assert image.size == (192, 128)
    assert sum(shard["count"] for shard in data["shards"]) == 5


def test_the_page_loads_nothing_and_prompts_are_text(out: Path) -> None:
    write_report(open_store(out))
    page = (out / "report.html").read_text()
    assert read_data(page)["pictures"][0]["p"].endswith(HOSTILE)
    without_namespace = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", without_namespace)
    assert "<img src=x" not in page


def test_only_the_first_images_of_a_large_dataset_are_shown(out: Path) -> None:
    assert write_report(open_store(out), most=2)["shown"] == 2
    assert write_report(open_store(out), most=2)["images"] == 5


def test_a_folder_without_a_dataset_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "not a synthgen dataset" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page without network; the test fails if it writes anything to its console."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    messages: list[str] = []
    opened = context.new_page()
    opened.on("console", lambda message: messages.append(message.text))
    opened.on("pageerror", lambda error: messages.append(str(error)))
    yield opened
    context.close()
    assert messages == []


def find_focus(page: Page) -> str:
    """Return the id or label of the element that has the focus."""
    name: str = page.evaluate(
        "document.activeElement.id || document.activeElement.getAttribute('aria-label') || ''"
    )
    return name


def test_a_browser_draws_boxes_at_the_labels(out: Path, page: Page) -> None:
    write_report(open_store(out))
    page.goto((out / "report.html").as_uri())
    page.wait_for_function("document.querySelectorAll('.tile img').length === 5")
    data = read_data((out / "report.html").read_text())
    rects = page.eval_on_selector_all(
        "#gallery rect",
        "all => all.map(r => ['x', 'y', 'width', 'height'].map(k => +r.getAttribute(k)))",
    )
    assert rects == [b["b"] for p in data["pictures"] for b in p["boxes"]]
    rect = page.locator("#gallery rect").first.bounding_box()
    image = page.locator("#gallery img").first.bounding_box()
    assert rect is not None
    assert image is not None
    x, y, width, height = (v * image["width"] / 192 for v in data["pictures"][0]["boxes"][0]["b"])
    edge = 2  # px, for half of the line on each side
    assert rect["x"] - image["x"] == pytest.approx(x, abs=edge)
    assert rect["y"] - image["y"] == pytest.approx(y, abs=edge)
    assert (rect["width"], rect["height"]) == pytest.approx((width, height), abs=2 * edge)
    assert page.inner_text("#count") == "5 of 5"
    assert page.locator("figure").count() >= 5


def test_the_page_can_be_used_with_the_keyboard(out: Path, page: Page) -> None:
    write_report(open_store(out))
    page.goto((out / "report.html").as_uri())
    page.keyboard.press("b")
    assert not page.is_visible("#gallery svg")
    page.keyboard.press("b")
    order = []
    for _ in range(8):
        page.keyboard.press("Tab")
        order.append(find_focus(page))
    assert order == [
        "show",
        "sort",
        "category",
        "kind",
        "words",
        "image 0",
        "image 1",
        "image 2",
    ]
    page.keyboard.press("Enter")
    assert page.is_visible("#large")
    assert page.inner_text("#details").startswith("2 ·")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#details").startswith("3 ·")
    page.keyboard.press("Escape")
    assert not page.is_visible("#large")
    # The focus moves after the dialog has closed.
    page.wait_for_function("document.activeElement.getAttribute('aria-label') === 'image 3'")
    page.focus("#words")
    page.keyboard.type("nothing has these words b")
    assert page.inner_text("#count") == "0 of 5"
    assert page.is_checked("#show")


def test_images_are_filtered_and_sorted(out: Path, page: Page) -> None:
    write_report(open_store(out))
    page.goto((out / "report.html").as_uri())
    pictures = read_data((out / "report.html").read_text())["pictures"]
    page.select_option("#sort", "worst")

    def quality(p: dict[str, Any]) -> float:
        lowest = min((float(b["s"]) for b in p["boxes"]), default=2.0)
        return lowest - int(p["failed"]) - int(p["unasked"])

    wanted = [f"image {p['n']}" for p in sorted(pictures, key=quality)]
    get_labels = "all => all.map(t => t.getAttribute('aria-label'))"
    assert page.eval_on_selector_all(".tile", get_labels) == wanted
    page.select_option("#kind", "failed")
    assert page.locator(".tile").count() == sum(p["failed"] > 0 for p in pictures)


def test_html_in_names_is_shown_as_text(tmp_path: Path, page: Page) -> None:
    """This holds for every text from a file: name, prompt, category, action and job."""
    evil = (
        "</script></pre></title><img src=x onerror=window.hit=1><script>window.hit=1</script>"
        "'\"&lt; @NAME@ @JOB@ @DATA@ \u2028"
    )
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
    hostile = replace(sample(0), prompt=evil, annotations=(label,))
    commit(open_store(out), stage(open_store(out), 0, [hostile], {}, 0.0, 1))
    (out / "job.yaml").write_text(f"name: {evil}")
    write_report(open_store(out))
    page.goto((out / "report.html").as_uri())
    page.wait_for_function("document.querySelectorAll('.tile img').length === 1")
    page.locator(".tile").first.click()
    assert page.evaluate("window.hit") is None
    assert page.locator("img").count() == 2  # in its tile and in the dialog; the names add none
    assert page.locator("script").count() == 2
    assert page.text_content("h1") == page.title() == evil
    assert page.text_content("pre") == f"name: {evil}"
    assert evil in str(page.text_content("#details"))
    assert page.locator("#category option").last.get_attribute("value") == evil
    assert page.locator("#boxes td").first.text_content() == evil


@pytest.mark.slow
def test_tiles_are_filled_when_they_come_near_the_window(job_file: Path, page: Page) -> None:
    overrides = [
        "images=1000",
        "layout.canvas=[64, 64]",
        "layout.objects={dog: 1}",
        "output.shard_size=500",
        "batch_size=100",
    ]
    assert cli.main(["run", str(job_file), *overrides]) == 0
    assert write_report(open_store(job_file.parent / "out"))["shown"] == 1000
    page.goto((job_file.parent / "out/report.html").as_uri())
    page.wait_for_selector(".tile img")
    assert page.locator(".tile").count() == 1000
    assert page.locator(".tile img").count() < 120
    page.locator('[aria-label="image 999"]').scroll_into_view_if_needed()
    page.wait_for_selector('[aria-label="image 999"] img')
    assert page.locator(".tile img").count() < 300  # the tiles between are still empty
