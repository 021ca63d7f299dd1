"""Stage 7: the latency budget is the problem's, unless the stage is given another."""

import pytest

from mlcycle.core.workspace import Workspace
from mlcycle.monitoring import stage
from mlcycle.monitoring.decision import decide_action
from mlcycle.outcomes import Score

HOLDOUT = Score(metric="roc_auc", value=0.8, low=0.75, high=0.85)


@pytest.mark.parametrize(
    ("p95", "budget", "action"),
    [(80.0, None, "nothing"), (80.0, 100.0, "nothing"), (80.0, 50.0, "investigate"), (80.0, 80.0, "nothing")],
)
def test_latency_is_compared_with_a_budget_if_there_is_one(p95, budget, action):
    decided, reason, back_to = decide_action(HOLDOUT, HOLDOUT, [], {"p95": p95}, latency_budget_ms=budget)
    assert decided == action
    assert back_to == ("modelling" if action == "investigate" else "")
    assert ("the budget is 50 ms" in reason) == (action == "investigate")


@pytest.mark.parametrize(
    ("of_problem", "of_stage", "expected"), [(25.0, None, 25.0), (25.0, 60.0, 60.0), (None, None, None), (None, 60.0, 60.0)]
)
def test_the_budget_of_the_problem_is_the_default(of_problem, of_stage, expected, table_run, monkeypatch):
    run, given = table_run("wine"), []

    def listen(*args, latency_budget_ms):
        given.append(latency_budget_ms)
        return "nothing", "-", ""

    monkeypatch.setattr(stage, "decide_action", listen)
    monkeypatch.setattr(stage, "replay_through_service", lambda *args, **kwargs: None)
    monkeypatch.setattr(stage, "delete_events_of_run", lambda *args: None)
    problem = run.problem.model_copy(update={"latency_budget_ms": of_problem})
    workspace = Workspace.from_project(run.workspace.project)
    stage.monitor_model(
        problem, run.dataset, run.plan, run.verdict, run.release, workspace, run=run.id, latency_budget_ms=of_stage
    )
    assert given == [expected]
