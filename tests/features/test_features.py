"""Stage 3 as a whole: what is left out, what earns its place, and what of it travels with a run."""

import json
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from commands import cli
from conftest import QUICK, WORDS
from hypothesis import example as with_example
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recipes import RECIPES, ROW, example, frame

import mlcycle as mc
from mlcycle.core.files import write_text
from mlcycle.core.settings import STORE_DEFAULTS
from mlcycle.core.workspace import Workspace
from mlcycle.errors import TargetError
from mlcycle.features.create.arithmetic import GroupDeviation
from mlcycle.features.create.history import EntityHistory, Lag, Rolling
from mlcycle.features.create.history_index import HistoryRecipe
from mlcycle.features.create.user_functions import make_function_recipes
from mlcycle.features.encode.pipeline import build_preprocessor, map_outputs_to_features
from mlcycle.features.select.ledger import features_table
from mlcycle.features.stage import FeatureSettings, plan_features
from mlcycle.lifecycle.housekeeping import delete_old_runs
from mlcycle.outcomes import Dataset, FeaturePlan, FileRef, Problem
from mlcycle.stores.models.function_files import parse_feature_functions
from mlcycle.stores.models.model_files import load_model, save_model
from mlcycle.stores.sources.ingest import normalise_dtypes
from mlcycle.stores.tables.datasets import write_table

FUNCTION = """
from mlcycle.features.create.user_functions import feature

@feature("price", "seats")
def per_seat(price, seats):
    "Price for each seat."
    return price / seats
"""


def orders(rows: int = 900, seed: int = 0) -> pd.DataFrame:
    "Orders in time, more in some days than in others; late where price and seats are alike, and in days with many."
    rng = np.random.default_rng(seed)
    hours = rng.choice([1, 12], rows // 25 + 1).repeat(25)[:rows] * rng.exponential(1, rows)
    placed = (pd.Timestamp("2023-01-01") + pd.to_timedelta(np.cumsum(hours).round(2), unit="h")).floor("min")
    table = pd.DataFrame({"customer": rng.integers(0, 30, rows), "placed": placed})
    table = table.assign(
        price=np.exp(rng.normal(0, 2, rows)).clip(0.01).round(3),
        seats=np.exp(rng.normal(0, 2, rows)).clip(0.01).round(3),
        noise=rng.random(rows).round(3),
        town=rng.choice(["Ulm", "Bonn", "Kiel"], rows),
    )
    busy = table.rolling("24h", on="placed", closed="left").price.count().fillna(0)
    score = 2 * (busy > busy.median()) + 2 * (np.abs(np.log(table.price / table.seats)) < 1) - 2 + 0.4 * rng.normal(size=rows)
    late = np.where(score > 0, "yes", "no")
    refund = np.where(late == "yes", rng.uniform(1, 5, rows).round(2), 0.0)
    return table.assign(late=late, customer="c" + table.customer.astype(str), refund=refund)


def plan_for(
    table: pd.DataFrame, folder: Path, rules: FeatureSettings | None = None, **more
) -> tuple[Problem, FeaturePlan, Workspace]:
    "What stage 3 makes of a table whose rows all teach."
    space = Workspace(folder)
    stored = write_table(space.tables, "train", normalise_dtypes(table).rename_axis("row_id"))
    words = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256"], "-")
    facts = {"target": "late", "task": "binary", "classes": ["no", "yes"], "positive": "yes", "metric": "roc_auc"}
    problem = Problem(**words, **facts | {"metrics": ["roc_auc"], "criteria": [], "rows": len(table)} | more)
    data = Dataset(
        decision="-",
        rows_in=len(table),
        rows_clean=len(table),
        rows_set_aside=0,
        ledger=[],
        split_description="-",
        contract=FileRef(path="-", sha256="-"),
        tables={"train": stored},
    )
    return problem, plan_features(problem, data, space, rules), space


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> tuple[Problem, FeaturePlan, Workspace]:
    "The plan for orders, in order of time, by the usual rules."
    return plan_for(orders(), tmp_path_factory.mktemp("planned"), time="placed", entity="customer")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Problem, FeaturePlan, Workspace]:
    "The plan for orders with everything that is proposed."
    rules = FeatureSettings(select="off")
    return plan_for(orders(), tmp_path_factory.mktemp("whole"), rules, time="placed", entity="customer")


def test_planted_features_are_made_and_kept_and_noise_is_not(planned):
    _, plan, _ = planned
    created = [each for each in plan.features if each.source_columns != [each.name]]
    kept = [set(each.source_columns) for each in created if each.selected]
    assert kept == [{"price", "seats"}], [(each.name, each.reason) for each in created]
    looking_back = {"rows in 1 day", "earlier rows of customer", "expanding mean of late by customer"}
    assert looking_back <= {each.name for each in created if each.importance is not None}
    assert not [each.name for each in plan.features if each.selected and "noise" in each.source_columns]
    assert plan.feature_set_scores["selected"].value > plan.feature_set_scores["raw"].value


def test_a_suspect_is_left_out_and_named(planned):
    _, plan, _ = planned
    assert [leak.column for leak in plan.leakage_suspects if leak.excluded] == ["refund"]
    assert "refund" in plan.dropped_columns and "refund" not in plan.input_columns and "refund" in plan.decision
    assert not [each.name for each in plan.features if "refund" in each.source_columns]


def test_a_copy_with_altered_cells_is_left_out_and_a_strong_feature_is_not(tmp_path):
    rng = np.random.default_rng(0)
    table = orders().drop(columns="refund")
    table["risk"] = (table.late == "yes") + rng.normal(0, 0.6, len(table))
    table["state"] = np.where(rng.random(len(table)) < 0.03, "open", table.late.map({"yes": "closed", "no": "open"}))
    _, plan, _ = plan_for(table, tmp_path, FeatureSettings(select="off", create=False), time="placed", entity="customer")
    assert [(leak.column, leak.kinds, leak.excluded) for leak in plan.leakage_suspects] == [
        ("state", ["copy of the target"], True)
    ]
    assert "state" in plan.dropped_columns and "state" not in plan.input_columns and "risk" in plan.input_columns


@pytest.mark.parametrize("which", ["planned", "whole"])
def test_a_plan_does_not_contradict_itself(which, request):
    problem, plan, space = request.getfixturevalue(which)
    pipeline = load_model(space.root / plan.pipeline.path, plan.pipeline.sha256)
    names = [each.name for each in plan.features]
    kept = {each.name for each in plan.features if each.selected}
    reads = {name for recipe in pipeline["create"].recipes for name in recipe.input_columns()}
    assert len(set(names)) == len(names) and len(set(plan.input_columns)) == len(plan.input_columns)
    assert set(pipeline["encode"].column_types) == kept and set(plan.output_features.values()) <= kept
    assert set(plan.input_columns) == reads | {
        each.name for each in plan.features if each.selected and each.source_columns == [each.name]
    }
    assert not set(plan.input_columns) & {problem.target, *plan.dropped_columns}
    assert all(set(each.source_columns) <= set(orders()) for each in plan.features)
    assert all(
        each.reason and (each.importance is None or each.importance.low <= each.importance.value <= each.importance.high)
        for each in plan.features
    )
    rows = normalise_dtypes(orders())
    fitted = pipeline.fit(rows[plan.input_columns], rows.late)
    assert map_outputs_to_features(fitted) == plan.output_features and list(fitted.get_feature_names_out()) == list(
        plan.output_features
    )


def test_what_is_planned_makes_one_row_as_in_the_batch(whole, tmp_path):
    _, plan, space = whole
    rows = normalise_dtypes(orders())
    fitted = load_model(space.root / plan.pipeline.path).fit(rows[plan.input_columns], rows.late)
    again = load_model(tmp_path / "fitted.skops", save_model(fitted, tmp_path / "fitted.skops"))
    asked = normalise_dtypes(orders(60, seed=1))[plan.input_columns]
    asked.iloc[::7, asked.columns.get_loc("price")] = np.nan
    asked.iloc[::5, asked.columns.get_loc("customer")] = "never seen"
    batch = fitted.transform(asked)
    for place in range(len(asked)):
        np.testing.assert_allclose(again.transform(asked.iloc[[place]])[0], batch[place], rtol=1e-9)


def test_what_happens_later_changes_nothing_before(whole):
    "Of the whole step that creates; what a mean over all training rows says is learnt as an encoding is, and left out here."
    _, plan, space = whole
    create = load_model(space.root / plan.pipeline.path)["create"]
    create.recipes = [recipe for recipe in create.recipes if not isinstance(recipe, GroupDeviation)]
    assert any(isinstance(recipe, HistoryRecipe) for recipe in create.recipes)
    rows, cut, rng = normalise_dtypes(orders()), 600, np.random.default_rng(5)
    before = create.fit(rows[plan.input_columns], rows.late).transform(rows[plan.input_columns]).head(cut)
    order = rng.permutation(np.arange(cut, len(rows)))
    later = rows.iloc[order].assign(placed=rows.placed.iloc[cut:].to_numpy()).set_axis(rows.index[cut:])
    changed = pd.concat([rows.head(cut), later])
    after = create.fit(changed[plan.input_columns], changed.late).transform(changed[plan.input_columns]).head(cut)
    pd.testing.assert_frame_equal(after, before)


OWN = parse_feature_functions('@feature("a", "b")\ndef twice(a, b):\n    "Twice the sum."\n    return 2 * (a + b)\n')
LOOKING_BACK = [
    EntityHistory("town", "came", "a"),
    EntityHistory("town", "came", statistic="since"),
    EntityHistory("town", "came", target="y", pos_label="yes", min_age="1 day"),
    Lag("b", "came", "town"),
    Rolling("a", "came", "size", "30 days"),
]
COLUMNS = {"a": "number", "b": "number", "due": "number", "done": "number", "came": "date", "left": "date"}
COLUMNS |= {"town": "many categories", "size": "category", "note": "text"}


def with_note(table: pd.DataFrame) -> pd.DataFrame:
    "With a text made of its words."
    return table.assign(note=(table.town + " and " + table["size"]).astype("str"))


def everything(encoding: str):
    "A fitted pipeline with recipes of every sort and columns of every kind."
    table = with_note(example(300))
    target = pd.Series(np.where(table.a.fillna(0) > 0, "yes", "no"), table.index, name="y")
    recipes = [*RECIPES, *LOOKING_BACK, *make_function_recipes(OWN, table, {})]
    column_types = COLUMNS | {name: kind for recipe in recipes for name, kind in recipe.output_types().items()}
    return build_preprocessor(column_types, recipes, encoding=encoding).fit(table, target)


FITTED = {encoding: everything(encoding) for encoding in ("trees", "linear", "native")}


@pytest.mark.parametrize("encoding", FITTED)
@settings(max_examples=25, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=6).map(frame).map(with_note))
@with_example(with_note(frame([(None, None, 0, *[None] * 5), (None, 1.4080144499744458e308, 0, *[None] * 5)])))
def test_recipes_of_every_sort_make_one_row_as_in_the_batch(encoding, asked):
    together = np.asarray(FITTED[encoding].transform(asked), dtype=object)
    for place in range(len(asked)):
        alone = np.asarray(FITTED[encoding].transform(asked.iloc[[place]]), dtype=object)
        ours, theirs = pd.DataFrame(alone).iloc[0], pd.DataFrame(together).iloc[place]
        assert (ours.isna() == theirs.isna()).all()
        for one, other in zip(ours.dropna(), theirs.dropna(), strict=True):
            assert one == other or one == pytest.approx(other, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("encoding", FITTED)
def test_recipes_of_every_sort_are_saved_without_code(encoding, tmp_path):
    again = load_model(tmp_path / "all.skops", save_model(FITTED[encoding], tmp_path / "all.skops"))
    asked = with_note(example(40))
    ours, theirs = (pd.DataFrame(each.transform(asked)) for each in (again, FITTED[encoding]))
    pd.testing.assert_frame_equal(ours, theirs)
    assert map_outputs_to_features(again) == map_outputs_to_features(FITTED[encoding])


@pytest.mark.parametrize("columns", [["refund"], []], ids=["a suspect only", "none"])
def test_where_nothing_is_left_the_error_says_why(columns, tmp_path):
    table = orders(200)[[*columns, "late"]].assign(same=1, order=[f"o{i}" for i in range(200)])
    with pytest.raises(TargetError, match="No column is left") as raised:
        plan_for(table, tmp_path)
    assert all(name in str(raised.value) for name in (*columns, "same: always 1", "order: identifier"))


@pytest.mark.parametrize("entity", ["", "customer"])
def test_the_plan_is_the_same_each_time(entity, tmp_path):
    rules = FeatureSettings(selection_rows=300, max_created=4, seed=3)
    plans = [plan_for(orders(300), tmp_path / name, rules, entity=entity)[1] for name in ("one", "two")]
    assert plans[0] == plans[1]


# Through the command line


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    "A project that has run to stage 3 with the usual rules, and a feature of a person's own."
    folder = tmp_path_factory.mktemp("features") / "project"
    assert cli("init", folder, cwd=folder.parent).returncode == 0
    orders(400).to_csv(folder / "orders.csv", index=False)
    write_settings(folder)
    write_function(folder, FUNCTION)
    done = cli("run", "-q", "--until", "features", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def write_settings(folder: Path, *lines: str) -> None:
    "Settings of the project, with some for stage 3."
    problem = ["[problem]", "source = orders.csv", "target = late", "probe_seconds = 0", "metric = roc_auc"]
    (folder / "settings.ini").write_text("\n".join([*problem, "[features]", "table_rows = 50", *lines, ""]))


def write_function(folder: Path, source: str) -> None:
    "A feature of a person's own, in the project's notebook of stage 3."
    path = folder / "nbs" / "03_features.ipynb"
    notebook = nbformat.read(path, 4)
    (cell,) = [cell for cell in notebook.cells if "functions" in cell.metadata.get("tags", ())]
    cell.source = source
    nbformat.write(notebook, path)


def states(folder: Path) -> dict[str, str]:
    "How each stage stands."
    return {line.split()[0]: line for line in cli("status", cwd=folder).stdout.splitlines() if line.split()[1:]}


def check_ledger(run: mc.Run) -> None:
    "The ledger beside a run and its pages is that of the plan."
    wanted = features_table(run.plan.features)
    page = run.workspace.reports / run.id / "03_features.html"
    for path in (run.folder / "features.csv", page.with_suffix(".csv")):
        pd.testing.assert_frame_equal(pd.read_csv(path, keep_default_na=False), pd.read_csv(_kept(wanted), keep_default_na=False))
    assert 'href="03_features.csv"' in page.read_text()


def _kept(table: pd.DataFrame):
    "A table as CSV, to be read again."
    from io import StringIO

    return StringIO(table.to_csv(index=False))


def test_the_ledger_travels_with_the_run(project):
    first = mc.open("last", project)
    check_ledger(first)
    assert "per_seat" in {each.name for each in first.plan.features}
    done = cli("run", "-q", "--until", "features", "--force", "data", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    taken = mc.open("last", project)
    assert taken.id != first.id and taken.info["stages"]["features"]["reused"] == first.id
    check_ledger(taken)


def test_a_suspect_comes_back_when_a_person_vouches_for_it(project):
    assert "refund" in mc.open("last", project).plan.dropped_columns
    try:
        write_settings(project, "trusted = refund", "select = off")
        assert "stale" in states(project)["features"]
        done = cli("run", "-q", "--until", "features", cwd=project)
        assert done.returncode == 0, done.stdout + done.stderr
        plan = mc.open("last", project).plan
        (leak,) = plan.leakage_suspects
        assert (leak.column, leak.excluded) == ("refund", False)
        assert "refund" in plan.input_columns and "refund" not in plan.dropped_columns
    finally:
        write_settings(project)


def test_an_edit_of_a_function_makes_the_stage_stale(project):
    assert "fresh" in states(project)["features"]
    try:
        write_function(project, FUNCTION.replace("price / seats", "price / (seats + 1)"))
        shown = states(project)
        assert "fresh" in shown["data"] and "stale" in shown["features"] and "cell" in shown["features"]
    finally:
        write_function(project, FUNCTION)
    assert "fresh" in states(project)["features"]


def test_cleaning_up_spares_what_is_needed(tmp_path):
    "A search goes with the last run that names it; functions stay, since registered models call them."
    space = Workspace(tmp_path)
    about = {"status": "done", "parameters": {}, "stages": {}, "keys": {}, "stores": STORE_DEFAULTS, "project": str(tmp_path)}
    for name, study in {"3": "studies/both", "2": "studies/both", "1": "studies/old", "0": "studies/held"}.items():
        write_text(space.root / "runs" / name / "run.json", json.dumps(about | {"id": name, "started": name}))
        write_text(space.root / "runs" / name / "modelling.json", json.dumps({"study": study}))
        write_text(space.root / study / "journal.log", "")
    write_text(space.root / "studies" / "interrupted" / "journal.log", "")
    write_text(space.root / "functions" / "mine.py", "")
    with space.lock("study-held"):
        assert delete_old_runs(space, keep=1, dry_run=True) == ["2", "1", "0"]
        assert len(list((space.root / "studies").iterdir())) == 4
        assert delete_old_runs(space, keep=1) == ["2", "1", "0"]
    assert {path.name for path in (space.root / "studies").iterdir()} == {"both", "held", "interrupted"}
    assert (space.root / "functions" / "mine.py").is_file()


def test_odd_types_go_all_the_way(tmp_path):
    "Text, lengths of time and types that know missing values, rows about the same customer, through all seven stages."
    table, rng = orders(300), np.random.default_rng(1)
    words = np.array(["ring twice please", "leave it at the door", "call me before you come", "no hurry at all today"])
    table = table.drop(columns=["refund", "placed"]).assign(
        note=[f"{words[k]} {number}" for number, k in enumerate(rng.integers(0, 4, len(table)))],
        waited=pd.to_timedelta(rng.integers(0, 90, len(table)), unit="min"),
        stars=pd.array(rng.integers(1, 6, len(table)), "Int64"),
        gift=pd.array(rng.random(len(table)) < 0.5, "boolean"),
        colour=pd.array(rng.choice(["red", "blue"], len(table)), "string"),
        weight=pd.array(rng.random(len(table)), "Float64"),
    )
    for name in ("note", "stars", "gift", "colour", "weight"):
        table.loc[rng.random(len(table)) < 0.1, name] = pd.NA
    table.to_parquet(tmp_path / "orders.parquet")
    chosen = QUICK | {"select": "auto", "models": ["linear", "lightgbm"], "entity": "customer", "criteria": ["accuracy >= 0.01"]}
    run = mc.run(str(tmp_path / "orders.parquet"), "late", project=tmp_path, **chosen)
    assert run.info["status"] == "done" and run.release.parity.n_equal == run.release.parity.rows
    column_types = {each.name: each.column_type for each in run.plan.features}
    assert (column_types["note"], column_types["stars"], column_types["gift"], column_types["colour"]) == (
        "text",
        "number",
        "number",
        "category",
    )
    assert "waited" in column_types or "waited" in run.plan.dropped_columns
    said = run.predict(table.drop(columns="late"))
    assert len(said) == len(table) and said.score.between(0, 1).all()


def test_words_are_those_of_quick_runs():
    assert WORDS[::2] == ["-p"] * len(QUICK) and 'models=["linear", "lightgbm"]' in WORDS
