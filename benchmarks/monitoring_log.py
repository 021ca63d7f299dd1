"""What the prediction log costs a service, beside the same service with its log switched off.

`python benchmarks/monitoring.py log PROJECT` starts the service of the last release of a project with a prediction log, and sends
it 1,000 rows a second, some seconds at a time with the log switched on and off in turn: latency, CPU of the threads that receive
and predict, and CPU altogether, as ratios; then with as many requests as the service takes. Latencies of two processes of the
same service differ by tens of per cent as long as they live, so that both sides are measured in the same process. It is started
several times: the table has the median of the starts, with a 95 % interval, and the range. With `--url none`, there is no log to
switch on, which shows how much is chance. The load of other processes moves latencies, but hardly the CPU of threads.
"""

import asyncio
import json
import os
import signal
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

NAMES = ("mean latency", "p50", "p95", "requests a second", "CPU of the request path", "CPU altogether")
SERVICE = """
import signal, threading
from mlcycle.service.prediction_log import PredictionLog
add = PredictionLog.add
signal.signal(signal.SIGUSR1, lambda *_: setattr(PredictionLog, "add", add))
signal.signal(signal.SIGUSR2, lambda *_: setattr(PredictionLog, "add", lambda *words, **named: None))
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
    """What a service did for some seconds."""

    latencies: np.ndarray  # Milliseconds
    per_second: float  # Requests
    request_cpu: float  # Seconds per request, of all threads but those of the log
    log_cpu: float  # Of the threads and the process of the log

    def ratios(self, plain: "Measured") -> list[float]:
        """Ratios to the service without a log, in the order of `NAMES`."""
        percentiles = [np.percentile(self.latencies, q) / np.percentile(plain.latencies, q) for q in (50, 95)]
        percentiles.insert(0, self.latencies.mean() / plain.latencies.mean())
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


def measure_pairs(pid: int, port: int, bodies: list[bytes], rounds: int, seconds: float, pause: float) -> list[list[Measured]]:
    """Measure a service without and with its log in turn."""
    pairs = []
    for number in range(-1, rounds):  # The first one is a warm-up
        found = {}
        for switch in (signal.SIGUSR2, signal.SIGUSR1)[:: 1 if number % 2 else -1]:
            os.kill(pid, switch)
            time.sleep(0.5)  # The log of the side before is written
            found[switch] = measure(pid, port, bodies, seconds, pause)
        if number >= 0:
            pairs.append([found[signal.SIGUSR2], found[signal.SIGUSR1]])
    return pairs


def pooled(measured: list[Measured]) -> Measured:
    """All requests of one side."""
    rates = np.mean([[each.per_second, each.request_cpu, each.log_cpu] for each in measured], axis=0)
    return Measured(np.concatenate([each.latencies for each in measured]), *rates)


def print_ratios(starts: list[list[list[Measured]]]) -> None:
    """Print the ratios with and without the log: their medians over the starts, with an interval, and the range."""
    pairs = [pair for each in starts for pair in each]
    plain, logged = (
        np.mean([[each.per_second, 1e6 * each.request_cpu, 1e6 * each.log_cpu] for each in side], axis=0)
        for side in zip(*pairs, strict=True)
    )
    print(f"\n{len(starts)} starts, {len(pairs)} pairs; {plain[0]:.0f} requests a second without log, {logged[0]:.0f} with it;")
    print(f"CPU per request {plain[1]:.0f} us without log; with it {logged[1]:.0f} us, and {logged[2]:.0f} us of the log\n")
    print("| with / without log | median of the starts | 95 % interval | range |\n| --- | --- | --- | --- |")
    sides = [[pooled(side) for side in zip(*each, strict=True)] for each in starts]
    ratios = np.array([with_log.ratios(without) for without, with_log in sides])
    drawn = np.random.default_rng(0).integers(0, len(ratios), (2000, len(ratios)))
    intervals = np.percentile(np.median(ratios[drawn], axis=1), [2.5, 97.5], axis=0).T
    for name, values, (low, high) in zip(NAMES, ratios.T, intervals, strict=True):
        shown = f"{np.median(values):.3f} | {low:.3f} to {high:.3f} | {values.min():.3f} to {values.max():.3f}"
        print(f"| {name} | {shown} |", flush=True)


@app.command()
def log(
    project: Project,
    starts: Annotated[int, typer.Option(help="Starts of the service.")] = 8,
    rounds: Annotated[int, typer.Option(help="Pairs of measurements for each start.")] = 5,
    seconds: Annotated[float, typer.Option(help="Length of each measurement.")] = 2.0,
    rows: Annotated[int, typer.Option(help="Rows of a request.")] = 10,
    rate: Annotated[float, typer.Option(help="Rows per second.")] = 1000.0,
    saturated: Annotated[int, typer.Option(help="The same with as many requests as the service takes.")] = 2,
    url: Annotated[str, typer.Option(help="SQLAlchemy URL of the log; empty: a SQLite file in a new folder; none: no log.")] = "",
    port: Annotated[int, typer.Option(help="A free port.")] = 18481,
) -> None:
    """Latency and CPU with a prediction log, as ratios to those without, in interleaved pairs."""
    run = released_run(project)
    bundle, sent = str(run.workspace.root / run.release.bundle), request_rows(run, 20 * rows)
    bodies = [json.dumps({"rows": sent[start : start + rows]}).encode() for start in range(0, len(sent), rows)]
    print(f"{os.cpu_count()} cores; {len(sent[0])} columns; {rows} rows a request")
    paced, full = [], []
    for _ in tqdm(range(starts), desc="starts"):
        with TemporaryDirectory() as folder:
            address = "" if url == "none" else url or f"sqlite:///{folder}/events.db"
            command = [sys.executable, "-c", SERVICE, bundle, "--port", str(port)]
            service = Server("service", command, "/predict", "rows", {"MLCYCLE_EVENTS_URL": address})
            with started(service, port, bodies[0]) as process:
                paced.append(measure_pairs(process.pid, port, bodies, rounds, seconds, 4 * rows / rate))
                if saturated:
                    full.append(measure_pairs(process.pid, port, bodies, saturated, seconds, 0))
            if address and not url:
                engine = open_event_log(address)
                tqdm.write(f"written: {int(recorded_versions(engine).rows.sum()):,} rows")
                engine.dispose()
    for found in filter(None, (paced, full)):
        print_ratios(found)
