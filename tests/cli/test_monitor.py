"""`mlcycle monitor`: rows of a file, and options that cannot be right."""

import json

import pandas as pd
import pytest
from commands import cli
from conftest import wine


@pytest.fixture(scope="module")
def project(table_run):
    "The project of a released model."
    return table_run("wine").workspace.project


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    "A file with more rows like those of the training table, without one column."
    file = tmp_path_factory.mktemp("rows") / "rows.csv"
    frame = pd.concat([wine()] * 3).drop(columns="proline")
    frame.assign(day=pd.date_range("2026-01-01", periods=len(frame), freq="1h")).to_csv(file, index=False)
    return file


def test_rows_of_a_file_are_judged(project, rows):
    done = cli("monitor", "last", "--rows", rows, "--time", "day", "--json", "--exit-code", cwd=project)
    assert done.returncode == 3, done.stderr
    health = json.loads(done.stdout)
    assert (health["monitored"], health["rows"], health["n_labelled"]) == ("rows", 534, 534)
    assert health["alarms"][0]["rule"] == "missing column" and "proline" in health["decision"]
    assert health["action"] == "investigate" and len(health["windows"]) == 23


def test_the_table_of_the_command_shows_change_and_windows(project, rows):
    done = cli("monitor", "last", "--rows", rows, cwd=project)
    assert done.returncode == 0, done.stderr
    for words in ("Investigate", "proline", "Drift of the last windows", "effect size", "they are one window"):
        assert words in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--since", "soon"], "'soon' is no duration for --since"),
        (["--since", "2030-01-01"], "--since 2030-01-01 is not before now"),
        (["--since", "2d", "--until", "3d"], "is not before --until 3d"),
        (["--window", "0h"], "no duration for --window"),
        (["--season", "moon", "--rows", "ROWS"], "The season is 'moon'"),
        (["--rows", "ROWS", "--time", "dya"], "no column 'dya'"),
    ],
)
def test_options_that_cannot_be_right_are_named(project, rows, words, message):
    done = cli("monitor", "last", *[rows if word == "ROWS" else word for word in words], cwd=project)
    assert done.returncode != 0 and message in done.stderr + done.stdout
