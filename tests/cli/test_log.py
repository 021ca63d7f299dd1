"""`mlcycle log`: show, export and prune the prediction log of a project."""

import os
import socket
import time
from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mlcycle.cli.app import app
from mlcycle.cli.log import TIME_LIMITS
from mlcycle.stores.events import add_events, open_event_database


@pytest.fixture
def run(tmp_path, monkeypatch):
    "A function that runs a command in a project with a prediction log: 3 old predictions and 2 new ones."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.ini").write_text("[prediction_log]\nretention = 30d\n")
    (tmp_path / ".mlcycle").mkdir()
    engine, now = open_event_database(f"sqlite:///{tmp_path}/.mlcycle/events.db"), datetime.now(UTC).replace(tzinfo=None)
    common = {"run": "r", "model": "churn", "model_version": "1", "latency_ms": 1.0, "prediction": "yes", "score": 0.25}
    times = [now - timedelta(days=days) for days in (60, 50, 40, 2, 1)]
    events = [common | {"row_id": str(n), "received": time, "features": {"x": n / 2}} for n, time in enumerate(times)]
    add_events(engine, "predictions", events)
    add_events(engine, "actuals", [{"actual": "no", "row_id": "4", "received": now - timedelta(days=90)} | common])
    engine.dispose()
    return lambda *words: CliRunner().invoke(app, ["log", *words])


def test_show_export_and_prune(run, tmp_path):
    shown = run("show")
    assert shown.exit_code == 0
    assert all(word in shown.output for word in ("churn", "20%"))
    since = f"{datetime.now(UTC) - timedelta(days=55):%Y-%m-%d}"
    assert run("export", "churn", "some.parquet", "--since", since).exit_code == 0
    assert pq.read_table(tmp_path / "some.parquet").column("x").to_pylist() == [0.5, 1.0, 1.5, 2.0]
    pruned = run("prune", "--export", "old")
    assert pruned.exit_code == 0
    assert "3 predictions, 0 actual values" in pruned.output
    (file,) = (tmp_path / "old").glob("churn-*.parquet")
    assert pq.read_table(file).column("row_id").to_pylist() == ["0", "1", "2"]
    assert "50%" in run("show").output


def test_mistakes_are_told_in_a_sentence(run, tmp_path):
    for words, text in (
        (["export", "chrun", "x.parquet"], "churn"),
        (["export", "churn", "x.parquet", "--until", "tomorrow"], "no duration for --until"),
        (["prune", "--older-than", "soon"], "no duration for --older-than"),
        (["export", "churn", "x.parquet", "--since", "2026-02-01", "--until", "2026-01-01"], "is not before --until 2026-01-01"),
        (["export", "churn", "x.csv"], "such as x.parquet"),
    ):
        result = run(*words)
        assert result.exit_code == 2
        assert text in result.output
    assert not (tmp_path / "x.parquet").exists()


def test_a_database_that_hangs_is_a_clear_error(tmp_path, monkeypatch):
    "It takes connections and never responds."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TIME_LIMITS, "PGCONNECT_TIMEOUT", "2")
    (tmp_path / ".mlcycle").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"postgresql+psycopg://ann:hunter2@127.0.0.1:{server.getsockname()[1]}/events"
        (tmp_path / "settings.ini").write_text(f"[stores]\nevents_url = {address}\n")
        began = time.monotonic()
        result = CliRunner().invoke(app, ["log", "show"])
    assert time.monotonic() - began < 20
    assert result.exit_code != 0
    assert "timeout" in result.stderr
    assert "hunter2" not in result.output + result.stderr
    assert "PGOPTIONS" not in os.environ


def test_a_statement_that_waits_is_a_clear_error(postgresql, tmp_path, monkeypatch):
    "Another session holds a lock."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TIME_LIMITS, "PGOPTIONS", "-c statement_timeout=300")
    url = postgresql.render_as_string(hide_password=False)
    (tmp_path / "settings.ini").write_text(f"[stores]\nevents_url = {url}\n")
    (tmp_path / ".mlcycle").mkdir()
    engine = open_event_database(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE predictions IN ACCESS EXCLUSIVE MODE")
        result = CliRunner().invoke(app, ["log", "show"])
    engine.dispose()
    assert result.exit_code != 0
    assert "statement timeout" in result.stderr
