"""The source of a retraining: which rows it has, and that its holdout is later than anything the champion was trained on."""

import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import stored_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from logged_rows import START, log_rows, retrain

import mlcycle as mc
from mlcycle.core.files import hash_file
from mlcycle.errors import InputError
from mlcycle.lifecycle.merged_rows import order_in_time, write_merged_source
from mlcycle.lifecycle.row_merging import LOGGED_ROW_ID, RowParts, find_known_row_ids, mark_holdout, put_rows_together
from mlcycle.outcomes import Problem
from mlcycle.stores.tables.holdout import read_holdout_accesses

TEXTS = dict.fromkeys(("decision", "question", "owner", "source", "source_sha256"), "-")
BINARY = Problem(
    **TEXTS, target="y", task="binary", classes=[0, 1], positive=1, metric="f1", metrics=["f1"], criteria=[], rows=9, time="t"
)


def later_orders(rows: int, seed: int = 1) -> pd.DataFrame:
    "Orders after those of the champion's run, with a town that it does not have, and another cause of being late."
    rng = np.random.default_rng(seed)
    days = pd.date_range(f"2025-{seed:02}-01", periods=rows, freq="h").strftime("%Y-%m-%d %H:%M:%S")
    frame = pd.DataFrame({"placed": days, "price": rng.random(rows).round(3), "town": rng.choice(["Ulm", "Bonn", "Jena"], rows)})
    late = np.where(frame.price + rng.normal(0, 0.2, rows) < 0.4, "yes", "no")
    return frame.assign(late=late).set_axis([f"order-{seed}-{number}" for number in range(rows)])


def row_ids(run: mc.Run, name: str) -> set[str]:
    return set(stored_rows(run, name)[LOGGED_ROW_ID])


def test_a_challenger_is_judged_on_the_last_rows_in_time(project):
    champion = mc.open("last", project)
    rows = later_orders(900)
    log_rows(champion, rows)
    folder, since = project / "retraining", START + timedelta(hours=300)
    merged = write_merged_source(champion.workspace, champion, folder, since=since, reason="an alarm")
    assert (merged.rows, merged.n_source, merged.n_since, merged.n_holdout) == ("since alarm", 0, 600, 200)
    whole = write_merged_source(champion.workspace, champion, folder / "all", since=since, rows="all", reason="an alarm")
    assert (whole.rows, whole.n_source, whole.n_logged, whole.n_holdout) == ("all", 240, 900, 200)
    assert (merged.first_row, whole.first_row) == (since, START)
    again = write_merged_source(champion.workspace, champion, folder / "again", since=since, rows="all")
    assert hash_file(again.path) == whole.sha256 == hash_file(whole.path)
    used = [each for each in read_holdout_accesses(champion.workspace) if each.purpose == "training"]
    assert [(each.run, each.reason) for each in used] == [(champion.id, "an alarm")]

    assert whole.parameters["data.earlier_cleaning"].endswith(champion.dataset.cleaning_plan.path)
    challenger = retrain(champion, whole)
    assert challenger.candidate.model.name == champion.candidate.model.name
    assert challenger.candidate.model.version == champion.candidate.model.version + 1
    assert challenger.dataset.rows_quarantined == challenger.dataset.rows_set_aside == 0
    holdout, train = row_ids(challenger, "holdout"), row_ids(challenger, "train")
    assert holdout == {*rows.index[-200:]}
    assert train == {*rows.index[:-200], *(f"{name}" for name in train if "@" in name)}
    assert len(train) == 940
    assert not {LOGGED_ROW_ID, "part"} & {*challenger.plan.input_columns}
    assert challenger.verdict.champion_difference is not None
    assert challenger.verdict.champion_difference.value > 0.1
    assert "Jena" in set(stored_rows(challenger, "holdout").town)
    assert (challenger.problem.time, challenger.problem.metric) == ("placed", champion.problem.metric)

    log_rows(challenger, later_orders(60, seed=4), start=START + timedelta(days=90))  # The next time
    second = write_merged_source(challenger.workspace, challenger, folder / "second")
    assert second.first_row is None, "rows that the first retraining has taken from the log are among them"
    frame = pd.read_parquet(second.path)
    assert frame[LOGGED_ROW_ID].is_unique and len(frame) == 240 + 900 + 60
    assert {*frame[LOGGED_ROW_ID][frame.part == "holdout"]} == {f"order-4-{number}" for number in range(30, 60)}


def test_without_a_time_column_the_time_of_the_prediction_orders_the_rows(table_run, tmp_path):
    folder = Path(shutil.copytree(table_run("diabetes").workspace.project, tmp_path / "copy"))
    champion = mc.open("last", folder)
    rng = np.random.default_rng(0)
    source = pd.read_csv(folder / "diabetes.csv")
    rows = source.sample(420, replace=True, random_state=0).reset_index(drop=True)
    rows[["age", "bmi", "bp", "s5"]] += rng.normal(0, 0.01, (420, 4)).round(4)
    rows = rows.assign(target=rows.target + 80.0).set_axis([f"p{number}" for number in range(420)])
    log_rows(champion, rows)
    merged = write_merged_source(champion.workspace, champion, tmp_path / "retraining", since=START)
    assert (merged.rows, merged.n_holdout, merged.parameters["problem.time"]) == ("since alarm", 200, "")
    challenger = retrain(champion, merged)
    assert row_ids(challenger, "holdout") == {*rows.index[-200:]}
    assert challenger.verdict.champion_difference.value > 0
    assert challenger.dataset.cleaning_plan is not None
    with pytest.raises(InputError, match="new to the champion"):
        write_merged_source(champion.workspace, challenger, tmp_path / "none", until=START + timedelta(hours=210))


def test_what_is_missing_is_told(project):
    champion = mc.open("last", project)
    with pytest.raises(InputError, match="mlcycle serve MODEL"):
        write_merged_source(champion.workspace, champion, project / "retraining")
    log_rows(champion, later_orders(10))
    with pytest.raises(InputError, match="At least 20"):
        write_merged_source(champion.workspace, champion, project / "retraining")
    assert not (project / "retraining").exists()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 1)), min_size=4, max_size=60),
    st.lists(st.integers(-5, 40), max_size=30),
    st.floats(0.05, 0.6),
)
def test_no_earlier_row_and_no_other_row_is_later_than_the_holdout(logged, earlier, share):
    frame = pd.DataFrame(
        {"t": [row[0] for row in logged], "y": [row[2] for row in logged]}, [f"r{n}" for n in range(len(logged))]
    )
    when = pd.Series([pd.Timestamp(2026, 1, 1) + timedelta(days=row[1]) for row in logged], frame.index)
    old = pd.DataFrame(
        {"t": earlier, "y": [0] * len(earlier), LOGGED_ROW_ID: pd.array([*map(str, range(len(earlier)))], dtype="str")}
    )
    parts = RowParts(frame, when, old, BINARY.model_copy(update={"task": "regression", "classes": []}))
    held = mark_holdout(order_in_time(parts, frame.index), frame.y, parts.problem, share)
    rows, split = put_rows_together(parts, frame.index, held, [])
    train, holdout = (rows[rows[split] == name] for name in ("train", "holdout"))
    assert 1 <= len(holdout) <= len(frame) / 2
    assert train.t.max() <= holdout.t.min() or train.empty
    assert not set(train[LOGGED_ROW_ID]) & set(holdout[LOGGED_ROW_ID])
    assert {*rows[LOGGED_ROW_ID]} >= {*frame.index}
    assert rows.t.is_monotonic_increasing


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 1), min_size=6, max_size=80))
def test_each_class_is_in_both_parts_or_it_is_an_error(target):
    frame = pd.Series(target, [f"r{n}" for n in range(len(target))])
    order = pd.Series(range(len(target)), frame.index)
    try:
        held = mark_holdout(order, frame, BINARY, 0.2)
    except InputError:
        assert len(set(target)) < 2
        return
    assert held.is_unique
    assert set(frame[held]) == {0, 1}
    assert len(target) // 2 <= len(held) <= len(target) // 2 + 1


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.sampled_from("ab")), max_size=12, unique_by=lambda row: row[0])
)
def test_a_row_is_known_by_its_key_and_all_its_features(rows):
    source = pd.DataFrame({"key": range(10), "x": [n % 4 for n in range(10)], "c": list("ababababab")})
    source[LOGGED_ROW_ID] = [f"train@0 {n}" for n in range(10)]
    logged = pd.DataFrame({"x": [row[1] for row in rows], "c": [row[2] for row in rows]}, [str(row[0]) for row in rows])
    equal = {str(key) for key, x, c in rows if (x, c) == (key % 4, "ab"[key % 2])}
    assert find_known_row_ids(logged, source, ["x", "c"]) == equal
