"""The engine `warm` beside papermill's own, over the seven stage notebooks emptied to their imports, first start included."""

import ast
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from comparison import Comparison

from mlcycle.nb.notebook import read_executable_part, stage_notebooks

OWN = """
import sys, papermill
for path in sys.argv[1:]:
    papermill.execute_notebook(path, path, progress_bar=False)
"""
WARM = """
import json, sys
from mlcycle.engine.forkserver import import_statements, start_fork_server
start_fork_server(import_statements(["".join(c["source"]) for path in sys.argv[1:] for c in json.load(open(path))["cells"]]))
""" + OWN.replace("progress_bar", "engine_name='warm', progress_bar")


def empty(path: Path, to: Path) -> Path:
    """A stage notebook of which only the imports are left."""
    notebook = read_executable_part(path)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            kept = [node for node in ast.parse(cell["source"]).body if isinstance(node, (ast.Import, ast.ImportFrom))]
            cell["source"] = "\n".join(map(ast.unparse, kept))
    (to / path.name).write_text(json.dumps(notebook))
    return to / path.name


def seconds(code: str, notebooks: list[Path]) -> float:
    """Wall time of a process that runs notebooks."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *notebooks], check=True, capture_output=True)
    return time.perf_counter() - start


def compare(step: Callable[[str], None], rounds: int = 3) -> list[Comparison]:
    """Wall time of both, in turn."""
    turns = []
    with TemporaryDirectory() as folder:
        notebooks = [empty(path, Path(folder)) for path in stage_notebooks(Path(__file__).parent.parent).values()]
        for turn in range(rounds):
            step(f"round {turn + 1} of {rounds}")
            turns.append((seconds(WARM, notebooks), seconds(OWN, notebooks)))
    ours, theirs = map(list, zip(*turns, strict=True))
    return [Comparison("seven notebooks of imports, s", "papermill's own engine", ours, theirs, better="lower")]
