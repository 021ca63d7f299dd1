"""Real clusters of Dask on the loopback interface, for tests."""

import os
from pathlib import Path

import psutil
import pytest

from mlcycle.core.dask_cluster import ClusterProcesses, living_processes, start_cluster, stop_cluster
from mlcycle.core.execution import ExecutionSettings, close_dask

TESTS = Path(__file__).resolve().parent


def start_test_cluster(folder: Path, workers: int = 2, port: int = 0, memory: str = "1 GB") -> ClusterProcesses:
    "A cluster whose workers can import the modules of the tests."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
        return start_cluster(folder, workers, memory, port=port, follow_parent=True)


def worker_processes(cluster: ClusterProcesses) -> list[psutil.Process]:
    "The processes that execute tasks, which are started again when they die."
    children = living_processes(cluster)["workers"].children(recursive=True)
    return [process for process in children if "spawn_main" in " ".join(process.cmdline())]


@pytest.fixture(scope="module")
def dask_cluster(tmp_path_factory):
    "A cluster of two workers for the tests of a module."
    made = start_test_cluster(tmp_path_factory.mktemp("dask"))
    yield made
    close_dask()
    stop_cluster(made)


@pytest.fixture
def on_dask(dask_cluster) -> ExecutionSettings:
    "The settings of a project that uses the cluster."
    return ExecutionSettings("dask", dask_cluster.address)
