"""The model that stage 4 chose beside scikit-learn's gradient boosting as it comes, on the same rows."""

from collections.abc import Callable

import pandas as pd
from comparison import Comparison
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OrdinalEncoder

from mlcycle.core.runs import Run
from mlcycle.ml.bootstrap import bootstrap_difference
from mlcycle.ml.metrics import compute_score
from mlcycle.ml.predictions import predict
from mlcycle.stores.models.registry import load_registered_model, open_experiment
from mlcycle.stores.tables.datasets import read_table
from mlcycle.stores.tables.holdout import read_holdout

PEER = "HistGradientBoosting, default"


def to_seconds(times: pd.DataFrame) -> pd.DataFrame:
    """Time stamps as numbers; a missing one stays missing."""
    return (times - pd.Timestamp(0)) / pd.Timedelta(seconds=1)


def plain_boosting() -> Pipeline:
    """Default settings on columns turned into numbers the plainest way."""
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    numbers = make_column_transformer(
        (codes, make_column_selector(dtype_include="str")),
        (FunctionTransformer(to_seconds), make_column_selector(dtype_include="datetime")),
        remainder="passthrough",
    )
    return make_pipeline(numbers, HistGradientBoostingClassifier(random_state=0))


def compare(run: Run, step: Callable[[str], None]) -> list[Comparison]:
    """ROC-AUC of both on the holdout."""
    problem, columns, model = run.problem, run.plan.input_columns, run.candidate.model
    train = read_table(run.workspace.tables, run.dataset.tables["train"])
    holdout = read_holdout(run.workspace, run.dataset.tables["holdout"], reason="a benchmark of the model")
    step("fit the peer")
    peer = plain_boosting().fit(train[columns], train[problem.target])
    open_experiment(run.workspace.tracking_uri, run.workspace.artifacts, model.name)
    truth = holdout[problem.target].to_numpy()
    said = [predict(fitted, holdout[columns], problem) for fitted in (load_registered_model(model), peer)]
    step("resample")
    better = bootstrap_difference("roc_auc", problem, truth, *said)
    note = f"{run.candidate.winner}: better by {better.value:+.3f}, 95 %: {better.low:+.3f} to {better.high:+.3f}"
    scores = [[compute_score("roc_auc", problem, truth, one)] for one in said]
    return [Comparison(f"ROC-AUC, {len(holdout)} holdout rows", PEER, *scores, better="higher", note=note)]
