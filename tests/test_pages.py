"""The pages of a run in a real browser: they show, they lead on, they load nothing from elsewhere."""

import os
import shutil

import pytest

from mlcycle.lifecycle.report import TITLES, page_name

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    "A headless Chromium of the system."
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is missing. make system installs it.")
        pytest.skip("Chromium is missing. As root on Debian, make system installs it.")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    "A page that remembers complaints and requests that leave the file system."
    page = browser.new_page()
    page.complaints = []
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda r: page.complaints.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
    yield page
    assert page.complaints == []
    page.close()


def test_from_the_index_through_the_seven_stages(page, table_run):
    run = table_run("cancer")
    page.goto((run.workspace.reports / "index.html").as_uri())
    assert page.locator("summary .good").inner_text() == "approved"
    page.get_by_role("link", name="Problem").click()
    for stage, title in TITLES.items():
        assert page.url.endswith(page_name(stage))
        assert page.locator("h1").inner_text() == title
        assert page.locator("[role=status]").inner_text() == run.outcome(stage).decision
        following = page.locator("nav [aria-current] + a")
        if following.count():
            following.click()
    page.get_by_role("link", name="All runs").click()
    assert page.locator("h1").inner_text() == "Runs"


@pytest.mark.parametrize("stage", TITLES)
def test_a_page_shows_results_and_no_code(page, table_run, stage):
    run = table_run("cancer")
    path = run.workspace.reports / run.id / page_name(stage)
    page.goto(path.as_uri())
    text = page.locator("main").inner_text()
    assert "import pandas" not in text
    assert "<Axes" not in text
    assert "Text(" not in text
    assert "Warning" not in text
    assert page.locator("table, img, pre").count() > 0
    for image in page.locator("img").all():
        assert image.evaluate("picture => picture.complete && picture.naturalWidth > 100")
    page.locator("summary", has_text="How this was run").click()
    for link in page.locator("details a").all():
        assert (path.parent / link.get_attribute("href")).is_file()


def test_readable_on_a_phone(page, table_run):
    run = table_run("cancer")
    page.set_viewport_size({"width": 390, "height": 800})
    for stage in TITLES:
        page.goto((run.workspace.reports / run.id / page_name(stage)).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, stage
