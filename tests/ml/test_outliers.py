"""Outlier transformers: columns by name or an error, missing and infinite values, pandas output, both actions."""

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError

from mlcycle.errors import ParameterError
from mlcycle.ml.outliers import IsolationForestFlag, OutlierLimits, make_outlier_transformer, separate_outliers

RNG = np.random.default_rng(0)
TABLE = pd.DataFrame({"low": RNG.normal(0, 1, 200), "high": RNG.normal(1000, 1, 200)})
EACH = pytest.mark.parametrize("step", [OutlierLimits(), OutlierLimits(action="clip"), IsolationForestFlag()], ids=str)


@EACH
def test_columns_in_another_order_or_missing_are_an_error_that_names_them(step):
    step.fit(TABLE)
    with pytest.raises(ValueError, match="same order"):
        step.transform(TABLE[["high", "low"]])
    with pytest.raises(ValueError, match="high"):
        step.transform(TABLE[["low"]])
    with pytest.raises(ValueError, match="1 features"):
        step.transform(TABLE[["low"]].to_numpy())
    assert step.n_features_in_ == 2
    assert step.feature_names_in_.tolist() == ["low", "high"]


@EACH
def test_nothing_is_done_before_the_fit(step):
    fresh = type(step)(**step.get_params())
    for method in (fresh.transform, fresh.is_outlier):
        with pytest.raises(NotFittedError):
            method(TABLE)


@EACH
def test_pandas_output_has_names_and_index(step):
    rows = TABLE.set_axis([f"r{number}" for number in range(200)])
    made = step.set_output(transform="pandas").fit(rows).transform(rows)
    assert made.columns.tolist() == step.get_feature_names_out().tolist()
    assert (made.index == rows.index).all()
    step.set_output(transform="default")


def test_limits_meet_missing_infinite_and_nullable_numbers():
    step = OutlierLimits(action="clip").fit(TABLE)
    odd = pd.DataFrame({"low": pd.array([None, 99.0], dtype="Float64"), "high": [np.inf, np.nan]})
    made = step.transform(odd)
    assert np.isnan(made[0, 0])
    assert np.isnan(made[1, 1])
    assert made[1, 0] == step.upper_[0]
    assert made[0, 1] == step.upper_[1] < 1010


def test_only_columns_with_outliers_get_a_flag():
    wild = TABLE.assign(low=TABLE.low.where(TABLE.index > 0, 50.0))
    step = make_outlier_transformer(threshold=8.0).fit(wild)
    assert step.get_feature_names_out().tolist() == ["low", "high", "low_outlier"]
    assert step.transform(wild)[:, 2].tolist() == [1.0] + [0.0] * 199
    rest, odd = separate_outliers(wild, threshold=8.0)
    assert (len(rest), odd.reason.tolist()) == (199, ["outlier: low"])


def test_a_forest_cannot_clip():
    with pytest.raises(ParameterError, match="isolation forest"):
        make_outlier_transformer("isolation forest", "clip").fit(TABLE)
