"""Rows ordered in time are compared with naive forecasts, not only with a constant."""

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK
from sklearn.metrics import r2_score

import mlcycle as mc
from mlcycle.ml.baselines import choose_baseline
from mlcycle.ml.naive_forecasts import naive_forecasts
from mlcycle.outcomes import Problem, Verdict

EMPTY = {"metrics": ["r2"], "criteria": [], "rows": 0, "task": "regression", "metric": "r2"}
EMPTY |= dict.fromkeys(["decision", "question", "owner", "source", "source_sha256"], "-")


def demand_table(stores: int = 10, days: int = 400) -> pd.DataFrame:
    "Demand by store and day: a level, a weekly season, an autoregressive part, promotions and prices."
    rng, dates, parts = np.random.default_rng(0), pd.date_range("2023-01-01", periods=days), []
    for store in range(stores):
        noise = rng.normal(0, 6, days)
        for day in range(1, days):
            noise[day] += 0.9 * noise[day - 1]
        rows = pd.DataFrame({"date": dates, "store": f"store {store}", "price": rng.normal(10, 0.5, days).round(2)})
        rows["promo"] = (rng.random(days) < 0.15).astype(int)
        season = 8 * np.sin(2 * np.pi * dates.day_of_week.to_numpy() / 7)
        parts.append(rows.assign(demand=(100 + noise + season + 6 * rows.promo - 3 * (rows.price - 10)).round(1)))
    return pd.concat(parts).sort_values(["date", "store"], ignore_index=True)


@pytest.fixture(scope="module")
def demand_run(tmp_path_factory) -> mc.Run:
    "A run on the demand table up to the validation."
    folder = tmp_path_factory.mktemp("demand")
    demand_table().to_csv(folder / "demand.csv", index=False)
    settings = QUICK | {"trials": 1, "models": ["linear"], "create": False}
    settings = {name: value for name, value in settings.items() if name != "latency_budget_ms"}
    return mc.run(folder / "demand.csv", "demand", folder, time="date", entity="store", until="validation", **settings)


def test_a_demand_table_has_the_last_value_as_its_baseline(demand_run):
    verdict = demand_run.verdict
    assert verdict.baseline_names["r2"] == "last value"
    assert "The baseline is 'last value'." in [gate.note for gate in verdict.gates]
    train = demand_run.dataset.tables["train"].rows
    table = demand_table()
    rows = table.iloc[train : train + verdict.holdout_rows]
    yesterday = table.groupby("store").demand.shift(1)[rows.index]
    baseline = next(score for score in verdict.baseline_scores if score.metric == "r2")
    assert baseline.value == pytest.approx(r2_score(rows.demand, yesterday)) and baseline.value > 0.5
    assert "last value" in demand_run.candidate.naive_scores and demand_run.plan.label_delay == "1 day"
    model = next(score for score in verdict.scores if score.metric == "r2")
    assert ("last value" in verdict.decision) == (baseline.value > model.value)


def test_an_outcome_without_names_of_baselines_can_be_read(demand_run):
    fields = demand_run.verdict.model_dump(exclude={"baseline_names"})
    assert Verdict(**fields).baseline_names == {}


def test_the_choice_of_a_baseline_does_not_depend_on_the_holdout():
    table = demand_table(3, 200)
    problem = Problem(**EMPTY, target="demand", time="date", entity="store")
    first = table.date.searchsorted(table.date.iloc[450])
    changed = table.assign(demand=table.demand.where(table.index < first, np.random.default_rng(1).normal(size=600)))
    names = [
        choose_baseline(problem, each[:first], 600 - first, naive_forecasts(problem, each, first, "1 day"))[0]
        for each in (table, changed)
    ]
    assert names == ["last value", "last value"]


def test_rows_of_one_timestamp_do_not_see_each_other():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {"when": np.sort(rng.integers(0, 30, 300)), "who": rng.choice(list("abc"), 300), "y": rng.normal(size=300)}
    )
    problem = Problem(**EMPTY, target="y", time="when", entity="who")
    forecasts = naive_forecasts(problem, rows, 200)
    for place in range(100, 300, 17):
        row = rows.iloc[place]
        past = rows[(rows.who == row.who) & (rows.when < row.when)]
        assert forecasts["mean so far"].labels[place] == pytest.approx(past.y.mean())
        assert forecasts["last value"].labels[place] == pytest.approx(past.y[past.when == past.when.max()].mean())
