"""Rows that cannot be used are set aside, with their place and the reason."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from toy_releases import COLUMNS, toy_release, toy_rows

from mlcycle.errors import ParameterError
from mlcycle.scoring.batch import ScoreOptions, TooManyRejectsError, score
from mlcycle.service.app import create_app
from mlcycle.service.bundle import open_release
from mlcycle.service.prediction_table import predict_table

pytestmark = pytest.mark.filterwarnings("ignore:The release")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    "A release of trees."
    return toy_release(tmp_path_factory.mktemp("toy"), 1)


def write_rows(path: Path, n_rows: int, bad: dict[int, str], lines: dict[int, str] | None = None) -> str:
    "A CSV file with other texts in `x2` of some rows, and other lines before some rows; rows from 1."
    rows = toy_rows(n_rows).astype(str)
    for row, text in bad.items():
        rows.loc[row - 1, "x2"] = text
    written = rows.to_csv(index=False).splitlines()
    for row, line in sorted((lines or {}).items(), reverse=True):
        written.insert(row, line)
    path.write_text("\n".join(written) + "\n")
    return str(path)


@pytest.mark.parametrize("large", [False, True])
def test_rejects_name_row_column_value_and_rule(release, tmp_path, monkeypatch, large):
    if large:
        monkeypatch.setattr("mlcycle.scoring.csv_source.SMALL_CSV", 0)
    source = write_rows(tmp_path / "rows.csv", 30, {3: "three", 14: "inf", 25: "1,957"}, {20: "1;2", 9: '"x,'})
    summary = score(release, source, str(tmp_path / "out.csv"), ScoreOptions(block_rows=10))
    rejects = pd.read_csv(tmp_path / "out.csv.rejects.csv", dtype=str, keep_default_na=False)
    assert list(rejects) == ["row", "line", "file", "column", "value", "rule", "message", "expected"]
    found = rejects[["row", "line", "column", "value", "rule"]].to_numpy().tolist()
    assert found == [
        ["3", "", "x2", "three", "type"],
        ["9", "10", "", '"x,', "malformed"],
        ["21", "22", "", "1;2", "malformed"],
        ["27", "", "x2", "1,957", "ambiguous"],
    ]
    assert summary.counts.changes == {"x2: infinite": 1} and "Read as CSV, with the separator ',' and in UTF-8." in summary.notes
    assert set(rejects.file) == {"rows.csv"} and "in row 27" in rejects.message.iloc[-1]
    assert summary.counts.rows == 32 and summary.counts.predicted == 28 and summary.counts.rejected == 4
    assert pd.read_csv(tmp_path / "out.csv").row.tolist() == [row for row in range(1, 33) if row not in (3, 9, 21, 27)]
    facts = json.loads((tmp_path / "out.csv.summary.json").read_text())
    assert facts["counts"]["rules"]["malformed"] == 2 and facts["rejects"].endswith("out.csv.rejects.csv")


def test_too_many_rejects_give_no_output_but_can_be_continued(release, tmp_path):
    source, output = write_rows(tmp_path / "rows.csv", 40, {3: "three", 14: "x"}), tmp_path / "out.parquet"
    for limit in ("1", "2%", "0.04"):
        with pytest.raises(TooManyRejectsError, match=r"of [24]0 rows are rejected.* kept in .*out.parquet.parts"):
            score(release, source, str(output), ScoreOptions(max_rejects=limit, block_rows=10))
        assert not output.exists() and len(pd.read_csv(f"{output}.rejects.csv")) == 2
    summary = score(release, source, str(output), ScoreOptions(max_rejects="5%", block_rows=10))
    assert summary.resumed_rows == 40 and len(pd.read_parquet(output)) == 38
    with pytest.raises(ParameterError, match="A number of rows or a share"):
        score(release, source, str(output), ScoreOptions(max_rejects="many"))


def test_all_rows_rejected_is_an_error(release, tmp_path):
    source = write_rows(tmp_path / "rows.csv", 20, dict.fromkeys(range(1, 21), "?"))
    with pytest.raises(TooManyRejectsError, match="All 20 rows"):
        score(release, source, str(tmp_path / "out.csv"), ScoreOptions(block_rows=7))
    assert not (tmp_path / "out.csv").exists() and len(pd.read_csv(tmp_path / "out.csv.rejects.csv")) == 20
    assert not (tmp_path / "out.csv.parts").exists()


def test_rejects_of_a_replaced_output_go(release, tmp_path):
    source, output = write_rows(tmp_path / "rows.csv", 20, {3: "three"}), str(tmp_path / "out.csv")
    score(release, source, output)
    write_rows(tmp_path / "rows.csv", 20, {})
    assert (tmp_path / "out.csv.rejects.csv").exists()
    score(release, source, output, ScoreOptions(overwrite=True))
    assert not (tmp_path / "out.csv.rejects.csv").exists() and len(pd.read_csv(output)) == 20


def test_lines_of_json_keep_their_numbers(release, tmp_path):
    records = [json.dumps(dict.fromkeys(COLUMNS, 0.5)) for _ in range(9)]
    records[2], records[6] = "oops", json.dumps(dict.fromkeys(COLUMNS, 0.5) | {"x1": [1]})
    del (some := json.loads(records[4]))["x7"]  # Absent means missing
    records[4] = json.dumps(some)
    (tmp_path / "rows.jsonl").write_text("\n".join(records) + "\n\n")
    summary = score(release, str(tmp_path / "rows.jsonl"), str(tmp_path / "out.csv"), ScoreOptions(block_rows=4))
    assert pd.read_csv(tmp_path / "out.csv").row.tolist() == [1, 2, 4, 5, 6, 8, 9]
    rejects = pd.read_csv(tmp_path / "out.csv.rejects.csv")
    assert (
        rejects.row.tolist() == [3, 7]
        and "in row 7" in rejects.message[1]
        and summary.counts.rules == {"malformed": 1, "type": 1}
    )


def test_lines_that_are_no_records_are_left_out_of_large_files_too(release, tmp_path, monkeypatch):
    header = ",".join(COLUMNS)
    source = write_rows(tmp_path / "rows.csv", 50, {}, {20: header, 30: "," * 7})
    with open(source, "a") as file:
        file.write("Source: the warehouse" + "," * 7 + "\n")
    for size in (1 << 20, 0):
        monkeypatch.setattr("mlcycle.scoring.csv_source.SMALL_CSV", size)
        summary = score(release, source, str(tmp_path / f"{size}.csv"), ScoreOptions(block_rows=16))
        assert summary.counts.predicted == 50 and not summary.counts.rejected
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / f"{1 << 20}.csv").read_bytes()


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_infinite_numbers_are_missing_in_files_and_frames(release, tmp_path, ending):
    rows = toy_rows(40)
    rows.loc[rows.index[::10], "x2"] = [np.inf, -np.inf, np.inf, -np.inf]
    source, missing = str(tmp_path / f"rows.{ending}"), rows.replace([np.inf, -np.inf], np.nan)
    if ending == "csv":
        rows.to_csv(source, index=False)
    elif ending == "parquet":
        rows.to_parquet(source)
    else:
        Path(source).write_text(
            "".join(json.dumps(row) + "\n" for row in rows.to_dict("records"))
        )  # Infinity, as Python writes it
    summary = score(release, source, str(tmp_path / "out.parquet"))
    bundle, model = open_release(release)
    expected = predict_table(bundle, model, missing).prediction
    table = predict_table(bundle, model, rows)
    assert pd.read_parquet(tmp_path / "out.parquet").prediction.tolist() == expected.tolist() == table.prediction.tolist()
    assert summary.counts.changes == {"x2: infinite": 4} and "'infinite'" in table.attrs["notes"][0]


def test_the_service_rejects_infinity(release):
    with TestClient(create_app(release)) as client:
        for value in ("Infinity", '"inf"', "1e999"):
            row = json.dumps(dict.fromkeys(COLUMNS, 0.5)).replace("0.5", value, 1)
            response = client.post("/predict", content=f'{{"rows": [{row}]}}', headers={"Content-Type": "application/json"})
            assert response.status_code == 422 and "infinity is not a number" in response.text, response.text


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("size", [3, 50])
def test_row_numbers_are_those_of_the_file_without_errors(release, tmp_path, monkeypatch, large, size):
    if large:
        monkeypatch.setattr("mlcycle.scoring.csv_source.SMALL_CSV", 0)
    rows = toy_rows(20)
    rows.to_csv(tmp_path / "clean.csv", index=False)
    score(release, str(tmp_path / "clean.csv"), str(tmp_path / "clean.out.csv"))
    lines = (tmp_path / "clean.csv").read_text().splitlines()
    lines[1] = "1;2"
    lines[8] = '1,"two\nlines",3'
    lines[9] = "oops"
    lines[20] = '"open'
    lines.insert(5, lines[0])  # A repeated header is no record
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    summary = score(release, str(tmp_path / "rows.csv"), str(tmp_path / "out.csv"), ScoreOptions(block_rows=size))
    expected, bad = pd.read_csv(tmp_path / "clean.out.csv"), [1, 8, 9, 20]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out.csv"), expected[~expected.row.isin(bad)].reset_index(drop=True))
    rejects = pd.read_csv(tmp_path / "out.csv.rejects.csv")
    assert rejects.row.tolist() == bad and rejects.line.tolist() == [2, 10, 12, 23]
    assert (summary.counts.rows, summary.counts.rejected, summary.counts.rules) == (20, 4, {"malformed": 4})
