"""Groups: tables equal fairlearn's, intervals are those of the extreme, small groups are undecided, gates decide.

Mitigation reduces known differences between groups, and is never applied."""

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
from projects import add_cell, listing, run
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import mlcycle as mc
from mlcycle.errors import CriterionError
from mlcycle.ml.criteria import parse_criterion, parse_problem_criteria
from mlcycle.ml.predictions import Predictions, predict
from mlcycle.ml.resampling import Resampling, choose_resampling
from mlcycle.outcomes import Problem
from mlcycle.validation.group_gates import evaluate_group_gate
from mlcycle.validation.group_statistics import compare_groups, groups_of_columns
from mlcycle.validation.groups import (
    FEW_OF_A_CLASS,
    UNDECIDED,
    calibration_by_group,
    compare_protected_groups,
    describe_four_fifths,
    score_by_group,
    table_of_groups,
)
from mlcycle.validation.mitigation import mitigate, table_of_mitigations

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


def test_a_group_with_few_rows_of_a_class_is_compared_by_selection_rate_and_calibration_only():
    rows, predictions = people(900)
    race = rows["race"].to_numpy().copy()
    negatives = np.flatnonzero(rows["y"] == "no")[:60]
    race[[*negatives, *np.flatnonzero(rows["y"] == "yes")[:3]]] = "d"
    rows["race"] = race
    predictions.labels[negatives] = "no"
    table = score_by_group(problem_of(), rows, predictions, n_resamples=20).set_index(["column", "group"])
    assert table.loc[("race", "d"), "note"].startswith(FEW_OF_A_CLASS)
    assert table.loc[("race", "a"), "note"] == ""
    found = {
        each.statistic: each for each in compare_protected_groups(problem_of(), rows, predictions, 50) if each.column == "race"
    }
    assert "worst is d" in found["selection_rate"].note
    assert "Too small" not in found["selection_rate"].note + found["calibration"].note
    assert "Too small to compare: 1 group." in found["equalized_odds"].note
    assert "Too small to compare: 1 group." in found["log_loss"].note


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
    inputs = {"rows": rows, "actual": rows.y, "n_resamples": 100, "seed": 0, "resampling": Resampling()}
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


def repeated(rows: pd.DataFrame, predictions: Predictions, times: int) -> tuple[pd.DataFrame, Predictions]:
    "Each row several times, as rows of one entity at several times."
    places = np.repeat(np.arange(len(rows)), times)
    again = rows.iloc[places].assign(person=places, day=np.arange(len(places))).reset_index(drop=True)
    return again, Predictions(predictions.labels[places], predictions.scores[places])


@pytest.mark.parametrize(("columns", "wider"), [({"entity": "person"}, 2.2), ({"time": "day"}, 1.6)], ids=["entities", "blocks"])
def test_rows_that_repeat_have_wider_intervals(columns, wider):
    rows, predictions = people(600)
    again, of_again = repeated(rows, predictions, 9)
    problem = problem_of(protected_columns=["sex"], **columns)
    units = choose_resampling(problem, again, (again.y == "yes").to_numpy() - of_again.scores)
    assert units.unit == ("entity" if "entity" in columns else "block")
    tables = [
        score_by_group(problem, rows, predictions, 400),
        score_by_group(problem, again, of_again, 400),
        score_by_group(problem, again, of_again, 400, units),
    ]
    for name in ("", "selection_rate_", "false_positive_rate_", "false_negative_rate_"):
        once, alike, by_unit = ((table[f"{name}high"] - table[f"{name}low"]).to_numpy() for table in tables)
        assert (by_unit > wider * alike).all(), "nine equal rows are one observation: up to three times as wide"
        assert (by_unit < 1.35 * once).all(), "not wider than before the rows were repeated"
    comparisons = zip(
        compare_protected_groups(problem, rows, predictions, 400),
        compare_protected_groups(problem, again, of_again, 400),
        compare_protected_groups(problem, again, of_again, 400, 0, units),
        strict=True,
    )
    for each in comparisons:
        once, alike, by_unit = (one.high - one.low for one in each)
        assert each[2].value == pytest.approx(each[1].value)
        assert 1.6 * alike < by_unit < 1.35 * once, "less than three times as wide, as no difference is below 0"
    alike, by_unit = (calibration_by_group(problem, again, of_again, given) for given in (None, units))
    assert (by_unit.high - by_unit.low > wider * (alike.high - alike.low)).all()


def test_a_group_of_few_entities_is_undecided_whatever_its_rows():
    rows, predictions = people(600)
    again, of_again = repeated(rows, predictions, 3)
    again.loc[again.sex == "M", "person"] %= 3
    problem = problem_of(protected_columns=["sex"], entity="person")
    units = choose_resampling(problem, again)
    table = score_by_group(problem, again, of_again, 50, units).set_index("group")
    assert table.loc["M", "rows"] > 500
    assert table.note.to_dict() == {"F": "", "M": UNDECIDED}
    (line,) = describe_four_fifths(compare_protected_groups(problem, again, of_again, 50, 0, units))
    assert "of at least 5 independent entities" in line
    gate = evaluate_group_gate(
        parse_criterion("selection_rate ratio between groups >= 0.8", "binary", "log_loss"),
        problem,
        SimpleNamespace(rows=again, actual=again.y, predictions=of_again, n_resamples=50, seed=0, resampling=units),
    )
    assert gate.result == "undecided"


def unequal_rows(rows: int, seed: int) -> pd.DataFrame:
    "Two groups whose rates of positives differ, by which a model selects them differently."
    rng = np.random.default_rng(seed)
    sex = rng.choice(["F", "M"], rows)
    skill = rng.normal(size=rows) + 0.8 * (sex == "M")
    positive = skill + 0.8 * (sex == "M") + rng.normal(size=rows) > 0.8
    return pd.DataFrame({"sex": sex, "skill": skill, "y": np.where(positive, "yes", "no")})


def test_mitigation_reduces_a_known_difference_and_leaves_the_model_alone():
    train, holdout, problem = unequal_rows(4000, 0), unequal_rows(4000, 1), problem_of(protected_columns=["sex"])
    encoder = make_column_transformer((OneHotEncoder(), ["sex"]), ("passthrough", ["skill"]))
    model = make_pipeline(encoder, LogisticRegression()).fit(train[["sex", "skill"]], train.y)
    before, coefficients = predict(model, holdout, problem), model[-1].coef_.copy()
    found = mitigate(problem, model, train, holdout, before, "sex")
    differences = {
        (method, statistic): compare_groups(statistic, "difference", holdout.sex.to_numpy(), problem, holdout.y, labels)[0]
        for method, labels in found.items()
        for statistic in ("selection_rate", "equalized_odds")
    }
    for statistic, least in (("selection_rate", 0.5), ("equalized_odds", 0.3)):
        assert differences["original", statistic].low > least
        same = differences["fitted again", statistic]
        assert same.low <= differences["original", statistic].value <= same.high, "fitting again changes nothing"
    parity, odds = (f"group thresholds, {name}" for name in ("demographic parity", "equalised odds"))
    assert differences[parity, "selection_rate"].high < 0.1
    assert differences[odds, "equalized_odds"].high < 0.15
    for statistic in ("selection_rate", "equalized_odds"):
        assert differences["reweighting", statistic].high < differences["fitted again", statistic].low
    table = table_of_mitigations(problem, holdout, found, "sex", n_resamples=50).set_index("method")
    assert list(table.index) == ["original", parity, odds, "fitted again", "reweighting"]
    after = predict(model, holdout, problem)
    assert found["original"] is before
    assert (after.labels == before.labels).all()
    assert (after.scores == before.scores).all()
    assert (model[-1].coef_ == coefficients).all()


WITH_PROTECTED_COLUMN = """
import json
from pathlib import Path

file = Path(run_dir) / "problem.json"
file.write_text(json.dumps(json.loads(file.read_text()) | {"protected_columns": ["town"]}))
"""


def test_mitigation_is_measured_only_on_request_and_never_applied(project):
    add_cell(project, "validation", WITH_PROTECTED_COLUMN)
    others = ("generalization", "weak_slices", "robustness", "uncertainty", "explanations", "more_metrics")
    words = ["--until", "validation", *(word for name in others for word in ("-p", f"{name}=false"))]
    run(project, *words)
    plain = mc.open("last", project)
    models = plain.workspace.root / "artifacts" / "models"
    before = listing(models)
    run(project, *words, "-p", "mitigation=true")
    measured = mc.open("last", project)
    pages = [(project / "reports" / each.id / "05_validation.html").read_text() for each in (plain, measured)]
    assert ["Protected column" in page and "group thresholds, equalised odds" in page for page in pages] == [False, True]
    assert measured.candidate.model == plain.candidate.model
    assert measured.verdict.scores == plain.verdict.scores
    assert measured.verdict.decision == plain.verdict.decision
    assert {name for name, data in listing(models).items() if before.get(name) != data} == {
        name for name in before if "/model_card/" in name
    }
