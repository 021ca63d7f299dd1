"""`mlcycle trace` as a person types it."""

import json

import pytest
from conftest import stored_rows
from recorded_predictions import record_predictions
from typer.testing import CliRunner

import mlcycle as mc
from mlcycle.cli.app import app
from mlcycle.cli.base import console


@pytest.fixture
def trace(project, monkeypatch):
    "A function that runs the command in a project with predictions, and its run."
    monkeypatch.chdir(project)
    monkeypatch.setattr(console, "_width", 1000)  # Paths may be long
    run = mc.open("last", project)
    record_predictions(run, stored_rows(run, "train").head(6))
    return run, lambda *words: CliRunner().invoke(app, ["trace", *words], env={"COLUMNS": "1000"})


def test_a_prediction_is_shown_with_its_origins(trace):
    run, command = trace
    shown = command("request-2")
    assert shown.exit_code == 0, shown.output
    for text in ("row row-2", "computed again", ", equal", run.id, "04_modelling.ipynb", "train@0", "orders.csv",
                 "the model of the registry", "Most similar of", "no actual value yet"):  # fmt: skip
        assert text in shown.stdout
    facts = json.loads(command("row-2", "--json", "--similar", "2").stdout)
    assert len(facts["similar_rows"]["rows"]) == 2
    assert facts["prediction"]["request_id"] == "request-2"


def test_a_row_of_the_source_is_shown_with_its_predictions(trace, tmp_path):
    run, command = trace
    row_id = str(stored_rows(run, "train").index[0])
    shown = command("--row", row_id, "--out", str(tmp_path / "affected.csv"))
    assert shown.exit_code == 0, shown.output
    assert f"{run.release.model.name}@{run.release.model.version}" in shown.stdout
    assert "6 predictions were made by versions that were trained on it." in shown.stdout
    assert len((tmp_path / "affected.csv").read_text().splitlines()) == 7
    facts = json.loads(command("--where", "town=Ulm", "--where", "late=yes", "--json").stdout)
    assert {each["found_by"] for each in facts["tables"]} == {"condition"}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "It is not clear what to trace."),
        (["row-1", "--row", "3"], "It is not clear what to trace."),
        (["rwo-1"], "Did you mean 'row-1'?"),
        (["--row", "12345"], "Row ids go from 0 to 239."),
        (["--row", "1", "--table", "tarin"], "Did you mean 'train'?"),
        (["--where", "town"], "is not of the form COLUMN=VALUE"),
        (["--where", "town=Rom"], "No row has town=Rom."),
        (["row-1", "--out", "rows.csv"], "--out and --table go with --row or --where."),
    ],
)
def test_mistakes_are_told_in_a_sentence(trace, words, text):
    shown = trace[1](*words)
    assert shown.exit_code == 2
    assert text in shown.stderr


def test_help_fits_a_terminal_and_no_log_is_a_clear_error(tmp_path, monkeypatch):
    shown = CliRunner().invoke(app, ["trace", "--help"], env={"COLUMNS": "80", "TERM": "dumb"})
    assert [line for line in shown.stdout.splitlines() if len(line) > 80] == []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.ini").write_text("")
    for words, text in ((["x"], "There is no prediction log yet"), (["--row", "1"], "There are no tables yet.")):
        result = CliRunner().invoke(app, ["trace", *words])
        assert result.exit_code == 2
        assert text in result.stderr
