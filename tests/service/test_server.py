"""Processes of the service: several workers, kill -9, SIGTERM under load, a port that is in use."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from load import wait_until
from toy_releases import toy_release, toy_rows

from mlcycle.stores.events import open_event_database

ROWS = toy_rows(60, seed=1).to_dict("records")
MAIN = "from mlcycle.service.server import main; main()"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    "A release."
    return toy_release(tmp_path_factory.mktemp("server"), 1)


@contextmanager
def service_process(release: Path, *options: str, events: str = "", **more) -> Generator[tuple[subprocess.Popen, str]]:
    "The command `mlcycle-service`, and its address once it is ready."
    environment = more.pop("env", os.environ) | {"MLCYCLE_EVENTS_URL": events}
    command = [sys.executable, "-c", MAIN, str(release), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, **more) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, "it did not start"
            wait_until(lambda: is_ready(url))
            yield process, url
        finally:
            process.kill()


def is_ready(url: str) -> bool:
    "Whether a service is ready."
    try:
        return httpx.get(f"{url}/health", timeout=30).is_success
    except httpx.TransportError:
        return False


def workers_of(pid: int) -> set[int]:
    "The worker processes of a service."
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = set()
    for child in map(int, children):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:  # It has just ended
            continue
        if b"spawn_main" in command:
            found.add(child)
    return found


class Clients:
    "Clients that send one row after the other until they are stopped, and remember what was acknowledged."

    def __init__(self, url: str, retries: int = 0):
        self.url, self.retries, self.stopped = url, retries, threading.Event()
        self.acknowledged: list[str] = []
        self.statuses: set[int] = set()
        self.lost: list[str] = []

    def run(self, number: int) -> None:
        "Be a client; one without retries ends when the service is gone."
        place = 0
        client = httpx.Client(base_url=self.url, timeout=60)
        while not self.stopped.is_set():
            place += 1
            row_id, tries = f"{number}-{place}", 0
            while True:
                try:
                    response = client.post("/predict", json={"rows": [ROWS[place % 60]], "row_ids": [row_id]})
                except httpx.TransportError:
                    client.close()
                    client = httpx.Client(base_url=self.url, timeout=60)
                    tries += 1
                    if tries <= self.retries:
                        time.sleep(0.1)
                        continue
                    self.lost.append(row_id)
                    if not self.retries:
                        return
                    break
                self.statuses.add(response.status_code)
                if response.is_success:
                    self.acknowledged.append(row_id)
                break
        client.close()


@contextmanager
def clients_of(url: str, retries: int = 0) -> Generator[Clients]:
    "Four clients at work."
    clients = Clients(url, retries)
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(clients.run, number) for number in range(4)]
        try:
            wait_until(lambda: len(clients.acknowledged) > 40)
            yield clients
        finally:
            clients.stopped.set()
        for future in futures:
            future.result()


def logged_row_ids(url: str) -> set[str]:
    "Row ids in the prediction log."
    engine = open_event_database(url)
    with engine.connect() as connection:
        found = set(connection.execute(sa.text("SELECT row_id FROM predictions")).scalars())
    engine.dispose()
    return found


def test_a_killed_worker_is_replaced_and_clients_that_retry_lose_nothing(release, tmp_path):
    with service_process(release, "--workers", "2") as (process, url):
        wait_until(lambda: len(workers_of(process.pid)) == 2)
        before = workers_of(process.pid)
        environment = Path(f"/proc/{min(before)}/environ").read_bytes()
        with clients_of(url, retries=100) as clients:
            os.kill(min(before), signal.SIGKILL)
            wait_until(lambda: len(workers_of(process.pid) - {min(before)}) == 2)
            count = len(clients.acknowledged)
            wait_until(lambda: len(clients.acknowledged) > count + 100)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert clients.lost == []
    assert clients.statuses == {200}
    assert b"OMP_NUM_THREADS=1" in environment


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load_loses_no_acknowledged_prediction(release, tmp_path, workers):
    events = f"sqlite:///{tmp_path}/events.db"
    with service_process(release, "--workers", str(workers), events=events) as (process, url), clients_of(url) as clients:
        process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        assert process.wait(60) == 0
        assert time.monotonic() - start < 30
    assert clients.statuses == {200}
    assert set(clients.acknowledged) <= logged_row_ids(events)


def errors_while_it_stops(url: str, stop: Callable[[], None]) -> list[Exception]:
    "What ends four clients with keep-alive connections when a service stops."
    started = threading.Barrier(5)

    def send() -> Exception:
        with httpx.Client(base_url=url, timeout=60) as client:
            for place in range(10**6):
                try:
                    client.post("/predict", json={"rows": [ROWS[place % 60]]}).raise_for_status()
                except httpx.HTTPError as error:
                    return error
                if place == 5:
                    started.wait(60)
        raise AssertionError("The service did not stop.")

    with ThreadPoolExecutor(4) as threads:
        clients = [threads.submit(send) for _ in range(4)]
        started.wait(60)
        stop()
        return [client.result() for client in clients]


@pytest.mark.parametrize("workers", [1, 2])
def test_connections_of_a_stopping_service_are_refused_not_reset(release, workers):
    with service_process(release, "--workers", str(workers)) as (process, url):
        errors = errors_while_it_stops(url, lambda: process.send_signal(signal.SIGTERM))
        assert [type(error) for error in errors] == [httpx.ConnectError] * 4, errors
        assert process.wait(30) == 0


def test_a_stopping_service_is_not_ready_but_still_serves(release):
    with service_process(release, "--drain-seconds", "3") as (process, url):
        with httpx.Client(base_url=url, timeout=60) as client:
            assert "connection" not in client.get("/health").headers
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: client.get("/health").status_code == 503)
            response = client.post("/predict", json={"rows": ROWS[:1]})
            assert (response.status_code, response.headers["connection"]) == (200, "close")
        assert process.wait(60) == 0


STUCK = """
import asyncio, sys, uvicorn
from mlcycle.service.graceful_stop import GracefulStop

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        print("started", flush=True)
        await receive()
        await asyncio.sleep(100)

uvicorn.run(GracefulStop(app, lambda: None, 0.0, 1.0), port=0, log_level="error")
"""


def test_a_service_that_does_not_stop_in_time_is_ended_by_force():
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        try:
            _, printed = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 1
    assert "by force" in printed


def test_workers_end_with_their_parent_process(release):
    with service_process(release, "--workers", "2") as (process, url):
        wait_until(lambda: len(workers_of(process.pid)) == 2)
        workers = workers_of(process.pid)
        process.kill()
        wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
        assert not is_ready(url)


@pytest.mark.parametrize("options", [(), ("--workers", "2")])
def test_a_port_in_use_is_a_clear_error(release, options):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", MAIN, str(release), "--port", port, *options], capture_output=True, text=True
        )
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_release_that_cannot_be_opened_ends_the_service(tmp_path, workers):
    command = [sys.executable, "-c", MAIN, str(tmp_path / "none"), "--workers", workers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert str(tmp_path / "none") in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("port", ["99999", "-5"])
def test_a_port_that_does_not_exist_is_named(release, port):
    done = subprocess.run([sys.executable, "-c", MAIN, str(release), "--port", port], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"The port {port} " in done.stderr
    assert "from 0 to 65535" in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_service_stops_when_its_input_ends(release, workers):
    reader, writer = os.pipe()
    options = ("--workers", workers, "--drain-seconds", "0", "--stop-at-eof")
    with service_process(release, *options, stdin=reader) as (process, _):
        os.close(reader)
        wait_until(lambda: workers == "1" or len(workers_of(process.pid)) == 2)
        processes = [process.pid, *workers_of(process.pid)]
        assert process.poll() is None
        os.close(writer)
        assert process.wait(30) == 0
    wait_until(lambda: not any(Path(f"/proc/{each}").exists() for each in processes))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_head_that_never_ends_is_closed(release, workers):
    with service_process(release, "--workers", workers, "--request-timeout", "1") as (_, url):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
            client.settimeout(20)
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\n")
            start = time.monotonic()
            with pytest.raises(BrokenPipeError):  # Each line alone is in time
                while time.monotonic() < start + 10:
                    client.sendall(b"X-Slow: 1\r\n")
                    time.sleep(0.2)
        assert is_ready(url)


def test_start_and_replacement_of_a_worker_are_in_the_log(release, tmp_path):
    with (tmp_path / "log").open("w") as log, service_process(release, "--workers", "2", stderr=log) as (process, _):
        wait_until(lambda: len(workers_of(process.pid)) == 2)
        killed = min(workers_of(process.pid))
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: "replaces" in (tmp_path / "log").read_text())
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line for line in lines if "replaces" in line and f"{killed} has ended with exit code -9" in line]
    assert len([line for line in lines if "no prediction log: MLCYCLE_EVENTS_URL" in line]) == 1


def test_a_service_without_trusted_keys_says_so_on_one_line(release, tmp_path):
    environment = os.environ | {"XDG_CONFIG_HOME": str(tmp_path), "MLCYCLE_TRUSTED_RELEASE_KEYS": ""}
    with (tmp_path / "log").open("w") as log, service_process(release, stderr=log, env=environment):
        pass
    (line,) = [line for line in (tmp_path / "log").read_text().splitlines() if "trusted" in line]
    assert line.startswith("Warning: The release ")
    assert ".py" not in (tmp_path / "log").read_text()


def test_a_signal_while_the_release_is_loaded_ends_the_service(release):
    "The process is stopped before it can listen; it must not go on to serve."
    command = [sys.executable, "-c", f"import os, signal; from mlcycle.service import server\n{STOP_WHILE_LOADING}", str(release)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGTERM
    assert "http://" not in done.stdout


STOP_WHILE_LOADING = """
load = server.make_application
def stopped(options):
    os.kill(os.getpid(), signal.SIGTERM)
    return load(options)
server.make_application = stopped
server.main()
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_prediction_log_without_its_driver_is_refused(release, workers):
    url = "mysql+mysqldb://ann:hunter2@127.0.0.1/log"
    done = subprocess.run([sys.executable, "-c", MAIN, str(release), "--workers", str(workers)],
                          env=os.environ | {"MLCYCLE_EVENTS_URL": url}, capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "module MySQLdb" in done.stderr
    assert "pip install 'mysqlclient'" in done.stderr
    assert "hunter2" not in done.stderr
