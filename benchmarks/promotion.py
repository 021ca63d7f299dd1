"""How often a challenger becomes champion, by simulation: one as good as the champion, a better one, and a worse one.

`python benchmarks/promotion.py` prints a table. The scores of both models have binormal ROC curves and a correlation of 0.8; a
trial draws new rows, evaluates the gates, and decides as stage 5 does.
"""

import numpy as np
import pandas as pd
import typer
from scipy import stats
from scipy.special import expit

from mlcycle.ml.predictions import Predictions
from mlcycle.outcomes import Problem
from mlcycle.validation.gates import GateInputs, evaluate_gates
from mlcycle.validation.promotion import decide_promotion

EMPTY = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256"], "-") | {"rows": 0}
PROBLEM = Problem(
    **EMPTY,
    target="y",
    task="binary",
    classes=["no", "yes"],
    positive="yes",
    metric="roc_auc",
    metrics=["roc_auc"],
    criteria=["roc_auc >= 0.6"],
)


def draw_models(rng: np.random.Generator, rows: int, areas: tuple[float, ...]) -> tuple[pd.Series, list[Predictions]]:
    """The target of new rows, and the predictions of models with given areas under the ROC curve."""
    positive, common = rng.random(rows) < 0.3, rng.normal(size=rows)
    models = []
    for area in areas:
        noise = np.sqrt(0.8) * common + np.sqrt(0.2) * rng.normal(size=rows)
        scores = expit(stats.norm.ppf(area) * np.sqrt(2) * positive + noise - 1)
        models.append(Predictions(np.where(scores > 0.5, "yes", "no"), scores))
    return pd.Series(np.where(positive, "yes", "no")), models


def promotion_rate(area: float, champion: float, rows: int, *criteria: str, trials: int = 200, seed: int = 0) -> float:
    """The share of trials in which a challenger becomes champion."""
    rng, moves = np.random.default_rng(seed), []
    problem = PROBLEM.model_copy(update={"criteria": [*PROBLEM.criteria, *criteria]})
    for trial in range(trials):
        actual, (challenger, old) = draw_models(rng, rows, (area, champion))
        inputs = GateInputs(actual=actual, predictions=challenger, baseline=old, champion=old, seed=trial)
        moves.append(decide_promotion(problem, evaluate_gates(problem, inputs), inputs, 1, 2).moves)
    return float(np.mean(moves))


def main(trials: int = 200) -> None:
    """Print the share of promotions for several pairs of models, rules and numbers of rows."""
    rules = [(), ("better than champion",), ("not worse than champion by more than 0.01",)]
    cases = [(0.77, 0.77), (0.79, 0.77), (0.80, 0.77), (0.76, 0.77)]
    lines = [
        {"challenger": area, "champion": champion, "rows": rows, "criterion": " ".join(rule) or "none: must be better"}
        | {"promoted": f"{promotion_rate(area, champion, rows, *rule, trials=trials):.1%}"}
        for rows in (500, 2_000)
        for rule in rules
        for area, champion in cases
    ]
    print(pd.DataFrame(lines).to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
