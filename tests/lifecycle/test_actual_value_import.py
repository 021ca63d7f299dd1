"""Actual values of tables: imported any number of times, in any order, they are recorded once."""

import json
from datetime import datetime, timedelta

import pandas as pd
from commands import cli
from hypothesis import given, settings
from hypothesis import strategies as st
from logged_rows import log_rows
from sqlalchemy import create_engine

import mlcycle as mc
from mlcycle.lifecycle.actual_value_import import import_actual_values, recorded_actuals
from mlcycle.lifecycle.labelled_rows import read_labelled_rows
from mlcycle.lifecycle.labelling_queue import write_labelling_queue
from mlcycle.lifecycle.merged_rows import describe_model_of_run
from mlcycle.outcomes import Problem
from mlcycle.service.personal_columns import PersonalColumns
from mlcycle.service.service_settings import ServiceSettings
from mlcycle.stores.event_log import open_event_log
from mlcycle.stores.events import add_events, create_event_tables

TEXTS = dict.fromkeys(("decision", "question", "owner", "source", "source_sha256"), "-")
PROBLEM = Problem(
    **TEXTS, target="y", task="binary", classes=["No", "Yes"], positive="Yes", metric="f1", metrics=["f1"], criteria=[], rows=9
)
START = datetime(2026, 1, 1)
ROWS = st.tuples(st.integers(0, 7), st.sampled_from(["Yes", " yes", "no", "No", True, None, "maybe"]), st.integers(0, 5))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(ROWS, min_size=1, max_size=8), min_size=1, max_size=3), st.booleans())
def test_a_repeated_import_changes_nothing(tables, with_time):
    engine = create_engine("sqlite://")
    create_event_tables(engine)
    common = {"run": "r", "model": "m", "latency_ms": 1.0, "prediction": "No", "features": {}, "received": START}
    add_events(engine, "predictions", [common | {"row_id": str(n)} for n in range(6)])
    expected: dict[str, list[str]] = {}
    options = {"time": "known" if with_time else "", "now": START + timedelta(days=9)}

    def bring_in() -> list:
        found = []
        for table in tables:
            frame = pd.DataFrame(table, columns=["row_id", "actual", "known"], dtype=object)
            frame = frame.assign(known=[START + timedelta(days=n) for n in frame.known])
            if not all(value == "maybe" for value in frame.actual if value is not None) or frame.actual.isna().all():
                found.append(import_actual_values(engine, "m", PROBLEM, frame, **options))
                order = frame.sort_values("known", kind="stable") if with_time else frame
                for row_id, value in zip(order.row_id, order.actual, strict=True):
                    spelt = "Yes" if value is True else str(value).strip().capitalize() if value else None
                    if spelt in ("Yes", "No") and row_id < 6 and spelt not in expected.setdefault(str(row_id), []):
                        expected[str(row_id)].append(spelt)
        return found

    first = bring_in()
    recorded = recorded_actuals(engine, "m", map(str, range(8)))
    assert {row_id: sorted(values) for row_id, values in recorded.items()} == {
        row_id: sorted(values) for row_id, values in expected.items() if values
    }
    again = bring_in()
    assert all(result.n_added == 0 for result in again)
    assert recorded_actuals(engine, "m", map(str, range(8))) == recorded
    assert [set(result.unknown) for result in again] == [set(result.unknown) for result in first]
    assert all(set(result.unknown) <= {"6", "7"} for result in first)
    engine.dispose()


def test_a_table_may_have_row_ids_or_their_hashes(monkeypatch):
    monkeypatch.setenv("MLCYCLE_LOG_HASH_KEY", "k" * 32)
    personal = PersonalColumns(ServiceSettings(log_hash_columns="row_id"))
    engine = create_engine("sqlite://")
    create_event_tables(engine)
    common = {"run": "r", "model": "m", "latency_ms": 1.0, "prediction": "No", "features": {}, "received": START}
    add_events(engine, "predictions", [common | {"row_id": personal.row_id(each)} for each in "ab"])
    table = pd.DataFrame(
        {"row_id": ["a", personal.row_id("b"), "c"], "actual": ["No", "Yes", "No"], "known": ["?", "2026-01-02", "?"]}
    )
    found = import_actual_values(engine, "m", PROBLEM, table, time="known", personal=personal)
    assert (found.n_added, found.unknown) == (2, ["c"]) and found.n_untimed == 2
    assert recorded_actuals(engine, "m", map(personal.row_id, "ab")) == {
        personal.row_id("a"): ["No"],
        personal.row_id("b"): ["Yes"],
    }
    engine.dispose()


def test_the_queue_is_filled_in_and_imported(project):
    champion = mc.open("last", project)
    rows = pd.read_csv(project / "orders.csv").iloc[:90].rename(index="order-{}".format)
    log_rows(champion, rows.assign(late=[None] * 60 + [*rows.late[60:]]))
    name = champion.candidate.model.name
    queue = write_labelling_queue(champion.workspace, name, max_rows=20)
    assert (queue.n_added, queue.n_rows) == (20, 20)
    lines = [json.loads(line) for line in queue.path.read_text().splitlines()]
    assert {line["row_id"] for line in lines} <= {*rows.index[:60]}
    assert lines[0]["features"].keys() == describe_model_of_run(champion).columns.keys()
    queue.path.write_text(
        "".join(json.dumps(line | {"actual": "YES"}) + "\n" for line in lines[:15]) + json.dumps(lines[15]) + "\n"
    )
    done = cli("log", "add-actuals", str(queue.path), "--model", name, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "15 of 16 actual values are recorded. 1 rows have no id or no value." in " ".join(done.stdout.split())
    labelled = read_labelled_rows(open_event_log(champion.workspace.events_url), describe_model_of_run(champion))
    assert len(labelled.frame) == 45
    assert {*labelled.frame.late[[line["row_id"] for line in lines[:15]]]} == {"yes"}
    assert write_labelling_queue(champion.workspace, name, max_rows=20).n_added == 19
    assert write_labelling_queue(champion.workspace, name, max_rows=20).n_added == 0

    (project / "known.csv").write_text("order,late,known\norder-0,no,2026-02-01\norder-99,yes,2026-02-01\n")
    done = cli("log", "add-actuals", "known.csv", "--model", name, "--id", "order", "--time", "known", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "1 row ids were not predicted: order-99." in done.stdout
    wrong = cli("log", "add-actuals", "known.csv", "--model", name, cwd=project)
    assert wrong.returncode == 2
    assert "--id COLUMN" in wrong.stderr
