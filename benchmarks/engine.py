"""The engine `warm` against papermill's own, over the seven stage notebooks emptied to their imports, first start included."""

import ast
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat

from mlcycle.lifecycle.notebook import run_half, stage_notebooks

OWN = """
import sys, papermill
for path in sys.argv[1:]:
    papermill.execute_notebook(path, path, progress_bar=False)
"""
WARM = """
import json, sys
from mlcycle.lifecycle.forks import import_statements, warm_up
warm_up(import_statements(["".join(c["source"]) for path in sys.argv[1:] for c in json.load(open(path))["cells"]]))
""" + OWN.replace("progress_bar", "engine_name='warm', progress_bar")


def empty(path: Path, to: Path) -> Path:
    "A stage notebook of which only the imports are left."
    notebook = run_half(path)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            kept = [node for node in ast.parse(cell["source"]).body if isinstance(node, (ast.Import, ast.ImportFrom))]
            cell["source"] = "\n".join(map(ast.unparse, kept))
    nbformat.write(nbformat.from_dict(notebook), to / path.name)
    return to / path.name


def seconds(code: str, notebooks: list[Path]) -> float:
    "Wall time of a process that runs notebooks."
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *notebooks], check=True, capture_output=True)
    return time.perf_counter() - start


def main(rounds: int = 3) -> None:
    "Run both in turn, and print the ratio."
    ratios = []
    with TemporaryDirectory() as folder:
        notebooks = [empty(path, Path(folder)) for path in stage_notebooks(Path(__file__).parent.parent).values()]
        for _ in range(rounds):
            warm, own = seconds(WARM, notebooks), seconds(OWN, notebooks)
            ratios.append(warm / own)
            print(f"warm {warm:.1f} s, papermill's own {own:.1f} s, ratio {warm / own:.3f}", flush=True)
    print(f"ratio of wall time, warm to papermill's own: {statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})")


if __name__ == "__main__":
    main()
