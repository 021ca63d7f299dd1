"""The accelerator: conversion, proof, and a service that predicts by it; a difference stops a release."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import stored_rows
from fastapi.testclient import TestClient
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from mlcycle.deployment.parity import check_parity, compare_accelerator, compare_row_scorer, release_edge_rows
from mlcycle.errors import ArtifactError, StageError
from mlcycle.features.encode.pipeline import build_preprocessor
from mlcycle.ml.predictions import Predictions
from mlcycle.outcomes import ModelRef, Problem
from mlcycle.service import app as application
from mlcycle.service.bundle import Bundle, build_bundle, open_release
from mlcycle.service.input_values import describe_training_values
from mlcycle.service.onnx_estimators import ONNX_TOLERANCE, convert_estimators
from mlcycle.service.prediction_service import ServedModel
from mlcycle.service.row_scorer import RowScorer, compile_row_scorer
from mlcycle.service.rows import predict_rows, to_json_rows
from mlcycle.service.service_settings import ServiceSettings
from mlcycle.stores.models.model_files import save_model

RNG = np.random.default_rng(3)
ROWS = pd.DataFrame(
    {
        "amount": np.where(RNG.random(400) < 0.1, np.nan, RNG.lognormal(3, 2, 400)),
        "count": RNG.integers(0, 9, 400),
        "town": RNG.choice(["Lima", "Oslo", "Rome"], 400),
        "when": pd.date_range("2024-01-01", periods=400, freq="7h"),
    }
)
SCORE = ROWS["count"] + 3 * (ROWS.town == "Lima") + RNG.normal(size=400)
KINDS = {"amount": "number", "count": "number", "town": "category", "when": "date"}


def fitted(estimator, encoding: str, y):
    "A pipeline of encoded rows and an estimator."
    classification = hasattr(estimator, "predict_proba")
    pipeline = build_preprocessor(KINDS, classification=classification, encoding=encoding)
    pipeline.steps.append(("model", estimator))
    return pipeline.fit(ROWS, y)


def described(task: str, classes: list, sha256: str = "-") -> Bundle:
    "The description of a release on `ROWS`."
    problem = Problem(
        decision="-", question="-", owner="-", source="-", source_sha256="-", target="y", task=task, classes=classes,
        positive=classes[-1] if task == "binary" else None, metric="r2" if task == "regression" else "log_loss",
        metrics=["r2" if task == "regression" else "log_loss"], criteria=[], rows=400,
    )  # fmt: skip
    return Bundle(
        problem=problem, columns={name: str(kind) for name, kind in ROWS.dtypes.items()},
        threshold=0.4 if task == "binary" else None, model=ModelRef(name="toy", version=1, run_id="-", sha256=sha256),
        training_values={name: describe_training_values(values) for name, values in ROWS.items()},
    )  # fmt: skip


CASES = [
    (LGBMClassifier(n_estimators=30, verbose=-1, n_jobs=1), "trees", "binary"),
    (LGBMClassifier(n_estimators=30, verbose=-1, n_jobs=1), "native", "multiclass"),
    (LGBMRegressor(n_estimators=30, verbose=-1, n_jobs=1), "native", "regression"),
    (LGBMRegressor(n_estimators=30, verbose=-1, n_jobs=1, objective="poisson"), "trees", "regression"),
    (LogisticRegression(max_iter=300), "linear", "binary"),
]


def target(task: str):
    "The target of a task, and its classes."
    if task == "regression":
        return SCORE - SCORE.min(), []
    edges = [SCORE.median()] if task == "binary" else list(SCORE.quantile([0.3, 0.7]))
    return np.array(["a", "b", "c"])[np.digitize(SCORE, edges)], ["a", "b", "c"][: len(edges) + 1]


@pytest.mark.parametrize(
    ("estimator", "encoding", "task"), CASES, ids=lambda value: getattr(value, "objective", value) or "lightgbm"
)
def test_the_accelerator_is_within_its_tolerance_on_holdout_and_edge_rows(estimator, encoding, task):
    y, classes = target(task)
    model, bundle = fitted(estimator, encoding, y), described(task, classes)
    edge = release_edge_rows(bundle)
    form, scorer = compare_row_scorer(model, bundle, ROWS, edge)
    assert form.passed
    assert form.rows == len(ROWS) + 2 * len(edge)
    result, converted, reason = compare_accelerator(model, scorer, bundle, ROWS, edge)
    assert result is not None
    assert result.max_difference <= ONNX_TOLERANCE
    assert (list(converted), reason) == (["model"], "")
    assert compile_row_scorer(model, bundle, converted).onnx == ["model"]


def test_what_is_not_converted_is_named_with_the_reason():
    y, classes = target("binary")
    model, bundle = fitted(KNeighborsClassifier(), "neighbours", y), described("binary", classes)
    _, scorer = compare_row_scorer(model, bundle, ROWS, release_edge_rows(bundle))
    result, converted, reason = compare_accelerator(model, scorer, bundle, ROWS, release_edge_rows(bundle))
    assert (result, converted) == (None, {})
    assert "KNeighborsClassifier is not converted" in reason


def test_what_is_not_compiled_is_predicted_by_the_pipeline_and_named():
    y, classes = target("binary")
    model, bundle = fitted(HistGradientBoostingClassifier(max_iter=5), "native", y), described("binary", classes)
    form, scorer = compare_row_scorer(model, bundle, ROWS, release_edge_rows(bundle))
    assert form.passed
    assert "data frame" in scorer.uncompiled["model"]
    assert ServedModel(bundle, model, Path(), scorer).predicted_by == "row scorer and pipeline"


def test_a_difference_of_the_last_bit_stops_a_release(monkeypatch):
    y, classes = target("binary")
    model, bundle = fitted(CASES[0][0], "trees", y), described("binary", classes)
    exact = RowScorer.predict

    def differ(self, columns, n_rows):
        predictions = exact(self, columns, n_rows)
        scores = predictions.scores.copy()
        if n_rows == len(ROWS):
            scores[-1] = np.nextafter(scores[-1], 1)
        return Predictions(predictions.labels, scores)

    monkeypatch.setattr(RowScorer, "predict", differ)
    form, _ = compare_row_scorer(model, bundle, ROWS, release_edge_rows(bundle))
    assert (form.rows - form.n_equal, form.passed) == (1, False)
    with pytest.raises(StageError, match=r"1 of \d+ predictions of the form 'row scorer' differ.*bitwise equal"):
        check_parity([form])


def test_an_accelerator_that_differs_is_left_out(monkeypatch):
    y, classes = target("regression")
    model, bundle = fitted(CASES[2][0], "native", y), described("regression", classes)
    _, scorer = compare_row_scorer(model, bundle, ROWS, release_edge_rows(bundle))
    other = fitted(LGBMRegressor(n_estimators=30, verbose=-1, n_jobs=1, learning_rate=0.2), "native", y)
    wrong = convert_estimators({"model": other[-1]})
    monkeypatch.setattr("mlcycle.deployment.parity.convert_estimators", lambda estimators: wrong)
    result, converted, reason = compare_accelerator(model, scorer, bundle, ROWS, release_edge_rows(bundle))
    assert not result.passed
    assert (converted, reason) == ({}, "Its predictions differ too much.")


@pytest.fixture
def release(tmp_path):
    "A release with an accelerator; its description."
    y, classes = target("binary")
    model = fitted(CASES[0][0], "trees", y)
    bundle = described("binary", classes, save_model(model, tmp_path / "model.skops"))
    converted, _ = convert_estimators(compile_row_scorer(model, bundle).estimators)
    bundle = bundle.model_copy(update={"accelerator": {"model": "accelerator_0.onnx"}})
    documents = {"accelerator_0.onnx": converted["model"]}
    return build_bundle(tmp_path / "releases", bundle, tmp_path / "model.skops", documents=documents), bundle, model


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_a_service_predicts_by_the_accelerator_if_it_is_told_to(release, form, capsys):
    folder, bundle, model = release
    place = folder if form == "folder" else folder.with_name(f"{folder.name}.tar.gz")
    rows = to_json_rows(ROWS.head(50))
    expected = predict_rows(bundle, model, rows)[0].scores
    scores = {}
    for accelerate, name in ((False, "row scorer"), (True, "ONNX Runtime")):
        with TestClient(application.create_app(place, settings=ServiceSettings(accelerate=accelerate))) as client:
            assert client.get("/model").json()["predicted_by"] == name
            assert ("is predicted by ONNX Runtime" in capsys.readouterr().err) == accelerate
            scores[accelerate] = np.array(client.post("/predict", json={"rows": rows}).json()["scores"])
    assert (scores[False] == expected).all()
    assert 0 < np.abs(scores[True] - expected).max() <= ONNX_TOLERANCE


def test_without_onnx_runtime_the_row_scorer_predicts_and_says_so(release, monkeypatch, capsys):
    monkeypatch.setattr(application, "find_spec", lambda name: None)
    with TestClient(application.create_app(release[0], settings=ServiceSettings(accelerate=True))) as client:
        assert client.get("/model").json()["predicted_by"] == "row scorer"
    assert "onnxruntime is not installed" in capsys.readouterr().err


def test_an_altered_accelerator_is_named(release):
    file = release[0] / "accelerator_0.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(ArtifactError, match="accelerator_0.onnx"):
        open_release(release[0])


def test_stage_6_lists_each_form_with_its_proof(table_run):
    run = table_run("cancer")
    forms = {each.form: each for each in run.release.parity.forms}
    assert len(stored_rows(run, "holdout")) < forms["row scorer"].rows
    assert all(each.passed for each in forms.values())
    assert all(each.n_equal == each.rows for each in forms.values() if not each.tolerance)
    protocols = [form for form in forms if form.startswith("service, ")]
    assert len(protocols) == 4
    assert ("accelerator, ONNX Runtime" in forms) == (run.release.not_accelerated == "")
    page = (run.folder / "deployment.body.html").read_text()
    assert all(form.split(" (")[0] in page for form in forms)
