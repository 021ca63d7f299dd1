"""The labelling page in a browser: keyboard, reload, lost connections, several tabs and people, untrusted values."""

import re
import subprocess
import sys
import threading
from base64 import b64decode
from contextlib import contextmanager

import pytest
import uvicorn
from browsing import DESK, PHONE, browser, open_page  # noqa: F401
from labelling_sessions import MANY, NUMBER, FileSession, OrderLabels, text_field
from playwright.sync_api import expect

from mlcycle.errors import InputError
from mlcycle.lifecycle.labelling_page import create_labelling_app
from mlcycle.service.server import bind_socket

EVIL = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>\"'&{{7*7}}"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PHASE = ".labelling[data-phase={}]"


@contextmanager
def served(create, port: int = 0):
    "The address of a labelling page in a thread."
    bound = bind_socket("127.0.0.1", port)
    app = create_labelling_app(create)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    bound.listen()
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def started(open_page, address: str, annotator: str = "anna", **options):  # noqa: F811
    "The page of an annotator, with timers that a test may advance."
    page = open_page(f"{address}/", **options)
    page.clock.install()
    page.goto(f"{address}/?annotator={annotator}")
    return ready(page)


def ready(page):
    page.wait_for_selector(PHASE.format("ready"))
    return page


def on_row(page, n: int):
    "Wait for a row, and until it takes choices."
    expect(page.locator(".lb-rowid")).to_have_text(f"Row {100 + n}")
    page.clock.run_for(300)
    return ready(page)


def kinds(session: FileSession) -> str:
    "First letters of the actions that were saved, and of their labels."
    return " ".join(str(each["label"]) if each["kind"] == "label" else each["kind"] for each in session.lines())


def violations(page) -> list:
    from axe_playwright_python.sync_playwright import Axe

    return [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in Axe().run(page).response["violations"]]


def test_thirty_rows_by_keyboard_with_a_reload_in_the_middle(open_page, tmp_path):  # noqa: F811
    labels = OrderLabels(tmp_path)
    with served(labels.create) as address:
        page = started(open_page, address)
        wanted = []
        for n in range(30):
            on_row(page, n)
            key, action, label = (("1", "label", "Yes"), ("2", "label", "No"), ("s", "skip", None), ("u", "unsure", None))[n % 4]
            if n in (5, 15):
                page.keyboard.press("c")
                page.keyboard.type("1 2 su z")  # Keys of other actions
                if n == 15:
                    page.reload()
                    on_row(page, n)
                    expect(page.get_by_label("Comment", exact=False).first).to_have_value("1 2 su z")
                else:
                    page.keyboard.press("Enter")
            page.keyboard.press(key)
            wanted.append((f"item-{n}", action, label, "1 2 su z" if n in (5, 15) else ""))
            if n == 9:  # A wrong key is taken back
                on_row(page, n + 1)
                page.keyboard.press("z")
                on_row(page, n)
                expect(page.get_by_role("status")).to_have_text("Taken back: No. Next is row 109.")
                page.keyboard.press(key)
        expect(page.locator(".lb-finished")).to_have_text(
            "No row is left for anna: 16 labelled, 7 skipped, 7 unsure. Undo goes back to the last one. "
            "mlcycle label with the source chooses the next rows; mlcycle run uses the labels."
        )
        assert "16 of 30 labelled · 7 skipped · 7 unsure · 0 left" in page.inner_text(".lb-counts")
        page.reload()
        expect(page.locator(".lb-finished")).to_contain_text("No row is left for")
    assert labels.current() == wanted
    history = labels.history()
    assert len(history) == 32, "30 choices, one that was taken back, and the line that takes it back"
    assert history.seconds[history.action != "undo"].between(0.001, 60).all()


def test_two_presses_label_one_row(open_page, tmp_path):  # noqa: F811
    session = FileSession(tmp_path / "labels")
    with served(lambda annotator: session) as address:
        page = started(open_page, address)
        page.keyboard.press("1")
        page.keyboard.press("1")  # While it is saved
        expect(page.locator(".lb-rowid")).to_have_text("Row 101")
        page.keyboard.press("1")  # At once after the row has appeared
        page.get_by_role("button", name="No").click()
        on_row(page, 1)
        page.keyboard.down("2")
        on_row(page, 2)
        for _ in range(5):
            page.keyboard.down("2")  # Held down
        page.keyboard.up("2")
        page.get_by_role("button", name="Yes").dblclick()
        on_row(page, 3)
        page.get_by_role("button", name="No").focus()
        page.keyboard.down("Enter")
        on_row(page, 4)
        page.keyboard.down("Enter")
        page.keyboard.up("Enter")
        assert page.evaluate("document.activeElement.textContent") == "2No", "the focus stays where it was"
        page.clock.run_for(1000)
        assert kinds(session) == "Yes No Yes No"


@pytest.mark.parametrize("lost", ["request", "response", "both"])
def test_a_choice_is_kept_and_saved_once_when_the_connection_is_lost(open_page, tmp_path, lost):  # noqa: F811
    session = FileSession(tmp_path / "labels")
    attempts = []

    def disturb(route):
        attempts.append(route.request.post_data_json["kind"])
        if lost != "request" and attempts.count("label") == 1 and attempts[-1] == "label":
            route.fetch()
            route.abort()
        elif len(attempts) < (4 if lost == "both" else 3):
            route.abort()
        else:
            route.continue_()

    with served(lambda annotator: session) as address:
        page = started(open_page, address)
        page.route("**/api/act*", disturb)
        page.keyboard.press("2")
        page.wait_for_selector(PHASE.format("failed"))
        assert page.inner_text(".lb-failed").startswith(
            "Not saved yet: “No” for row 100. The server of this page does not respond."
        )
        assert page.evaluate("document.activeElement.textContent") == "Try again"
        page.keyboard.press("1")  # The first choice counts until it is discarded
        while "Row 100" in page.inner_text(".lb-rowid"):
            page.clock.run_for(1000)
        on_row(page, 1)
        page.keyboard.press("1")  # The keys work again
        on_row(page, 2)
        assert kinds(session) == "No Yes"
        page.complaints.clear()


@pytest.mark.parametrize("lost", ["request", "response"])
def test_a_choice_survives_a_restart_of_the_server(open_page, tmp_path, lost):  # noqa: F811
    create = lambda annotator: FileSession(tmp_path / "labels")  # noqa: E731
    with served(create) as address:
        page = started(open_page, address)
        page.keyboard.press("1")
        on_row(page, 1)
        if lost == "response":  # It is saved, but the page does not get to know; repetitions of the page are lost too
            page.route("**/api/act*", lambda route: route.abort())
            page.route("**/api/act*", lambda route: (route.fetch(), route.abort()), times=1)
            page.keyboard.press("2")
            page.wait_for_selector(PHASE.format("failed"))
            assert kinds(create("anna")) == "Yes No"
    page.unroute("**/api/act*")
    page.keyboard.press("2")
    page.wait_for_selector(PHASE.format("failed"))
    with served(create, int(address.rpartition(":")[2])):
        page.keyboard.press("Enter")  # Try again
        on_row(page, 2)
        page.keyboard.press("1")
        on_row(page, 3)
        assert kinds(create("anna")) == "Yes No Yes"
    page.complaints.clear()


def test_a_fault_of_the_session_keeps_the_choice_and_an_error_is_shown(open_page, tmp_path):  # noqa: F811
    session = FileSession(tmp_path / "labels")
    with served(lambda annotator: session) as address:
        page = started(open_page, address)
        session.error = OSError("The disk is full.")
        page.keyboard.press("2")
        page.wait_for_selector(PHASE.format("failed"))
        assert "OSError: The disk is full." in page.inner_text(".lb-failed")
        page.get_by_role("button", name="Discard").click()
        page.wait_for_selector(PHASE.format("settling"))
        on_row(page, 0)
        assert kinds(session) == ""
        session.error = InputError("There is no class Yes.")
        page.keyboard.press("1")
        expect(page.get_by_role("status")).to_have_text("There is no class Yes.")
        on_row(page, 0)
        page.keyboard.press("1")
        on_row(page, 1)
        assert kinds(session) == "Yes"
        page.complaints.clear()  # The browser logs the status 500


def test_tabs_of_one_person_and_several_people(open_page, tmp_path):  # noqa: F811
    with served(lambda annotator: FileSession(tmp_path / "labels", annotator=annotator)) as address:
        one, two, ben = (started(open_page, address, name) for name in ("anna", "anna", "ben%20b"))
        one.keyboard.press("1")
        on_row(one, 1)
        two.keyboard.press("2")
        expect(two.get_by_role("status")).to_contain_text("This row was labelled in another window. Nothing was saved.")
        on_row(two, 1)
        two.keyboard.press("z")
        on_row(two, 0)
        two.keyboard.press("2")
        on_row(two, 1)
        ben.keyboard.press("1")
        on_row(ben, 1)
    assert kinds(FileSession(tmp_path / "labels")) == "Yes undo No"
    assert kinds(FileSession(tmp_path / "labels", annotator="ben b")) == "Yes"


def test_numbers_are_typed_and_saved_by_enter(open_page, tmp_path):  # noqa: F811
    session = FileSession(tmp_path / "labels", choices=NUMBER)
    with served(lambda annotator: session) as address:
        page = started(open_page, address)
        status = page.get_by_role("status")
        for text, told in (("", "Enter a number such as 3.5."), ("1,5", "“1,5” is not a number such as 3.5. Nothing is saved."),
                           ("101", "101 is not between 0 and 100.")):  # fmt: skip
            page.keyboard.press("Control+a")
            page.keyboard.type(text)
            page.keyboard.press("Enter")
            expect(status).to_have_text(told)
            page.clock.run_for(300)
            ready(page)
            assert page.input_value("input") == text
        for n, text in enumerate(("12.5", "1e1", "0")):
            page.keyboard.press("Control+a")
            page.keyboard.type(text)
            page.keyboard.press("Enter")
            on_row(page, n + 1)
            assert page.input_value("input") == ""
        page.keyboard.type("s")
        on_row(page, 4)
        page.keyboard.type("7")
        page.keyboard.press("Backspace")
        page.keyboard.press("Backspace")
        page.keyboard.press("z")
        on_row(page, 3)
        page.keyboard.press("z")
        on_row(page, 2)
        assert page.input_value("input") == "0", "what was taken back can be corrected"
        assert kinds(session) == "12.5 10 0 skip undo undo"


def test_keys_leave_the_fields_the_browser_and_the_person_alone(open_page, tmp_path):  # noqa: F811
    session = FileSession(tmp_path / "labels", choices=MANY)
    with served(lambda annotator: session) as address:
        page = started(open_page, address)
        for key in ("Control+1", "Alt+s", "Meta+u", "x", "Escape", "Shift+Tab"):
            page.keyboard.press(key)
        page.keyboard.press("c")
        page.keyboard.type("1szu")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("b")
        page.keyboard.press("Escape")
        page.keyboard.press("b")
        on_row(page, 1)
        assert [(each["label"], each["comment"]) for each in session.lines()] == [(10, "1szu\nb")]
        page.get_by_role("button", name="Comment on it").click()
        page.keyboard.press("Control+a")
        page.keyboard.type("better")
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_text("The comment is saved.")
        on_row(page, 1)
        assert session.current()[-1]["comment"] == "better"
        page.get_by_role("button", name="Key shortcuts").click()
        page.keyboard.press("1")
        page.get_by_role("button", name="Skip").click()
        on_row(page, 2)
        assert kinds(session) == "10 comment skip"
        seen = [page.evaluate("document.activeElement.className")]
        for _ in range(40):  # Tab goes round: there is no trap
            page.keyboard.press("Tab")
            seen.append(page.evaluate("document.activeElement.tagName"))
        assert "BODY" in seen or seen.count("A") > 1


def test_untrusted_values_are_text(open_page, tmp_path):  # noqa: F811
    fields = [text_field(EVIL, EVIL), text_field("link", "javascript:window.hit=1", "link", "javascript:window.hit=1"),
              text_field("data", "data:text/html,<script>1</script>", "link", "data:text/html,<script>1</script>"),
              text_field("image", "javascript:1", "image", "javascript:window.hit=1"),
              text_field("far", "far.png", "image", "https://evil.example/a.png"),
              text_field("good", "https://example.org/?a=1&b=<2>", "link", "https://example.org/?a=1&b=<2>")]  # fmt: skip
    choices = {"kind": "classes", "classes": [{"value": EVIL, "name": EVIL, "key": "1"}]}
    create = lambda annotator: FileSession(tmp_path / "labels", 2, choices, lambda n: fields, annotator)  # noqa: E731
    with served(create) as address:
        page = open_page(f"{address}/")
        page.goto(f"{address}/?annotator=%3Cimg%20src=x%20onerror=alert(1)%3E")
        ready(page).keyboard.press("1")
        expect(page.get_by_role("status")).to_contain_text(f"Saved: {EVIL}")
        assert page.inner_text(".lb-field >> nth=0").count(EVIL) == 2
        links = page.locator(".labelling a")
        assert links.count() == 1
        assert links.get_attribute("href") == "https://example.org/?a=1&b=%3C2%3E"
        assert "noopener" in links.get_attribute("rel")
        assert "javascript:window.hit=1" in page.inner_text(".labelling")
        assert page.query_selector("main img, main script, main [onerror]") is None
        assert page.evaluate("window.hit") is None


class PhotoSession(FileSession):
    "Rows with images that the page serves."

    def image(self, reference: str) -> tuple[bytes, str]:
        if reference != f"{self.annotator}/a b.png":
            raise InputError(f"There is no image {reference}.")
        return b64decode(PIXEL), "image/png"


STOPPED = """
import signal
from mlcycle.lifecycle.labelling_page import serve_labelling
for number in (signal.SIGINT, signal.SIGTERM):
    serve_labelling(print, port=0, started=lambda _: signal.raise_signal(number))
    print(number.name)
"""


def test_a_signal_stops_the_page_as_soon_as_the_address_is_known():
    "In a process of its own: the browser of other tests has the event loop of this one."
    done = subprocess.run([sys.executable, "-c", STOPPED], timeout=60, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "SIGINT\nSIGTERM\n"), done.stderr


def test_images_come_from_the_session_of_the_person(open_page, tmp_path):  # noqa: F811
    fields = [text_field("photo", "a b.png", "image", "/image/anna/a%20b.png"),
              text_field("gone", "c.png", "image", "/image/c.png"),
              text_field("pixel", "one pixel", "image", f"data:image/png;base64,{PIXEL}")]  # fmt: skip
    with served(lambda annotator: PhotoSession(tmp_path / "labels", fields=lambda n: fields, annotator=annotator)) as address:
        page = started(open_page, address)
        expect(page.locator(".lb-image.tiny")).to_have_count(2)
        expect(page.locator(".lb-field >> nth=1")).to_contain_text("The image cannot be shown: c.png")
        assert page.get_by_role("img", name="a b.png").evaluate("image => image.naturalWidth") == 1
        page.complaints.clear()  # The missing image


def kinds_of_fields(n: int) -> list[dict]:
    "Long text, forty columns, each kind."
    fields = [text_field("review", "A long line of text. " * 60 + "\n\nend"), text_field("coupon", "", "missing"),
              text_field("page", "https://example.org/" + "a" * 200, "link", "https://example.org/a"),
              text_field("pixel", "one pixel", "image", f"data:image/png;base64,{PIXEL}"),
              text_field("word", "x" * 300), text_field("when", "2023-03-01 09:00", "date")]  # fmt: skip
    return fields + [text_field("column_with_a_long_name_" * 2 + str(k), f"{k:,}.50", "number") for k in range(34)]


@pytest.mark.parametrize("choices", [MANY, NUMBER], ids=["classes", "number"])
def test_it_is_accessible_and_as_wide_as_the_screen(open_page, tmp_path, choices):  # noqa: F811
    session = FileSession(tmp_path / "labels", choices=choices, fields=kinds_of_fields)
    session.write(kind="skip", item="item-0", comment="x")
    with served(lambda annotator: session) as address:
        page = started(open_page, address, color_scheme="light")
        for size, scheme in ((DESK, "light"), (PHONE, "dark")):
            page.set_viewport_size(size)
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
            assert violations(page) == []
        assert page.eval_on_selector(".lb-field.number dd", "each => getComputedStyle(each).textAlign") == "right"
        low = "all => all.filter(each => each.checkVisibility() && each.offsetHeight < 24).length"
        assert page.eval_on_selector_all(".labelling button", low) == 0
        session.error = OSError("away")
        page.keyboard.press("s")
        page.wait_for_selector(PHASE.format("failed"))
        assert violations(page) == []
        page.emulate_media(color_scheme="light")
        assert violations(page) == []
        page.complaints.clear()


def test_the_name_is_taken_before_anything_is_labelled(open_page, tmp_path):  # noqa: F811
    def create(annotator):
        if annotator == "eve":
            raise InputError("eve is not one of the annotators.")
        session = FileSession(tmp_path / "labels", rows=1, annotator=annotator)
        session.pairs = 1
        return session

    with served(create) as address:
        page = open_page(f"{address}/", color_scheme="dark")
        assert violations(page) == []
        assert page.evaluate("document.activeElement.id") == "annotator"
        page.get_by_label("Your name").fill("eve")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("eve is not one of the annotators.")
        assert violations(page) == []
        page.get_by_label("Your name").fill(" Ana  María ")
        page.keyboard.press("Enter")
        ready(page)
        assert re.search(r"annotator=\+?Ana", page.url)
        expect(page.locator(".lb-quality")).to_contain_text("agreement 0.83 on 1 row labelled twice")
        page.keyboard.press("1")
        expect(page.locator(".lb-finished")).to_contain_text("No row is left for")
        assert violations(page) == []
        page.complaints.clear()  # The status 422 of the first name
    assert kinds(FileSession(tmp_path / "labels", annotator="Ana María")) == "Yes"
