"""Large tables, measured: seconds and memory of the stages by rows and workers.

`python benchmarks/scale.py make FOLDER --rows 30000000` writes a table of 20 columns, the same for the same rows and seed.
`python benchmarks/scale.py run FILE… --executor dask --workers 1,2,4 --until data` runs stages and appends to a JSON Lines file.
`python benchmarks/scale.py report scale.jsonl` prints tables and a model of the cost, in Markdown.
"""

import json
import os
import shutil
import sys
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parent))

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)


class Format(StrEnum):
    """Of the table."""

    csv = "csv"
    parquet = "parquet"


class Executor(StrEnum):
    """Of `settings.ini`."""

    local = "local"
    dask = "dask"


@app.command()
def make(
    folder: Annotated[Path, typer.Argument(help="Receives flights-ROWS.csv.")],
    rows: Annotated[int, typer.Option(min=1)] = 30_000_000,
    kind: Annotated[Format, typer.Option("--format")] = Format.csv,
    seed: int = 0,
) -> None:
    """Write a table of flights with noise and dirt."""
    from scale_table import write_table

    folder.mkdir(parents=True, exist_ok=True)
    path, start = folder / f"flights-{rows}.{kind}", time.perf_counter()
    write_table(path, rows, seed)
    print(f"{path}: {rows:,} rows, {path.stat().st_size / 1e9:.2f} GB, {time.perf_counter() - start:.1f} s")


@app.command()
def run(
    files: Annotated[list[Path], typer.Argument(help="Tables that `make` has written.", exists=True)],
    executor: Executor = Executor.local,
    workers: Annotated[str, typer.Option(help="Numbers of workers, each in a run of its own; only for dask.")] = "2",
    memory_limit: Annotated[str, typer.Option(help="Of each worker.")] = "2 GB",
    scheduler: Annotated[str, typer.Option(help="Of a running cluster, whose memory is not measured.")] = "",
    until: Annotated[str, typer.Option(help="Last stage.")] = "data",
    option: Annotated[list[str] | None, typer.Option(help="Further word for `mlcycle run`.")] = None,
    output: Annotated[Path, typer.Option(help="JSON Lines file; lines are appended.")] = Path("scale.jsonl"),
    projects: Annotated[Path | None, typer.Option(help="Folder for the projects; default: beside the table.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the projects; those of failed runs are always kept.")] = False,
) -> None:
    """Run the stages in a new project for each table and number of workers."""
    from scale_run import count_rows, measure_run, write_settings

    from mlcycle.core.versions import installed_versions

    failed = False
    for file in files:
        rows = count_rows(file)
        for many in [int(word) for word in workers.split(",")] if executor == Executor.dask else [1]:
            moment = datetime.now(UTC)
            project = (projects or file.parent) / f"scale-{moment:%Y%m%d-%H%M%S-%f}"
            write_settings(project, executor, many, memory_limit, scheduler)
            found = measure_run(file, project, until, option or [])
            line = {"moment": moment.isoformat(timespec="seconds"), "file": file.name, "format": file.suffix[1:], "rows": rows,
                    "bytes": file.stat().st_size, "executor": executor.value, "workers": many, "memory_limit": memory_limit,
                    "until": until, "options": option or [], "cores": os.cpu_count(),
                    "versions": installed_versions(("dask", "pandas", "pyarrow")),
                    **found}  # fmt: skip
            with open(output, "a") as lines:
                lines.write(json.dumps(line) + "\n")
            print(json.dumps(line))
            failed |= found["exit"] != 0
            if found["exit"] == 0 and not keep:
                shutil.rmtree(project)
            elif found["exit"] != 0:
                print(f"The run has failed: {project / 'log'}", file=sys.stderr)
    raise typer.Exit(failed)


@app.command()
def report(file: Annotated[Path, typer.Argument(help="JSON Lines file of `run`.", exists=True)]) -> None:
    """Print tables and a model of the cost."""
    from scale_report import report_scale

    print(report_scale([json.loads(line) for line in file.read_text().splitlines()]))


if __name__ == "__main__":
    app()
