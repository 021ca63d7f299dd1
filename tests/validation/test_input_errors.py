"""What stage 5 cannot evaluate: one clear line each, with the exit code of a failed stage and no access for nothing."""

import re
import shutil

import mlflow
import numpy as np
import pandas as pd
import pytest
from commands import cli
from projects import add_cell, computed

import mlcycle as mc
from mlcycle.errors import ArtifactError
from mlcycle.ml.predictions import predict
from mlcycle.stores.models.registry_queries import open_registry_read_only
from mlcycle.stores.tables.datasets import write_table
from mlcycle.stores.tables.holdout import read_any_table, read_holdout_accesses
from mlcycle.stores.tables.table_storage import table_storage
from mlcycle.validation.groups import UNDECIDED, calibration_by_group, compare_protected_groups, score_by_group
from mlcycle.validation.stage import load_candidate_model, predict_with_champion, validate_model

OTHER_TABLE = """
import json
from pathlib import Path
from mlcycle.core.runs import Run
from mlcycle.stores.tables.datasets import write_table
from mlcycle.stores.tables.holdout import read_any_table

made = Run(Path(run_dir))
dataset = json.loads((made.folder / "data.json").read_text())
rows = read_any_table(made.workspace, made.dataset.tables["{name}"], reason="a test")
dataset["tables"]["{name}"] = write_table(made.workspace.tables, "{name}", rows{change}).model_dump()
(made.folder / "data.json").write_text(json.dumps(dataset))
"""
REMOVED = "import shutil; from mlcycle.core.workspace import Workspace; shutil.rmtree(Workspace.from_project().root / 'holdout')"
CASES = {
    "the holdout is missing": (
        REMOVED,
        ["Version 0 of the table 'holdout' cannot be read", "There is no such folder.", "mlcycle run"],
    ),
    "the holdout lacks a column": (
        OTHER_TABLE.format(name="holdout", change=".drop(columns='price')"),
        ["The holdout has another schema", "it has no column 'price'", "mlcycle run"],
    ),
    "a column has another type": (
        OTHER_TABLE.format(name="holdout", change=".assign(price='cheap')"),
        ["The holdout has another schema", "'price' is text, not number", "mlcycle run"],
    ),
    "the holdout has one class": (
        OTHER_TABLE.format(name="holdout", change=".query('late == \"no\"')"),
        ["only one class of the target 'late'", "rows are 'no'", "holdout_share"],
    ),
    "the model was trained on other rows": (
        OTHER_TABLE.format(name="train", change=".iloc[5:]"),
        ["orders-late version 1 was trained on train@0 (SHA-256 ", "of this run is train@1 (SHA-256 ", "mlcycle run"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stage_that_cannot_evaluate_fails_with_one_line(case, project):
    code, expected = CASES[case]
    add_cell(project, "validation", code)
    done = cli("run", "-q", "--until", "validation", cwd=project)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "Error" in line]
    for words in expected:
        assert words in line
    made = mc.open("last", project)
    assert made.info["status"] == "failed"
    assert not (made.folder / "validation.json").exists()


@pytest.fixture
def finished(project):
    "The run of a copy of the shared project."
    return mc.open("last", project)


def validate(run: mc.Run, **changes):
    "Evaluate the candidate of a run again, with changed outcomes, in few seconds."
    outcomes = {"problem": run.problem, "dataset": run.dataset, "candidate": run.candidate} | changes
    return validate_model(**outcomes, workspace=run.workspace, n_resamples=50, more_metrics=False, sections=(), run="a test")


def with_table(run: mc.Run, name: str, rows):
    "The data of a run with another table."
    return run.dataset.model_copy(update={"tables": run.dataset.tables | {name: write_table(run.workspace.tables, name, rows)}})


def test_an_altered_holdout_is_noticed_by_its_hash_and_made_again(finished):
    project, table = finished.workspace.project, finished.dataset.tables["holdout"]
    path = table_storage(finished.workspace.tables, "holdout").place
    (file,) = path.glob("*.parquet")
    rows = pd.read_parquet(file)
    rows.assign(price=rows.price + 0.001).to_parquet(file)
    with pytest.raises(ArtifactError, match="cannot be read from .* Its files are damaged or altered. .* mlcycle run"):
        validate(finished)
    log = path / "_delta_log" / f"{table.version:020}.json"  # Now with the size of the new file
    log.write_text(re.sub(r'"size":\d+', f'"size":{file.stat().st_size}', log.read_text()))
    with pytest.raises(ArtifactError, match=f"Version 0 of the table 'holdout' has been altered. .*{table.sha256[:12]}"):
        validate(finished)
    shown = cli("data", "show", "holdout@0", "--reason", "a look", cwd=project)
    assert shown.returncode == 1
    assert "has been altered" in shown.stderr
    shutil.rmtree(path)
    assert cli("run", "-q", cwd=project).returncode == 0
    repaired = mc.open("last", project)
    assert "data" in computed(repaired), "stage 2 writes the same rows again"
    assert repaired.dataset.tables["holdout"].sha256 == table.sha256


def test_a_model_of_other_rows_costs_no_access_to_the_holdout(finished):
    train = read_any_table(finished.workspace, finished.dataset.tables["train"])
    before = read_holdout_accesses(finished.workspace)
    with pytest.raises(ArtifactError, match="was trained on train@0"):
        validate(finished, dataset=with_table(finished, "train", train.iloc[1:]))
    assert read_holdout_accesses(finished.workspace) == before
    same = with_table(finished, "train", train)
    assert same.tables["train"] == finished.dataset.tables["train"]
    assert finished.candidate.train_table == same.tables["train"]
    assert validate(finished, dataset=same)[0].gates == validate(finished)[0].gates


def test_a_missing_value_more_is_no_other_schema(finished):
    holdout = read_any_table(finished.workspace, finished.dataset.tables["holdout"], reason="a test")
    holdout = holdout.assign(town=pd.Series(dtype="str"), price=np.where(np.arange(len(holdout)) % 9, holdout.price, np.nan))
    verdict, _ = validate(finished, dataset=with_table(finished, "holdout", holdout))
    assert verdict.holdout_rows == len(holdout)


def test_without_a_champion_comparisons_pass_and_say_so(finished):
    name = finished.candidate.model.name
    assert finished.verdict.promotion_reason == "No version was champion."
    with open_registry_read_only(finished.workspace):
        mlflow.MlflowClient().delete_registered_model_alias(name, "champion")
    assert predict_with_champion(finished.problem, finished.candidate, None, finished.workspace) == (None, None, "")
    criteria = ["not worse than champion by more than 0.05", "better than champion by 0.01"]
    problem = finished.problem.model_copy(update={"criteria": criteria})
    verdict, _ = validate(finished, problem=problem)
    assert [gate.result for gate in verdict.gates] == ["pass", "pass"]
    assert all("no champion" in gate.note for gate in verdict.gates)
    assert verdict.promotion_reason == "No version was champion."
    assert (verdict.previous_champion, verdict.current_champion) == (None, 1)


@pytest.mark.parametrize("words", [["rollback", "--reason", "x"], ["card"], ["dossier"]], ids=lambda words: words[0])
def test_commands_about_the_champion_say_that_there_is_none(finished, words):
    with open_registry_read_only(finished.workspace):
        mlflow.MlflowClient().delete_registered_model_alias(finished.candidate.model.name, "champion")
    done = cli(*words, cwd=finished.workspace.project)
    assert done.returncode in (1, 2)
    assert "champion" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("Error") == 1


def test_a_group_of_one_row_is_undecided(finished):
    rows = read_any_table(finished.workspace, finished.dataset.tables["holdout"], reason="a test")
    rows.loc[rows.index[0], "town"] = "Kiel"
    problem = finished.problem.model_copy(update={"protected_columns": ["town"]})
    predictions = predict(load_candidate_model(finished.candidate, finished.workspace), rows, problem)
    groups = score_by_group(problem, rows, predictions, 50).set_index("group")
    assert groups.loc["Kiel", "rows"] == 1
    assert groups.loc["Kiel", "note"] == UNDECIDED
    assert calibration_by_group(problem, rows, predictions).set_index("group").loc["Kiel", "result"] == UNDECIDED
    for each in compare_protected_groups(problem, rows, predictions, 50):
        assert "Kiel" not in each.note
        assert "Too small to compare: 1 group." in each.note or "fewer than two groups" in each.note
    verdict, _ = validate(finished, problem=problem, dataset=with_table(finished, "holdout", rows))
    assert verdict.holdout_rows == len(rows)
