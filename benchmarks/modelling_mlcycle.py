"""mlcycle as a competitor: stages 3 and 4 on the rows of a fold, without the registry, since peers have none to fill."""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from mlcycle.core.workspace import Workspace
from mlcycle.features import stage as features
from mlcycle.ml.predictions import predict
from mlcycle.modelling.final_model import fit_first_acceptable_model
from mlcycle.modelling.model_selection import compare_models
from mlcycle.modelling.settings import ModellingSettings
from mlcycle.modelling.stage import prepare_cross_validation_data
from mlcycle.outcomes import Dataset, FileRef, Problem
from mlcycle.stores.models.model_files import load_model
from mlcycle.stores.tables.datasets import write_table

LEAST = 5.0  # Seconds left to the search when stage 3 has used up nearly all
TAIL = 0.15  # Of the seconds: for the ensemble and the last fit


def state_problem(train: pd.DataFrame, target: str, task: str, metric: str, when: str = "") -> Problem:
    """The question, as stage 1 would have said it."""
    classes = [] if task == "regression" else sorted(train[target].unique().tolist())
    return Problem(
        decision="A benchmark.",
        question=f"What is {target}?",
        owner="benchmark",
        source="benchmark.parquet",
        source_sha256="",
        target=target,
        task=task,
        classes=classes,
        positive=classes[1] if task == "binary" else None,
        metric=metric,
        metrics=[metric],
        criteria=[],
        time=when,
        rows=len(train),
    )


def state_dataset(train: pd.DataFrame, workspace: Workspace) -> Dataset:
    """The rows, as stage 2 would have stored them."""
    table = write_table(workspace.tables, "train", train.rename_axis("row_id"))
    many = {"rows_in": len(train), "rows_clean": len(train), "rows_set_aside": 0}
    nothing = {"ledger": [], "contract": FileRef(path="", sha256=""), "split_description": "", "decision": "A benchmark."}
    return Dataset(**many, **nothing, tables={"train": table})


def fit_mlcycle(
    train: pd.DataFrame, target: str, task: str, metric: str, seconds: float, seed: int, when: str = ""
) -> tuple[Callable[[pd.DataFrame], tuple[object, list]], list[str]]:
    """Plan features and find a model, within the seconds; predictions come with their classes, winners with their scores."""
    started, workspace = time.perf_counter(), Workspace(Path.cwd())
    problem, dataset = state_problem(train, target, task, metric, when), state_dataset(train, workspace)
    plan = features.plan_features(problem, dataset, workspace, features.FeatureSettings(seed=seed, selection_rows=5_000))
    left = max(LEAST, seconds * (1 - TAIL) - (time.perf_counter() - started))
    settings = ModellingSettings(
        folds=5 if len(train) < 10_000 else 3,
        repeats=4,
        trials=10_000,
        search_seconds=left,
        search_rows=40_000,
        selection_rule="best",
        calibrate=False,
        learning_curve=False,
        seed=seed,
        jobs=1,
    )
    pipeline = load_model(workspace.root / plan.pipeline.path, plan.pipeline.sha256)
    with TemporaryDirectory() as folder:
        cv = prepare_cross_validation_data(problem, pipeline, plan.input_columns, train, settings, Path(folder))
        selection = compare_models(cv, settings, workspace.root / "study", train, len(train))
        model, _ = fit_first_acceptable_model(selection, train[[*plan.input_columns, target]], None, settings.calibrate)

    def answer(rows: pd.DataFrame) -> tuple[object, list]:
        """Numbers of a regression, otherwise a probability for each class."""
        predictions = predict(model, rows[plan.input_columns], problem)
        if task == "regression":
            return predictions.labels, []
        if task == "binary":  # Of the positive class
            return pd.DataFrame({0: 1 - predictions.scores, 1: predictions.scores}).to_numpy(), [0, 1]
        return predictions.scores, problem.classes

    tried = dict.fromkeys(trial.model for trial in selection.search.complete_trials())
    return answer, [f"best: {selection.chosen.name}", *tried]
