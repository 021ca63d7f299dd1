"""Robustness: what a perturbation changes, and input on which a model fails."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, RegressorMixin

from mlcycle.outcomes import Problem
from mlcycle.validation.perturbations import PERTURBATIONS, perturbation_type
from mlcycle.validation.robustness import (
    describe_failures,
    measure_robustness,
    plot_robustness,
    summarise_robustness,
    table_of_robustness,
)

EMPTY = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256"], "-")
PROBLEM = Problem(**EMPTY, target="y", task="regression", metric="mae", metrics=["mae"], criteria=[], rows=1)


class Doubling(RegressorMixin, BaseEstimator):
    "Predicts twice `a`, plus one in Bern; fails for towns in upper case, and is not finite where `b` is very large."

    def __init__(self, columns=("a", "b", "town", "day", "flag")):
        self.columns = columns

    @property
    def feature_names_in_(self):
        return np.array(self.columns, dtype=object)

    def predict(self, X):
        if X.town.isin(["BERN"]).any():
            raise KeyError("BERN")
        predicted = 2 * X.a.fillna(0.0) + (X.town == "Bern") + 0 * X.b.fillna(0.0)
        return predicted.where(~(X.b > 1000), np.inf).to_numpy(dtype=float)


def rows_of(n: int = 500) -> pd.DataFrame:
    "Rows with a column of each type."
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.normal(size=n), "b": rng.integers(1, 9, n), "town": rng.choice(["Bern", "Basel"], n)})
    table["day"], table["flag"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(n), unit="h"), rng.random(n) < 0.5
    return table.assign(y=2 * table.a + (table.town == "Bern"))


def test_changes_and_drops_are_those_of_the_model():
    results = {(each.kind, each.column): each for each in measure_robustness(PROBLEM, Doubling(), rows_of())}
    a = rows_of().a
    missing = results["missing", "a"]
    assert missing.changed == pytest.approx((2 * a).abs().mean())
    assert missing.drop == pytest.approx(missing.score)
    assert results["shifted by 1 sd", "a"].drop == pytest.approx(2 * a.std())
    assert results["× 100", "a"].changed == pytest.approx((198 * a).abs().mean())
    assert results["other category", "town"].changed == pytest.approx(1)
    assert results["missing", "flag"].changed == results["other category", "flag"].changed == results["missing", "day"].drop == 0
    assert results["missing", ""].column == ""
    assert results == {(each.kind, each.column): each for each in measure_robustness(PROBLEM, Doubling(), rows_of())}


def test_failures_are_reported_and_do_not_stop_the_others():
    results = measure_robustness(PROBLEM, Doubling(), rows_of())
    failed = {(each.kind, each.column): each.error for each in results if each.error}
    assert failed == {
        ("upper case", "town"): "KeyError: 'BERN'",
        ("× 1,000", "b"): "ValueError: A prediction is not a finite number.",
        ("× 1,000", ""): "ValueError: A prediction is not a finite number.",
    }
    kept = summarise_robustness(results)
    assert len(describe_failures(kept)) == 2
    assert any("(upper case, town): KeyError" in note for note in describe_failures(kept))
    assert len(table_of_robustness(kept, PROBLEM)) == len(kept)
    assert plot_robustness(kept, "mae").patches


@pytest.mark.parametrize("dtype", ["category", "Int64", "boolean", "string", "datetime64[ns, UTC]"])
def test_perturbations_apply_to_columns_of_pandas_types(dtype):
    values = {"category": ["x", None, "z"], "Int64": [1, None, 3], "boolean": [True, None, False], "string": ["x", None, "z"]}
    column = pd.Series(values.get(dtype, ["2026-01-01", None, "2026-02-01"]), dtype=None if dtype[0] == "d" else dtype)
    column = pd.to_datetime(column, utc=True) if dtype[0] == "d" else column
    for kind in PERTURBATIONS:
        if perturbation_type(column) in kind.types:
            changed = kind.change(column, np.random.default_rng(0))
            assert len(changed) == 3
            assert pd.isna(changed.iloc[1]), "a missing value stays missing"


def test_a_wide_table_is_perturbed_with_few_rows():
    wide = pd.DataFrame(np.random.default_rng(0).normal(size=(3000, 120))).add_prefix("x")
    wide = wide.rename(columns={"x0": "a", "x1": "b"}).assign(town="Bern", y=0.0)
    columns = (*wide.columns.drop("y"),)
    results = measure_robustness(PROBLEM, Doubling(columns), wide)
    assert {each.rows for each in results} == {5_000_000 // (121 * (121 + 160))}
    assert len([each for each in results if each.kind == "missing"]) == 122
