"""Canaries of a model in all its deployments, with services that are really running, and the rollback of the model."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from socket import gethostname

import pytest
import sqlalchemy as sa
from commands import cli
from load import Load, wait_until
from served_models import Serving, folder_service

from mlcycle.core.workspace import Workspace
from mlcycle.errors import ParameterError
from mlcycle.lifecycle.canary_deployments import (
    CanaryChanges,
    end_canaries,
    judge_canaries,
    start_canaries,
    update_deployments,
)
from mlcycle.lifecycle.deployment_records import Deployment, process_start_time, remove_deployment, save_deployment
from mlcycle.lifecycle.deployment_status import deployment_status, list_deployments
from mlcycle.lifecycle.deployments import add_deployment
from mlcycle.lifecycle.serving import traffic_file
from mlcycle.service.rows import to_json_rows
from mlcycle.service.traffic import TrafficPlan, read_traffic_plan, routing_position, write_traffic_plan
from mlcycle.stores.event_log import open_event_log
from mlcycle.stores.events import database_exists, define_event_tables
from mlcycle.stores.models.audit_log import readable_entries, verify_audit_log
from mlcycle.stores.models.registry import set_alias


def versions(workspace: Workspace) -> dict[str, tuple]:
    "Champion, canary and whether it is pinned, by deployment."
    return {each.deployment.name: (each.version, each.canary, each.pinned) for each in list_deployments(workspace)}


def n_actual_values(workspace: Workspace, since: datetime) -> int:
    "Number of actual values that the prediction log has received since a time."
    if not database_exists(workspace.events_url):  # Its first event creates it
        return 0
    actuals, engine = define_event_tables()["actuals"], open_event_log(workspace.events_url)
    with engine.connect() as connection:
        n_actuals = connection.execute(sa.select(sa.func.count()).where(actuals.c.received >= since)).scalar_one()
    engine.dispose()
    return n_actuals


@pytest.fixture
def shop(served, tmp_path):
    "A service that follows the plan of a deployment folder, and one that follows the alias; both serve the first version."
    run, _, _ = served
    folder, source = tmp_path / "folder", run.workspace.root / run.release.bundle
    (folder / "releases").mkdir(parents=True)
    os.symlink(source, folder / "releases" / source.name)
    (folder / "traffic.json").write_text(json.dumps({"champion": f"releases/{source.name}"}))
    with folder_service(folder, workers=1) as (url, _), Serving(run.workspace.project, run.release.model.name) as serving:
        add_deployment(run.workspace, "shop", url, folder)
        yield serving
    remove_deployment(run.workspace, "shop")


def test_a_canary_is_started_ended_and_promoted_in_all_deployments_and_the_model_rolled_back(served, shop):
    run, second, rows = served
    name, workspace, first = run.release.model.name, run.workspace, run.release.model.version
    canary = f"{name}@{second.version}"
    with Load(str(shop.client.base_url), rows, threads=2) as load:
        started = start_canaries(workspace, name, second.version, 0.5, "a challenger")
        assert started == CanaryChanges(changed=["shop", name])
        assert start_canaries(workspace, name, second.version, 0.5, "again") == CanaryChanges(same=["shop", name])
        assert versions(workspace) == {name: (first, canary, False), "shop": (first, canary, False)}
        load.wait_for(second.version)
        assert "is its canary" in start_canaries(workspace, name, first, 0.5, "another").left["shop"]
        ended = end_canaries(workspace, name, second.version, "it is worse")
        assert ended == CanaryChanges(changed=["shop", name])
        assert end_canaries(workspace, name, second.version, "again") == CanaryChanges(same=["shop", name])
        entry = readable_entries(workspace)[-1]
        assert (entry.action, entry.reason, entry.details["change"]) == ("canary", "it is worse", "end canary")
        start_canaries(workspace, name, second.version, 0.5, "once more")
        set_alias(second, workspace=workspace, action="promote")
        assert update_deployments(workspace, name, second.version, first, "as good").active == ["shop", name]
        assert update_deployments(workspace, name, second.version, first, "again") == CanaryChanges(same=["shop", name])
        assert versions(workspace) == {name: (second.version, "", False), "shop": (second.version, "", False)}
        done = cli("rollback", name, "--reason", "complaints", cwd=workspace.project)
        assert done.returncode == 0, done.stderr
        assert "shop does not follow the alias" in done.stdout
        load.wait_for(first)
        wait_until(lambda: shop.version(rows) == first)
        entry = next(each for each in reversed(readable_entries(workspace)) if each.action == "roll back")
        assert (entry.reason, entry.version_before, entry.version_after) == ("complaints", second.version, first)
        assert update_deployments(workspace, name, first, second.version, "too").changed == ["shop"], "without a canary"
        assert versions(workspace) == {name: (first, "", False), "shop": (first, "", False)}
        assert not verify_audit_log(workspace)
    assert not load.failed


def test_a_canary_is_judged_by_the_log_of_its_service(served):
    from conftest import stored_rows

    run, second, _ = served
    name, workspace, first = run.release.model.name, run.workspace, run.release.model.version
    holdout = stored_rows(run, "holdout")
    rows, actual = to_json_rows(holdout[run.plan.input_columns]), holdout[run.problem.target].tolist()
    keys = [next(key for key in map(str, range(100)) if (routing_position(key) < 0.5) == own) for own in (True, False)]
    with Serving(workspace.project, name) as serving:
        since = datetime.now(UTC).replace(tzinfo=None)
        assert start_canaries(workspace, name, second.version, 0.5, "a challenger").changed == [name]

        def judge():
            return judge_canaries(workspace, name, second.version, first, since, min_rows=100)

        repeats, n_sent = -(-100 // len(rows)), 0
        for place in range(repeats):
            for key in keys:
                ids = [f"{key} {place} {row}" for row in range(len(rows))]
                sent = {"rows": rows, "row_ids": ids}
                serving.client.post("/predict", json=sent, headers={"X-Routing-Key": key}).raise_for_status()
                serving.client.post("/feedback", json={"actuals": actual, "row_ids": ids}).raise_for_status()
                n_sent += len(rows)
                if not place:  # Its events are handed over to the writer before those of the next request are made
                    wait_until(lambda expected=n_sent: n_actual_values(workspace, since) == expected)
        wait_until(lambda: n_actual_values(workspace, since) == n_sent)
        assert judge().action == "promote", judge().reason
        decision = judge()
        assert decision.comparison.difference.value == 0
        assert decision.failures.totals == (repeats, repeats)
        none = judge_canaries(workspace, name, second.version, first, datetime.now(UTC).replace(tzinfo=None), min_rows=100)
        assert none.action == "continue"
        end_canaries(workspace, name, second.version, "end of the test")


def test_deployments_that_a_person_has_decided_on_are_left_alone(served):
    run, second, _ = served
    name, workspace, first = run.release.model.name, run.workspace, run.release.model.version
    release = f"releases/{Path(run.release.bundle).name}"
    here = {"kind": "local service", "since": "", "pid": os.getpid(), "started": process_start_time(os.getpid())}
    nowhere = {"url": "http://127.0.0.1:9", "host": gethostname(), "release": Path(release).name}
    records = [
        Deployment(name="fixed", served=f"{name}@{first}", **here, **nowhere),
        Deployment(name="pinned", served=name, alias="champion", **here, **nowhere),
        Deployment(name="elsewhere", kind="endpoint", since="", **nowhere),
        Deployment(name="stopped", served=name, alias="champion", **here | {"started": 1}, **nowhere),
        Deployment(name="other", kind="endpoint", since="", **nowhere | {"release": "another-1-00"}),
    ]
    for record in records:
        save_deployment(workspace, record)
    try:
        write_traffic_plan(traffic_file(workspace, f"{name}@{first}"), TrafficPlan(champion=release))
        write_traffic_plan(traffic_file(workspace, name), TrafficPlan(champion=release, pinned=True))
        changes = start_canaries(workspace, name, second.version, 0.1, "a challenger")
        named = {"fixed": "It serves", "pinned": "pinned", "elsewhere": "no folder", "stopped": "stopped"}
        assert changes.left.keys() == named.keys()
        assert all(text in changes.left[each] for each, text in named.items()), changes.left
        assert not changes.active
        assert all(each in changes.text() for each in named)
        plan = TrafficPlan(champion=release, canary=f"releases/{name}-{second.version}-00000000", canary_share=0.1)
        write_traffic_plan(traffic_file(workspace, name), plan)  # Nobody serves it, and it must not be served later
        ended = end_canaries(workspace, name, second.version, "it is worse")
        assert "pinned" in ended.changed
        assert "has no canary any more" in ended.left["pinned"]
        assert read_traffic_plan(traffic_file(workspace, name)) == TrafficPlan(champion=release)
        with pytest.raises(ParameterError, match="not released"):
            start_canaries(workspace, name, second.version + 1, 0.1, "a challenger")
    finally:
        for record in records:
            remove_deployment(workspace, record.name)
        traffic_file(workspace, name).unlink()
    assert deployment_status(workspace, records[2]).state == "not reachable"
