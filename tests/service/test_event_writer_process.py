"""The process that writes the prediction log: outages, kill -9 of either side, a full disk, outlier p-values."""

import errno
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx
import load
import pytest
from toy_releases import toy_release, toy_rows

from mlcycle.service import event_writer_process
from mlcycle.service.app import create_app
from mlcycle.service.outlier_fit import fit_outlier_model
from mlcycle.service.outlier_model import OUTLIER_MODEL_FILE, outlier_model_content
from mlcycle.service.prediction_log import PredictionLog, flush_prediction_log
from mlcycle.service.prediction_options import PredictOptions
from mlcycle.service.service_metrics import ServiceMetrics
from mlcycle.service.service_settings import ServiceSettings
from mlcycle.stores import event_spool
from mlcycle.stores.event_spool import spooled_row_ids
from mlcycle.stores.events import open_event_database, read_events

wait_until = partial(load.wait_until, seconds=30)


def prediction(number: int) -> dict:
    "An event of a prediction."
    return {"row_id": str(number), "latency_ms": 1.5, "features": {"x": 1}, "prediction": "no", "score": 0.2}


def logged(file: Path) -> list[str]:
    "Row ids of the predictions in a database, in order."
    with sqlite3.connect(file) as connection:
        return [row_id for (row_id,) in connection.execute("SELECT row_id FROM predictions ORDER BY number")]


def is_running(pid: int) -> bool:
    "Whether a process runs; one that has ended and that nobody has waited for does not."
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_events_wait_for_a_database_that_is_away(tmp_path, capfd):
    file, metrics = tmp_path / "events.db", ServiceMetrics()
    file.mkdir()  # SQLite cannot open it, whatever the rights of the user are
    log = PredictionLog(f"sqlite:///{file}", "run", metrics=metrics, writer_process=True)
    for number in range(50):
        log.add("predictions", [prediction(number)])
    assert log.unknown_row_ids(["0", "49"]) == []
    wait_until(lambda: "cannot be written" in capfd.readouterr().err)
    assert "mlcycle_prediction_log_backlog_events 50.0" in metrics.text().decode()
    file.rmdir()
    assert flush_prediction_log(log, 60)
    assert logged(file) == [str(number) for number in range(50)]
    assert 'mlcycle_prediction_log_events_total{outcome="written"} 50.0' in metrics.text().decode()
    log.close()
    assert "can be written again" in capfd.readouterr().err
    assert not list(log.spool.folder.iterdir())


def test_kill_9_of_the_writer_loses_nothing_and_writes_nothing_twice(tmp_path, capfd):
    file = tmp_path / "events.db"
    log = PredictionLog(f"sqlite:///{file}", "run", writer_process=True)
    killed = set()
    for number in range(3000):
        log.add("predictions", [prediction(number)])
        time.sleep(0.001)
        writer = log.queue.writer.link
        if number % 700 == 600 and writer is not None:
            killed.add(writer.process.pid)
            writer.process.kill()
    assert flush_prediction_log(log, 60)
    log.close()
    assert len(killed) >= 2
    assert sorted(logged(file), key=int) == [str(number) for number in range(3000)]
    assert "is started again" in capfd.readouterr().err


def test_on_a_full_disk_events_reach_the_writer_in_memory(tmp_path, monkeypatch, capfd):
    file, write, full = tmp_path / "events.db", os.write, [True]

    def write_or_fail(target, data):
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(target, data)

    monkeypatch.setattr(event_spool.os, "write", write_or_fail)
    log = PredictionLog(f"sqlite:///{file}", "run", writer_process=True)
    for number in range(100):
        log.add("predictions", [prediction(number)])
    assert flush_prediction_log(log, 60)
    full[0] = False
    log.close()
    assert logged(file) == [str(number) for number in range(100)]
    assert "No space left on device" in capfd.readouterr().err


def test_a_locked_database_delays_the_end_by_the_drain_timeout_only(tmp_path, capfd):
    file = tmp_path / "events.db"
    open_event_database(f"sqlite:///{file}").dispose()
    log = PredictionLog(f"sqlite:///{file}", "run", ServiceSettings(drain_timeout=0.5), writer_process=True)
    with sqlite3.connect(file, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        log.add("predictions", [prediction(number) for number in range(20)])
        writer, start = log.queue.writer.link, time.monotonic()
        log.close()
        assert time.monotonic() - start < 5
        other.execute("ROLLBACK")
    assert not is_running(writer.process.pid)
    assert "20 events stay in" in capfd.readouterr().err
    PredictionLog(f"sqlite:///{file}", "run", writer_process=True).close()
    PredictionLog(f"sqlite:///{file}", "run").close()
    assert logged(file) == [str(number) for number in range(20)]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    "A release with an outlier model."
    documents = {OUTLIER_MODEL_FILE: outlier_model_content(fit_outlier_model(toy_rows(4000, seed=0)))}
    return toy_release(tmp_path_factory.mktemp("outliers"), 1, documents=documents)


@pytest.mark.parametrize("hashed", ["", "row_id", "x0"], ids=["all columns", "hashed row ids", "a hashed column"])
def test_outlier_p_values_equal_those_of_the_response(release, tmp_path, monkeypatch, hashed):
    monkeypatch.setenv("MLCYCLE_LOG_HASH_KEY", "0123456789abcdef-key")
    url, settings = f"sqlite:///{tmp_path}/events.db", ServiceSettings(log_hash_columns=hashed)
    service = create_app(release, url, "run", settings=settings, writer_process=True).state.service
    rows = toy_rows(60, seed=5)
    rows.loc[3, "x1"] = 1e9
    rows.loc[4, "x1"] = None
    rows.loc[5, rows.columns[-1]] = None
    found = service.predict_now(rows.to_dict("records"), options=PredictOptions(outliers=True))
    expected = [each["p_value"] for each in found.outputs["outliers"]]
    assert flush_prediction_log(service.log, 60)
    service.close()
    engine = open_event_database(url)
    events, features = read_events(engine, "run")
    engine.dispose()
    assert events.outlier_p.tolist() == expected
    assert len(features) == 60
    count = sum(p_value <= 0.001 for p_value in expected)
    assert count
    assert f'mlcycle_outlier_rows_total{{version="1"}} {count}.0' in service.metrics.text().decode()


MAIN = "from mlcycle.service.server import main; main()"


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_the_writer_of_a_service_ends_with_it_and_writes_what_it_has(tmp_path, stop):
    file, release, row = tmp_path / "events.db", toy_release(tmp_path, 1), toy_rows(1).to_dict("records")
    environment = os.environ | {"MLCYCLE_EVENTS_URL": f"sqlite:///{file}"}
    command = [sys.executable, "-c", MAIN, str(release), "--run", "run", "--drain-seconds", "0"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True) as process,
        ExitStack() as stack,
    ):
        stack.callback(process.kill)  # Also if the test fails: the end of Popen waits for the process
        assert process.stdout is not None
        with httpx.Client(base_url=process.stdout.readline().strip(), timeout=30) as client:
            for number in range(100):
                assert client.post("/predict", json={"rows": row, "row_ids": [str(number)]}).is_success
        time.sleep(0.5)  # Longer than events are in the memory of the service
        (writer,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        wait_until(lambda: os.sched_getscheduler(writer) in (os.SCHED_BATCH, os.SCHED_IDLE))  # Once it has started
        if stop == signal.SIGTERM:  # As a service manager, or Ctrl-C, which reach both
            os.killpg(process.pid, stop)
        else:
            process.send_signal(stop)
        process.wait(60)
        wait_until(lambda: not is_running(writer))
    assert logged(file) == [str(number) for number in range(100)]
    assert not list(Path(f"{file}.spool").iterdir())


def test_the_writer_gets_its_fair_share_only_while_many_events_wait(tmp_path):
    file = tmp_path / "events.db"
    open_event_database(f"sqlite:///{file}").dispose()
    log = PredictionLog(f"sqlite:///{file}", "run", ServiceSettings(drain_timeout=20), writer_process=True)
    pid, numbers = log.queue.writer.link.process.pid, itertools.count()

    def add_until(policy: int, n: int) -> None:
        "Add events, and further ones until all threads of the writer have a policy."
        log.add("predictions", [prediction(next(numbers)) for _ in range(n)])
        while {os.sched_getscheduler(int(thread)) for thread in os.listdir(f"/proc/{pid}/task")} != {policy}:
            log.add("predictions", [prediction(next(numbers))])
            time.sleep(0.2)

    add_until(os.SCHED_IDLE, 1)
    with sqlite3.connect(file, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        add_until(os.SCHED_BATCH, 2500)
        other.execute("ROLLBACK")
    add_until(os.SCHED_IDLE, 1)
    log.close()
    assert logged(file) == [str(number) for number in range(next(numbers))]


def test_events_that_wait_for_long_get_the_writer_its_fair_share(tmp_path, monkeypatch):
    monkeypatch.setattr(event_writer_process, "MAX_WAIT_SECONDS", 1.0)
    file = tmp_path / "events.db"
    open_event_database(f"sqlite:///{file}").dispose()
    log = PredictionLog(f"sqlite:///{file}", "run", ServiceSettings(drain_timeout=20), writer_process=True)
    writer, numbers = log.queue.writer, itertools.count()
    while writer.has_fair_share:
        log.add("predictions", [prediction(next(numbers))])
        time.sleep(0.1)
    with sqlite3.connect(file, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        log.add("predictions", [prediction(next(numbers))])
        wait_until(lambda: writer.has_fair_share)  # Without another event
        assert os.sched_getscheduler(writer.link.process.pid) == os.SCHED_BATCH
        other.execute("ROLLBACK")
    wait_until(lambda: not log.spool.backlog and not writer.has_fair_share)
    log.close()
    assert logged(file) == [str(number) for number in range(next(numbers))]


def test_a_writer_that_may_not_get_its_share_back_is_replaced(tmp_path, monkeypatch):
    file, set_policy = tmp_path / "events.db", os.sched_setscheduler

    def refuse(pid, policy, parameter):
        if policy == os.SCHED_BATCH:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        set_policy(pid, policy, parameter)

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    open_event_database(f"sqlite:///{file}").dispose()
    log = PredictionLog(f"sqlite:///{file}", "run", ServiceSettings(drain_timeout=20), writer_process=True)
    writer, numbers = log.queue.writer, itertools.count()

    def add_until(condition) -> None:
        while not condition():
            log.add("predictions", [prediction(next(numbers))])
            time.sleep(0.2)

    first = writer.link.process
    add_until(lambda: not writer.has_fair_share)
    with sqlite3.connect(file, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        log.add("predictions", [prediction(next(numbers)) for _ in range(2500)])
        add_until(lambda: writer.link is not None and writer.link.process is not first)
        other.execute("ROLLBACK")
    log.close()
    assert writer.keeps_fair_share
    assert first.poll() is not None
    assert sorted(map(int, logged(file))) == list(range(next(numbers)))


def test_events_in_memory_are_found_kept_and_counted_if_they_are_lost(tmp_path, monkeypatch, capfd):
    file, write, full = tmp_path / "events.db", os.write, [True]
    open_event_database(f"sqlite:///{file}").dispose()

    def write_or_fail(target, data):
        if full[0] and len(data) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(target, data)

    monkeypatch.setattr(event_spool.os, "write", write_or_fail)
    metrics = ServiceMetrics()
    log = PredictionLog(f"sqlite:///{file}", "run", ServiceSettings(drain_timeout=0.5), metrics, writer_process=True)
    with sqlite3.connect(file, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        log.add("predictions", [prediction(1)])
        wait_until(lambda: log.spool.away)
        assert spooled_row_ids(log.spool, "run", {"1", "2"}) == {"1"}, "also while the writer has it"
        first = log.queue.writer.link.process
        first.kill()
        wait_until(lambda: (link := log.queue.writer.link) is not None and link.process is not first and log.spool.away)
        assert spooled_row_ids(log.spool, "run", {"1"}) == {"1"}, "the next writer got it too"
        log.close()
        other.execute("ROLLBACK")
    assert "1 events are lost" in capfd.readouterr().err
    assert 'mlcycle_prediction_log_events_total{outcome="dropped"} 1.0' in metrics.text().decode()


def test_a_segment_that_cannot_be_removed_does_not_stop_the_writer(tmp_path, monkeypatch):
    file, unlink, fails = tmp_path / "events.db", Path.unlink, [True]

    def unlink_or_fail(path, missing_ok=False):
        if fails[0] and path.suffix == ".jsonl":
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_or_fail)
    log = PredictionLog(f"sqlite:///{file}", "run")
    log.add("predictions", [prediction(1)])
    assert flush_prediction_log(log, 60)
    log.close()
    log = PredictionLog(f"sqlite:///{file}", "run")
    log.add("predictions", [prediction(2)])
    assert flush_prediction_log(log, 60)
    fails[0] = False
    log.close()
    PredictionLog(f"sqlite:///{file}", "run").close()
    assert logged(file) == ["1", "2"]
    assert not list(log.spool.folder.iterdir())


def test_modules_in_the_working_directory_are_not_imported(tmp_path, monkeypatch, capfd):
    (tmp_path / "json.py").write_text("raise RuntimeError('imported')")
    monkeypatch.chdir(tmp_path)
    log = PredictionLog(f"sqlite:///{tmp_path}/events.db", "run", writer_process=True)
    log.add("predictions", [prediction(1)])
    assert flush_prediction_log(log, 60)
    log.close()
    assert logged(tmp_path / "events.db") == ["1"]
    assert "imported" not in capfd.readouterr().err


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_as_soon_as_the_address_is_printed_stops_the_service(tmp_path, number, workers):
    command = [sys.executable, "-c", MAIN, str(toy_release(tmp_path, 1)), "--drain-seconds", "0", "--workers", workers]
    environment = os.environ | {"MLCYCLE_EVENTS_URL": f"sqlite:///{tmp_path}/events.db"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http")
        process.send_signal(number)
        assert process.wait(60) == 0
