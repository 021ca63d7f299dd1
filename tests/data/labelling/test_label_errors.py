"""Label errors on real tables: the ranking, and the number of marked labels."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cleanlab.filter import find_label_issues
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.naive_bayes import GaussianNB

from mlcycle.data.labelling.error_calibration import fit_error_calibration
from mlcycle.data.labelling.label_errors import find_label_errors, nearest_neighbours, rank_class_labels
from mlcycle.data.labelling.quick_probabilities import encode_labelling_rows

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
from labelling_errors import judged, suspicion  # noqa: E402 - needs the path
from labelling_tables import CLASSES, NUMBERS, corrupt_numbers, flip_labels, labelling_problem  # noqa: E402


def test_flipped_digits_are_ranked_first_and_correcting_them_lowers_the_holdout_error():
    digits = load_digits(as_frame=True).frame
    problem, actual = labelling_problem(digits, "target"), digits["target"]
    features = encode_labelling_rows(digits, problem)
    holdout = np.random.default_rng(0).permutation(len(digits)) < 500
    labels, changed = flip_labels(actual, problem.classes, 0.1, seed=0)
    found = find_label_errors(digits, labels.where(~holdout), problem, features=features)
    assert roc_auc_score(changed[~holdout], suspicion(found, digits[~holdout])) >= 0.97
    assert found.low <= changed[~holdout].mean() <= found.high
    marked = digits.index.isin(found.suspects.loc[found.suspects["marked"], "item"])
    assert changed[marked].mean() > 0.9
    assert marked[changed & ~holdout].mean() > 0.85
    top = found.suspects["item"].head(round(0.1 * found.n_labels))
    corrected = labels.copy()
    corrected[top] = actual[top]
    errors = []
    for given in (labels, corrected):
        model = LogisticRegression(max_iter=300).fit(features[~holdout], given[~holdout].astype(int))
        errors.append((model.predict(features[holdout]) != actual[holdout]).mean())
    assert errors[1] < errors[0]


@pytest.mark.parametrize(("name", "at_most"), [("wine", 0.0), ("breast cancer", 0.01), ("simulated overlap", 0.01)])
def test_hardly_any_label_of_a_clean_table_is_marked(name, at_most):
    "Confident learning alone marks 11 % of the overlapping classes."
    rows, target = CLASSES[name]()
    found = find_label_errors(rows, rows[target], labelling_problem(rows, target))
    assert found.suspects["marked"].mean() <= at_most
    assert found.error_share == 0
    assert len(found.suspects) == len(rows)
    if name == "simulated overlap":
        assert found.suspects["confident_learning"].mean() > 0.08


def test_uncalibrated_probabilities_give_too_many_suspects():
    "Naive Bayes and boosting are overconfident; both by confident learning alone, and with an error share, calibration helps."
    X, y = load_breast_cancer(return_X_y=True)
    labels, changed = flip_labels(pd.Series(y), [0, 1], 0.1, seed=0)
    codes = labels.to_numpy(int)
    for model in (GaussianNB(), HistGradientBoostingClassifier(max_iter=60, random_state=0)):
        raw = cross_val_predict(model, X, codes, method="predict_proba", cv=5)
        calibration = fit_error_calibration(raw, codes)
        plain = find_label_issues(codes, raw, n_jobs=1).sum()
        calibrated = calibration.error_probability(raw, codes) > 0.5
        assert plain > 1.1 * changed.sum() > 0
        assert abs(calibrated.sum() - changed.sum()) < plain - changed.sum()


def test_errors_in_one_class_are_found():
    rows, target = CLASSES["breast cancer"]()
    problem = labelling_problem(rows, target)
    labels, changed = flip_labels(rows[target], problem.classes, 0.2, seed=1, only=1)
    found = find_label_errors(rows, labels, problem)
    assert found.low < changed.mean() < found.high
    auroc, precision, recall = map(float, judged(found, rows, changed))
    assert auroc > 0.95
    assert min(precision, recall) > 0.8


def test_numbers_that_are_ten_times_too_large_are_marked():
    rows, target = NUMBERS["diabetes"]()
    problem = labelling_problem(rows, target, regression=True)
    clean = find_label_errors(rows, rows[target], problem)
    assert clean.suspects["marked"].mean() <= 0.01
    labels, changed = corrupt_numbers(rows[target], 0.05, 1, "ten times")
    found = find_label_errors(rows, labels, problem)
    auroc, precision, recall = map(float, judged(found, rows, changed))
    assert auroc > 0.99
    assert precision >= 0.8
    assert recall == 1


def test_small_and_odd_tables_give_clear_messages():
    wine = load_wine(as_frame=True).frame
    problem = labelling_problem(wine, "target")
    assert "too few" in find_label_errors(wine[:15], wine["target"][:15], problem).message
    assert "Only one class" in find_label_errors(wine, wine["target"].where(wine["target"] == 0), problem).message
    assert "No column varies" in find_label_errors(wine.assign(x=1)[["x", "target"]], wine["target"], problem).message
    rare = wine["target"].where((wine["target"] != 2) | (wine.index > len(wine) - 4))
    found = find_label_errors(wine, rare, problem)
    assert "Not judged: '2'" in found.message
    assert found.n_labels == (wine["target"] < 2).sum()
    few = wine.sample(45, random_state=0)
    assert find_label_errors(few, few["target"], problem).n_marked == 0


def test_a_hundred_classes_are_judged():
    rng = np.random.default_rng(0)
    centres, codes = 3 * rng.normal(size=(100, 8)), np.repeat(np.arange(100), 8)
    rows = pd.DataFrame(centres[codes] + rng.normal(size=(800, 8)), columns=list("abcdefgh")).assign(y=codes)
    problem = labelling_problem(rows, "y")
    labels, changed = flip_labels(rows["y"], problem.classes, 0.05, seed=3)
    found = find_label_errors(rows, labels, problem)
    assert roc_auc_score(changed, suspicion(found, rows)) > 0.95


def test_predictions_of_another_model_are_ranked_too():
    X, y = load_wine(return_X_y=True)
    rows = pd.DataFrame(X).rename(columns=str).assign(y=y)
    problem = labelling_problem(rows, "y")
    labels, changed = flip_labels(rows["y"], problem.classes, 0.1, seed=0)
    raw = cross_val_predict(GaussianNB(), X, labels.astype(int), method="predict_proba", cv=5)
    found = find_label_errors(rows, labels, problem, predictions=raw)
    same, _ = rank_class_labels(rows.index, labels.to_numpy(int), raw, problem)
    pd.testing.assert_frame_equal(found.suspects, same)
    assert roc_auc_score(changed, suspicion(found, rows)) > 0.95


def test_neighbours_show_the_labels_of_similar_rows():
    digits = load_digits(as_frame=True).frame.rename(index="digit {}".format)
    problem = labelling_problem(digits, "target")
    near = nearest_neighbours(digits, digits["target"], digits.index[::90], problem, k=7)
    assert (near.groupby("item").size() == 7).all()
    assert near.groupby("item")["distance"].apply(lambda each: each.is_monotonic_increasing).all()
    assert (near["label"].to_numpy() == digits["target"][near["item"]].to_numpy()).mean() > 0.8
    assert (digits.index[near["row"]] == near["neighbour"]).all()
