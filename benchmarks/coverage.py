"""How often the 95 % intervals of scores contain the true value, by simulation.

`python benchmarks/coverage.py` prints a line for each metric and number of rows: the share of simulated samples whose interval
contains the value of a very large sample. `--rows 100 --trials 200` is a quick look. Independent rows: scores with a binormal ROC
curve (AUC 0.8) of a class with 30 or 10 % of the rows; numbers with normal errors, and with heavy tails. Entities: ten rows each,
with a common error. Series: errors in the order of time with an autocorrelation of 0.6.
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pandas as pd
import typer
from scipy import stats
from scipy.signal import lfilter
from scipy.special import expit

from mlcycle.ml.bootstrap import bootstrap_intervals
from mlcycle.ml.metrics import compute_score
from mlcycle.ml.predictions import Predictions
from mlcycle.ml.resampling import Resampling, choose_block_length
from mlcycle.outcomes import Problem

TRIALS = {100: 2000, 1_000: 2000, 10_000: 1000}
SHIFT = stats.norm.ppf(0.8) * np.sqrt(2)  # Of the scores of positives: ROC AUC 0.8
CLASSES = ["accuracy", "recall", "roc_auc", "average_precision", "f1", "log_loss", "brier"]
NUMBERS = ["rmse", "mae", "median_absolute_error", "r2"]
EMPTY = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256"], "-") | {"criteria": [], "rows": 0}
BINARY = Problem(**EMPTY, target="y", task="binary", classes=["no", "yes"], positive="yes", metric="roc_auc", metrics=["roc_auc"])
REGRESSION = Problem(**EMPTY, target="y", task="regression", metric="rmse", metrics=["rmse"])
Sample = tuple[np.ndarray, Predictions, Resampling]


def draw_classes(rng: np.random.Generator, rows: int, share: float) -> Sample:
    """Calibrated probabilities of a class, which is predicted above the threshold of its share."""
    positive = rng.random(rows) < share
    scores = expit(SHIFT * (positive * SHIFT + rng.normal(size=rows)) - SHIFT**2 / 2 + np.log(share / (1 - share)))
    return np.where(positive, "yes", "no"), Predictions(np.where(scores >= share, "yes", "no"), scores), Resampling()


def draw_numbers(rng: np.random.Generator, rows: int, errors: Callable) -> Sample:
    """Numbers that are predicted with an error."""
    predicted = rng.normal(size=rows)
    return predicted + errors(rng, rows), Predictions(predicted), Resampling()


def draw_entities(rng: np.random.Generator, rows: int) -> Sample:
    """Ten rows of each entity, whose errors have a common part."""
    codes = np.arange(rows) // 10
    common = rng.normal(size=codes[-1] + 1)[codes]
    return draw_numbers(rng, rows, lambda rng, rows: common + rng.normal(size=rows))[:2] + (Resampling("entity", codes),)


def draw_series(rng: np.random.Generator, rows: int) -> Sample:
    """Numbers in the order of time whose errors are autocorrelated."""
    errors = lfilter([0.8], [1, -0.6], rng.normal(size=rows + 50))[50:]
    predicted = rng.normal(size=rows)
    blocks = Resampling("block", np.arange(rows), choose_block_length(errors) / rows)
    return predicted + errors, Predictions(predicted), blocks


CASES = {
    "30 % positives": (BINARY, CLASSES, lambda rng, rows: draw_classes(rng, rows, 0.3)),
    "10 % positives": (BINARY, CLASSES, lambda rng, rows: draw_classes(rng, rows, 0.1)),
    "normal errors": (REGRESSION, NUMBERS, lambda rng, rows: draw_numbers(rng, rows, lambda rng, rows: rng.normal(size=rows))),
    "heavy-tailed errors (t, 5 degrees)": (
        REGRESSION,
        NUMBERS,
        lambda rng, rows: draw_numbers(rng, rows, lambda rng, rows: rng.standard_t(5, rows)),
    ),
    "entities of ten rows": (REGRESSION, ["rmse", "mae"], draw_entities),
    "the same, rows as units": (REGRESSION, ["rmse", "mae"], lambda rng, rows: (*draw_entities(rng, rows)[:2], Resampling())),
    "series, blocks": (REGRESSION, ["rmse", "mae"], draw_series),
    "the same series, rows as units": (
        REGRESSION,
        ["rmse", "mae"],
        lambda rng, rows: (*draw_series(rng, rows)[:2], Resampling()),
    ),
}


def measure_coverage(case: str, rows: int, trials: int, seed: int = 0) -> dict[str, float]:
    """The share of samples whose interval contains the true value, by metric; samples without an interval do not count."""
    problem, names, draw = CASES[case]
    rng, hits = np.random.default_rng(seed), defaultdict(list)
    actual, predictions, _ = draw(np.random.default_rng(2**32), 5_000_000)
    truth = {name: compute_score(name, problem, actual, predictions) for name in names}
    for trial in range(trials):
        actual, predictions, resampling = draw(rng, rows)
        for score in bootstrap_intervals(names, problem, actual, predictions, seed=trial, resampling=resampling):
            if score.low is not None:
                hits[score.metric].append(score.low <= truth[score.metric] <= score.high)
    return {name: float(np.mean(found)) for name, found in hits.items()}


def main(rows: list[int] = [*TRIALS], trials: int = 0, case: list[str] = [*CASES]) -> None:  # noqa: B006 - typer reads lists
    """Measure the coverage of each case, metric and number of rows."""
    for name in case:
        columns = {f"{count:,} rows": measure_coverage(name, count, trials or TRIALS.get(count, 500)) for count in rows}
        print(f"{name}\n{pd.DataFrame(columns).map('{:.1%}'.format).to_string()}\n", flush=True)


if __name__ == "__main__":
    typer.run(main)
