"""Recipes: one row equals its line in a batch, saved recipes say the same, and what matters is proposed."""

import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from mlcycle.errors import ParameterError
from mlcycle.features.create import dates
from mlcycle.features.create.arithmetic import (
    CategoryPair,
    ClockDuration,
    Difference,
    Duration,
    GroupDeviation,
    MissingCount,
    Product,
    Ratio,
)
from mlcycle.features.create.dates import CyclicTime, DateParts, describe_date_parts
from mlcycle.features.create.propose import propose_recipes
from mlcycle.features.create.recipes import FeatureCreator
from mlcycle.outcomes import Problem
from mlcycle.stores.models.model_files import load_model, save_model

RECIPES = [
    Duration("came", "left"),
    ClockDuration("due", "done"),
    Difference("a", "b"),
    Ratio("a", "b"),
    Product("a", "due"),
    CategoryPair("town", "size"),
    CategoryPair("size", "due"),
    GroupDeviation("a", "town"),
    GroupDeviation("b", "due", smoothing=0),
    MissingCount(["a", "came", "town", "size"]),
    CyclicTime("came", "day"),
    CyclicTime("left", "week"),
    CyclicTime("came", "year"),
]
PARTS = DateParts(parts=tuple(dates.DATE_PARTS), cyclic=True, trend=True)
MOMENTS = st.datetimes(min_value=pd.Timestamp("1900-01-01").to_pydatetime(), max_value=pd.Timestamp("2200-01-01").to_pydatetime())
NUMBERS = st.one_of(st.none(), st.floats(), st.integers(-3, 3).map(float))
WORDS = st.one_of(st.none(), st.sampled_from(["", "x", "y", "nan", " "]), st.text(max_size=3))


def frame(rows: list[tuple]) -> pd.DataFrame:
    "Rows in the types that clean rows have."
    table = pd.DataFrame(rows, columns=["a", "b", "due", "done", "came", "left", "town", "size"])
    for name in ("a", "b"):
        table[name] = table[name].astype(float)
    for name in ("came", "left"):
        table[name] = pd.to_datetime(table[name]).astype("datetime64[us]")
    return table.astype({"town": "str", "size": "str"})


CLOCKS = st.integers(-5, 2500)
ROW = st.tuples(NUMBERS, NUMBERS, CLOCKS, st.none() | CLOCKS, st.none() | MOMENTS, st.none() | MOMENTS, WORDS, WORDS)
TRAIN = st.lists(ROW, min_size=2, max_size=12).map(frame)
ASK = st.lists(ROW, min_size=1, max_size=8).map(frame)


def same(one: dict, other: dict) -> None:
    "Two sets of made columns are equal to the last bit, missing values included."
    assert list(one) == list(other)
    for name in one:
        ours, theirs = pd.Series(one[name]).astype(object), pd.Series(other[name]).astype(object)
        assert (ours.isna() == theirs.isna()).all() and (ours.dropna() == theirs.dropna()).all(), name


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TRAIN, ASK, st.integers(0, 7))
def test_one_row_is_its_line_in_the_batch(recipe, train, ask, place):
    fitted = clone(recipe).fit(train)
    batch, place = fitted.compute(ask), place % len(ask)
    assert list(batch) == list(fitted.describe()) == list(recipe.describe()) and all(recipe.describe().values())
    assert recipe.output_types().keys() == recipe.describe().keys()
    assert all(len(values) == len(ask) for values in batch.values())
    row = ask.iloc[[place]].reset_index(drop=True)[list(reversed(ask.columns))]
    same(fitted.compute(row), {name: values[[place]] for name, values in batch.items()})
    same(fitted.compute(ask[fitted.input_columns()]), batch)  # Nothing else is read
    whole = row.assign(due=row.due.astype(float), size=row["size"].astype(object))
    same(fitted.compute(whole), fitted.compute(row))  # The types of one row may be others
    for name, kind in recipe.output_types().items():
        if kind == "number":
            assert not np.isinf(batch[name]).any()


@settings(max_examples=40, deadline=None)
@given(TRAIN, ASK, st.integers(0, 7), st.sampled_from(["s", "ms", "us", "ns"]))
def test_dates_of_one_row_are_those_of_its_line(train, ask, place, unit):
    fitted, place = clone(PARTS).fit(train[["came", "left"]]), place % len(ask)
    batch = fitted.transform(ask)
    assert batch.shape == (len(ask), len(fitted.get_feature_names_out()))
    assert list(describe_date_parts(fitted)) == fitted.get_feature_names_out().tolist()
    np.testing.assert_array_equal(fitted.transform(ask.iloc[[place]][["left", "came"]]), batch[[place]])
    whole = ask.assign(came=ask.came.dt.floor("s"), left=ask.left.dt.floor("s"))
    coarse = whole.astype({"came": f"datetime64[{unit}]", "left": f"datetime64[{unit}]"})
    np.testing.assert_array_equal(fitted.transform(coarse), fitted.transform(whole))


def example(n: int = 200) -> pd.DataFrame:
    "A table with all that recipes read."
    rng = np.random.default_rng(0)
    moments = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 5 * 10**7, n), unit="s")
    values = [rng.normal(size=n), rng.integers(0, 3, n), rng.integers(0, 2400, n), rng.integers(0, 2400, n)]
    words = [rng.choice(["x", "y", None], n), rng.choice(["S", "L"], n)]
    return frame(list(zip(*values, moments, moments + pd.Timedelta("2h"), *words, strict=True)))


def test_what_is_saved_says_the_same(tmp_path):
    table = example()
    step = FeatureCreator(RECIPES).fit(table)
    parts = clone(PARTS).set_params(holidays="US").fit(table[["came", "left"]])
    for number, fitted in enumerate([step, parts, *step.recipes_]):
        save_model(fitted, tmp_path / f"{number}.skops")
        again = load_model(tmp_path / f"{number}.skops")
        assert repr(again.get_params()) == repr(fitted.get_params())
        if hasattr(fitted, "make"):
            same(again.compute(table), fitted.compute(table))
        else:
            ours, theirs = (pd.DataFrame(each.transform(table)) for each in (again, fitted))
            pd.testing.assert_frame_equal(ours, theirs)
            assert again.get_feature_names_out().tolist() == fitted.get_feature_names_out().tolist()
    save_model(clone(step), tmp_path / "unfitted.skops")
    pd.testing.assert_frame_equal(load_model(tmp_path / "unfitted.skops").fit(table).transform(table), step.transform(table))


def test_unseen_and_absent_categories_mean_the_mean_of_all_rows():
    table = pd.DataFrame({"a": [1.0, 3.0, 8.0], "town": ["x", "x", "y"]})
    usual = GroupDeviation("a", "town", smoothing=0).fit(table)
    asked = pd.DataFrame({"a": [4.0, 4.0, 4.0], "town": ["x", "elsewhere", None]})
    assert usual.compute(asked)["a_within_town"].tolist() == [2, 0, 0]
    nothing = GroupDeviation("a", "town").fit(table.assign(a=np.nan, town=None))
    assert nothing.compute(asked)["a_within_town"].tolist() == [4, 4, 4]


def test_durations_are_right_across_time_zones():
    came = pd.Series(pd.to_datetime(["2024-03-31 00:30"])).dt.tz_localize("Europe/Berlin")
    left = pd.Series(pd.to_datetime(["2024-03-31 03:30"])).dt.tz_localize("Europe/Berlin")
    table = pd.DataFrame({"came": came, "left": left})
    assert Duration("came", "left").compute(table)["came_to_left_hours"].tolist() == [2]  # The clock was put forward
    assert CyclicTime("left", "day").compute(table)["left_of_day"].tolist() == [3.5]  # What the clock on the wall said


def test_holidays_need_their_package_and_a_country(monkeypatch):
    table = example()[["came"]]
    with pytest.raises(ParameterError, match="Utopia"):
        DateParts(holidays="Utopia").fit(table)
    monkeypatch.setitem(sys.modules, "holidays", None)
    dates._holidays.cache_clear()
    with pytest.raises(ParameterError, match=r"pip install 'mlcycle-notebooks\[holidays\]'"):
        DateParts(holidays="US").fit(table)
    dates._holidays.cache_clear()


def asked(task: str = "regression", time: str = "", classes: tuple = ()) -> Problem:
    "A problem about `y`."
    words = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256"], "-")
    metric = "rmse" if task == "regression" else "log_loss"
    return Problem(**words, target="y", task=task, time=time, classes=list(classes), metric=metric, metrics=[metric], criteria=[],
                   rows=1)  # fmt: skip


def planted(n: int = 5000) -> tuple[pd.DataFrame, dict[str, str]]:
    "Columns that mean nothing, and their kinds."
    rng = np.random.default_rng(1)
    table = pd.DataFrame({f"n{i}": rng.random(n) + 0.2 for i in range(6)})
    table["came"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 10**7, n), unit="s")
    table["left"] = table.came + pd.to_timedelta(rng.integers(0, 3 * 10**6, n), unit="s")
    for number, name in enumerate(["town", "colour", "maker"]):
        table[name] = pd.Series(rng.choice([f"{name}{i}" for i in range(5 + 3 * number)], n)).astype("str")
    table["n5"] = table.n5.mask(rng.random(n) < 0.1)
    column_types = dict.fromkeys(table, "number") | {"came": "date", "left": "date"}
    return table, column_types | {"town": "category", "colour": "category", "maker": "category"}


SIGNALS = {
    "ratio": (lambda t: t.n1 / t.n2, {"n1", "n2"}),
    "hour": (lambda t: np.cos(2 * np.pi * (t.came.dt.hour - 1) / 24), {"came"}),
    "duration": (lambda t: np.sqrt((t.left - t.came).dt.total_seconds() / 3600) / 5, {"came", "left"}),
    "pair": (lambda t: (t.town.str[-1:].astype(int) + t.colour.str[-1:].astype(int)) % 3, {"town", "colour"}),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_planted_signals_are_proposed_first(name):
    table, column_types = planted()
    signal, columns = SIGNALS[name]
    truth = signal(table) + 0.5 * np.random.default_rng(2).normal(size=len(table))
    found = propose_recipes(table.assign(y=truth, unread=object()), truth, column_types, asked(time="came"))
    assert any(set(recipe.input_columns()) == columns for recipe in found[:3]), found
    assert len(found) <= 40
    assert [repr(recipe) for recipe in propose_recipes(table, truth, column_types, asked(time="came"))] == [
        repr(r) for r in found
    ]


def test_noise_proposes_little_and_extras_come_first():
    table, column_types = planted()
    noise = pd.Series(np.random.default_rng(3).choice(["r", "s", "t"], len(table)))
    extra = [Ratio("n0", "n1")]
    found = propose_recipes(table, noise, column_types, asked("multiclass", classes=("r", "s", "t")), extra=extra)
    assert found[0] is extra[0]
    assert len(found) <= 4, found


def test_tables_with_nothing_to_combine_propose_nothing():
    table = pd.DataFrame({"note": ["a few words"] * 300, "y": [0.0, 1.0] * 150})
    assert propose_recipes(table, table.y, {"note": "text"}, asked()) == []
    tiny = pd.DataFrame({"a": [1.0, 2.0], "b": [2.0, 3.0]})
    assert propose_recipes(tiny, pd.Series([0.0, 1.0]), {"a": "number", "b": "number"}, asked()) == []
    gaps = pd.DataFrame({"a": [None] * 300, "b": [1.0] * 300, "c": range(300), "d": pd.NaT}).astype({"a": float})
    column_types = {"a": "number", "b": "number", "c": "number", "d": "date"}
    propose_recipes(gaps, pd.Series(range(300), dtype=float), column_types, asked())
