"""Gap, adversarial validation, score over time, single columns and plain models: what is detected, and what is not."""

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_iris
from sklearn.metrics import roc_auc_score

from mlcycle.ml.predictions import Predictions
from mlcycle.outcomes import Problem, Score
from mlcycle.validation.adversarial import adversarial_validation, describe_adversarial_validation
from mlcycle.validation.generalization import describe_gap, difference_of_independent_scores
from mlcycle.validation.plain_models import (
    check_single_columns,
    compare_with_references,
    predict_with_plain_model,
)
from mlcycle.validation.score_over_time import assign_periods, score_by_period, score_trend

EMPTY = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256"], "-")
EMPTY |= {"target": "y", "criteria": [], "rows": 1}
BINARY = Problem(**EMPTY, task="binary", classes=["no", "yes"], positive="yes", metric="roc_auc", metrics=["roc_auc"])
NUMBER = Problem(**EMPTY, task="regression", metric="rmse", metrics=["rmse"])


def test_the_gap_is_outside_sampling_error_as_often_as_it_should_be():
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(400):
        pair = [rng.normal(0.7, error) for error in (0.02, 0.03)]
        scores = [
            Score(metric="roc_auc", value=value, low=value - 1.96 * error, high=value + 1.96 * error)
            for value, error in zip(pair, (0.02, 0.03), strict=True)
        ]
        gap, p_value = difference_of_independent_scores(*scores)
        assert (p_value < 0.05) == (not gap.low <= 0 <= gap.high)
        wrong += p_value < 0.05
    assert 8 <= wrong <= 36, "5 % of 400, give or take"


def test_a_gap_of_an_error_is_positive_where_the_holdout_is_better():
    holdout, validation = (Score(metric="rmse", value=value, low=value - 0.5, high=value + 0.5) for value in (8, 10))
    gap, p_value = difference_of_independent_scores(holdout, validation)
    assert (gap.value, round(gap.low, 2)) == (2, round(2 - 0.5 * 2**0.5, 2))
    assert "outside sampling error" in describe_gap(holdout, validation, gap, p_value)
    assert difference_of_independent_scores(validation, holdout)[0].value == -2


def test_adversarial_validation_of_a_random_split_detects_nothing():
    values = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        table = pd.DataFrame({"a": rng.normal(size=500), "town": rng.choice(["x", "y", None], 500), "place": np.arange(500)})
        holdout = np.isin(np.arange(500), rng.choice(500, 100, replace=False))
        found = adversarial_validation(BINARY, table[~holdout], table[holdout], list(table), seed=seed)
        values.append((found.auc.value, found.p_value))
    assert abs(np.mean([auc for auc, _ in values]) - 0.5) < 0.05
    assert min(p_value for _, p_value in values) > 0.005


def test_categories_that_appear_later_do_not_separate_by_their_codes_alone():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"id": [f"{number:06d}" for number in rng.permutation(800)]})
    found = adversarial_validation(BINARY, table[:500], table[500:], ["id"])
    assert found.p_value > 0.01
    shifted = table.assign(town=np.where(np.arange(800) < 500, "old", rng.choice(["old", "new"], 800)))
    found = adversarial_validation(BINARY, shifted[:500], shifted[500:], ["id", "town"])
    assert list(found.columns) == ["town"]
    assert "mainly in town" in describe_adversarial_validation(found)


def test_rows_of_one_entity_do_not_give_the_part_away():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"customer": np.repeat(np.arange(80), 10)})
    table["income"] = rng.normal(size=80)[table.customer]
    part = np.isin(table.customer, rng.choice(80, 30, replace=False))
    by_entity = adversarial_validation(BINARY.model_copy(update={"entity": "customer"}), table[~part], table[part], ["income"])
    at_random = adversarial_validation(BINARY, table[~part], table[part], ["income"])
    assert at_random.auc.value > 0.9, "the same income in both parts of a fold"
    assert by_entity.auc.value < 0.7


@pytest.mark.parametrize(
    ("times", "count"),
    [
        (pd.Series(pd.date_range("2020-01-01", periods=300, freq="D")), 10),
        (pd.Series(pd.date_range("2020-01-01", periods=300, freq="D", tz="UTC")), 10),
        (pd.Series(pd.date_range("2020-01-01", periods=8, freq="h")), 8),
        (pd.Series(pd.date_range("1960-01-01", periods=40, freq="YS")), 12),
        (pd.Series(np.arange(1000.0)), 12),
        (pd.Series([2019, 2020, 2021] * 5), 3),
    ],
)
def test_there_are_at_most_twelve_periods_in_order(times, count):
    periods = assign_periods(times)
    assert periods.cat.categories.size == count
    assert periods[times.sort_values().index].cat.codes.is_monotonic_increasing


def test_periods_have_the_metric_of_their_rows():
    rng = np.random.default_rng(0)
    problem, actual = BINARY.model_copy(update={"time": "when"}), rng.random(360) < 0.5
    rows = pd.DataFrame({"when": np.arange(360) // 120, "y": np.where(actual, "yes", "no")})
    scores = rng.random(360)
    periods = score_by_period(problem, rows, Predictions(np.where(scores > 0.5, "yes", "no"), scores))
    assert [each.rows for each in periods] == [120] * 3
    assert periods[1].score.value == pytest.approx(roc_auc_score(actual[120:240], scores[120:240]))
    assert score_trend(periods[:2]) == (None, None)


def test_a_copy_of_the_target_is_told_apart_from_a_strong_feature():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": rng.normal(size=900), "weak": rng.normal(size=900)})
    table["y"] = 100 + 10 * table.x + 2 * rng.normal(size=900)
    table["copy"] = np.log(table.y) + 1e-6 * rng.normal(size=900)
    found = check_single_columns(NUMBER, table[:600], table[600:], ["weak", "x", "copy"], 2.5, 10.0)
    kinds = {each.column: each.finding for each in found}
    assert kinds == {"copy": "copy of the target", "x": "strong feature", "weak": ""}


@pytest.mark.parametrize("seed", range(5))
def test_on_the_holdout_a_copy_with_three_percent_of_altered_cells_is_named_and_a_measurement_is_not(seed):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"level": rng.normal(size=1500), "noise": rng.normal(size=1500)})
    table["y"] = np.where(table.level + rng.normal(0, 0.1, 1500) > 0, "yes", "no")
    table["copy"] = np.where(rng.random(1500) < 0.03, "no", table.y)
    found = check_single_columns(BINARY, table[:1000], table[1000:], ["noise", "level", "copy"], 0.99, 0.5)
    kinds = {each.column: each.finding for each in found}
    assert kinds == {"copy": "copy of the target", "level": "strong feature", "noise": ""}, "with a ROC-AUC above .99"
    assert found[0].column == "copy"


def test_on_a_small_holdout_petal_width_is_no_copy():
    iris = load_iris(as_frame=True).frame.sample(frac=1, random_state=0).rename(columns={"target": "y"})
    problem = BINARY.model_copy(update={"task": "multiclass", "classes": ["0", "1", "2"], "positive": None, "metric": "accuracy"})
    iris["y"] = iris["y"].astype(str)
    found = check_single_columns(problem, iris[:110], iris[110:], list(iris.columns.drop("y")), 0.95, 0.33)
    assert "copy of the target" not in {each.finding for each in found}
    assert {each.column for each in found if each.finding} <= {"petal width (cm)", "petal length (cm)"}


def test_a_rare_class_is_no_reason_to_call_a_column_a_copy():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"noise": rng.normal(size=2000), "y": np.where(rng.random(2000) < 0.02, "yes", "no")})
    (found,) = check_single_columns(BINARY, table[:1000], table[1000:], ["noise"], 0.8, 0.5)
    assert found.finding == "", "98 % of the labels agree with those of any column"


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_plain_model_reads_any_columns(task):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"x": rng.normal(size=400), "when": pd.date_range("2024-01-01", periods=400), "flag": rng.random(400) < 0.5}
    )
    table["town"] = pd.Series(rng.choice(["Ulm", "Bonn", None], 400)).astype("str")
    table.loc[:20, "x"], table["empty"] = np.nan, np.nan
    strength = table.x.fillna(0) + rng.normal(size=400) / 2
    classes = {"binary": ["no", "yes"], "multiclass": ["high", "low", "mid"], "regression": []}[task]
    problem = {
        "binary": BINARY,
        "regression": NUMBER,
        "multiclass": Problem(**EMPTY, task="multiclass", classes=classes, metric="accuracy", metrics=["accuracy"]),
    }[task]
    cuts = pd.cut(strength, [-9, -0.5, 0.5, 9], labels=["low", "mid", "high"]).astype(str)
    table["y"] = {"binary": np.where(strength > 0, "yes", "no"), "multiclass": cuts, "regression": strength}[task]
    train, holdout = table[:300], table[300:]
    made = predict_with_plain_model(problem, train, holdout, [name for name in table if name != "y"])
    constant = Predictions(
        np.full(100, train.y.mean()) if task == "regression" else np.full(100, train.y.mode()[0]),
        {"binary": np.full(100, 0.5), "multiclass": np.full((100, 3), 1 / 3), "regression": None}[task],
    )
    (reference,) = compare_with_references(problem, holdout.y, made, {"constant": constant}, n_resamples=50)
    assert reference.difference.low > 0
