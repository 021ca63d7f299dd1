"""Clients that send requests to a service again and again, and count those that fail."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx


class Load:
    "Context manager: threads that predict one row after the other. Nothing is sent twice."

    def __init__(self, url: str, rows: list[dict], threads: int = 4, pause: float = 0.05):
        self.url, self.rows, self.pause, self.stopped = url, rows, pause, threading.Event()
        self.versions: Counter[int] = Counter()
        self.failed: list[str] = []
        self.pool, self.threads = ThreadPoolExecutor(threads), threads

    def __enter__(self):
        self.futures = [self.pool.submit(self._send, number) for number in range(self.threads)]
        return self

    def _send(self, number: int) -> None:
        client, place = httpx.Client(base_url=self.url, timeout=120), number
        while not self.stopped.is_set():
            place += 1
            try:
                response = client.post("/predict", json={"rows": [self.rows[place % len(self.rows)]]})
                if response.is_success:
                    self.versions[response.json()["version"]] += 1
                else:
                    self.failed.append(f"{response.status_code} {response.text[:200]}")
            except httpx.TransportError as error:
                self.failed.append(repr(error))
            time.sleep(self.pause)  # Something must be left for what happens meanwhile
        client.close()

    def wait_for(self, version: int, count: int = 20, seconds: float = 60) -> None:
        "Wait until a version has predicted some rows from now on."
        goal = self.versions[version] + count
        wait_until(lambda: self.versions[version] >= goal, seconds)

    def __exit__(self, *error):
        self.stopped.set()
        for future in self.futures:
            future.result(120)
        self.pool.shutdown()


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    "Wait for a condition."
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
