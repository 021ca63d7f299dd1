"""Stored tables: versions that stay, differences, lineage, and a holdout that is read for a reason."""

import getpass
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import cli
from conftest import as_words
from hypothesis import given, settings
from hypothesis import strategies as st

import mlcycle as mc
from mlcycle.core.workspace import Workspace
from mlcycle.errors import HoldoutError, ParameterError
from mlcycle.stores.tables.datasets import read_table, resolve_table_address, table_names, table_versions, write_table
from mlcycle.stores.tables.holdout import (
    MAX_HOLDOUT_ACCESSES,
    count_biasing_accesses,
    format_holdout_bias_warning,
    holdout_access_file,
    read_holdout,
    read_holdout_accesses,
)
from mlcycle.stores.tables.lineage import trace_lineage
from mlcycle.stores.tables.table_diff import diff_tables


def table(**columns) -> pd.DataFrame:
    "Rows as they are stored."
    return pd.DataFrame(columns).rename_axis("row_id")


@pytest.fixture
def space(tmp_path):
    "An empty workspace."
    return Workspace(tmp_path)


@pytest.fixture
def wine(table_run, tmp_path):
    "A copy of a project with a finished run."
    project = table_run("wine").workspace.project
    return mc.open("last", Path(shutil.copytree(project, tmp_path / "copy")))


# Versions


def test_every_version_stays_even_after_a_hundred_and_a_month(space):
    "deltalake would remove the log of old versions at the hundredth commit."
    log = space.tables / "train" / "_delta_log"
    for number in range(103):
        write_table(space.tables, "train", table(x=[number]), run=f"run {number}")
        if number == 98:
            old = time.time() - 90 * 86_400
            for file in log.glob("*.json"):
                lines = [json.loads(line) for line in file.read_text().splitlines()]
                for line in lines:
                    if "commitInfo" in line:
                        line["commitInfo"]["timestamp"] = int(old * 1000)
                file.write_text("\n".join(map(json.dumps, lines)) + "\n")
                os.utime(file, (old, old))
    versions = table_versions(space.tables, "train")
    assert [each.table.version for each in versions] == list(range(102, -1, -1))
    assert versions[-1].metadata["run"] == "run 0"
    for number in (0, 50, 102):
        assert read_table(space.tables, resolve_table_address(space.tables, f"train@{number}").table).x.tolist() == [number]


def test_a_commit_says_where_the_rows_come_from(table_run):
    run = table_run("wine")
    (newest,) = table_versions(run.workspace.tables, "train")
    assert newest.table == run.dataset.tables["train"]
    assert newest.metadata["run"] == run.id
    assert newest.metadata["source"] == run.problem.source_sha256
    assert newest.metadata["contract"] == run.dataset.contract.sha256
    assert newest.metadata["mlcycle"] == mc.__version__
    assert json.loads(newest.metadata["ingestions"])[0]["rows"] == run.dataset.rows_in


def test_cleaning_up_runs_leaves_every_version(wine):
    before = {name: table_versions(wine.workspace.tables, name) for name in table_names(wine.workspace.tables)}
    opened = holdout_access_file(wine.workspace).read_bytes()
    assert cli("clean", "--keep", "0", cwd=wine.workspace.project).returncode == 0
    assert {name: table_versions(wine.workspace.tables, name) for name in before} == before
    assert len(read_table(wine.workspace.tables, before["train"][0].table)) == before["train"][0].table.rows
    assert holdout_access_file(wine.workspace).read_bytes() == opened
    facts = trace_lineage(wine.workspace, before["train"][0])
    assert facts["used_by"] == []
    assert facts["sources"][0]["source"] == "wine.csv", "what the commit says remains"


# Differences


def test_a_diff_names_rows_cells_and_columns():
    old = table(id=["a", "b", "c"], x=[1, 2, 3], gone=[0, 0, 0], s=["x", None, "z"])
    new = table(id=["b", "c", "d"], x=[2.0, 3.5, 4.0], s=[None, "y", "w"], fresh=[1, 1, 1])
    found = diff_tables(old, new, "id")
    assert (list(found.added), list(found.removed), found.kept, found.changed_rows) == (["d"], ["a"], 2, 1)
    assert found.changed.values.tolist() == [["c", "x", 3, 3.5], ["c", "s", "z", "y"]]
    assert found.schema.values.tolist() == [["x", "int64", "float64"], ["gone", "int64", ""], ["fresh", "", "int64"]]
    assert str(found) == "1 rows added, 1 removed, 1 of 2 others changed in 2 cells; 3 columns added, removed or of another type."


def test_a_number_that_became_text_is_compared_as_text():
    found = diff_tables(table(x=[1, 2]), table(x=["1", "3"]))
    assert found.changed.values.tolist() == [[1, "x", 2, "3"]]


def test_a_key_must_tell_rows_apart():
    rows = table(id=["a", "a"], x=[1, 2])
    with pytest.raises(ParameterError, match="occurs 2 times"):
        diff_tables(rows, rows, "id")
    with pytest.raises(ParameterError, match="Did you mean 'id'"):
        diff_tables(rows, rows, "ids")


CELL = st.one_of(st.none(), st.integers(0, 3))


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 9), CELL, min_size=1), st.dictionaries(st.integers(0, 9), CELL, min_size=1))
def test_a_diff_is_what_turns_one_table_into_the_other(old, new):
    def frame(cells):
        return pd.DataFrame({"x": pd.Series(cells, dtype=float)}).rename_axis("row_id")

    found = diff_tables(frame(old), frame(new))
    assert set(found.added) == new.keys() - old.keys()
    assert set(found.removed) == old.keys() - new.keys()
    assert set(found.changed.row_id) == {key for key in old.keys() & new.keys() if old[key] != new[key]}


# Holdout


def test_holdout_rows_lie_apart_and_are_refused(table_run):
    run = table_run("wine")
    assert not (run.workspace.tables / "holdout").exists()
    assert (run.workspace.root / "holdout").stat().st_mode & 0o077 == 0
    with pytest.raises(HoldoutError, match="Stage 5 reads it"):
        read_table(run.workspace.tables, run.dataset.tables["holdout"])


def test_a_notebook_that_reads_holdout_rows_too_early_fails(wine):
    project = wine.workspace.project
    (project / "look.ipynb").write_text(
        json.dumps(
            {
                "cells": [
                    {
                        "cell_type": "code",
                        "id": "a",
                        "metadata": {},
                        "outputs": [],
                        "execution_count": None,
                        "source": "import mlcycle as mc\nfrom mlcycle.stores.tables.datasets import read_table\nrun = mc.open()\n"
                        "read_table(run.workspace.tables, run.dataset.tables['holdout'])",
                    }
                ],
                "metadata": {},
                "nbformat": 4,
                "nbformat_minor": 5,
            }
        )
    )
    done = cli("nb", "look.ipynb", cwd=project)
    assert done.returncode == 1
    assert "HoldoutError" in done.stderr


def test_a_run_records_each_access_and_counts_one(wine):
    holdout = wine.dataset.tables["holdout"]
    mine = [each for each in read_holdout_accesses(wine.workspace, holdout.sha256) if each.run == wine.id]
    assert [(each.stage, each.purpose) for each in mine] == [
        ("validation", "evaluation"),
        ("deployment", "verification"),
        ("monitoring", "verification"),
    ]
    assert all(each.user == getpass.getuser() and each.reason and each.accessed_at for each in mine)
    assert wine.verdict.holdout_accesses == 1
    assert "holdout_accesses" not in wine.verdict.content()
    page = (wine.workspace.reports / wine.id / "05_validation.html").read_text()
    assert "read for the first time" in page


def test_running_again_counts_again_only_if_stage_5_runs(wine):
    project, holdout = wine.workspace.project, wine.dataset.tables["holdout"]
    words = as_words({key: value for values in wine.info["parameters"].values() for key, value in values.items()})
    before = count_biasing_accesses(wine.workspace, holdout.sha256)
    assert "Nothing to do" in cli("run", "-q", *words, cwd=project).stdout
    assert count_biasing_accesses(wine.workspace, holdout.sha256) == before
    done = cli("run", "-q", *words, "-p", "n_resamples=60", "--until", "validation", cwd=project)
    assert done.returncode == 0, done.stderr
    again = mc.open("last", project)
    assert again.verdict.holdout_accesses == count_biasing_accesses(wine.workspace, holdout.sha256) == before + 1
    assert "may bias its scores" in (again.workspace.reports / again.id / "05_validation.html").read_text()


def test_a_stage_that_is_resumed_counts_once(space):
    holdout = write_table(space.tables, "holdout", table(x=[1, 2]))
    for _ in range(3):
        read_holdout(space, holdout, run="one", stage="validation", reason="the verdict")
    assert count_biasing_accesses(space, holdout.sha256) == 1
    other = write_table(space.tables, "holdout", table(x=[1, 3]))
    assert count_biasing_accesses(space, other.sha256) == 0, "other rows, another count"


def test_access_needs_a_reason_and_the_right_stage(space):
    holdout = write_table(space.tables, "holdout", table(x=[1, 2]))
    for stage, why, message in (
        ("validation", " ", "needs a reason"),
        ("features", "to peek", "may not read"),
        ("deployment", "parity", "not evaluated yet"),
    ):
        with pytest.raises(HoldoutError, match=message):
            read_holdout(space, holdout, run="one", stage=stage, reason=why)
    assert read_holdout_accesses(space) == []


def test_half_a_line_is_passed_over_and_no_line_is_lost(space):
    holdout = write_table(space.tables, "holdout", table(x=[1, 2]))
    read_holdout(space, holdout, run="one", stage="validation", reason="the verdict")
    with open(holdout_access_file(space), "a") as file:
        file.write('{"sha256": "ab')  # Killed in the middle
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda run: read_holdout(space, holdout, run=str(run), stage="validation", reason="again"), range(12)))
    assert count_biasing_accesses(space, holdout.sha256) == 13
    assert "new rows" in format_holdout_bias_warning(13)
    assert "new rows" not in format_holdout_bias_warning(MAX_HOLDOUT_ACCESSES)


# The command line


def test_commands_list_show_compare_and_trace(wine):
    project = wine.workspace.project
    train = read_table(wine.workspace.tables, wine.dataset.tables["train"])
    changed = train.iloc[1:].assign(alcohol=lambda rows: np.where(rows.index == rows.index[5], 99.0, rows.alcohol))
    write_table(wine.workspace.tables, "train", changed, run="by hand")

    listed = cli("data", "list", cwd=project).stdout
    assert [line.split()[1] for line in listed.splitlines() if line.split()[:1] == ["train"]] == ["2"]
    assert "by hand" in cli("data", "history", "train", cwd=project).stdout
    said = cli("data", "diff", "train@0", "train", "--rows", "3", cwd=project).stdout
    assert f"0 rows added, 1 removed, 1 of {len(changed)} others changed in 1 cells" in said
    assert "99" in said
    assert cli("data", "show", "train@0", "--csv", "train.csv", "--columns", "alcohol, target", cwd=project).returncode == 0
    assert pd.read_csv(project / "train.csv", index_col="row_id").alcohol.tolist() == train.alcohol.tolist()
    shown = cli("data", "show", "train", "--rows", "2", "--columns", "alcohol", cwd=project).stdout
    assert f"train@1, 2 of {len(changed)} rows" in shown
    for words in (["show", "trian"], ["show", "train", "--columns", "alcool"], ["show", "train@9"]):
        wrong = cli("data", *words, cwd=project)
        assert wrong.returncode == 2
        assert "Traceback" not in wrong.stderr


def test_the_holdout_is_shown_for_a_reason(wine):
    project, holdout = wine.workspace.project, wine.dataset.tables["holdout"]
    before = count_biasing_accesses(wine.workspace, holdout.sha256)
    refused = cli("data", "show", "holdout", cwd=project)
    assert refused.returncode == 1
    assert "--reason" in refused.stderr
    assert cli("data", "diff", "holdout", "train", cwd=project).returncode == 1
    assert count_biasing_accesses(wine.workspace, holdout.sha256) == before
    assert cli("data", "show", "holdout", "--reason", "a complaint", cwd=project).returncode == 0
    last = read_holdout_accesses(wine.workspace, holdout.sha256)[-1]
    assert (last.purpose, last.user, last.reason, last.run) == ("inspection", getpass.getuser(), "a complaint", "")
    assert count_biasing_accesses(wine.workspace, holdout.sha256) == before + 1


def test_lineage_leads_back_to_the_source_and_forward_to_the_model(wine):
    project = wine.workspace.project
    facts = json.loads(cli("data", "lineage", "train", "--json", cwd=project).stdout)
    assert facts["made_by"]["run"] == wine.id
    assert (facts["sources"][0]["source"], facts["sources"][0]["sha256"]) == ("wine.csv", wine.problem.source_sha256)
    assert facts["contract"]["sha256"] == wine.dataset.contract.sha256
    (use,) = facts["used_by"]
    assert use["run"] == wine.id
    assert use["model"] == {"name": wine.candidate.model.name, "version": wine.candidate.model.version}
    assert (use["approved"], use["champion"], use["release"]) == (True, True, wine.release.bundle)
    drawn = cli("data", "lineage", "holdout@0", cwd=project).stdout
    for word in ("wine.csv", wine.id, f"evaluated {wine.candidate.model.name} version 1", wine.release.bundle, "read"):
        assert word in drawn


def test_the_commands_import_nothing_heavy():
    code = "import sys, mlcycle.cli.data; print([n for n in ('pandas', 'deltalake', 'pydantic') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
