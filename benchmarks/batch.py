"""Fifty runs of a small table, two side by side, beside one run: each in a fresh project."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from comparison import Comparison
from noop import measured
from table import make_project, mlcycle

JOBS = 2
GRIDS = {  # Fifty runs each
    "stages 1 to 4 shared by five runs each": {
        "seed": range(1, 6),
        "metric": ["roc_auc", "f1"],
        "n_resamples": range(50, 100, 10),
    },
    "no stage shared": {"seed": range(1, 26), "metric": ["roc_auc", "f1"]},
}


def compare(step: Callable[[str], None], grids: dict[str, dict[str, list]] = GRIDS, rounds: int = 1) -> list[Comparison]:
    """Wall time of each grid, and of one run before it."""
    found = []
    with TemporaryDirectory(prefix="mlcycle-batch-") as folder:
        for name, grid in grids.items():
            words = [word for field, values in grid.items() for word in ("-g", f"{field}={','.join(map(str, values))}")]
            batches, ones = [], []
            for turn in range(rounds):
                step(f"one run, {turn + 1} of {rounds}")
                ones.append(_wall(Path(folder) / f"{name}, one, {turn}", "run"))
                step(f"a batch, {name}, {turn + 1} of {rounds}")
                batches.append(_wall(Path(folder) / f"{name}, {turn}", "batch", *words, "--jobs", str(JOBS)))
            note = f"{name}; all seven stages, --jobs {JOBS}"
            found.append(Comparison("50 runs of a small table, s", "one run", batches, ones, better="lower", note=note))
    return found


def _wall(folder: Path, *words: str) -> float:
    """Seconds that a command takes in a fresh project."""
    return measured(mlcycle(words[0], "-q", *words[1:]), make_project(folder)).wall
