"""Stage 2 as a whole: any source, a contract that later ingestions keep, quarantine, tables for all that is lost."""

import json

import numpy as np
import pandas as pd
import pytest
from commands import cli
from sklearn.datasets import load_wine

from mlcycle.core.workspace import Workspace
from mlcycle.data.contract import contract_to_yaml, parse_contract
from mlcycle.data.contract_inference import infer_contract
from mlcycle.data.error_injection import inject_malformed_lines
from mlcycle.data.stage import prepare_data
from mlcycle.errors import ContractError, ParameterError, SourceError
from mlcycle.problem.stage import define_problem
from mlcycle.stores.sources.ingest import read_source_with_provenance
from mlcycle.stores.tables.datasets import read_table


def orders(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({
        "id": [f"A{seed}{n:05d}" for n in range(rows)],
        "placed": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 10**6, rows)), unit="s"),
        "shop": rng.choice(["Rome", "Oslo", "Lima"], rows),
        "price": rng.lognormal(3, 0.5, rows).round(2),
        "items": rng.integers(1, 9, rows),
    })  # fmt: skip
    return table.assign(late=np.where(table.price + rng.normal(0, 5, rows) > 22, "yes", "no"))


@pytest.fixture
def prepared(tmp_path):
    "Stages 1 and 2 on a file of a project."

    def prepare(rows: pd.DataFrame | str, **choices):
        file = tmp_path / "orders.csv"
        file.write_text(rows if isinstance(rows, str) else rows.to_csv(index=False))
        problem = define_problem(str(file), "late", time="placed", probe_seconds=0)
        return prepare_data(problem, Workspace(tmp_path), **choices)

    return prepare


def rows_of(folder, dataset, name) -> pd.DataFrame:
    return read_table(Workspace(folder).tables, dataset.tables[name])


def test_a_first_ingestion_writes_the_contract_and_a_later_one_is_held_to_it(prepared, tmp_path):
    first = prepared(orders())
    assert first.project_files == ["contract.yaml"] and first.rows_quarantined == 0
    bad = orders(seed=1).astype({"price": object})
    bad.loc[[3, 50, 70], "price"] = None
    bad.loc[9, "price"] = "a lot"
    second = prepared(bad)
    assert second.contract_version == "1.0.0" and second.rows_quarantined == 4
    assert second.rows_in == second.rows_clean + second.rows_quarantined + second.rows_set_aside + second.rows_unlabelled
    kept = rows_of(tmp_path, second, "quarantine")
    assert set(kept.index) == {3, 9, 50, 70} and kept.quarantine_reason.str.startswith("price: ").all()
    assert list(kept) == [*bad, "quarantine_reason"] and kept.loc[9, "shop"] in ("Rome", "Oslo", "Lima")
    failure = second.rule_failures[0]
    assert failure.column == "price" and len(failure.examples) <= 5 and 0.98 < second.completeness["price"] < 1


def test_above_the_threshold_the_stage_stops_and_says_where_the_rows_are(prepared, tmp_path):
    prepared(orders())
    bad = orders(seed=1)
    bad.loc[bad.index[::2], "price"] = None
    with pytest.raises(ContractError, match="quarantine") as stopped:
        prepared(bad)
    assert "contract.yaml" in str(stopped.value) and "'price'" in str(stopped.value)
    assert (tmp_path / ".mlcycle" / "tables" / "quarantine").is_dir()


def test_a_stage_that_fails_leaves_nothing_behind(prepared, tmp_path):
    before = set(tmp_path.rglob("*")) | {tmp_path / "orders.csv"}
    with pytest.raises(ParameterError, match="holdout"):
        prepared(orders(), holdout_from="2050-01-01")
    assert set(tmp_path.rglob("*")) == before
    contract = contract_to_yaml(infer_contract(orders().assign(weight=1.0), "orders"))
    (tmp_path / "contract.yaml").write_text(contract)
    with pytest.raises(ContractError, match="no column 'weight'"):
        prepared(orders())
    assert set(tmp_path.rglob("*")) == before | {tmp_path / "contract.yaml"}


def test_a_cell_that_fails_after_the_data_leaves_no_contract(tmp_path):
    cli("init", ".", cwd=tmp_path)
    orders(200).to_csv(tmp_path / "orders.csv", index=False)
    notebook = json.loads((tmp_path / "nbs" / "02_data.ipynb").read_text())
    notebook["cells"].insert(-1, {"cell_type": "code", "id": "failing", "metadata": {}, "outputs": [], "execution_count": None,
                                  "source": ["1 / 0"]})  # fmt: skip
    (tmp_path / "nbs" / "02_data.ipynb").write_text(json.dumps(notebook))
    done = cli(
        "run", "-q", "--source", "orders.csv", "--target", "late", "--until", "data", "-p", "probe_seconds=0", cwd=tmp_path
    )
    assert done.returncode and "division by zero" in done.stdout + done.stderr
    assert not (tmp_path / "contract.yaml").exists()


def test_columns_of_the_user_are_kept_beside_those_that_are_added(prepared, tmp_path):
    rows = orders().assign(reason="gift", quarantine_reason="none", row_id=7)
    first = prepared(pd.concat([rows, rows.iloc[:3]]).assign(late=lambda all_rows: all_rows.late.mask(all_rows.id == "A000030")))
    aside = rows_of(tmp_path, first, "set_aside")
    assert set(aside.reason) == {"gift"} and set(aside.reason_) == {"exact duplicate of an earlier row"}
    unlabelled = rows_of(tmp_path, first, "unlabelled")
    assert unlabelled.id.tolist() == ["A000030"] and set(unlabelled.reason) == {"gift"} and list(unlabelled) == list(rows)
    rows.loc[5, "price"] = None
    kept = rows_of(tmp_path, prepared(rows), "quarantine")
    assert kept[["quarantine_reason", "quarantine_reason_"]].values.tolist() == [["none", "price: Never missing."]]
    done = cli("data", "show", "quarantine", "--csv", "bad.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    bad = pd.read_csv(tmp_path / "bad.csv")
    assert bad.row_id_.tolist() == [5] and bad.row_id.tolist() == [7]
    bad.assign(price=20.5).to_csv(tmp_path / "bad.csv", index=False)
    done = cli("contract", "recheck", "bad.csv", "--out", "clean.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(pd.read_csv(tmp_path / "clean.csv")) == list(rows)


def test_a_contract_of_several_tables(prepared, tmp_path):
    shops = infer_contract(pd.DataFrame({"shop": ["Rome", "Oslo"]}), "shops")
    both = infer_contract(orders(), "orders")
    both = both.model_copy(update={"tables": [*shops.tables, *both.tables]})
    (tmp_path / "contract.yaml").write_text(contract_to_yaml(both))
    made = prepared(orders(seed=1))
    assert made.project_files == ["contract.yaml"]
    kept = parse_contract((tmp_path / ".mlcycle" / made.contract.path).read_text())
    assert [table.name for table in kept.tables] == ["orders"]
    with pytest.raises(ContractError, match="no column"):
        prepared(orders().drop(columns="shop"), contract_table="shops")


def test_a_contract_for_another_table_does_not_count(prepared, tmp_path):
    prepared(orders())
    before = (tmp_path / "contract.yaml").read_text()
    wine = load_wine(as_frame=True).frame
    wine.to_csv(tmp_path / "wine.csv", index=False)
    problem = define_problem(str(tmp_path / "wine.csv"), "target", probe_seconds=0)
    made = prepare_data(problem, Workspace(tmp_path))
    assert made.rows_quarantined == 0 and made.project_files == [] and (tmp_path / "contract.yaml").read_text() == before


def test_every_row_and_every_changed_cell_is_kept_somewhere(prepared, tmp_path):
    rows = orders()
    dirty = pd.concat([rows.astype({"shop": object, "late": object}), rows.iloc[5:15]], ignore_index=True)
    dirty.loc[20:25, "shop"] = " rome"
    dirty.loc[30:33, "late"] = None
    made = prepared(dirty, cleaning_steps=[])
    assert (made.rows_set_aside, made.rows_unlabelled) == (10, 4)
    assert {line.step for line in made.ledger} >= {"strip", "case", "set aside", "unlabelled"}
    ledger = rows_of(tmp_path, made, "ledger")
    assert set(ledger[ledger.column == "shop"].index) == set(range(20, 26))
    aside = rows_of(tmp_path, made, "set_aside")
    assert aside.reason.value_counts().to_dict() == {"exact duplicate of an earlier row": 10}
    assert set(rows_of(tmp_path, made, "unlabelled").index) == set(range(30, 34))
    assert sum(made.tables[name].rows for name in ("train", "holdout", "future", "set_aside", "unlabelled")) == len(dirty)
    again = prepared(dirty, cleaning_steps=["case"])
    assert (again.rows_set_aside, again.rows_unlabelled) == (0, 4), "other steps are left out"


def test_malformed_lines_are_found_and_kept(tmp_path):
    file = tmp_path / "wine.csv"
    text, record = inject_malformed_lines(load_wine(as_frame=True).frame.to_csv(index=False), share=0.05, encoding="cp1252")
    file.write_bytes(text)
    rows, malformed, (read,) = read_source_with_provenance(str(file))
    found = set(malformed.line) & set(record.line)
    assert len(found) >= 0.95 * len(record) and len(malformed) == len(found) == read.malformed_lines
    assert len(rows) + len(malformed) == 178
    made = prepare_data(define_problem(str(file), "target", probe_seconds=0), Workspace(tmp_path))
    assert set(rows_of(tmp_path, made, "malformed").line) == set(malformed.line)


def test_several_sources_are_joined_by_a_query(tmp_path):
    orders().to_csv(tmp_path / "orders.csv", index=False)
    pd.DataFrame({"shop": ["Rome", "Oslo", "Lima"], "staff": [9, 4, 2]}).to_parquet(tmp_path / "shops.parquet")
    query = "SELECT s.*, b.staff FROM source s JOIN shops b USING (shop) ORDER BY id"
    about = {"time": "placed", "sources": {"shops": str(tmp_path / "shops.parquet")}, "query": query}
    problem = define_problem(str(tmp_path / "orders.csv"), "late", probe_seconds=0, **about)
    made = prepare_data(problem, Workspace(tmp_path))
    assert [each.rows for each in made.ingestions] == [400, 3] and "staff" in rows_of(tmp_path, made, "train")
    pd.DataFrame({"shop": ["Rome", "Oslo", "Lima"], "staff": [9, 4, 3]}).to_parquet(tmp_path / "shops.parquet")
    with pytest.raises(SourceError, match="not those that stage 1 read"):
        prepare_data(problem, Workspace(tmp_path))


def test_entities_stay_on_one_side_and_outliers_can_be_set_aside(tmp_path):
    rows = orders().drop(columns="placed").assign(customer=np.repeat(np.arange(80), 5))
    rows.loc[7, "price"] = 5_000.0
    rows.to_csv(tmp_path / "orders.csv", index=False)
    problem = define_problem(str(tmp_path / "orders.csv"), "late", entity="customer", probe_seconds=0)
    made = prepare_data(problem, Workspace(tmp_path), outlier_method="robust z", cleaning_steps=["strip"])
    assert made.split_description.startswith("By group") and not made.split_overlap
    train = rows_of(tmp_path, made, "train")
    assert train.price.max() < 1_000 and train.customer.nunique() < 80


def test_the_contract_that_a_run_wrote_does_not_make_it_stale(tmp_path):
    orders().to_csv(tmp_path / "orders.csv", index=False)
    words = ("run", "-q", "--source", "orders.csv", "--target", "late", "--until", "data")
    first, second = (cli(*words, cwd=tmp_path) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert "Nothing to do" in second.stdout + second.stderr
    file = tmp_path / "contract.yaml"
    file.write_text(
        file.read_text()
        .replace("quarantineLimit\n  value: 20", "quarantineLimit\n  value: 5")
        .replace("version: 1.0.0", "version: 1.1.0")
    )
    status = cli("status", "--source", "orders.csv", "--target", "late", cwd=tmp_path)
    assert "contract.yaml" in status.stdout, status.stdout + status.stderr
