"""A project with a released model in two versions, and `mlcycle serve` as a process."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import mlflow
import pytest
from load import wait_until

import mlcycle as mc
from mlcycle.service.bundle import build_bundle, open_release
from mlcycle.service.rows import to_json_rows
from mlcycle.service.server import SERVICE_MAIN
from mlcycle.stores.models.registry import connect_registry, set_alias


@pytest.fixture(scope="module")
def served(table_run, tmp_path_factory):
    "A project whose model has a champion and a second released version, and a row."
    from conftest import stored_rows

    project = tmp_path_factory.mktemp("served") / "project"
    shutil.copytree(table_run("wine").workspace.project, project)
    run = mc.open("last", project)
    connect_registry(run.workspace.tracking_uri, run.workspace.artifacts)
    ref, first = run.release.model, run.workspace.root / run.release.bundle
    client = mlflow.MlflowClient()
    known = client.get_model_version(ref.name, str(ref.version))
    tags = {name: value for name, value in known.tags.items() if name in ("sha256", "run", "functions")}
    made = client.create_model_version(ref.name, known.source, run_id=known.run_id, tags=tags)
    second = ref.model_copy(update={"version": int(made.version)})
    bundle, _ = open_release(first)
    build_bundle(run.workspace.root / "releases", bundle.model_copy(update={"model": second}), first / "model.skops")
    client.create_model_version(ref.name, known.source, run_id=known.run_id, tags=tags)  # Never released
    set_alias(ref)
    rows = to_json_rows(stored_rows(run, "holdout")[run.plan.input_columns].head(1))
    return run, second, rows


class Serving:
    "A running `mlcycle serve`."

    def __init__(self, project: Path, *words: str):
        command = [str(Path(sys.executable).parent / "mlcycle"), "serve", *words, "--port", "0"]
        self.process = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        assert self.process.stdout is not None
        url = self.process.stdout.readline().strip()
        assert url, "it did not start"
        self.client = httpx.Client(base_url=url, timeout=60)
        wait_until(self.is_ready)
        return self

    def is_ready(self) -> bool:
        try:
            return self.client.get("/health").is_success
        except httpx.TransportError:
            return False

    def version(self, rows: list[dict], key: str = "a") -> int:
        "The version that predicts; each request must succeed."
        response = self.client.post("/predict", json={"rows": rows}, headers={"X-Routing-Key": key})
        assert response.status_code == 200, response.text
        return response.json()["version"]

    def __exit__(self, *error):
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.code = self.process.wait(60)
        finally:
            self.process.kill()


@contextmanager
def folder_service(folder: Path, workers: int = 2):
    "A service that follows the plan of a deployment folder, as a container does; its address."
    command = [sys.executable, "-c", SERVICE_MAIN, "--traffic", folder / "traffic.json", "--workers", str(workers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"MLCYCLE_EVENTS_URL": ""}) as service:
        try:
            yield service.stdout.readline().strip(), service
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait(60)
