"""CPU and latency of a released model over HTTP, beside other servers of the same pipeline, in the same run.

`python benchmarks/serving.py load PROJECT` starts each server by itself, with one worker and one thread, and sends one-row
requests from 1 and from 8 clients: CPU milliseconds of the server per request, median and 99th percentile of the latency,
requests per second. `python benchmarks/serving.py soak PROJECT --minutes 60` sends rows for an hour and prints the memory of
the service. LitServe needs an environment of its own: `benchmarks/environments/serving.txt`, whose Python is given as
`--litserve`.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from signal import SIGKILL, SIGTERM
from tempfile import TemporaryFile
from typing import Annotated

import numpy as np
import psutil
import typer
from serving_rows import released_run, request_rows

HERE = Path(__file__).parent
HEAD = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
app = typer.Typer(add_completion=False, help=__doc__)
Project = Annotated[Path, typer.Argument(help="A folder with a run that released a model.")]


@dataclass(frozen=True)
class Server:
    """A way to serve the model."""

    name: str
    command: list[str]
    path: str  # Of the requests
    key: str  # Of the rows in the body
    environment: dict[str, str]


def servers(run, port: int, litserve: str) -> Iterator[Server]:
    """The servers that are compared; all of them predict with the same registered model."""
    bundle, model = run.workspace.root / run.release.bundle, run.candidate.model
    python, place = sys.executable, ["--host", "127.0.0.1", "--port", str(port)]
    ours = [python, "-c", "from mlcycle.service.server import main; main()", str(bundle), *place]
    yield Server("mlcycle", ours, "/predict", "rows", {})
    yield Server("mlcycle, /invocations", ours, "/invocations", "dataframe_records", {})
    yield Server("mlcycle with ONNX Runtime", [*ours, "--accelerate", "true"], "/predict", "rows", {})
    yield Server("plain FastAPI", [python, str(HERE / "serving_fastapi.py"), str(bundle), str(port)], "/predict", "rows", {})
    uri = f"models:/{model.name}/{model.version}"
    mlflow = [python, "-m", "mlflow", "models", "serve", "--model-uri", uri, "--env-manager", "local", *place, "--workers", "1"]
    yield Server(
        "mlflow models serve", mlflow, "/invocations", "dataframe_records", {"MLFLOW_TRACKING_URI": run.workspace.tracking_uri}
    )
    if litserve:
        yield Server(
            "LitServe",
            [litserve, str(HERE / "serving_litserve.py"), str(bundle), str(port)],
            "/predict",
            "rows",
            {"PYTHONPATH": os.pathsep.join([str(HERE.parent), *(path for path in sys.path if "site-packages" in path)])},
        )


@contextmanager
def started(server: Server, port: int, body: bytes, timeout: float = 120) -> Iterator[subprocess.Popen]:
    """A server that has predicted one row; stopped at the end."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": path} | server.environment
    with TemporaryFile("w+") as log:
        process = subprocess.Popen(server.command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.perf_counter() + timeout
            while process.poll() is None and time.perf_counter() < deadline:
                with suppress(OSError, ValueError):
                    asyncio.run(send(port, server.path, [body], 1, seconds=0))
                    break
                time.sleep(0.1)
            else:
                log.seek(0)
                raise typer.BadParameter(f"{server.name} did not start: {log.read()[-1500:]}")
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, SIGKILL)


async def send(port: int, path: str, bodies: list[bytes], clients: int, seconds: float, pause: float = 0) -> list[float]:
    """Send bodies in turn from several connections for some seconds, at least one each; the latency of each request, seconds.

    A client waits for the pause, in seconds, before it sends the next request. The clients begin one after the other within one
    pause, so that their requests are spread evenly: otherwise they would come in bursts, in which each waits for the others.
    """
    end, latencies, waiting = time.perf_counter() + seconds, [], cycle(bodies)

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.sleep(number * pause / clients)
            while True:
                body = next(waiting)
                start = time.perf_counter()
                writer.write(HEAD % (path.encode(), len(body)) + body)
                head = await reader.readuntil(b"\r\n\r\n")
                status = int(head.split(None, 2)[1])
                if status != 200:
                    raise ValueError(f"status {status}")
                await reader.readexactly(length_of(head))
                latencies.append(time.perf_counter() - start)
                if time.perf_counter() >= end:
                    return
                if pause:
                    await asyncio.sleep(pause)
        finally:
            writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return latencies


def length_of(head: bytes) -> int:
    """The content length of a response."""
    lines = [line.partition(b":") for line in head.lower().split(b"\r\n")]
    return int(next(value for name, _, value in lines if name == b"content-length"))


def cpu_seconds(process: subprocess.Popen) -> float:
    """CPU time of a process and its children."""
    parent = psutil.Process(process.pid)
    return sum(sum(each.cpu_times()[:2]) for each in [parent, *parent.children(recursive=True)])


def memory_bytes(process: subprocess.Popen) -> int:
    """Resident memory of a process and its children."""
    parent = psutil.Process(process.pid)
    return sum(each.memory_info().rss for each in [parent, *parent.children(recursive=True)])


@app.command()
def load(
    project: Project,
    seconds: Annotated[float, typer.Option(help="Length of each measurement.")] = 8.0,
    port: Annotated[int, typer.Option(help="A free port.")] = 18473,
    litserve: Annotated[str, typer.Option(help="Python of the environment with LitServe; empty: not compared.")] = "",
    only: Annotated[str, typer.Option(help="Compare servers whose name contains this.")] = "",
) -> None:
    """CPU per request and latency, with 1 and with 8 clients."""
    run = released_run(project)
    rows = request_rows(run, 200)
    print(f"| {'server':<28} | clients | CPU ms a request | p50 ms | p99 ms | requests/s |")
    print(f"|{'-' * 30}|--------:|-----------------:|-------:|-------:|-----------:|")
    for server in servers(run, port, litserve):
        if only not in server.name:
            continue
        bodies = [json.dumps({server.key: [row]}).encode() for row in rows]
        with started(server, port, bodies[0]) as process:
            for clients in (1, 8):
                asyncio.run(send(port, server.path, bodies, clients, seconds=2))  # Warm-up
                before = cpu_seconds(process)
                latencies = np.array(asyncio.run(send(port, server.path, bodies, clients, seconds)))
                cpu = (cpu_seconds(process) - before) / len(latencies) * 1000
                p50, p99 = np.percentile(latencies, [50, 99]) * 1000
                print(
                    f"| {server.name:<28} | {clients:>7} | {cpu:>16.2f} | {p50:>6.2f} | {p99:>6.2f} | "
                    f"{len(latencies) / seconds:>10.0f} |",
                    flush=True,
                )


@app.command()
def soak(
    project: Project,
    minutes: Annotated[float, typer.Option(help="Length of the load.")] = 60.0,
    rate: Annotated[float, typer.Option(help="Requests per second, at most.")] = 200.0,
    port: Annotated[int, typer.Option(help="A free port.")] = 18473,
) -> None:
    """Memory of the service under a load of 4 clients, once a minute; the growth after the first fifth."""
    run = released_run(project)
    ours = next(servers(run, port, ""))
    bodies = [json.dumps({"rows": [row]}).encode() for row in request_rows(run, 200)]
    sizes = []
    with started(ours, port, bodies[0]) as process:
        for step in range(20):
            count = len(asyncio.run(send(port, ours.path, bodies, 4, minutes * 60 / 20, 4 / rate)))
            sizes.append(memory_bytes(process))
            print(f"{(step + 1) * minutes / 20:6.1f} min: {sizes[-1] / 2**20:7.1f} MiB, {count:,} requests", flush=True)
    growth = np.polyfit(np.arange(16), np.array(sizes[4:]), 1)[0] * 16
    print(f"growth after the first fifth: {growth / 2**20:.2f} MiB ({growth / sizes[4]:.2%})")


if __name__ == "__main__":
    app()
