"""The final fit of stage 4 on all rows of a table in partitions, on a Dask cluster."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
from dask_clusters import worker_processes
from distributed import Client
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.pipeline import Pipeline

from mlcycle.core.execution import EXECUTOR_VARIABLE, SCHEDULER_VARIABLE
from mlcycle.core.workspace import Workspace
from mlcycle.features.encode.pipeline import build_preprocessor
from mlcycle.ml.meta_estimators import CalibratedClassifier, fit_with_sample_weight
from mlcycle.modelling import distributed_fit
from mlcycle.modelling.boosters import BOOSTERS
from mlcycle.modelling.distributed_fit import (
    describe_training_rows,
    find_lightgbm_pipeline,
    fit_large_table,
    fit_on_all_rows,
    make_row_encoder,
    replace_trees,
)
from mlcycle.modelling.settings import ModellingSettings
from mlcycle.modelling.stage import find_model
from mlcycle.modelling.weights import sample_weights
from mlcycle.outcomes import Dataset, FeaturePlan, FileRef, Problem
from mlcycle.stores.models.model_files import load_model, save_model
from mlcycle.stores.models.registry import load_registered_model
from mlcycle.stores.tables import datasets
from mlcycle.stores.tables.datasets import commit_table, read_table, write_table_file

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
    table["trust"] = rng.choice([1.0, 3.0], n)
    if task != "regression":
        bounds = [1.5] if task == "binary" else [1.0, 3.0]
        table["y"] = np.array(TASKS[task], dtype=object)[np.searchsorted(bounds, table.y)]
        table = table.astype({"y": "str"}).sort_values(["y", "day"], ignore_index=True)
    return table.rename_axis("row_id")


def store(rows, folder, size=700):
    "Write rows as a table in partitions."
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    files = [write_table_file(folder, "train", part, number, uuid4().hex) for number, part in enumerate(parts)]
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


def fit_here(small, encoder, sample):
    "The model with the preprocessing of the sample, and trees that this process trains on all rows."
    pipeline = find_lightgbm_pipeline(small)
    encoded = clone(pipeline[:-1]).fit_transform(sample[[*TYPES]], sample.y)
    shares = [*encoder.deal(encoded, sample), *(share for number in range(len(encoder.files)) for share in encoder(number))]
    X, y, weight = (pd.concat(parts) for parts in zip(*shares, strict=True))
    return replace_trees(small, clone(pipeline[-1]).fit(X, y, sample_weight=weight).booster_.model_to_string())


CASES = [
    ("binary", "native", ""),
    ("multiclass", "native", "balanced"),
    ("regression", "trees", "trust"),
    ("binary", "trees", ""),
]


@pytest.mark.parametrize(("task", "encoding", "weights"), CASES)
def test_the_model_is_that_of_one_process(on_dask, tmp_path, task, encoding, weights):
    rows, new = make_rows(task), make_rows(task, 4001)
    table, sample = store(rows, tmp_path), rows[::5]
    small, weight = fit(task, encoding, sample, weights)
    encoder = make_row_encoder(small, table, tmp_path, sample, [*TYPES], make_problem(task), weight, weights)
    whole = fit(task, encoding, rows, weights)[0] if encoding == "native" else fit_here(small, encoder, sample)
    before = scores(small, new)
    made = fit_on_all_rows(small, encoder, sample, on_dask, 120)
    assert np.array_equal(scores(small, new), before)
    there, here = scores(made, new), scores(whole, new)
    if task == "regression":
        assert np.abs(there - here).mean() < 0.1 * rows.y.std()
        assert abs(np.corrcoef(there, new.y)[0, 1] - np.corrcoef(here, new.y)[0, 1]) < 0.01
    else:
        assert np.abs(there - here).mean() < 0.03
        one, two = auc_of(new.y, there), auc_of(new.y, here)
        assert abs(one - two) < 0.01
    assert np.abs(before - here).mean() > np.abs(there - here).mean()
    booster = find_lightgbm_pipeline(made)[-1].booster_
    assert booster.num_trees() == find_lightgbm_pipeline(whole)[-1].booster_.num_trees()
    assert "127.0.0.1" not in booster.model_to_string()
    loaded = load_model(tmp_path / "m.skops", save_model(made, tmp_path / "m.skops"))
    assert np.array_equal(scores(loaded, new), there)


@pytest.fixture
def small_fit(tmp_path):
    "A model, its encoder and its sample; with many trees on all rows, and few on the sample."

    def make(trees=40):
        rows = make_rows("binary", 4000)
        table, sample = store(rows, tmp_path), rows[::4]
        model, _ = fit("binary", "native", sample, n_estimators=2)
        find_lightgbm_pipeline(model)[-1].set_params(n_estimators=trees)
        return model, make_row_encoder(model, table, tmp_path, sample, [*TYPES], make_problem("binary")), sample

    return make


def fit_all(made, settings, seconds=100.0, **fields):
    "Model and reason of a distributed fit."
    model, encoder, sample = made
    fitted, _, reason = fit_large_table(model, {"p95": 0.0}, encoder, sample, make_problem("binary", **fields), settings, seconds)
    return fitted, reason


def kill_during_training(cluster, times):
    "Kill a worker as soon as it trains, so many times; the number of kills."
    killed = 0
    with Client(cluster.address, set_as_default=False) as client:
        until = time.monotonic() + 100
        while killed < times and time.monotonic() < until:
            if any("_train_part" in str(key) for keys in client.processing().values() for key in keys):
                time.sleep(0.3)
                worker_processes(cluster)[0].kill()
                killed += 1
                time.sleep(3)
            time.sleep(0.05)
    return killed


@pytest.mark.parametrize("times", [1, 2])
def test_a_killed_worker_costs_an_attempt(dask_cluster, on_dask, small_fit, times):
    made = small_fit(4000)
    with ThreadPoolExecutor() as pool:
        killed = pool.submit(kill_during_training, dask_cluster, times)
        model, reason = fit_all(made, on_dask)
        assert killed.result() == times
    if times == 1:
        assert not reason and find_lightgbm_pipeline(model)[-1].booster_.num_trees() == 4000
    else:
        assert model is made[0] and reason.count("A Dask worker was lost") == 2
    assert not fit_all(small_fit(), on_dask)[1], "the cluster can be used again"


def test_a_fit_that_takes_too_long_is_given_up(on_dask, small_fit):
    made = small_fit(100_000)
    began = time.monotonic()
    model, reason = fit_all(made, on_dask, 2.0)
    assert model is made[0] and reason.count("longer than its time limit of 2 s") == 2 and time.monotonic() - began < 60
    assert not fit_all(small_fit(), on_dask)[1], "workers that trained are started again"


def test_two_fits_wait_for_each_other(on_dask, small_fit):
    made = small_fit()
    with ThreadPoolExecutor() as pool:
        one, two = [pool.submit(fit_all, made, on_dask) for _ in range(2)]
        assert one.result()[1] == two.result()[1] == ""


def test_what_cannot_be_fitted_keeps_the_model_of_the_sample(on_dask, small_fit, tmp_path, monkeypatch):
    model, encoder, sample = small_fit()
    few = np.array([*encoder.classes[:1], "other"])
    for other, settings, fields, why in (
        (replace(encoder, classes=few), on_dask, {}, "The class 'yes' does not occur among the rows of the sample"),
        (replace(encoder, folder=tmp_path / "elsewhere"), on_dask, {}, "A worker cannot read the table"),
        (encoder, on_dask, {"latency_budget_ms": 1e-6}, "the budget is 1e-06 ms"),
    ):
        kept, reason = fit_all((model, other, sample), settings, **fields)
        assert kept is model and why in reason
    monkeypatch.setattr(distributed_fit, "fits_workers", lambda *_: False)
    assert "MB of encoded rows" in fit_all((model, encoder, sample), on_dask)[1]


@pytest.mark.parametrize("executor", ["dask", "local"])
def test_the_outcome_has_the_rows_of_each_step(dask_cluster, tmp_path, monkeypatch, executor):
    monkeypatch.setenv(EXECUTOR_VARIABLE, executor)
    monkeypatch.setenv(SCHEDULER_VARIABLE, dask_cluster.address)
    monkeypatch.setattr(datasets, "MAX_CELLS_READ", 8000)
    workspace, rows = Workspace(tmp_path), make_rows("binary")
    table = store(rows, workspace.tables)
    sample = read_table(workspace.tables, table)
    assert len(sample) == 1200
    pipeline = build_preprocessor(TYPES)
    saved = FileRef(path="plan.skops", sha256=save_model(pipeline, workspace.root / "plan.skops"))
    plan = FeaturePlan(decision="-", input_columns=[*TYPES], features=[], dropped_columns={}, pipeline=saved)
    dataset = Dataset(decision="-", rows_in=6000, rows_clean=6000, rows_set_aside=0, ledger=[], split_description="-",
                      contract=FileRef(path="-", sha256="-"), tables={"train": table})  # fmt: skip
    settings = ModellingSettings(models=["lightgbm"], folds=3, repeats=1, trials=1, ensemble=False, learning_curve=False, jobs=1,
                                 search_rows=900)  # fmt: skip
    candidate, _ = find_model(make_problem("binary"), dataset, plan, workspace, settings)
    text = describe_training_rows(candidate)
    assert (candidate.search_rows, candidate.preprocessing_rows) == (900, 1200)
    if executor == "dask":
        assert candidate.train_rows == 6000 and not candidate.sample_reason
        assert "fitted on 1,200, an even sample of the table, and its trees on all 6,000 rows, on a Dask cluster" in text
    else:
        assert candidate.train_rows == 1200 and "executor = dask" in candidate.sample_reason
        assert "fitted on 1,200 of 6,000 rows, an even sample of the table: a cluster fits it on all rows" in text
    booster = find_lightgbm_pipeline(load_registered_model(candidate.model, workspace))[-1].booster_
    count = booster.dump_model(num_iteration=1)["tree_info"][0]["tree_structure"]["internal_count"]
    assert 0.8 < count / candidate.train_rows <= 1, "with subsample, a tree does not see all rows"
