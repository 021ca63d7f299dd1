"""One client, one row a request: the service of a release beside MLflow's own server of the same registered model."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGTERM
from tempfile import TemporaryFile

import httpx
import numpy as np
from comparison import Comparison

from mlcycle.core.runs import Run
from mlcycle.errors import StageError
from mlcycle.service.local import running_service
from mlcycle.service.rows import to_json_rows
from mlcycle.service.server import bind_socket
from mlcycle.stores.tables.holdout import read_holdout

PEER = "mlflow models serve"
STARTS, ROUNDS, REQUESTS, WARM_UP = 3, 5, 40, 20


@contextmanager
def mlflow_server(run: Run, timeout: float = 120) -> Iterator[tuple[httpx.Client, float]]:
    """MLflow's scoring server on loopback, and the seconds it took to start."""
    with bind_socket("127.0.0.1", 0) as free:
        host, port = free.getsockname()
    model = f"models:/{run.candidate.model.name}/{run.candidate.model.version}"
    options = ["--model-uri", model, "--env-manager", "local", "--host", host, "--port", str(port)]
    command = [sys.executable, "-m", "mlflow", "models", "serve", *options]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # It calls uvicorn by name
    chosen = {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": run.workspace.tracking_uri, "PATH": path}
    start = time.perf_counter()
    with TemporaryFile("w+") as log, httpx.Client(base_url=f"http://{host}:{port}") as client:
        process = subprocess.Popen(command, env=os.environ | chosen, stdout=log, stderr=log, start_new_session=True)
        try:
            while not is_up(client):
                if process.poll() is not None or time.perf_counter() > start + timeout:
                    log.seek(0)
                    raise StageError(f"'{PEER}' did not start.", remedy=log.read()[-2000:])
                time.sleep(0.02)
            yield client, time.perf_counter() - start
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, SIGTERM)  # It and the uvicorn that it started
            process.wait(30)


def is_up(client: httpx.Client) -> bool:
    """Whether MLflow's server answers."""
    try:
        return client.get("/ping").is_success
    except httpx.TransportError:
        return False


@contextmanager
def both_servers(run: Run) -> Iterator[tuple[list[Callable], list[float]]]:
    """What asks ours and what asks theirs about a row; the seconds they took to start. Neither records events."""
    with running_service(run.workspace.root / run.release.bundle) as service, mlflow_server(run) as (client, seconds):

        def ask_mlflow(row: dict) -> dict:
            return client.post("/invocations", json={"dataframe_records": [row]}).raise_for_status().json()

        yield [lambda row: service.predict([row], ["0"]), ask_mlflow], [service.start_seconds, seconds]


def milliseconds(ask: Callable, row: dict) -> float:
    """How long an answer takes."""
    start = time.perf_counter()
    ask(row)
    return (time.perf_counter() - start) * 1000


def compare(run: Run, step: Callable[[str], None]) -> list[Comparison]:
    """Latency in rounds of requests, and start-up time."""
    holdout = read_holdout(run.workspace, run.dataset.tables["holdout"], reason="a benchmark of the service")
    holdout = holdout[run.plan.input_columns]
    rows = to_json_rows(holdout.sample(WARM_UP + ROUNDS * REQUESTS, random_state=0, replace=True))
    starts = []
    for turn in range(STARTS):
        step(f"start {turn + 1} of {STARTS}")
        with both_servers(run) as (asks, seconds):
            starts.append(seconds)
            if turn == STARTS - 1:
                step(f"{len(rows)} requests each")
                pairs = np.array([[milliseconds(ask, row) for ask in asks] for row in rows])
    p50, p95 = np.percentile(pairs[WARM_UP:].reshape(ROUNDS, REQUESTS, 2), [50, 95], axis=1)
    measured = {"latency p50, ms": p50, "latency p95, ms": p95, "start-up, s": np.array(starts)}
    return [Comparison(what, PEER, *values.T.tolist(), better="lower") for what, values in measured.items()]
