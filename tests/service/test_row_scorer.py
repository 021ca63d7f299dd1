"""The row scorer predicts as the pipeline, bit for bit: each candidate, encoding, task and recipe, ordinary and edge rows."""

from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.ensemble import VotingClassifier, VotingRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import FixedThresholdClassifier

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
from mlcycle.features.create.dates import CyclicTime
from mlcycle.features.create.history import EntityHistory, Lag, Rolling
from mlcycle.features.create.user_functions import DECLARED_FUNCTIONS, FunctionFeature, feature
from mlcycle.features.encode.pipeline import build_preprocessor
from mlcycle.ml.meta_estimators import CalibratedClassifier
from mlcycle.ml.predictions import predict
from mlcycle.modelling.candidates import CANDIDATES
from mlcycle.modelling.choice import set_encoding
from mlcycle.outcomes import ModelRef, Problem
from mlcycle.service.bundle import Bundle
from mlcycle.service.edge_rows import edge_rows
from mlcycle.service.input_values import describe_training_values
from mlcycle.service.row_scorer import compile_row_scorer
from mlcycle.service.rows import predict_rows, prepare_rows, to_json_rows
from mlcycle.service.sent_rows import RejectedRowsError
from mlcycle.stores.models.function_files import KNOWN_FUNCTIONS
from mlcycle.stores.models.model_files import load_model, save_model

TYPES = {
    "placed": "date",
    "shipped": "date",
    "x": "number",
    "y": "number",
    "clock": "number",
    "later": "number",
    "flag": "number",
    "size": "category",
    "town": "many categories",
    "note": "text",
}
FEW_TREES = {
    "lightgbm": {"n_estimators": 25},
    "xgboost": {"n_estimators": 25},
    "catboost": {"iterations": 20},
    "boosting": {"max_iter": 5},
}
CLASSES = {"binary": ["no", "yes"], "multiclass": ["a", "b", "c"], "regression": []}


@feature
def spread(x, size):
    "Numbers and text of a row."
    return x.fillna(0) * 2 + size.isna()


DECLARED_FUNCTIONS.pop(spread.name)  # Other tests of this process count what is declared


@pytest.fixture(autouse=True)
def known_function(monkeypatch):
    "The function is known, whatever other tests of this process clear."
    monkeypatch.setitem(KNOWN_FUNCTIONS, (spread.name, spread.sha256), spread)


def recipes() -> list:
    "One or more recipes of every kind."
    target = {"min_age": "1 day", "target": "target", "pos_label": "yes"}
    return [
        *(
            Duration("placed", "shipped"),
            ClockDuration("clock", "later"),
            Difference("x", "y"),
            Ratio("x", "y"),
            Product("x", "y"),
        ),
        *(CategoryPair("size", "town"), GroupDeviation("x", "town"), MissingCount(["x", "size", "shipped"])),
        *(CyclicTime("placed", "day"), CyclicTime("shipped", "week"), CyclicTime("placed", "year")),
        *(EntityHistory("town", "placed", "x", each) for each in ("mean", "sum", "std", "min", "max", "last")),
        *(EntityHistory(["size", "flag"], "placed", "", "count"), EntityHistory("clock", "placed", "", "since")),
        *(Lag("x", "placed", "town", 2), Rolling("y", "placed", "size", "30 days", "std")),
        *(Rolling("y", "placed", "", "7 days", "max"), Rolling("", "placed", "town", "30 days", "count")),
        *(EntityHistory("size", "placed", "", "mean", **target), Rolling("", "placed", "town", "30 days", "mean", **target)),
        FunctionFeature(spread.name, spread.sha256, list(spread.inputs)),
    ]


@lru_cache
def rows_of(seed: int, count: int) -> tuple[pd.DataFrame, np.ndarray]:
    "Mixed columns with missing values, and a number to predict."
    rng = np.random.default_rng(seed)
    placed = pd.Timestamp("2023-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 500_000, count)), unit="min")
    rows = pd.DataFrame({"placed": placed, "shipped": placed + pd.to_timedelta(rng.integers(1, 9000, count), unit="min")})
    rows = rows.astype("datetime64[us]").assign(
        x=rng.normal(size=count),
        y=rng.lognormal(3, 2, count),
        clock=rng.integers(0, 24, count) * 100 + rng.integers(0, 60, count),
        later=rng.integers(0, 24, count) * 100 + rng.integers(0, 60, count),
        flag=rng.random(count) < 0.4,
        size=pd.array(rng.choice(["S", "M", "L", "10"], count, p=[0.5, 0.3, 0.19, 0.01]), dtype="str"),
        town=pd.array([f"town {number}" for number in rng.integers(0, 60, count)], dtype="str"),
        note=pd.array([f"leave at door {number}" for number in rng.integers(0, 9, count)], dtype="str"),
    )
    for name in ("shipped", "x", "size", "note"):
        rows.loc[rng.random(count) < 0.08, name] = None
    score = rows.x.fillna(0) + 2 * rows.flag + (rows["size"] == "S") + np.log(rows.y) / 3 + rng.normal(size=count)
    return rows, score.to_numpy()


def target_of(task: str, score: np.ndarray) -> pd.Series:
    "The number, or its class."
    if task == "regression":
        return pd.Series(score, name="target")
    places = (score > np.median(score)).astype(int) if task == "binary" else np.digitize(score, np.quantile(score, [0.3, 0.7]))
    return pd.Series(np.array(CLASSES[task])[places], name="target")


def make_bundle(rows: pd.DataFrame, task: str) -> Bundle:
    "The description of a release."
    metric = "r2" if task == "regression" else "log_loss"
    about = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256"], "-")
    problem = Problem(
        **about,
        target="target",
        task=task,
        metric=metric,
        metrics=[metric],
        criteria=[],
        rows=len(rows),
        classes=CLASSES[task],
        positive="yes" if task == "binary" else None,
    )
    return Bundle(
        problem=problem,
        columns={name: str(values.dtype) for name, values in rows.items()},
        threshold=0.4 if task == "binary" else None,
        model=ModelRef(name="m", version=1, run_id="", sha256=""),
        training_values={name: describe_training_values(values) for name, values in rows.items()},
    )


def make_pipeline(name: str, task: str, encoding: str, made=(), **options):
    "The unfitted pipeline of a candidate."
    types = TYPES | {feature: kind for recipe in made for feature, kind in recipe.output_types().items()}
    preprocessor = build_preprocessor(types, list(made), classification=task != "regression", **options)
    estimator = CANDIDATES[name].make_estimator(task, 0, FEW_TREES.get(name, {}))
    return type(preprocessor)([*set_encoding(preprocessor, encoding).steps, ("model", estimator)])


def assert_equal(model, bundle: Bundle, rows, uncompiled=(), singles: int = 4) -> None:
    "Scorer and pipeline are bitwise equal on the rows as a block, and for some rows one by one."
    scorer = compile_row_scorer(model, bundle)
    assert set(scorer.uncompiled) == set(uncompiled), scorer.uncompiled
    records = rows if isinstance(rows, list) else to_json_rows(rows)
    for part in ([*records], *([row] for row in records[:: max(1, len(records) // singles)])):
        prepared = prepare_rows(part, bundle)
        try:
            expected = predict(model, prepared.frame, bundle.problem, bundle.threshold)
        except ValueError as error:  # Finite values that overflow within the model
            assert "infinity" in str(error)
            with pytest.raises(ValueError, match="infinity"):
                scorer.predict(prepared.columns, prepared.n_rows)
            continue
        found = scorer.predict(prepared.columns, prepared.n_rows)
        assert found.labels.tolist() == expected.labels.tolist()
        assert np.asarray(found.values).tobytes() == np.ascontiguousarray(expected.values).tobytes()
        assert found.values.shape == expected.values.shape


def edge_rows_within(model, bundle: Bundle) -> list[dict]:
    "The edge rows; if some overflow within the model, those with a value above 1e15 are left out."
    rows = edge_rows(bundle)
    try:
        predict(model, prepare_rows(rows, bundle).frame, bundle.problem, bundle.threshold)
    except ValueError:
        return [row for row in rows if not any(isinstance(value, float) and abs(value) > 1e15 for value in row.values())]
    return rows


CASES = [
    (name, encoding, task)
    for name in ("dummy", "linear", "lightgbm", "neighbours", "xgboost", "catboost")
    for encoding in CANDIDATES[name].encodings
    for task in CLASSES
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "encoding", "task"), CASES)
def test_scorer_and_pipeline_are_equal_for_each_candidate(name, encoding, task):
    if CANDIDATES[name].reason_excluded(task, 400):
        pytest.skip(CANDIDATES[name].reason_excluded(task, 400))
    rows, score = rows_of(0, 400)
    made = recipes() if task == "binary" else [recipe for recipe in recipes() if not getattr(recipe, "target", "")]
    model = make_pipeline(name, task, encoding, made).fit(rows, target_of(task, score))
    bundle = make_bundle(rows, task)
    if task == "binary":
        model = FixedThresholdClassifier(FrozenEstimator(model), threshold=0.4, pos_label="yes", response_method="predict_proba")
        model.fit(rows, target_of(task, score))
    assert_equal(model, bundle, rows_of(1, 300)[0])
    assert_equal(model, bundle, edge_rows_within(model, bundle), singles=10)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{"outliers": "flag"}, {"outliers": "clip", "outlier_method": "iqr"}, {"holidays": "US"},
                                     {"outliers": "flag", "outlier_method": "isolation forest"}])  # fmt: skip
@pytest.mark.parametrize("encoding", ["trees", "linear", "native"])
def test_scorer_and_pipeline_are_equal_with_each_option_of_the_encoding(options, encoding):
    rows, score = rows_of(0, 400)
    if "holidays" in options:
        pytest.importorskip("holidays")
    name = "linear" if encoding == "linear" else "lightgbm"
    model = make_pipeline(name, "regression", encoding, **options).fit(rows, target_of("regression", score))
    assert_equal(model, make_bundle(rows, "regression"), rows_of(1, 200)[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", list(CLASSES))
def test_calibrated_averages_are_equal_and_compute_common_steps_once(task, monkeypatch):
    rows, score = rows_of(0, 400)
    made = [recipe for recipe in recipes() if not getattr(recipe, "target", "")]
    named = [
        ("a", "lightgbm", "native"),
        ("b", "lightgbm", "native"),
        ("c", "linear", "linear"),
        ("d", "neighbours", "neighbours"),
    ]
    members = [(key, make_pipeline(name, task, encoding, made)) for key, name, encoding in named]
    weights = [0.4, 0.3, 0.2, 0.1]
    if task == "regression":
        model = VotingRegressor(members, weights=weights)
    else:
        model = CalibratedClassifier(VotingClassifier(members, voting="soft", weights=weights), 1.3, [0.1] * len(CLASSES[task]))
    model.fit(rows, target_of(task, score))
    bundle = make_bundle(rows, task)
    assert_equal(model, bundle, rows_of(1, 200)[0])
    assert_equal(model, bundle, edge_rows_within(model, bundle))
    creator, calls = type(members[0][1].named_steps["create"]), []
    inner = creator.transform_columns
    monkeypatch.setattr(creator, "transform_columns", lambda self, rows: calls.append(1) or inner(self, rows))
    prepared = prepare_rows(to_json_rows(rows.head(1)), bundle)
    compile_row_scorer(model, bundle).predict(prepared.columns, 1)
    assert len(calls) == 1


@pytest.mark.filterwarnings("ignore")
def test_what_is_not_compiled_is_named_and_predicts_all_the_same():
    rows, score = rows_of(0, 300)
    bundle = make_bundle(rows, "regression")
    target = target_of("regression", score)
    native = make_pipeline("boosting", "regression", "native").fit(rows, target)
    assert_equal(native, bundle, rows_of(1, 50)[0], ["model"])
    assert "by name" in compile_row_scorer(native, bundle).uncompiled["model"]
    both = VotingRegressor([("boosting", native), ("linear", make_pipeline("linear", "regression", "linear"))]).fit(rows, target)
    assert_equal(both, bundle, rows_of(1, 50)[0], ["boosting"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["forest", "network", "boosting"])
def test_other_models_predict_the_encoded_rows_by_their_own_method(name):
    rows, score = rows_of(0, 300)
    encoding = "neighbours" if name == "network" else "trees"
    model = make_pipeline(name, "regression", encoding).fit(rows, target_of("regression", score))
    assert_equal(model, make_bundle(rows, "regression"), rows_of(1, 100)[0])


@pytest.mark.filterwarnings("ignore")
def test_a_saved_model_gets_the_same_scorer(tmp_path):
    rows, score = rows_of(0, 300)
    made = [recipe for recipe in recipes() if not isinstance(recipe, FunctionFeature)]
    model = make_pipeline("lightgbm", "binary", "native", made).fit(rows, target_of("binary", score))
    bundle = make_bundle(rows, "binary")
    compile_row_scorer(model, bundle).predict(prepare_rows(rows, bundle).columns, len(rows))
    sha256 = save_model(model, tmp_path / "model.skops")  # What the scorer derives is not saved
    assert_equal(load_model(tmp_path / "model.skops", sha256), bundle, rows_of(1, 50)[0])


@lru_cache
def fitted():
    "A linear model, a booster, and the release of both."
    rows, score = rows_of(0, 300)
    made = [recipe for recipe in recipes() if not getattr(recipe, "target", "")]
    target = target_of("regression", score)
    models = [make_pipeline(*each, made).fit(rows, target) for each in (("linear", "regression", "linear"),
                                                                     ("lightgbm", "regression", "native"))]  # fmt: skip
    return models, make_bundle(rows, "regression")


VALUES = {
    "date": st.datetimes().map(lambda value: value.isoformat()) | st.sampled_from(["31.12.2023", "2024-02-29T00:00:00-11:00"]),
    "number": st.floats(allow_infinity=False) | st.integers(-(10**15), 10**15) | st.sampled_from(["5", "1e3", "-0", "7.0"]),
    "text": st.text(max_size=8) | st.sampled_from(["S", "town 3", "10", "NA"]) | st.integers(0, 99) | st.booleans(),
}


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.fixed_dictionaries({name: st.none() | VALUES.get(kind, VALUES["text"]) for name, kind in TYPES.items()}),
                min_size=1, max_size=3))  # fmt: skip
def test_any_rows_are_predicted_equally(rows):
    models, bundle = fitted()
    try:
        prepare_rows(rows, bundle)
    except RejectedRowsError:
        return
    for model in models:
        assert_equal(model, bundle, rows)


def test_rows_that_overflow_are_rejected_with_the_same_message():
    numbers = pd.DataFrame({"x": np.linspace(0, 1, 50) ** 2, "z": np.linspace(0, 1, 50)})
    preprocessor = build_preprocessor(dict.fromkeys(numbers, "number"), encoding="linear", classification=False)
    model = type(preprocessor)([*preprocessor.steps, ("model", LinearRegression())]).fit(numbers, numbers.x * 1e300)
    bundle = make_bundle(numbers, "regression").model_copy(update={"training_values": {}})
    messages = []
    for scorer in (model, compile_row_scorer(model, bundle)):
        with pytest.raises(RejectedRowsError, match="'x' has the value 1e\\+30 in row 2") as caught:
            predict_rows(bundle, scorer, [{"x": 1, "z": 1}, {"x": 1e30, "z": 1}])
        messages.append((str(caught.value), caught.value.errors))
    assert messages[0] == messages[1]
