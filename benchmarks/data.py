"""From a CSV file to contract-checked, cleaned, split Delta tables, beside pandas reading it and writing Parquet."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from comparison import Comparison

PEER, SIZES, ROUNDS = "pandas.read_csv and to_parquet", (150_000, 1_500_000, 6_000_000), 3
GIGABYTE = 2**30


def write_csv(path: Path, rows: int, at_once: int = 500_000) -> None:
    """A table of orders: five numbers, three texts of few values, a time, a code, and whether it came late."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(0)
    for start in range(0, rows, at_once):
        n = min(at_once, rows - start)
        placed = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 10**8, n)) + start, unit="s")
        weight, distance = rng.gamma(2, 3, n).round(2), rng.integers(1, 2_000, n)
        pd.DataFrame({
            "placed": placed,
            "customer": np.char.add("C", rng.integers(10_000, 60_000, n).astype(str)),
            "shop": rng.choice(["Rome", "Oslo", "Lima", "Kyoto", "Porto"], n),
            "carrier": rng.choice(["red", "blue", "green"], n),
            "express": rng.choice(["no", "yes"], n),
            "weight": weight,
            "distance": distance,
            "price": (rng.lognormal(3, 1, n)).round(2),
            "items": rng.integers(1, 9, n),
            "late": np.where(rng.random(n) < 1 / (1 + np.exp(3 - distance / 700 - weight / 9)), "yes", "no"),
        }).to_csv(path, mode="a", header=start == 0, index=False)  # fmt: skip


def ours(file: Path, folder: Path) -> Callable[[], object]:
    """Stage 2, for a problem that is written already."""
    import duckdb  # noqa: F401  # What is imported late is imported now: imports are not compared
    import pandera.pandas  # noqa: F401

    from mlcycle.core.workspace import Workspace
    from mlcycle.data.stage import prepare_data
    from mlcycle.outcomes import Problem

    problem = Problem.model_validate_json((folder / "problem.json").read_text())
    return lambda: prepare_data(problem, Workspace(folder / "project"))


def theirs(file: Path, folder: Path) -> Callable[[], object]:
    """What anybody would write."""
    import pandas as pd

    return lambda: pd.read_csv(file).to_parquet(folder / "table.parquet")


def write_problem(file: Path, folder: Path) -> Callable[[], object]:
    """Stage 1, which is not measured."""
    from mlcycle.problem.stage import define_problem

    return lambda: (folder / "problem.json").write_text(define_problem(str(file), "late", time="placed").model_dump_json())


def peak_memory() -> int:
    """The largest memory of this process so far, in bytes."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def act(what: str, file: Path, folder: Path) -> None:
    """Do one thing in this process, and print what it cost."""
    step = {"ours": ours, "theirs": theirs, "write_problem": write_problem}[what](file, folder)
    Path("/proc/self/clear_refs").write_text("5")  # The peak of the imports is forgotten
    before, start = peak_memory(), time.process_time()
    step()
    print(json.dumps({"cpu": time.process_time() - start, "memory": peak_memory() - before}))


def cost(what: str, file: Path, folder: Path) -> dict[str, float]:
    """What one thing costs in a process of its own: CPU seconds, and memory beyond the imports in bytes."""
    command = [sys.executable, __file__, what, str(file), str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout.splitlines()[-1])


def frame_size(file: Path) -> int:
    """Bytes of the table as pandas holds it."""
    import pandas as pd

    return int(pd.read_csv(file).memory_usage(deep=True).sum())


def compare(step: Callable[[str], None], sizes: tuple[int, ...] = SIZES, rounds: int = ROUNDS) -> list[Comparison]:
    """CPU time beside the peer, and peak memory beside the size of the frame, for each number of rows."""
    found = []
    for rows in sizes:
        with TemporaryDirectory(prefix="mlcycle-data-") as name:
            folder, file = Path(name), Path(name) / "orders.csv"
            step(f"{rows:,} rows are written")
            write_csv(file, rows)
            (folder / "project").mkdir()
            cost("write_problem", file, folder)
            turns = []
            for turn in range(rounds):
                step(f"{rows:,} rows, round {turn + 1} of {rounds}")
                turns.append((cost("ours", file, _fresh(folder, turn)), cost("theirs", file, folder)))
            size = frame_size(file) / GIGABYTE
        cpu = [[turn[side]["cpu"] for turn in turns] for side in (0, 1)]
        memory = [turn[0]["memory"] / GIGABYTE for turn in turns]
        found += [
            Comparison(f"{rows:,} rows of CSV to Delta: CPU, s", PEER, *cpu, better="lower"),
            Comparison("the same: peak memory, GiB", "its frame in pandas", memory, [size] * rounds, better="lower"),
        ]
    return found


def _fresh(folder: Path, turn: int) -> Path:
    """A folder of its own for each turn, with the same problem."""
    fresh = folder / str(turn)
    (fresh / "project").mkdir(parents=True)
    (fresh / "problem.json").write_text((folder / "problem.json").read_text())
    return fresh


if __name__ == "__main__":
    act(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
