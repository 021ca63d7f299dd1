"""A small table, in a project whose runs are as short as they can be."""

import json
import sys
from pathlib import Path

from sklearn.datasets import load_breast_cancer

QUICK = {"trials": 2, "folds": 3, "n_resamples": 50, "parity_rows": 30, "replay_rows": 60, "windows": 2}
QUICK |= {"probe_seconds": 0, "select": "off", "table_rows": 0}
QUICK |= {"models": ["linear", "lightgbm"], "repeats": 1, "learning_curve": False}
STAGE_OF = {"probe_seconds": "problem", "select": "features", "table_rows": "features", "n_resamples": "validation"}
STAGE_OF |= dict.fromkeys(("trials", "folds", "models", "repeats", "learning_curve"), "modelling") | {"parity_rows": "deployment"}


def make_project(folder: Path) -> Path:
    """A project with 569 rows of 30 numbers and a binary target."""
    folder.mkdir(parents=True)
    load_breast_cancer(as_frame=True).frame.to_csv(folder / "table.csv", index=False)
    lines = []
    for stage in ("problem", "features", "modelling", "validation", "deployment", "monitoring"):
        lines.append(f"[{stage}]")
        lines += ["source = table.csv", "target = target"] if stage == "problem" else []
        for name, value in QUICK.items():
            if STAGE_OF.get(name, "monitoring") == stage:
                lines.append(f"{name} = {value if isinstance(value, str) else json.dumps(value)}")
    (folder / "settings.ini").write_text("\n".join([*lines, "latency_budget_ms = 60000", ""]))
    return folder


def mlcycle(*words: str) -> list[str]:
    """The command line."""
    return [str(Path(sys.executable).with_name("mlcycle")), *words]
