"""What runs on large tables have cost, as Markdown; a model of the cost for more rows and more workers."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.optimize import nnls

TARGET_ROWS, TARGET_WORKERS = 1_000_000_000, 100


def markdown(head: Iterable[str], rows: Iterable[Iterable]) -> str:
    """A table."""
    lines = [[*head], ["---"] * len([*head]), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def stage_table(records: list[dict]) -> pd.DataFrame:
    """One row for each stage of each run that has ended without an error; the mean of equal runs."""
    kept = [each for each in records if each["exit"] == 0]
    rows = [(each["format"], each["executor"], each["workers"], stage, each["rows"], seconds)
            for each in kept for stage, seconds in each["stages"].items()]  # fmt: skip
    keys = ["format", "executor", "workers", "stage", "rows"]
    return pd.DataFrame(rows, columns=[*keys, "seconds"]).groupby(keys, sort=False, as_index=False)["seconds"].mean()


def cost_table(stages: pd.DataFrame) -> str:
    """Seconds and cost of a row of each stage."""
    return markdown(("stage", "format", "executor", "workers", "rows", "seconds", "µs a row", "worker-µs a row"), (
        (each.stage, each.format, each.executor, each.workers, f"{each.rows:,}", f"{each.seconds:.1f}",
         f"{1e6 * each.seconds / each.rows:.2f}", f"{1e6 * each.seconds * each.workers / each.rows:.2f}")
        for each in stages.itertuples()))  # fmt: skip


def efficiency_table(stages: pd.DataFrame) -> str:
    """How much of the second, third … worker a stage uses: seconds of one worker, by worker-seconds of several."""
    rows = []
    for (kind, executor, stage, size), group in stages.groupby(["format", "executor", "stage", "rows"], sort=False):
        seconds = group.set_index("workers")["seconds"]
        if 1 in seconds.index:
            rows += [(stage, kind, executor, f"{size:,}", f"1 to {workers}", f"{seconds[1] / taken:.2f}",
                      f"{seconds[1] / taken / workers:.0%}")
                     for workers, taken in seconds.items() if workers > 1 and taken]  # fmt: skip
    return markdown(("stage", "format", "executor", "rows", "workers", "speed-up", "efficiency"), rows) if rows else (
        "There is no pair of runs with one and with several workers.")  # fmt: skip


def memory_table(records: list[dict]) -> str:
    """The largest memory of each run."""
    parts = ("run", "worker", "scheduler", "tree")
    return markdown(("format", "executor", "workers", "cores", "until", "rows", "exit", "seconds",
                     "largest process of the run, MB",
                     "largest worker, MB", "scheduler, MB", "all processes, MB"), (
        (each["format"], each["executor"], each["workers"], each["cores"], each["until"], f"{each['rows']:,}",
         each["exit"], each["seconds"],
         *(f"{each['peak_mb'][part]:,}" if part in each["peak_mb"] else "" for part in parts)) for each in records))  # fmt: skip


def fit_stage(group: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Fixed seconds, seconds of a million rows that workers do not share, worker-seconds of a million rows; and a note."""
    rows, workers = group["rows"].to_numpy() / 1e6, group["workers"].to_numpy()
    parts = [np.ones(len(group)), rows, rows / workers]
    if group["rows"].nunique() == 1:  # Fixed and proportional seconds cannot be told apart
        parts[0] = np.zeros(len(group))
    if group["workers"].nunique() == 1:  # Nor can those that are shared
        parts[1] = np.zeros(len(group))
    found, _ = nnls(np.column_stack(parts), group["seconds"].to_numpy())
    error = np.abs(np.column_stack(parts) @ found - group["seconds"]).max()
    limits = [word for word, part in (("one size", parts[0]), ("one number of workers", parts[1])) if not part.any()]
    return found, ", ".join([*limits, f"{len(group)} points, off by at most {error:.1f} s"])


def model_table(stages: pd.DataFrame) -> str:
    """The linear model of each stage, and what it gives for the target."""
    rows = []
    for (kind, executor, stage), group in stages.groupby(["format", "executor", "stage"], sort=False):
        (fixed, serial, shared), note = fit_stage(group)
        workers = TARGET_WORKERS if executor == "dask" else 1
        million = TARGET_ROWS / 1e6
        hours = (fixed + serial * million + shared * million / workers) / 3600
        target = f"{hours:.2f} on {workers}" if group["rows"].nunique() > 1 else "two sizes are needed"
        rows += [(stage, kind, executor, f"{fixed:.1f}", f"{serial:.2f}", f"{shared:.2f}", target, note)]
    return markdown(("stage", "format", "executor", "fixed s", "s a million rows, not shared", "worker-s a million rows",
                     f"hours for {TARGET_ROWS:,} rows, workers", "fit"), rows)  # fmt: skip


def report_scale(records: list[dict]) -> str:
    """All tables."""
    stages = stage_table(records)
    with_cores = stage_table([each for each in records if each["workers"] <= each["cores"]])
    return f"""## Cost of a row

{cost_table(stages)}

## Several workers

{efficiency_table(stages)}

## Memory

The largest sum of the proportional set sizes of all processes at a time, and the largest one of a single process.

{memory_table(records)}

## Model

Seconds = fixed + million rows · (not shared + shared / workers), by non-negative least squares. Where all runs have one number of
workers, everything that grows with the rows counts as shared, which is a lower bound for more workers; where all have one size,
what is fixed cannot be told from the rest, and nothing is extrapolated. Runs with more workers than cores are left out.

{model_table(with_cores)}"""
