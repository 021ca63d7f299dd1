"""Fifty runs of a small table, two side by side, beside one run: each in a fresh project."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from comparison import Comparison
from noop import measured
from table import make_project, mlcycle

SEEDS, METRICS, JOBS = 25, ("roc_auc", "f1"), 2


def compare(step: Callable[[str], None], seeds: int = SEEDS, rounds: int = 2) -> list[Comparison]:
    """Wall time of a grid of seeds and metrics, and of one run before and after it."""
    grid = ["-g", f"seed={','.join(map(str, range(1, seeds + 1)))}", "-g", f"metric={','.join(METRICS)}"]
    runs, batches, ones = seeds * len(METRICS), [], []
    with TemporaryDirectory(prefix="mlcycle-batch-") as folder:
        for turn in range(rounds):
            step(f"one run, {turn + 1} of {rounds}")
            ones.append(measured(mlcycle("run", "-q"), make_project(Path(folder) / f"one-{turn}")).wall)
            step(f"{runs} runs, {turn + 1} of {rounds}")
            batches.append(
                measured(mlcycle("batch", "-q", *grid, "--jobs", str(JOBS)), make_project(Path(folder) / f"{turn}")).wall
            )
    note = f"{seeds} seeds x {len(METRICS)} metrics, all seven stages each, --jobs {JOBS}"
    return [Comparison(f"{runs} runs of a small table, s", "one run", batches, ones, better="lower", note=note)]
