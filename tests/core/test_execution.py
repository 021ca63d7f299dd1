"""Tasks in this process and on real clusters of Dask, whose workers and schedulers are killed."""

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import cluster_tasks
import distributed
import pandas as pd
import psutil
import pytest
from dask_clusters import TESTS, start_test_cluster, worker_processes

from mlcycle.core import dask_cluster as cluster_module
from mlcycle.core import execution
from mlcycle.core.dask_cluster import stop_cluster
from mlcycle.core.execution import (
    ExecutionSettings,
    SharedValue,
    Task,
    close_dask,
    map_tasks,
    read_execution_settings,
)
from mlcycle.errors import ExecutionError, ParameterError, SourceError, TaskKilledError

SQUARES = [number * number for number in range(40)]


@pytest.fixture
def short_cluster(tmp_path):
    "A cluster that a test may destroy."
    made = [start_test_cluster(tmp_path / "dask")]
    yield made
    close_dask()
    stop_cluster(made[-1])


def test_results_have_the_order_of_the_items(on_dask):
    assert list(map_tasks(cluster_tasks.square, range(40), on_dask, label="squares")) == SQUARES
    assert list(map_tasks(cluster_tasks.square, range(40), ExecutionSettings())) == SQUARES


@pytest.mark.parametrize("executor", ["local", "dask"])
def test_items_are_read_as_results_are_needed(on_dask, executor):
    read = []
    items = (read.append(number) or number for number in range(1000))
    results = map_tasks(cluster_tasks.square, items, on_dask if executor == "dask" else ExecutionSettings())
    assert [next(results) for _ in range(3)] == SQUARES[:3]
    assert len(read) <= 3 + 2 * 2
    results.close()


def test_an_error_arrives_as_itself(on_dask):
    with pytest.raises(SourceError) as found:
        list(map_tasks(cluster_tasks.refuse, [3], on_dask))
    assert (found.value.found, found.value.remedy) == ("No 3.", "Take another one.")
    assert "refuse" in [entry.name for entry in found.traceback], "the traceback is that of the worker"


def test_an_error_of_a_store_is_repeated_and_another_one_is_not(on_dask, tmp_path):
    assert list(map_tasks(cluster_tasks.square_at_the_third_time, [(7, tmp_path / "a")], on_dask)) == [49]
    with pytest.raises(ConnectionError, match="the store"):
        list(map_tasks(cluster_tasks.square_at_the_third_time, [(7, tmp_path / "b")], on_dask, retries=1))
    assert (tmp_path / "b").read_text() == ".."


def test_a_worker_that_is_killed_costs_no_result(on_dask, tmp_path):
    tasks = [(number, tmp_path / "flag" if number == 9 else TESTS) for number in range(40)]
    assert list(map_tasks(cluster_tasks.square_and_kill_once, tasks, on_dask)) == SQUARES
    assert (tmp_path / "flag").exists()


def test_a_task_that_kills_its_workers_is_a_clear_error(short_cluster, monkeypatch):
    monkeypatch.setattr(execution, "MAX_KILLED", 1)
    with pytest.raises(TaskKilledError, match="lost 1 times") as found:
        list(map_tasks(cluster_tasks.kill, [1], ExecutionSettings("dask", short_cluster[0].address)))
    assert short_cluster[0].address in str(found.value) and "more memory" in found.value.remedy


def test_a_scheduler_that_is_restarted_at_its_port_costs_no_result(short_cluster, tmp_path):
    port = int(short_cluster[0].address.rsplit(":", 1)[1])
    settings, results = ExecutionSettings("dask", short_cluster[0].address), []

    def restart():
        os.kill(short_cluster[0].processes["scheduler"][0], signal.SIGKILL)
        stop_cluster(short_cluster[0])
        short_cluster.append(start_test_cluster(tmp_path / "again", port=port))

    for result in map_tasks(cluster_tasks.slow_square, range(40), settings):
        results.append(result)
        if len(results) == 5:
            thread = threading.Thread(target=restart)
            thread.start()
    thread.join()
    assert results == SQUARES and len(short_cluster) == 2


@pytest.mark.parametrize("paused", ["scheduler", "worker"])
def test_a_network_pause_costs_no_result(tmp_path, monkeypatch, paused):
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", "2s")  # A worker that is paused longer than 5 s is replaced
    made, results = start_test_cluster(tmp_path / "dask"), []
    settings, pid = ExecutionSettings("dask", made.address), made.processes["scheduler"][0]

    def pause():
        process = psutil.Process(pid if paused == "scheduler" else worker_processes(made)[0].pid)
        process.suspend()
        time.sleep(6)
        if process.is_running():
            process.resume()

    thread = threading.Thread(target=pause)
    try:
        for result in map_tasks(cluster_tasks.slow_square, range(20), settings):
            results.append(result)
            if len(results) == 5:
                thread.start()
        thread.join()
        assert results == SQUARES[:20]
    finally:
        close_dask()
        stop_cluster(made)


def test_connections_that_are_closed_at_once_are_tried_again(short_cluster, monkeypatch):
    from distributed import Client

    left = [ConnectionResetError("closed by a proxy")] * 2

    def connect(*arguments, **options):
        if left:
            raise left.pop()
        return Client(*arguments, **options)

    monkeypatch.setattr("distributed.Client", connect)
    assert list(map_tasks(cluster_tasks.square, range(4), ExecutionSettings("dask", short_cluster[0].address))) == SQUARES[:4]
    assert not left


def test_a_value_whose_worker_is_killed_is_sent_again(short_cluster):
    settings, table = ExecutionSettings("dask", short_cluster[0].address), pd.DataFrame({"a": range(1000)})
    shared = SharedValue(settings, table)
    first = Task(settings, cluster_tasks.total, shared, 1)
    twice = Task(settings, cluster_tasks.total, shared, 2)
    assert (first.result(), twice.result()) == (499_500, 999_000)
    for process in worker_processes(short_cluster[0]):
        process.kill()
    assert Task(settings, cluster_tasks.total, shared, 3).result() == 1_498_500


def test_a_scheduler_that_stays_away_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr(execution, "CONNECT_SECONDS", 1)
    with pytest.raises(ExecutionError, match=r"tcp://127.0.0.1:9 does not respond.*settings.ini"):
        list(map_tasks(cluster_tasks.square, [1], ExecutionSettings("dask", "tcp://127.0.0.1:9")))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tcp://no-such-host.invalid:8786"])
def test_a_first_connection_that_is_refused_fails_at_once_and_another_waits(monkeypatch, address):
    monkeypatch.setattr(execution, "REFUSED_SECONDS", 0.5)
    monkeypatch.setattr(execution, "CONNECT_SECONDS", 3)

    def seconds_until_error() -> float:
        since = time.monotonic()
        with pytest.raises(ExecutionError, match="does not respond"):
            execution._connection(ExecutionSettings("dask", address))
        return time.monotonic() - since

    assert seconds_until_error() < 2.5
    monkeypatch.setenv(execution.CONNECTED_VARIABLE, address)  # As in a stage, whose run has connected
    assert seconds_until_error() >= 3


def test_a_first_connection_waits_for_a_scheduler_that_is_slow_to_listen(monkeypatch):
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        listen = threading.Timer(0.6, place.listen)
        listen.start()
        since = time.monotonic()
        execution._wait_while_refused(f"tcp://127.0.0.1:{place.getsockname()[1]}", 5)
        assert 0.5 < time.monotonic() - since < 4


def test_the_address_of_a_worker_is_a_clear_error(on_dask):
    with execution.dask_client(on_dask) as client:
        worker = next(iter(client.nthreads()))
    with pytest.raises(ExecutionError, match="no Dask scheduler at"):
        list(map_tasks(abs, [1], ExecutionSettings("dask", worker)))


def test_workers_with_other_versions_are_refused(on_dask, monkeypatch):
    there = {**execution.installed_versions(execution.RESULT_PACKAGES), "pandas": "2.3.3"}
    monkeypatch.setattr("distributed.Client.run", lambda *rest: {"tcp://w": there})
    with pytest.raises(ExecutionError, match=r"The worker tcp://w has pandas 2\.3\.3, this process has 3\."):
        list(map_tasks(cluster_tasks.square, [1], replace(on_dask, workers=9)))  # A connection of its own


def test_dask_is_an_extra(monkeypatch):
    monkeypatch.setattr(cluster_module, "find_spec", lambda name: None)
    with pytest.raises(ExecutionError, match=r"pip install 'mlcycle-notebooks\[dask\]'"):
        list(map_tasks(cluster_tasks.square, [1], ExecutionSettings("dask")))


def test_a_task_starts_no_tasks(on_dask, tmp_path, monkeypatch):
    assert list(map_tasks(cluster_tasks.executor_here, [1], on_dask)) == ["local"]
    (tmp_path / "settings.ini").write_text("[execution]\nexecutor = dask\nworkers = 3\n")
    assert read_execution_settings(tmp_path) == ExecutionSettings("dask", workers=3)
    monkeypatch.setenv("MLCYCLE_SCHEDULER", on_dask.scheduler)
    assert read_execution_settings(tmp_path).scheduler == on_dask.scheduler
    monkeypatch.setenv("MLCYCLE_EXECUTOR", "local")
    assert not read_execution_settings(tmp_path).is_distributed


@pytest.mark.parametrize(
    "line", ["executor = spark", "scheduler = host:8786", "workers = two", "workers = 0", "memory_limit = 2"]
)
def test_a_setting_that_cannot_be_is_named(tmp_path, line):
    (tmp_path / "settings.ini").write_text(f"[execution]\n{line}\n")
    with pytest.raises(ParameterError, match=f"'{line.split()[0]}' in .execution. of settings.ini cannot be"):
        read_execution_settings(tmp_path)


def test_a_cluster_ends_with_the_process_that_is_killed():
    code = """if True:
        import os, time
        from mlcycle.core.execution import ExecutionSettings, map_tasks
        from mlcycle.core import execution
        assert list(map_tasks(abs, [-1], ExecutionSettings("dask", workers=1))) == [1]
        (made,) = execution._CONNECTIONS.values()
        print(*(pid for pid, _ in made.cluster.processes.values()), flush=True)
        time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        pids = [int(word) for word in process.stdout.readline().split()]
        process.kill()
    until = time.monotonic() + 20
    while time.monotonic() < until and any(map(psutil.pid_exists, pids)):
        time.sleep(0.1)
    assert len(pids) == 2 and not any(map(psutil.pid_exists, pids))


def test_a_dropped_client_does_not_wait_for_a_lock_of_its_own_thread(dask_cluster, monkeypatch):
    "It is closed when it is collected, which may happen at any allocation, and closing takes the lock of opening."
    waited, threads, before = [], distributed.utils._CollectErrorThread, gc.get_threshold()

    class Dropped:
        def __init__(self):
            self.itself = self

        def __del__(self):
            if distributed.utils.LoopRunner._lock.acquire(timeout=0.2):
                distributed.utils.LoopRunner._lock.release()
            else:
                waited.append(self)

    def thread(*arguments, **options):
        Dropped()
        gc.set_threshold(1)
        [[] for _ in range(100)]
        return threads(*arguments, **options)

    monkeypatch.setattr(distributed.utils, "_CollectErrorThread", thread)
    try:
        client = execution._open_client(dask_cluster.address, 10)
    finally:
        gc.set_threshold(*before)
    client.close()
    assert waited == []
