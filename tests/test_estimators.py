"""Every estimator of the package keeps scikit-learn's contract: its own checks on arrays, and a second set on tables."""

import importlib
import inspect
import pickle
import pkgutil

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import mlcycle
from mlcycle.errors import InputError
from mlcycle.features.create.arithmetic import (
    CategoryPair,
    ClockDuration,
    Difference,
    Duration,
    GroupDeviation,
    MissingCount,
    Product,
    Ratio,
)
from mlcycle.features.create.dates import CyclicTime, DateParts
from mlcycle.features.create.history import EntityHistory, Lag, Rolling
from mlcycle.features.create.recipes import FeatureCreator
from mlcycle.features.create.user_functions import FunctionFeature
from mlcycle.features.encode.category_mapping import CategoryMapping
from mlcycle.features.encode.encode import ColumnPipeline, FeatureEncoder
from mlcycle.features.encode.encoders import SquashingScaler, TextComponents
from mlcycle.ml.meta_estimators import CalibratedClassifier, LabelEncodedClassifier
from mlcycle.ml.outliers import IsolationForestFlag, OutlierLimits
from mlcycle.stores.models.function_files import KNOWN_FUNCTIONS, parse_feature_functions
from mlcycle.stores.models.model_files import load_model, save_model

# Only their subclasses compute anything
ABSTRACT = {"NamedColumnsTransformer", "Recipe", "TwoColumnRecipe", "HistoryRecipe", "CumulativeHistory"}
LOGISTIC = LogisticRegression(max_iter=200)

# ---- estimators that take arrays: scikit-learn's own checks

ON_ARRAYS = [
    SquashingScaler(),
    OutlierLimits(),
    OutlierLimits(action="clip"),
    IsolationForestFlag(),
    LabelEncodedClassifier(LOGISTIC),
    CalibratedClassifier(LOGISTIC, 1.5),
]
OF_ARRAYS = tuple({type(each) for each in ON_ARRAYS})
EXPECTED_FAILURES: dict[str, dict[str, str]] = {  # Class: check: reason. None: whoever adds one says why
}


@pytest.mark.parametrize(
    ("estimator", "check"),
    [
        case
        for each in ON_ARRAYS
        for case in estimator_checks_generator(
            each, expected_failed_checks=EXPECTED_FAILURES.get(type(each).__name__, {}), mark="xfail", xfail_strict=True
        )
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseEstimator) else getattr(value, "func", value).__name__,
)
@pytest.mark.filterwarnings("ignore")
def test_check_of_scikit_learn(estimator, check):
    check(estimator)


# ---- all estimators: tables with named columns


(per_seat,) = parse_feature_functions('@feature("price", "seats")\ndef per_seat(price, seats):\n    return price / seats\n')


def make_table(rows: int = 60, seed: int = 0) -> pd.DataFrame:
    "Columns of every type, with missing values, under an index of its own."
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "price": np.where(rng.random(rows) < 0.1, np.nan, rng.lognormal(size=rows)),
            "seats": rng.integers(1, 5, rows),
            "due": 100 * rng.integers(5, 23, rows) + 15 * rng.integers(0, 4, rows),
            "done": 100 * rng.integers(5, 23, rows) + 5 * rng.integers(0, 12, rows),
            "size": pd.Series(rng.choice(["S", "M", None], rows), dtype="str"),
            "town": pd.Series(rng.choice([f"t{i}" for i in range(12)], rows), dtype="str"),
            "came": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 9000, rows), "h"),
            "left": pd.Timestamp("2021-01-01") + pd.to_timedelta(rng.integers(0, 9000, rows), "h"),
            "note": pd.Series(rng.choice(["late, snow", "no delay", "windy day", None], rows), dtype=object),
        }
    )
    return table.set_axis([f"row {place}" for place in range(rows)])


@pytest.fixture(autouse=True)
def known_function():
    "Other tests forget all functions."
    KNOWN_FUNCTIONS[per_seat.name, per_seat.sha256] = per_seat


TABLE = make_table()
TARGET = pd.Series(np.where(TABLE.price.fillna(1) + TABLE.seats > 3, "yes", "no"), TABLE.index, name="late")
NUMBERS = ["price", "seats", "due"]
COLUMN_TYPES = {"price": "number", "size": "category", "town": "many categories", "came": "date", "note": "text"}
FILLED = TABLE[NUMBERS].fillna(1.0)
ON_TABLES = [  # Estimator, its table
    (Duration("came", "left"), TABLE),
    (ClockDuration("due", "done"), TABLE),
    (Difference("due", "done"), TABLE),
    (Ratio("price", "seats"), TABLE),
    (Product("price", "seats"), TABLE),
    (CategoryPair("size", "town"), TABLE),
    (GroupDeviation("price", "town"), TABLE),
    (MissingCount(["price", "size"]), TABLE),
    (CyclicTime("came", "week"), TABLE),
    (EntityHistory("town", "came", "price"), TABLE),
    (EntityHistory("town", "came", target="late", pos_label="yes", min_age="1 day"), TABLE),
    (Lag("price", "came", "town"), TABLE),
    (Rolling("price", "came", window="90 days"), TABLE),
    (FunctionFeature("per_seat", per_seat.sha256, ["price", "seats"]), TABLE),
    (FeatureCreator([Ratio("price", "seats"), CategoryPair("size", "town")]), TABLE),
    (DateParts(cyclic=True, trend=True), TABLE[["came", "left"]]),
    (TextComponents(3), TABLE[["note"]]),
    (CategoryMapping("one_hot"), TABLE[["size"]]),
    (CategoryMapping("ordinal"), TABLE[["size"]]),
    (CategoryMapping("target"), TABLE[["town"]]),
    (CategoryMapping("native"), TABLE[["town"]]),
    (ColumnPipeline("number", (StandardScaler(),), fill_empty=True), TABLE[NUMBERS]),
    *((FeatureEncoder(COLUMN_TYPES, encoding), TABLE) for encoding in ("trees", "linear", "neighbours", "native")),
    (SquashingScaler(), TABLE[NUMBERS]),
    (OutlierLimits(), TABLE[NUMBERS]),
    (IsolationForestFlag(), TABLE[NUMBERS]),
    (LabelEncodedClassifier(LOGISTIC), FILLED),
    (CalibratedClassifier(LOGISTIC, 1.5), FILLED),
]
each_estimator = pytest.mark.parametrize(
    ("estimator", "table"), [pytest.param(*case, id=f"{k} {type(case[0]).__name__}") for k, case in enumerate(ON_TABLES)]
)


def fitted(estimator: BaseEstimator, table: pd.DataFrame) -> BaseEstimator:
    "A fitted copy."
    return clone(estimator).fit(table, TARGET[table.index])


def result(estimator: BaseEstimator, table: pd.DataFrame):
    "What an estimator makes of a table."
    return estimator.predict_proba(table) if is_classifier(estimator) else estimator.transform(table)


def same(one, other) -> None:
    "Equal values, whatever holds them."
    pd.testing.assert_frame_equal(pd.DataFrame(np.asarray(one)), pd.DataFrame(np.asarray(other)), check_dtype=False)


def public_estimators() -> dict[str, type]:
    "The estimators of the package, found by walking its modules."
    found = {}
    for module in pkgutil.walk_packages(mlcycle.__path__, "mlcycle."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(value) and issubclass(value, BaseEstimator) and value.__module__.startswith("mlcycle."):
                found[name] = value
    return {name: value for name, value in found.items() if not name.startswith("_") and name not in ABSTRACT}


def test_no_estimator_is_forgotten():
    known = {type(estimator).__name__ for estimator, _ in ON_TABLES}
    assert set(public_estimators()) == known | {"FeatureSelector"}  # It chooses features and transforms nothing


@each_estimator
def test_before_fit_it_says_so(estimator, table):
    with pytest.raises(NotFittedError):
        result(clone(estimator), table)


@each_estimator
def test_parameters_survive_a_clone(estimator, table):
    copy = clone(fitted(estimator, table))
    assert repr(copy) == repr(estimator)
    assert not [name for name in vars(copy) if name.endswith("_")]


@each_estimator
def test_it_knows_its_columns(estimator, table):
    step = fitted(estimator, table)
    assert step.n_features_in_ == table.shape[1]
    assert list(step.feature_names_in_) == list(table)
    if not is_classifier(step):
        assert len(step.get_feature_names_out()) == result(step, table).shape[1]


@each_estimator
def test_columns_are_found_by_name(estimator, table):
    step = fitted(estimator, table)
    if isinstance(step, OF_ARRAYS):  # As in scikit-learn: never taken by position, and an error that says so
        with pytest.raises(ValueError, match="same order"):
            result(step, table[table.columns[::-1]])
    else:
        same(result(step, table[table.columns[::-1]]), result(step, table))


@each_estimator
def test_a_missing_column_is_named(estimator, table):
    step = fitted(estimator, table)
    reads = step.input_columns() if hasattr(step, "input_columns") else getattr(step, "column_types", table.columns)
    gone = list(reads)[0]
    with pytest.raises((InputError, ValueError), match=gone):
        result(step, table.drop(columns=gone))


@each_estimator
def test_one_row_no_rows_and_the_index(estimator, table):
    step = fitted(estimator, table)
    whole = result(step, table)
    same(result(step, table.iloc[[7]]), np.asarray(whole)[[7]])
    if isinstance(step, OF_ARRAYS):
        with pytest.raises(ValueError, match="0 sample"):
            result(step, table.head(0))
    else:
        assert result(step, table.head(0)).shape == (0, whole.shape[1])
    if isinstance(whole, pd.DataFrame):
        assert whole.index.equals(table.index)


@each_estimator
def test_pandas_output_has_names_and_index(estimator, table):
    if is_classifier(estimator):
        pytest.skip("a classifier has no transform")
    step = fitted(estimator, table).set_output(transform="pandas")
    made = step.transform(table)
    assert isinstance(made, pd.DataFrame)
    assert list(made) == list(step.get_feature_names_out())
    assert made.index.equals(table.index)
    same(made, result(fitted(estimator, table), table))


@each_estimator
def test_the_input_stays_as_it_was(estimator, table):
    given, target = table.copy(deep=True), TARGET.copy()
    result(clone(estimator).fit(given, target), given)
    pd.testing.assert_frame_equal(given, table)
    pd.testing.assert_series_equal(target, TARGET)


@each_estimator
def test_a_second_fit_forgets_the_first(estimator, table):
    other = make_table(40, seed=1).set_axis(table.index[:40])[list(table)]
    other = other.fillna(1.0) if is_classifier(estimator) else other
    step = fitted(estimator, table)
    result(step, table)
    same(result(step.fit(other, TARGET[other.index]), table), result(fitted(estimator, other), table))


@each_estimator
def test_copies_say_the_same(estimator, table, tmp_path):
    step = fitted(estimator, table)
    whole = result(step, table)
    same(result(pickle.loads(pickle.dumps(step)), table), whole)
    sha256 = save_model(step, tmp_path / "step.skops")
    loaded = load_model(tmp_path / "step.skops", sha256)
    same(result(loaded, table), whole)
    if not isinstance(step, IsolationForestFlag):  # Between the fields of a tree's nodes lie bytes that nobody has set
        assert save_model(loaded, tmp_path / "again.skops") == sha256
