"""The backtest of retraining policies on a table whose target changes: real runs, a real service, the times of the table."""

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK

from mlcycle.errors import ParameterError, StageError
from mlcycle.lifecycle.policy_backtest import (
    Backtest,
    compare_strategies,
    replay_strategies,
    score_by_month,
    score_replayed,
    summarise_strategies,
)

CHANGE = pd.Timestamp("2026-01-31")
GIVEN = QUICK | {"target": "late", "positive": "yes", "metric": "roc_auc", "models": ["linear"], "criteria": ["beats baseline"]}
ORDERS = Backtest("orders", "placed", "2026-01-21", step_days=5, schedule="", parameters=GIVEN)


def orders() -> pd.DataFrame:
    "A hundred orders a day; from a day on, late are those that were not."
    rng, days = np.random.default_rng(0), 55
    placed = pd.date_range("2026-01-01", periods=days * 100, freq=pd.Timedelta(days=1) / 100)
    frame = pd.DataFrame(
        {"placed": placed.round("s"), "price": rng.normal(size=len(placed)), "size": rng.normal(size=len(placed))}
    )
    score = np.where(frame.placed < CHANGE, 1, -1) * (frame.price + 0.5 * frame["size"]) + rng.logistic(0, 0.5, len(frame))
    return frame.assign(late=np.where(score > 0, "yes", "no"))


def test_the_policy_wins_back_what_a_change_has_cost(tmp_path):
    rows = orders()
    never, policy = replay_strategies(ORDERS, rows.sample(frac=1, random_state=0), tmp_path / "backtest", ["never", "policy"])
    served = rows[rows.placed >= ORDERS.start]
    for each in (never, policy):
        assert len(each.predictions) == len(served) and (each.predictions.actual.to_numpy() == served.late.to_numpy()).all()
        assert (each.predictions.when.to_numpy() == served.placed.to_numpy()).all()
    assert never.retrainings == never.alarms == [] and never.promotions == 0 and set(never.predictions.version) == {1}
    made = policy.retrainings[0]
    assert (made["state"], made["trigger"]) == ("promoted", "alarm") and policy.promotions >= 1
    assert pd.Timestamp(made["when"]) > CHANGE + pd.Timedelta(days=9), "it has waited for 1,000 rows since the alarm"
    alarm = policy.alarms[0]
    assert alarm["rule"] == "quality" and CHANGE < pd.Timestamp(alarm["when"]) < CHANGE + pd.Timedelta(days=11)
    last = [score_replayed(each.predictions.iloc[-400:], each.problem).value for each in (never, policy)]
    assert last[0] < 0.2 and last[1] > 0.8
    assert score_by_month(policy).month.tolist() == ["2026-01", "2026-02"]
    assert summarise_strategies([never, policy]).trainings.tolist() == [0, len(policy.retrainings)]
    assert "not both" in compare_strategies([never, policy])
    with pytest.raises(ParameterError, match="is not empty"):
        replay_strategies(ORDERS, rows, tmp_path / "backtest", ["never"])


def test_a_strategy_that_fails_is_reported_with_its_output(tmp_path):
    wrong = Backtest("orders", "placed", "2026-01-21", parameters=GIVEN | {"target": "lte"})
    with pytest.raises(StageError, match="The strategy 'never' has failed") as caught:
        replay_strategies(wrong, orders(), tmp_path / "backtest", ["never"])
    assert "lte" in caught.value.remedy
    with pytest.raises(ParameterError, match="no column 'placed'"):
        replay_strategies(ORDERS, orders().drop(columns="placed"), tmp_path / "other", ["never"])
