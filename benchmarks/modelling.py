"""mlcycle beside LightGBM, FLAML and AutoGluon on public tables: same folds, one thread and the same seconds for each."""

import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from modelling_peers import COMPETITORS
from modelling_report import Results, page
from modelling_tables import FOLDS, TABLES
from pyarrow.parquet import read_metadata
from sklearn.metrics import log_loss, roc_auc_score, root_mean_squared_error

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = {"tables": "tables", "flaml": "flaml", "autogluon_medium": "autogluon", "autogluon_best": "autogluon"}
ONE_THREAD = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "LOKY_MAX_CPU_COUNT"]
PATIENCE = 5  # Times the seconds, and two minutes more: then a competitor is stopped
Competitor = StrEnum("Competitor", {name: name for name in COMPETITORS})
TableName = StrEnum("TableName", {name: name for name in TABLES})
Bench = Annotated[Path, typer.Option(help="Where environments, tables and results are; git ignores the default.")]
app = typer.Typer(add_completion=False, help=__doc__)


def python_of(bench: Path, competitor: str) -> Path:
    """The interpreter that runs a competitor: its environment's, or this one."""
    known = ENVIRONMENTS.get(competitor)
    return bench / known / "bin/python" if known else Path(sys.executable)


@app.command()
def setup(bench: Bench = HERE.parent / ".bench") -> None:
    """Make the environments of the peers, and the tables."""
    bench = bench.resolve()
    for name in sorted(set(ENVIRONMENTS.values())):
        if not (bench / name).exists():
            subprocess.run([sys.executable, "-m", "venv", bench / name], check=True)
        listed = HERE / "environments" / f"{name}.txt"
        subprocess.run([bench / name / "bin/python", "-m", "pip", "install", "--quiet", "-r", listed], check=True)
    subprocess.run([python_of(bench, "tables"), HERE / "modelling_tables.py", bench / "data"], check=True)


def score(about: dict, truth: pd.Series, predicted: pd.DataFrame) -> float:
    """By the metric of the table, on the rows of a fold."""
    if not np.isfinite(predicted.to_numpy(dtype=float)).all():
        raise ValueError("some predictions are missing or infinite")
    if about["task"] == "regression":
        return float(root_mean_squared_error(truth, predicted["prediction"]))
    if about["task"] == "binary":
        return float(roc_auc_score(truth, predicted["1"]))
    labels = sorted(truth.unique())
    shares = predicted[labels].to_numpy(dtype=float).clip(1e-15)
    return float(log_loss(truth, shares / shares.sum(axis=1, keepdims=True), labels=labels))


def parts_of(data: Path, about: dict, fold: int) -> tuple[list[str], list[str]]:
    """Files to learn from, and the file to be asked about."""
    ask, parts = (fold + 1, range(fold + 1)) if about["time"] else (fold, range(FOLDS))
    name = about["name"]
    return [str(data / f"{name} {one}.parquet") for one in parts if one != ask], [str(data / f"{name} {ask}.parquet")]


def part_rows(data: Path, about: dict) -> list[dict[str, int]]:
    """How many rows each fold learns from and is asked about."""
    counted = [
        [sum(read_metadata(file).num_rows for file in files) for files in parts_of(data, about, fold)] for fold in range(FOLDS)
    ]
    return [{"rows_learnt": learnt, "rows_asked": asked} for learnt, asked in counted]


def last_words(text: str) -> str:
    """What a process said before it failed, in one line."""
    return (text.strip().splitlines() or ["it said nothing"])[-1][:300]


def run_one(bench: Path, about: dict, fold: int, competitor: str, seconds: float, seed: int) -> dict:
    """Let one competitor answer one fold in its own process; what goes wrong is its result."""
    learn, ask = parts_of(bench / "data", about, fold)
    line = {"table": about["name"], "fold": fold, "competitor": competitor, "seconds": seconds, "seed": seed}
    line |= {"metric": about["metric"], "date": datetime.now(UTC).isoformat(timespec="seconds"), "load": os.getloadavg()[0]}
    with TemporaryDirectory(prefix="mlcycle-modelling-") as folder:
        told, predictions = Path(folder) / "job.json", Path(folder) / "predictions.parquet"
        job = line | about | {"learn": learn, "ask": ask, "predictions": str(predictions)}
        told.write_text(json.dumps(job))
        command = [python_of(bench, competitor), HERE / "modelling_peers.py", told]
        variables = os.environ | dict.fromkeys(ONE_THREAD, "1")
        started = time.perf_counter()
        try:
            told_out = subprocess.run(
                command, cwd=folder, env=variables, capture_output=True, text=True, timeout=PATIENCE * seconds + 120
            )
            line["wall_seconds"] = round(time.perf_counter() - started, 1)
            if told_out.returncode:
                return line | {"error": last_words(told_out.stderr)}
            truth = pd.concat([pd.read_parquet(file) for file in ask])[about["target"]]
            line |= json.loads(told.with_name("took.json").read_text())
            return line | {"score": score(about, truth, pd.read_parquet(predictions))}
        except subprocess.TimeoutExpired as error:
            return line | {"error": f"it was stopped after {error.timeout:g} seconds"}
        except (ValueError, KeyError) as error:
            return line | {"error": last_words(str(error))}


def read_lines(file: Path) -> list[dict]:
    """What was measured so far; the last line about a fold counts, and a line that a kill cut short does not."""
    known: dict[tuple, dict] = {}
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        known[line["table"], line["fold"], line["competitor"]] = line
    return list(known.values())


def cpu_share(line: dict) -> float:
    """How much of a core a fit had; a short one says little and counts as whole."""
    used = line.get("fit_seconds", 0)
    return line["fit_cpu_seconds"] / used if used >= 10 else 1.0


def is_done(line: dict, seconds: float, least_share: float) -> bool:
    """Was it measured with these seconds, without an error and with its share of a core?"""
    return "score" in line and line["seconds"] == seconds and cpu_share(line) >= least_share


@app.command()
def measure(
    only: Annotated[list[Competitor] | None, typer.Option(help="Competitors; all if none is named.")] = None,
    table: Annotated[list[TableName] | None, typer.Option(help="Tables; all if none is named.")] = None,
    seconds: Annotated[float, typer.Option(help="Wall time that a competitor has for a fold.")] = 60,
    seed: Annotated[int, typer.Option(help="Of every competitor.")] = 0,
    least_share: Annotated[float, typer.Option(help="Measure again what had less of a core than this.")] = 0.0,
    fold: Annotated[list[int] | None, typer.Option(help="Folds, from 0; all if none is named.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure also what was measured before.")] = False,
    results: Annotated[Path | None, typer.Option(help="File to append to; results.jsonl in the bench folder.")] = None,
    bench: Bench = HERE.parent / ".bench",
) -> None:
    """Measure what is not measured yet, one process at a time; an interrupted benchmark goes on where it was."""
    bench = bench.resolve()
    results = results or bench / "results.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    done = [] if again else [line for line in read_lines(results) if is_done(line, seconds, least_share)]
    keys = {(line["table"], line["fold"], line["competitor"]) for line in done}
    for name in map(str, table or TABLES):
        about = json.loads((bench / "data" / f"{name}.json").read_text())
        for number in fold or range(FOLDS):
            for competitor in map(str, only or COMPETITORS):
                if (name, number, competitor) in keys:
                    continue
                line = run_one(bench, about, number, competitor, seconds, seed)
                line["machine"] = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
                with results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                said = f"{line['score']:.5f}" if "score" in line else f"failed: {line['error']}"
                used = f"{line.get('fit_seconds', 0):.0f} s, {cpu_share(line):.0%} of a core" if "score" in line else ""
                print(f"{name}, fold {number}, {competitor}: {said} {used}", flush=True)


@app.command()
def report(
    results: Annotated[Path | None, typer.Option(help="File of what was measured; results.jsonl in the bench folder.")] = None,
    out: Annotated[Path, typer.Option(help="The page.")] = HERE / "results" / "modelling.md",
    bench: Bench = HERE.parent / ".bench",
) -> None:
    """Write the page of what was measured."""
    tables = [json.loads((bench / "data" / f"{name}.json").read_text()) for name in TABLES]
    tables = [table | {"about": TABLES[table["name"]].__doc__} for table in tables]
    lines = read_lines(results or bench / "results.jsonl")
    sizes = {table["name"]: part_rows(bench / "data", table) for table in tables}
    lines = [line | sizes[line["table"]][line["fold"]] for line in lines if line["table"] in sizes]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(Results(tables, lines, FOLDS)))


if __name__ == "__main__":
    app()
