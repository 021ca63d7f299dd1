"""Groups: tables equal fairlearn's, intervals are those of the extreme, small groups are undecided, gates decide."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import (
    MetricFrame,
    equalized_odds_difference,
    false_negative_rate,
    false_positive_rate,
    selection_rate,
)
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error

from mlcycle.errors import CriterionError
from mlcycle.ml.criteria import parse_criterion, parse_problem_criteria
from mlcycle.ml.predictions import Predictions
from mlcycle.outcomes import Problem
from mlcycle.validation.group_gates import evaluate_group_gate
from mlcycle.validation.group_statistics import compare_groups, groups_of_columns
from mlcycle.validation.groups import (
    UNDECIDED,
    calibration_by_group,
    compare_protected_groups,
    describe_four_fifths,
    score_by_group,
    table_of_groups,
)

EMPTY = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256"], "-")
BINARY = {"task": "binary", "classes": ["no", "yes"], "positive": "yes", "metric": "log_loss"}


def problem_of(**more) -> Problem:
    "A problem with two protected columns."
    fields = EMPTY | BINARY | {"metrics": ["log_loss"], "target": "y", "rows": 1, "criteria": []}
    return Problem(**fields | {"protected_columns": ["sex", "race"]} | more)


def people(rows: int = 3000, seed: int = 0) -> tuple[pd.DataFrame, Predictions]:
    "Rows of two protected columns, of which race changes the errors."
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"sex": rng.choice(["F", "M"], rows), "race": rng.choice(["a", "b", "c"], rows, p=[0.5, 0.4, 0.1])})
    positive = rng.random(rows) < 0.4
    scores = np.clip(0.3 * positive + 0.15 * (table.race == "b") + rng.uniform(0, 0.6, rows), 0.01, 0.99).to_numpy()
    return table.assign(y=np.where(positive, "yes", "no")), Predictions(np.where(scores > 0.5, "yes", "no"), scores)


def test_rates_equal_those_of_fairlearn_for_groups_and_intersections():
    rows, predictions = people()
    positive, selected = (rows.y == "yes").to_numpy(), predictions.labels == "yes"
    ours = score_by_group(problem_of(), rows, predictions, n_resamples=20).set_index(["column", "group"])
    metrics = {each.__name__: each for each in (selection_rate, false_positive_rate, false_negative_rate)}
    for column, features in (("sex", rows.sex), ("race", rows.race), ("sex x race", rows[["sex", "race"]])):
        theirs = MetricFrame(metrics=metrics, y_true=positive, y_pred=selected, sensitive_features=features).by_group
        theirs.index = [", ".join(group) if isinstance(group, tuple) else group for group in theirs.index]
        assert len(ours.loc[column]) == len(theirs)
        for name in metrics:
            assert np.allclose(ours.loc[column][name][theirs.index], theirs[name], atol=5e-5)
            assert (ours[f"{name}_low"] < ours[name]).all()
            assert (ours[name] < ours[f"{name}_high"]).all()
    by_sex = MetricFrame(metrics=log_loss, y_true=positive, y_pred=predictions.scores, sensitive_features=rows.sex).by_group
    assert np.allclose(ours.loc["sex"]["log_loss"][by_sex.index], by_sex)
    assert len(table_of_groups(ours.reset_index(), "log_loss").columns) == 8


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_other_tasks_equal_fairlearn_too(task):
    rows, _ = people()
    rng = np.random.default_rng(1)
    if task == "multiclass":
        rows["y"], labels = rng.choice(list("pqr"), len(rows)), rng.choice(list("pqr"), len(rows))
        more, function = {"classes": list("pqr"), "metric": "accuracy", "metrics": ["accuracy"]}, accuracy_score
    else:
        rows["y"], labels = rng.normal(size=len(rows)), rng.normal(size=len(rows))
        more, function = {"classes": [], "metric": "mae", "metrics": ["mae"]}, mean_absolute_error
    problem = problem_of(task=task, positive=None, **more)
    ours = score_by_group(problem, rows, Predictions(labels), n_resamples=20).set_index(["column", "group"])
    theirs = MetricFrame(metrics=function, y_true=rows.y, y_pred=labels, sensitive_features=rows.race)
    assert np.allclose(ours.loc["race"][problem.metric][theirs.by_group.index], theirs.by_group)
    for each in compare_protected_groups(problem, rows, Predictions(labels), 50):
        if each.column == "race":
            assert each.value == pytest.approx(theirs.ratio() if each.kind == "ratio" else theirs.difference())


def test_the_interval_of_equalised_odds_resamples_the_maximum_itself():
    rows, predictions = people(1200)
    positive, selected = (rows.y == "yes").to_numpy(), predictions.labels == "yes"
    names = rows.race.to_numpy(dtype=object)
    score, _ = compare_groups("equalized_odds", "difference", names, problem_of(), rows.y, predictions, n_resamples=2000)
    assert score.value == pytest.approx(equalized_odds_difference(positive, selected, sensitive_features=rows.race))
    rng, drawn = np.random.default_rng(0), []
    cells = [np.flatnonzero((names == group) & (positive == actual)) for group in "abc" for actual in (False, True)]
    for _ in range(300):
        sample = np.concatenate([rng.choice(cell, len(cell)) for cell in cells])
        groups = pd.Series(names[sample], name="race")
        drawn.append(equalized_odds_difference(positive[sample], selected[sample], sensitive_features=groups))
    assert np.allclose(np.percentile(drawn, [2.5, 97.5]), score.interval, atol=0.03)


def test_small_groups_are_undecided_and_not_compared():
    rows, predictions = people(600)
    rows.loc[:9, "race"] = "d"
    table = score_by_group(problem_of(), rows, predictions, n_resamples=20).set_index(["column", "group"])
    assert table.loc[("race", "d"), "note"] == UNDECIDED
    assert table.loc[("race", "a"), "note"] == ""
    calibration = calibration_by_group(problem_of(), rows, predictions).set_index(["column", "group"])
    assert calibration.loc[("race", "d"), "result"] == UNDECIDED
    notes = {each.note for each in compare_protected_groups(problem_of(), rows, predictions) if each.column == "race"}
    assert all("Too small to compare: 1 group." in note for note in notes)
    one_group = rows.assign(race=["a"] * 595 + ["b"] * 5)
    (line,) = [
        line
        for line in describe_four_fifths(compare_protected_groups(problem_of(), one_group, predictions))
        if line.startswith("race:")
    ]
    assert UNDECIDED in line


def test_the_four_fifths_rule_is_met_or_not_or_undecided():
    rows, predictions = people(4000)
    for share, state in ((0.0, "is met"), (0.2, "is undecided"), (0.6, "is not met")):
        rng = np.random.default_rng(0)
        drop = (rows.sex == "F").to_numpy() & (rng.random(4000) < share)
        chosen = Predictions(np.where(drop, "no", predictions.labels), predictions.scores)
        lines = describe_four_fifths(compare_protected_groups(problem_of(protected_columns=["sex"]), rows, chosen))
        assert len(lines) == 1
        assert state in lines[0]


def test_three_columns_have_all_their_intersections():
    rows = pd.DataFrame({"a": ["x", "y"], "b": ["p", "q"], "c": [True, False]})
    groups = groups_of_columns(["a", "b", "c"], rows)
    assert list(groups) == ["a", "b", "c", "a x b", "a x c", "b x c", "a x b x c"]
    assert groups["a x b x c"].tolist() == ["x, p, True", "y, q, False"]


LINES = [
    "recall difference between groups <= 0.05",
    "equalized_odds difference between groups of race <= 0.1",
    "equalized_odds ratio between groups of race >= 0.8",
    "calibration difference between groups <= 0.05",
    'selection_rate difference between groups of "race" <= 0.01',
]


@pytest.mark.parametrize("line", LINES)
def test_differences_between_groups_are_gates(line):
    rows, unfair = people(6000)
    criterion = parse_criterion(line, "binary", "log_loss")
    assert parse_criterion(criterion.text, "binary", "log_loss") == criterion
    inputs = {"rows": rows, "actual": rows.y, "n_resamples": 100, "seed": 0}
    bad = evaluate_group_gate(criterion, problem_of(), SimpleNamespace(predictions=unfair, **inputs))
    assert not bad.passed
    assert bad.low <= bad.value <= bad.high
    assert "race: " in bad.note
    exact = (rows.y == "yes").to_numpy(dtype=float)
    perfect = SimpleNamespace(predictions=Predictions(rows.y.to_numpy(), exact), **inputs)
    good = evaluate_group_gate(criterion, problem_of(), perfect)
    assert good.passed or criterion.metric == "selection_rate"


@pytest.mark.parametrize(
    ("line", "task", "says"),
    [
        ("equalized_odds difference between groups <= 0.1", "regression", "equalized_odds"),
        ("calibration ratio between groups >= 0.8", "binary", "calibration"),
        ("recall difference between groups >= 0.1", "binary", "<="),
        ("recall difference between groups <= -0.1", "binary", "number"),
    ],
)
def test_comparisons_that_have_no_meaning_are_refused(line, task, says):
    with pytest.raises(CriterionError, match=says):
        parse_criterion(line, task, "mae" if task == "regression" else "log_loss")
    with pytest.raises(CriterionError, match="recall difference between groups of COLUMN <= …"):
        parse_problem_criteria(problem_of(criteria=[LINES[0]], protected_columns=[]))
