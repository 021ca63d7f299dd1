"""Projects for tests: a small table with real stages, a toy with stages of a few lines, and who still works in them."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import cli
from filelock import FileLock

import mlcycle as mc
from mlcycle.nb.notebook import stage_notebooks
from mlcycle.outcomes import STAGES


def own_notebooks(project: Path, stage: str, code: str) -> None:
    "Give a project its own notebooks, with `code` as the cell after the parameters of one."
    (project / "nbs").mkdir()
    for path in stage_notebooks(project).values():
        notebook = json.loads(path.read_text())
        if stage in path.name:
            place = next(i for i, cell in enumerate(notebook["cells"]) if "parameters" in cell["metadata"].get("tags", []))
            cell = {"cell_type": "code", "id": "fault", "metadata": {}, "source": [code], "outputs": [], "execution_count": None}
            notebook["cells"].insert(place + 1, cell)
        (project / "nbs" / path.name).write_text(json.dumps(notebook))


def processes_in(project: Path, patience: float = 10) -> list[str]:
    "Those that still work in a folder after a while."
    deadline = time.monotonic() + patience
    while True:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(entry / "cwd") == str(project):
                    found.append((entry / "cmdline").read_text())
            except OSError:  # It has ended, or is another user's
                continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def survivors(mark: str) -> list[int]:
    "Processes that have inherited a mark."
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # It has just ended
            continue
    return found


def wait_for_end(mark: str, seconds: float = 3) -> list[int]:
    "The processes that are still there after a while."
    until = time.monotonic() + seconds
    while (left := survivors(mark)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


# A project whose stages are a few lines each, run by the same runner, engine and cache as any other

TOY = '''
"""What the notebooks of a toy project call: a sum that grows from stage to stage, with a file for each."""

import json
from pathlib import Path

from mlcycle.core.files import hash_file, write_text
from mlcycle.core.runs import Run
from mlcycle.outcomes import OUTCOME_TYPES, STAGES

FILE = {"path": "toy/file", "sha256": ""}
MODEL = {"name": "toy", "version": 1, "run_id": "", "sha256": ""}
FIELDS = {
    "problem": {"question": "How many?", "owner": "", "source": "toy.csv", "source_sha256": "", "target": "n", "rows": 1,
                "task": "regression", "metric": "rmse", "metrics": ["rmse"], "criteria": []},
    "data": {"rows_in": 1, "rows_clean": 1, "rows_set_aside": 0, "ledger": [], "contract": FILE, "split_description": "",
             "tables": {}},
    "features": {"input_columns": [], "features": [], "dropped_columns": {}, "pipeline": FILE},
    "modelling": {"model": MODEL, "winner": "toy", "n_trials": 0, "search_rows": 1, "train_rows": 1, "leaderboard": [
        {"model": "toy", "score": {"metric": "rmse", "value": 1.0}, "fold_scores": [1.0], "fit_seconds": 0.0, "parameters": {}}]},
    "validation": {"approved": False, "gates": [], "scores": [], "baseline_scores": [], "generalization_gap": {},
                   "holdout_rows": 1},
    "deployment": {"released": False, "model": MODEL},
    "monitoring": {"monitored": "none", "rows": 0, "latency_ms": {}, "windows": [], "drift": [], "action": "nothing",
                   "reason": ""},
}


def finish(stage: str, run_dir: str, number: int, size: int) -> None:
    "Add a number to the sum of the stage before, write a file of some size, and the outcome."
    run, before = Run(Path(run_dir)), STAGES[: STAGES.index(stage)]
    total = number + (int(run.outcome(before[-1]).decision) if before else len(Path("toy.csv").read_text()))
    file = run.workspace.root / "toy" / f"{stage}-{total}.txt"
    write_text(file, str(total) * (size // len(str(total)) + 1))
    files = {str(file.relative_to(run.workspace.root)): hash_file(file)}
    write_text(run.folder / f"{stage}.files.json", json.dumps(files))
    outcome = OUTCOME_TYPES[stage](decision=str(total), **FIELDS[stage])
    write_text(run.folder / f"{stage}.json", outcome.model_dump_json())
'''


def toy_project(folder: Path, size: int = 1000) -> Path:
    "A project whose seven stages add up numbers; each leaves a file of some size."
    (folder / "nbs").mkdir(parents=True)
    (folder / "settings.ini").write_text("[problem]\nnumber = 3\n")
    (folder / "toy.py").write_text(TOY)
    (folder / "toy.csv").write_text("n\n1\n")
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    for number, stage in enumerate(STAGES, 1):
        parameters = f'run_dir: str = ""\nnumber: int = {number}  # Added to the sum\nsize: int = {size}  # Bytes of its file'
        parameters += '\nsource: str = "toy.csv"  # A file' if stage == "problem" else ""
        cells = [
            ("markdown", f"# Toy {stage}", []),
            ("markdown", "## Run", []),
            ("code", parameters, ["parameters"]),
            ("code", f'from toy import finish\n\nfinish("{stage}", run_dir, number, size)', []),
        ]
        notebook = {"cells": [_cell(f"c{place}", *cell) for place, cell in enumerate(cells)], "metadata": kernel}
        text = json.dumps(notebook | {"nbformat": 4, "nbformat_minor": 5})
        (folder / "nbs" / f"{number:02}_{stage}.ipynb").write_text(text)
    return folder


def _cell(name: str, kind: str, source: str, tags: list[str]) -> dict:
    "A cell of a notebook."
    code = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": name, "metadata": {"tags": tags}, "source": source} | code


# A project with the shipped stages, a small table, and little to compute

SETTINGS = """
[problem]
source = orders.csv
target = late
time = placed
probe_seconds = 0
[features]
select = off
table_rows = 0
[modelling]
models = linear
trials = 1
folds = 2
learning_curve = false
jobs = 1
[validation]
n_resamples = 50
[deployment]
parity_rows = 10
cold_start = false
[monitoring]
replay_rows = 30
windows = 2
latency_budget_ms = 60000
"""


def orders(rows: int = 240) -> pd.DataFrame:
    "A small table, ordered in time, whose target can be learnt."
    rng = np.random.default_rng(0)
    days = pd.date_range("2024-01-01", periods=rows).strftime("%Y-%m-%d")
    frame = pd.DataFrame({"placed": days, "price": rng.random(rows).round(3), "town": rng.choice(["Ulm", "Bonn"], rows)})
    return frame.assign(late=np.where(frame.price + rng.normal(0, 0.2, rows) > 0.6, "yes", "no"))


def make_project(folder: Path) -> Path:
    "A project with notebooks of its own and a table."
    assert cli("init", folder, cwd=folder.parent).returncode == 0
    (folder / "settings.ini").write_text(SETTINGS)
    orders().to_csv(folder / "orders.csv", index=False)
    return folder


def edit(path: Path, old: str, new: str) -> None:
    "Replace a text that occurs once."
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {path}"
    path.write_text(text.replace(old, new))


def add_cell(project: Path, stage: str, code: str) -> None:
    "Put a cell after the parameters of a project's own notebook; in place of one that was put there before."
    path = next((project / "nbs").glob(f"0*_{stage}.ipynb"))
    notebook = json.loads(path.read_text())
    cells = [cell for cell in notebook["cells"] if cell.get("id") != "added"]
    place = next(i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", []))
    cell = {"cell_type": "code", "id": "added", "metadata": {}, "source": code, "outputs": [], "execution_count": None}
    path.write_text(json.dumps(notebook | {"cells": [*cells[: place + 1], *([cell] if code else []), *cells[place + 1 :]]}))


def states(project: Path, *words: str, **environment: str) -> dict[str, str]:
    "What `mlcycle status` says of each stage."
    done = cli("status", *words, cwd=project, **environment)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return {words[0]: words[1] for words in lines if words and words[0] in STAGES}


def not_fresh(project: Path, *words: str, **environment: str) -> list[str]:
    "The stages that are not fresh."
    return [stage for stage, state in states(project, *words, **environment).items() if state != "fresh"]


def run(project: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    "A run that succeeds."
    done = cli("run", "-q", *words, cwd=project, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def computed(made: mc.Run) -> list[str]:
    "The stages that a run has not taken from the cache."
    return [stage for stage, facts in made.info["stages"].items() if "reused" not in facts]


def contents(made: mc.Run) -> dict[str, dict]:
    "The outcomes of a run, without what was only measured and names drawn at random."
    found = {stage: made.outcome(stage).content() for stage in made.info["stages"]}
    if "deployment" in found:  # Signatures differ; description and cards name MLflow's run
        differing = ("bundle.json", "manifest.json", "model.sig", "model_card.md", "model_card.html")
        files = made.outcome("deployment").files
        found["deployment"]["files"] = {name: sha for name, sha in files.items() if name not in differing and ".tar" not in name}
    return found


def listing(folder: Path) -> dict[str, bytes]:
    "Every file below a folder."
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def base(tmp_path_factory, worker_id):
    "A project with one undisturbed run, shared by all tests and workers; to be copied, not changed."
    shared = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    folder = shared / "orders"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            run(make_project(folder))
    return folder


@pytest.fixture(scope="session")
def finished_toy(tmp_path_factory, worker_id):
    "A toy project with one undisturbed run; to be copied, not changed."
    shared = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    folder = shared / "toy"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            run(toy_project(folder))
    return folder


@pytest.fixture
def toy(finished_toy, tmp_path):
    "A copy of the toy project with its run."
    return Path(shutil.copytree(finished_toy, tmp_path / "toy"))


@pytest.fixture
def new_toy(tmp_path):
    "A toy project before its first run."
    return toy_project(tmp_path / "new-toy")


@pytest.fixture
def project(base, tmp_path):
    "A copy of the project with its run."
    return Path(shutil.copytree(base, tmp_path / "copy"))


@pytest.fixture
def new(base, tmp_path):
    "A copy of the project before its run."
    return Path(shutil.copytree(base, tmp_path / "new", ignore=shutil.ignore_patterns(".mlcycle", "reports")))


@pytest.fixture
def package(tmp_path):
    "A copy of the package that subprocesses import, so that it can be edited."
    for name in ("mlcycle", "nbs"):
        shutil.copytree(Path(mc.__file__).parents[1] / name, tmp_path / "lib" / name)
    return tmp_path / "lib"
