"""CPU of batch scoring, beside the fitted pipeline that predicts the same rows in memory, in the same run.

`python benchmarks/scoring.py` makes rows with 20 columns, trains a model on some of them, and scores the others from Parquet and
from CSV. The peer has them in a data frame already, and only calls the pipeline. Each turn measures both, with one thread:
CPU seconds per million rows, and their ratio. Then the peak memory of two sizes, and the rows per second of all workers.
`--rows 10000000` takes minutes.
"""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from comparison import Comparison
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from mlcycle.lifecycle.choice import StageChoice
from mlcycle.lifecycle.plan import make_plan_from_parameters
from mlcycle.lifecycle.runner import run_plan
from mlcycle.ml.predictions import predict
from mlcycle.scoring.batch import ScoreOptions, score
from mlcycle.service.bundle import open_release

TRAINING_ROWS = 6_000
QUICK = {"trials": 2, "folds": 3, "models": ["lightgbm"], "select": "off", "table_rows": 0, "cold_start": False}
QUICK |= {"latency_budget_ms": 60_000.0, "probe_seconds": 0.0, "learning_curve": False}
console = Console()


def make_rows(n_rows: int, seed: int) -> pd.DataFrame:
    """Nine decimals, one with gaps, three counts, five categories, a flag and a time; with a target."""
    rng = np.random.default_rng(seed)
    columns = {f"number_{place}": rng.normal(50, 10, n_rows).round(3) for place in range(9)}
    columns |= {f"count_{place}": rng.integers(0, 100, n_rows) for place in range(3)}
    for place, size in enumerate((3, 8, 20, 60, 200)):
        columns[f"category_{place}"] = rng.choice([f"value {value:03d}" for value in range(size)], n_rows)
    columns["member"] = rng.choice(["yes", "no"], n_rows)
    columns["with_gaps"] = np.where(rng.random(n_rows) < 0.1, np.nan, rng.exponential(3, n_rows).round(4))
    columns["placed"] = pd.Timestamp("2023-01-01") + pd.to_timedelta(rng.integers(0, 63_000_000, n_rows), unit="s")
    rows = pd.DataFrame(columns)
    worth = rows.number_0 / 10 + rows.number_1 / 15 + (rows.category_1 == "value 002") * 2 + rows.count_0 / 40
    return rows.assign(late=np.where(worth + rng.normal(size=n_rows) > worth.median(), "late", "in time"))


def make_release(folder: Path) -> Path:
    """A release of LightGBM on these columns."""
    make_rows(TRAINING_ROWS, 0).to_csv(folder / "orders.csv", index=False)
    parameters = {"source": str(folder / "orders.csv"), "target": "late"} | QUICK
    run = run_plan(make_plan_from_parameters(parameters, folder), StageChoice(until="deployment"))
    if not run.release.released:
        raise SystemExit(f"There is nothing to measure: {run.release.decision}")
    return run.workspace.root / run.release.bundle


def write_rows(folder: Path, n_rows: int, ending: str) -> Path:
    """A file of rows without target, made piece by piece."""
    path, writer = folder / f"rows-{n_rows}.{ending}", None
    for place, start in enumerate(range(0, n_rows, 500_000)):
        piece = make_rows(min(500_000, n_rows - start), place + 1).drop(columns="late")
        if ending == "csv":
            piece.to_csv(path, index=False, mode="a", header=not place)
            continue
        table = pa.Table.from_pandas(piece, preserve_index=False)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()
    return path


def made(folder: Path, n_rows: int, ending: str) -> Path:
    """A file of rows, which may be there."""
    path = folder / f"rows-{n_rows}.{ending}"
    return path if path.is_file() else write_rows(folder, n_rows, ending)


def score_alone(release: Path, source: Path, output: Path, workers: int) -> dict:
    """Score in a new process: CPU seconds, wall time, peak memory in MB."""
    words = [sys.executable, __file__, "child", str(release), str(source), str(output), str(workers)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def child(release: str, source: str, output: str, workers: str) -> None:
    """What `score_alone` runs."""
    warnings.simplefilter("ignore")
    summary = score(Path(release), source, output, ScoreOptions(overwrite=True, workers=int(workers)))
    facts = {"cpu": summary.cpu_seconds, "seconds": summary.seconds, "rows": summary.counts.predicted}
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps(facts | {"mb": int(peak.split()[1]) / 1024}))  # ru_maxrss would contain that of the parent process


def pipeline_seconds(release: Path, source: Path, step: int = 1_000_000) -> float:
    """CPU seconds of the pipeline for rows that are in memory as a data frame, at most `step` at a time."""
    bundle, model = open_release(release)
    seconds = 0.0
    with threadpool_limits(1), pq.ParquetFile(source) as file:
        for batch in file.iter_batches(step):
            rows = batch.to_pandas()[list(bundle.columns)]
            start = time.process_time()
            predict(model, rows, bundle.problem, bundle.threshold)
            seconds += time.process_time() - start
    return seconds


def compare(release: Path, folder: Path, n_rows: int, turns: int, endings: list[str]) -> list[Comparison]:
    """CPU seconds per million rows, one pair a turn."""
    files = {ending: made(folder, n_rows, ending) for ending in dict.fromkeys(["parquet", *endings])}
    ours, theirs, scale = {ending: [] for ending in endings}, {ending: [] for ending in endings}, 1e6 / n_rows
    for turn in range(turns):
        for ending in endings:
            console.print(f"{n_rows:,} rows, {ending}, turn {turn + 1} of {turns}")
            theirs[ending].append(pipeline_seconds(release, files["parquet"]) * scale)
            ours[ending].append(score_alone(release, files[ending], folder / f"out.{ending}", 1)["cpu"] * scale)
    what = "{} in and out, CPU s per million rows of {:,}"
    return [
        Comparison(what.format(ending, n_rows), "pipeline, rows in memory", ours[ending], theirs[ending], "lower")
        for ending in endings
    ]


def main(
    rows: Annotated[int, typer.Option(help="Rows.")] = 1_000_000,
    turns: Annotated[int, typer.Option(help="Pairs of measurements.")] = 3,
    csv: Annotated[bool, typer.Option(help="Measure CSV too.")] = True,
):
    """Measure, and print ratios, memory and rows per second."""
    warnings.simplefilter("ignore")
    with TemporaryDirectory(prefix="mlcycle-bench-") as home:
        folder = Path(home)
        os.environ |= {"XDG_CONFIG_HOME": f"{home}/config", "XDG_STATE_HOME": f"{home}/state"}
        release = make_release(folder)
        endings = ["parquet", "csv"] if csv else ["parquet"]
        table = Table("what", "ours", "theirs", "ours / theirs", "min - max", "better", "note")
        for line in compare(release, folder, rows, turns, endings):
            table.add_row(*line.cells())
        console.print(table)
        for ending in endings:
            facts = [score_alone(release, made(folder, size, ending), folder / f"out.{ending}", 1) for size in (rows // 5, rows)]
            console.print(
                f"{ending}: peak memory " + ", ".join(f"{fact['mb']:.0f} MB of {fact['rows']:,} rows" for fact in facts)
            )
        for workers in (1, os.cpu_count() or 1):
            fact = score_alone(release, made(folder, rows, "parquet"), folder / "out.parquet", workers)
            console.print(f"Parquet, {workers} worker(s): {fact['rows'] / fact['seconds']:,.0f} rows/s")


if __name__ == "__main__":
    child(*sys.argv[2:]) if sys.argv[1:2] == ["child"] else typer.run(main)
