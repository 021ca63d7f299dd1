"""`mlcycle nb`: a notebook of one's own through the same machinery as a stage."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import cli
from projects import processes_in

KERNEL = {"name": "python3", "language": "python", "display_name": "python3"}
UNTYPED = "alpha = 0.1  # Rate\nnames = ['a', 'b']\nuntil = None\nlimit: int = None\nimport os\nhome = os.getcwd()"
TYPED = "times: int = 1  # How often\nname: str = 'a'  # Who\nloud: bool = False  # Whether to shout\nwhere: list = []  # Places"


def write(path: Path, *cells: str, kernel: dict | None = KERNEL) -> Path:
    "A notebook; a cell that begins like a heading is prose, one that holds only annotations is the parameters cell."
    made = []
    for number, source in enumerate(cells):
        cell = {
            "id": f"cell-{number}",
            "source": source,
            "metadata": {"tags": ["parameters"]} if source in (TYPED, UNTYPED) else {},
        }
        code = {"cell_type": "code", "execution_count": None, "outputs": []}
        made.append(cell | ({"cell_type": "markdown"} if source.startswith("#") else code))
    metadata = {"kernelspec": kernel} if kernel else {}
    path.write_text(json.dumps({"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    return path


def page_in(printed: str) -> Path:
    "The page that the command line names."
    return Path(printed.split("age: ", 1)[1].splitlines()[0].strip())


def printed_by(page: Path) -> str:
    "What the cells of an executed notebook printed."
    cells = json.loads(page.with_suffix(".ipynb").read_text())["cells"]
    return "".join("".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", []))


def test_parameters_have_types(tmp_path):
    write(tmp_path / "typed.ipynb", "# Typed", TYPED, "print((times, name, loud, where))")
    words = ["-p", "times=3", "-p", "name=007", "-p", "loud=true", "-p", "where=x, y"]
    done = cli("nb", "typed.ipynb", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = page_in(done.stdout)
    assert printed_by(page) == "(3, '007', True, ['x', 'y'])\n"
    text = page.read_text()
    for said in ("times = 3", "name = 007", "loud = yes"):
        assert said in text
    assert 'outputs": []' in (tmp_path / "typed.ipynb").read_text(), "the notebook itself is not touched"


def test_a_notebook_without_parameters_or_kernel(tmp_path):
    write(tmp_path / "plain.ipynb", "# Plain", "print('as it is')", kernel=None)
    done = cli("nb", "plain.ipynb", "-q", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert printed_by(page_in(done.stdout)) == "as it is\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["typed.ipynb", "-p", "time=3"], "Did you mean 'times'?"),
        (["typed.ipynb", "-p", "times=often"], "Its type is int"),
        (["plain.ipynb", "-p", "times=3"], "has no parameters"),
        (["none.ipynb"], "does not exist"),
        (["untyped.ipynb", "-p", "alpha=much"], "Its type is float"),
        (["untyped.ipynb", "-p", "limit=1.5"], "Its type is int | None"),
        (["untyped.ipynb", "-p", "names=[1]"], "Its type is list[str]"),
        (["untyped.ipynb", "--cwd", "nowhere"], "The folder 'nowhere' does not exist."),
        (["r.ipynb"], "is written in R.\n  The engine 'warm' executes Python.\n  Set 'name = nbclient' in [engine]"),
        (["own/r.ipynb", "--project", "own"], "The kernel 'ir' of the notebook 'own/r.ipynb' is not installed."),
        (["text.txt"], "cannot be read"),
    ],
)
def test_what_cannot_run_is_said_before_anything_runs(words, said, tmp_path):
    write(tmp_path / "typed.ipynb", TYPED)
    write(tmp_path / "untyped.ipynb", UNTYPED)
    write(tmp_path / "plain.ipynb", "1 + 1")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "settings.ini").write_text("[engine]\nname = nbclient\n")
    for folder in (tmp_path, tmp_path / "own"):
        write(folder / "r.ipynb", "x <- 1", kernel={"name": "ir", "language": "R", "display_name": "R"})
    (tmp_path / "text.txt").write_text("no notebook")
    done = cli("nb", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.rglob("reports"))


@pytest.mark.parametrize("engine", ["warm", "nbclient"])
def test_a_notebook_runs_beside_its_files_and_untyped_parameters_have_types(tmp_path, engine):
    folder = tmp_path / "mes cahiers"
    folder.mkdir()
    (tmp_path / "settings.ini").write_text(f"[engine]\nname = {engine}\n")
    (folder / "helper.py").write_text("def twice(x):\n    return 2 * x")
    (folder / "data.csv").write_text("a\n1\n")
    code = (
        "import helper, os\nprint(helper.twice(alpha), names, until, limit, open('data.csv').read().split(), home == os.getcwd())"
    )
    write(folder / "mon cahier.ipynb", UNTYPED, code)
    words = ["-p", "alpha=1", "-p", "names=c, d", "-p", "until=[2.5, null]", "-p", "limit=7"]
    done = cli("nb", "mes cahiers/mon cahier.ipynb", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert printed_by(page_in(done.stdout)) == "2.0 ['c', 'd'] [2.5, None] 7 ['a', '1'] True\n"
    done = cli("nb", "mes cahiers/mon cahier.ipynb", "--cwd", ".", cwd=tmp_path)
    assert done.returncode == 1
    assert "No module named 'helper'" in done.stderr


def test_matplotlib_magic_without_words(tmp_path):
    write(tmp_path / "plot.ipynb", "%matplotlib inline", "import matplotlib.pyplot as plt\nplt.plot([1, 2]);")
    done = cli("nb", "plot.ipynb", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "image/png" in page_in(done.stdout).with_suffix(".ipynb").read_text()


@pytest.mark.browser
def test_the_page_of_a_failure(tmp_path, open_page):
    cells = ["# Sky", "print('Looking up.')", "## Moon", "raise RuntimeError('the moon is full')", "print('Never.')"]
    write(tmp_path / "sky.ipynb", *cells)
    done = cli("nb", "sky.ipynb", cwd=tmp_path)
    assert done.returncode == 1
    assert "the moon is full" in done.stderr
    page = open_page(page_in(done.stderr).as_uri())
    assert page.locator("h1").inner_text() == "Sky"
    banner = page.locator("#decision").inner_text()
    assert "This notebook failed." in banner
    assert "the moon is full" in banner
    page.get_by_role("link", name="Go to the cell that failed").click()
    assert page.locator("#failed-cell .traceback").is_visible()
    text = page.locator("main").inner_text()
    assert "Looking up." in text
    assert "Never." not in text
    page.get_by_role("link", name="The executed notebook").wait_for()


def test_an_interruption_leaves_a_page_and_no_process(tmp_path):
    write(tmp_path / "long.ipynb", "# Long", "open('here', 'w').close(); import time; time.sleep(300)")
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - a background shell has its children ignore it
    command = [Path(sys.executable).with_name("mlcycle"), "nb", "-q", "long.ipynb"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed, env=os.environ)
    while not (tmp_path / "here").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in complaints
    assert "Interrupted." in next(tmp_path.glob("reports/notebooks/*/long.html")).read_text()
    assert processes_in(tmp_path) == []
