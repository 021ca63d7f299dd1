"""Recipes that look back: nothing that happens later changes what they made, and they are quick."""

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcycle.errors import InputError
from mlcycle.features.create.history import EntityHistory, Lag, Rolling
from mlcycle.features.create.propose import propose_history_recipes
from mlcycle.features.create.recipes import FeatureCreator
from mlcycle.outcomes import Problem
from mlcycle.stores.models.model_files import load_model, save_model

ENTITIES = ("", "who", ("who", "where"))
STATISTICS = ("mean", "sum", "std", "min", "max", "count")
RECIPES = [EntityHistory(e, "when", "x", s) for e in ENTITIES for s in (*STATISTICS, "last")]
RECIPES += [EntityHistory(e, "when", statistic="since") for e in ENTITIES]
RECIPES += [EntityHistory(e, "when", target="y", pos_label="b", min_age="90 min") for e in ENTITIES]
RECIPES += [Rolling("", "when", e, "3 hours", min_age="90 min", target="y", pos_label="b") for e in ENTITIES]
RECIPES += [Lag("x", "when", e, steps) for e in ENTITIES for steps in (1, 2)]
RECIPES += [Rolling("x", "when", e, window, s) for e in ENTITIES for s in STATISTICS for window in ("1 hour", "3 hours")]
START = pd.Timestamp("2020-03-28 20:00", tz="UTC")  # Over a night in which clocks change
VALUES = st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(0.1))
ROW = st.tuples(
    st.one_of(st.none(), st.integers(0, 700)),
    st.sampled_from(["a", "b", "c", None]),
    st.integers(0, 1),
    VALUES,
    st.sampled_from("ab"),
)


def table(cells: list[tuple], zone: str | None = None) -> pd.DataFrame:
    "Minutes, who, where, a number and the target as a table."
    rows = pd.DataFrame(cells, columns=["minute", "who", "where", "x", "y"])
    when = START + pd.to_timedelta(rows.pop("minute").astype(float), unit="min")
    return rows.astype({"x": float, "who": "str", "where": int, "y": "str"}).assign(
        when=when.dt.tz_convert(zone) if zone else when.dt.tz_localize(None)
    )


def made(recipe, learnt: pd.DataFrame, asked: pd.DataFrame) -> np.ndarray:
    "The recipe's column for some rows, learnt from others."
    (values,) = recipe.fit(learnt, learnt.y).compute(asked).values()
    assert values.shape == (len(asked),) and values.dtype == float
    return values


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(RECIPES),
    st.lists(ROW, min_size=1, max_size=25),
    st.lists(ROW, max_size=25),
    st.integers(0, 700),
    st.sampled_from([None, "Europe/Rome"]),
)
def test_the_future_changes_nothing_before_it(recipe, first, second, minute, zone):
    now = START + pd.Timedelta(minute, "min") if zone else (START + pd.Timedelta(minute, "min")).tz_localize(None)
    before, other = table(first, zone), table(second, zone)
    past = before[(before.when <= now) | before.when.isna()]
    shuffled = pd.concat([past, other[other.when > now]])
    asked = made(recipe, before, before)[((before.when <= now) | before.when.isna()).to_numpy()]
    np.testing.assert_array_equal(made(recipe, shuffled, past), asked)
    np.testing.assert_array_equal(made(recipe, shuffled, shuffled)[: len(past)], asked)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(RECIPES), st.lists(ROW, min_size=1, max_size=25), st.integers(0, 2**16))
def test_one_row_is_its_line_in_the_batch_and_the_order_of_rows_is_nothing(recipe, cells, seed):
    rows = table(cells)
    order = np.random.default_rng(seed).permutation(len(rows))
    batch = made(recipe, rows, rows)
    alone = [next(iter(recipe.compute(rows.iloc[[place]]).values()))[0] for place in range(len(rows))]
    np.testing.assert_array_equal(batch, alone)
    np.testing.assert_array_equal(batch[order], made(recipe, rows.iloc[order], rows.iloc[order]))


def slow_history(rows: pd.DataFrame, entity: tuple, statistic: str, window: str = "") -> list[float]:
    "What an `EntityHistory` or a `Rolling` must say, row by row."
    answers = []
    for _, row in rows.iterrows():
        same = rows[(rows[list(entity)] == row[list(entity)]).all(axis=1)] if entity else rows
        past = same[same.when < row.when]
        inside = past[past.when >= row.when - pd.Timedelta(window)] if window else past
        x = inside.x.dropna()
        if past.empty or (x.empty and statistic != "count"):
            answers.append(np.nan)
        else:
            answers.append(float(getattr(x, statistic)()))
    return answers


@settings(max_examples=10, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=25))
def test_they_say_what_a_loop_over_the_rows_says(cells):
    rows = table(cells)
    for entity in ((), ("who",), ("who", "where")):
        for statistic in STATISTICS:
            recipe = EntityHistory(entity, "when", "x", statistic)
            expected = slow_history(rows, entity, statistic)
            np.testing.assert_allclose(made(recipe, rows, rows), expected, rtol=1e-6, atol=1e-3, err_msg=str(recipe))
        for statistic in ("mean", "min", "max"):
            recipe = Rolling("x", "when", entity, "100 min", statistic)
            expected = slow_history(rows, entity, statistic, "100 min")
            np.testing.assert_allclose(made(recipe, rows, rows), expected, rtol=1e-6, atol=1e-3, err_msg=str(recipe))


def test_missing_unknown_and_other_types_of_the_same_values():
    rows = pd.DataFrame({"who": [1, 1, 2], "x": [1.0, 3, 5], "when": pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03"])})
    recipe = EntityHistory("who", "when", "x").fit(rows)
    asked = pd.DataFrame({"who": [1.0, None, 7, 1.5, 1], "when": pd.to_datetime(["2021-01-01"] * 4 + [None])})
    for when in (
        asked.when,
        asked.when.dt.tz_localize("Asia/Tokyo"),
        asked.when.astype("datetime64[ns]"),
        asked.when.astype(str),
    ):
        computed = recipe.compute(asked.assign(when=when))["expanding mean of x by who"]
        np.testing.assert_array_equal(computed, [2, np.nan, np.nan, np.nan, np.nan])
    assert np.isnan(recipe.compute(asked.assign(who="1"))["expanding mean of x by who"]).all()
    nobody = recipe.fit(rows.assign(when=pd.NaT)).compute(rows)
    assert np.isnan(nobody["expanding mean of x by who"]).all()
    for each in RECIPES:
        empty = table([(None, "a", 0, 1.0, "a")])
        assert np.isnan(made(each, empty, table([(5, "a", 0, 1.0, "a")]))).all()


def test_a_window_that_training_does_not_reach_is_missing_not_empty():
    rows = pd.DataFrame({"when": pd.date_range("2020-01-01", periods=48, freq="h")})
    recipe = Rolling("", "when", window="6 hours", statistic="count").fit(rows)
    (name,) = recipe.describe()
    assert name == "rows in 6 hours"
    assert recipe.compute(rows)[name][10] == 6
    later = pd.DataFrame({"when": rows.when.iloc[-1] + pd.to_timedelta([1, 2, 4, 1000], unit="h")})
    np.testing.assert_array_equal(recipe.compute(later)[name], [6, 5, np.nan, np.nan])


def test_the_target_needs_a_delay_and_is_known_only_after_it():
    rows = pd.DataFrame({"who": ["a"] * 4, "when": pd.date_range("2020-01-01", periods=4), "y": [1.0, 3, 5, 7]})
    recipe = EntityHistory("who", "when", target="y", min_age="1 day", smoothing=0).fit(rows, rows.y)
    np.testing.assert_array_equal(*recipe.compute(rows).values(), [np.nan, 1, 2, 3])  # Exactly one day old counts
    later = EntityHistory("who", "when", target="y", min_age="25 hours", smoothing=0).fit(rows, rows.y)
    np.testing.assert_array_equal(*later.compute(rows).values(), [np.nan, np.nan, 1, 2])
    window = Rolling("", "when", "who", "2 days", min_age="1 day", target="y").fit(rows, rows.y)
    np.testing.assert_array_equal(*window.compute(rows).values(), [np.nan, 1, 2, 4])
    assert recipe.input_columns() == ["who", "when"]
    for wrong in (
        EntityHistory("who", "when", target="y"),
        EntityHistory("who", "when"),
        EntityHistory("who", "when", "y", "median"),
        EntityHistory("who", "y", "y"),
        EntityHistory("who", "when", "who"),
        EntityHistory("who", "when", target="y", min_age="soon"),
        Rolling("y", "when", window="0 days"),
        Rolling("", "when", target="y"),
        Rolling("", "when", target="y", window="1 hour", min_age="1 day"),
        Lag("y", "when", periods=0),
    ):
        with pytest.raises(InputError):
            wrong.fit(rows, rows.y)


def test_classes_that_a_model_has_numbered_are_the_same_history():
    rows = table([(minute, "ab"[minute % 2], 0, 1.0, "ab"[minute % 3 == 0]) for minute in range(0, 600, 7)])
    recipe = EntityHistory("who", "when", target="y", pos_label="b", min_age="30 min")
    (words,) = recipe.fit(rows, rows.y).compute(rows).values()
    (numbers,) = recipe.fit(rows, (rows.y == "b").astype(int)).compute(rows).values()
    np.testing.assert_array_equal(words, numbers)


def test_a_saved_history_holds_only_arrays_and_says_the_same(tmp_path):
    rows = table([(minute, "abc"[minute % 3], minute % 2, float(minute % 7), "ab"[minute % 2]) for minute in range(100)])
    step = FeatureCreator(RECIPES).fit(rows, rows.y)
    again = load_model(tmp_path / "h.skops", save_model(step, tmp_path / "h.skops"))
    pd.testing.assert_frame_equal(again.transform(rows), step.transform(rows))
    assert len(set(step.get_feature_names_out())) == len(rows.columns) + len(RECIPES)


def test_proposals_need_times_and_are_few():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"when": pd.date_range("2020", periods=5000, freq="10min"), "who": rng.choice(list("abcd"), 5000)})
    rows = rows.assign(plane=rng.integers(0, 50, 5000), id=[f"n{i}" for i in range(5000)], y=rng.random(5000))
    asked = Problem(
        decision="-", question="-", owner="-", source="-", source_sha256="-", target="y", task="regression", metric="r2",
        metrics=["r2"], criteria=[], rows=5000, time="when", entity="plane",
    )  # fmt: skip
    column_types = {"who": "category", "id": "many categories", "when": "date"}
    found = propose_history_recipes(rows, asked, column_types)
    names = [name for recipe in found for name in recipe.describe()]
    assert len(found) <= 16 and len(set(names)) == len(names)
    assert {
        "earlier rows of plane",
        "expanding mean of y by plane",
        "expanding mean of y by who",
        "rows of who in 1 hour",
    } <= set(names)
    assert not any("id" in recipe.input_columns() for recipe in found)
    assert len(propose_history_recipes(rows, asked, column_types, max_recipes=3)) == 3
    for nothing in (asked.model_copy(update={"time": ""}), asked.model_copy(update={"time": "y"})):
        assert propose_history_recipes(rows, nothing, column_types) == []
    multiclass = asked.model_copy(update={"task": "multiclass"})
    assert not any(getattr(recipe, "target", "") for recipe in propose_history_recipes(rows, multiclass, column_types))


def cpu_seconds(work) -> float:
    "CPU time of a piece of work, the least of three."
    taken = []
    for _ in range(3):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


@pytest.mark.parametrize("recipe", [EntityHistory("who", "when", "x"), Rolling("x", "when", "who"), Lag("x", "when", "who")])
def test_cost_is_a_few_sorts_and_little_for_one_row(recipe):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"who": rng.choice([f"N{i}" for i in range(4000)], 300_000), "x": rng.random(300_000)})
    rows = rows.assign(when=pd.Timestamp("2020") + pd.to_timedelta(rng.integers(0, 10**7, 300_000), unit="s"))
    base = cpu_seconds(lambda: rows.sort_values(["who", "when"]))
    assert cpu_seconds(lambda: recipe.fit(rows).compute(rows)) < 16 * base
    one = rows.tail(1)
    frame = cpu_seconds(lambda: [pd.DataFrame({"a": [1.0], "b": ["x"]}).assign(c=1) for _ in range(100)])
    assert cpu_seconds(lambda: [recipe.compute(one) for _ in range(100)]) < 10 * frame
