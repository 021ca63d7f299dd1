"""Splits: what is on which side, and what both sides share that they should not."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_wine

from mlcycle.data.labelling.row_labels import RowsWithLabels
from mlcycle.data.split import split_rows
from mlcycle.data.split_overlap import describe_split_overlap, measure_split_overlap
from mlcycle.data.stage import CheckedSource, find_training_rows, split_labelled_rows
from mlcycle.errors import ParameterError
from mlcycle.outcomes import Problem
from mlcycle.stores.sources.ingest import normalise_dtypes, read_source


def asked(target: str = "y", task: str = "binary", **more) -> Problem:
    "A problem about some rows."
    usual = {"decision": "-", "question": "-", "owner": "-", "source": "-", "source_sha256": "-", "rows": 0, "criteria": []}
    return Problem(target=target, task=task, metric="f1", metrics=["f1"], **usual | more)


def visits(rows: int = 600, patients: int = 60) -> pd.DataFrame:
    "Several rows about each patient, ordered in time."
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"patient": rng.choice(patients, rows).astype(str), "day": np.arange(rows), "x": rng.normal(size=rows)})
    return normalise_dtypes(
        frame.assign(z=rng.normal(size=rows), town=rng.choice(["Ulm", "Bonn"], rows), y=rng.choice(["a", "b"], rows))
    )


def whole(parts: dict[str, pd.DataFrame], rows: pd.DataFrame) -> bool:
    "Whether every row is in exactly one part."
    return sorted(np.concatenate([part.index for part in parts.values()])) == sorted(rows.index)


# Which side


def test_what_fits_is_chosen():
    rows = visits()
    for more, word in (({"time": "day", "entity": "patient"}, "By time"), ({"entity": "patient"}, "By group"), ({}, "At random")):
        parts, words = split_rows(rows, asked(**more))
        assert words.startswith(word)
        assert whole(parts, rows)
    parts, words = split_rows(
        rows.assign(part=np.where(rows.day < 400, "train", "holdout")), asked(time="day"), split_column="part"
    )
    assert words.startswith("Predefined by the column 'part'")
    assert "part" not in parts["train"]
    assert len(parts["train"]) == 400


def test_rows_that_rules_label_stay_where_a_column_puts_them():
    rows = visits().assign(part=lambda rows: np.where(rows.day < 400, "train", "holdout"))
    by_rules, problem = rows.index[50:450], asked()
    table = pd.DataFrame({"origin": np.where(rows.index.isin(by_rules), "rule", "source")}, rows.index)
    source = CheckedSource(*[None] * len(CheckedSource._fields))._replace(
        checked=SimpleNamespace(clean=rows), labelled=RowsWithLabels(rows, table), unlabelled=rows.head(0)
    )
    parts, words, source = split_labelled_rows(source, problem, "auto", split_column="part")
    assert {name: len(part) for name, part in parts.items() if len(part)} == {"train": 400, "holdout": 150}
    assert all("part" not in part for part in parts.values())
    assert "350 rows that are labelled by rules alone are training rows" in words
    assert source.unlabelled.index.tolist() == list(range(400, 450))
    assert source.unlabelled.y.isna().all()
    found = find_training_rows(rows, problem, "auto", left_out=by_rules, split_column="part")
    assert found.equals(parts["train"].index)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.booleans()), min_size=8, max_size=80), st.integers(0, 3))
def test_a_group_is_never_on_both_sides(values, seed):
    rows = normalise_dtypes(pd.DataFrame({"who": [None if lost and who < 2 else f"p{who}" for who, lost, _ in values]}))
    rows["y"] = [float(answer) for *_, answer in values]
    assume(rows.who.nunique() > 1)
    parts, _ = split_rows(rows, asked(task="regression", entity="who"), holdout_share=0.3, seed=seed)
    assert not set(parts["train"].who.dropna()) & set(parts["holdout"].who.dropna())
    assert whole(parts, rows)
    assert len(parts["train"])
    assert len(parts["holdout"])


def test_groups_of_very_different_size_keep_the_shares():
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(200), rng.zipf(1.6, 200).clip(max=500))
    rows = normalise_dtypes(pd.DataFrame({"who": who.astype(str), "y": np.where(rng.random(len(who)) < 0.1, "a", "b")}))
    parts, _ = split_rows(rows, asked(entity="who"))
    assert 0.15 < len(parts["holdout"]) / len(rows) < 0.25
    assert abs((parts["holdout"].y == "a").mean() - (rows.y == "a").mean()) < 0.04


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=10, max_size=60), st.sampled_from([0.1, 0.2, 0.5]))
def test_every_class_is_in_both_parts(classes, share):
    rows = normalise_dtypes(pd.DataFrame({"y": classes, "x": range(len(classes))}))
    if rows.y.value_counts().min() < 2:
        with pytest.raises(ParameterError, match="has a single row"):
            split_rows(rows, asked(task="multiclass"), holdout_share=share)
        return
    parts, _ = split_rows(rows, asked(task="multiclass"), holdout_share=share)
    assert set(parts["train"].y) == set(parts["holdout"].y) == set(classes)
    assert parts["train"].index.is_monotonic_increasing


def test_time_cuts_and_keeps_apart_whom_it_knows():
    rows = visits().sample(frac=1, random_state=0)
    parts, _ = split_rows(rows, asked(time="day"), future_share=0)
    assert parts["train"].day.max() < parts["holdout"].day.min()
    assert not len(parts["future"])
    late = rows.assign(patient=np.where(rows.day > 450, "p" + rows.patient, rows.patient))
    problem = asked(time="day", entity="patient")
    parts, words = split_rows(late, problem, exclude_shared_entities=True)
    assert whole(parts, late)
    assert not set(parts["train"].patient) & set(parts["holdout"].patient)
    assert f"{len(parts['set_aside'])} rows are set aside" in words


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        pytest.param({}, {"method": "time"}, "which is empty", id="no time"),
        pytest.param({}, {"method": "group"}, "which is empty", id="no entity"),
        pytest.param({}, {"method": "by chance"}, "not known", id="unknown way"),
        pytest.param({}, {"split_column": "parts"}, "no column 'parts'", id="no such column"),
        pytest.param({"part": "test"}, {"split_column": "part"}, "holds 'test'", id="unknown part"),
        pytest.param({"part": None}, {"split_column": "part"}, "holds a missing value", id="no part"),
        pytest.param({"part": "train"}, {"split_column": "part"}, "No row is left for the part 'holdout'", id="no holdout"),
        pytest.param({"patient": "p"}, {"method": "group", "entity": "patient"}, "have the same", id="one group"),
        pytest.param({}, {"holdout_from": "9999", "time": "day"}, "No row is left", id="a moment too late"),
    ],
)
def test_what_cannot_be_split_is_said(change, options, message):
    named = {name: options.pop(name) for name in ("time", "entity") if name in options}
    with pytest.raises(ParameterError, match=message):
        split_rows(visits().assign(**change), asked(**named), **options)


def test_a_class_that_only_comes_later_is_said():
    rows = visits().assign(y=lambda rows: np.where(rows.day < 500, "a", "b"))
    with pytest.raises(ParameterError, match="No row of 'train' has the class 'b'"):
        split_rows(rows, asked(time="day"))


# What both sides share


@pytest.mark.parametrize("load", [load_breast_cancer, load_wine])
def test_clean_tables_raise_no_alarm(load):
    rows = normalise_dtypes(load(as_frame=True).frame)
    problem = asked("target", "multiclass")
    parts, _ = split_rows(rows, problem)
    assert describe_split_overlap(parts, problem) == []


def test_flights_in_time_order_raise_no_alarm():
    rows = read_source("sample").dropna(subset=["late"])
    problem = asked("late", time="scheduled_departure")
    parts, _ = split_rows(rows, problem)
    measured = measure_split_overlap(parts, problem)
    assert describe_split_overlap(parts, problem, measured) == []
    assert set(measured.check) == {"duplicate rows", "near-duplicate rows", "time overlap"}
    assert set(measured.part) == {"holdout", "future"}


def test_a_table_of_few_values_raises_no_alarm():
    "Where rows are equal by chance, a twin means nothing."
    rng = np.random.default_rng(0)
    columns = {name: rng.choice(list("abcd"), 3000) for name in "pqrs"}
    rows = normalise_dtypes(pd.DataFrame(columns | {"y": rng.choice(["a", "b"], 3000)}))
    parts, _ = split_rows(rows, asked())
    measured = measure_split_overlap(parts, asked())
    assert measured.share.max() > 0.9
    assert describe_split_overlap(parts, asked(), measured) == []


@pytest.mark.parametrize("rows", [600, 30_000], ids=["few rows", "many rows"])
def test_injected_leaks_are_found_and_counted(rows):
    table = visits(rows, rows // 10)
    problem = asked()
    parts, _ = split_rows(table, problem)
    train, holdout = parts["train"], parts["holdout"]
    assert describe_split_overlap(parts, problem) == []
    equal = train.sample(12, random_state=0)
    near = train.sample(len(holdout) // 10, random_state=1)
    noisy = near.assign(x=near.x + 1e-9, town=" " + near.town.str.upper(), z=5.0)
    for copies, word in ((equal, "in every feature"), (near.assign(z=5.0), "but one"), (noisy, "but one")):
        (told,) = describe_split_overlap(parts | {"holdout": pd.concat([holdout, copies])}, problem)
        assert told.startswith(f"{len(copies):,} of {len(holdout) + len(copies):,} holdout rows")
        assert word in told


def test_shared_entities_and_overlap_in_time_are_found():
    rows = visits()
    parts, _ = split_rows(rows, asked())
    told = describe_split_overlap(parts, asked(entity="patient", time="day"))
    assert len(told) == 2
    assert "also in the training rows" in told[0]
    assert "earlier than the last training row" in told[1]
    parts, _ = split_rows(rows, asked(entity="patient"))
    assert describe_split_overlap(parts, asked(entity="patient")) == []


def test_a_row_with_a_missing_entity_is_an_entity_of_its_own():
    rows, problem = visits(), asked(entity="patient")
    rows.loc[np.arange(0, 600, 2), "patient"] = None
    parts, _ = split_rows(rows, problem)
    unknown = {name: part.patient.isna().mean() for name, part in parts.items()}
    assert all(0.3 < share < 0.7 for share in unknown.values()), "rows without an entity are not one big entity"
    assert not set(parts["train"].patient.dropna()) & set(parts["holdout"].patient.dropna())
    assert not describe_split_overlap(parts, problem)
    alone = rows.assign(patient=None)
    assert 100 <= len(split_rows(alone, problem)[0]["holdout"]) <= 140
