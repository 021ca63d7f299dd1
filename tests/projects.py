"""Projects for tests: with notebooks of their own, and who still works in them."""

import json
import os
import time
from pathlib import Path

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
    "monitoring": {"monitored_rows": "none", "rows": 0, "latency_ms": {}, "windows": [], "drift": [], "action": "nothing",
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
