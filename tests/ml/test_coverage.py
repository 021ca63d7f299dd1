"""95 % intervals contain the true value in about 95 % of simulated samples; champions change by chance in few of them."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mlcycle.ml.bootstrap import bootstrap_intervals
from mlcycle.ml.predictions import Predictions
from mlcycle.outcomes import Problem
from mlcycle.validation.gates import GateInputs, evaluate_gates
from mlcycle.validation.promotion import decide_promotion

EMPTY = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256"], "-") | {"target": "y", "rows": 0}
BINARY = Problem(
    **EMPTY,
    task="binary",
    classes=["no", "yes"],
    positive="yes",
    metric="roc_auc",
    metrics=["roc_auc"],
    criteria=["roc_auc >= 0.6"],
)
NUMBERS = Problem(**EMPTY, task="regression", metric="rmse", metrics=["rmse"], criteria=[])
TRIALS = 400  # Coverage is measured to 1.1 percentage points


def labels(positive: np.ndarray) -> np.ndarray:
    return np.where(positive, "yes", "no")


def ranked(rng: np.random.Generator, positive: np.ndarray, area: float, common: np.ndarray | float = 0.0) -> Predictions:
    "Scores with a binormal ROC curve of a given area; `common` has a variance of 0.8 and is shared by several models."
    own = rng.normal(size=len(positive)) * (1 if isinstance(common, float) else np.sqrt(0.2))
    scores = stats.norm.cdf(stats.norm.ppf(area) * np.sqrt(2) * (positive - 0.5) + common + own)
    return Predictions(labels(scores > 0.5), scores)


def test_shares_and_the_area_under_the_roc_curve_are_covered():
    rng, covered = np.random.default_rng(0), []
    truth = [stats.norm.cdf(stats.norm.ppf(0.8) / np.sqrt(2))] * 2 + [0.8]  # Accuracy, recall, ROC AUC
    for seed in range(TRIALS):
        positive = rng.random(100) < 0.4
        scores = bootstrap_intervals(
            ["accuracy", "recall", "roc_auc"], BINARY, labels(positive), ranked(rng, positive, 0.8), seed=seed
        )
        covered.append([score.low <= true <= score.high for score, true in zip(scores, truth, strict=True)])
    assert ((np.mean(covered, axis=0) > 0.92) & (np.mean(covered, axis=0) < 0.98)).all(), np.mean(covered, axis=0)


@pytest.mark.parametrize("rows", [100, 400])
def test_the_root_mean_squared_error_is_covered(rows):
    rng, covered = np.random.default_rng(rows), []
    for seed in range(TRIALS):
        predicted = rng.normal(size=rows)
        score = bootstrap_intervals(["rmse"], NUMBERS, predicted + rng.normal(size=rows), Predictions(predicted), seed=seed)[0]
        covered.append(score.low <= 1 <= score.high)
    assert 0.92 < np.mean(covered) < 0.98


@pytest.mark.parametrize(("area", "rows", "low", "high"), [(0.77, 400, 0, 0.05), (0.82, 1_000, 0.8, 1)])
def test_a_better_model_becomes_champion_and_an_equal_one_rarely(area, rows, low, high):
    rng, moves = np.random.default_rng(0), []
    for seed in range(200):
        positive, common = rng.random(rows) < 0.3, np.sqrt(0.8) * rng.normal(size=rows)
        challenger, champion = (ranked(rng, positive, each, common) for each in (area, 0.77))
        models = {"predictions": challenger, "baseline": champion, "champion": champion}
        inputs = GateInputs(actual=pd.Series(labels(positive)), **models, n_resamples=100, seed=seed)
        moves.append(decide_promotion(BINARY, evaluate_gates(BINARY, inputs), inputs, 1, 2).moves)
    assert low <= np.mean(moves) <= high
