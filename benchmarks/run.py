"""Compare mlcycle with peers on one machine, side by side, as ratios."""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import batch
import cleaning
import data
import engine
import explore
import features
import model
import noop
import service
import typer
from comparison import Comparison
from rich.console import Console
from rich.status import Status
from rich.table import Table

from mlcycle.cli.base import exit_on_error
from mlcycle.cli.run import StageProgress
from mlcycle.core.runs import Run
from mlcycle.core.versions import RUN_PACKAGES, installed_versions
from mlcycle.lifecycle.choice import StageChoice
from mlcycle.lifecycle.plan import make_plan_from_parameters
from mlcycle.lifecycle.runner import run_plan

BENCHMARKS = {"service": service.compare, "model": model.compare}  # Of a release
ALONE = {
    "data": data.compare,
    "cleaning": cleaning.compare,
    "explore": explore.compare,
    "features": features.compare,
    "engine": engine.compare,
    "noop": noop.compare,
    "batch": batch.compare,
}
Name = StrEnum("Name", [*BENCHMARKS, *ALONE])
console = Console()


def make_release(source: str, folder: Path) -> Run:
    """A run up to its release."""
    bars = StageProgress()
    with bars.progress:
        run = run_plan(make_plan_from_parameters({"source": source}, folder), StageChoice(until="deployment"), bars)
    if not run.release.released:
        raise SystemExit(f"There is nothing to compare: {run.release.decision}")
    return run


def measure(names: list[str], source: str) -> list[Comparison]:
    """The comparisons of some benchmarks; all state goes with the folder."""
    lines, about_runs = [], [name for name in names if name in BENCHMARKS]
    with TemporaryDirectory(prefix="mlcycle-bench-") as folder:
        run = make_release(source, Path(folder)) if about_runs else None
        for name in [*about_runs, *(name for name in names if name in ALONE)]:
            with console.status(name) as status:

                def step(what: str, name: str = name, status: Status = status) -> None:
                    status.update(f"{name}: {what}")

                lines += BENCHMARKS[name](run, step) if name in BENCHMARKS else ALONE[name](step)
    return lines


def main(
    names: Annotated[list[Name] | None, typer.Argument(help="Which ones; all if none is named.")] = None,
    source: Annotated[str, typer.Option(help="Bundled source: sample, or flights (takes long).")] = "sample",
    out: Annotated[Path | None, typer.Option(help="JSON file for what was measured.")] = None,
):
    """Compare mlcycle with peers on this machine, as ratios; nothing passes or fails by the clock."""
    with exit_on_error():
        lines = measure(names or [*BENCHMARKS, *ALONE], source)
        table = Table("what", "ours", "theirs", "ours / theirs", "min - max", "better", "note", title="Medians")
        for line in lines:
            table.add_row(*line.cells())
        console.print(table)
        if out:
            measured = [asdict(line) | {"ratios": line.ratios} for line in lines]
            out.parent.mkdir(parents=True, exist_ok=True)
            facts = {"source": source, "versions": installed_versions(RUN_PACKAGES), "lines": measured}
            out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
