"""One competitor, one table, one fold, in a process of its own: fit within the seconds, predict, say what it took."""

import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

PACKAGES = ["autogluon.tabular", "catboost", "flaml", "lightgbm", "mlcycle", "pandas", "scikit-learn", "xgboost"]
Predict = Callable[[pd.DataFrame], pd.DataFrame]  # A probability for each class, or one column of numbers
Fitted = tuple[Predict, list[str]]  # And the learners that were active


def table_of(predicted: np.ndarray, classes: list | None) -> pd.DataFrame:
    """Predictions with their classes' names as columns."""
    return pd.DataFrame(predicted, columns=["prediction"] if classes is None else [str(one) for one in classes])


def fit_lightgbm(train: pd.DataFrame, job: dict) -> Fitted:
    """LightGBM as it comes: text as categories, dates as seconds, everything else as it is."""
    import lightgbm

    categories = {name: pd.CategoricalDtype(values.dropna().unique()) for name, values in train.items() if is_text(values)}
    dates = train.select_dtypes("datetime").columns

    def numbers(rows: pd.DataFrame) -> pd.DataFrame:
        """What LightGBM reads; it allows no special characters in names."""
        rows = rows[features].astype({name: kind for name, kind in categories.items() if name in features})
        rows = rows.assign(**{name: (rows[name] - pd.Timestamp(0)) / pd.Timedelta(seconds=1) for name in dates})
        return rows.set_axis([f"column {at}" for at in range(rows.shape[1])], axis=1)

    features = [name for name in train if name != job["target"]]
    kind = lightgbm.LGBMRegressor if job["task"] == "regression" else lightgbm.LGBMClassifier
    model = kind(n_jobs=1, random_state=job["seed"], verbose=-1).fit(numbers(train), train[job["target"]])
    if job["task"] == "regression":
        return lambda rows: table_of(model.predict(numbers(rows)), None), ["LightGBM"]
    return lambda rows: table_of(model.predict_proba(numbers(rows)), model.classes_), ["LightGBM"]


def is_text(values: pd.Series) -> bool:
    """Is it a column of strings?"""
    return pd.api.types.is_string_dtype(values) or values.dtype == object


def fit_flaml(train: pd.DataFrame, job: dict) -> Fitted:
    """FLAML with everything at its default but the budget."""
    from flaml import AutoML

    task = "regression" if job["task"] == "regression" else "classification"
    model, features = AutoML(), train.drop(columns=job["target"])
    options = {"metric": job["metric"], "time_budget": job["seconds"], "seed": job["seed"], "n_jobs": 1, "verbose": 0}
    if job["time"]:  # The rows are in its order, and FLAML can be told so
        options["split_type"] = "time"
    model.fit(features, train[job["target"]], task=task, **options)
    learners = [f"best: {model.best_estimator}", *model.best_config_per_estimator]
    if task == "regression":
        return lambda rows: table_of(model.predict(rows), None), learners
    return lambda rows: table_of(model.predict_proba(rows), model.classes_), learners


def fit_autogluon(train: pd.DataFrame, job: dict, presets: str) -> Fitted:
    """AutoGluon with a preset; it keeps its models in a folder of its own."""
    from autogluon.tabular import TabularPredictor

    metric = {"rmse": "root_mean_squared_error"}.get(job["metric"], job["metric"])

    def fitted(**more: bool) -> TabularPredictor:
        """A predictor with the whole budget."""
        folder = tempfile.mkdtemp(dir=".")
        predictor = TabularPredictor(job["target"], problem_type=job["task"], eval_metric=metric, path=folder)
        return predictor.fit(train, presets=presets, time_limit=job["seconds"], num_cpus=1, num_gpus=0, **more)

    try:
        predictor, how = fitted(), []
    except (AssertionError, RuntimeError):  # A quarter of few seconds can be too little for its trial of stacking
        predictor, how = fitted(dynamic_stacking=False), ["without dynamic stacking, after that had failed"]
    learners = [f"best: {predictor.model_best}", *predictor.model_names(), *how]
    if job["task"] == "regression":
        return lambda rows: table_of(predictor.predict(rows).to_numpy(), None), learners
    return lambda rows: predictor.predict_proba(rows).rename(columns=str), learners


def fit_ours(train: pd.DataFrame, job: dict) -> Fitted:
    """Stages 3 and 4 on rows that need no preparation."""
    from modelling_mlcycle import fit_mlcycle

    told = [job[name] for name in ("target", "task", "metric", "seconds", "seed", "time")]
    answer, learners = fit_mlcycle(train, *told)

    def predict(rows: pd.DataFrame) -> pd.DataFrame:
        """As the others answer."""
        said, classes = answer(rows)
        return table_of(said, classes or None)

    return predict, learners


COMPETITORS: dict[str, Callable[[pd.DataFrame, dict], Fitted]] = {
    "mlcycle": fit_ours,
    "lightgbm": fit_lightgbm,
    "flaml": fit_flaml,
    "autogluon_medium": lambda train, job: fit_autogluon(train, job, "medium_quality"),
    "autogluon_best": lambda train, job: fit_autogluon(train, job, "best_quality"),
}


IMPORTS = {
    "mlcycle": "modelling_mlcycle",
    "lightgbm": "lightgbm.sklearn",
    "flaml": "flaml.automl",
    "autogluon_medium": "autogluon.tabular",
    "autogluon_best": "autogluon.tabular",
}  # Before the clock runs


def installed() -> dict[str, str]:
    """Versions of what may be at work here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_seconds() -> float:
    """Of this process and of the children it has waited for."""
    return sum(os.times()[:4])


def read(files: list[str]) -> pd.DataFrame:
    """Parts of a table, one after the other, as one piece."""
    return pa.concat_tables([pq.read_table(file) for file in files]).combine_chunks().to_pandas()


def work(job: dict) -> dict:
    """Fit and predict; the clock runs while it fits, not while it imports and reads."""
    importlib.import_module(IMPORTS[job["competitor"]])
    train, ask = read(job["learn"]), read(job["ask"]).drop(columns=job["target"])
    started, cpu = time.perf_counter(), cpu_seconds()
    predict, learners = COMPETITORS[job["competitor"]](train, job)
    used, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    started = time.perf_counter()
    predict(ask).to_parquet(job["predictions"])
    took = {"fit_seconds": round(used, 2), "fit_cpu_seconds": round(cpu, 2)}
    took["predict_seconds"] = round(time.perf_counter() - started, 3)
    return took | {"learners": learners, "versions": installed()}


if __name__ == "__main__":
    told = Path(sys.argv[1])
    told.with_name("took.json").write_text(json.dumps(work(json.loads(told.read_text()))))
