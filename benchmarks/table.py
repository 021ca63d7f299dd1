"""A small table, in a project whose runs are as short as they can be."""

import sys
from pathlib import Path

from sklearn.datasets import load_breast_cancer

QUICK = {"trials": 2, "folds": 3, "resamples": 50, "parity_rows": 30, "replay_rows": 60, "windows": 2}
STAGE_OF = {"trials": "modelling", "folds": "modelling", "resamples": "validation", "parity_rows": "deployment"}


def make_project(folder: Path) -> Path:
    """A project with 569 rows of 30 numbers and a binary target."""
    folder.mkdir(parents=True)
    load_breast_cancer(as_frame=True).frame.to_csv(folder / "table.csv", index=False)
    lines = ["[problem]", "source = table.csv", "target = target"]
    for stage in ("modelling", "validation", "deployment", "monitoring"):
        lines += [
            f"[{stage}]",
            *(f"{name} = {value}" for name, value in QUICK.items() if STAGE_OF.get(name, "monitoring") == stage),
        ]
    (folder / "settings.ini").write_text("\n".join([*lines, "latency_budget_ms = 60000", ""]))
    return folder


def mlcycle(*words: str) -> list[str]:
    """The command line."""
    return [str(Path(sys.executable).with_name("mlcycle")), *words]
