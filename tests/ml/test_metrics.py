"""Every metric by name: scikit-learn's value, its range, its interval; cost; and functions of the user's own."""

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import make_classification, make_regression
from sklearn.linear_model import LinearRegression
from sklearn.metrics import get_scorer, get_scorer_names
from sklearn.naive_bayes import GaussianNB

from mlcycle.errors import MetricError
from mlcycle.ml.bootstrap import bootstrap_difference, bootstrap_distribution, bootstrap_intervals, score_resamples
from mlcycle.ml.metrics import (
    DEFAULT_METRICS,
    METRIC_ALIASES,
    METRICS,
    bind_metric_to_problem,
    compute_score,
    describe_metrics,
    get_metric,
)
from mlcycle.ml.predictions import Predictions
from mlcycle.ml.resampling import Resampling, draw_weights
from mlcycle.outcomes import Problem

CLUSTERING = {"adjusted_mutual_info_score", "adjusted_rand_score", "completeness_score", "fowlkes_mallows_score"}
CLUSTERING |= {"homogeneity_score", "mutual_info_score", "normalized_mutual_info_score", "rand_score", "v_measure_score"}
SEVERAL_LABELS = {"f1_samples", "jaccard_samples", "precision_samples", "recall_samples"}
SEVERAL = {"roc_auc": "roc_auc_ovr"} | {name: f"{name}_macro" for name in ("f1", "jaccard", "precision", "recall")}
SCORERS = sorted(set(get_scorer_names()) - CLUSTERING - SEVERAL_LABELS)


def asked(task: str, classes: list = (), positive=None, costs: dict | None = None) -> Problem:
    "A problem with nothing but what metrics look at."
    empty = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256", "target"], "-")
    primary = DEFAULT_METRICS[task][0]
    said = {"metric": primary, "metrics": [primary], "criteria": [], "rows": 0, "costs": costs or {}}
    return Problem(task=task, classes=list(classes), positive=positive, **empty, **said)


@pytest.fixture(scope="module")
def toys():
    "For each task a problem, a fitted model, rows and their truth, and what the model says."
    made = {}
    for task, classes in (("binary", [0, 1]), ("multiclass", [0, 1, 2])):
        columns, truth = make_classification(400, 6, n_informative=4, n_classes=len(classes), flip_y=0.2, random_state=0)
        model = GaussianNB().fit(columns, truth)
        scores = model.predict_proba(columns)
        said = Predictions(model.predict(columns), scores[:, 1] if task == "binary" else scores)
        made[task] = asked(task, classes, 1 if task == "binary" else None), model, columns, truth, said
    columns, truth = make_regression(300, 4, noise=20, random_state=0)
    truth = truth - truth.min() + 50  # Some metrics want amounts above 0
    model = LinearRegression().fit(columns, truth)
    columns, truth = columns[model.predict(columns) > 1], truth[model.predict(columns) > 1]
    made["regression"] = asked("regression"), model, columns, truth, Predictions(model.predict(columns))
    return made


@pytest.mark.parametrize("name", SCORERS)
def test_every_supervised_scorer_of_scikit_learn_has_its_value(name, toys):
    metric = get_metric(name)
    assert metric.higher_is_better is not name.startswith("neg_")
    for task in metric.tasks:
        problem, model, columns, truth, said = toys[task]
        scorer = get_scorer(SEVERAL.get(name, name) if task == "multiclass" else name)
        theirs = scorer(model, columns, truth) * (-1 if name.startswith("neg_") else 1)
        assert compute_score(name, problem, truth, said) == pytest.approx(theirs, rel=1e-9), task


def test_nothing_is_left_out_without_a_reason():
    assert {get_metric(name).name for name in SCORERS} | {"cost", "selection_rate"} == set(METRICS)
    for name in CLUSTERING | SEVERAL_LABELS:
        with pytest.raises(MetricError):
            get_metric(name)
    for alias, name in METRIC_ALIASES.items():
        assert get_metric(alias) is METRICS[name]
        assert alias not in METRICS


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_intervals_hold_the_value_and_stay_in_range(task, toys):
    problem, _, _, truth, said = toys[task]
    problem = problem.model_copy(update={"costs": {} if task == "regression" else {"1": {"0": 5.0}, "0": {"1": 1.0}}})
    names = [name for name, metric in METRICS.items() if task in metric.tasks]
    shown = bootstrap_intervals(names, problem, truth, said, n_resamples=30)
    assert [one.metric for one in shown] == names
    for one in shown:
        metric = bind_metric_to_problem(one.metric, problem)
        assert one.lower_is_better is (metric.higher_is_better is False)
        assert metric.low <= one.low < one.high <= metric.high, one
        assert one.low - 0.1 * (one.high - one.low) <= one.value <= one.high + 0.2 * (one.high - one.low), one
        assert bootstrap_difference(one.metric, problem, truth, said, said, n_resamples=5).value == 0


def test_the_resamples_of_a_metric_are_scored_as_one_by_one(toys):
    for task, (problem, _, _, truth, said) in toys.items():
        weights = draw_weights(np.random.default_rng(0), len(truth), 3, Resampling())
        rows = [np.repeat(np.arange(len(truth)), each.astype(int)) for each in weights]
        for name in (name for name, metric in METRICS.items() if task in metric.tasks and name != "cost"):
            metric = METRICS[name]
            encoded = truth == 1 if task == "binary" else truth
            given = (
                said.scores
                if metric.response_method == "predict_proba"
                else said.labels == 1
                if task == "binary"
                else said.labels
            )
            alone = [metric.function(encoded[drawn], given[drawn]) for drawn in rows]
            found = score_resamples(metric, problem, encoded, given, weights)
            np.testing.assert_allclose(found, alone, err_msg=f"{task} {name}")


def test_resamples_keep_the_classes_and_a_class_of_one_row_is_in_each():
    problem = asked("multiclass", ["a", "b", "c"])
    actual = np.array(["a"] * 30 + ["b"] * 9 + ["c"])
    said = Predictions(np.array(["a"] * 39 + ["c"]))
    draws = bootstrap_distribution("accuracy", problem, actual, said, n_resamples=50)
    assert (draws == 31 / 40).all(), "within a class, these predictions are all right or all wrong"
    assert bootstrap_distribution("accuracy", problem, actual, said, n_resamples=50, stratified=False).std() > 0
    assert (bootstrap_distribution("accuracy", problem, actual[-1:], said[-1:], n_resamples=3) == 1).all()


def test_intervals_cover_as_often_as_they_say():
    rng, problem, covered = np.random.default_rng(0), asked("binary", ["no", "yes"], "yes"), 0
    for seed in range(200):
        actual = rng.choice(["no", "yes"], 150)
        right = rng.random(150) < 0.7
        said = Predictions(np.where(right, actual, np.where(actual == "yes", "no", "yes")))
        shown = bootstrap_intervals(["accuracy"], problem, actual, said, seed=seed)[0]
        covered += shown.low <= 0.7 <= shown.high
    assert 0.9 <= covered / 200 <= 0.99


def test_a_class_that_does_not_occur_does_no_harm(toys):
    problem, _, _, truth, said = toys["multiclass"]
    few = truth < 2
    for name in (name for name, metric in METRICS.items() if "multiclass" in metric.tasks and name != "cost"):
        assert np.isfinite(compute_score(name, problem, truth[few], said[few])), name
    strange = np.where(np.arange(len(truth)) < 5, 7, truth)  # A class that nobody knew
    for one in bootstrap_intervals(["accuracy", "f1", "balanced_accuracy"], problem, strange, said, n_resamples=20):
        assert one.low <= one.value <= one.high


def test_cost_is_counted_for_a_thousand_rows():
    problem = asked("binary", ["no", "yes"], "yes", {"yes": {"no": 100.0, "yes": -20.0}, "no": {"yes": 3.0}})
    truth, said = np.array(["yes", "yes", "no", "no"]), Predictions(np.array(["yes", "no", "yes", "no"]))
    assert compute_score("cost", problem, truth, said) == pytest.approx(1000 * (-20 + 100 + 3 + 0) / 4)
    perfect = Predictions(truth)
    assert bootstrap_difference("cost", problem, truth, perfect, said).value > 0, "less is better"
    three = asked("multiclass", ["a", "b", "c"], costs={"a": {"b": 1.0, "c": 2.0}})
    assert compute_score("cost", three, np.array(["a", "a", "b"]), Predictions(np.array(["b", "c", "a"]))) == pytest.approx(1000)
    numbers = asked("binary", [0.0, 1.0], 1.0, {"1": {"0.0": 8.0}})
    assert compute_score("cost", numbers, np.array([1.0, 0.0]), Predictions(np.array([0.0, 0.0]))) == 4000


def test_cost_says_what_it_misses():
    with pytest.raises(MetricError, match="needs costs"):
        bind_metric_to_problem("cost", asked("binary", ["no", "yes"], "yes"))
    with pytest.raises(MetricError, match="'yess'.*Did you mean 'yes'"):
        bind_metric_to_problem("cost", asked("binary", ["no", "yes"], "yes", {"yess": {"no": 1.0}}))
    with pytest.raises(MetricError, match="does not fit a regression"):
        get_metric("cost", "regression")


OWN = '''
import numpy as np

def shift(truth, labels):
    """How far the mean is off.

    More words."""
    return abs(np.mean(truth) - np.mean(labels))
shift.higher_is_better = False
shift.range = (0, float("inf"))

def plain(truth, labels): return 1
def words(truth, labels): return "much"
def nothing(truth, labels): return float("nan")
def fails(truth, labels): return 1 / 0
def certain(truth, scores): return scores.max()
certain.response_method = "predict_proba"
def odd(truth, labels): return 1
odd.response_method = "probabilities"
def old(truth, labels): return 1
old.needs = "scores"
number = 3
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A project with a module of metrics, a folder of it being the working directory."
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (tmp_path / "settings.ini").write_text("")
    (tmp_path / "till_metrics.py").write_text(OWN)
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    yield "till_metrics"
    __import__("sys").modules.pop("till_metrics", None)


def test_a_function_of_ones_own(own, toys):
    problem, _, _, truth, said = toys["regression"]
    shown = bootstrap_intervals([f"{own}:shift", "mae"], problem, truth, said, n_resamples=20)[0]
    assert shown.metric == f"{own}:shift"
    assert shown.value == pytest.approx(abs(truth.mean() - said.labels.mean()))
    line = describe_metrics([f"{own}:shift"], problem).iloc[0]
    assert list(line) == [f"{own}:shift", "lower", "0 and more", "labels", "How far the mean is off."]
    problem, _, _, truth, said = toys["binary"]
    assert compute_score(f"{own}:certain", problem, truth, said) == said.scores.max()
    assert get_metric(f"{own}:plain").range == "any number"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shiftt", "Did you mean 'shift'"),
        ("number", "not a function"),
        ("odd", "response_method = 'probabilities'.*'predict' or 'predict_proba'"),
        ("old", "'needs'.*'response_method'"),
        ("words", "cannot be computed"),
        ("nothing", "returns nan"),
        ("fails", "division by zero.*correct the function"),
    ],
)
def test_a_function_of_ones_own_that_is_no_metric(own, toys, name, said):
    problem, _, _, truth, answers = toys["binary"]
    with pytest.raises(MetricError, match=said):
        compute_score(f"{own}:{name}", problem, truth, answers)


def test_a_module_that_is_not_there_is_named_with_the_places_searched(own, tmp_path):
    with pytest.raises(MetricError, match=f"no_such_module.*{tmp_path}"):
        get_metric("no_such_module:f")
    with pytest.raises(MetricError):
        get_metric(":")


def test_a_value_that_cannot_be_had_names_the_metric(toys):
    problem, *_ = toys["regression"]
    with pytest.raises(MetricError, match="mean_gamma_deviance"):
        compute_score("mean_gamma_deviance", problem, np.array([0.0, 1.0]), Predictions(np.array([1.0, 1.0])))
    with pytest.raises(MetricError, match="needs scores"):
        compute_score("roc_auc", asked("binary", [0, 1], 1), np.array([0, 1]), Predictions(np.array([0, 1])))


def test_metrics_are_described_in_words():
    problem = asked("binary", ["no", "yes"], "yes", {"yes": {"no": 2.0}})
    table = describe_metrics(["roc_auc", "log_loss", "cost", "selection_rate"], problem)
    assert table.columns.tolist() == ["metric", "better when", "range", "computed from", "description"]
    assert table["better when"].tolist() == ["higher", "lower", "lower", "neither"]
    assert table["computed from"].tolist() == ["probabilities", "probabilities", "labels, costs", "labels"]
    assert table.range.tolist() == ["0 to 1", "0 and more", "0 to 2,000", "0 to 1"]
    assert isinstance(table, pd.DataFrame)
    assert all(metric.description.endswith(".") for metric in METRICS.values())
