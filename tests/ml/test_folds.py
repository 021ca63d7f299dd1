"""Folds: time and entities are respected, and where that cannot be, it is said."""

import warnings

import numpy as np
import pandas as pd
import pytest

from mlcycle.errors import ParameterError
from mlcycle.ml.folds import describe_too_few_entities, make_folds
from mlcycle.outcomes import Problem


def visits(owners: int, rows: int = 60) -> pd.DataFrame:
    "Rows of some owners, half of them positive."
    return pd.DataFrame({"owner": [f"o{row % owners}" for row in range(rows)], "y": (["no", "yes"] * rows)[:rows]})


def problem_of(**more) -> Problem:
    "A problem about visits."
    empty = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256"], "-")
    facts = {"task": "binary", "classes": ["no", "yes"], "positive": "yes", "metric": "f1", "metrics": ["f1"], "criteria": []}
    return Problem(target="y", rows=60, entity="owner", **empty, **facts | more)


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("task", ["binary", "regression"])
def test_an_entity_is_never_on_both_sides(task, stratified):
    rows = visits(20)
    rows["y"] = np.arange(60.0) if task == "regression" else rows.y
    problem = problem_of(task=task, metric="r2" if task == "regression" else "f1")
    for train, valid in make_folds(problem, rows, stratified=stratified):
        assert len(valid) > 0
        assert not set(rows.owner.iloc[train]) & set(rows.owner.iloc[valid])


def test_rows_with_a_missing_entity_are_in_every_fold():
    rows, problem = visits(20), problem_of()
    rows.loc[rows.index % 3 == 0, "owner"] = None
    folds = make_folds(problem, rows)
    assert all(rows.owner.iloc[valid].isna().any() for _, valid in folds)
    assert sorted(np.concatenate([valid for _, valid in folds])) == list(range(60))
    assert not describe_too_few_entities(problem, rows.assign(owner=None))


@pytest.mark.parametrize("owners", [1, 4])
def test_fewer_entities_than_folds_are_an_error_unless_asked_for_and_then_a_warning(owners):
    rows, problem = visits(owners), problem_of()
    with pytest.raises(ParameterError, match=f"{owners} values of 'owner' for 5 folds"):
        make_folds(problem, rows)
    with pytest.warns(UserWarning, match=f"{owners} values of 'owner'.*too optimistic"):
        folds = make_folds(problem, rows, too_few_entities="warn")
    assert sorted(np.concatenate([valid for _, valid in folds])) == list(range(60))
    assert "cannot be kept together" in describe_too_few_entities(problem, rows)


def test_enough_entities_or_an_order_in_time_need_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_folds(problem_of(), visits(5), too_few_entities="warn")
        dated = visits(2).assign(day=range(60))
        make_folds(problem_of(time="day"), dated, too_few_entities="warn")
    assert describe_too_few_entities(problem_of(), visits(5)) == ""
