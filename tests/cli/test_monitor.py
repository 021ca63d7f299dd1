"""`mlcycle monitor` and `mlcycle retrain`: rows of a file, and options that cannot be right."""

import json
import pickle

import pandas as pd
import pytest
from commands import cli
from conftest import wine
from typer.testing import CliRunner

from mlcycle.cli import monitor
from mlcycle.cli.app import app
from mlcycle.core.workspace import Workspace
from mlcycle.errors import InputError
from mlcycle.lifecycle import monitored_rows, monitoring_actions
from mlcycle.lifecycle.monitored_rows import monitor_source
from mlcycle.lifecycle.serving import find_target


@pytest.fixture(scope="module")
def project(table_run):
    "The project of a released model."
    return table_run("wine").workspace.project


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    "A file with more rows like those of the training table, without one column."
    file = tmp_path_factory.mktemp("rows") / "rows.csv"
    frame = pd.concat([wine()] * 3).drop(columns="proline")
    frame.assign(day=pd.date_range("2026-01-01", periods=len(frame), freq="1h")).to_csv(file, index=False)
    return file


def test_rows_of_a_file_are_judged(project, rows):
    done = cli("monitor", "last", "--rows", rows, "--time", "day", "--json", "--exit-code", cwd=project)
    assert done.returncode == 3, done.stderr
    health = json.loads(done.stdout)
    assert (health["monitored"], health["rows"], health["n_labelled"]) == ("rows", 534, 534)
    assert health["alarms"][0]["rule"] == "missing column" and "proline" in health["decision"]
    assert health["action"] == "investigate" and len(health["windows"]) == 23


def as_on_a_worker(function, items, execution, *, arguments=(), label=""):
    "Results as a worker sends them: whatever it receives and sends is pickled."
    for item in items:
        call = pickle.loads(pickle.dumps((function, item, [getattr(each, "value", each) for each in arguments])))
        yield pickle.loads(pickle.dumps(call[0](call[1], *call[2])))


def test_rows_in_partitions_are_judged_as_those_in_memory(project, rows, monkeypatch):
    workspace = Workspace.from_project(project)
    target = find_target("last", workspace)
    whole = monitor_source(target, str(rows), workspace, time="day")
    monkeypatch.setattr(monitored_rows, "monitor_rows", None)  # Reads all rows at once
    monkeypatch.setattr(monitored_rows, "map_tasks", as_on_a_worker)
    parts = monitor_source(target, str(rows), workspace, time="day", partition_rows=100)
    assert parts.health == whole.health and whole.health.rows == 534
    for one, other in zip(parts.windows, whole.windows, strict=True):
        assert {name: each.counts.tolist() for name, each in one.columns.columns.items()} == {
            name: each.counts.tolist() for name, each in other.columns.columns.items()
        }
    with pytest.raises(InputError, match="no column 'dya'"):
        monitor_source(target, str(rows), workspace, time="dya", partition_rows=100)
    assert not list(workspace.root.glob("monitored-rows-*"))


def test_the_table_of_the_command_shows_change_and_windows(project, rows):
    done = cli("monitor", "last", "--rows", rows, cwd=project)
    assert done.returncode == 0, done.stderr
    for words in ("Investigate", "proline", "Drift of the last windows", "effect size", "they are one window"):
        assert words in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--since", "soon"], "'soon' is no duration for --since"),
        (["--since", "2030-01-01"], "--since 2030-01-01 is not before now"),
        (["--since", "2d", "--until", "3d"], "is not before --until 3d"),
        (["--window", "0h"], "no duration for --window"),
        (["--season", "moon", "--rows", "ROWS"], "The season is 'moon'"),
        (["--rows", "ROWS", "--time", "dya"], "no column 'dya'"),
        (["--rows", "ROWS", "--since", "2d"], "--since and --until do not go with --rows"),
    ],
)
def test_options_that_cannot_be_right_are_named(project, rows, words, message):
    done = cli("monitor", "last", *[rows if word == "ROWS" else word for word in words], cwd=project)
    assert done.returncode != 0 and message in done.stderr + done.stdout


@pytest.fixture
def acted(tmp_path, monkeypatch):
    "What was done in a project whose champion cannot be judged; to be filled."
    (tmp_path / "settings.ini").write_text("")
    monkeypatch.chdir(tmp_path)
    done: list[str] = []
    monkeypatch.setattr(monitor, "continue_open", lambda workspace, policy, what, stop: done.append(what))
    for name in ("retrain_by_hand", "cancel_retraining"):
        monkeypatch.setattr(monitoring_actions, name, lambda work, model, *more, **options: done.append(model))
    return done


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("monitor late --window 1x", "'1x' is no duration for --window"),
        ("monitor late --season moon", "The season is 'moon'"),
        ("monitor late --time placed", "--time goes with --rows"),
        ("monitor late --since soon", "'soon' is no duration for --since"),
        ("monitor late --until 1y", "'1y' is no duration for --until"),
        ("monitor late --every 1x", "'1x' is no duration for --every"),
        ("monitor late --every 1h --window 1x", "'1x' is no duration for --window"),
        ("monitor late --every 1h --since 1d", "--every does not go with --since"),
        ("monitor late --every 1h --exit-code", "--exit-code does not go with --every"),
        ("retrain late --rows some", "--rows cannot be 'some'"),
        ("retrain late --rows all --approve", "--rows do not go together"),
        ("retrain late --cancel --approve", "do not go together"),
        ("retrain late --json", "--json goes with --status"),
    ],
)
def test_an_option_that_cannot_be_right_is_refused_before_anything_is_done(acted, words, message):
    shown = CliRunner().invoke(app, words.split(), env={"COLUMNS": "1000"})
    assert shown.exit_code == 2
    assert message in shown.stderr
    assert acted == []


def test_a_setting_that_cannot_be_right_is_refused_before_anything_is_done(acted, tmp_path):
    (tmp_path / "settings.ini").write_text("[retraining]\nmin_rows = few\n")
    for words in (["monitor", "late"], ["retrain", "late"]):
        shown = CliRunner().invoke(app, words)
        assert shown.exit_code == 2
        assert "'min_rows' in [retraining]" in shown.stderr
    assert acted == []


def test_a_champion_that_is_not_released_has_its_retraining_continued(acted):
    assert CliRunner().invoke(app, ["monitor", "late"]).exit_code == 2
    assert CliRunner().invoke(app, ["monitor", "late", "--no-act"]).exit_code == 2
    assert acted == ["late"]
