"""What the tests of alerts share: a Health, a web server that notes what it is sent, and tools that may be missing."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from mlcycle.outcomes import Alarm, Health


def health(*alarms: Alarm, rows: int = 500, n_labelled: int = 500, model: str = "flights", **fields) -> Health:
    "The outcome of a look that has found some alarms."
    values = {"decision": "Look.", "monitored": "traffic", "latency_ms": {"p95": 4.0}, "windows": [], "drift": []}
    values |= {"action": "investigate", "reason": "", "rows": rows, "n_labelled": n_labelled, "model": model}
    return Health(**values | {"alarms": list(alarms)} | fields)


@contextmanager
def web_server(*statuses: int) -> Iterator[tuple[int, list]]:
    "A server on loopback that responds with some statuses, the last one for ever; its port, and the bodies that it was sent."
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(statuses[min(len(received), len(statuses)) - 1])
            self.end_headers()

        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port, received
        server.shutdown()


def need_tools(*names: str) -> None:
    "Skip the test if a program is not installed; in CI, fail."
    missing = [name for name in names if shutil.which(name) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"{', '.join(missing)} is missing: make system installs it")
    if missing:
        pytest.skip(f"{', '.join(missing)} is missing. As root on Debian, make system installs it.")


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    "Wait until a condition holds; fail after some seconds."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)
