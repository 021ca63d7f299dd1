"""The prediction log while the database is away, locked or full, and after kill -9."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import httpx
import load
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from toy_releases import toy_release, toy_rows

from mlcycle.service import event_writer, prediction_log
from mlcycle.service.event_writer import PredictionLogError, read_spooled, write_events
from mlcycle.service.prediction_log import PredictionLog
from mlcycle.service.service_metrics import ServiceMetrics
from mlcycle.service.service_settings import REQUEST_ID, ServiceSettings
from mlcycle.stores import event_spool
from mlcycle.stores.event_spool import EventSpool, close_spool, spool_line, spooled_row_ids
from mlcycle.stores.events import open_event_database, read_events

wait_until = partial(load.wait_until, seconds=30)


def prediction(row_id: object) -> dict:
    "An event of a prediction."
    return {"row_id": str(row_id), "latency_ms": 1.5, "features": {"x": 1, "Name": "Ünal"}, "prediction": "no", "score": 0.2}


def logged(url: str, run: str = "run") -> list[str]:
    "Row ids of the predictions in the database, in order."
    engine = open_event_database(url)
    events, _ = read_events(engine, run)
    engine.dispose()
    return [] if events.empty else events.row_id.tolist()


def metric(metrics: ServiceMetrics, name: str, **labels: str) -> float:
    "Value of a metric."
    families = text_string_to_metric_families(metrics.text().decode())
    return sum(s.value for f in families for s in f.samples if s.name == name and labels.items() <= s.labels.items())


def test_events_have_request_version_and_role(tmp_path):
    url = f"sqlite:///{tmp_path}/events.db"
    log = PredictionLog(url, "run")
    token = REQUEST_ID.set("request-1")
    log.add("predictions", [prediction(1) | {"model_version": "3", "role": "canary"}])
    log.add("predictions", [prediction(1) | {"model_version": "4", "role": "shadow", "request_id": "request-1"}])
    REQUEST_ID.reset(token)
    log.close()
    engine = open_event_database(url)
    ours, shadow = (read_events(engine, "run", shadow=shadow)[0] for shadow in (False, True))
    engine.dispose()
    columns = ["model_version", "role", "request_id"]
    assert ours[columns].values.tolist() == [["3", "canary", "request-1"]]
    assert shadow[columns].values.tolist() == [["4", "shadow", "request-1"]]


def test_features_are_left_out_if_the_setting_says_so(tmp_path):
    url = f"sqlite:///{tmp_path}/events.db"
    log = PredictionLog(url, "run", ServiceSettings(log_features=False))
    log.add("predictions", [prediction(1)])
    log.close()
    engine = open_event_database(url)
    assert read_events(engine, "run")[1].empty
    engine.dispose()
    assert "Ünal" not in Path(tmp_path / "events.db").read_bytes().decode(errors="ignore")


def test_a_log_of_an_earlier_version_gets_the_new_columns(tmp_path):
    with sqlite3.connect(tmp_path / "events.db") as old:
        old.execute("CREATE TABLE actuals (number INTEGER PRIMARY KEY, run TEXT, row_id TEXT, received DATETIME, actual JSON)")
        old.execute("INSERT INTO actuals VALUES (1, 'run', '1', '2020-01-01 00:00:00', '\"yes\"')")
    url = f"sqlite:///{tmp_path}/events.db"
    log = PredictionLog(url, "run")
    log.add("predictions", [prediction(1)])
    log.close()
    engine = open_event_database(url)
    assert read_events(engine, "run")[0].actual.tolist() == ["yes"]
    engine.dispose()


HOLD_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_database_that_another_process_locks_delays_nobody(tmp_path):
    url, metrics = f"sqlite:///{tmp_path}/events.db", ServiceMetrics()
    open_event_database(url).dispose()
    log = PredictionLog(url, "run", metrics=metrics)
    command = [sys.executable, "-c", HOLD_LOCK, str(tmp_path / "events.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline()
        start = time.perf_counter()
        for number in range(500):
            log.add("predictions", [prediction(number)])
        assert time.perf_counter() - start < 1
        assert log.unknown_row_ids(["499", "other"]) == ["other"], "what is only in the spool is known"
        assert logged(url) == []
        assert metric(metrics, "mlcycle_prediction_log_backlog_events") == 500
        other.communicate(b"")
    log.close()
    assert logged(url) == [str(number) for number in range(500)]
    assert metric(metrics, "mlcycle_prediction_log_backlog_events") == 0
    assert metric(metrics, "mlcycle_prediction_log_events_total", outcome="written") == 500
    assert not list(Path(tmp_path / "events.db.spool").iterdir())


def test_a_service_starts_and_takes_feedback_while_the_database_is_away(tmp_path, capfd):
    file = tmp_path / "events.db"
    file.mkdir()  # SQLite cannot open it, whatever the rights of the user are
    log = PredictionLog(f"sqlite:///{file}", "run")
    for number in range(20):
        log.add("predictions", [prediction(number)])
    assert log.unknown_row_ids(["0", "19"]) == []
    log.add("actuals", [{"row_id": "0", "actual": "yes"}])
    with pytest.raises(PredictionLogError):
        log.unknown_row_ids(["20"])
    wait_until(lambda: "cannot be written" in capfd.readouterr().err)
    file.rmdir()
    wait_until(lambda: log.spool.backlog == 0)
    log.add("predictions", [prediction(20)])
    assert log.unknown_row_ids(["0", "20", "21"]) == ["21"]
    log.close()
    assert "can be written again" in capfd.readouterr().err
    assert logged(f"sqlite:///{file}") == [str(number) for number in range(21)]


def test_what_is_left_at_the_stop_is_written_at_the_next_start(tmp_path, capfd):
    file = tmp_path / "events.db"
    file.mkdir()
    for part in range(3):
        log = PredictionLog(f"sqlite:///{file}", f"run {part}")
        log.add("predictions", [prediction(number) for number in range(part, part + 5)])
        start = time.monotonic()
        log.close()
        assert time.monotonic() - start < 5, "a database that refuses is not waited for"
    assert "events stay in" in capfd.readouterr().err
    segments = list((tmp_path / "events.db.spool").iterdir())
    assert segments
    assert all(path.stat().st_mode & 0o077 == 0 for path in (*segments, segments[0].parent))
    file.rmdir()
    PredictionLog(f"sqlite:///{file}", "another run").close()
    for part in range(3):
        assert logged(f"sqlite:///{file}", f"run {part}") == [str(number) for number in range(part, part + 5)]


def test_postgresql_goes_away_and_comes_back(postgresql, tmp_path):
    admin = sa.create_engine(postgresql, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text("CREATE DATABASE events"))
    url = postgresql.set(database="events").render_as_string(hide_password=False)
    log = PredictionLog(url, "run", ServiceSettings(spool=str(tmp_path / "spool")))
    log.add("predictions", [prediction(number) for number in range(10)])
    wait_until(lambda: log.database.ready and log.spool.backlog == 0)
    with admin.connect() as connection:
        connection.execute(sa.text("ALTER DATABASE events ALLOW_CONNECTIONS false"))
        connection.execute(sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'events'"))
    for number in range(10, 3000):
        log.add("predictions", [prediction(number)])
    assert log.unknown_row_ids(["10", "2999"]) == []
    with pytest.raises(PredictionLogError):
        log.unknown_row_ids(["never"])
    assert log.spool.backlog == 2990
    with admin.connect() as connection:
        connection.execute(sa.text("ALTER DATABASE events ALLOW_CONNECTIONS true"))
    wait_until(lambda: log.spool.backlog == 0)
    log.add("predictions", [prediction("nul \0"), prediction("after")])  # PostgreSQL has no NUL in text
    log.close()
    assert logged(url) == [*map(str, range(3000)), "after"]
    assert b"nul" in (tmp_path / "spool" / "rejected.log").read_bytes()
    admin.dispose()


WRITE_EVENTS = """
import itertools, sys, time
from mlcycle.service.prediction_log import PredictionLog
log = PredictionLog(sys.argv[1], "run")
for number in itertools.count():
    log.add("predictions", [{"row_id": str(number), "latency_ms": 1, "features": {}, "prediction": 1, "score": None}])
    print(number, time.monotonic(), flush=True)
    time.sleep(0.0005)
"""


@pytest.mark.parametrize("away", [False, True], ids=["database present", "database away"])
def test_kill_9_loses_only_the_last_moment_and_writes_nothing_twice(tmp_path, away):
    file = tmp_path / "events.db"
    if away:
        file.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_EVENTS, f"sqlite:///{file}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(2000)]
        killed = time.monotonic()
        process.send_signal(signal.SIGKILL)
        lines += [line.split() for line in process.stdout.read().splitlines()]
    if away:
        file.rmdir()
    PredictionLog(f"sqlite:///{file}", "next").close()
    found = logged(f"sqlite:///{file}")
    assert found == [str(number) for number in range(len(found))], "in order, each once"
    lost = [float(line[1]) for line in lines if len(line) == 2 and int(line[0]) >= len(found)]
    assert all(killed - when < 0.5 for when in lost), "110 ms as a rule; a busy machine may take longer"


MAIN = "from mlcycle.service.server import main; main()"


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_a_service_that_ends_during_an_outage_loses_no_acknowledged_prediction(tmp_path, stop):
    file, release = tmp_path / "events.db", toy_release(tmp_path, 1)
    file.mkdir()
    command = [sys.executable, "-c", MAIN, str(release), "--drain-seconds", "0", "--run", "run"]
    environment = os.environ | {"MLCYCLE_EVENTS_URL": f"sqlite:///{file}"}
    acknowledged, row = {"one": [], "other": []}, toy_rows(1).to_dict("records")[0]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()

        def send(client: httpx.Client, name: str) -> None:
            for number in range(10_000):
                try:
                    response = client.post("/predict", json={"rows": [row], "row_ids": [f"{name}-{number}"]})
                except httpx.TransportError:
                    return
                if response.is_success:
                    acknowledged[name].append(f"{name}-{number}")

        with httpx.Client(base_url=url, timeout=30) as one, httpx.Client(base_url=url, timeout=30) as other:
            threads = [threading.Thread(target=send, args=each) for each in ((one, "one"), (other, "other"))]
            for thread in threads:
                thread.start()
            wait_until(lambda: sum(map(len, acknowledged.values())) > 200)
            before = [row_id for row_ids in acknowledged.values() for row_id in list(row_ids)]
            spool = EventSpool(tmp_path / "events.db.spool")
            wait_until(lambda: set(before) <= spooled_row_ids(spool, "run", set(before)))  # While requests go on
            process.send_signal(stop)
            code = process.wait(60)
            for thread in threads:
                thread.join()
    assert code == (0 if stop == signal.SIGTERM else -signal.SIGKILL)
    file.rmdir()
    PredictionLog(f"sqlite:///{file}", "next").close()
    found = logged(f"sqlite:///{file}")
    assert len(found) == len(set(found))
    assert set(before) <= set(found)
    for row_ids in acknowledged.values():  # The end that a kill may cost has no gap before it
        kept = [row_id in set(found) for row_id in row_ids]
        assert all(kept) if stop == signal.SIGTERM else kept == sorted(kept, reverse=True)


def test_a_crash_between_commit_and_confirmation_writes_nothing_twice(tmp_path):
    url, folder = f"sqlite:///{tmp_path}/events.db", tmp_path / "events.db.spool"
    spool, common = EventSpool(folder), {"run": "run", "received": "2020-01-01T00:00:00"}
    spool.append([spool_line("predictions", prediction(number) | common) for number in range(5)])
    with open(next(folder.iterdir()), "ab") as file:
        file.write(b'{"row_id":"5","table":"predic')  # Interrupted
    engine = open_event_database(url)
    batch = spool.next_batch()
    assert write_events(engine, read_spooled(batch)[:3]) == []
    engine.dispose()
    close_spool(spool)
    PredictionLog(url, "run").close()
    assert logged(url) == ["0", "1", "2", "3", "4"]
    assert not list(folder.iterdir())


def test_several_logs_share_a_folder_and_write_each_event_once(tmp_path):
    url = f"sqlite:///{tmp_path}/events.db"
    logs = [PredictionLog(url, "run", ServiceSettings(workers=3)) for _ in range(3)]
    for number in range(300):
        logs[number % 3].add("predictions", [prediction(number)])
    assert logs[0].unknown_row_ids([str(number) for number in range(300)]) == []
    for log in logs:
        log.close()
    assert sorted(logged(url), key=int) == [str(number) for number in range(300)]


@pytest.fixture
def full_disk(monkeypatch):
    "A function that lets the disk be full, or free again; half of what is written still fits."
    write, full = os.write, [False]

    def write_or_fail(file, data):
        if full[0] and len(data) > 1:
            write(file, bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(event_spool.os, "write", write_or_fail)
    return lambda now: full.__setitem__(0, now)


def test_on_a_full_disk_events_reach_the_database_from_memory(tmp_path, full_disk, capfd):
    url = f"sqlite:///{tmp_path}/events.db"
    log = PredictionLog(url, "run")
    log.add("predictions", [prediction("before")])
    wait_until(lambda: log.spool.backlog == 0)
    full_disk(True)
    for number in range(100):
        log.add("predictions", [prediction(number)])
    log.unknown_row_ids(["0"])
    full_disk(False)
    log.add("predictions", [prediction("after")])
    log.close()
    assert logged(url) == ["before", *map(str, range(100)), "after"]
    assert "No space left on device" in capfd.readouterr().err


def test_without_database_and_disk_what_does_not_fit_in_memory_is_counted(tmp_path, full_disk, monkeypatch, capfd):
    monkeypatch.setattr(event_spool, "MEMORY_BYTES", 10_000)
    file, metrics = tmp_path / "events.db", ServiceMetrics()
    file.mkdir()
    log = PredictionLog(f"sqlite:///{file}", "run", metrics=metrics)
    full_disk(True)
    for number in range(200):
        log.add("predictions", [prediction(number)])
        if number % 20 == 0:
            time.sleep(0.02)  # Several appends
    wait_until(lambda: log.queue.n_waiting == 0)
    dropped = metric(metrics, "mlcycle_prediction_log_events_total", outcome="dropped")
    assert 0 < dropped < 200
    assert "are dropped" in capfd.readouterr().err
    file.rmdir()
    full_disk(False)
    wait_until(lambda: log.spool.backlog == 0)
    log.close()
    assert len(logged(f"sqlite:///{file}")) == 200 - dropped


def test_a_spool_has_a_largest_size_and_a_queue_a_longest_length(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_log, "MAX_WAITING", 50)
    file, metrics = tmp_path / "events.db", ServiceMetrics()
    file.mkdir()
    log = PredictionLog(f"sqlite:///{file}", "run", ServiceSettings(max_spool_bytes=5000), metrics)
    log.add("predictions", [prediction(number) for number in range(60)])
    assert metric(metrics, "mlcycle_prediction_log_events_total", outcome="dropped") == 60
    for number in range(100):
        log.add("predictions", [prediction(number)])
        wait_until(lambda: log.queue.n_waiting == 0)
    dropped = metric(metrics, "mlcycle_prediction_log_events_total", outcome="dropped") - 60
    assert 0 < dropped < 100
    assert sum(path.stat().st_size for path in (tmp_path / "events.db.spool").iterdir()) <= 5000
    file.rmdir()
    log.close()
    PredictionLog(f"sqlite:///{file}", "run").close()
    assert len(logged(f"sqlite:///{file}")) == 100 - dropped


def test_an_event_that_is_refused_does_not_stop_the_others(tmp_path, capfd):
    url, metrics = f"sqlite:///{tmp_path}/events.db", ServiceMetrics()
    log = PredictionLog(url, "run", metrics=metrics)
    bad = prediction("bad") | {"latency_ms": None}
    log.add("predictions", [prediction(1), bad, prediction(2), prediction("odd") | {"features": {"x": object()}}])
    log.close()
    assert logged(url) == ["1", "2"]
    assert metric(metrics, "mlcycle_prediction_log_events_total", outcome="rejected") == 2
    kept = tmp_path / "events.db.spool" / "rejected.log"
    assert b'"row_id":"bad"' in kept.read_bytes()
    assert kept.stat().st_mode & 0o077 == 0
    shown = capfd.readouterr().err
    assert "rejected.log" in shown
    assert "Ünal" not in shown


STEPS = st.lists(st.sampled_from(["append", "append", "read", "write", "crash", "stop", "big"]), max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_each_event_leaves_the_spool_in_order_whatever_happens(tmp_path_factory, steps):
    "Appending, writing, crashing before the confirmation, and stopping, in any order."
    folder = tmp_path_factory.mktemp("spool")
    spool, added, written, batch = EventSpool(folder), [], {}, None
    for step in steps:
        if step in ("append", "big"):
            ids = [f"{len(added) + n}{'x' * (step == 'big') * 600_000}" for n in range(3)]
            spool.append([spool_line("predictions", {"row_id": row_id, "run": "run"}) for row_id in ids])
            added += ids
        elif step == "read":
            batch = spool.next_batch()
        elif step == "write" and batch is not None:
            written |= dict(zip(batch.ids(), batch.lines, strict=True))
            spool.confirm(batch)
            batch = None
        elif step in ("crash", "stop"):
            if batch is not None and step == "crash":  # The database has it, the spool does not know
                written |= dict(zip(batch.ids(), batch.lines, strict=True))
            for segment in spool.segments if step == "crash" else ():
                os.close(segment.file)
            if step == "stop":
                close_spool(spool)
            spool, batch = EventSpool(folder), None
            spool.take_over()
    while (batch := spool.next_batch()) is not None:
        written |= dict(zip(batch.ids(), batch.lines, strict=True))
        spool.confirm(batch)
    assert spool.backlog == 0
    assert close_spool(spool) == 0
    assert not list(folder.iterdir())
    assert list(written.values()) == [spool_line("predictions", {"row_id": row_id, "run": "run"}) for row_id in added]
    assert not spooled_row_ids(spool, "run", set(added))


@pytest.mark.parametrize("change", ["deleted", "moved", "replaced"])
def test_a_database_file_that_is_gone_is_made_again(tmp_path, capfd, change):
    file, metrics = tmp_path / "events.db", ServiceMetrics()
    log = PredictionLog(url := f"sqlite:///{file}", "run", metrics=metrics)
    log.add("predictions", [prediction("before")])
    wait_until(lambda: metric(metrics, "mlcycle_prediction_log_events_total", outcome="written") == 1)
    for path in tmp_path.glob("events.db*"):
        if path.is_file():
            path.rename(tmp_path / path.name.replace("events", "old"))
    if change == "deleted":
        for path in tmp_path.glob("old.db*"):
            path.unlink()
    if change == "replaced":
        open_event_database(url).dispose()
    log.add("predictions", [prediction(number) for number in range(5)])
    wait_until(lambda: metric(metrics, "mlcycle_prediction_log_events_total", outcome="written") == 6)
    assert logged(url) == [str(number) for number in range(5)], "what counts as written is in the file"
    assert log.unknown_row_ids(["never", "4"]) == ["never"]
    log.close()
    assert capfd.readouterr().err.count("was removed or replaced") == 1


def test_a_file_that_is_replaced_during_a_transaction_gets_its_events(tmp_path, monkeypatch):
    file, written = tmp_path / "events.db", []

    def write_and_lose(engine, events):
        refused = write_events(engine, events)
        if not written:
            for path in tmp_path.glob("events.db*"):
                if path.is_file():
                    path.unlink()
        written.append(len(events))
        return refused

    monkeypatch.setattr(event_writer, "write_events", write_and_lose)
    log = PredictionLog(url := f"sqlite:///{file}", "run")
    log.add("predictions", [prediction(1)])
    log.close()
    assert written == [1, 1]
    assert logged(url) == ["1"]
