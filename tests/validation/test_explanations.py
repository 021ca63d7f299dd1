"""Permutation importance, partial dependence and explained rows, against what is known about a model."""

import numpy as np
import pandas as pd
import pytest
from lightgbm import LGBMClassifier
from sklearn.compose import make_column_transformer
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from mlcycle.ml.predictions import Predictions, predict
from mlcycle.outcomes import Candidate, ModelRef, Problem
from mlcycle.validation.explanations import (
    correlated_pairs,
    partial_dependences,
    permutation_importances,
    predict_changed_tables,
    screen_columns_by_effect,
)
from mlcycle.validation.row_explanations import choose_explained_rows, describe_row, explain_model

EMPTY = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256"], "-")
EMPTY |= {"target": "y", "criteria": [], "rows": 1}
NUMBER = Problem(**EMPTY, task="regression", metric="rmse", metrics=["rmse"])
CLASSES = Problem(**EMPTY, task="multiclass", classes=["a", "b", "c"], metric="log_loss", metrics=["log_loss"])
BINARY = Problem(**EMPTY, task="binary", classes=["no", "yes"], positive="no", metric="roc_auc", metrics=["roc_auc"])
CANDIDATE = Candidate(
    decision="-",
    model=ModelRef(name="-", version=1, run_id="-", sha256="-"),
    winner="-",
    leaderboard=[],
    n_trials=0,
    search_rows=1,
    train_rows=1,
)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    "Three columns of different weight, one of them a category, and their target."
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"a": rng.normal(size=800), "b": rng.normal(size=800), "town": rng.choice(["Ulm", "Bonn"], 800)})
    return rows.assign(y=3 * rows.a + rows.b + 2 * (rows.town == "Ulm") + rng.normal(size=800))


def linear_model(table: pd.DataFrame):
    "A linear model of the three columns."
    encode = make_column_transformer((OneHotEncoder(drop="first"), ["town"]), remainder="passthrough")
    return make_pipeline(encode, LinearRegression()).fit(table[["a", "b", "town"]], table.y)


def test_importances_and_dependences_agree_with_scikit_learn(table):
    model, columns = linear_model(table[:500]), ["a", "b", "town"]
    rows, actual = table[columns][500:], table.y[500:]
    ours = permutation_importances(NUMBER, lambda frame: predict(model, frame, NUMBER), rows, actual, columns)
    theirs = permutation_importance(model, rows, actual, scoring="neg_root_mean_squared_error", n_repeats=20, random_state=0)
    assert next(iter(ours)) == "a"
    for name, mean in zip(columns, theirs.importances_mean, strict=True):
        assert ours[name].low < mean < ours[name].high
        assert ours[name].low > 0
    curves = {
        each.column: each
        for each in partial_dependences(NUMBER, lambda frame: predict(model, frame, NUMBER), rows[:200], ["a", "town"])
    }
    expected = partial_dependence(model, rows[:200], ["a"], custom_values={"a": curves["a"].values})
    assert np.allclose(curves["a"].predictions, expected["average"][0])
    assert sorted(curves["town"].values) == ["Bonn", "Ulm"]
    assert sum(curves["town"].shares) == pytest.approx(1)


def test_changed_tables_are_predicted_in_order_whatever_the_size_of_a_call(table, monkeypatch):
    model, columns = linear_model(table), ["a", "b", "town"]
    rows = table[columns][:50]
    changes = [(name, rows[name].iloc[::-1]) for name in columns]
    whole = predict_changed_tables(lambda frame: predict(model, frame, NUMBER), rows, changes)
    monkeypatch.setattr("mlcycle.validation.explanations.MAX_CELLS", 1)
    parts = predict_changed_tables(lambda frame: predict(model, frame, NUMBER), rows, changes)
    for one, other, (name, values) in zip(whole, parts, changes, strict=True):
        direct = predict(model, rows.assign(**{name: values.to_numpy()}), NUMBER)
        assert np.allclose(one.labels, other.labels)
        assert np.allclose(one.labels, direct.labels)
    assert screen_columns_by_effect(lambda frame: predict(model, frame, NUMBER), rows, 2) == ["a", "town"]


@pytest.mark.parametrize("problem", [BINARY, CLASSES, NUMBER], ids=["binary", "multiclass", "regression"])
def test_all_tasks_are_explained(table, problem):
    columns = ["a", "b", "town"]
    table = table.assign(town=table.town.astype("category"))
    labels = {"binary": np.where(table.y > 0, "no", "yes"), "regression": table.y}
    labels["multiclass"] = np.select([table.y < -1, table.y < 1], ["c", "b"], "a")
    table = table.assign(y=labels[problem.task])
    train, holdout = table[:500], table[500:]
    if problem.task == "regression":
        model = linear_model(train)
    else:
        model = make_pipeline("passthrough", LGBMClassifier(n_estimators=20, verbose=-1)).fit(train[columns], train.y)
    if problem.task == "binary":
        model = FixedThresholdClassifier(model, threshold=0.5, pos_label="no").fit(train[columns], train.y)
    found = explain_model(problem, CANDIDATE, model, train, holdout, predict(model, holdout[columns], problem))
    assert next(iter(found.importances)) == "a"
    assert [row.correct for row in found.rows] == [True] * 3 + [False] * 3
    assert ("LightGBM" in found.method) == (problem.task != "regression")
    best = found.rows[0]
    assert best.contributions[0].column == "a"
    if problem.task != "multiclass":
        a = table.loc[int(best.row), "a"]
        assert (best.contributions[0].contribution > 0) == (a > 0), "a raises the number, and the probability of `no`"
    assert "Largest contributions (association only): " in describe_row(best, problem)


def test_a_model_without_errors_has_no_wrong_rows():
    actual = pd.Series(["no", "yes"] * 5)
    chosen = choose_explained_rows(BINARY, actual, Predictions(actual.to_numpy(), (actual == "no").to_numpy(float)))
    assert list(chosen.values()) == [True] * 3


def test_correlated_columns_are_named():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"x": rng.normal(size=300)}).assign(same=lambda frame: np.exp(frame.x), other=rng.normal(size=300))
    assert correlated_pairs(rows, list(rows)) == {"x, same": pytest.approx(1)}
