"""How soon a bad version stops predicting after a rollback, under a load of 50 requests a second.

`python benchmarks/retraining_rollback.py PROJECT` copies a project with a released model, registers its model once more as a
second, bad version, and serves it by `mlcycle serve`. Each way to roll back is repeated. Measured are the time from the change,
that of the alias in the registry or of the traffic plan, to the response with the last prediction of the bad version, and the
same from the return of the command; a negative time means that the command returned later.
"""

import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGTERM
from typing import Annotated, Any

import mlflow
import numpy as np
import typer
from serving_rows import released_run, request_rows

from mlcycle.lifecycle.deployment_records import find_deployment
from mlcycle.lifecycle.deployments import update_deployment
from mlcycle.lifecycle.rollback import follow_at_once
from mlcycle.lifecycle.serving import traffic_file
from mlcycle.service.bundle import build_bundle, open_release
from mlcycle.stores.models.registry import ALIAS_HISTORY_TAG, connect_registry, set_alias

MLCYCLE = str(Path(sys.executable).parent / "mlcycle")
RATE = 50  # Requests a second, of two clients
app = typer.Typer(add_completion=False, help=__doc__)


@dataclass
class Client:
    """Sends a request every few milliseconds and keeps the versions that predicted, with the times of their responses."""

    port: int
    rows: list[dict]
    seen: list[tuple[float, int]] = field(default_factory=list)  # Time of the response, version
    failed: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, pause: float) -> None:
        """Send until the end."""
        connection, place, due = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30), 0, time.monotonic()
        while not self.stop.is_set():
            body, place = json.dumps({"rows": [self.rows[place % len(self.rows)]]}), place + 1
            try:
                connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                version = json.loads(response.read())["version"]
                self.seen.append((time.time(), version))
            except (OSError, http.client.HTTPException, KeyError, ValueError):
                self.failed += 1
                connection.close()
            due = max(due + pause, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))


@contextmanager
def load(port: int, rows: list[dict]) -> Iterator[Client]:
    """Two clients that send 50 requests a second together."""
    client = Client(port, rows)
    threads = [threading.Thread(target=client.run, args=(2 / RATE,), daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(1 / RATE)
    try:
        yield client
    finally:
        client.stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def serving(project: Path, name: str, workers: int) -> Iterator[int]:
    """A service of the champion; its port."""
    command = [MLCYCLE, "serve", name, "--port", "0", "--workers", str(workers)]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().strip().rpartition(":")[2])
        finally:
            process.send_signal(SIGTERM)
            process.wait(60)


def second_version(run: Any) -> Any:
    """Register the model of a run once more, and release it."""
    client, ref = mlflow.MlflowClient(), run.release.model
    known = client.get_model_version(ref.name, str(ref.version))
    tags = {name: value for name, value in known.tags.items() if name in ("sha256", "run", "functions")}
    made = client.create_model_version(ref.name, known.source, run_id=known.run_id, tags=tags)
    second = ref.model_copy(update={"version": int(made.version)})
    folder = run.workspace.root / run.release.bundle
    documents = {path.name: path for path in folder.iterdir() if path.suffix in (".npz", ".json") and path.name != "bundle.json"}
    documents = {name: path for name, path in documents.items() if name.startswith(("reference", "outlier"))}
    bundle = open_release(folder)[0].model_copy(update={"model": second})
    build_bundle(run.workspace.root / "releases", bundle, folder / "model.skops", documents=documents)
    return second


def alias_time(name: str) -> float:
    """When the alias moved last."""
    tags = mlflow.MlflowClient().get_registered_model(name).tags
    last = max(each for each in tags if each.startswith(ALIAS_HISTORY_TAG)).removeprefix(ALIAS_HISTORY_TAG)
    return datetime.strptime(last, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC).timestamp()


@dataclass
class Scene:
    """A project with a champion and a bad version."""

    run: Any
    second: Any
    rows: list[dict]

    @property
    def name(self) -> str:
        """The registered model."""
        return self.run.release.model.name

    def promote(self) -> None:
        """Make the bad version champion, also of the service."""
        set_alias(self.second, workspace=self.run.workspace, action="promote", reason="benchmark")
        follow_at_once(self.run.workspace, self.name)

    def restore(self) -> None:
        """Make the good version champion, also of the service."""
        set_alias(self.run.release.model, workspace=self.run.workspace, reason="benchmark")
        follow_at_once(self.run.workspace, self.name)

    def update(self) -> None:
        """Let the deployment serve the bad version."""
        deployment = find_deployment(self.run.workspace, self.name)
        update_deployment(self.run.workspace, deployment, f"{self.name}@{self.second.version}", reason="benchmark")

    def command(self, *words: str) -> float:
        """Run a command; the time of its return."""
        subprocess.run([MLCYCLE, *words], cwd=self.run.workspace.project, check=True, capture_output=True)
        return time.time()

    def roll_back(self) -> tuple[float, float]:
        """`mlcycle rollback`; times of change and return."""
        end = self.command("rollback", self.name, "--reason", "benchmark")
        return alias_time(self.name), end

    def roll_back_deployment(self) -> tuple[float, float]:
        """`mlcycle deployments rollback`; times of change and return."""
        end = self.command("deployments", "rollback", self.name, "--reason", "benchmark")
        return traffic_file(self.run.workspace, self.name).stat().st_mtime, end

    def move_alias(self) -> tuple[float, float]:
        """Another program moves the alias; times of change and return."""
        set_alias(self.run.release.model, workspace=self.run.workspace, reason="benchmark")
        return alias_time(self.name), time.time()


def wait_for(client: Client, version: int, count: int = 25) -> None:
    """Wait until the last responses are all of a version."""
    deadline = time.monotonic() + 60
    while [seen for _, seen in client.seen[-count:]] != [version] * count:
        if time.monotonic() > deadline:
            raise SystemExit(f"version {version} does not serve")
        time.sleep(0.02)


def measure(
    scene: Scene,
    make_bad: Callable[[], None],
    roll_back: Callable[[], tuple[float, float]],
    workers: int,
    repeats: int,
    restart: bool,
) -> tuple[np.ndarray, int, float]:
    """Seconds from change and from return to the last bad prediction, shape (repeats, 2); failed requests; requests a second."""
    found, failed, rates, good, bad = [], 0, [], scene.run.release.model.version, scene.second.version
    project = scene.run.workspace.project
    for _ in range(1 if not restart else repeats):
        scene.restore()
        if restart:  # The service is started with the bad version, so that the good one is not loaded
            scene.promote()
        with serving(project, scene.name, workers) as port, load(port, scene.rows) as client:
            for _ in range(1 if restart else repeats):
                if not restart:
                    wait_for(client, good)
                    make_bad()
                wait_for(client, bad)
                time.sleep(1)
                change, end = roll_back()
                wait_for(client, good)
                time.sleep(0.5)
                last = max(when for when, version in client.seen if version == bad)
                found.append((last - change, last - end))
            failed += client.failed
            rates.append(len(client.seen) / (client.seen[-1][0] - client.seen[0][0]))
    return np.array(found), failed, float(np.mean(rates))


@app.command()
def main(
    project: Annotated[Path, typer.Argument(help="A folder with a run that released a model.")],
    repeats: Annotated[int, typer.Option(help="Rollbacks of each kind.")] = 10,
    only: Annotated[str, typer.Option(help="Only kinds whose name contains this.")] = "",
) -> None:
    """Measure each way to roll back."""
    with tempfile.TemporaryDirectory(prefix="mlcycle-rollback-") as folder:
        copied = Path(folder) / "project"
        shutil.copytree(project, copied, symlinks=True)
        run = released_run(copied)
        os.environ["MLFLOW_TRACKING_URI"] = run.workspace.tracking_uri
        connect_registry(run.workspace.tracking_uri, run.workspace.artifacts)
        set_alias(run.release.model, workspace=run.workspace, reason="benchmark")
        scene = Scene(run, second_version(run), request_rows(run, 100))
        kinds = [
            ("mlcycle rollback", scene.promote, scene.roll_back, False),
            ("mlcycle deployments rollback", scene.update, scene.roll_back_deployment, False),
            ("alias moved by another program", scene.promote, scene.move_alias, False),
            ("mlcycle rollback, service restarted", scene.promote, scene.roll_back, True),
        ]
        after = "after the change: median s | max s | after the return: median s | max s"
        print(f"| way | workers | repeats | {after} | failed requests | requests/s |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
        for workers in (1, 2):
            for name, make_bad, roll_back, restart in kinds:
                if only in name:
                    found, failed, rate = measure(scene, make_bad, roll_back, workers, repeats, restart)
                    (change, back), (worst, late) = np.median(found, axis=0), found.max(axis=0)
                    print(
                        f"| {name} | {workers} | {repeats} | {change:.2f} | {worst:.2f} | {back:+.2f} | {late:+.2f} | {failed} | "
                        f"{rate:.0f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    app()
