"""Numbers of the monitoring that take longer than a test: error of estimated scores, chances of alarms.

`python benchmarks/monitoring.py estimation` compares estimated scores with the truth, on data whose probabilities are known.
`python benchmarks/monitoring.py loss` simulates years of the sequential test of the loss, with and without change.
The results are in `benchmarks/results/monitoring.md`.
"""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import typer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from mlcycle.ml.metrics import compute_score
from mlcycle.ml.predictions import Predictions
from mlcycle.ml.row_losses import fit_row_loss
from mlcycle.monitoring.estimation import (
    ScoreCalibrator,
    estimate_class_score,
    estimate_number_score,
    expected_score,
    fit_performance_estimator,
)
from mlcycle.monitoring.loss_monitor import monitor_mean
from mlcycle.outcomes import Problem
from mlcycle.service.reference_scores import estimate_row_loss, make_reference_scores

app = typer.Typer(add_completion=False, help=__doc__)
CHUNK, COLUMNS, METRICS = 5_000, 10, ["roc_auc", "accuracy", "f1"]
SIZES = {"moderate": (0.1, 0.2, 0.3, 0.4), "strong": (0.25, 0.5, 0.75, 1.0)}  # Of a shift


def problem_of(metric: str, task: str = "binary") -> Problem:
    """A problem with one metric."""
    classes = ["no", "yes"] if task == "binary" else []
    return Problem(
        decision="-",
        question="-",
        owner="-",
        source="-",
        source_sha256="-",
        target="y",
        task=task,
        classes=classes,
        positive="yes" if classes else None,
        metric=metric,
        metrics=[metric],
        criteria=[],
        rows=100,
    )


# --- Estimated scores ---------------------------------------------------------------------------------------------------


def true_probability(x: np.ndarray) -> np.ndarray:
    """The probability of the positive class: linear, squared and interaction terms."""
    logit = 1.2 * x[:, 0] - 0.9 * x[:, 1] + 0.6 * x[:, 2] * x[:, 3] + 0.5 * (x[:, 4] ** 2 - 1) - 0.8
    return 1 / (1 + np.exp(-1.3 * logit))


def draw_rows(rng: np.random.Generator, rows: int, shift: str = "none", size: float = 0.0) -> np.ndarray:
    """Rows whose columns are shifted; the probability of the target, given the row, stays the same."""
    x = rng.normal(size=(rows, COLUMNS))
    if shift == "mean":
        x[:, 0] += size
    elif shift == "spread":
        x[:, :2] *= 1 - 0.5 * size
    elif shift == "mixture":
        x[:, 1] = np.where(rng.random(rows) < 0.5 * size, x[:, 1] + 1.5, x[:, 1])
    elif shift == "irrelevant":
        x[:, 9] += 2 * size
    return x


MODELS = {
    "logistic regression": lambda seed: LogisticRegression(),
    "gradient boosting": lambda seed: HistGradientBoostingClassifier(max_iter=150, random_state=seed),
    "random forest": lambda seed: RandomForestClassifier(100, min_samples_leaf=5, random_state=seed, n_jobs=1),
    "overfitted boosting": lambda seed: HistGradientBoostingClassifier(max_iter=400, learning_rate=0.3, random_state=seed),
}


def labelled(scores: np.ndarray) -> Predictions:
    """Predictions at the threshold .5."""
    return Predictions(np.where(scores >= 0.5, "yes", "no"), scores)


def truth_of(metric: str, problem: Problem, predictions: Predictions, probability: np.ndarray) -> float:
    """The expected metric by the true probabilities of the rows."""
    order = np.arange(len(probability), dtype=float)
    exact = ScoreCalibrator("isotonic", order, probability)
    scores = np.asarray(predictions.scores)
    known = SimpleNamespace(problem=problem, probabilities=lambda _: np.column_stack([1 - exact(order), exact(order)]))
    return expected_score(known, metric, Predictions(predictions.labels, scores))


def estimate_chunks(name: str, seed: int, reference_rows: int, strength: str) -> list[dict]:
    """Errors of the estimates of one model, on chunks with shifts of several kinds and sizes."""
    rng = np.random.default_rng(seed)
    train, holdout = draw_rows(rng, 10_000), draw_rows(rng, reference_rows)
    model = MODELS[name](seed).fit(train, rng.random(len(train)) < true_probability(train))
    given = labelled(model.predict_proba(holdout)[:, 1])
    actual = np.where(rng.random(len(holdout)) < true_probability(holdout), "yes", "no")
    problem = problem_of("roc_auc").model_copy(update={"metrics": METRICS})
    reference = make_reference_scores(problem, pd.DataFrame({"x": given.scores}), actual, given)
    estimator, lines = fit_performance_estimator(reference, problem), []
    kinds = [(kind, size) for kind in ("mean", "spread", "mixture", "irrelevant") for size in SIZES[strength]]
    for kind, size in [("none", 0.0), *kinds]:
        rows = draw_rows(rng, CHUNK, kind, size)
        predicted, probability = labelled(model.predict_proba(rows)[:, 1]), true_probability(rows)
        later = np.where(rng.random(CHUNK) < probability, "yes", "no")
        for metric in METRICS:
            estimate = estimate_class_score(estimator, metric, predicted)
            truth, realised = truth_of(metric, problem, predicted, probability), compute_score(metric, problem, later, predicted)
            unchanged = reference.score_of(metric).value
            lines.append(
                {
                    "model": name,
                    "shift": kind,
                    "metric": metric,
                    "estimate": abs(estimate.value - truth),
                    "nothing changed": abs(unchanged - truth),
                    "estimate, realised": abs(estimate.value - realised),
                    "covered": estimate.low <= realised <= estimate.high,
                }
            )
    return lines


def estimate_numbers(seed: int) -> list[dict]:
    """Errors of direct loss estimation for a regression whose noise depends on a column."""
    rng, lines = np.random.default_rng(seed), []

    def draw(rows: int, kind: str = "none", size: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        x = draw_rows(rng, rows, kind, size)
        spread = 0.5 + 1.5 / (1 + np.exp(-2 * x[:, 0]))
        return x, 2 * x[:, 0] - x[:, 1] + x[:, 2] * x[:, 3] + rng.normal(size=rows) * spread

    train, holdout = draw(10_000), draw(10_000)
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(random_state=seed).fit(*train)
    names = [f"x{k}" for k in range(COLUMNS)]
    for metric, function in [("mae", mean_absolute_error), ("rmse", root_mean_squared_error), ("r2", r2_score)]:
        problem = problem_of(metric, "regression")
        frame = pd.DataFrame(holdout[0], columns=names)
        reference = make_reference_scores(problem, frame, holdout[1], Predictions(model.predict(holdout[0])))
        for kind, size in [(kind, size) for kind in ("none", "mean", "spread", "mixture") for size in (0.5, 1.0)]:
            x, later = draw(CHUNK, kind, size)
            predicted = model.predict(x)
            losses = estimate_row_loss(SimpleNamespace(scores=reference), pd.DataFrame(x, columns=names), predicted)
            estimate, realised = estimate_number_score(reference, problem, predicted, losses), function(later, predicted)
            unchanged = reference.score_of(metric).value
            lines.append(
                {
                    "metric": metric,
                    "estimate, realised": abs(estimate.value - realised),
                    "nothing changed, realised": abs(unchanged - realised),
                    "covered": estimate.low <= realised <= estimate.high,
                }
            )
    return lines


@app.command()
def estimation(seeds: int = 2, reference_rows: int = 20_000, strength: str = "moderate") -> None:
    """Mean absolute error of estimated scores, chunks of 5,000 rows, beside "nothing changed"."""
    chunks = (estimate_chunks(name, seed, reference_rows, strength) for name in MODELS for seed in range(seeds))
    lines = pd.DataFrame([line for chunk in chunks for line in chunk])
    columns = ["estimate", "nothing changed", "estimate, realised", "covered"]
    print(lines.groupby("metric")[columns].mean().round(4).to_markdown())
    print(lines.groupby(["metric", "model"])[columns].mean().round(4).to_markdown())
    print(lines.groupby(["metric", "shift"])[columns].mean().round(4).to_markdown())
    numbers = pd.DataFrame([line for seed in range(seeds) for line in estimate_numbers(seed)])
    print(numbers.groupby("metric").mean().round(4).to_markdown())


# --- Sequential test of the loss ----------------------------------------------------------------------------------------


def ranked_rows(rng: np.random.Generator, rows: int, strength: float) -> tuple[np.ndarray, Predictions]:
    """Rows with 25 % positives whose scores are normal; a strength of 1 is an area of .76 under the ROC curve."""
    positive = rng.random(rows) < 0.25
    scores = rng.normal(size=rows) + strength * positive
    return np.where(positive, "yes", "no"), labelled(1 / (1 + np.exp(1.6 - scores)))


def draw_losses(rng: np.random.Generator, rows: int, kind: str, worse: bool, loss) -> np.ndarray:
    """Losses of rows: errors (20 %, then 24 %), ranking (.76, then .70), absolute errors of a regression (then 10 % larger)."""
    if kind == "errors":
        return (rng.random(rows) < (0.24 if worse else 0.2)).astype(float)
    if kind == "absolute error":
        return loss(rng.exponential(1.1 if worse else 1.0, rows), Predictions(np.zeros(rows)))
    return loss(*ranked_rows(rng, rows, 0.74 if worse else 1.0))


def simulate_year(rng: np.random.Generator, kind: str, rows: int, reference_rows: int, looks: int, change: int | None) -> dict:
    """One year of days; `looks` windows a day."""
    problem = {
        "errors": problem_of("accuracy"),
        "ranking": problem_of("roc_auc"),
        "absolute error": problem_of("mae", "regression"),
    }[kind]
    loss, reference = None, draw_losses(rng, reference_rows, "errors", False, None)
    if kind != "errors":
        actual, given = (
            ranked_rows(rng, reference_rows, 1.0)
            if kind == "ranking"
            else (rng.exponential(1.0, reference_rows), Predictions(np.zeros(reference_rows)))
        )
        loss = fit_row_loss(problem, actual, given)
        reference = loss(actual, given)
    days = 365 if change is None else change + 60
    windows = [
        draw_losses(rng, rows // looks, kind, change is not None and k // looks >= change, loss) for k in range(days * looks)
    ]
    tolerance = 0.05 * float(reference.mean()) / (2 if kind == "ranking" else 1)
    monitored = monitor_mean(windows, np.full(len(windows), 1 / 365 / looks), reference, level=0.03, tolerance=tolerance)
    alarms = np.flatnonzero(monitored.alarms)
    return {"alarm": len(alarms) > 0, "delay": np.nan if change is None or not len(alarms) else alarms[0] / looks - change + 1}


@app.command()
def loss(years: int = 300, only: str = "") -> None:
    """Chance of an alarm in a year without change, and delay after a change on day 200 of a good year."""
    rng, lines = np.random.default_rng(0), []
    for kind in ("errors", "ranking", "absolute error"):
        for rows, reference_rows, looks in [(500, 2_000, 1), (500, 20_000, 1), (480, 2_000, 24), (2_000, 2_000, 1)]:
            if only and only != kind:
                continue
            calm = pd.DataFrame([simulate_year(rng, kind, rows, reference_rows, looks, None) for _ in range(years)])
            found = pd.DataFrame([simulate_year(rng, kind, rows, reference_rows, looks, 200) for _ in range(max(years // 5, 20))])
            lines.append(
                {
                    "loss": kind,
                    "rows a day": rows,
                    "holdout": reference_rows,
                    "looks a day": looks,
                    "alarm in a year without change": calm.alarm.mean(),
                    "found within 60 days": found.delay.between(0, 60).mean(),
                    "median delay, days": found.delay[found.delay > 0].median(),
                }
            )
            print(pd.DataFrame(lines).round(3).to_markdown(index=False), flush=True)
