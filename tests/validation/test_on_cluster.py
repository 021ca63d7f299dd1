"""Parts of the validation are computed on a cluster, with the same results."""

import numpy as np
import pandas as pd
from dask_clusters import worker_processes
from lightgbm import LGBMClassifier
from sklearn.compose import make_column_transformer
from sklearn.pipeline import make_pipeline

from mlcycle.core import execution
from mlcycle.ml.predictions import Predictions, predict
from mlcycle.outcomes import Candidate, LeaderboardEntry, ModelRef, Problem, Score
from mlcycle.validation.gates import GateInputs
from mlcycle.validation.sections import assess_sections

PROBLEM = Problem(
    **dict.fromkeys(["decision", "question", "owner", "source", "source_sha256"], "-"),
    target="y",
    criteria=[],
    rows=900,
    task="binary",
    classes=["no", "yes"],
    positive="yes",
    metric="roc_auc",
    metrics=["roc_auc"],
)
SCORE = Score(metric="roc_auc", value=0.7, low=0.6, high=0.8)
BEST = LeaderboardEntry(model="lightgbm", score=SCORE, fold_scores=[0.7, 0.7], fit_seconds=0, parameters={})
CANDIDATE = Candidate(
    decision="-",
    model=ModelRef(name="-", version=1, run_id="-", sha256="-"),
    winner="lightgbm",
    leaderboard=[BEST],
    n_trials=0,
    search_rows=600,
    train_rows=600,
)


def test_sections_are_those_of_this_machine_while_a_worker_is_killed(on_dask, dask_cluster, monkeypatch):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(rng.normal(size=(900, 4)), columns=list("abcd"))
    rows["y"] = np.where(rows.a + rng.normal(size=900) > 0, "yes", "no")
    train, holdout = rows[:600], rows[600:]
    model = make_pipeline(make_column_transformer(("passthrough", list("abcd"))), LGBMClassifier(n_estimators=9, verbose=-1))
    model.fit(train[list("abcd")], train.y)
    constant = Predictions(np.full(300, "no"), np.full(300, 0.4))
    predictions = predict(model, holdout, PROBLEM)
    inputs = GateInputs(actual=holdout.y, predictions=predictions, baseline=constant, baseline_name="constant", rows=holdout)

    def assess():
        names = ["generalization", "robustness", "explanations"]
        scores = dict.fromkeys(["train", "validation", "holdout"], SCORE)
        return assess_sections(names, PROBLEM, CANDIDATE, model, train, inputs, scores)

    here = assess()
    monkeypatch.setenv("MLCYCLE_EXECUTOR", "dask")
    monkeypatch.setenv("MLCYCLE_SCHEDULER", on_dask.scheduler)
    functions, submit = [], execution.Task.on

    def submit_and_kill(task, client):
        functions.append(task.function.__name__)
        if len(functions) == 5:
            worker_processes(dask_cluster)[0].kill()
        return submit(task, client)

    monkeypatch.setattr(execution.Task, "on", submit_and_kill)
    assert assess() == here
    expected = {"score_adversarial_fold", "predict_with_seed", "score_single_column", "measure_batch", "predict_changes"}
    assert expected == set(functions)
