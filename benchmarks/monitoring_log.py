"""What the prediction log costs a service, beside the same service without one.

`python benchmarks/monitoring.py log PROJECT` starts two services of the last release of a project, with and without a prediction
log, and sends each of them 1,000 rows a second in turn, some seconds at a time: latency, CPU of the threads that receive and
predict, and CPU altogether, as ratios of pairs; then with as many requests as the services take. Two processes of the same
service differ by as much as ten per cent as long as they live, so that the services are started several times: each pair of
processes gives the median of its ratios, and the table has the median and the range of the processes. With `--url none`, both
services have no log, which shows how much is chance. The load of other processes moves latencies, but hardly the CPU of threads.
"""

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from serving import Project, Server, send, started
from serving_rows import released_run, request_rows
from tqdm import tqdm

from mlcycle.stores.event_export import recorded_versions
from mlcycle.stores.event_log import open_event_log

app = typer.Typer(add_completion=False, help=__doc__)

NAMES = ("p50", "p95", "requests a second", "CPU of the request path", "CPU altogether")
NAMED_THREADS = """
import threading
start = threading.Thread._bootstrap_inner
def bootstrap(thread):
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as file:
        file.write(thread.name[:15])
    start(thread)
threading.Thread._bootstrap_inner = bootstrap
from mlcycle.service.server import main
main()
"""


@dataclass(frozen=True)
class Measured:
    """What one service did for some seconds."""

    latencies: np.ndarray  # Milliseconds
    per_second: float  # Requests
    request_cpu: float  # Seconds per request, of all threads but those of the log
    log_cpu: float  # Of the threads and the process of the log

    def ratios(self, plain: "Measured") -> list[float]:
        """Ratios to another service, in the order of `NAMES`."""
        percentiles = [np.percentile(self.latencies, q) / np.percentile(plain.latencies, q) for q in (50, 95)]
        whole = (self.request_cpu + self.log_cpu) / (plain.request_cpu + plain.log_cpu)
        return [*percentiles, self.per_second / plain.per_second, self.request_cpu / plain.request_cpu, whole]


def thread_seconds(pid: int) -> np.ndarray:
    """CPU seconds of the threads that receive and predict, and of the threads and the process of the prediction log."""
    seconds = np.zeros(2)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for process in [str(pid), *children]:
        for task in Path(f"/proc/{process}/task").iterdir():
            is_log = process in children or (task / "comm").read_text().startswith("mlcycle-event")
            seconds[int(is_log)] += int((task / "schedstat").read_text().split()[0]) / 1e9
    return seconds


def measure(pid: int, port: int, bodies: list[bytes], seconds: float, pause: float) -> Measured:
    """Send requests for some seconds."""
    before, start = thread_seconds(pid), time.perf_counter()
    latencies = np.array(asyncio.run(send(port, "/predict", bodies, 4, seconds, pause))) * 1000
    elapsed = time.perf_counter() - start
    request_cpu, log_cpu = (thread_seconds(pid) - before) / len(latencies)
    return Measured(latencies, len(latencies) / elapsed, request_cpu, log_cpu)


def measure_pairs(services: list, bodies: list[bytes], rounds: int, seconds: float, pause: float) -> list[list[Measured]]:
    """Measure the services without and with a log in turn."""
    pairs = []
    for number in range(-1, rounds):  # The first one is a warm-up
        order = services if number % 2 else services[::-1]
        found = {port: measure(process.pid, port, bodies, seconds, pause) for process, port in order}
        if number >= 0:
            pairs.append([found[port] for _, port in services])
    return pairs


def print_ratios(starts: list[list[list[Measured]]]) -> None:
    """Print the ratios of the pairs of each start: their medians over the starts, and the range."""
    pairs = [pair for each in starts for pair in each]
    plain, logged = (
        np.mean([[each.per_second, 1e6 * each.request_cpu, 1e6 * each.log_cpu] for each in side], axis=0)
        for side in zip(*pairs, strict=True)
    )
    print(f"\n{len(starts)} starts, {len(pairs)} pairs; {plain[0]:.0f} requests a second without log, {logged[0]:.0f} with it;")
    print(f"CPU per request {plain[1]:.0f} us without log; with it {logged[1]:.0f} us, and {logged[2]:.0f} us of the log\n")
    print("| with / without log | median of the starts | range |\n| --- | --- | --- |")
    medians = [np.median([with_log.ratios(without) for without, with_log in each], axis=0) for each in starts]
    for name, (low, middle, high) in zip(NAMES, np.percentile(medians, [0, 50, 100], axis=0).T, strict=True):
        print(f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} |", flush=True)


@app.command()
def log(
    project: Project,
    starts: Annotated[int, typer.Option(help="Pairs of processes.")] = 8,
    rounds: Annotated[int, typer.Option(help="Pairs of measurements for each pair of processes.")] = 5,
    seconds: Annotated[float, typer.Option(help="Length of each measurement.")] = 2.0,
    rows: Annotated[int, typer.Option(help="Rows of a request.")] = 10,
    rate: Annotated[float, typer.Option(help="Rows per second.")] = 1000.0,
    saturated: Annotated[int, typer.Option(help="The same with as many requests as the services take.")] = 2,
    url: Annotated[str, typer.Option(help="SQLAlchemy URL of the log; empty: a SQLite file in a new folder; none: no log.")] = "",
    port: Annotated[int, typer.Option(help="The first of two free ports.")] = 18481,
) -> None:
    """Latency and CPU with a prediction log, as ratios to those without, in interleaved pairs."""
    run = released_run(project)
    bundle, sent = str(run.workspace.root / run.release.bundle), request_rows(run, 20 * rows)
    bodies = [json.dumps({"rows": sent[start : start + rows]}).encode() for start in range(0, len(sent), rows)]
    print(f"{os.cpu_count()} cores; {len(sent[0])} columns; {rows} rows a request")
    paced, full = [], []
    for start in tqdm(range(starts), desc="starts"):
        with TemporaryDirectory() as folder:
            address = "" if url == "none" else url or f"sqlite:///{folder}/events.db"
            command = [sys.executable, "-c", NAMED_THREADS, bundle, "--port"]
            ports = (port, port + 1) if start % 2 else (port + 1, port)
            plain = Server("without", [*command, str(ports[0])], "/predict", "rows", {"MLCYCLE_EVENTS_URL": ""})
            logged = Server("with", [*command, str(ports[1])], "/predict", "rows", {"MLCYCLE_EVENTS_URL": address})
            with started(plain, ports[0], bodies[0]) as without, started(logged, ports[1], bodies[0]) as with_log:
                services = [(without, ports[0]), (with_log, ports[1])]
                paced.append(measure_pairs(services, bodies, rounds, seconds, 4 * rows / rate))
                if saturated:
                    full.append(measure_pairs(services, bodies, saturated, seconds, 0))
            if address and not url:
                engine = open_event_log(address)
                tqdm.write(f"written: {int(recorded_versions(engine).rows.sum()):,} rows")
                engine.dispose()
    for found in filter(None, (paced, full)):
        print_ratios(found)
