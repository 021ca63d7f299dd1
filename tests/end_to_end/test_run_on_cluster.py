"""A whole run on a cluster of Dask, a worker of which is killed in each stage, and whose scheduler is restarted."""

import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from commands import cli
from conftest import WORDS, orders
from dask_clusters import start_test_cluster, worker_processes

import mlcycle as mc
from mlcycle.core.dask_cluster import stop_cluster
from mlcycle.outcomes import STAGES

OPTIONS = ["--source", "orders.csv", "--target", "late", "-p", "partition_rows=200", *WORDS]
OPTIONS += ["-p", "select=auto", "-p", "table_rows=50"]  # Features are selected and shown too


class Faults(threading.Thread):
    "Kills a worker in each stage, and the scheduler in one of them, which is started again at its port."

    def __init__(self, project: Path, folder: Path, restart_in: str = "modelling"):
        super().__init__(daemon=True)
        self.project, self.folder, self.restart_in = project, folder, restart_in
        self.clusters, self.kills, self.is_over = [start_test_cluster(folder / "first")], [], threading.Event()

    def run(self):
        rng = random.Random(1)
        while len(self.kills) < len(STAGES) and not self.is_over.wait(0.05):
            log = (self.folder / ("first", "again")[len(self.clusters) - 1] / "scheduler.log").read_text()
            if log.count("Register worker") < 2 or "Receive client" not in log:  # A worker that dies as it starts is not replaced
                continue
            runs = list(self.project.glob(".mlcycle/runs/*/run.json"))
            stages = json.loads(runs[0].read_text())["stages"] if runs else {}
            if len(stages) >= len(self.kills):  # The next stage has started
                time.sleep(rng.uniform(0.5, 1.5))
                self.strike(STAGES[len(self.kills)])

    def strike(self, stage: str):
        if stage == self.restart_in:
            port = int(self.clusters[-1].address.rsplit(":", 1)[1])
            os.kill(self.clusters[-1].processes["scheduler"][0], signal.SIGKILL)
            stop_cluster(self.clusters[-1])
            self.clusters.append(start_test_cluster(self.folder / "again", port=port))
        else:
            for worker in worker_processes(self.clusters[-1])[:1]:
                try:
                    worker.kill()
                except psutil.NoSuchProcess:  # It has just been replaced
                    return
        self.kills.append(stage)


@pytest.fixture
def runs(tmp_path):
    "The same run on this machine, and on a cluster with faults; the stages in which there was one."
    made = []
    for name in ("local", "cluster"):
        (tmp_path / name).mkdir()
        orders().to_csv(tmp_path / name / "orders.csv", index=False)
    done = cli("run", *OPTIONS, cwd=tmp_path / "local")
    assert done.returncode == 0, done.stderr
    made.append(mc.open("last", tmp_path / "local"))
    faults = Faults(tmp_path / "cluster", tmp_path / "dask")
    faults.start()
    try:
        done = cli(
            "run",
            *OPTIONS,
            cwd=tmp_path / "cluster",
            MLCYCLE_EXECUTOR="dask",
            MLCYCLE_SCHEDULER=faults.clusters[0].address,
        )
        assert done.returncode == 0, (done.stderr, faults.kills)
    finally:
        faults.is_over.set()
        faults.join(30)
        stop_cluster(faults.clusters[-1])
    return [*made, mc.open("last", tmp_path / "cluster")], faults


def test_faults_in_each_stage_change_nothing(runs):
    (local, there), faults = runs
    assert set(faults.kills) >= {*STAGES[:6]} and len(faults.clusters) == 2
    assert "Read in 3 partitions" in there.dataset.decision
    for name in ("decision", "target_distribution", "rows"):
        assert getattr(local.problem, name) == getattr(there.problem, name)
    for name in ("ledger", "rule_failures", "completeness", "decision", "contract"):
        assert getattr(local.dataset, name) == getattr(there.dataset, name)
    assert {name: table.sha256 for name, table in local.dataset.tables.items()} == {
        name: table.sha256 for name, table in there.dataset.tables.items()
    }
    assert local.plan.model_copy(update={"selector": ""}) == there.plan.model_copy(update={"selector": ""})
    assert [(line.model, line.fold_scores) for line in local.candidate.leaderboard] == [
        (line.model, line.fold_scores) for line in there.candidate.leaderboard
    ]
    for name in ("scores", "baseline_scores", "class_scores", "approved"):
        assert getattr(local.verdict, name) == getattr(there.verdict, name)
    profiles = [(run.workspace.root / run.release.bundle / "reference_profile.json").read_bytes() for run in (local, there)]
    assert profiles[0] == profiles[1]
    assert there.release.parity.n_equal == there.release.parity.rows
    assert there.info["status"] == "done" and len(list(there.workspace.root.glob("runs/*/run.json"))) == 1
