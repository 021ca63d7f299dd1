"""Resamples of a large table are drawn on a cluster, with the same intervals."""

import numpy as np
import pytest

from mlcycle.ml import bootstrap
from mlcycle.ml.bootstrap import bootstrap_difference, bootstrap_intervals
from mlcycle.ml.predictions import Predictions
from mlcycle.ml.resampling import Resampling
from mlcycle.outcomes import Problem

FACTS = {"decision": "-", "question": "-", "owner": "-", "source": "-", "source_sha256": "-", "target": "y", "rows": 100}
PROBLEM = Problem(
    **FACTS, task="binary", classes=["no", "yes"], positive="yes", criteria=[], metric="roc_auc", metrics=["roc_auc", "f1"]
)


@pytest.mark.parametrize("unit", ["row", "entity"])
def test_intervals_are_those_of_this_machine(on_dask, monkeypatch, unit):
    monkeypatch.setattr(bootstrap, "MIN_CELLS_CLUSTER", 0)
    monkeypatch.setattr(bootstrap, "MAX_CELLS", 8_000)  # Several parts
    rng = np.random.default_rng(0)
    scores, others = rng.random((2, 2_000))
    actual = np.where(rng.random(2_000) < scores, "yes", "no")
    ours, theirs = (Predictions(np.where(each > 0.5, "yes", "no"), each) for each in (scores, others))
    resampling = Resampling() if unit == "row" else Resampling("entity", np.arange(2_000) // 5)

    def intervals():
        options = {"n_resamples": 50, "resampling": resampling}
        found = bootstrap_intervals(["roc_auc", "f1"], PROBLEM, actual, ours, **options)
        return [*found, bootstrap_difference("roc_auc", PROBLEM, actual, ours, theirs, **options)]

    here = intervals()
    calls, map_tasks = [], bootstrap.map_tasks
    monkeypatch.setattr(bootstrap, "map_tasks", lambda *words, **more: calls.append(words[2]) or map_tasks(*words, **more))
    monkeypatch.setenv("MLCYCLE_EXECUTOR", "dask")
    monkeypatch.setenv("MLCYCLE_SCHEDULER", on_dask.scheduler)
    assert intervals() == here and here[0].low < here[0].value < here[0].high
    assert [each.scheduler for each in calls] == [on_dask.scheduler] * 3
