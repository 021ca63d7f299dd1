"""Contracts: what they reject, before and after a trip through their file, and what a person can do about it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import cli
from conftest import TABLES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.pandas import column, data_frames, range_indexes
from pandera.errors import SchemaErrors

from mlcycle.data.coercion import coerce_to_contract
from mlcycle.data.contract import Contract, contract_to_yaml, parse_contract
from mlcycle.data.contract_checks import find_violations, pandera_schema
from mlcycle.data.contract_inference import infer_contract
from mlcycle.data.quarantine import (
    apply_contract,
    check_contract_limits,
    quarantine_for_file,
    recheck_quarantine,
)
from mlcycle.errors import ContractError, ContractFileError
from mlcycle.stores.sources.ingest import normalise_dtypes


def orders(rows: int = 60) -> pd.DataFrame:
    "A good table with a column of each type."
    number = np.arange(rows)
    return normalise_dtypes(
        pd.DataFrame(
            {
                "order_id": number + 1000,
                "price": 5 + number % 7 + 0.25,
                "count": 1 + number % 3,
                "size": np.array(["S", "M", "L"])[number % 3],
                "code": [f"A{1000 + one}" for one in number],
                "placed": pd.Timestamp("2024-01-01") + pd.to_timedelta(number, unit="h"),
                "paid": number % 2 == 0,
                "weight": np.where(number % 5, number / 10, np.nan),
            }
        )
    )


GOOD = orders()
CONTRACT = infer_contract(GOOD, "orders", owner="Sales")


def changed(**columns) -> pd.DataFrame:
    "The first three good rows, with other values in some columns."
    return GOOD.head(3).assign(**{name: pd.Series(values, index=GOOD.index[:3]) for name, values in columns.items()})


BAD = {
    "type of a number": (changed(price=["6.5", "cheap", "7.5"]), {("price", "type", 1)}),
    "type of a whole number": (changed(count=[1, 2.5, 2]), {("count", "type", 1)}),
    "type of a truth": (changed(paid=["yes", "perhaps", "no"]), {("paid", "type", 1)}),
    "number instead of a moment": (
        changed(placed=[1, 2, 3]),
        {("placed", "type", 0), ("placed", "type", 1), ("placed", "type", 2)},
    ),
    "wrong date": (changed(placed=["2024-01-01", "2024-13-45", "01/02/2024"]), {("placed", "type", 1), ("placed", "type", 2)}),
    "date out of range": (changed(placed=pd.to_datetime(["2024-01-01", "2204-01-01", "2024-01-01"])), {("placed", "range", 1)}),
    "range": (changed(price=[6.0, 99.0, -5.0]), {("price", "range", 1), ("price", "range", 2)}),
    "category": (changed(size=["S", "XXL", "M"]), {("size", "categories", 1)}),
    "form": (changed(code=["A1000", "B-17", "A1002"]), {("code", "pattern", 1)}),
    "missing": (changed(price=[6.0, None, 7.0], size=["S", None, "M"]), {("price", "required", 1), ("size", "required", 1)}),
    "duplicate key": (changed(order_id=[1000, 1001, 1000]), {("order_id", "unique", 0), ("order_id", "unique", 2)}),
    "mixed": (
        changed(price=["n/a", "99", None], size=["XXL", "S", "S"]),
        {("price", "type", 0), ("price", "range", 1), ("price", "required", 2), ("size", "categories", 0)},
    ),
    "missing column": (GOOD.head(3).drop(columns="price"), {("price", "column missing", None)}),
    "extra column": (GOOD.head(3).assign(more=1), {("more", "column unknown", None)}),
    "order of columns": (GOOD.head(3)[[*GOOD.columns[1:], "order_id"]], {("price", "column order", None)}),
}


def broken(rows: pd.DataFrame, contract: Contract) -> set[tuple]:
    "What find_violations finds, as a set."
    lines = find_violations(rows, contract).astype(object)
    return {(one.column, one.rule, None if pd.isna(one.row_id) else int(one.row_id)) for one in lines.itertuples()}


@pytest.mark.parametrize("name", BAD)
def test_a_known_bad_frame_is_rejected_before_and_after_a_trip_through_the_file(name):
    rows, expected = BAD[name]
    again = parse_contract(contract_to_yaml(CONTRACT))
    assert again == CONTRACT
    assert broken(rows, CONTRACT) == broken(rows, again) == expected
    assert broken(GOOD, again) == set()


@pytest.mark.parametrize("name", [name for name in BAD if "type" not in name and "date" not in name and name != "mixed"])
def test_pandera_alone_says_the_same_about_typed_rows(name):
    rows, expected = BAD[name]
    typed, _ = coerce_to_contract(rows, CONTRACT)
    schema = pandera_schema(CONTRACT)
    schema.validate(GOOD)
    if name in ("extra column", "order of columns", "number instead of a moment"):  # pandera's schema is about columns it knows
        return
    with pytest.raises(SchemaErrors) as raised:
        schema.validate(typed, lazy=True)
    assert {case for case, _, _ in expected} <= set(raised.value.failure_cases.column) | set(
        raised.value.failure_cases.failure_case.astype(str)
    )


@pytest.mark.parametrize("name", TABLES)
def test_the_rows_that_a_contract_was_inferred_from_keep_it(name):
    rows = normalise_dtypes(TABLES[name][0]())
    contract = parse_contract(contract_to_yaml(infer_contract(rows, name)))
    checked = apply_contract(rows, contract)
    assert checked.failures == []
    assert checked.quarantine.empty
    pd.testing.assert_frame_equal(checked.clean, rows)


VALUES = st.one_of(
    st.just(st.integers(-(2**62), 2**62)),
    st.just(st.floats(allow_nan=True, allow_infinity=True)),
    st.just(st.text(max_size=6)),
    st.just(st.sampled_from(["S", "M", "", "NO", "1", "2024-01-01", "null", "é\u2028"])),
    st.just(st.booleans()),
    st.just(st.datetimes(min_value=pd.Timestamp("0002-01-01"), max_value=pd.Timestamp("9998-01-01"))),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_rows_drawn_from_the_inferred_table_pass(data):
    kinds = data.draw(st.lists(VALUES, min_size=1, max_size=3))
    columns = [
        column(f"{name}{n}", elements=kind, dtype=object) for n, (name, kind) in enumerate(zip("abc", kinds, strict=False))
    ]
    raw = data.draw(data_frames(columns, index=range_indexes(min_size=1, max_size=50)))
    rows = normalise_dtypes(raw.infer_objects())
    contract = parse_contract(contract_to_yaml(infer_contract(rows)))
    drawn = rows.loc[data.draw(st.lists(st.sampled_from(rows.index.tolist()), unique=True))]
    assert find_violations(drawn, contract).empty
    pd.testing.assert_frame_equal(coerce_to_contract(drawn, contract)[0], drawn)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(), st.integers(), st.text(max_size=5)), min_size=1, max_size=20))
def test_every_row_is_clean_or_in_quarantine_and_can_be_had_again(values):
    rows = pd.DataFrame({"price": pd.Series(values, dtype=object), "note": "x"}).rename_axis("row_id")
    contract = infer_contract(pd.DataFrame({"price": [1.0, 2.0] * 20, "note": "x"}))
    checked = apply_contract(rows, contract)
    kept = set(checked.clean.index), set(checked.quarantine.index)
    assert kept[0] | kept[1] == set(rows.index)
    assert not kept[0] & kept[1]
    pd.testing.assert_frame_equal(checked.quarantine[["price", "note"]], rows.loc[checked.quarantine.index])
    assert (checked.quarantine.quarantine_reason != "").all()


def test_one_bad_cell_hides_no_other_failure():
    rows = GOOD.assign(price=GOOD.price.astype("str"))
    rows.loc[3, "price"], rows.loc[7, "price"] = "n/a", "1e9"
    assert broken(rows, CONTRACT) == {("price", "type", 3), ("price", "range", 7)}


def test_severities_decide_between_quarantine_and_a_warning():
    rows = changed(size=["S", "XXL", "M"])
    assert apply_contract(rows, CONTRACT).quarantine.empty
    strict = parse_contract(contract_to_yaml(CONTRACT).replace("severity: warning", "severity: error"))
    checked = apply_contract(rows, strict)
    assert checked.clean.index.tolist() == [0, 2]
    assert checked.quarantine["size"].to_dict() == {1: "XXL"}
    assert checked.quarantine.quarantine_reason.to_dict() == {1: "size: One of 3 known values."}


def test_failures_have_five_examples_and_completeness_is_of_all_rows():
    rows = GOOD.assign(size=[f"size {n}" for n in range(60)], weight=None)
    checked = apply_contract(rows, CONTRACT)
    assert checked.failures[0].examples == [f"size {n}" for n in range(5)]
    assert checked.failures[0].rows == 60
    assert checked.completeness["weight"] == 0
    assert checked.completeness["size"] == 1


def spoiled(share: float) -> pd.DataFrame:
    "Good rows, of which a share has no price."
    rows = orders(100)
    return rows.assign(price=rows.price.mask(rows.index < 100 * share))


def test_above_the_threshold_the_run_stops():
    check_contract_limits(apply_contract(spoiled(0.2), CONTRACT), CONTRACT)
    with pytest.raises(ContractError, match=r"21 of 100 rows \(21.0 %\).*'price' required.*kept.csv.*my.yaml"):
        check_contract_limits(apply_contract(spoiled(0.21), CONTRACT), CONTRACT, quarantine="kept.csv", file="my.yaml")


@pytest.mark.parametrize(
    ("limit", "stops"),
    [
        ("mustBe: 0", True),
        ("mustBeLessThan: 2", False),
        ("mustBeLessThan: 1", True),
        ("mustBeLessOrEqualTo: 1, unit: percent", False),
        ("mustBeLessOrEqualTo: 0.5, unit: percent", True),
    ],
)
def test_a_rule_may_have_a_limit_of_its_own(limit, stops):
    text = contract_to_yaml(CONTRACT)
    text = text.replace("    quality:\n    - name: range\n", "@", 1)  # Of the price
    text = text.replace("@", f"    quality:\n    - {{metric: nullValues, severity: warning, {limit}}}\n    - name: range\n")
    contract = parse_contract(text)
    checked = apply_contract(spoiled(0.01), contract)
    assert checked.quarantine.empty
    if stops:
        with pytest.raises(ContractError, match="'price' required"):
            check_contract_limits(checked, contract)
    else:
        check_contract_limits(checked, contract)


def test_a_missing_column_stops_whatever_the_limits():
    rows = GOOD.drop(columns=["price", "size"])
    with pytest.raises(ContractError, match="no column 'price', 'size'"):
        check_contract_limits(apply_contract(rows, CONTRACT), CONTRACT)


def test_mended_rows_come_back_and_others_stay():
    checked = apply_contract(changed(price=["cheap", "dear", None], size=["S", "XXL", "M"]), CONTRACT)
    assert checked.quarantined == 3
    mended = quarantine_for_file(checked.quarantine, CONTRACT)
    mended.loc[[0, 1], "price"] = ["6.5", "still dear"]
    clean, still = recheck_quarantine(mended, CONTRACT)
    assert list(clean) == list(GOOD)
    assert clean.index.tolist() == [0]
    pd.testing.assert_frame_equal(still.clean, GOOD.head(1).assign(price=6.5))
    assert still.quarantine.quarantine_reason.to_dict() == {
        1: "price: Of type number. size: One of 3 known values.",
        2: "price: Never missing.",
    }
    mended = quarantine_for_file(still.quarantine, CONTRACT).assign(price=[7.5, 8.5])
    clean, still = recheck_quarantine(mended.drop(columns=["row_id", "quarantine_reason"]), CONTRACT)
    assert clean.price.tolist() == [7.5, 8.5]
    assert still.quarantine.empty


def test_a_mended_file_that_does_not_fit_is_refused():
    mended = quarantine_for_file(apply_contract(changed(price=["cheap", 1, "x"]), CONTRACT).quarantine, CONTRACT)
    with pytest.raises(ContractFileError, match="Two rows have the row_id 0"):
        recheck_quarantine(mended.assign(row_id=0), CONTRACT)
    with pytest.raises(ContractError, match="no column 'price'"):
        recheck_quarantine(mended.drop(columns="price"), CONTRACT)


@pytest.mark.parametrize(
    ("good", "bad", "field"),
    [
        ("kind: DataContract", "kind: Data", "kind"),
        ("version: 1.0.0", "version: 1.0", "version"),
        ("version: 1.0.0", "verzion: 1.0.0", "verzion"),
        ("logicalType: integer", "logicalType: int", "schema.orders.properties.order_id.logicalType"),
        ("severity: warning", "severety: warning", "schema.orders.properties.order_id.quality.unique.severety"),
        ("metric: invalidValues", "metric: tooMuch", "schema.orders.properties.size.quality.categories.metric"),
        ("value: 2.2", "value: two", "schema.orders.properties.price.quality.range.customProperties"),
        ("{property} < 2.2", "{property} < 2.3", "schema.orders.properties.price.quality.range.query"),
        ("validValues: [L", "validValues: [NO", "schema.orders.properties.size.quality.categories.arguments.validValues"),
        ("pattern: ^", "pattern: (^", "schema.orders.properties.code.quality.pattern.arguments.pattern"),
        ("version: 1.0.0", "kind: DataContract", "kind"),
        ("status: draft\n", "status: ]draft\n", ""),
    ],
)
def test_an_invalid_file_names_line_and_field(good, bad, field):
    text = contract_to_yaml(CONTRACT)
    assert good in text
    line = text[: text.index(good)].count("\n") + 1
    with pytest.raises(ContractFileError) as raised:
        parse_contract(text.replace(good, bad, 1), "my.yaml")
    assert f"Line {line} of my.yaml" in str(raised.value)
    assert f"'{field}" in str(raised.value) or not field


def test_a_file_without_a_field_that_it_needs_says_so():
    with pytest.raises(ContractFileError, match="the field 'status' is missing"):
        parse_contract(contract_to_yaml(CONTRACT).replace("status: draft\n", ""))
    for text in ("", "[]", "text"):
        with pytest.raises(ContractFileError, match="holds no contract"):
            parse_contract(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    "A good file and a bad one."
    GOOD.to_csv(tmp_path / "good.csv", index=False)
    for name, share in (("few", 0.05), ("many", 0.5)):
        spoiled(share).to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


def test_commands(folder):
    done = cli("contract", "infer", "good.csv", "--owner", "Sales", cwd=folder)
    assert done.returncode == 0, done.stderr
    written = (folder / "contract.yaml").read_text()
    assert parse_contract(written).team.name == "Sales"
    again = cli("contract", "infer", "good.csv", cwd=folder)
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert (folder / "contract.yaml").read_text() == written
    done = cli("contract", "check", "few.csv", "--quarantine", "kept.csv", cwd=folder)
    assert done.returncode == 1, done.stderr
    assert "5 of 100 rows (5.0 %) violate a rule of severity error" in done.stderr
    assert "100 rows in, 95 clean, 5 quarantined" in done.stdout
    assert "required" in done.stdout
    assert cli("contract", "check", "good.csv", cwd=folder).returncode == 0
    done = cli("contract", "check", "many.csv", cwd=folder)
    assert done.returncode == 1
    assert "50 of 100 rows (50.0 %)" in done.stderr
    kept = pd.read_csv(folder / "kept.csv", dtype="str")
    assert list(kept) == ["row_id", *GOOD.columns, "quarantine_reason"]
    kept.loc[[0, 1], "price"] = ["6.5", "7.5"]
    kept.to_csv(folder / "kept.csv", sep=";", index=False)  # As a spreadsheet may write it
    done = cli("contract", "recheck", "kept.csv", "--out", "clean.csv", cwd=folder)
    assert done.returncode == 1, "three rows are not mended"
    clean = pd.read_csv(folder / "clean.csv")
    assert list(clean) == list(GOOD)
    assert clean.price.tolist() == [6.5, 7.5]
    assert pd.read_csv(folder / "kept.csv").row_id.tolist() == [2, 3, 4]
    assert cli("contract", "recheck", "kept.csv", "--out", "clean.csv", cwd=folder).returncode == 2


def test_the_command_diff(folder):
    cli("contract", "infer", "good.csv", cwd=folder)
    few, many = (cli("contract", "diff", f"{name}.csv", cwd=folder) for name in ("few", "many"))
    assert (few.returncode, many.returncode) == (0, 0), few.stderr + many.stderr
    assert "breaking" not in few.stdout  # Five rows of a hundred are exceptions
    assert "breaking" in many.stdout
    assert "1.0.0 becomes 2.0.0" in many.stdout
    text = (folder / "contract.yaml").read_text()
    wider = text.replace("{property} > 14.3", "{property} > 114.3").replace("value: 14.3", "value: 114.3")
    assert wider != text
    (folder / "new.yaml").write_text(wider)
    done = cli("contract", "diff", "contract.yaml", "new.yaml", cwd=folder)
    assert done.returncode == 1
    assert "1.1.0" in done.stdout
    (folder / "new.yaml").write_text(wider.replace("version: 1.0.0", "version: 1.1.0"))
    assert cli("contract", "diff", "contract.yaml", "new.yaml", cwd=folder).returncode == 0
    (folder / "new.yaml").write_text("kind: nonsense")
    assert cli("contract", "diff", "contract.yaml", "new.yaml", cwd=folder).returncode == 2
