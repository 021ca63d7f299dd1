"""A real service in a process of its own, over HTTP."""

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from commands import cli
from conftest import stored_rows

from mlcycle.errors import StageError
from mlcycle.service.local import running_service
from mlcycle.service.rows import to_json_rows
from mlcycle.service.service_settings import setting_meanings
from mlcycle.stores.events import open_event_database, read_events


@pytest.fixture(scope="module")
def asked(table_run, tmp_path_factory):
    "A running service of the penguins' release, and rows to ask it."
    run = table_run("penguins")
    rows = stored_rows(run, "holdout")[run.plan.input_columns]
    events = f"sqlite:///{tmp_path_factory.mktemp('events')}/events.db"
    with running_service(run.workspace.root / run.release.bundle, events, "test") as service:
        yield run, service, rows, events


def test_one_row_and_many_rows_get_the_same_answers(asked):
    run, service, rows, _ = asked
    wire, ids = to_json_rows(rows), [str(i) for i in rows.index]
    many = service.predict(wire, ids)
    ones = [service.predict([row], [i]) for row, i in zip(wire, ids, strict=True)]
    assert many["predictions"] == [one["predictions"][0] for one in ones] == run.predict(rows).prediction.tolist()
    assert many["row_ids"] == ids
    assert all(abs(sum(scores) - 1) < 1e-9 for scores in many["scores"])


def test_says_which_model_it_is(asked):
    run, service, _, _ = asked
    about = service.client.get("/model").json()
    assert about["model"] == run.candidate.model.model_dump()
    assert list(about["columns"]) == run.plan.input_columns


def test_unseen_and_missing_values_get_an_answer(asked):
    _, service, rows, _ = asked
    row = to_json_rows(rows.head(1))[0]
    odd = [dict.fromkeys(row), row | {"Island": "Atlantis"}, row | {"more": "than asked for"}]
    assert len(service.predict(odd, ["a", "b", "c"])["predictions"]) == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"Body Mass (g)": "heavy"}, "Body Mass (g)"),
        ({"Date Egg": "in spring"}, "Date Egg"),
        ({"Island": ["a", "list"]}, "Island"),
    ],
)
def test_a_wrong_value_is_refused_with_its_column(asked, change, named):
    _, service, rows, _ = asked
    answer = service.client.post("/predict", json={"rows": [to_json_rows(rows.head(1))[0] | change]})
    assert answer.status_code == 422
    assert named in answer.text


def test_wrong_bodies_are_refused(asked):
    _, service, rows, _ = asked
    row = to_json_rows(rows.head(1))[0]
    for body in ({}, {"rows": []}, {"rows": [{"Island": "Dream"}]}, {"rows": [row], "row_ids": ["a", "b"]}, {"rows": "all"}):
        assert service.client.post("/predict", json=body).status_code == 422, body
    assert service.client.post("/feedback", json={"actuals": ["a", "b"], "row_ids": ["1"]}).status_code == 422
    assert service.client.get("/health").is_success


def test_many_clients_at_once_and_no_event_is_lost(table_run, tmp_path):
    run = table_run("wine")
    rows = stored_rows(run, "holdout")
    wire, url = to_json_rows(rows[run.plan.input_columns]), f"sqlite:///{tmp_path}/events.db"
    with running_service(run.workspace.root / run.release.bundle, url, "many") as service:

        def ask(number):
            place = number % len(wire)
            with httpx.Client(base_url=service.url, timeout=60) as client:
                return client.post("/predict", json={"rows": [wire[place]], "row_ids": [str(number)]}).json()["predictions"][0]

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(120)))
        service.send_feedback([int(rows.target.iloc[n % len(rows)]) for n in range(120)], [str(n) for n in range(120)])
    events, _ = read_events(open_event_database(url), "many")
    assert sorted(events.row_id, key=int) == [str(n) for n in range(120)]
    assert events.actual.notna().all()
    assert dict(zip(events.row_id, events.prediction, strict=True)) == {str(n): answers[n] for n in range(120)}


def test_binds_to_loopback(asked):
    _, service, _, _ = asked
    assert service.url.startswith("http://127.0.0.1:")


def test_a_taken_port_is_a_clear_error(table_run):
    run = table_run("wine")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = cli("serve", run.id, "--port", port, cwd=run.workspace.project)
    assert done.returncode == 2
    assert str(port) in done.stderr


def test_an_altered_bundle_does_not_start(table_run, tmp_path):
    import shutil

    run = table_run("wine")
    shutil.copytree(run.workspace.root / run.release.bundle, tmp_path / "bundle")
    with open(tmp_path / "bundle" / "model.skops", "ab") as file:
        file.write(b"x")
    with pytest.raises(StageError, match="altered"), running_service(tmp_path / "bundle"):
        pass


def test_help_names_the_options():
    command = [sys.executable, "-c", "from mlcycle.service.server import main; main()", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--host" in shown
    assert "--port" in shown
    shown = " ".join(shown.split())
    for name, meaning in setting_meanings().items():
        assert name in ("workers", "api_key_entries") or f"{meaning}; default: " in shown, name
