"""Stage 7 judges the predictions that a service has recorded; where there are none it rehearses, and says so."""

import ast
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import mlcycle.monitoring
from mlcycle.core.settings import STORE_DEFAULTS
from mlcycle.core.workspace import Workspace
from mlcycle.deployment.monitoring_documents import monitoring_documents
from mlcycle.monitoring import monitor
from mlcycle.monitoring.decision import RULE_ACTIONS, Decision, RetrainingRules, decide_action
from mlcycle.monitoring.monitor import MonitoringOptions
from mlcycle.monitoring.recorded_traffic import log_span, monitor_traffic
from mlcycle.monitoring.stage import RehearsalOptions, TrafficOptions, monitor_model
from mlcycle.outcomes import Alarm, Dataset, FeaturePlan, ModelRef, Problem, Release
from mlcycle.service.bundle import Bundle, build_bundle
from mlcycle.service.local import running_service
from mlcycle.service.monitoring_references import read_references
from mlcycle.stores.event_log import open_event_log
from mlcycle.stores.models.model_files import save_model
from mlcycle.stores.tables.datasets import write_table
from mlcycle.stores.tables.holdout import read_holdout

FILE = {"path": "-", "sha256": "-"}
COLUMNS = ["x", "z"]
N_SENT, N_LABELLED = 240, 160


def make_rows(n_rows: int, seed: int) -> pd.DataFrame:
    "Rows whose target depends on `x`; no time column, so that none of them are future rows."
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(rng.normal(size=(n_rows, 2)), columns=COLUMNS).rename_axis("row_id")
    return rows.assign(y=np.where(rows.x + rng.normal(0, 0.5, n_rows) > 0, "yes", "no"))


class Toy:
    "A workspace with a release of a small model."

    def __init__(self, folder: Path):
        texts = dict.fromkeys(("decision", "question", "owner", "source", "source_sha256"), "-")
        self.problem = Problem(**texts, target="y", task="binary", classes=["no", "yes"], positive="yes", metric="roc_auc",
                               metrics=["roc_auc"], criteria=[], rows=900, latency_budget_ms=25.0)  # fmt: skip
        self.workspace, train, holdout = Workspace(folder), make_rows(600, 0), make_rows(300, 1)
        model, file = make_pipeline(SimpleImputer(), LogisticRegression()).fit(train[COLUMNS], train.y), folder / "model.skops"
        ref = ModelRef(name="toy", version=1, run_id="-", sha256=save_model(model, file))
        bundle = Bundle(problem=self.problem, columns=dict.fromkeys(COLUMNS, "float64"), threshold=0.5, model=ref)
        documents = monitoring_documents(bundle, model, train, holdout)
        self.folder = build_bundle(self.workspace.root / "releases", bundle, file, documents=documents)
        self.release = Release(decision="-", released=True, model=ref, bundle=f"releases/{self.folder.name}")
        self.plan = FeaturePlan(decision="-", input_columns=COLUMNS, features=[], dropped_columns={}, pipeline=FILE)
        self.tables = {"holdout": write_table(self.workspace.tables, "holdout", holdout)}

    def monitor(self, workspace: Workspace | None = None, **options):
        "Outcome of the stage."
        dataset = Dataset(decision="-", rows_in=900, rows_clean=900, rows_set_aside=0, ledger=[], split_description="-",
                          tables=self.tables, contract=FILE)  # fmt: skip
        return monitor_model(self.problem, dataset, self.plan, self.release, workspace or self.workspace, **options)[0]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return Toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "A workspace whose service has predicted rows without a value of `z`, and got the actual values of most of them."
    toy = Toy(tmp_path_factory.mktemp("served"))
    rows = make_rows(N_SENT, 2).assign(z=None)
    ids = [f"row {place}" for place in range(N_SENT)]
    with running_service(toy.folder, toy.workspace.events_url) as service:
        for start in range(0, N_SENT, 60):
            part = rows[start : start + 60]
            service.predict(part[COLUMNS].astype(object).to_dict("records"), ids[start : start + 60])
        service.send_feedback(rows.y[:N_LABELLED].tolist(), ids[:N_LABELLED])
    return toy


def test_what_a_service_has_recorded_is_judged(served):
    now = datetime.now(UTC).replace(tzinfo=None)
    health = served.monitor(now=now)
    assert (health.monitored, health.rows, health.n_labelled) == ("traffic", N_SENT, N_LABELLED)
    assert not any("ehears" in text for text in [health.decision, *health.notes])
    assert (health.action, health.back_to_stage) == ("investigate", "data")
    assert health.alarms[0].rule == "all missing" and health.drift[0].column == "z" and "'z'" in health.reason
    assert health.score.value > 0.85 and health.score.low < health.score.value < health.score.high
    assert [(each.version, each.rows, each.n_labelled) for each in health.versions] == [("1", N_SENT, N_LABELLED)]
    assert served.monitor(now=now) == health, "the same log gives the same outcome"
    assert not (served.workspace.root / "rehearsal.db").exists()


def test_without_recorded_predictions_it_rehearses_and_says_so(toy):
    read_holdout(toy.workspace, toy.tables["holdout"], stage="validation", reason="as stage 5 does")
    rehearsed = toy.monitor(rehearsal=RehearsalOptions(replay_rows=120, windows=2))
    assert (rehearsed.monitored, rehearsed.rows, rehearsed.n_labelled) == ("holdout", 120, 120)
    assert "Rehearsal" in rehearsed.decision and rehearsed.notes[0].startswith("Rehearsal")
    assert not (toy.workspace.root / "events.db").exists(), "a replay is no traffic"
    assert rehearsed.action == "nothing", rehearsed.reason


def test_recorded_predictions_of_another_time_are_not_judged(served):
    read_holdout(served.workspace, served.tables["holdout"], stage="validation", reason="as stage 5 does")
    later = datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=1)
    health = served.monitor(traffic=TrafficOptions(since=later), rehearsal=RehearsalOptions(replay_rows=20, windows=1))
    assert (health.monitored, health.rows) == ("holdout", 20)
    assert "since" in health.notes[0] and "no predictions are recorded yet" not in health.notes[0]


@pytest.mark.parametrize(
    ("of_problem", "of_stage", "expected"), [(25.0, None, 25.0), (25.0, 60.0, 60.0), (None, None, None), (None, 60.0, 60.0)]
)
def test_the_budget_of_the_problem_is_the_default(of_problem, of_stage, expected, served):
    references = read_references(served.folder)
    problem = references.bundle.problem.model_copy(update={"latency_budget_ms": of_problem})
    references = replace(references, bundle=references.bundle.model_copy(update={"problem": problem}))
    engine, now = open_event_log(served.workspace.events_url), datetime.now(UTC).replace(tzinfo=None)
    health = monitor_traffic(engine, references, now, options=MonitoringOptions(latency_budget_ms=of_stage)).health
    assert health.latency_budget_ms == expected
    assert any("no latency budget" in note for note in health.notes) == (expected is None)


@pytest.mark.parametrize("kind", ["a file of something else", "a server that is down"])
def test_a_log_that_cannot_be_read_is_a_clear_line(kind, toy, tmp_path):
    file, text = tmp_path / "events.db", "this is a text, and no database. " * 50
    file.write_text(text)
    url = f"sqlite:///{file}" if kind.startswith("a file") else "postgresql+psycopg://me:s3cret@127.0.0.1:9/log"
    workspace = Workspace(toy.workspace.project, STORE_DEFAULTS | {"events_url": url})
    health = toy.monitor(workspace)
    assert (health.monitored, health.rows, health.action, health.back_to_stage) == ("none", 0, "investigate", "deployment")
    assert health.decision.startswith("Nothing can be judged: The prediction log") and len(health.decision.splitlines()) == 1
    assert [(each.rule, each.severity, each.subject) for each in health.alarms] == [("errors", "critical", "prediction log")]
    assert "s3cret" not in health.model_dump_json() and file.read_text() == text


@pytest.mark.parametrize("of_last_request", [False, True])
def test_the_cooldown_starts_with_the_first_prediction_of_the_version(of_last_request, served, monkeypatch):
    "Not with the first one that is judged: a look at the last hour does not make a version new."
    references, engine = read_references(served.folder), open_event_log(served.workspace.events_url)
    first, last = log_span(engine, "toy")
    given = []

    def listen(alarms, n_labelled, serving_since, *others):
        given.append(serving_since)
        return Decision("nothing", "-")

    monkeypatch.setattr(monitor, "decide_action", listen)
    monitored = monitor_traffic(engine, references, last + timedelta(days=9), since=last if of_last_request else None)
    assert monitored.health.rows == (60 if of_last_request else N_SENT) and first < last
    assert given == [last - first + timedelta(days=9)]


def alarm(rule: str, severity="warning") -> Alarm:
    return Alarm(rule=rule, severity=severity, summary=f"Of {rule}.")


@pytest.mark.parametrize(
    ("alarms", "n_labelled", "days", "action", "stage"),
    [
        ([], 5000, 30, "nothing", ""),
        ([alarm("drift", "info")], 5000, 30, "nothing", ""),
        ([alarm("drift"), alarm("joint drift"), alarm("outliers")], 5000, 30, "investigate", "data"),
        ([alarm("drift"), alarm("quality")], 200, 7, "retrain", "data"),
        ([alarm("estimated quality")], 200, None, "retrain", "data"),
        ([alarm("quality")], 199, 7, "relabel", "data"),
        ([alarm("quality")], 5000, 6.99, "investigate", "data"),
        ([alarm("quality", "critical"), alarm("version")], 0, 0, "roll back", "deployment"),
        ([alarm("quality"), alarm("missing column")], 5000, 30, "investigate", "data"),
        ([alarm("latency"), alarm("errors")], 5000, 30, "investigate", "deployment"),
        ([alarm("latency")], 5000, 30, "investigate", "modelling"),
    ],
)
def test_the_gravest_alarm_decides(alarms, n_labelled, days, action, stage):
    decided = decide_action(alarms, n_labelled, None if days is None else timedelta(days=days))
    assert (decided.action, decided.back_to_stage) == (action, stage)
    named = [each.rule for each in alarms if each.severity != "info"]
    assert all(rule in decided.reason for rule in named) and ("Further alarms" in decided.reason) == (len(named) > 1)


def test_when_a_lower_score_leads_to_a_new_model_can_be_set():
    rules = RetrainingRules(min_labelled_rows=10, cooldown=timedelta(0))
    assert decide_action([alarm("quality")], 10, timedelta(0), rules).action == "retrain"


def test_every_rule_of_an_alarm_has_an_action():
    "An alarm of an unknown rule would end the stage."
    calls = [
        node
        for file in Path(mlcycle.monitoring.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Alarm"
    ]
    written = {leaf.value for call in calls for word in call.keywords if word.arg == "rule"
               for leaf in ast.walk(word.value) if isinstance(leaf, ast.Constant)}  # fmt: skip
    assert {"drift", "latency", "errors", "quality"} <= written
    assert written <= set(RULE_ACTIONS)
