"""README and guide: every command is one that exists, and those of the README are carried out."""

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import click
import httpx
import pytest
from commands import cli
from conftest import QUICK, ROOT
from projects import orders
from typer.main import get_command

import mlcycle as mc
from mlcycle.cli.app import app

PAGES = ["README.md", "docs/guide.md", "docs/index.md", "docs/scheduling.md", "CONTRIBUTING.md", "SECURITY.md"]
WHOLE_LINE, IN_TEXT = r"^(mlcycle [^\n]*)$", r"`(mlcycle [^`]*)`"


def code_blocks(page: str, language: str) -> list[str]:
    "The blocks of a language in a page."
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def commands(page: str) -> list[list[str]]:
    "The words of each command of a page, without comments."
    text = (ROOT / page).read_text()
    blocks = "\n".join(code_blocks(page, "sh"))
    lines = re.findall(WHOLE_LINE, blocks, re.MULTILINE) + re.findall(IN_TEXT, re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [shlex.split(line.replace("\n", " "), comments=True)[1:] for line in lines if "…" not in line]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_exists_and_takes_its_options(page):
    found = commands(page)
    assert found or page not in PAGES[:2]
    for words in found:
        command, context = get_command(app), None
        while isinstance(command, click.Group) and words and words[0] in command.commands:
            context = click.Context(command, parent=context, info_name=words[0])
            command, words = command.commands[words[0]], words[1:]
        if not isinstance(command, click.Group):
            named = [word for word in words if word.upper() != word]  # STAGE, COLUMN: placeholders
            try:
                command.make_context("mlcycle", named or [], parent=context)
            except click.MissingParameter as error:  # The text names the command, not its arguments
                assert not words, f"{page}: mlcycle {words}: {error}"
        else:
            assert not [word for word in words if not word.startswith("-")], f"{page}: {words} is no command"


def test_links_and_pictures_of_the_readme_exist():
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
    for target in code_blocks("README.md", "sh")[0].splitlines():
        words = shlex.split(target, comments=True)
        assert subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True).returncode == 0, target


def test_readme_is_short_and_its_picture_is_drawn_from_code():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
    shown = subprocess.run([sys.executable, ROOT / "docs" / "lifecycle.py", "-"], capture_output=True, text=True, check=True)
    assert shown.stdout == (ROOT / "docs" / "_static" / "lifecycle.svg").read_text()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A folder with the table of the README, and settings that leave little to compute."
    folder = tmp_path_factory.mktemp("readme")
    orders(400).to_csv(folder / "orders.csv", index=False)
    (folder / "settings.ini").write_text("[problem]\ntime = placed\n")
    (folder / "quick.yaml").write_text("\n".join(f"{name}: {value!r}".replace("'", '"') for name, value in QUICK.items()))
    return folder


def test_the_commands_of_the_readme_work(project):
    block = code_blocks("README.md", "sh")[1]
    for line in block.splitlines():
        words = shlex.split(line, comments=True)[1:]
        if words[0] == "serve":
            serve_and_ask(project, words)
            continue
        quick = ["-f", "quick.yaml"] if words[0] == "run" else []
        done = cli(*words, *quick, cwd=project)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    (python,) = code_blocks("README.md", "python")
    assert 'mc.run("orders.csv", target="late")' in python
    run = mc.open("last", project)
    assert run.verdict.decision.startswith("Approved: orders-late version ")
    assert list(run.predict(orders(5)).columns) == ["prediction", "score"]
    assert run.health.action in ("nothing", "investigate", "relabel", "retrain", "roll back")


def serve_and_ask(project: Path, words: list[str]) -> None:
    "Start the service of the README on a free port, ask for its health, send a row and later its actual value."
    command = [Path(sys.executable).with_name("mlcycle"), *words, "--port", "0"]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = next(found[0] for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
            assert httpx.get(f"{address}/health", timeout=30).status_code == 200
            rows = json.loads(orders(1).drop(columns="late").to_json(orient="records"))
            sent = httpx.post(f"{address}/predict", json={"rows": rows, "row_ids": ["order-17"]}, timeout=30)
            known = httpx.post(f"{address}/feedback", json={"actuals": ["Yes"], "row_ids": ["order-17"]}, timeout=30)
            assert (sent.status_code, known.status_code) == (200, 200), sent.text + known.text
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
