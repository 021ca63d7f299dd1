"""Weak slices: planted ones are detected, none where there are none, and narrower ones that add nothing are dropped."""

import numpy as np
import pandas as pd
import pytest
from sliceline.slicefinder import Slicefinder

from mlcycle.ml.predictions import Predictions
from mlcycle.outcomes import Problem
from mlcycle.validation.slices import find_weak_slices

EMPTY = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256"], "-")


def binary(metric: str = "accuracy", **more) -> Problem:
    "A binary problem."
    kind = {"task": "binary", "classes": ["no", "yes"], "positive": "yes", "metric": metric, "metrics": [metric]}
    return Problem(**EMPTY | kind | {"target": "y", "rows": 1, "criteria": []} | more)


def categories(seed: int, rows: int = 3000) -> pd.DataFrame:
    "Rows with four columns of categories and a target."
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({name: rng.choice(list("abcd"), rows) for name in ("one", "two", "three", "four")})
    return table.assign(number=rng.normal(size=rows), y=rng.choice(["no", "yes"], rows))


def with_errors(rows: pd.DataFrame, share, seed: int = 0) -> Predictions:
    "Predictions that are wrong for a share of the rows, with probabilities of .8 for the predicted class."
    wrong = np.random.default_rng(1000 + seed).random(len(rows)) < share
    positive = (rows.y == "yes").to_numpy() != wrong
    return Predictions(np.where(positive, "yes", "no"), np.where(positive, 0.8, 0.2))


@pytest.mark.parametrize("metric", ["accuracy", "roc_auc"])
@pytest.mark.parametrize("seed", range(3))
def test_the_planted_slice_is_first_as_in_sliceline(metric, seed):
    rows = categories(seed)
    planted = ((rows.one == "b") & (rows.three == "c")).to_numpy()
    predictions = with_errors(rows, np.where(planted, 0.45, 0.1), seed)
    slices, _ = find_weak_slices(binary(metric), rows, predictions)
    assert [each.conditions for each in slices] == [["one is b", "three is c"]]
    assert slices[0].rows == planted.sum()
    features = rows[["one", "two", "three", "four"]]
    finder = Slicefinder(alpha=0.95, k=3, max_l=2, min_sup=100, verbose=False)
    finder.fit(features, (predictions.labels != rows.y).to_numpy().astype(float))
    theirs = [
        f"{name} is {value}" for name, value in zip(features.columns, finder.top_slices_[0], strict=True) if value is not None
    ]
    assert theirs == slices[0].conditions


@pytest.mark.parametrize("metric", ["accuracy", "roc_auc"])
def test_without_a_weak_slice_none_is_reported_in_19_of_20_seeds(metric):
    none = 0
    for seed in range(20):
        rows = categories(seed, 2000)
        share = 0.2
        none += not find_weak_slices(binary(metric), rows, with_errors(rows, share, seed))[0]
    assert none >= 19


def test_errors_with_heavy_tails_are_no_weak_slices():
    none, problem = 0, binary("rmse", task="regression", classes=[], positive=None)
    for seed in range(20):
        rows = categories(seed, 2000).drop(columns="y")
        rng = np.random.default_rng(seed)
        rows["y"] = rng.standard_t(3, len(rows))
        none += not find_weak_slices(problem, rows, Predictions(np.zeros(len(rows))))[0]
    assert none >= 19


def test_all_rows_of_a_slice_wrong_by_chance_are_no_weak_slice():
    "Most predictions are wrong, so that small segments without a correct one are frequent."
    rows = pd.DataFrame({"town": np.repeat(np.arange(60), 50).astype(str), "y": "yes"})
    rows["y"] = np.random.default_rng(0).choice(["no", "yes"], len(rows))
    assert find_weak_slices(binary(), rows, with_errors(rows, 0.95))[0] == []


def test_a_narrower_slice_that_adds_nothing_is_dropped_and_one_that_adds_is_kept():
    rows = categories(0, 6000)
    wide = (rows.one == "a").to_numpy()
    narrow = wide & (rows.two == "d").to_numpy()
    slices, _ = find_weak_slices(binary(), rows, with_errors(rows, np.where(wide, 0.4, 0.1)))
    assert [each.conditions for each in slices] == [["one is a"]]
    both, _ = find_weak_slices(binary(), rows, with_errors(rows, np.where(narrow, 0.9, np.where(wide, 0.3, 0.1))))
    assert {tuple(each.conditions) for each in both} == {("one is a", "two is d"), ("one is a",)}
    exact, _ = find_weak_slices(binary(), rows, with_errors(rows, np.where(narrow, 0.6, 0.1)))
    assert [each.conditions for each in exact] == [["one is a", "two is d"]]


def test_slices_of_numbers_dates_and_missing_values():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"age": rng.integers(18, 90, 5000), "town": rng.choice(["Bern", None], 5000)})
    rows["day"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 365, 5000), unit="D")
    rows["y"] = rng.normal(size=5000)
    problem = binary("mae", task="regression", classes=[], positive=None)
    for weak, words in (
        (rows.age > rows.age.quantile(0.8), "age above"),
        (rows.day.dt.month == 7, "day in July"),
        (rows.town.isna(), "town is missing"),
    ):
        predicted = Predictions((rows.y + rng.normal(size=5000) * np.where(weak, 3, 1)).to_numpy())
        slices, _ = find_weak_slices(problem, rows, predicted)
        assert slices[0].conditions[0].startswith(words)
        assert len(slices) == len(slices[0].conditions) == 1
        assert (slices[0].metric, slices[0].rows) == ("mae", weak.sum())
        assert slices[0].low > 2 * slices[0].rest
        assert str(slices[0]).endswith(f"elsewhere, {weak.sum():,} rows")


def test_many_columns_and_rows_are_searched_in_seconds_and_odd_tables_do_not_fail():
    rng = np.random.default_rng(0)
    wide = pd.DataFrame(rng.normal(size=(800, 100))).add_prefix("x").assign(y=rng.choice(["no", "yes"], 800))
    weak = (wide.x70 > wide.x70.quantile(0.8)).to_numpy()
    slices, tried = find_weak_slices(binary(), wide, with_errors(wide, np.where(weak, 0.5, 0.1)))
    assert slices[0].conditions[0].startswith("x70 above")
    assert tried == 500 + 25 * 100 * 99 // 2
    assert find_weak_slices(binary(), wide, with_errors(wide, 0.0))[0] == [], "no errors at all"
    assert find_weak_slices(binary(), wide[["y"]], with_errors(wide, 0.2)) == ([], 0)
    assert find_weak_slices(binary(), wide[:20], with_errors(wide[:20], 0.2))[0] == []
