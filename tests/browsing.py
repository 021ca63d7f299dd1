"""A browser for tests of pages."""

import os
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE, DESK = {"width": 390, "height": 800}, {"width": 1300, "height": 900}


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
def open_page(browser):
    "Opens a page that remembers complaints, and requests that leave the file system or the server that it is from."
    pages = []

    def opened(address, **options):
        page = browser.new_page(**({"viewport": DESK} | options))
        page.complaints = []
        own = "/".join(address.split("/")[:3]) + "/" if address.startswith("http:") else "file:"
        page.on("console", lambda message: page.complaints.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda r: page.complaints.append(r.url) if not r.url.startswith((own, "data:")) else None)
        pages.append(page)
        page.goto(address)
        return page

    yield opened
    for page in pages:
        assert page.complaints == []
        page.close()
