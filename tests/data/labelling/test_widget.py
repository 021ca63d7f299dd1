"""The labelling widget: its script in a page with the widget itself behind it, and in JupyterLab."""

import json
import os
import socket
import subprocess
import sys
from base64 import b64encode
from contextlib import suppress

import httpx
import nbformat
import pytest
from browsing import browser, open_page  # noqa: F401
from labelling_sessions import FileSession, OrderLabels
from load import wait_until
from playwright.sync_api import expect

from mlcycle.data.labelling.widget import LabellingWidget
from mlcycle.errors import InputError

MODEL = """
<!DOCTYPE html><html lang="en"><head><title>Notebook</title></head><body data-jp-theme-light="true"><main><h1>Notebook</h1>
<button id="before">Run</button><div id="output"></div><input id="cell" aria-label="Cell"></main></body></html>
"""
START = """async ([state, style, script]) => {
  const sheet = document.createElement("style");
  sheet.textContent = style;
  document.head.append(sheet);
  window.reached = []; // Keys that the shortcuts of the notebook would see
  document.addEventListener("keydown", (event) => reached.push(event.key));
  const listeners = {};
  const model = {
    get: () => state,
    on: (event, act) => (listeners[event] = act),
    off: (event) => delete listeners[event],
    send: (action) => {
      kernel(action).then(([next, messages]) => {
        for (const message of messages) listeners["msg:custom"]?.(message);
        if (JSON.stringify(next) !== JSON.stringify(state)) [state] = [next], listeners["change:state"]?.();
      });
    },
  };
  window.listeners = listeners;
  const module = await import(`data:text/javascript;base64,${script}`);
  window.close_view = module.default.render({ model, el: document.getElementById("output") });
}"""


def shown(open_page, widget: LabellingWidget):  # noqa: F811
    "A page that shows a widget, whose messages go to it."

    def kernel(action: dict) -> list:
        messages: list[dict] = []
        widget.send = messages.append
        with suppress(OSError):  # It reaches the log of the kernel
            widget._receive(widget, action, [])
        return [widget.state, messages]

    page = open_page("about:blank")
    page.clock.install()
    page.set_content(MODEL)
    page.expose_function("kernel", kernel)
    page.evaluate(START, [widget.state, widget._css, b64encode(widget._esm.encode()).decode()])
    return ready(page)


def ready(page):
    page.wait_for_selector(".labelling[data-phase=ready]")
    return page


def on_row(page, n: int):
    "Wait for a row, and until it takes choices."
    expect(page.locator(".lb-rowid")).to_have_text(f"Row {100 + n}")
    page.clock.run_for(300)
    return ready(page)


def test_keys_label_inside_the_widget_and_do_not_reach_the_notebook(open_page, tmp_path):  # noqa: F811
    session = FileSession(tmp_path / "labels")
    page = shown(open_page, LabellingWidget(session))
    page.keyboard.press("1")
    page.click("#cell")
    page.keyboard.type("12s")
    assert session.lines() == []
    assert page.input_value("#cell") == "12s"
    page.evaluate("reached.length = 0")
    page.click(".lb-rowid")
    page.keyboard.press("1")
    on_row(page, 1)
    for key in ("x", "d", "ArrowDown", "Enter", "Control+s", "Escape"):
        page.keyboard.press(key)
    page.keyboard.press("c")
    page.keyboard.type("why?")
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    on_row(page, 2)
    assert page.evaluate("reached") == ["Control", "s", "Escape"]
    assert [(each["kind"], each["comment"]) for each in session.lines()] == [("label", ""), ("skip", "why?")]
    page.focus("#before")
    stops = []
    while "cell" not in stops:
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        assert len(stops) < 20, stops
    assert stops[0] == "lb-row"
    page.evaluate("close_view()")
    assert page.inner_html("#output") == ""
    assert page.evaluate("Object.keys(listeners)") == []


def test_thirty_rows_by_keyboard_with_a_new_widget_in_the_middle(open_page, tmp_path):  # noqa: F811
    wanted, labels = [], OrderLabels(tmp_path)
    for rows in (range(15), range(15, 30)):
        page = shown(open_page, LabellingWidget(labels.create("anna")))  # As after a restart of the kernel
        page.focus("#before")
        page.keyboard.press("Tab")
        for n in rows:
            on_row(page, n)
            page.keyboard.press("12su"[n % 4])
            wanted.append((f"item-{n}", ("label", "label", "skip", "unsure")[n % 4], ("Yes", "No", None, None)[n % 4], ""))
        expect(page.locator(".lb-counts")).to_contain_text(f"{30 - len(wanted)} left")
    expect(page.locator(".lb-finished")).to_contain_text("No row is left for")
    assert labels.current() == wanted
    page.clock.run_for(300)
    page.get_by_role("button", name="Undo").click()
    on_row(page, 29)
    assert page.evaluate("document.activeElement.textContent") == "ZUndo"


def test_a_fault_keeps_the_choice_and_an_error_is_shown(open_page, tmp_path):  # noqa: F811
    session = FileSession(tmp_path / "labels")
    page = shown(open_page, LabellingWidget(session))
    page.click(".lb-rowid")
    session.error = OSError("The store is away.")
    page.keyboard.press("2")
    page.wait_for_selector(".labelling[data-phase=failed]")
    assert "OSError: The store is away." in page.inner_text(".lb-failed")
    page.keyboard.press("Enter")  # Try again
    on_row(page, 1)
    session.error = InputError("There is no class Yes.")
    page.keyboard.press("1")
    expect(page.get_by_role("status")).to_have_text("There is no class Yes.")
    assert [each["label"] for each in session.lines()] == ["No"]


def test_it_follows_the_theme_of_jupyterlab_and_is_accessible(open_page, tmp_path):  # noqa: F811
    from axe_playwright_python.sync_playwright import Axe

    page = shown(open_page, LabellingWidget(FileSession(tmp_path / "labels")))
    colours = []
    for light in ("true", "false"):
        page.emulate_media(color_scheme="dark" if light == "true" else "light")  # That of JupyterLab counts
        page.evaluate(f"document.body.dataset.jpThemeLight = '{light}'")
        colours.append(page.eval_on_selector(".labelling", "each => getComputedStyle(each).backgroundColor"))
        found = Axe().run(page).response["violations"]
        assert not found, [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found]
    assert colours == ["rgb(255, 255, 255)", "rgb(18, 23, 30)"]


TOKEN = "secret-of-a-test"


def is_up(address: str) -> bool:
    "Whether a server responds."
    try:
        return httpx.get(address).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def jupyterlab(tmp_path):
    "The address of a JupyterLab on a folder."
    pytest.importorskip("jupyterlab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    folders = {"JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "spaces")}
    folders |= {f"JUPYTER_{name}_DIR": str(tmp_path / name.lower()) for name in ("CONFIG", "RUNTIME")}
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += [f"--ServerApp.root_dir={tmp_path / 'work'}", f"--IdentityProvider.token={TOKEN}", "--allow-root"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | folders, stdout=log, stderr=log, cwd=tmp_path / "work")
    try:
        wait_until(lambda: is_up(f"http://127.0.0.1:{port}/api") or server.poll() is not None)
        assert server.poll() is None, (tmp_path / "log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


CELL = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from labelling_sessions import FileSession
from mlcycle.data.labelling.widget import LabellingWidget
LabellingWidget(FileSession(Path("labels")))
"""


def execute_cell(page) -> None:
    "Execute the first cell, and wait for the widget."
    page.get_by_text("| Idle").wait_for(timeout=60_000)  # Else the kernel is not connected, and nothing is executed
    page.locator(".jp-CodeCell .cm-content").first.click(timeout=60_000)
    page.keyboard.press("Shift+Enter")
    page.wait_for_selector(".labelling[data-phase=ready]", timeout=60_000)
    page.click(".lb-rowid")


def press_in_turn(page, first: int, keys: str) -> None:
    "Press a key for each row, from a given one on."
    for n, key in enumerate(keys, first):
        expect(page.locator(".lb-rowid")).to_have_text(f"Row {100 + n}")
        ready(page)
        page.keyboard.press(key)
    expect(page.locator(".lb-rowid")).to_have_text(f"Row {100 + first + len(keys)}")


def test_labels_survive_a_reload_of_jupyterlab_and_a_new_kernel(browser, jupyterlab, tmp_path):  # noqa: F811
    cell = nbformat.v4.new_code_cell(CELL.format(tests=os.path.dirname(sys.modules["labelling_sessions"].__file__)).strip())
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    nbformat.write(notebook, tmp_path / "work" / "label.ipynb")
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(f"{jupyterlab}/lab/tree/label.ipynb?token={TOKEN}", wait_until="domcontentloaded")
    execute_cell(page)
    cells = page.locator(".jp-Notebook .jp-Cell").count()
    press_in_turn(page, 0, "12s")
    for key in "dda":  # Shortcuts of the notebook: delete a cell, insert one
        page.keyboard.press(key)
    expect(page.locator(".jp-Notebook .jp-Cell")).to_have_count(cells)
    assert page.locator(".jp-MarkdownCell").count() == 0, "1 did not become a heading"
    with httpx.Client(base_url=f"{jupyterlab}/api", headers={"Authorization": f"token {TOKEN}"}) as client:
        (kernel,) = client.get("/kernels").json()
        client.delete(f"/kernels/{kernel['id']}").raise_for_status()
    page.reload(wait_until="domcontentloaded")
    execute_cell(page)
    press_in_turn(page, 3, "21")
    page.close()
    saved = [json.loads(line) for line in (tmp_path / "work" / "labels").read_text().splitlines()]
    assert [(each["item"], each.get("label", each["kind"])) for each in saved] == [
        ("item-0", "Yes"), ("item-1", "No"), ("item-2", "skip"), ("item-3", "No"), ("item-4", "Yes")]  # fmt: skip
