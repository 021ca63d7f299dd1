"""`mlcycle cluster`: a cluster is started, shown and stopped, and no other process with it."""

import json
import os
import signal

import psutil
import pytest
from commands import cli

from mlcycle.core.project_cluster import read_cluster


@pytest.fixture
def folder(tmp_path):
    "A project whose cluster is stopped after the test."
    yield tmp_path
    cli("cluster", "down", cwd=tmp_path)


def test_a_cluster_is_started_shown_and_stopped(folder):
    up = cli("cluster", "up", "--workers", "2", "--memory", "500MB", "--port", "0", "--dashboard-port", "0", cwd=folder)
    assert up.returncode == 0, up.stderr
    made = read_cluster(folder / ".mlcycle")
    assert f"scheduler = {made.address}" in up.stdout and f"Dashboard: {made.dashboard}" in up.stdout
    assert made.address.startswith("tcp://127.0.0.1:")
    listening = {each.laddr.ip for process, _ in made.processes.values() for each in psutil.Process(process).net_connections()}
    assert listening <= {"127.0.0.1"}
    second = cli("cluster", "up", "--port", "0", cwd=folder)
    assert second.returncode == 1 and "mlcycle cluster down" in second.stderr
    shown = json.loads(cli("cluster", "status", "--json", cwd=folder).stdout)
    assert [worker["memory_limit"] for worker in shown["workers"]] == [500_000_000] * 2
    assert "worker-1" in cli("cluster", "status", cwd=folder).stdout
    assert "Stopped" in cli("cluster", "down", cwd=folder).stdout
    assert not any(psutil.pid_exists(pid) for pid, _ in made.processes.values())
    gone = cli("cluster", "status", "--json", cwd=folder)
    assert json.loads(gone.stdout) == {"running": False} and gone.returncode == 1


def test_without_a_cluster_there_is_nothing_to_stop_or_show(tmp_path):
    stopped, shown = cli("cluster", "down", cwd=tmp_path), cli("cluster", "status", cwd=tmp_path)
    assert stopped.returncode == 0 and "no Dask cluster" in stopped.stdout
    assert shown.returncode == 1 and "There is no cluster" in shown.stdout
    wrong = cli("cluster", "up", "--memory", "2XB", cwd=tmp_path)
    assert wrong.returncode == 2 and "--memory" in wrong.stderr and "settings.ini" not in wrong.stderr


def test_a_file_of_a_cluster_that_has_ended_names_no_other_process(folder):
    cli("cluster", "up", "--workers", "1", "--port", "0", "--dashboard-port", "0", cwd=folder)
    file = folder / ".mlcycle" / "cluster.json"
    first = json.loads(file.read_text())
    for pid, _ in first["processes"].values():
        os.killpg(pid, signal.SIGKILL)
    shown = cli("cluster", "status", cwd=folder)
    assert shown.returncode == 1 and "does not respond" in shown.stderr
    strangers = {"scheduler": (os.getpid(), 1.0), "workers": (os.getpid(), 1.0)}  # Process ids are given to others
    file.write_text(json.dumps(first | {"processes": strangers}))
    assert "not running any more" in cli("cluster", "down", cwd=folder).stdout
    file.write_text("{")
    assert "cannot be read" in cli("cluster", "down", cwd=folder).stderr
    file.unlink()


def test_a_port_that_is_in_use_is_a_clear_error(folder):
    cli("cluster", "up", "--workers", "1", "--memory", "500MB", "--port", "0", "--dashboard-port", "0", cwd=folder)
    port = read_cluster(folder / ".mlcycle").address.rsplit(":", 1)[1]
    (folder / "other").mkdir()
    (folder / "other" / "settings.ini").write_text("")
    failed = cli("cluster", "up", "--port", port, cwd=folder / "other")
    assert failed.returncode == 1 and "did not start" in failed.stderr and "port" in failed.stderr
