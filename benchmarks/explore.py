"""Stage 3's exploration of a wide table: CPU seconds and peak memory beside those of pandas describing it."""

import json
import subprocess
import sys
import time
from collections.abc import Callable

from comparison import Comparison
from data import GIGABYTE, peak_memory

PEER, SIZES, ROUNDS = "DataFrame.describe(include='all')", (100_000, 1_000_000), 3


def make_table(rows: int, seed: int = 0):
    """A hundred columns: 60 numbers, 30 texts of 3 to 50,000 values, 5 truth values, 4 times, and the answer."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(seed)
    late, columns = rng.random(rows) < 0.25, {}
    for i in range(60):
        values = rng.normal(size=rows) + late * (i % 10) / 10
        if i % 4 == 0:
            values[rng.random(rows) < 0.2] = np.nan
        columns[f"number {i}"] = (values, np.round(values * 10), np.exp(values), values)[i % 4]
    for i in range(30):
        distinct = np.array([f"value {j}" for j in range((3, 10, 100, 5_000, 50_000)[i % 5])], dtype=object)
        columns[f"text {i}"] = pd.array(distinct, dtype="str").take(rng.integers(0, len(distinct), rows))
    columns |= {f"truth {i}": rng.random(rows) < 0.5 for i in range(5)}
    start = pd.Timestamp("2020-01-01")
    columns |= {f"time {i}": start + pd.to_timedelta(rng.integers(0, 10**8, rows), unit="s") for i in range(4)}
    return pd.DataFrame(columns | {"late": np.where(late, "yes", "no")})


def ours(table) -> Callable[[], object]:
    """All that the pages show."""
    from types import SimpleNamespace

    from mlcycle.features.explore.explore import explore, top_findings

    asked = SimpleNamespace(task="binary", positive="yes", time="time 0")
    return lambda: top_findings(explore(table, "late", asked))


def theirs(table) -> Callable[[], object]:
    """What pandas says about it."""
    return lambda: table.describe(include="all")


def act(what: str, rows: int) -> None:
    """Do one thing in this process, and print what it cost; the peak is of the whole process, table and imports too."""
    step = {"ours": ours, "theirs": theirs}[what](make_table(rows))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # The peak of making the table is forgotten
    start = time.process_time()
    step()
    print(json.dumps({"cpu": time.process_time() - start, "memory": peak_memory()}))


def cost(what: str, rows: int) -> dict[str, float]:
    """What one thing costs in a process of its own: CPU seconds, and peak memory in bytes."""
    done = subprocess.run([sys.executable, __file__, what, str(rows)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(step: Callable[[str], None], sizes: tuple[int, ...] = SIZES, rounds: int = ROUNDS) -> list[Comparison]:
    """CPU seconds and peak memory, for each number of rows."""
    found = []
    for rows in sizes:
        turns = []
        for turn in range(rounds):
            step(f"{rows:,} rows x 100 columns, round {turn + 1} of {rounds}")
            turns.append((cost("ours", rows), cost("theirs", rows)))
        cpu = [[turn[side]["cpu"] for turn in turns] for side in (0, 1)]
        memory = [[turn[side]["memory"] / GIGABYTE for turn in turns] for side in (0, 1)]
        found += [
            Comparison(f"exploring {rows:,} rows x 100 columns: CPU, s", PEER, *cpu, better="lower"),
            Comparison("the same: peak memory with the table, GiB", PEER, *memory, better="lower"),
        ]
    return found


if __name__ == "__main__":
    act(sys.argv[1], int(sys.argv[2]))
