"""Prediction intervals and sets: their coverage by simulation, in the service and in `run.predict`."""

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK, diabetes, stored_rows, wine
from fastapi.testclient import TestClient

import mlcycle as mc
from mlcycle.errors import ParameterError
from mlcycle.ml.conformal import conformal_quantile, fit_conformal, prediction_intervals, prediction_sets
from mlcycle.ml.predictions import Predictions
from mlcycle.modelling.conformal_calibration import check_coverage_groups
from mlcycle.outcomes import Problem
from mlcycle.service.app import create_app
from mlcycle.service.rows import to_json_rows
from mlcycle.validation.conformal import describe_coverage, measure_coverage

EMPTY = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256"], "-")
EMPTY |= {"target": "y", "criteria": [], "rows": 1}
NUMBER = Problem(**EMPTY, task="regression", metric="rmse", metrics=["rmse"])
CLASSES = Problem(**EMPTY, task="multiclass", classes=["a", "b", "c"], metric="log_loss", metrics=["log_loss"])
BINARY = Problem(**EMPTY, task="binary", classes=["no", "yes"], positive="no", metric="roc_auc", metrics=["roc_auc"])


def draw(problem: Problem, seed: int, rows: int = 4000) -> tuple[np.ndarray, Predictions]:
    "Actual values, and predictions of a model with heteroscedastic errors or of the true probabilities with noise."
    rng = np.random.default_rng(seed)
    if problem.task == "regression":
        predicted = rng.uniform(0, 10, rows)
        return predicted + rng.standard_t(3, rows) * (1 + predicted / 5), Predictions(predicted)
    k = len(problem.classes)
    logits = 1.5 * rng.normal(size=(rows, k))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    codes = (rng.random((rows, 1)) > shares.cumsum(axis=1)).sum(axis=1)
    noisy = shares ** rng.uniform(0.5, 2, (rows, 1))
    noisy /= noisy.sum(axis=1, keepdims=True)
    labels = np.array(problem.classes)
    scores = noisy if k > 2 else noisy[:, problem.positive_index]
    return labels[np.minimum(codes, k - 1)], Predictions(labels[noisy.argmax(axis=1)], scores)


@pytest.mark.parametrize("problem", [NUMBER, CLASSES, BINARY], ids=["regression", "multiclass", "binary"])
@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_coverage_is_nominal_on_exchangeable_rows(problem, coverage):
    found = []
    for seed in range(20):
        actual, predictions = draw(problem, seed)
        conformal = fit_conformal(problem, actual[:2000], predictions[:2000], coverage=coverage)
        measured = measure_coverage(problem, conformal, pd.DataFrame({"y": actual[2000:]}), predictions[2000:])
        found.append(measured.overall.coverage.value)
    assert abs(np.mean(found) - coverage) < 0.015
    assert np.std(found) < 0.02


def test_bins_cover_small_and_large_predictions_alike():
    actual, predictions = draw(NUMBER, 0, 20_000)
    conformal = fit_conformal(NUMBER, actual[:10_000], predictions[:10_000])
    low, high = prediction_intervals(conformal, predictions.labels[10_000:])
    inside = (low <= actual[10_000:]) & (actual[10_000:] <= high)
    for part in np.array_split(np.argsort(predictions.labels[10_000:]), 5):
        assert abs(inside[part].mean() - 0.9) < 0.03
    assert np.unique(np.round(high - low, 9)).size == 5


def test_groups_have_their_own_quantile():
    rng = np.random.default_rng(0)
    groups = rng.choice(["calm", "wild", "rare"], 4000, p=[0.5, 0.49, 0.01])
    actual = rng.normal(size=4000) * np.where(groups == "calm", 1, 5)
    given = {"group_by": "g", "groups": groups[:2000]}
    conformal = fit_conformal(NUMBER, actual[:2000], Predictions(np.zeros(2000)), **given)
    assert set(conformal.group_quantiles) == {"calm", "wild"}, "rare groups have the quantile of all rows"
    rows = pd.DataFrame({"y": actual[2000:], "g": groups[2000:]})
    measured = measure_coverage(NUMBER, conformal, rows, Predictions(np.zeros(2000)))
    assert all(abs(each.coverage.value - 0.9) < 0.03 for each in measured.groups if each.group != "rare")
    overall = measure_coverage(
        NUMBER.model_copy(update={"protected_columns": ["g"]}),
        fit_conformal(NUMBER, actual[:2000], Predictions(np.zeros(2000))),
        rows,
        Predictions(np.zeros(2000)),
    )
    assert max(each.coverage.value for each in overall.groups) > 0.97


def test_a_drift_is_seen_as_too_few_covered_rows():
    actual, predictions = draw(NUMBER, 1)
    conformal = fit_conformal(NUMBER, actual[:2000], predictions[:2000])
    measured = measure_coverage(NUMBER, conformal, pd.DataFrame({"y": actual[2000:] + 4}), predictions[2000:])
    assert "**too few**" in describe_coverage(measured, NUMBER)


def test_few_rows_have_no_intervals():
    assert conformal_quantile(np.arange(8.0), 0.9) is None
    assert fit_conformal(NUMBER, np.arange(8.0), Predictions(np.zeros(8))) is None
    assert conformal_quantile(np.arange(19.0), 0.95) == 18


def test_a_set_always_has_the_predicted_class():
    scores = np.array([0.3, 0.999])
    conformal = fit_conformal(BINARY, ["no"] * 50, Predictions(np.full(50, "no"), np.full(50, 0.999)))
    tuned = Predictions(np.array(["no", "no"]), scores)  # With a threshold of 0.2
    assert prediction_sets(conformal, BINARY, tuned).tolist() == [[True, False], [True, False]]


FAST = QUICK | {"trials": 1, "models": ["linear"], "create": False, "generalization": False, "explanations": False}


@pytest.fixture(scope="module")
def diabetes_run(tmp_path_factory) -> mc.Run:
    "A released model of a number, whose intervals are calibrated for each sex."
    from sklearn.datasets import load_diabetes

    frame = diabetes().assign(sex=np.where(load_diabetes(as_frame=True).frame.sex > 0, "first", "second"))
    folder = tmp_path_factory.mktemp("diabetes")
    settings = FAST | {"criteria": ["r2 >= 0"], "excluded": {"sex": "protected"}, "coverage_by": "sex"}
    return mc.run(frame, "target", folder, until="deployment", **settings)


def test_the_service_and_the_run_return_the_same_intervals(diabetes_run):
    run = diabetes_run
    rows = stored_rows(run, "holdout")
    assert set(run.candidate.conformal.group_quantiles) == {"first", "second"}
    table = run.predict(rows, intervals=True)
    assert ((table.prediction_low <= table.prediction) & (table.prediction <= table.prediction_high)).all()
    half = (table.prediction_high - table.prediction).groupby(rows.sex.to_numpy())
    assert half.first().to_dict() == pytest.approx(run.candidate.conformal.group_quantiles)
    assert (half.max() - half.min()).max() < 1e-9
    covered = (table.prediction_low <= rows.target) & (rows.target <= table.prediction_high)
    assert covered.mean() == run.verdict.uncertainty.overall.coverage.value
    assert table.attrs["coverage"] == 0.9
    assert list(run.predict(rows)) == ["prediction"]
    with TestClient(create_app(run.workspace.root / run.release.bundle)) as client:
        sent = to_json_rows(rows.drop(columns="target"))
        served = client.post("/predict", json={"rows": sent, "intervals": True}).json()
        assert "prediction_low" not in client.post("/predict", json={"rows": sent}).json()
        refused = client.post("/predict", json={"rows": sent, "intervals": "yes"})
    assert np.allclose(served["prediction_low"], table.prediction_low)
    assert np.allclose(served["prediction_high"], table.prediction_high)
    assert served["coverage"] == 0.9
    assert (refused.status_code, "intervals" in refused.json()["detail"]) == (422, True)


def test_sets_of_classes_in_a_run(tmp_path):
    run = mc.run(wine(), "target", tmp_path, until="validation", **FAST | {"coverage_by": "target"})
    table = run.predict(stored_rows(run, "holdout"), intervals=True)
    assert all(label in inside for label, inside in zip(table.prediction, table.prediction_set, strict=True))
    found = run.verdict.uncertainty
    assert found.overall.coverage.value > 0.75
    assert sum(found.set_sizes.values()) == pytest.approx(1)
    assert run.candidate.conformal.group_by == "target"


def test_a_column_of_groups_must_exist_and_have_few_values():
    rows = pd.DataFrame({"town": ["Ulm"] * 30, "id": range(30)})
    check_coverage_groups(rows, "town")
    for name, message in (("twon", "not a column"), ("id", "30 values")):
        with pytest.raises(ParameterError, match=message):
            check_coverage_groups(rows, name)
