"""The final fit of stage 4 on all rows of a table in partitions, on a Dask cluster."""

import threading
import time

import numpy as np
import pandas as pd
import pytest
from dask_clusters import worker_processes
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.pipeline import Pipeline

from mlcycle.features.encode.pipeline import build_preprocessor
from mlcycle.ml.meta_estimators import CalibratedClassifier, fit_with_sample_weight
from mlcycle.modelling.boosters import BOOSTERS
from mlcycle.modelling.distributed_fit import (
    find_lightgbm_pipeline,
    fit_large_table,
    fit_on_all_rows,
    make_row_encoder,
)
from mlcycle.modelling.weights import sample_weights
from mlcycle.outcomes import Problem
from mlcycle.stores.models.model_files import load_model, save_model
from mlcycle.stores.tables.datasets import commit_table, write_table_file

LIGHTGBM = next(model for model in BOOSTERS if model.name == "lightgbm")
TYPES = {"day": "number", "size": "number", "word": "category", "town": "many categories"}
TASKS = {"binary": ["no", "yes"], "multiclass": ["a", "b", "c"], "regression": []}


def make_problem(task, **fields) -> Problem:
    "A question of some task."
    metric = "rmse" if task == "regression" else "log_loss"
    same = dict.fromkeys(("decision", "question", "owner", "source", "source_sha256"), "-")
    given = {"target": "y", "task": task, "classes": TASKS[task], "rows": 100, "metric": metric, "metrics": [metric]}
    return Problem(**same | given | {"criteria": [], "positive": "yes" if task == "binary" else None} | fields)


def make_rows(task, n=6000) -> pd.DataFrame:
    "Rows that are sorted by class and time, with words that occur at some times only."
    rng = np.random.default_rng(0)
    day = np.arange(n) / n
    word = np.where(day < 0.5, rng.choice(["u", "v"], n), rng.choice(["w", "x", "y"], n))
    table = pd.DataFrame(
        {"day": day, "size": rng.normal(size=n), "word": word, "town": rng.choice([f"t{x}" for x in range(90)], n)}
    )
    value = table["size"] + table.word.map({"u": 0, "v": 1, "w": 2, "x": -1, "y": 0}) + table.town.str[1:].astype(int) % 7 / 3
    table["y"] = value + 2 * np.sin(5 * day) + rng.normal(size=n)
    table["cost"] = rng.choice([1.0, 3.0], n)
    if task != "regression":
        bounds = [1.5] if task == "binary" else [1.0, 3.0]
        table["y"] = np.array(TASKS[task], dtype=object)[np.searchsorted(bounds, table.y)]
        table = table.astype({"y": "str"}).sort_values(["y", "day"], ignore_index=True)
    return table.rename_axis("row_id")


def store(rows, folder, size=700):
    "Write rows as a table in partitions."
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    files = [write_table_file(folder, "train", part, number, "t") for number, part in enumerate(parts)]
    return commit_table(folder, "train", files, {name: str(kind) for name, kind in rows.dtypes.items()})


def fit(task, encoding, rows, weights="", **parameters):
    "A model with calibration and threshold, fitted on some rows."
    preprocessor = build_preprocessor(TYPES, classification=task != "regression", encoding=encoding)
    given = {"n_estimators": 60, "learning_rate": 0.08, "subsample": 0.9, "num_leaves": 15} | parameters
    model = Pipeline([*preprocessor.steps, ("model", LIGHTGBM.make_estimator(task, 0, given))])
    if task == "multiclass":
        model = CalibratedClassifier(model, 0.9, [0.0, 0.1, -0.1])
    weight = sample_weights(make_problem(task), rows, weights)
    model = fit_with_sample_weight(model, rows[[*TYPES]], rows.y, weight)
    if task == "binary":
        model = FixedThresholdClassifier(Pipeline(model.steps), threshold=0.4, pos_label="yes", response_method="predict_proba")
        model = fit_with_sample_weight(model, rows[[*TYPES]], rows.y, None) if weight is None else model
    return model, weight


def scores(model, rows):
    "Probabilities, or predicted numbers."
    X = rows[[*TYPES]]
    return model.predict_proba(X) if hasattr(model, "predict_proba") else model.predict(X)


def auc_of(actual, probabilities):
    "Area under the ROC curve; of several classes, the mean."
    if probabilities.shape[1] == 2:
        return roc_auc_score(actual == "yes", probabilities[:, 1])
    return roc_auc_score(actual, probabilities, multi_class="ovr")


@pytest.mark.parametrize(("task", "encoding", "weights"), [("binary", "native", ""), ("multiclass", "native", "balanced"),
                                                           ("regression", "trees", "cost"), ("binary", "trees", "")])  # fmt: skip
def test_the_model_is_that_of_one_process(on_dask, tmp_path, task, encoding, weights):
    rows, new = make_rows(task), make_rows(task, 4001)
    table, sample = store(rows, tmp_path), rows[::5]
    small, weight = fit(task, encoding, sample, weights)
    whole, _ = fit(task, encoding, rows, weights)
    encoder = make_row_encoder(small, table, tmp_path, sample, [*TYPES], make_problem(task), weight, weights)
    before = scores(small, new)
    made = fit_on_all_rows(small, encoder, sample, on_dask, 120)
    assert np.array_equal(scores(small, new), before)
    there, here = scores(made, new), scores(whole, new)
    if task == "regression":
        assert np.abs(there - here).mean() < 0.1 * rows.y.std()
        assert abs(np.corrcoef(there, new.y)[0, 1] - np.corrcoef(here, new.y)[0, 1]) < 0.01
    else:
        assert np.abs(there - here).mean() < 0.03
        auc = partial(auc_of, new.y)
        one, two = (
            roc_auc_score(actual, each if task == "multiclass" else each[:, 1], multi_class="ovr") for each in (there, here)
        )
        assert abs(one - two) < 0.01
    assert np.abs(before - here).mean() > np.abs(there - here).mean()
    booster = find_lightgbm_pipeline(made)[-1].booster_
    assert booster.num_trees() == find_lightgbm_pipeline(whole)[-1].booster_.num_trees()
    assert "127.0.0.1" not in booster.model_to_string()
    loaded = load_model(tmp_path / "m.skops", save_model(made, tmp_path / "m.skops"))
    assert np.array_equal(scores(loaded, new), there)


@pytest.fixture
def small_fit(tmp_path):
    "A model with many trees, its encoder and its sample."

    def make(trees=40, n=4000):
        rows = make_rows("binary", n)
        table, sample = store(rows, tmp_path), rows[::4]
        model, _ = fit("binary", "native", sample, n_estimators=2)
        find_lightgbm_pipeline(model)[-1].set_params(n_estimators=trees)
        return model, make_row_encoder(model, table, tmp_path, sample, [*TYPES], make_problem("binary")), sample

    return make


def training_starts(cluster_client, seconds=60):
    "Wait until workers train."
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if any("_train_part" in str(key) for keys in cluster_client.processing().values() for key in keys):
            return
        time.sleep(0.05)
    raise AssertionError("no worker trains")


@pytest.mark.parametrize("times", [1, 2])
def test_a_killed_worker_costs_an_attempt(dask_cluster, on_dask, small_fit, times):
    from distributed import Client

    model, encoder, sample = small_fit(trees=4000)
    killed = []

    def kill():
        with Client(dask_cluster.address, set_as_default=False) as client:
            for _ in range(times):
                training_starts(client)
                time.sleep(0.3)
                process = worker_processes(dask_cluster)[0]
                process.kill()
                killed.append(process.pid)
                time.sleep(5)

    thread = threading.Thread(target=kill)
    thread.start()
    made, _, reason = fit_large_table(model, {"p95": 0.0}, encoder, sample, make_problem("binary"), on_dask, 100)
    thread.join()
    assert len(killed) == times
    if times == 1:
        assert not reason and find_lightgbm_pipeline(made)[-1].booster_.num_trees() == 4000
    else:
        assert made is model and reason.count("A Dask worker was lost") == 2
        again, _, reason = fit_large_table(*small_fit()[:1], {}, *small_fit()[1:], make_problem("binary"), on_dask, 100)
        assert not reason, "the cluster can be used again"
