"""Whole runs on real tables, looked at from outside: outcomes, stores, pages, and numbers computed again."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from commands import cli
from conftest import QUICK, TABLES, WORDS, stored_rows
from sklearn import metrics

import mlcycle as mc
from mlcycle.outcomes import STAGES
from mlcycle.reports.pages import page_name
from mlcycle.stores.events import open_event_database, read_events

TASKS = {"cancer": "binary", "wine": "multiclass", "diabetes": "regression", "penguins": "multiclass", "orders": "binary"}


@pytest.fixture(params=TABLES)
def run(request, table_run):
    "One run after the other."
    return table_run(request.param)


def test_leaves_outcomes_and_pages(run):
    assert run.info["status"] == "done"
    pages = run.workspace.reports / run.id
    for stage in STAGES:
        page = pages / page_name(stage)
        assert run.outcome(stage).decision in page.read_text().replace("&gt;", ">").replace("&#39;", "'")
        assert json.loads(page.with_suffix(".json").read_text()) == json.loads((run.folder / f"{stage}.json").read_text())
        assert page.with_suffix(".ipynb").is_file()
    assert run.id in (run.workspace.reports / "index.html").read_text()


def test_finds_the_task_and_loses_no_row(run):
    name = run.problem.source.removesuffix(".csv")
    assert run.problem.task == TASKS[name]
    dataset, frame = run.dataset, TABLES[name][0]()
    assert dataset.rows_in == len(frame) == dataset.rows_clean + dataset.rows_set_aside + dataset.rows_unlabelled
    tables = {name: stored_rows(run, name) for name in dataset.tables if name not in ("ledger", "malformed")}
    ids = pd.concat([pd.Series(rows.index) for rows in tables.values()])
    assert sorted(ids) == list(range(len(frame))), "every row is in exactly one table"


def test_holdout_scores_can_be_computed_again(run):
    holdout = stored_rows(run, "holdout")
    said, truth = run.predict(holdout), holdout[run.problem.target]
    shown = {score.metric: score for score in run.verdict.scores}
    if run.problem.task == "regression":
        assert shown["rmse"].value == pytest.approx(metrics.root_mean_squared_error(truth, said.prediction))
        assert shown["r2"].value == pytest.approx(metrics.r2_score(truth, said.prediction))
    else:
        assert shown["accuracy"].value == pytest.approx(metrics.accuracy_score(truth, said.prediction))
        average = "binary" if run.problem.task == "binary" else "macro"
        expected = metrics.f1_score(truth, said.prediction, average=average, pos_label=run.problem.positive or 1)
        assert shown["f1"].value == pytest.approx(expected)
    assert all(score.low <= score.high for score in shown.values())


def test_the_champion_moves_only_on_a_pass(run):
    verdict = run.verdict
    assert verdict.approved == all(gate.passed for gate in verdict.gates)
    assert verdict.current_champion == (run.candidate.model.version if verdict.approved else None)
    assert run.release.released == verdict.approved


def test_beats_guessing_and_answers_alike(run):
    "These four tables can be learnt; a run that does not show it is broken."
    assert run.verdict.approved, run.verdict.decision
    assert run.release.parity.n_equal == run.release.parity.rows == QUICK["parity_rows"]


def test_without_a_future_the_holdout_rows_are_watched(run):
    health = run.health
    assert (health.monitored, health.action) == ("holdout", "nothing")
    assert "there are no future rows" in (run.workspace.reports / run.id / page_name("monitoring")).read_text()
    assert health.latency_ms["p50"] <= health.latency_ms["p95"] <= health.latency_ms["p99"]
    events, features = read_events(open_event_database(run.workspace.rehearsal_url), run.id)
    assert len(events) == health.rows == len(features)
    assert events.actual.notna().all()


def test_flights_in_time_order(tmp_path):
    "The bundled flights, thinned: the past teaches, the later is asked, the future is met."
    run = mc.run("sample", project=tmp_path, **QUICK)
    parts = {name: stored_rows(run, name) for name in run.dataset.tables}
    when = "scheduled_departure"
    assert parts["train"][when].max() < pd.Timestamp("2013-09-01") <= parts["holdout"][when].min()
    assert parts["holdout"][when].max() < pd.Timestamp("2013-11-01") <= parts["future"][when].min()
    assert len(parts["unlabelled"]) == run.dataset.rows_unlabelled and parts["unlabelled"].late.isna().all()
    afterwards = {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"}
    assert not afterwards & set(run.plan.input_columns)
    assert afterwards <= set(run.plan.dropped_columns)
    assert run.health.monitored == "future"
    assert {"reference_seasons.json", "reference_days.npz", "reference_prediction_days.npz"} <= set(run.release.files)
    starts = [window.start for window in run.health.windows]
    assert starts == sorted(starts)
    features = (run.workspace.reports / run.id / page_name("features")).read_text()
    assert "known only after departure" in features
    problem = re.sub(r"<[^>]+>", "", (run.workspace.reports / run.id / page_name("problem")).read_text())
    assert "LEFT JOIN weather" in problem


def test_a_rejected_model_is_not_released(table_run, tmp_path):
    TABLES["diabetes"][0]().to_csv(tmp_path / "diabetes.csv", index=False)
    run = mc.run(str(tmp_path / "diabetes.csv"), "target", project=tmp_path, criteria=["r2 >= 0.99"], **QUICK)
    assert not run.verdict.approved
    assert run.verdict.current_champion is None
    assert not run.release.released
    assert not (run.workspace.root / "releases").exists()
    assert (run.health.monitored, run.health.back_to_stage) == ("none", "modelling")


def test_the_same_inputs_give_the_same_outcomes(table_run, tmp_path):
    first = table_run("wine")
    TABLES["wine"][0]().to_csv(tmp_path / "wine.csv", index=False)
    assert cli("run", "--source", "wine.csv", "--target", "target", "-q", *WORDS, cwd=tmp_path).returncode == 0
    again = mc.open("last", tmp_path)
    assert again.problem.content() == first.problem.content()
    assert again.dataset.content() == first.dataset.content()
    assert again.plan.features == first.plan.features
    assert again.candidate.content() == first.candidate.content()
    assert again.candidate.model.sha256 == first.candidate.model.sha256, "equal models are equal files"
    assert again.verdict.scores == first.verdict.scores


def test_parquet_and_a_model_that_knows_the_answer(tmp_path):
    "A table whose answer is in it: the score says so, and the criterion of a person is decided."
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.random(300), "noise": rng.random(300), "town": rng.choice(["x", "y", None], 300)})
    frame["late"] = np.where(frame.a > 0.6, "yes", "no")
    frame.to_parquet(tmp_path / "orders.parquet")
    known = QUICK | {"trusted": ["a"]}  # It tells the answer alone, and would be a suspect
    run = mc.run(str(tmp_path / "orders.parquet"), "late", tmp_path, "validation", criteria=["f1 >= 0.8"], metric="f1", **known)
    assert run.problem.positive == "yes"
    assert run.verdict.approved
    assert run.verdict.scores[0].metric == "f1"
    assert list(run.predict(frame).columns) == ["prediction", "score"]


def test_time_without_moments_splits_by_share(tmp_path):
    "A table with a time column and nothing else said: seven parts are for training, two are the holdout, one is the future."
    rng = np.random.default_rng(0)
    days = pd.date_range("2024-01-01", periods=400).to_series().sample(frac=1, random_state=0)
    frame = pd.DataFrame({"placed": days.dt.strftime("%Y-%m-%d"), "price": rng.random(400), "late": rng.choice(["a", "b"], 400)})
    frame.to_csv(tmp_path / "orders.csv", index=False)
    run = mc.run(str(tmp_path / "orders.csv"), "late", tmp_path, "data", time="placed")
    parts = {name: stored_rows(run, name).placed for name in run.dataset.tables}
    assert {name: len(part) for name, part in parts.items()} == {"train": 280, "holdout": 80, "future": 40}
    assert parts["train"].max() < parts["holdout"].min() <= parts["holdout"].max() < parts["future"].min()
    assert parts["train"].is_monotonic_increasing
