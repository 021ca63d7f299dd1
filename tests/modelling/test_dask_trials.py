"""Stage 4 on a cluster of Dask: the same leaderboard as in processes of this machine."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dask_clusters import worker_processes

from mlcycle.core.execution import ExecutionSettings
from mlcycle.errors import ExecutionError
from mlcycle.features.encode.pipeline import build_preprocessor
from mlcycle.features.select.feature_selector import FeatureSelector, selection_problem_fields
from mlcycle.modelling import stage
from mlcycle.modelling.candidates import CANDIDATES, candidate_model
from mlcycle.modelling.final_model import measure_learning_curve
from mlcycle.modelling.model_selection import compare_models
from mlcycle.modelling.settings import ModellingSettings
from mlcycle.modelling.stage import prepare_cross_validation_data
from mlcycle.modelling.trials import run_trial, shutdown_workers_on_exit
from mlcycle.outcomes import Problem

TYPES = {"a": "number", "b": "number", "word": "category"}
FACTS = {"decision": "-", "question": "-", "owner": "-", "source": "-", "source_sha256": "-", "target": "y", "rows": 100}
PROBLEM = Problem(
    **FACTS, task="binary", classes=["no", "yes"], positive="yes", criteria=[], metric="roc_auc", metrics=["roc_auc"]
)


@pytest.fixture(autouse=True)
def few_rows_are_many(monkeypatch):
    "A cluster is used for tables of any size."
    monkeypatch.setattr(stage, "MIN_ROWS_PARALLEL", 0)


def make_rows(rows=240) -> pd.DataFrame:
    "Numbers with gaps, words, and a target that depends on both."
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.normal(size=rows), "b": rng.normal(size=rows), "word": rng.choice(["u", "v", "w"], rows)})
    value = table.a + (table.word == "u") - 0.5 * table.b**2 + 0.5 * rng.normal(size=rows)
    return table.assign(y=np.where(value > 0, "yes", "no"))


def cv_on(execution: ExecutionSettings, folder: Path, selector=None, **settings):
    "A cross-validation of three folds."
    folder.mkdir()
    preprocessor = build_preprocessor(TYPES, classification=True)
    chosen = ModellingSettings(folds=3, jobs=1, **settings)
    rows = make_rows()
    return prepare_cross_validation_data(PROBLEM, preprocessor, list(TYPES), rows, chosen, folder, selector, execution=execution)


def compared(execution: ExecutionSettings, folder: Path, selector=None):
    "Leaderboard and learning curve of a small selection, without what is measured."
    settings = ModellingSettings(models=["linear", "lightgbm"], trials=3, repeats=2, folds=3, jobs=1, search_seconds=600)
    with shutdown_workers_on_exit(1):
        cv = cv_on(execution, folder, selector)
        assert cv.execution == execution
        selection = compare_models(cv, settings, folder / "study", make_rows(), len(make_rows()))
        curve = measure_learning_curve(selection, make_rows(), list(TYPES))
    board = [(line.model, line.fold_scores, line.parameters) for line in selection.leaderboard()]
    return board, [(point.train_size, point.score.value) for point in curve]


@pytest.mark.parametrize("selected", [False, True])
def test_the_leaderboard_is_that_of_this_machine(on_dask, tmp_path, selected):
    def selector():
        return FeatureSelector(selection_problem_fields(PROBLEM), TYPES, create=False, n_repeats=1) if selected else None

    here = compared(ExecutionSettings(), tmp_path / "here", selector())
    there = compared(on_dask, tmp_path / "there", selector())
    assert here == there and len(here[0]) == 7 and len(here[1]) == 3


@pytest.fixture
def own_candidates():
    "Candidates that a test registers are removed after it."
    before = dict(CANDIDATES)
    yield
    CANDIDATES.clear()
    CANDIDATES.update(before)


def test_a_candidate_that_raises_is_excluded(dask_cluster, on_dask, tmp_path, own_candidates):
    @candidate_model("broken")
    def make(task, seed):
        raise ArithmeticError("no such model")

    with shutdown_workers_on_exit(1):
        cv = cv_on(on_dask, tmp_path / "a")
        trial = run_trial(cv, CANDIDATES["broken"], {})
        assert (trial.status, trial.reason) == ("failed", "ArithmeticError: no such model")
        for process in worker_processes(dask_cluster):
            process.kill()  # With the encoded folds
        assert run_trial(cv, CANDIDATES["linear"], {}).status == "complete"


def test_the_loss_of_the_cluster_is_no_fault_of_the_candidate(tmp_path, monkeypatch, on_dask):
    cv = cv_on(on_dask, tmp_path / "a")

    def lost(*arguments):
        raise ExecutionError("lost")

    monkeypatch.setattr("mlcycle.core.execution.Task.result", lost)
    with shutdown_workers_on_exit(1), pytest.raises(ExecutionError):
        run_trial(cv, CANDIDATES["linear"], {})
