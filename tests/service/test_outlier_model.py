"""Outlier p-values: any table, calibration, what is unusual, and what a service tells clients and its log."""

import time
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from toy_releases import toy_release, toy_rows

from mlcycle.service import event_writer
from mlcycle.service.app import create_app, load_served_model
from mlcycle.service.outlier_fit import fit_outlier_model
from mlcycle.service.outlier_model import (
    OUTLIER_MODEL_FILE,
    outlier_columns,
    outlier_model_content,
    outlier_p_values,
    outlier_scores,
    read_outlier_model,
    unusual_columns,
)
from mlcycle.service.prediction_log import PredictionLog
from mlcycle.service.prediction_options import PredictOptions
from mlcycle.service.prediction_service import PredictionService

COLUMNS = {
    "number": st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0.0, 1.0, -0.0])),
    "few": st.sampled_from([0.0, 1.0, 2.0, None]),
    "constant": st.just(7.0),
    "missing": st.just(None),
    "text": st.one_of(st.none(), st.text(max_size=3), st.sampled_from(["a", "b\0", "ß"])),
    "day": st.one_of(st.none(), st.dates().map(pd.Timestamp)),
}


def p_values(model, rows: pd.DataFrame) -> np.ndarray:
    "p-values of the rows of a data frame."
    return outlier_p_values(model, outlier_columns(rows, model.names), len(rows))


@st.composite
def tables(draw) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Training rows and other rows with the same columns, of any kinds."
    kinds = draw(st.lists(st.sampled_from([*COLUMNS, "flag"]), min_size=1, max_size=5))
    n = draw(st.integers(1, 25))
    data = {}
    for place, kind in enumerate(kinds):
        if kind == "flag":
            data[f"{kind}{place}"] = pd.Series(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
            continue
        values = draw(st.lists(COLUMNS[kind], min_size=n, max_size=n))
        types = {"text": "str", "day": "datetime64[us]"}
        data[f"{kind}{place}"] = pd.Series(values, dtype=types.get(kind, float))
    table = pd.DataFrame(data)
    cut = draw(st.integers(1, n))
    return table[:cut], table


@given(tables())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_table_has_p_values_that_do_not_depend_on_other_rows(tmp_path_factory, both):
    train, rows = both
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = fit_outlier_model(train)
    folder = tmp_path_factory.mktemp("model")
    (folder / OUTLIER_MODEL_FILE).write_bytes(content := outlier_model_content(model))
    again = read_outlier_model(folder)
    assert content == outlier_model_content(fit_outlier_model(train))
    columns = outlier_columns(rows, model.names)
    scores, p = outlier_scores(again, columns, len(rows)), p_values(again, rows)
    assert np.isfinite(scores).all() and (scores == outlier_scores(model, columns, len(rows))).all()
    assert ((p > 0) & (p <= 1)).all()
    alone = [outlier_scores(again, {name: values[[row]] for name, values in columns.items()}, 1)[0] for row in range(len(rows))]
    assert np.allclose(alone, scores, rtol=1e-5, atol=1e-5)
    many = {name: np.tile(values, 20) for name, values in columns.items()}
    assert np.allclose(outlier_scores(again, many, 20 * len(rows)), np.tile(scores, 20), rtol=1e-5, atol=1e-5)
    for names in unusual_columns(again, columns, len(rows)):
        assert len(names) == len(set(names)) <= 5 and set(names) <= set(train)


@pytest.mark.parametrize("value", [np.finfo(float).max, -np.finfo(float).max, 0.0, 1e-310])
def test_a_constant_column_is_typical_and_another_value_is_not(value):
    "The largest numbers too."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = fit_outlier_model(pd.DataFrame({"x": [value] * 40}))
    usual, other = outlier_scores(model, outlier_columns(pd.DataFrame({"x": [value, value / 2 + 1.0]}), model.names), 2)
    assert usual < 0.1 and other > usual + 1


@pytest.mark.parametrize("ties", [False, True], ids=["continuous", "ties"])
def test_a_share_alpha_of_rows_like_the_training_rows_has_p_up_to_alpha(ties):
    "The mean over many fits; with continuous scores the bound is reached."
    rng, found = np.random.default_rng(0), []
    for seed in range(60):
        x = rng.normal(size=(178, 3)) @ np.array([[1, 0.8, 0], [0, 0.6, 0], [0, 0, 1]])
        table = pd.DataFrame(x.round() if ties else x, columns=["a", "b", "c"])
        table["t"] = rng.choice(["u", "v", "w"], 178, p=[0.7, 0.25, 0.05])
        found.append(p_values(fit_outlier_model(table[:78], seed), table[78:]))
    shares = np.array([[(p <= alpha).mean() for alpha in (0.05, 0.1, 0.3)] for p in found])
    error = shares.std(axis=0) / np.sqrt(len(found))
    assert (shares.mean(axis=0) <= [0.05, 0.1, 0.3] + 3 * error).all()
    if not ties:  # 39 calibration rows: 1 / 40 is the smallest p-value
        assert (shares.mean(axis=0) >= [0.05, 0.1, 0.3] - 4 * error - 0.001).all()


def test_broken_correlations_are_found_better_than_by_an_isolation_forest():
    table = load_breast_cancer(as_frame=True).data
    rng, train, rows = np.random.default_rng(0), table[:400], table[400:]
    broken = rows.apply(lambda column: np.where(rng.random(len(column)) < 0.5, rng.permutation(column), column))
    model, forest = fit_outlier_model(train), IsolationForest(random_state=0).fit(train)

    def area(score) -> float:
        return roc_auc_score([0] * len(rows) + [1] * len(rows), [*score(rows), *score(broken)])

    ours = area(lambda part: outlier_scores(model, outlier_columns(part, model.names), len(part)))
    assert ours > 0.95 > area(lambda part: -forest.score_samples(part)) + 0.1


def test_unusual_values_are_named():
    rng = np.random.default_rng(0)
    x = rng.normal(50, 5, 3000)
    train = pd.DataFrame({"x": x, "y": 2 * x + rng.normal(size=3000), "count": rng.poisson(3, 3000), "always": 1.0,
                          "flag": rng.random(3000) < 0.5, "town": rng.choice(["Ulm", "Bonn"], 3000),
                          "at": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 365, 3000), unit="D")})  # fmt: skip
    model, typical = fit_outlier_model(train), train.iloc[[0]].assign(x=50.0, y=100.0, count=3)
    changes = [{"x": 50_000.0}, {"y": 80.0}, {"count": 80}, {"always": 2.0}, {"town": "Rome"}, {"at": pd.Timestamp("1900-01-01")}]
    rows = pd.concat([typical, typical.assign(at=pd.Timestamp("2025-06-01")), *(typical.assign(**each) for each in changes)])
    found = p_values(model, rows)
    names = unusual_columns(model, outlier_columns(rows, model.names), len(rows))
    assert (found[:2] > 0.1).all() and (found[2:] < 0.002).all()
    assert [each[0] for each in names[4:]] == ["count", "always", "town", "at"]
    assert names[2][0] == "x" and names[3][0] in ("x", "y")  # Either may be the wrong one
    assert all(len(each) == 1 for each in names[4:])
    empty = p_values(model, pd.DataFrame({"x": [None]}))
    assert empty[0] == found.min() == 1 / 1501


@pytest.mark.parametrize(("n_rows", "n_columns"), [(1, 3), (2, 3), (30, 5), (150, 800)])
def test_small_and_wide_tables(n_rows, n_columns):
    rng, start = np.random.default_rng(0), time.perf_counter()
    table = pd.DataFrame(rng.normal(size=(n_rows + 50, n_columns)), columns=[f"c{each}" for each in range(n_columns)])
    model = fit_outlier_model(table[:n_rows])
    far = table[-5:].assign(c0=1e6)
    assert len(model.calibration) == n_rows // 2 and time.perf_counter() - start < 15
    assert (p_values(model, far) == 1 / (n_rows // 2 + 1)).all()
    if n_rows > 2:
        assert p_values(model, table[n_rows:]).mean() > 0.25


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    "A release with an outlier model, and this model."
    model = fit_outlier_model(toy_rows(4000, seed=0))
    documents = {OUTLIER_MODEL_FILE: outlier_model_content(model)}
    return toy_release(tmp_path_factory.mktemp("outliers"), 1, documents=documents), model


def test_a_request_gets_what_it_wants_and_the_log_gets_p_values(release, tmp_path, monkeypatch):
    folder, model = release
    served = load_served_model(folder)
    rows = toy_rows(40, seed=5)
    name = model.numbers[0]
    rows.loc[3, name] = 1e9
    written: list[dict] = []
    insert = event_writer.add_event_batch
    monkeypatch.setattr(event_writer, "add_event_batch", lambda engine, batch: (written.extend(batch), insert(engine, batch)))
    service = PredictionService(served, PredictionLog(f"sqlite:///{tmp_path}/events.db", "run"))
    sent = rows.to_dict("records")
    plain = service.predict_now(sent)
    wanted = service.predict_now(sent, options=PredictOptions(outliers=True))
    service.close()
    assert plain.outputs == {} and plain.predictions.values.tobytes() == wanted.predictions.values.tobytes()
    outliers, expected = wanted.outputs["outliers"], p_values(model, rows)
    assert [each["p_value"] for each in outliers] == expected.tolist()
    assert outliers[3] == {"p_value": 1 / 2001, "columns": [name]}
    assert all(bool(each["columns"]) == (each["p_value"] <= 0.05) for each in outliers)
    logged = {event["row_id"]: event["outlier_p"] for event in written}
    assert [logged[row_id] for row_id in [*plain.row_ids, *wanted.row_ids]] == [*expected, *expected]
    count = 2 * int((expected <= 0.001).sum())
    assert f'mlcycle_outlier_rows_total{{version="1"}} {count}.0' in service.metrics.text().decode()


def test_a_failure_to_compute_p_values_loses_no_event(release, tmp_path, monkeypatch, capfd):
    folder, model = release
    served = replace(load_served_model(folder), outliers=replace(model, numbers=["no such column"]))
    written: list[dict] = []
    monkeypatch.setattr(event_writer, "add_event_batch", lambda engine, batch: written.extend(batch))
    service = PredictionService(served, PredictionLog(f"sqlite:///{tmp_path}/events.db", "run"))
    service.predict_now(toy_rows(3, seed=5).to_dict("records"))
    service.close()
    assert len(written) == 3 and "Outlier p-values were not computed" in capfd.readouterr().err


def test_protocols(release, tmp_path):
    folder, model = release
    name = model.numbers[0]
    rows = toy_rows(2, seed=5).assign(**{name: [0.1, 1e9]}).to_dict("records")
    with TestClient(create_app(folder)) as client:
        plain = client.post("/predict", json={"rows": rows}).json()
        assert client.post("/predict", json={"rows": rows, "outliers": "yes"}).status_code == 422
        body = client.post("/predict", json={"rows": [rows[0], {}, rows[1]], "outliers": True, "on_error": "skip"}).json()
        params = {"params": {"outliers": True}}
        objects = client.post("/invocations", json={"dataframe_records": rows} | params).json()["predictions"]
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert "outliers" not in plain and body["predictions"] == [plain["predictions"][0], None, plain["predictions"][1]]
    first, skipped, last = body["outliers"]
    assert first["p_value"] > 0.05 and skipped is None and last == {"p_value": 1 / 2001, "columns": [name]}
    assert [each["outliers"] for each in objects] == [first, last]
    assert schemas["PredictRequest"]["properties"]["outliers"]["default"] is False
    assert set(schemas["Outlier"]["properties"]) == {"p_value", "columns"}


def test_a_release_of_an_earlier_version_has_no_p_values(tmp_path, monkeypatch):
    written: list[dict] = []
    monkeypatch.setattr(event_writer, "add_event_batch", lambda engine, batch: written.extend(batch))
    with TestClient(create_app(toy_release(tmp_path, 1), f"sqlite:///{tmp_path}/events.db", "run")) as client:
        rows = toy_rows(2, seed=5).to_dict("records")
        response = client.post("/predict", json={"rows": rows, "outliers": True})
        assert response.status_code == 422 and "no outlier model" in response.json()["detail"]
        assert client.post("/predict", json={"rows": rows}).status_code == 200
    assert [event["table"] for event in written] == ["request_errors", "predictions", "predictions"]
    assert not any("outlier_p" in event for event in written)
