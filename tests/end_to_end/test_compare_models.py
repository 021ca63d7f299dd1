"""Runs side by side: real runs on a small table, in the terminal and as JSON."""

import json
import shutil

import mlflow
import numpy as np
import pytest
from conftest import QUICK
from typer.testing import CliRunner

import mlcycle as mc
from mlcycle.cli.app import app
from mlcycle.core.runs import list_runs
from mlcycle.core.workspace import Workspace
from mlcycle.stores.models.registry import connect_registry


@pytest.fixture(scope="module")
def project(table_run, tmp_path_factory):
    "Three runs: a whole one, one on the same folds that ends before the holdout is read, and one on other folds."
    folder = tmp_path_factory.mktemp("wine") / "copy"
    shutil.copytree(table_run("wine").workspace.project, folder)  # Its first three stages are fresh here too
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for changed in ({"models": ["forest"]}, {"models": ["linear"], "folds": 4}):  # In this process: one server for both
            mc.run("wine.csv", "target", project=folder, until="modelling", **QUICK | changed)
    return folder


@pytest.fixture(scope="module")
def runs(project):
    "The runs, oldest first."
    return list_runs(Workspace.from_project(project))[::-1]


def typed(*words: str, project, width: int = 80):
    "Run `mlcycle …` in this process, in a terminal of some width."
    return CliRunner().invoke(app, [*words, "--project", str(project)], env={"COLUMNS": str(width), "TERM": "dumb"})


def test_the_last_runs_stand_side_by_side(project, runs):
    shown = typed("compare", project=project)
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.stdout.splitlines()[:40])) <= 80
    for word in ("winner", "cross-validated", "holdout", "p95", "version 1", "aliases", "input columns", "forest", "*"):
        assert word in shown.stdout, word
    assert f"{runs[2].id} cannot be compared fold by fold: it used other rows or folds." in " ".join(shown.stdout.split())


def test_as_json_it_says_what_the_outcomes_say(project, runs):
    one, other, wide = runs
    found = json.loads(typed("compare", one.id, other.id, wide.id, "--json", project=project).stdout)
    assert [run["run"] for run in found["runs"]] == [one.id, other.id, wide.id]
    assert found["runs"][0]["cv_score"]["value"] == one.candidate.leaderboard[0].score.value
    holdout = {score.metric: score.value for score in one.verdict.scores}
    assert found["runs"][0]["holdout_score"]["value"] == holdout[found["metric"]]
    assert found["runs"][1]["holdout_score"] is None
    assert found["leaderboard"]["linear"][1] is None
    assert found["leaderboard"]["forest"][0] is None
    assert any("folds" in name for name in found["parameters"])
    behind = next(line for line in found["differences"] if line["reference"])
    folds = {run.id: np.array(run.candidate.leaderboard[0].fold_scores) for run in runs}
    mean = (folds[behind["run"]] - folds[behind["reference"]]).mean()
    sign = -1 if one.candidate.leaderboard[0].score.lower_is_better else 1
    assert behind["difference"]["value"] == pytest.approx(sign * mean)
    assert behind["difference"]["low"] <= behind["difference"]["value"] <= 0
    assert {behind["run"], behind["reference"]} == {one.id, other.id}
    assert [line["run"] for line in found["differences"] if not line["reference"]] == [wide.id]


def test_any_metric_of_the_holdout_rows_will_do(project, runs):
    metric = runs[0].verdict.scores[-1].metric
    found = json.loads(typed("compare", "--metric", metric, "--json", project=project).stdout)
    assert found["runs"][-1]["holdout_score"]["metric"] == metric


def test_a_wrong_name_is_said(project, runs):
    year = runs[0].id[:2]  # All runs begin so, whenever they were made
    for words, said in (
        (("compare", "none"), "There is no run 'none'"),
        (("compare", year), f"3 runs begin with '{year}'"),
        (("diff", year, "last"), "3 runs begin with"),
        (("compare", "--metric", "acuracy"), "None of these runs has a score by 'acuracy'"),
    ):
        wrong = typed(*words, project=project, width=300)
        assert (wrong.exit_code, said in wrong.stderr) == (2, True), wrong.output


def test_without_runs_it_says_how_to_make_one(tmp_path):
    empty = typed("compare", project=tmp_path)
    assert (empty.exit_code, "mlcycle run" in empty.stderr) == (2, True)


def test_a_registry_that_is_down_is_no_reason_not_to_compare(project, runs, monkeypatch):
    from mlcycle.errors import RegistryError
    from mlcycle.stores.models import registry_queries as registry_view

    def down(*_):
        raise RegistryError("It is down.")

    monkeypatch.setattr(registry_view, "list_versions", down)
    shown = typed("compare", "last", project=project)
    assert (shown.exit_code, "?" in shown.stdout) == (0, True)


def test_the_list_of_runs_names_winners(project, runs):
    shown = typed("runs", project=project, width=200).stdout
    assert runs[0].candidate.winner in shown
    assert f"{runs[0].candidate.leaderboard[0].score.value:.4f}" in shown


def test_every_trial_is_logged_below_its_run(project, runs):
    workspace = Workspace.from_project(project)
    connect_registry(workspace.tracking_uri, workspace.artifacts)
    for run in runs:
        run = mc.open(run.id, project)
        study = run.candidate.study.split("/")[1]
        found = mlflow.search_runs(filter_string=f"tags.study = '{study}'", search_all_experiments=True)
        (parent,) = found[found["tags.trial"].isna()].itertuples()
        lines = found[found["tags.trial"].notna()]
        assert set(lines["tags.mlflow.parentRunId"]) == {parent.run_id} == {run.candidate.model.run_id}
        assert {line.model for line in run.candidate.leaderboard} <= set(lines["tags.mlflow.runName"])
        assert set(lines["tags.run"]) == {run.id}
        assert lines[["tags.code", "tags.table_train", "tags.notebook_sha256"]].notna().all(axis=None)
        assert (lines["metrics.seconds"] > 0).all()
        metric = run.candidate.leaderboard[0].score.metric
        for line in run.candidate.leaderboard:
            one = lines[lines["tags.mlflow.runName"] == line.model].iloc[0]
            assert one[f"metrics.{metric}"] == pytest.approx(line.score.value)
