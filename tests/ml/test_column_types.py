"""What columns are: on tables made for it, and on real ones from packages."""

import numpy as np
import pandas as pd
import pytest
from conftest import penguins
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_iris, load_wine

from mlcycle.ml.column_types import infer_column_types
from mlcycle.stores.sources.ingest import normalise_dtypes

ROWS = 400
RNG = np.random.default_rng(0)
WORDS = np.array(["the", "door", "was", "open", "and", "nobody", "came", "to", "take", "it", "so", "we", "left"])
COLUMNS = {
    "number": RNG.normal(size=ROWS),
    "whole": RNG.integers(0, 1000, ROWS),
    "holes": pd.array(RNG.integers(0, 90, ROWS)).astype("Int64").shift(1),
    "yes or no": RNG.random(ROWS) < 0.3,
    "size": pd.Categorical(RNG.choice([*"SML"], ROWS), categories=[*"SMLX"]),
    "town": RNG.choice([f"t{i}" for i in range(60)], ROWS),
    "day": pd.Timestamp("2020") + pd.to_timedelta(RNG.integers(0, 900, ROWS), unit="D"),
    "note": [" ".join(RNG.choice(WORDS, 6)) for _ in range(ROWS)],
}
KINDS = dict(zip(COLUMNS, ["number"] * 4 + ["category", "many categories", "date", "text"], strict=True))
LEFT_OUT = {
    "constant": (np.ones(ROWS), "always 1.0"),
    "empty": ([None] * ROWS, "always empty"),
    "nearly empty": ([1.0, 2.0] + [None] * (ROWS - 2), "missing in 99.5%"),
    "counter": (np.arange(ROWS) + 17, "row counter"),
    "code": ([f"c{i * 7919 % 10007}" for i in range(ROWS)], "identifier"),
    "duration": (pd.to_timedelta(RNG.integers(0, 90, ROWS), unit="h"), "a duration"),
}


def test_names_every_kind():
    column_types, left_out = infer_column_types(pd.DataFrame(COLUMNS))
    assert column_types == KINDS
    assert left_out == {}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_says_why_a_column_is_left_out(name):
    values, reason = LEFT_OUT[name]
    column_types, left_out = infer_column_types(pd.DataFrame(COLUMNS).assign(**{name: values}))
    assert column_types == KINDS
    assert left_out[name].startswith(reason)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40))
def test_a_new_name_for_each_value_is_a_repetition(seed, values):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, values, 300)
    table = pd.DataFrame(
        {"code": codes, "name": rng.permutation([f"v{i}" for i in range(values)])[codes], "other": rng.random(300)}
    )
    if table.code.nunique() > 1:
        column_types, left_out = infer_column_types(table)
        assert list(column_types) == ["code", "other"]
        assert left_out == {"name": "has the same information as 'code'"}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_columns_drawn_apart_repeat_nothing(seed):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({f"n{i}": rng.normal(size=60) for i in range(4)} | {f"w{i}": rng.integers(0, 3, 60) for i in range(4)})
    assert list(infer_column_types(table)[0]) == list(table)


def test_a_missing_value_tells_columns_apart():
    town = RNG.choice(["Rome", "Oslo", None], ROWS)
    other = pd.Series(town).replace({"Rome": "I", "Oslo": "N"})
    assert list(infer_column_types(pd.DataFrame({"town": town, "land": other}))[0]) == ["town"]
    other.iloc[int(other.notna().to_numpy().argmax())] = None
    assert list(infer_column_types(pd.DataFrame({"town": town, "land": other}))[0]) == ["town", "land"]


@pytest.mark.parametrize("load", [load_breast_cancer, load_iris, load_wine])
def test_keeps_all_of_a_clean_table(load):
    rows = normalise_dtypes(load(as_frame=True).data)
    column_types, left_out = infer_column_types(rows)
    assert set(column_types.values()) == {"number"} and not left_out


def test_penguins():
    column_types, left_out = infer_column_types(normalise_dtypes(penguins()).drop(columns="Species"))
    assert left_out.keys() >= {"Region", "Stage"}
    assert column_types["Island"] == "category" and column_types["Body Mass (g)"] == "number"
