"""What fails in the middle: a cell, a kernel, an artefact, a neighbour."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from commands import cli
from conftest import QUICK, TABLES, WORDS, stored_rows
from projects import own_notebooks

import mlcycle as mc
from mlcycle.errors import ArtifactError, ParameterError, StageError
from mlcycle.stores.models.model_files import load_model, save_model
from mlcycle.stores.models.registry import get_alias_version, open_experiment
from mlcycle.stores.tables.datasets import read_table


@pytest.fixture
def wine(tmp_path):
    "A project with a table."
    TABLES["wine"][0]().to_csv(tmp_path / "wine.csv", index=False)
    (tmp_path / "settings.ini").write_text("[problem]\nsource = wine.csv\ntarget = target\n")
    return tmp_path


def test_a_failing_cell_stops_the_run_and_its_page_says_where(wine):
    own_notebooks(wine, "features", "raise RuntimeError('the moon is full')")
    done = cli("run", *WORDS, cwd=wine)
    assert done.returncode == 1
    assert "03_features.ipynb" in done.stderr
    assert "the moon is full" in done.stderr
    run = mc.open("last", wine)
    assert run.info["status"] == "failed"
    assert run.dataset.rows_in == 178, "earlier outcomes stay"
    with pytest.raises(ArtifactError):
        run.outcome("features")
    page = (run.workspace.reports / run.id / "03_features.html").read_text()
    assert "This stage failed." in page
    assert "the moon is full" in page
    assert "RuntimeError" in page
    assert not (run.workspace.reports / run.id / "04_modelling.html").exists()
    assert "the moon is full" in (run.workspace.reports / "index.html").read_text()


def test_a_kernel_that_dies_is_an_error_with_exit_code_1(wine):
    own_notebooks(wine, "data", "import os; os._exit(3)")
    done = cli("run", "-q", *WORDS, cwd=wine)
    assert done.returncode == 1
    assert "02_data.ipynb" in done.stderr
    assert "Traceback" not in done.stderr
    assert mc.open("last", wine).problem.task == "multiclass"


def test_a_failing_first_stage_leaves_a_run_that_says_so(wine):
    own_notebooks(wine, "problem", "1 / 0")
    with pytest.raises(StageError, match="ZeroDivisionError"):
        mc.run(project=wine, **QUICK)
    assert mc.open("last", wine).info["status"] == "failed"


def test_an_interruption_keeps_what_was_done(wine):
    own_notebooks(wine, "features", "open('here', 'w').close(); import time; time.sleep(300)")
    command = [Path(sys.executable).with_name("mlcycle"), "run", "-q", *WORDS]
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - a background shell has its children ignore it
    with subprocess.Popen(command, cwd=wine, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        while not (wine / "here").exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted." in printed
    assert "Traceback" not in printed
    run = mc.open("last", wine)
    assert (run.info["status"], run.info["error"]) == ("interrupted", "Interrupted.")
    assert run.dataset.rows_in == 178
    assert "Interrupted." in (run.workspace.reports / run.id / "03_features.html").read_text()


def test_two_runs_at_once_do_not_harm_each_other(wine):
    TABLES["diabetes"][0]().to_csv(wine / "diabetes.csv", index=False)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(cli, "run", "-q", *WORDS, "--source", name, cwd=wine) for name in ("wine.csv", "diabetes.csv")]
        done = [future.result() for future in both]
    assert [d.returncode for d in done] == [0, 0], done[0].stderr + done[1].stderr
    runs = {run.problem.source: run for run in (mc.open(p.name, wine) for p in (wine / ".mlcycle" / "runs").iterdir())}
    for source, rows in (("wine.csv", 178), ("diabetes.csv", 442)):
        run = runs[source]
        tables = [stored_rows(run, table) for table in run.dataset.tables]
        assert sum(map(len, tables)) == rows
        open_experiment(run.workspace.tracking_uri, run.workspace.artifacts, run.candidate.model.name)
        assert get_alias_version(run.candidate.model.name) == run.candidate.model.version
        assert run.health.rows == QUICK["replay_rows"] or run.health.rows == run.verdict.holdout_rows


def test_a_source_that_changes_under_way_is_noticed(wine):
    own_notebooks(wine, "data", "open('wine.csv', 'a').write('1,' * 4 + '0\\n')")
    done = cli("run", "-q", *WORDS, cwd=wine)
    assert done.returncode != 0
    assert "not those that stage 1 read" in done.stderr


def test_altered_artefacts_are_never_used(table_run):
    run = table_run("wine")
    plan = run.workspace.root / run.plan.pipeline.path
    good = plan.read_bytes()
    plan.write_bytes(good[:-1] + b"x")
    with pytest.raises(ArtifactError, match="altered"):
        load_model(plan, run.plan.pipeline.sha256)
    plan.write_bytes(good)
    other = run.dataset.tables["train"].model_copy(update={"sha256": "0" * 64})
    with pytest.raises(ArtifactError, match="altered"):
        read_table(run.workspace.tables, other)


def test_a_pipeline_saved_by_one_process_loads_in_a_fresh_one(table_run, tmp_path):
    run = table_run("penguins")
    holdout = stored_rows(run, "holdout")[run.plan.input_columns]
    holdout.to_parquet(tmp_path / "rows.parquet")
    model = run.workspace.root / run.release.bundle / "model.skops"
    code = (
        "import sys, pandas as pd; from mlcycle.stores.models.model_files import load_model; "
        "print(load_model(sys.argv[1]).predict(pd.read_parquet(sys.argv[2])).tolist())"
    )
    fresh = subprocess.run(
        [sys.executable, "-c", code, model, tmp_path / "rows.parquet"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert fresh.stdout.strip() == str(run.predict(holdout).prediction.tolist())


def test_a_crafted_model_is_refused(tmp_path):
    from sklearn.preprocessing import FunctionTransformer

    for function in (subprocess.run, partial(subprocess.run, shell=True)):
        sha256 = save_model(FunctionTransformer(function), tmp_path / "model.skops")
        with pytest.raises(ArtifactError, match=r"not trusted: subprocess\.run"):
            load_model(tmp_path / "model.skops", sha256)


def test_secrets_stay_in_the_environment(wine):
    (wine / "settings.ini").write_text(
        "[stores]\nevents_url = sqlite:///$EVENTS_FOLDER/$EVENTS_SECRET.db\n[problem]\nsource = wine.csv\ntarget = target\n"
    )
    (wine / "hunter2.db").write_text("This is no database, which stage 7 reports.")
    done = cli("run", "-q", *WORDS, cwd=wine, EVENTS_FOLDER=str(wine), EVENTS_SECRET="hunter2")
    assert done.returncode == 0, done.stderr
    assert "$EVENTS_FOLDER/$EVENTS_SECRET.db cannot be read" in mc.open("last", wine).health.decision
    written = [p for p in (*wine.glob("reports/**/*"), *wine.glob(".mlcycle/runs/**/*")) if p.is_file()]
    assert written
    assert not any("hunter2" in path.read_text(errors="ignore") for path in written)
    assert "hunter2" not in done.stdout + done.stderr


def test_missing_model_and_run_are_named(tmp_path):
    with pytest.raises(ParameterError, match="no run 'last'"):
        mc.open("last", tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        load_model(tmp_path / "model.skops")
