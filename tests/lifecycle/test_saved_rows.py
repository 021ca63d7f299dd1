"""Rows that retrainings have saved: they go with the retention of the prediction log, and with the last run that read them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlcycle.cli.app import app
from mlcycle.core.files import write_text
from mlcycle.core.settings import STORE_DEFAULTS
from mlcycle.core.workspace import Workspace
from mlcycle.errors import InputError
from mlcycle.lifecycle.retraining_records import RetrainingRecord, retraining_folder, retraining_lock, save_retraining
from mlcycle.stores.events import open_event_database
from mlcycle.stores.sources.ingest import read_source

NOW = datetime.now(UTC).replace(tzinfo=None)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    "A project that keeps predictions for 30 days."
    (tmp_path / "settings.ini").write_text("[prediction_log]\nretention = 30d\n")
    made = Workspace.from_project(tmp_path)
    made.prepare()
    open_event_database(made.events_url).dispose()
    monkeypatch.chdir(tmp_path)
    return made


def retrained(workspace: Workspace, name: str, state: str, days: float | None) -> Path:
    "A retraining in a state, whose oldest row is so many days old, or not known; its rows."
    first = "" if days is None else (NOW - timedelta(days=days)).isoformat()
    file = retraining_folder(workspace, "late") / name / "orders.parquet"
    write_text(file, "rows")
    write_text(file.with_name("contract.yaml"), "rules")
    fields = {"model": "late", "champion": 1, "trigger": "person", "reason": "-", "user": "ann", "state": state}
    times = {state: NOW.isoformat()}
    save_retraining(workspace, RetrainingRecord.model_validate(fields | {"id": name, "first_row": first, "times": times}))
    return file


def command(*words: str) -> str:
    "What a command prints."
    done = CliRunner().invoke(app, words, env={"COLUMNS": "1000"})
    assert done.exit_code == 0, done.output
    return done.stdout


def test_saved_rows_are_pruned_with_the_log(workspace):
    young, old = retrained(workspace, "a", "promoted", 29), retrained(workspace, "b", "failed", 31)
    unknown = retrained(workspace, "c", "cancelled", None)
    being_trained = retrained(workspace, "d", "training", 31)
    shown = command("log", "prune")
    assert "the rows that ended retrainings had saved: late/b, late/c." in shown
    assert "The rows of the retraining late/d are kept until it ends: mlcycle retrain late" in shown
    assert [each.parent.exists() for each in (young, old, unknown, being_trained)] == [True, False, False, True]
    assert len([*retraining_folder(workspace, "late").glob("*.json")]) == 4
    with pytest.raises(InputError, match=r"The file '.*orders.parquet' does not exist"):
        read_source(str(old))
    assert "late/b" not in command("log", "prune")


def test_rows_are_kept_while_another_process_works_or_a_record_is_damaged(workspace):
    old = retrained(workspace, "a", "promoted", 31)
    with retraining_lock(workspace, "late"):
        assert "another process is working on its retraining" in command("log", "prune")
    record = retraining_folder(workspace, "late") / "b.json"
    record.write_text("{")
    assert f"The record {record} cannot be read" in command("log", "prune")
    assert old.is_file()
    record.unlink()
    assert "late/a" in command("log", "prune")
    assert not old.exists()


def test_old_rows_leave_the_labelling_queue(workspace):
    queue = workspace.root / "labelling" / "late.jsonl"
    lines = [json.dumps({"row_id": str(days), "when": (NOW - timedelta(days=days)).isoformat()}) for days in (40, 2)]
    write_text(queue, "\n".join(lines) + "\n")
    assert "Deleted: 1 rows of labelling queues." in command("log", "prune")
    assert queue.read_text() == lines[1] + "\n"


def test_cleaning_up_removes_rows_that_no_run_reads(workspace):
    files = [retrained(workspace, name, state, 1) for name, state in (("a", "promoted"), ("b", "not better"), ("c", "canary"))]
    about = {"status": "done", "stages": {}, "keys": {}, "stores": STORE_DEFAULTS, "project": str(workspace.project)}
    for name, file in zip(("1", "2"), files, strict=False):
        parameters = {"problem": {"source": str(file.absolute())}}
        info = about | {"id": name, "started": name, "parameters": parameters}
        write_text(workspace.root / "runs" / name / "run.json", json.dumps(info))
    text = "Saved rows of 1 ended retrainings {}.\n  late/a"
    assert text.format("would be removed") in command("clean", "--keep", "1", "--dry-run")
    assert all(file.is_file() for file in files)
    assert text.format("removed") in command("clean", "--keep", "1")
    assert [file.is_file() for file in files] == [False, True, True]
