"""What each stage costs on small and on wide tables: processor and wall seconds."""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import psutil

from mlcycle.lifecycle.callbacks import RunCallback
from mlcycle.lifecycle.choice import StageChoice
from mlcycle.lifecycle.plan import make_plan_from_parameters
from mlcycle.lifecycle.runner import run_plan

TABLES = {"150x8": "", "600x8": "", "5000x8": "", "150x800": "features", "150x3000": "features", "150x10000": "features"}


def made_table(rows: int, columns: int, seed: int = 0) -> pd.DataFrame:
    """Numbers and, as every fourth column, categories; some values are missing, and six columns affect the target `y`."""
    rng = np.random.default_rng(seed)
    table = {}
    for place in range(columns):
        if place % 4 == 3:
            table[f"c{place}"] = rng.choice(["low", "medium", "high", "very high"][: 2 + place % 3], rows)
        else:
            table[f"x{place}"] = rng.normal(size=rows).round(3)
    frame = pd.DataFrame(table)
    effect = frame.iloc[:, :3].sum(axis=1) + 1.5 * (frame["c3"] == "low") + rng.normal(size=rows)
    for name in frame.columns[::10]:
        frame.loc[rng.random(rows) < 0.05, name] = None
    return frame.assign(y=np.where(effect > effect.median(), "yes", "no"))


def processor_seconds() -> float:
    """User and system time of this process and of all processes that it has started, living and ended."""
    total = sum(psutil.Process().cpu_times()[:4])
    for child in psutil.Process().children(recursive=True):
        try:
            total += sum(child.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


class Costs(RunCallback):
    """Records what each stage takes, rendering of its page included."""

    def __init__(self):
        self.start, self.costs = (time.perf_counter(), processor_seconds()), {}

    def record(self, name: str) -> None:
        """Add a line for what has passed since the line before."""
        now = time.perf_counter(), processor_seconds()
        self.costs[name] = tuple(after - before for after, before in zip(now, self.start, strict=True))
        self.start = now

    def on_stage_start(self, stage: str):
        """The time before the first stage is that of the fork server."""
        if not self.costs:
            self.record("start")
        return super().on_stage_start(stage)

    def on_stage_end(self, stage: str) -> None:
        """A stage has ended."""
        self.record(stage)


def measure(rows: int, columns: int, until: str = "") -> dict[str, tuple[float, float]]:
    """Wall and processor seconds of each stage on a table."""
    with TemporaryDirectory(prefix="mlcycle-bench-") as folder:
        made_table(rows, columns).to_csv(Path(folder) / "table.csv", index=False)
        plan = make_plan_from_parameters({"source": str(Path(folder) / "table.csv"), "target": "y"}, Path(folder))
        costs = Costs()
        run_plan(plan, StageChoice(until=until), costs)
        costs.record("end")
        return costs.costs


if __name__ == "__main__":
    for size in sys.argv[1:] or TABLES:
        found = measure(*map(int, size.split("x")), TABLES.get(size, ""))
        parts = {name: [round(float(value), 1) for value in both] for name, both in found.items()}
        total = [round(sum(both[place] for both in found.values()), 1) for place in (0, 1)]
        lines = (f"{name} {wall} {cpu}" for name, (wall, cpu) in parts.items())
        print(size, "wall and processor seconds:", *lines, f"all {total}", sep="\n  ")
