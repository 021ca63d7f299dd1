"""A run with nothing to do beside DVC's `repro` with nothing to do: seven stages, files of the same sizes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from comparison import Comparison
from table import QUICK, make_project, mlcycle

from mlcycle.core.runs import Run, get_run
from mlcycle.nb.notebook import stage_notebooks

PEER, ROUNDS = "dvc repro", 9


@dataclass(frozen=True)
class Cost:
    """What a command took, with all processes that it started and waited for."""

    cpu: float
    wall: float


def measured(command: list, cwd: Path) -> Cost:
    """Run a command to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    with process.stderr as complaints:
        if process.returncode:
            raise SystemExit(f"{command} failed:\n{complaints.read().decode()}")
    return Cost(used.ru_utime + used.ru_stime, wall)


@contextmanager
def dvc_command() -> Iterator[Path]:
    """The peer, in an environment of its own that goes afterwards; $DVC names one that is there already."""
    if "DVC" in os.environ:
        yield Path(os.environ["DVC"])
        return
    with TemporaryDirectory(prefix="mlcycle-dvc-") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([f"{folder}/bin/python", "-m", "pip", "install", "--quiet", "dvc"], check=True)
        yield Path(folder) / "bin" / "dvc"


def stage_files(run: Run) -> dict[str, tuple[int, list[int]]]:
    """The size of each stage's notebook, and of each file that it leaves: its outcome and what that stands for."""
    sizes = {}
    for stage, notebook in stage_notebooks(run.workspace.project).items():
        left = json.loads((run.folder / f"{stage}.files.json").read_text())
        files = [run.folder / f"{stage}.json", *(run.workspace.root / name for name in left)]
        sizes[stage] = notebook.stat().st_size, [path.stat().st_size for path in files]
    return sizes


def make_peer(run: Run, dvc: Path, folder: Path) -> None:
    """A DVC project with a stage for each of a run's: same sizes, same order, as many parameters; run once."""
    folder.mkdir()
    stages, before = {}, ["table.csv"]
    (folder / "table.csv").write_bytes(os.urandom((run.workspace.project / "table.csv").stat().st_size))
    (folder / "make.py").write_text("import os, sys\nfor name, size in zip(sys.argv[1::2], sys.argv[2::2]):\n"
                                    "    open(name, 'wb').write(os.urandom(int(size)))\n")  # fmt: skip
    for stage, (size, left) in stage_files(run).items():
        (folder / f"{stage}.ipynb").write_bytes(os.urandom(size))
        outs = [f"{stage}-{number}" for number in range(len(left))]
        words = " ".join(f"{name} {size}" for name, size in zip(outs, left, strict=True))
        stages[stage] = {"cmd": f"{sys.executable} make.py {words}", "deps": [f"{stage}.ipynb", *before], "outs": outs,
                         "params": list(QUICK)}  # fmt: skip
        before = [*before, outs[0]]
    (folder / "params.yaml").write_text(yaml.safe_dump(QUICK))
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    quiet = (["config", "core.analytics", "false"], ["config", "core.check_update", "false"])
    for words in (["init", "--no-scm", "-q"], *quiet, ["repro", "-q"]):
        measured([dvc, *words], folder)


def compare(step: Callable[[str], None], rounds: int = ROUNDS) -> list[Comparison]:
    """CPU and wall time of both, in turn."""
    with TemporaryDirectory(prefix="mlcycle-noop-") as folder, dvc_command() as dvc:
        project = make_project(Path(folder) / "ours")
        step("a first run")
        ours = mlcycle("run", "-q")
        measured(ours, project)
        step(f"a first {PEER}")
        make_peer(get_run("last", project), dvc, Path(folder) / "theirs")
        turns = []
        for turn in range(rounds + 1):
            step(f"round {turn} of {rounds}")
            turns.append((measured(ours, project), measured([dvc, "repro"], Path(folder) / "theirs")))
        if len(list(project.glob(".mlcycle/runs/*/run.json"))) != 1:
            raise SystemExit("There was something to do: the comparison means nothing.")
    kept = turns[1:]  # The first turn read everything from the disk
    names = {"cpu": "a run with nothing to do: CPU, s", "wall": "the same: wall time, s"}
    return [
        Comparison(what, PEER, *([getattr(pair[side], name) for pair in kept] for side in (0, 1)), better="lower")
        for name, what in names.items()
    ]
