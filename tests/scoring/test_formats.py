"""Every format in and out: the scores are those of the model."""

import gzip
import json
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.feather
import pytest
from deltalake import write_deltalake
from toy_releases import COLUMNS, toy_release, toy_rows

from mlcycle.errors import MlcycleError, ParameterError, SourceError
from mlcycle.scoring.batch import ScoreOptions, predict_by_batch, score
from mlcycle.service.bundle import open_release
from mlcycle.stores.sources.databases import read_database

pytestmark = pytest.mark.filterwarnings("ignore:The release")  # No keys are trusted


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    "A release of trees."
    return toy_release(tmp_path_factory.mktemp("toy"), 3)


@pytest.fixture(scope="module")
def rows():
    "Rows with an id, and a missing value in each column."
    frame = toy_rows(250, seed=1).mask(np.eye(250, 8, dtype=bool))
    return frame.assign(id=[f"0{number}" for number in range(250)])


@pytest.fixture(scope="module")
def expected(release, rows):
    "What the pipeline predicts."
    return open_release(release)[1].predict(rows[COLUMNS])


def write_sqlite(rows: pd.DataFrame, path: Path) -> str:
    with sqlite3.connect(path) as connection:
        rows.to_sql("readings", connection, index=False)
    connection.close()
    return f"sqlite:///{path}#readings"


def write_delta(rows: pd.DataFrame, path: Path) -> str:
    write_deltalake(str(path), rows)
    return str(path)


def written(write, ending: str):
    "A function that writes rows into a file and returns its path."

    def write_rows(rows: pd.DataFrame, path: Path) -> str:
        place = path.with_suffix(ending)
        write(rows, place)
        return str(place)

    return write_rows


INPUTS = {
    "csv": written(lambda rows, path: rows.to_csv(path, index=False), ".csv"),
    "semicolon": written(lambda rows, path: rows.to_csv(path, index=False, sep=";", encoding="utf-16"), ".csv"),
    "packed csv": written(lambda rows, path: rows.to_csv(path, index=False), ".csv.gz"),
    "tsv": written(lambda rows, path: rows.to_csv(path, index=False, sep="\t"), ".tsv"),
    "parquet": written(lambda rows, path: rows.to_parquet(path, row_group_size=70), ".parquet"),
    "feather": written(lambda rows, path: pyarrow.feather.write_feather(rows, path, chunksize=60), ".feather"),
    "lines": written(lambda rows, path: rows.to_json(path, orient="records", lines=True, double_precision=15), ".jsonl"),
    "json": written(lambda rows, path: path.write_text(rows.to_json(orient="records", double_precision=15)), ".json"),
    "excel": written(lambda rows, path: rows.to_excel(path, index=False), ".xlsx"),
    "database": write_sqlite,
    "delta": write_delta,
}


@pytest.mark.parametrize("name", INPUTS)
def test_every_source_that_ingest_reads_can_be_scored(name, release, rows, expected, tmp_path):
    source = INPUTS[name](rows, tmp_path / "rows")
    summary = score(release, source, str(tmp_path / "out.parquet"), ScoreOptions(ids=("id",), block_rows=100))
    scored = pd.read_parquet(tmp_path / "out.parquet")
    assert summary.counts.predicted == 250 and not summary.counts.rejected and summary.equal_in_blocks
    assert scored.columns.tolist() == ["id", "prediction"] and scored.id.tolist() == rows.id.tolist()
    assert np.allclose(scored.prediction, expected, rtol=1e-12)
    if name in ("csv", "parquet", "feather", "database", "delta"):  # The others round numbers when they are written
        assert scored.prediction.to_numpy().tobytes() == expected.tobytes()


OUTPUTS = {
    "out.parquet": pd.read_parquet,
    "out.csv": lambda path: pd.read_csv(path, dtype={"id": str}),
    "out.csv.gz": lambda path: pd.read_csv(path, dtype={"id": str}),
    "out.jsonl": lambda path: pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()]),
    "out.jsonl.gz": lambda path: pd.DataFrame([json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_output_has_the_exact_numbers(name, release, rows, expected, tmp_path):
    rows.to_csv(tmp_path / "rows.csv", index=False)
    options = ScoreOptions(keep=("all",), version=True, block_rows=100)
    score(release, str(tmp_path / "rows.csv"), str(tmp_path / name), options)
    scored = OUTPUTS[name](tmp_path / name)
    assert scored.columns.tolist() == ["row", *COLUMNS, "id", "prediction", "model", "version"]
    assert scored.prediction.to_numpy(float).tobytes() == expected.tobytes()
    assert scored.row.tolist() == list(range(1, 251)) and scored.id.tolist() == rows.id.tolist()
    assert set(scored.model) == {"toy"} and set(scored.version) == {3}
    assert not (tmp_path / f"{name}.rejects.csv").exists() and not (tmp_path / f"{name}.parts").exists()
    if name == "out.parquet":
        assert json.loads(pyarrow.parquet.read_schema(tmp_path / name).metadata[b"mlcycle"])["version"] == 3


def test_columns_that_the_output_has_itself_are_left_out_with_a_note(release, rows, expected, tmp_path):
    wide = rows.assign(prediction=1, row=0, **{"a,b": "x", "long" * 100: "y"})
    wide.to_csv(tmp_path / "rows.csv", index=False)
    summary = score(release, str(tmp_path / "rows.csv"), str(tmp_path / "out.parquet"), ScoreOptions(keep=("all",)))
    scored = pd.read_parquet(tmp_path / "out.parquet")
    assert scored.columns.tolist() == ["row", *COLUMNS, "id", "a,b", "long" * 100, "prediction"]
    assert scored.prediction.to_numpy(float).tobytes() == expected.tobytes() and scored.row.tolist() == list(range(1, 251))
    assert any("are left out: prediction, row." in note for note in summary.notes)
    summary = score(release, str(tmp_path / "rows.csv"), str(tmp_path / "out.csv"), ScoreOptions(keep=("a,b",)))
    assert list(pd.read_csv(tmp_path / "out.csv")) == ["row", "a,b", "prediction"]
    assert max(map(len, summary.notes)) < 200 and "ignored: id, prediction, row, longlong" in summary.notes[-1]


def test_a_table_of_a_database_is_written_whole_or_not_at_all(release, rows, expected, tmp_path):
    source, output = write_sqlite(rows, tmp_path / "in.db"), f"sqlite:///{tmp_path}/in.db#scores"
    score(release, source, output, ScoreOptions(ids=("id",), block_rows=100))
    written = read_database(output).rows
    assert written.prediction.astype(float).tolist() == expected.tolist() and written.id.tolist() == rows.id.tolist()
    with pytest.raises(ParameterError, match="exists"):
        score(release, source, output)
    score(release, source, output, ScoreOptions(overwrite=True))
    assert list(read_database(output).rows) == ["row", "prediction"]


def test_a_folder_becomes_a_folder_or_one_file(release, rows, expected, tmp_path):
    for month in range(3):
        (tmp_path / "in" / f"month={month}").mkdir(parents=True)
        rows.iloc[month * 80 : month * 80 + 80].to_parquet(tmp_path / "in" / f"month={month}" / "part.parquet")
    score(release, str(tmp_path / "in"), f"{tmp_path}/out/", ScoreOptions(ids=("id", "month")))
    files = sorted((tmp_path / "out").rglob("*.parquet"))
    assert [path.parent.name for path in files] == ["month=0", "month=1", "month=2"]
    one = pd.concat([pd.read_parquet(path, partitioning=None) for path in files])
    assert one.prediction.to_numpy().tobytes() == expected[:240].tobytes() and set(one.month) == {"0", "1", "2"}
    score(release, str(tmp_path / "in"), str(tmp_path / "all.csv"), ScoreOptions(block_rows=50))
    whole = pd.read_csv(tmp_path / "all.csv")
    assert whole.file.unique().tolist() == [f"month={month}/part.parquet" for month in range(3)]
    assert whole.row.tolist() == [*range(1, 81)] * 3 and np.array_equal(whole.prediction, expected[:240])


def test_what_cannot_be_used_leaves_nothing_behind(release, rows, tmp_path):
    rows.to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "empty.csv").touch()
    (tmp_path / "rows.abc").touch()
    (tmp_path / "bad.parquet").write_text("no Parquet")
    (tmp_path / "header.csv").write_text(",".join(COLUMNS) + "\n")
    rows.drop(columns="x3").rename(columns={"x5": "X_5"}).to_csv(tmp_path / "fewer.csv", index=False)
    rows.assign(prediction=1).to_csv(tmp_path / "twice.csv", index=False)
    before = sorted(tmp_path.iterdir())
    wrong = {
        ("rows.csv", "out.foo"): "unknown ending",
        ("rows.csv", "no/out.csv"): "does not exist",
        ("rows.csv", "rows.csv"): "would replace the input",
        ("none.csv", "out.csv"): ".arrow, .feather",
        ("rows.abc", "out.csv"): ".arrow, .feather",
        ("empty.csv", "out.csv"): "empty",
        ("header.csv", "out.csv"): "no rows",
        ("bad.parquet", "out.csv"): "is not a table",
        ("fewer.csv", "out.csv"): "'x3', 'x5' are missing in 'fewer.csv'.",
        ("twice.csv", "out.csv"): "has a column 'prediction' of its own",
    }
    for (source, output), message in wrong.items():
        keep = ("prediction",) if source == "twice.csv" else ()
        with pytest.raises(MlcycleError) as raised:
            score(release, str(tmp_path / source), str(tmp_path / output), ScoreOptions(keep=keep))
        assert message in str(raised.value), source
    for address in ("postgresql+psycopg://localhost:1/none#t", "sqlite:////no/such/folder/x.db#t"):
        with pytest.raises(SourceError, match="reports"):
            score(release, address, str(tmp_path / "out.csv"))
        with pytest.raises(SourceError, match="reports"):
            score(release, str(tmp_path / "rows.csv"), address)
    assert sorted(tmp_path.iterdir()) == before


def test_predictions_by_batch_are_exact(release, rows, expected):
    records = [
        {name: None if value != value else value for name, value in row.items()} for row in rows[COLUMNS].to_dict("records")
    ]
    predicted = predict_by_batch(release, records, open_release(release)[0])
    assert predicted.labels.tobytes() == expected.tobytes() and predicted.scores is None
