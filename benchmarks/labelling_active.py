"""Active learning: the score by number of labels of each strategy, and where labelling would stop."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))
from labelling_tables import CLASSES, NEW_CLASSES, NUMBERS, labelling_problem  # noqa: E402 - needs the path
from results_pages import markdown_table, write_section  # noqa: E402

from mlcycle.data.labelling.active_learning import choose_items, decide_to_stop  # noqa: E402
from mlcycle.data.labelling.quick_probabilities import encode_labelling_rows, quick_predictions  # noqa: E402

BUDGETS = (60, 100, 200)
TABLES = ("digits", "breast cancer", "jobs", "email")
NEW_TABLES = ("cells", "orange juice")  # Not used while the defaults were chosen
MAX_ROWS = 1800


def simulate(
    rows: pd.DataFrame, target: str, regression: bool, strategy: str, seed: int, budgets=BUDGETS, batch: int = 20
) -> dict:
    """Label rows batch by batch; score on 30 % of the rows, which are never labelled: accuracy or mean absolute error."""
    problem = labelling_problem(rows, target, regression)
    features, actual = encode_labelling_rows(rows, problem), rows[target]
    holdout = np.random.default_rng(1000 + seed).permutation(len(rows)) < 0.3 * len(rows)
    labels = actual.astype(object if not regression else float).where(np.zeros(len(rows), dtype=bool))
    scores: dict = {}
    while True:
        done = int(labels.notna().sum())
        if done in budgets:
            made = quick_predictions(rows, labels, problem, features=features, seed=seed, min_class_rows=2).predicted
            if regression:
                scores[done] = float(np.abs(made - actual)[holdout].mean())
            else:
                scores[done] = float((np.asarray(problem.classes)[made] == actual)[holdout].mean())
        if done >= max(budgets):
            return scores
        chosen = choose_items(
            rows, labels, batch, problem, strategy=strategy, exclude=rows.index[holdout], features=features, seed=seed
        )
        labels.loc[chosen["item"]] = actual[chosen["item"]]


def compare_strategies(tables: dict, strategies: list[str], regression: bool = False, seeds: int = 5) -> list[list[str]]:
    """Mean score of each strategy at each number of labels, and the mean paired difference to random at the last one."""
    lines = []
    for name, make in tables.items():
        rows, target = make()
        rows = rows.sample(min(MAX_ROWS, len(rows)), random_state=0).reset_index(drop=True)
        last: dict = {}
        for strategy in strategies:
            runs = [simulate(rows, target, regression, strategy, seed) for seed in range(seeds)]
            last[strategy] = np.array([run[max(BUDGETS)] for run in runs])
            gain = (last[strategy] - last["random"]) * (1 if not regression else -1)
            unit = 1 / last["random"].mean() if regression else 1
            half = 2.776 * gain.std(ddof=1) / np.sqrt(seeds) if seeds == 5 else np.nan
            text = f"{100 * unit * gain.mean():+.1f} ± {100 * unit * half:.1f}"
            means = [f"{np.mean([run[budget] for run in runs]):.4g}" for budget in BUDGETS]
            lines.append([name, strategy, *means, "-" if strategy == "random" else text])
            print(lines[-1], flush=True)
    return lines


def stopping(tables: dict, most: int = 600) -> list[list[str]]:
    """Number of labels at which labelling would stop, with accuracy there, and with all rows labelled."""
    lines = []
    for name, make in tables.items():
        rows, target = make()
        rows = rows.sample(min(MAX_ROWS, len(rows)), random_state=0).reset_index(drop=True)
        problem, actual = labelling_problem(rows, target), rows[target]
        features = encode_labelling_rows(rows, problem)
        holdout = np.random.default_rng(1000).permutation(len(rows)) < 0.3 * len(rows)
        labels, when = actual.astype(object).where(np.zeros(len(rows), dtype=bool)), pd.Series(np.nan, index=rows.index)
        stop = decide_to_stop(rows, labels, problem, when=when, features=features)
        while not stop.stop and stop.n_labels < min(most, (~holdout).sum()):
            step = max(20, stop.n_labels // 5)
            chosen = choose_items(rows, labels, step, problem, exclude=rows.index[holdout], features=features)
            labels.loc[chosen["item"]] = actual[chosen["item"]]
            when.loc[chosen["item"]] = stop.n_labels + np.arange(len(chosen))
            stop = decide_to_stop(rows, labels, problem, when=when, features=features)
        scores = []
        for given in (labels, actual.where(~holdout)):
            codes = quick_predictions(rows, given, problem, features=features).predicted
            scores.append(f"{(np.asarray(problem.classes)[codes] == actual)[holdout].mean():.3f}")
        lines.append([name, f"{(~holdout).sum():,}", f"{stop.n_labels}{'' if stop.stop else ' (not stopped)'}", *scores])
        print(lines[-1], flush=True)
    return lines


def write_active_learning() -> None:
    """Measure all, and write the section "Active learning" of the results."""
    header = ["table", "strategy", *(f"{budget} labels" for budget in BUDGETS), "points better than random at 200"]
    stops = ["table", "rows that may be labelled", "labels at the stop", "accuracy there", "accuracy with all labels"]
    others = ["random", "entropy", "committee", "diverse"]
    numbers = {name: NUMBERS[name] for name in ("ames", "diamonds", "diabetes")}
    known, new = ({name: source[name] for name in names} for source, names in [(CLASSES, TABLES), (NEW_CLASSES, NEW_TABLES)])
    text = f"""`python benchmarks/labelling.py active`, default settings, batches of 20, mean of five seeds; ± is half of the 95 %
interval of the mean of the paired differences. Accuracy on 30 % of the rows, which are never offered for labelling.

{markdown_table(header, compare_strategies(known, ["random", "auto"]))}

Other strategies on the digits:

{markdown_table(header, compare_strategies({"digits": CLASSES["digits"]}, others))}

Tables that were not used while the defaults were chosen:

{markdown_table(header, compare_strategies(new, ["random", "auto"]))}

For a regression, the mean absolute error, and the difference in percent of it. The committee is worse with few labels, so
`auto` chooses random rows.

{markdown_table(header, compare_strategies(numbers, ["random", "committee", "diverse"], regression=True))}

### Where labelling stops

One seed, at most 600 labels.

{markdown_table(stops, stopping({name: CLASSES[name] for name in ("digits", "breast cancer", "email")}))}
"""
    write_section("labelling", "Active learning", text)


if __name__ == "__main__":
    write_active_learning()
