"""Time, memory and numbers of stage 7, beside other libraries.

`python benchmarks/monitoring.py profile` compares a table with a reference profile: seconds and peak memory by rows and columns,
p-values without drift, and Evidently on the same rows, in an environment of its own
(`benchmarks/environments/monitoring.txt`).
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import typer
from judges import python_of

HERE, REFERENCE_ROWS = Path(__file__).parent, 50_000
app = typer.Typer(add_completion=False)

OURS = """
import json, resource, sys, time
sys.path.insert(0, sys.argv[1])
from monitoring_frame import mixed_frame
from mlcycle.ml.table_profile import count_table, profile_reference
from mlcycle.monitoring.drift import compare_columns
rows, columns, reference_rows = map(int, sys.argv[2:5])
train = mixed_frame(reference_rows, columns, 0)
start = time.perf_counter()
profile = profile_reference(train)
training = time.perf_counter() - start
del train
frame = mixed_frame(rows, columns, 1)
start, used = time.perf_counter(), time.process_time()
(window,) = count_table(frame, profile.layout)
found = compare_columns((name, profile.columns[name], each) for name, each in window.columns.items())
print(json.dumps({"seconds": time.perf_counter() - start, "processor": time.process_time() - used, "training": training,
                  "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                  "drifted": sum(each.drifted for each in found)}))
"""

THEIRS = """
import json, resource, sys, time, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
from monitoring_frame import mixed_frame
from evidently import Report
from evidently.presets import DataDriftPreset
rows, columns, reference_rows = map(int, sys.argv[2:5])
train, frame = mixed_frame(reference_rows, columns, 0), mixed_frame(rows, columns, 1)
start, used = time.perf_counter(), time.process_time()
Report([DataDriftPreset()]).run(frame, train).dict()
print(json.dumps({"seconds": time.perf_counter() - start, "processor": time.process_time() - used,
                  "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
"""


def run(python: Path | str, code: str, *sizes: int, seconds: float = 240) -> dict:
    """The figures that code prints last, in a process of its own; its seconds are infinite if they exceed the limit."""
    try:
        command = [python, "-c", code, HERE, *map(str, sizes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"seconds": np.inf, "processor": np.inf, "memory": np.nan}
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@app.command()
def profile(rows: int = 1_000_000, columns: int = 100, peer_rows: int = 50_000, peer: bool = True) -> None:
    """A table against a reference profile: seconds and memory by rows and columns, and beside Evidently."""
    sizes = [(rows, columns), (rows // 2, columns), (rows, columns // 2), (peer_rows, columns)]
    ours = {size: run(sys.executable, OURS, *size, REFERENCE_ROWS) for size in sizes}
    print(pd.DataFrame([dict(zip(("rows", "columns"), size, strict=True)) | each for size, each in ours.items()]).round(2))
    if peer:
        theirs = run(python_of("monitoring"), THEIRS, peer_rows, columns, REFERENCE_ROWS)
        print("Evidently", theirs, "ratio", round(ours[peer_rows, columns]["seconds"] / theirs["seconds"], 4))


@app.command()
def p_values(windows: int = 1000) -> None:
    """Share of p-values below .05 in windows without drift, by size of the window and kind of the column."""
    notebook = json.loads((HERE.parent / "nbs" / "monitoring" / "column_tests.ipynb").read_text())
    (cell,) = [source for each in notebook["cells"] if "def simulate(" in (source := "".join(each["source"]))]
    names = {"np": np, "column_p_values": __import__("mlcycle.monitoring.column_tests", fromlist=["x"]).column_p_values}
    exec(cell, names)
    start = time.perf_counter()
    sizes = ((20, 20_000), (100, 20_000), (500, 20_000), (5000, 20_000), (500, 500))
    table = {f"{n:,} of {reference:,}": (names["simulate"](n, reference, windows) < 0.05).mean() for n, reference in sizes}
    print(pd.DataFrame(table).T.round(3).to_string(), round(time.perf_counter() - start), "s")
