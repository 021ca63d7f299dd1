"""Champion, canary and shadow of a running service, changed under load."""

import json
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import load
import pytest
import sqlalchemy as sa
from toy_releases import COLUMNS, toy_release, toy_rows

from mlcycle.errors import InputError
from mlcycle.service.local import running_service
from mlcycle.service.traffic import TrafficPlan, read_traffic_plan, routing_position, write_traffic_plan
from mlcycle.stores.event_log import read_requests
from mlcycle.stores.events import open_event_database

ROWS = toy_rows(60, seed=1).to_dict("records")
wait_until = partial(load.wait_until, seconds=30)


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    "Versions 1 to 3; the columns of version 3 have other names."
    folder = tmp_path_factory.mktemp("traffic")
    other = {f"z{number}": "float64" for number in range(len(COLUMNS))}
    return {version: toy_release(folder, version, columns=other if version == 3 else None) for version in (1, 2, 3)}


def version_of(client: httpx.Client, **headers: str) -> int:
    "The version that predicts a request."
    response = client.post("/predict", json={"rows": ROWS[:1]}, headers=headers)
    assert response.status_code == 200, response.text
    assert round(response.json()["predictions"][0]) == response.json()["version"]
    return response.json()["version"]


def traffic_of(client: httpx.Client) -> dict:
    "What `GET /model` says about traffic."
    return client.get("/model").json()["traffic"]


def plan_file(folder: Path, releases: dict[int, Path], champion: int, **more) -> Path:
    "A traffic plan in a folder."
    named = {name: str(releases[value]) if name in ("canary", "shadow") else value for name, value in more.items()}
    write_traffic_plan(folder / "traffic.json", TrafficPlan(champion=str(releases[champion]), **named))
    return folder / "traffic.json"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"champion": 3}', '{"champion": "a", "canary_share": 1.5}', '{"champion": "a", "x": 1}']
)
def test_a_plan_that_is_not_valid_is_an_error(tmp_path, text):
    (tmp_path / "traffic.json").write_text(text)
    with pytest.raises(InputError, match="not valid"):
        read_traffic_plan(tmp_path / "traffic.json")


def test_the_champion_changes_under_load_without_a_failed_request(releases, tmp_path):
    plan, stop, seen, failed = plan_file(tmp_path, releases, 1), threading.Event(), Counter(), []
    with running_service(releases[1], options=["--traffic", str(plan)]) as service:

        def send() -> None:
            with httpx.Client(base_url=service.url, timeout=60) as client:
                while not stop.is_set():
                    try:
                        seen[version_of(client)] += 1
                    except (AssertionError, httpx.HTTPError) as error:
                        failed.append(repr(error))

        with ThreadPoolExecutor(4) as threads:
            futures = [threads.submit(send) for _ in range(4)]
            try:
                wait_until(lambda: seen[1] > 50)
                plan_file(tmp_path, releases, 2)
                wait_until(lambda: seen[2] > 50)
                (tmp_path / "traffic.json").write_text(json.dumps({"champion": "releases/none-1-00000000"}))
                wait_until(lambda: traffic_of(service.client)["problem"])
                plan_file(tmp_path, releases, 1)
                wait_until(lambda: traffic_of(service.client)["champion"]["version"] == 1)
            finally:
                stop.set()
            for future in futures:
                future.result()
        assert traffic_of(service.client)["problem"] is None
    assert failed == []
    assert set(seen) == {1, 2}


def test_an_altered_release_does_not_replace_the_champion(releases, tmp_path):
    altered = tmp_path / releases[2].name
    altered.mkdir()
    for file in releases[2].iterdir():
        (altered / file.name).write_bytes(file.read_bytes() + (b" " if file.name == "model.skops" else b""))
    plan = plan_file(tmp_path, releases, 1)
    with running_service(releases[1], options=["--traffic", str(plan)]) as service:
        plan_file(tmp_path, releases | {2: altered}, 2)
        wait_until(lambda: traffic_of(service.client)["problem"])
        assert "model.skops" in traffic_of(service.client)["problem"]
        assert version_of(service.client) == 1


def test_the_canary_gets_its_share_and_the_same_key_the_same_version(releases, tmp_path):
    plan = plan_file(tmp_path, releases, 1, canary=2, canary_share=0.3)
    keys = [f"customer {number}" for number in range(300)]
    with running_service(releases[1], options=["--traffic", str(plan)]) as service:
        first = [version_of(service.client, **{"X-Routing-Key": key}) for key in keys]
        again = [version_of(service.client, **{"X-Routing-Key": key}) for key in keys]
    with running_service(releases[1], options=["--traffic", str(plan)]) as service:
        restarted = [version_of(service.client, **{"X-Routing-Key": key}) for key in keys[:50]]
    assert first == again
    assert restarted == first[:50]
    assert first == [2 if routing_position(key) < 0.3 else 1 for key in keys]
    assert 60 <= first.count(2) <= 120  # 0.3 of 300, four standard errors


def test_what_a_canary_rejects_is_predicted_by_the_champion(releases, tmp_path):
    plan, url = plan_file(tmp_path, releases, 1, canary=3, canary_share=1.0), f"sqlite:///{tmp_path}/events.db"
    with running_service(releases[1], url, options=["--traffic", str(plan)]) as service:
        assert version_of(service.client) == 1
        both = ROWS[0] | {f"z{number}": 0.5 for number in range(len(COLUMNS))}
        assert service.predict([both], ["b"])["version"] == 3
        assert service.client.post("/predict", json={"rows": [{"x0": "wrong"}]}).status_code == 422
    assert [(role, version) for _, role, version in logged(url)] == [("champion", "1"), ("canary", "3")]
    requests = read_requests(open_event_database(url), "toy")
    failed = requests[requests.role == "canary"]
    assert failed[["model_version", "kind", "rows"]].values.tolist() == [["3", "failed", 1]]
    assert set(requests.kind[requests.role == "champion"]) == {"rejected"}  # The last request, which both reject


def logged(url: str) -> list[tuple]:
    "Row id, role and version of the logged predictions."
    engine = open_event_database(url)
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT row_id, role, model_version FROM predictions ORDER BY number")).all()
    engine.dispose()
    return [tuple(row) for row in found]


@pytest.mark.parametrize(("shadow", "expected"), [(2, [("shadow", "2")]), (3, [])])
def test_a_shadow_is_logged_and_harmless_when_it_fails(releases, tmp_path, shadow, expected):
    plan, url = plan_file(tmp_path, releases, 1, shadow=shadow), f"sqlite:///{tmp_path}/events.db"
    with running_service(releases[1], url, options=["--traffic", str(plan)]) as service:
        assert traffic_of(service.client)["shadow"]["version"] == shadow
        for number in range(5):
            assert service.predict(ROWS[:1], [f"row {number}"])["version"] == 1
    events = logged(url)
    for number in range(5):
        own = [event[1:] for event in events if event[0] == f"row {number}"]
        assert sorted(own) == sorted([("champion", "1"), *expected])


def test_a_service_needs_a_release_or_a_plan():
    command = [sys.executable, "-c", "from mlcycle.service.server import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--traffic" in done.stderr


def test_changes_and_refused_plans_are_in_the_log_with_what_serves(releases, tmp_path):
    plan = plan_file(tmp_path, releases, 1, canary=2, canary_share=0.25)
    command = [sys.executable, "-c", "from mlcycle.service.server import main; main()", "--traffic", str(plan)]
    log = tmp_path / "log"
    with log.open("w") as stderr, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            plan_file(tmp_path, releases, 1)
            wait_until(lambda: "The traffic is now: champion toy version 1. Before: " in log.read_text())
            plan.write_text("{}")
            wait_until(lambda: "is not used" in log.read_text())
        finally:
            process.kill()
    lines = [line for line in log.read_text().splitlines() if "traffic" in line]
    assert "champion toy version 1, canary toy version 2 for 0.25 of the requests. Before: " in lines[0]
    assert lines[-1].endswith("Still served: champion toy version 1.")
