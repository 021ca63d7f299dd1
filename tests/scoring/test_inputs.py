"""What the input of a run may be: never its output, and with another decimal mark."""

import errno
import os
import shutil
import sqlite3
from pathlib import Path

import pandas as pd
import pytest
from toy_releases import toy_release, toy_rows

from mlcycle.errors import DiskFullError, ParameterError, SourceError
from mlcycle.scoring.batch import ScoreOptions, score

pytestmark = pytest.mark.filterwarnings("ignore:The release")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    "A release of trees."
    return toy_release(tmp_path_factory.mktemp("toy"), 1)


def test_an_output_never_replaces_its_input(release, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = toy_rows(5)
    for name in ("rows/f.csv", "out.csv.rejects.csv", "mine.csv.summary.json.csv"):
        rows.to_csv(name, index=False)
    os.symlink(folder / "f.csv", "soft.csv")
    os.link(folder / "f.csv", "hard.csv")
    os.symlink(folder, "again")
    with sqlite3.connect("shop.db") as connection:
        rows.to_sql("rows", connection, index=False)
    connection.close()
    same = [
        ("rows/f.csv", "rows/f.csv"),
        ("rows/f.csv", str(folder / ".." / "rows" / "f.csv")),
        ("rows/f.csv#separator=,", "soft.csv"),
        ("rows/f.csv", "hard.csv"),
        ("rows/*.csv", "hard.csv"),
        ("rows", "again/"),
        ("rows", "rows/f.csv"),
        ("rows/f.csv", "rows/"),
        ("rows/f.csv", "./"),
        ("out.csv.rejects.csv", "out.csv"),
        ("sqlite:///shop.db#rows", f"sqlite:///{tmp_path}/shop.db#Rows"),
        ("sqlite:///shop.db#SELECT * FROM rows", "sqlite:///./shop.db#rows"),
    ]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for source, output in same:
        with pytest.raises(ParameterError, match="would replace the input"):
            score(release, source, output, ScoreOptions(overwrite=True))
    with pytest.raises(ParameterError, match="would replace the input"):
        score(release, "rows/f.csv", "new.csv", ScoreOptions(rejects=Path("hard.csv")))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    score(release, "sqlite:///shop.db#rows", "sqlite:///shop.db#scores")
    shutil.rmtree(folder)


@pytest.mark.parametrize("large", [False, True])
def test_a_decimal_comma_needs_the_option_of_the_source(release, tmp_path, monkeypatch, large):
    if large:
        monkeypatch.setattr("mlcycle.scoring.csv_source.SMALL_CSV", 0)
    rows, source = toy_rows(40), tmp_path / "semi.csv"
    rows.to_csv(tmp_path / "plain.csv", index=False)
    rows.to_csv(source, index=False, sep=";", decimal=",")
    with pytest.raises(Exception, match="All 40 rows are rejected"):
        score(release, str(source), str(tmp_path / "out.csv"))
    rows["x2"] = 1.234
    rows.to_csv(tmp_path / "plain.csv", index=False)
    rows.to_csv(source, index=False, sep=";", decimal=",")
    score(release, str(tmp_path / "plain.csv"), str(tmp_path / "plain.out.csv"), ScoreOptions(overwrite=True))
    with pytest.raises(Exception, match="All 40 rows are rejected"):
        score(release, str(source), str(tmp_path / "three.csv"))
    for number, options in enumerate(("decimal=,", "separator=;&decimal=,")):
        score(release, f"{source}#{options}", str(tmp_path / f"three{number}.csv"))
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / f"three{number}.csv"), pd.read_csv(tmp_path / "plain.out.csv"))


def test_places_that_cannot_be_used_are_named_as_given(release, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy_rows(5).to_csv("rows.csv", index=False)
    (tmp_path / "shop.db").touch()
    with pytest.raises(SourceError, match="sqlite:///shop.db#rows"):
        score(release, "shop.db#rows", "out.csv")

    def full(*words, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mlcycle.scoring.batch.finish_output", full)
    with pytest.raises(DiskFullError, match=f"{tmp_path} is full.*goes on with what is scored"):
        score(release, "rows.csv", "out.csv")
    monkeypatch.setattr(os, "access", lambda *words, **options: False)
    with pytest.raises(ParameterError, match="The output 'new.csv' cannot be written"):
        score(release, "rows.csv", "new.csv")
    assert not (tmp_path / "new.csv.parts").exists()


def test_a_run_that_cannot_be_resumed_names_the_options(release, tmp_path):
    toy_rows(5).to_csv(tmp_path / "rows.csv", index=False)
    source, output = str(tmp_path / "rows.csv"), str(tmp_path / "out.csv")
    with open(source, "a") as file:
        file.write("x" + ",1" * 7 + "\n")
    with pytest.raises(Exception, match="1 of 6 rows"):
        score(release, source, output, ScoreOptions(max_rejects="0"))
    summary = score(release, source, output, ScoreOptions(block_rows=3, version=True))
    assert "as these have changed: --with-version, --block-rows." in summary.notes[0]
