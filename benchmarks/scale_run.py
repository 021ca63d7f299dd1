"""One run of mlcycle on a large table: seconds of its stages, and memory of all its processes."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet

PAUSE = 0.5  # Seconds between two measurements of memory
PROGRAMS = {"distributed.cli.dask_scheduler": "scheduler", "distributed.cli.dask_worker": "worker"}


@dataclass
class MemoryWatch:
    """The largest memory of a tree of processes: proportional set size (PSS), in which shared pages count once."""

    root: psutil.Process
    seen: dict[psutil.Process, str] = field(default_factory=dict)  # What each process is part of
    peaks: dict[str, int] = field(default_factory=dict)  # Bytes: of all processes together, and of the largest one of each part

    def measure(self) -> None:
        """Measure all processes that were ever part of the tree and are alive."""
        total = 0
        self.seen.setdefault(self.root, "run")
        for process in list(self.seen):  # One whose parent has ended is no longer found from the root
            for child in _children(process):
                self.seen.setdefault(child, _part_of(child, self.seen[process]))
        for process, part in list(self.seen.items()):
            try:
                size = process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                del self.seen[process]
                continue
            total += size
            self.peaks[part] = max(self.peaks.get(part, 0), size)
        self.peaks["tree"] = max(self.peaks.get("tree", 0), total)


def _children(process: psutil.Process) -> list[psutil.Process]:
    """The processes that a process has started itself."""
    try:
        return process.children()
    except psutil.NoSuchProcess:
        return []


def _part_of(process: psutil.Process, parent: str) -> str:
    """What a process is part of: by its command, or the same as its parent."""
    try:
        command = process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return parent
    return next((part for program, part in PROGRAMS.items() if program in command), parent)


def count_rows(path: Path) -> int:
    """The number of rows of a file; fields of these tables have no line breaks."""
    if path.suffix == ".parquet":
        return pyarrow.parquet.ParquetFile(path).metadata.num_rows
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**24), b"")) - 1


def write_settings(project: Path, executor: str, workers: int, memory_limit: str, scheduler: str) -> None:
    """Create the folder of a project with settings of execution."""
    project.mkdir(parents=True)
    (project / "settings.ini").write_text(
        f"[execution]\nexecutor = {executor}\nworkers = {workers}\nmemory_limit = {memory_limit}\nscheduler = {scheduler}\n"
    )


def measure_run(source: Path, project: Path, until: str, options: list[str]) -> dict:
    """Run the stages in a folder that has settings; the record of what they have cost."""
    program = Path(sys.executable).parent / "mlcycle"
    command = [program, "run", "--source", source.resolve(), "--target", "late", "--until", until, *options]
    start = time.perf_counter()
    with open(project / "log", "w") as log, subprocess.Popen(command, cwd=project, stdout=log, stderr=log) as process:
        watch = MemoryWatch(psutil.Process(process.pid))
        while process.poll() is None:
            began = time.perf_counter()
            watch.measure()
            time.sleep(max(PAUSE, 20 * (time.perf_counter() - began)))  # Else measuring slows the workers down
    seconds = round(time.perf_counter() - start, 1)
    runs = sorted((project / ".mlcycle" / "runs").glob("*/run.json"))
    stages = json.loads(runs[-1].read_text()).get("stages", {}) if runs else {}
    return {"exit": process.returncode, "seconds": seconds, "stages": {name: each["seconds"] for name, each in stages.items()},
            "peak_mb": {part: round(size / 1e6) for part, size in watch.peaks.items()}}  # fmt: skip
