"""What the prediction log costs a service, beside the same service without one.

`python benchmarks/monitoring.py log PROJECT` starts two services of the last release of a project, with and without a prediction
log, and sends each of them 1,000 rows a second in turn, for some seconds at a time: CPU of the process and latency, as ratios of
pairs; how many rows a second the log has written.
"""

import asyncio
import json
import os
import sys
import time
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from serving import Project, Server, cpu_seconds, send, started
from serving_rows import released_run, request_rows

from mlcycle.stores.event_export import recorded_versions
from mlcycle.stores.event_log import open_event_log

app = typer.Typer(add_completion=False, help=__doc__)


def measure(process, port: int, bodies: list[bytes], seconds: float, pause: float) -> tuple[float, np.ndarray, float]:
    """CPU seconds of a server per request, latencies in milliseconds, and requests per second."""
    before, start = cpu_seconds(process), time.perf_counter()
    latencies = np.array(asyncio.run(send(port, "/predict", bodies, 4, seconds, pause))) * 1000
    elapsed = time.perf_counter() - start
    return (cpu_seconds(process) - before) / len(latencies), latencies, len(latencies) / elapsed


@app.command()
def log(
    project: Project,
    rounds: Annotated[int, typer.Option(help="Pairs of measurements.")] = 6,
    seconds: Annotated[float, typer.Option(help="Length of each measurement.")] = 5.0,
    rows: Annotated[int, typer.Option(help="Rows of a request.")] = 10,
    rate: Annotated[float, typer.Option(help="Rows per second.")] = 1000.0,
    url: Annotated[str, typer.Option(help="SQLAlchemy URL of the log; default: a SQLite file in a new folder.")] = "",
    port: Annotated[int, typer.Option(help="The first of two free ports.")] = 18481,
) -> None:
    """CPU and latency with a prediction log, as ratios to those without, in interleaved pairs."""
    run = released_run(project)
    bundle, sent = str(run.workspace.root / run.release.bundle), request_rows(run, 20 * rows)
    bodies = [json.dumps({"rows": sent[start : start + rows]}).encode() for start in range(0, len(sent), rows)]
    with TemporaryDirectory() as folder:
        url = url or f"sqlite:///{folder}/events.db"
        command = [sys.executable, "-c", "from mlcycle.service.server import main; main()", bundle, "--port"]
        plain = Server("without", [*command, str(port)], "/predict", "rows", {"MLCYCLE_EVENTS_URL": ""})
        logged = Server("with", [*command, str(port + 1)], "/predict", "rows", {"MLCYCLE_EVENTS_URL": url})
        ratios = []
        with started(plain, port, bodies[0]) as without, started(logged, port + 1, bodies[0]) as with_log:
            pairs = [(without, port), (with_log, port + 1)]
            for number in range(-1, rounds):  # The first one is a warm-up
                found = {}
                for process, at in pairs if number % 2 else pairs[::-1]:
                    found[at] = measure(process, at, bodies, seconds, 4 * rows / rate)
                if number >= 0:
                    (cpu, latency, _), (cpu_log, latency_log, per_second) = (found[at] for _, at in pairs)
                    percentiles = [np.percentile(latency_log, q) / np.percentile(latency, q) for q in (50, 95)]
                    ratios.append([cpu_log / cpu, *percentiles, per_second * rows])
                    print(" ".join(f"{value:.3f}" for value in ratios[-1]), flush=True)
            time.sleep(1)  # The last events are written
        written = int(recorded_versions(engine := open_event_log(url)).rows.sum())
        engine.dispose()
    cpu, p50, p95, per_second = np.median(ratios, axis=0)
    print(f"{os.cpu_count()} cores; {len(sent[0])} columns; {rows} rows a request; {rounds} pairs of {seconds:g} s; medians:")
    print(f"rows a second {per_second:.0f}, written {written:,}; with / without log: CPU {cpu:.3f}, p50 {p50:.3f}, p95 {p95:.3f}")
