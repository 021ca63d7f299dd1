"""Whatever comes in: values of parameters, rows on the wire, splits."""

import json
import math

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcycle.data.clean import separate_unusable_rows
from mlcycle.nb.notebook import Parameter, parse_parameters, parse_value
from mlcycle.outcomes import NA_VALUES, ModelRef, Problem, Score
from mlcycle.service.bundle import Bundle
from mlcycle.service.input_values import describe_training_values
from mlcycle.service.rows import prepare_rows, to_json_rows
from mlcycle.stores.sources.ingest import hash_rows, normalise_dtypes

ABOUT = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256", "target"], "-")
PROBLEM = Problem(**ABOUT, task="regression", metric="r2", metrics=["r2"], criteria=[], rows=1)
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
MOMENTS = st.datetimes(min_value=pd.Timestamp("1900-01-01").to_pydatetime(), max_value=pd.Timestamp("2200-01-01").to_pydatetime())


@given(st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), WORDS)
def test_parameters_survive_the_parameters_cell(number, decimal, flag, word):
    source = f"a: int = {number!r}  # A\nb: float = {decimal!r}\nc: bool = {flag!r}\nd: str = {word!r}  # It's a = b"
    assert [p.default for p in parse_parameters(source)] == [number, decimal, flag, word]


@given(WORDS)
def test_text_stays_text(text):
    assert parse_value(Parameter("p", "str", ""), text) == text


@given(st.lists(WORDS))
def test_lists_survive_as_json(words):
    assert parse_value(Parameter("p", "list[str]", []), json.dumps(words)) == words


def column(values):
    "A column of a few values, some missing."
    return st.lists(st.one_of(st.none(), values), min_size=3, max_size=3)


@settings(max_examples=60)
@given(
    column(st.floats(allow_nan=False, allow_infinity=False)),
    column(WORDS.filter(bool)),
    column(MOMENTS),
    st.lists(st.integers(-(2**50), 2**50), min_size=3, max_size=3),
)
def test_rows_come_over_the_wire_as_they_were(decimals, words, moments, whole):
    rows = normalise_dtypes(
        pd.DataFrame(
            {
                "x": pd.array(decimals, dtype="Float64"),
                "s": pd.array(words, dtype=object),
                "t": pd.to_datetime(pd.Series(moments, dtype=object)).astype("datetime64[us]"),
                "n": whole,
            }
        )
    )
    columns = {name: str(kind) for name, kind in rows.dtypes.items()}
    wire = json.loads(json.dumps(to_json_rows(rows), allow_nan=False))
    plain = Bundle(problem=PROBLEM, columns=columns, threshold=None, model=ModelRef(name="m", version=1, run_id="", sha256=""))
    trained = plain.model_copy(update={"training_values": {name: describe_training_values(rows[name]) for name in rows}})
    for came in (wire, rows):  # A word such as "null" is a value where the training rows have it
        pd.testing.assert_frame_equal(prepare_rows(came, trained).frame, rows.rename_axis(None))
        missing = rows.rename_axis(None).assign(s=rows.s.mask(rows.s.isin(NA_VALUES)))
        pd.testing.assert_frame_equal(prepare_rows(came, plain).frame, missing)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["a", "b", None])), max_size=30))
def test_cleaning_loses_no_row(values):
    rows = pd.DataFrame(values, columns=["x", "y"]).astype({"y": "str"})
    clean, aside, ledger = separate_unusable_rows(rows, ["y"])
    assert sorted([*clean.index, *aside.index]) == list(rows.index)
    assert clean.y.notna().all()
    assert not clean.duplicated().any() or any(line.step == "duplicates" for line in ledger)  # Kept: chance explains them
    assert sum(line.rows for line in ledger) == len(aside)


@given(st.integers(0, 2**32 - 1))
def test_the_hash_of_rows_sees_every_cell(seed):
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame({"x": rng.random(20), "s": rng.choice(["a", "b"], 20)})
    changed = rows.copy()
    changed.loc[rng.integers(20), "x"] += 1e-9
    assert hash_rows(rows) == hash_rows(rows.copy())
    assert len({hash_rows(rows), hash_rows(changed), hash_rows(rows.iloc[::-1]), hash_rows(rows.rename(columns={"x": "z"}))}) == 4


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_scores_survive_json(value):
    score = Score(metric="f1", value=value, low=None, high=value)
    again = Score.model_validate_json(score.model_dump_json())
    assert again == score
    assert not math.isnan(again.value)
