"""The report in headless Chromium: it loads without errors, every control works, and axe-core finds no serious violation."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from analysis_fixture import make_rows, write_tables
from cohort_fixture import add_cohort
from playwright.sync_api import Browser, Error, Locator, Page, sync_playwright

import analysis.report.write as report_module
from analysis.report.figures import Figures
from analysis.report.write import write_report

pytestmark = pytest.mark.slow

AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
LONG = "private_adam_eps8_clip1_lr0.001_batch4096_aug16_ema0.9999_" * 2
"""A label without a place to break it."""
HEIGHTS = "all => all.map((one) => one.getBoundingClientRect().height)"
OPTIONS = ["--no-sandbox", "--disable-gpu"]


def start(chromium: Any) -> Browser:
    """Playwright's own Chromium or that of the system, or a fresh one; the test is skipped where there is none."""
    system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if system is not None:
        return chromium.launch(executable_path=system, args=OPTIONS)
    try:
        return chromium.launch(args=OPTIONS)
    except Error:
        install = [sys.executable, "-m", "playwright", "install", "chromium"]
        try:
            subprocess.run(install, check=True, timeout=180, capture_output=True)
            return chromium.launch(args=OPTIONS)
        except (subprocess.SubprocessError, OSError, Error) as error:
            pytest.skip(f"there is no Chromium, and Playwright cannot install one: {error}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = start(playwright.chromium)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets and two splits, with pictures of exposed examples."""
    rows = make_rows(
        datasets=("digits", "mnist"),
        defenses=("baseline", "dp_eps2", "dp_eps8", "l2", "dropout", "<b>odd</b>", LONG),
        seeds=range(8),
        parts={"main": "coins", "pairs": "coin_pairs"},
        n=40,
    )
    for part, split in (("main", "coins"), ("pairs", "coin_pairs")):
        chosen = {name: [] for name in rows} | {"trials": [row for row in rows["trials"] if row["split"] == split]}
        add_cohort(chosen, "lira", mark=part)
        for name in ("comparisons", "cohorts", "attacks", "scores", "exposure"):
            rows[name] += chosen[name]
    with pytest.MonkeyPatch.context() as patch:
        empty = Figures(tradeoffs={}, general=(), of_studies=())
        patch.setattr(report_module, "write_figures", lambda *_: empty)
        return write_report(write_tables(tmp_path_factory.mktemp("browser"), rows))


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The report at 1280 px, as it is opened from a disk. Afterwards, nothing may have been logged or fetched."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    opened = context.new_page()
    problems: list[str] = []
    opened.on(
        "console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None
    )
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on(
        "request",
        lambda request: problems.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
    )
    opened.goto(report.as_uri())
    opened.wait_for_selector(".chart.tradeoff svg")
    yield opened
    assert problems == []
    context.close()


def serious_violations(page: Page) -> list[tuple[str, list[str]]]:
    """What axe-core calls serious or critical, with some of the elements."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    return [
        (one["id"], [node["html"][:200] for node in one["nodes"][:3]])
        for one in page.evaluate("axe.run()")["violations"]
        if one["impact"] in ("serious", "critical")
    ]


def shown(page: Page) -> Locator:
    """The panel that is shown."""
    return page.locator("section.panel:visible")


def rows_of(page: Page) -> list[str]:
    return shown(page).locator("table.arms tbody tr:visible .pick").all_text_contents()


def test_the_first_screen_has_the_answer_the_picture_and_the_table(page: Page) -> None:
    verdicts = page.locator(".verdicts button")
    assert verdicts.count() == 4
    assert all("within 2 points of the best accuracy" in text for text in verdicts.all_text_contents())
    assert shown(page).count() == 1
    for found in (
        page.locator(".verdicts"),
        shown(page).locator(".chart.tradeoff svg"),
        shown(page).locator("table.arms"),
    ):
        box = found.bounding_box()
        assert box is not None
        assert box["y"] < 500, "it begins on the first screen"
    assert len(rows_of(page)) == 7
    assert "<b>odd</b>" in rows_of(page), "a label is text"


def test_dataset_split_metric_utility_and_scale_are_chosen(page: Page) -> None:
    first = shown(page).get_attribute("id")
    page.select_option("#dataset", label="MNIST")
    assert shown(page).get_attribute("aria-label") == "MNIST (coin_pairs split)"
    page.select_option("#setting", label="coins split")
    assert shown(page).get_attribute("aria-label") == "MNIST (coins split)"
    page.locator(".verdicts button").first.click()
    assert shown(page).get_attribute("id") == first
    axis = ".chart.tradeoff svg [aria-roledescription=axis]"
    assert page.locator("#scale").is_disabled(), "an AUC has no logarithmic scale"
    page.select_option("#metric", label="TPR at 10 % FPR, a threshold per target")
    page.wait_for_function(
        f"document.querySelector('.panel:not([hidden]) {axis}').getAttribute('aria-label').includes('TPR at 10')"
    )
    for scale in ("log", "linear"):
        page.select_option("#scale", scale)
        page.wait_for_function(
            f"document.querySelector('.panel:not([hidden]) {axis}').getAttribute('aria-label').includes('{scale} scale')"
        )
    page.select_option("#utility", "time")
    labels = f"[...document.querySelectorAll('.panel:not([hidden]) {axis}')].map(one => one.getAttribute('aria-label'))"
    page.wait_for_function(f"{labels}.some(text => text.includes('Training time'))")


def test_an_arm_is_highlighted_everywhere_and_drilled_into(page: Page) -> None:
    row = shown(page).locator("tr[data-arm=dp_eps8]")
    row.locator(".pick").focus()
    page.keyboard.press("Enter")
    assert "picked" in str(row.get_attribute("class"))
    assert page.locator("#drill h3").inner_text() == f"DP ε=8, {shown(page).get_attribute('aria-label')}"
    assert page.locator("#drill .seeds tbody tr").count() == 8
    assert page.locator("#drill .examples img").count() > 0
    assert page.locator("#curves .legend button[aria-pressed=true]").inner_text() == "DP ε=8"
    page.wait_for_function(
        "[...document.querySelectorAll('.names text')].some(one => one.getAttribute('font-weight') === 'bold')"
    )
    page.keyboard.press("Escape")
    assert not page.locator("#drill").is_visible()
    assert page.locator("tr.picked").count() == 0
    mark = shown(page).locator(".chart.tradeoff svg .points path").first
    mark.click()
    assert page.locator("#drill").is_visible()
    assert shown(page).locator("tr.picked").count() == 1


def test_marks_show_their_numbers_when_hovered(page: Page) -> None:
    shown(page).locator(".chart.tradeoff svg .points path").first.hover()
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    for word in ("Arm", "AUC of LiRA", "Test accuracy", "Training time", "ε proved"):
        assert word in tooltip.inner_text()


def test_tables_are_sorted_and_filtered(page: Page) -> None:
    table = shown(page).locator("table.arms")

    def values(column: int) -> list[float]:
        cells = table.locator(f"tbody tr td:nth-child({column + 1})")
        return [float(value) for value in cells.evaluate_all("all => all.map(one => one.dataset.v)") if value]

    header = table.locator("thead th").nth(1)
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert values(1) == sorted(values(1))
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert values(1) == sorted(values(1), reverse=True)
    table.locator("thead th button").first.click()
    assert rows_of(page) == sorted(rows_of(page), key=str.lower)
    field = shown(page).get_by_role("searchbox").first
    field.fill("dp leaks")
    assert set(rows_of(page)) == {"DP ε=2", "DP ε=8"}
    field.fill("")
    assert len(rows_of(page)) == 7


def test_a_table_is_copied_as_it_stands(page: Page) -> None:
    tools = shown(page).locator(".tools").first
    shown(page).get_by_role("searchbox").first.fill("dp")
    copied = {}
    for name in ("CSV", "Markdown", "LaTeX"):
        tools.get_by_role("button", name=name).click()
        tools.get_by_text(f"{name} copied").wait_for()
        copied[name] = page.evaluate("navigator.clipboard.readText()")
    head, *rows = csv.reader(io.StringIO(copied["CSV"]))
    assert [row[0] for row in rows] == ["DP ε=2", "DP ε=8"]
    auc = rows[0][head.index("AUC")]
    assert "[" in auc and auc in copied["Markdown"] and auc in copied["LaTeX"]
    assert copied["Markdown"].splitlines()[1].startswith("| --- |")
    assert r"DP $\varepsilon$=2 & " in copied["LaTeX"]
    assert copied["LaTeX"].count(r"\\") == 3


def test_names_in_the_chart_do_not_collide(page: Page) -> None:
    boxes = (
        shown(page)
        .locator(".chart.tradeoff svg .names text")
        .evaluate_all(
            """all => all.filter(one => Number(getComputedStyle(one).opacity) > 0)
                      .map(one => { const box = one.getBoundingClientRect(); return [box.left, box.right, box.top, box.bottom] })"""
        )
    )
    assert len(boxes) >= 3
    for place, (left, right, top, bottom) in enumerate(boxes):
        for other in boxes[:place]:
            assert right <= other[0] + 1 or other[1] <= left + 1 or bottom <= other[2] + 1 or other[3] <= top + 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_violation(page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    shown(page).locator(".pick").first.click()
    page.wait_for_timeout(300)
    assert serious_violations(page) == []


def test_a_narrow_page_scrolls_in_its_tables_alone(page: Page) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_function("document.querySelector('.panel:not([hidden]) .chart.tradeoff svg').clientWidth <= 380")
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    shown(page).locator(".pick").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    widths = shown(page).locator(".arms tbody th").evaluate_all("all => all.map((one) => one.clientWidth)")
    assert max(widths) < 200  # the first column stays in sight, and numbers must fit beside it


def test_a_chosen_arm_stays_chosen_on_another_dataset(page: Page) -> None:
    shown(page).locator(".pick").first.click()
    name = shown(page).locator("tr.picked .pick").inner_text()
    page.locator("#dataset").select_option(index=1)
    page.wait_for_timeout(500)
    assert shown(page).locator("tr.picked .pick").inner_text() == name


def test_without_scripts_and_on_paper_everything_is_there(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(report.as_uri())
    assert plain.locator("section.panel:visible").count() == 4
    assert min(plain.locator("h2.verdict-line").evaluate_all(HEIGHTS)) > 10
    assert not plain.locator(".controls").is_visible()
    assert not plain.locator("#drill").is_visible()
    context.close()
    context = browser.new_context()
    paper = context.new_page()
    paper.goto(report.as_uri())
    paper.wait_for_selector(".chart.tradeoff svg")
    paper.emulate_media(media="print")
    assert paper.locator("section.panel:visible").count() == 4
    assert min(paper.locator("h2.verdict-line").evaluate_all(HEIGHTS)) > 10
    assert min(paper.locator(".arms .unseen").evaluate_all(HEIGHTS)) > 5
    assert not paper.locator(".tools").first.is_visible()
    context.close()


def test_the_page_stays_small(report: Path) -> None:
    assert report.stat().st_size < 3e6
