"""Batch scoring predicts what `run.predict` and the service predict, whatever the values."""

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcycle.ml.cleaning_plan import ColumnCleaningPlan, NumberFormat
from mlcycle.scoring.arrow_columns import read_arrow_column
from mlcycle.scoring.batch import ScoreOptions, predict_by_batch, score
from mlcycle.scoring.workers import load_release
from mlcycle.service.column_reader import ColumnReader
from mlcycle.service.edge_rows import edge_rows
from mlcycle.service.input_values import TrainingValues
from mlcycle.service.rows import predict_prepared, prepare_rows, to_json_rows
from mlcycle.stores.sources.ingest import read_one_source
from mlcycle.stores.sources.rows import convert_types

PLANS = [
    ColumnCleaningPlan(),
    ColumnCleaningPlan(value_type="number", number_format=NumberFormat(comma="decimal", point="thousands"), sentinels=(-999.0,)),
    ColumnCleaningPlan(value_type="number", number_format=NumberFormat(units={"€": 1.0, "k": 1000.0}), na_values=("99", "-")),
    ColumnCleaningPlan(value_type="date", date_formats=("%d/%m/%Y",), na_values=("2024-01-31",)),
    ColumnCleaningPlan(value_type="date", date_formats=("%Y-%d-%m",)),
]
KNOWN = [
    TrainingValues(largest=2000.0),
    TrainingValues(largest=9.0, whole=True, booleans=(0, 1)),
    TrainingValues(texts=("Lima", "yes", "no")),
    TrainingValues(texts=("no", "yes"), booleans=("no", "yes")),
    TrainingValues(digits=5),
    TrainingValues(categories=("Lima", "NA"), kept=("NA",)),
]
DTYPES = ["float64", "int64", "bool", "str", "datetime64[us]"]
WORDS = (
    "Lima|NA|nan|inf|-inf|yes|No|1|0|-0|-0.0|+5|007|1.5|.5|5.|1e3|1e999|1,5|1.957|1,957|1.957,25|1 000|12 €|3k|99|-|true|None|"
    " 7 |−3|9007199254740993|99999999999999999999|0x10|1_000|٣|2024-01-31|2024-02-30|2024-01-31 10:00:00|2024-01-31T10:00:00.5|"
    "0001-01-01|2024-01-31T10:00:00Z|2024-01-31 24:00:00|31.01.2024|03/04/2024|13/04/2024|20240131|2024-W05-3|Zürich|a\x00b"
)
TEXTS = st.sampled_from(WORDS.split("|")) | st.text(max_size=6) | st.floats().map(str) | st.integers().map(str)
VALUES = {
    pa.string(): TEXTS,
    pa.float64(): st.floats() | st.sampled_from([-0.0, 0.5, 1e16, -999.0]),
    pa.int64(): st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5),
    pa.bool_(): st.booleans(),
    pa.timestamp("us"): st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)),
}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_column_of_arrow_is_read_as_cell_by_cell(data):
    reader = ColumnReader(
        "x", data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(KNOWN)), data.draw(st.sampled_from(PLANS))
    )
    kind = data.draw(st.sampled_from(list(VALUES)))
    values = data.draw(st.lists(st.none() | VALUES[kind], min_size=1, max_size=12))
    if len(set(values)) > 1 and data.draw(st.booleans()):  # Few distinct values among many
        values = values * 40
    cells = [None if value != value else value for value in values]
    array, expected = pa.array(values, kind), reader.read(cells)
    read = read_arrow_column(reader, array)
    if kind == pa.int64() and reader.dtype == "str" and None in values:
        return  # pandas has floats for these, as at ingest
    assert read.values.dtype == expected.values.dtype
    missing = [pd.isna(value) for value in expected.values.tolist()]
    assert [pd.isna(value) for value in read.values.tolist()] == missing
    known = np.flatnonzero(~np.array(missing))
    assert read.values[known].tolist() == expected.values[known].tolist()
    if reader.numpy_dtype.kind == "f":
        assert read.values[known].tobytes() == expected.values[known].tobytes()  # -0.0 is not 0.0
    assert [(place, error.rule) for place, _, error in read.errors] == [
        (place, error.rule) for place, _, error in expected.errors
    ]
    assert [(place, now) for place, _, now in read.notes] == [(place, now) for place, _, now in expected.notes]


@pytest.mark.parametrize("name", ["orders", "wine", "diabetes"])
def test_a_file_is_scored_as_run_predict_predicts_it(table_run, name, tmp_path):
    run = table_run(name)
    source = run.workspace.project / f"{name}.csv"
    rows = convert_types(read_one_source(str(source))).rows
    with pytest.warns(UserWarning) if name == "orders" else pytest.MonkeyPatch.context():
        expected = run.predict(rows, intervals=True)
    release = run.workspace.root / run.release.bundle
    score(release, str(source), str(tmp_path / "out.parquet"), ScoreOptions(intervals=True))
    scored = pd.read_parquet(tmp_path / "out.parquet").drop(columns="row")
    assert list(scored) == list(expected)
    for column in scored:
        ours, theirs = scored[column].tolist(), expected[column].tolist()
        assert [list(each) for each in ours] == theirs if column == "prediction_set" else ours == theirs, column


def test_a_row_does_not_depend_on_its_block(table_run, tmp_path):
    "Where the model works row by row; a missing whole number in a block makes its column one of floats."
    run = table_run("orders")
    release = load_release(run.workspace.root / run.release.bundle)
    rows = pd.read_csv(run.workspace.project / "orders.csv", dtype=str).iloc[:60]
    rows.loc[7, "zip"] = ""
    rows.to_csv(tmp_path / "rows.csv", index=False)
    tables = []
    for size in (1, 60):
        output = tmp_path / f"{size}.parquet"
        score(run.workspace.root / run.release.bundle, str(tmp_path / "rows.csv"), str(output), ScoreOptions(block_rows=size))
        tables.append(pd.read_parquet(output))
    assert tables[0].prediction.equals(tables[1].prediction)
    if release.equal_in_blocks:
        assert tables[0].score.equals(tables[1].score)
    else:
        assert np.allclose(tables[0].score, tables[1].score, rtol=1e-12)


@pytest.mark.parametrize("name", ["orders", "wine"])
def test_edge_rows_by_batch_are_those_of_the_row_scorer(table_run, name):
    run = table_run(name)
    release = load_release(run.workspace.root / run.release.bundle)
    rows = to_json_rows(prepare_rows(edge_rows(release.bundle), release.bundle).columns)
    expected = predict_prepared(release.bundle, release.predictor, prepare_rows(rows, release.bundle))
    predicted = predict_by_batch(run.workspace.root / run.release.bundle, rows, release.bundle)
    assert predicted.labels.tolist() == expected.labels.tolist() and predicted.scores.tobytes() == expected.scores.tobytes()


def test_times_with_an_offset_are_moved_to_utc():
    reader = ColumnReader("at", "datetime64[us]", TrainingValues(), ColumnCleaningPlan())
    moment = datetime(2024, 1, 31, 12)
    read = read_arrow_column(reader, pa.array([f"{moment + timedelta(hours=2):%Y-%m-%dT%H:%M:%S}+02:00"] * 3))
    assert read.values.tolist() == [moment] * 3 and len(read.notes) == 3
