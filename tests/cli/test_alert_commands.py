"""`mlcycle alerts`: what it lists and shows, acknowledging and muting by rule and by id, and what it says is wrong."""

import getpass
import json
import sqlite3
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from mlcycle.cli.alerts import find_latency_budget
from mlcycle.cli.app import app
from mlcycle.cli.base import console
from mlcycle.monitoring.alert_rules import AlertSettings, make_alarm
from mlcycle.monitoring.alerts import process_alarms
from mlcycle.outcomes import Health
from mlcycle.stores.alert_store import AlertStore

ALARMS = [
    make_alarm("missing column", "The column zip is not sent.", "zip", columns=["zip"]),
    make_alarm("drift", "The median of spend moved from 60 to 75.", "spend", columns=["spend", "town"], since="2024-01-30"),
]


def look(folder, *alarms, model="orders", **settings):
    "A look at the traffic of a project."
    values = {"decision": "Look.", "monitored": "traffic", "rows": 100, "n_labelled": 100, "latency_ms": {}, "windows": []}
    values |= {"drift": [], "action": "investigate", "reason": "", "model": model, "alarms": list(alarms)}
    store = AlertStore.open(f"sqlite:///{folder}/.mlcycle/events.db")
    now = datetime.now(UTC).replace(tzinfo=None)
    alerts = process_alarms(Health(**values), store, AlertSettings(**settings), now)
    store.engine.dispose()
    return alerts


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project with two alerts."
    monkeypatch.delenv("MLCYCLE_EVENTS_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "width", 200)  # A worker of pytest has imported it with another
    (tmp_path / "settings.ini").write_text("[stores]\n")
    (tmp_path / ".mlcycle").mkdir()
    look(tmp_path, *ALARMS)
    return tmp_path


def call(*words):
    "What a command prints."
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.stderr
    return done.stdout


def refused(*words):
    "What a command prints that is refused."
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code in (1, 2), done.output
    return done.stderr


def listed(*words):
    "Listed alerts as JSON."
    return json.loads(call("alerts", *words, "--json"))


def test_open_alerts_are_listed_and_resolved_ones_on_request(project):
    assert "The median of spend" in call("alerts")
    assert sorted(each["rule"] for each in listed("orders")) == ["drift", "missing column"]
    look(project, ALARMS[0])
    assert [each["rule"] for each in listed()] == ["missing column"]
    assert {each["rule"]: each["state"] for each in listed("--all")} == {"missing column": "firing", "drift": "resolved"}
    look(project)
    assert "No alerts." in call("alerts", "orders")
    assert "Did you mean 'orders'?" in refused("alerts", "oders")


def test_one_alert_is_shown_with_its_columns_and_its_runbook(project):
    found = next(each for each in listed() if each["rule"] == "drift")
    shown = call("alerts", "show", found["id"][:6])
    for text in ("columns: spend, town", "holds since: 2024-01-30 00:00 UTC", "What to do:", "Stage to go back to: data"):
        assert text in shown
    assert json.loads(call("alerts", "show", found["id"], "--json"))["runbook"]
    assert "No alert has the id 'zzz'" in refused("alerts", "show", "zzz")


@pytest.mark.parametrize("words", [["ack"], ["alerts", "ack"]])
def test_who_acknowledged_is_recorded(project, words):
    found = next(each for each in listed() if each["rule"] == "drift")
    assert f"Acknowledged by {getpass.getuser()}" in call(*words, found["id"], "--note", "A sale.")
    with sqlite3.connect(project / ".mlcycle" / "events.db") as connection:
        row = connection.execute(
            "SELECT acknowledged_by, acknowledged_at, note, state FROM alerts WHERE rule = 'drift'"
        ).fetchone()
    assert (row[0], row[2], row[3]) == (getpass.getuser(), "A sale.", "acknowledged")
    assert abs(datetime.fromisoformat(row[1]) - datetime.now(UTC).replace(tzinfo=None)) < timedelta(minutes=5)
    look(project)
    assert "has been resolved since" in refused("ack", found["id"])


@pytest.mark.parametrize("words", [["mute"], ["alerts", "mute"]])
def test_a_rule_and_an_alert_are_muted_for_a_time(project, words):
    found = next(each for each in listed() if each["rule"] == "missing column")
    call(*words, "drift", "--for", "2w", "--model", "orders")
    call(*words, found["id"][:7])
    shown = call("alerts")
    assert shown.count("firing, muted") == 2
    assert f"by {getpass.getuser()}: drift (orders)" in shown
    assert f"by {getpass.getuser()}: missing column of zip (orders)" in shown
    file = project / "sent.jsonl"
    look(project, *ALARMS, file=str(file), cooldowns={"drift": timedelta(0), "missing column": timedelta(0)})
    assert not file.exists(), "nothing is sent"
    assert "1 mute ended." in call("alerts", "unmute", "drift")
    look(project, *ALARMS, file=str(file), cooldowns={"drift": timedelta(0), "missing column": timedelta(0)})
    assert [json.loads(line)["rule"] for line in file.read_text().splitlines()] == ["drift"]
    assert "Did you mean 'drift'?" in refused("mute", "drft")
    for length in ("ever", "0h"):
        assert "12h, 7d or 4w" in refused("mute", "drift", "--for", length)


def test_notifications_that_wait_are_named(project):
    look(project, make_alarm("latency", "It is slow."), webhook="http://127.0.0.1:9/T0p-Secret")
    done = CliRunner().invoke(app, ["alerts"])
    assert "notification" in done.stderr
    assert "'webhook'" in done.stderr
    assert "T0p-Secret" not in done.output + done.stderr


def test_without_a_database_nothing_is_created(tmp_path, monkeypatch):
    monkeypatch.delenv("MLCYCLE_EVENTS_URL", raising=False)
    assert "There is no event database yet" in refused("alerts", "--project", str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("MLCYCLE_EVENTS_URL", f"sqlite:///{tmp_path}")
    message = refused("alerts", "--project", str(tmp_path))
    assert "cannot be used: OperationalError" in message


def test_rules_are_written_and_need_a_model_or_a_budget(project):
    printed = call("alerts", "rules", "orders", "--output", "rules", "--budget", "40", "--email", "a@example.org")
    assert "The budget of the response time is 40 ms." in printed
    assert sorted(path.name for path in (project / "rules").iterdir()) == ["alertmanager.yml", "rules.yml", "rules_test.yml"]
    assert "> 40" in (project / "rules" / "rules.yml").read_text()
    call("alerts", "rules", "orders@1", "--output", "same", "--budget", "40", "--email", "a@example.org")
    assert (project / "same" / "rules.yml").read_text() == (project / "rules" / "rules.yml").read_text()


def test_the_budget_is_that_of_the_version_that_is_named(monkeypatch, tmp_path):
    wanted = []
    run = SimpleNamespace(problem=SimpleNamespace(latency_budget_ms=None))
    monkeypatch.setattr("mlcycle.cli.governance.run_of_version", lambda workspace, words: wanted.append(words) or run)
    assert [find_latency_budget(name, tmp_path) for name in ("t-y", "t-y@1")] == [100.0, 100.0]
    assert wanted == [["t-y", "champion"], ["t-y", "1"]]


def test_the_help_names_the_commands_once():
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).stdout
    names = [line.split("  ")[1].strip() for line in shown.splitlines() if line.startswith("  ") and "  " in line.strip()]
    assert "alerts" in names
    assert not {"ack", "mute"} & set(names)
    for name in ("approve, reject", "history, audit", "card, dossier"):
        assert name in names
