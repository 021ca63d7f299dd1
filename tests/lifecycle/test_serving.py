"""Traffic plans that several commands change at the same time, and changes that are interrupted."""

import time
from pathlib import Path
from threading import Thread

import pytest

from mlcycle.core.workspace import Workspace
from mlcycle.errors import StageError
from mlcycle.lifecycle import serving
from mlcycle.lifecycle.deployment_records import Deployment, save_deployment
from mlcycle.lifecycle.deployment_status import PlanWait
from mlcycle.lifecycle.deployments import PlanChangedError, end_canary, roll_back_deployment, start_change
from mlcycle.lifecycle.serving import ServeTarget, change_traffic, follow_alias, traffic_file
from mlcycle.service.traffic import TrafficPlan, read_traffic_plan, write_traffic_plan
from mlcycle.stores.models.audit_log import readable_entries

WITH_CANARY = TrafficPlan(champion="releases/toy-1-aaaaaaaa", canary="releases/toy-2-bbbbbbbb", canary_share=0.1)
WITHOUT = TrafficPlan(champion="releases/toy-1-aaaaaaaa")


@pytest.fixture
def workspace(tmp_path):
    "A workspace with a local service, which serves whatever its plan names, and has a canary."
    made = Workspace(tmp_path)
    write_traffic_plan(traffic_file(made, "toy"), WITH_CANARY)
    save_deployment(made, service())
    return made


def service() -> Deployment:
    "Its record."
    return Deployment(name="toy", kind="local service", url="http://127.0.0.1:9", since="", served="toy", alias="champion")


@pytest.fixture
def waits(monkeypatch):
    "What happens while a change is waited for; each is called once."
    called: list = []
    monkeypatch.setattr(PlanWait, "note_problem", lambda self: None)
    monkeypatch.setattr(PlanWait, "wait", lambda self: called.pop(0)(self) if called else None)
    return called


def target(version: int) -> ServeTarget:
    "A released version, to which the alias points."
    return ServeTarget(Path(f"releases/toy-{version}-aaaaaaaa").absolute(), model="toy", version=version, alias="champion")


def test_two_commands_that_change_a_plan_at_once_lose_nothing(workspace, monkeypatch):
    def slowly(path: Path, plan: TrafficPlan) -> None:
        time.sleep(0.05)  # Both have read the plan by then, unless the second one waits
        write_traffic_plan(path, plan)

    monkeypatch.setattr(serving, "write_traffic_plan", slowly)
    for version in (3, 4, 5):
        threads = [
            Thread(target=change_traffic, args=(workspace, "toy"), kwargs={"canary_share": version / 10}),
            Thread(target=follow_alias, args=(workspace, target(version))),
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        plan = read_traffic_plan(traffic_file(workspace, "toy"))
        assert (plan.canary_share, Path(plan.champion).name) == (version / 10, f"toy-{version}-aaaaaaaa")


def test_the_alias_is_followed_unless_a_person_has_pinned_another_version(workspace):
    assert not follow_alias(workspace, target(1)), "it is champion"
    assert follow_alias(workspace, target(2)) and follow_alias(workspace, target(1)), "also back to an earlier one"
    write_traffic_plan(traffic_file(workspace, "toy"), pinned := WITH_CANARY.model_copy(update={"pinned": True}))
    assert not follow_alias(workspace, target(2))
    assert read_traffic_plan(traffic_file(workspace, "toy")) == pinned


def test_a_change_of_a_plan_that_was_changed_meanwhile_is_refused(workspace, waits):
    change = start_change(workspace, service(), "end canary", "It is worse.", 1)
    follow_alias(workspace, target(3))
    with pytest.raises(PlanChangedError, match="Another command has changed the traffic plan of 'toy' at the same time"):
        change.apply(WITHOUT, [])
    assert Path(read_traffic_plan(traffic_file(workspace, "toy")).champion).name == "toy-3-aaaaaaaa"
    assert not readable_entries(workspace)


def test_a_change_that_is_not_served_restores_its_own_plan_only(workspace, waits):
    path = traffic_file(workspace, "toy")

    def refuse(wait: PlanWait) -> None:
        raise StageError("The deployment 'toy' cannot serve it.")

    waits.append(refuse)
    with pytest.raises(StageError, match="cannot serve it. The previous versions are restored"):
        end_canary(workspace, service(), reason="It is worse.")
    assert read_traffic_plan(path) == WITH_CANARY

    def change_and_refuse(wait: PlanWait) -> None:
        follow_alias(workspace, target(3))
        refuse(wait)

    waits.append(change_and_refuse)
    with pytest.raises(StageError, match="Another command has changed the traffic plan of 'toy'"):
        end_canary(workspace, service(), reason="It is worse.")
    after = read_traffic_plan(path)
    assert (Path(after.champion).name, after.canary) == ("toy-3-aaaaaaaa", None)
    assert [each.action for each in readable_entries(workspace)] == ["failed", "failed"]


def test_a_rollback_does_not_wait_for_a_change_that_is_waited_for(workspace, monkeypatch):
    path = traffic_file(workspace, "toy")
    monkeypatch.setattr(PlanWait, "note_problem", lambda self: None)
    more = WITH_CANARY.model_copy(update={"canary_share": 0.5})
    failed: list[StageError] = []

    def change() -> None:
        try:  # No service serves it
            start_change(workspace, service(), "canary", "", 30).apply(more, [])
        except StageError as error:
            failed.append(error)

    thread = Thread(target=change)
    thread.start()
    while read_traffic_plan(path) != more:
        time.sleep(0.01)
    monkeypatch.setattr(PlanWait, "wait", lambda self: None)
    began = time.monotonic()
    roll_back_deployment(workspace, service())
    assert time.monotonic() - began < 1
    thread.join(10)
    assert read_traffic_plan(path) == WITHOUT
    assert failed and "Another command has changed the traffic plan of 'toy' meanwhile" in str(failed[0])
