"""Contracts of others: every field of the Open Data Contract Standard is read and written back, and the counts agree with SQL."""

import duckdb
import numpy as np
import pandas as pd
import pytest
import yaml
from commands import cli

from mlcycle.data.contract import contract_of_table, contract_to_yaml, list_unchecked_rules, parse_contract
from mlcycle.data.contract_checks import check_rows_against_contract
from mlcycle.data.contract_inference import infer_contract
from mlcycle.data.contract_rules import as_library_rule
from mlcycle.data.quarantine import apply_contract, check_contract_limits, check_contract_rules
from mlcycle.errors import ContractError, ContractFileError
from mlcycle.stores.sources.ingest import read_source

FULL = """
domain: seller
dataProduct: quantum
version: 1.1.0
status: active
id: payments-1
kind: DataContract
apiVersion: v3.1.0
tenant: Acme
authoritativeDefinitions: [{type: canonical, url: https://example.org/c.yaml}]
description: {purpose: Payments, limitations: None known, usage: Sales, authoritativeDefinitions: [{type: a, url: b}]}
servers: [{server: pg, type: postgres, host: localhost, port: 5432, database: db, schema: public}]
schema:
- id: payments_obj
  name: payments
  physicalName: PAYMENTS_1
  physicalType: table
  businessName: Payments
  dataGranularityDescription: One line per payment
  tags: [finance]
  relationships: [{type: foreignKey, from: [payments.shop], to: [shops.id]}]
  properties:
  - name: payment
    physicalName: PAYMENT_NO
    primaryKey: true
    primaryKeyPosition: 1
    logicalType: integer
    logicalTypeOptions: {minimum: 1, exclusiveMaximum: 100, format: i64, multipleOf: 1}
    partitioned: true
    partitionKeyPosition: 1
    criticalDataElement: false
    classification: public
    encryptedName: enc_payment
    transformSourceObjects: [a, b]
    transformLogic: SELECT 1
    transformDescription: One
    examples: [1, 2022-10-03]
    relationships: [{to: ledgers.id, type: foreignKey}]
  - {name: account, logicalType: string, logicalTypeOptions: {minLength: 3, maxLength: 6, pattern: 'ACC[0-9]', format: uuid}}
  - {name: opens, logicalType: time, logicalTypeOptions: {minimum: '08:00:00', timezone: false}}
  - {name: tags, logicalType: array, logicalTypeOptions: {minItems: 0, uniqueItems: true}, items: {logicalType: string}}
  - {name: address, logicalType: object, logicalTypeOptions: {required: [zip]}, properties: [{name: zip, logicalType: string}]}
  - name: amount
    logicalType: number
    quality:
    - {type: sql, query: SELECT COUNT(*) FROM payments WHERE amount < 0, mustBe: 0, scheduler: cron, schedule: 0 1 * * *}
    - {type: custom, engine: soda, implementation: {type: duplicate_percent}, dimension: uniqueness, businessImpact: operational}
    - {type: text, description: The amount was verified.}
    - {rule: duplicateCount, mustBeLessThan: 10}
  - name: state
    logicalType: string
    quality:
    - {metric: invalidValues, arguments: {validValues: ["", null, open, paid]}, mustBeLessOrEqualTo: 5, unit: percent, method: x}
  quality:
  - {metric: rowCount, mustBeGreaterThan: 2, severity: error, authoritativeDefinitions: []}
  - {type: sql, query: SELECT 1, mustBeBetween: [0, 2]}
  customProperties: [{property: key, value: [payment]}]
- name: shops
  properties: [{name: id, logicalType: string, unique: true, required: true}]
price: {priceAmount: 9.95, priceCurrency: USD}
team: [{username: ann, role: Owner}]
roles: [{role: reader, access: read}]
slaDefaultElement: payments.payment
slaProperties: [{property: latency, value: 4, unit: d, element: payments.payment}]
support: [{channel: help, tool: slack}]
tags: [sales]
customProperties: [{property: empty, value: null}]
contractCreatedTs: '2022-11-15T02:59:43+00:00'
"""


def payments(**columns) -> pd.DataFrame:
    "Rows that keep the contract, with other values in some columns."
    good = {"PAYMENT_NO": [1, 2, 3], "account": ["ACC1", "xACC2", "ACC33"], "opens": "08:00", "tags": "[]", "address": "{}",
            "amount": [1.0, 2.0, 3.0], "state": ["open", None, "paid"]}  # fmt: skip
    return pd.DataFrame(good | columns).rename_axis("row_id")


def test_every_field_of_the_standard_is_read_and_written_back():
    contract = parse_contract(FULL)
    assert yaml.safe_load(contract_to_yaml(contract)) == yaml.safe_load(FULL)
    assert parse_contract(contract_to_yaml(contract)) == contract
    with pytest.raises(ContractFileError, match="'schema.payments.properties.payment.partition' is not known"):
        parse_contract(FULL.replace("partitioned: true", "partition: true"))


def test_rules_of_other_kinds_are_listed_as_not_checked():
    unchecked = list_unchecked_rules(contract_of_table(parse_contract(FULL), "payments"))
    assert list(zip(unchecked.column, unchecked.rule, strict=True)) == [
        ("payment", "multipleOf"), ("payment", "relationship"), ("account", "format"), ("opens", "type"), ("tags", "type"),
        ("tags", "minItems"), ("tags", "uniqueItems"), ("address", "type"), ("address", "required"), ("amount", "sql"),
        ("amount", "custom"), ("amount", "text"), ("amount", "duplicateCount"), ("", "sql"), ("", "relationship"),
    ]  # fmt: skip
    assert "soda" in unchecked.kind[10]


def test_rows_are_checked_with_one_of_several_tables_under_their_physical_names():
    contract = parse_contract(FULL)
    for table, expected in {"": "2 tables: payments, shops.*--table", "shop": "Did you mean 'shops'"}.items():
        with pytest.raises(ContractFileError, match=expected):
            contract_of_table(contract, table)
    one = contract_of_table(contract, "PAYMENTS_1", payments().columns)
    assert apply_contract(payments(), one).failures == []
    bad = payments(PAYMENT_NO=[2, 2, 100], account=["A", "ACC2", "ACC33"], state=["opn", "", "paid"])
    failures = {(each.column, each.rule): each.rows for each in apply_contract(bad, one).failures}
    assert failures == {("", "primary key"): 2, ("PAYMENT_NO", "range"): 1, ("account", "length"): 1, ("account", "pattern"): 1,
                        ("state", "categories"): 1}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "describes no table"),
        ("schema: []\n", "describes no table"),
        ("schema: [{name: topic, description: Events}]\n", "has no columns"),
    ],
)
def test_a_contract_without_columns_is_read_but_checks_no_rows(content, expected):
    head = "apiVersion: v3.0.2\nkind: DataContract\nid: a\nversion: 1.0.0\nstatus: draft\nteam: {members: [{username: ann}]}\n"
    contract = parse_contract(head + content)
    with pytest.raises(ContractFileError, match=expected):
        contract_of_table(contract)


@pytest.mark.parametrize(
    ("rule", "rows", "broken"),
    [
        ("{metric: nullValues}", 1, True),
        ("{metric: nullValues, severity: critical}", 1, True),
        ("{metric: nullValues, severity: info}", 9, False),
        ("{metric: nullValues, mustBe: 1}", 1, False),
        ("{metric: nullValues, mustNotBe: 1}", 1, True),
        ("{metric: nullValues, mustBeLessThan: 10, unit: percent}", 9, False),
        ("{metric: nullValues, mustBeLessThan: 9, unit: percent}", 9, True),
        ("{metric: nullValues, mustBeBetween: [2, 4]}", 4, False),
        ("{metric: nullValues, mustBeBetween: [2, 4]}", 5, True),
        ("{metric: nullValues, mustBeGreaterThan: 0}", 0, True),
        ("{metric: missingValues, arguments: {missingValues: [null, '-', NA]}}", 1, True),
        ("{metric: missingValues, arguments: {missingValues: [other]}}", 0, True),
    ],
)
def test_a_rule_has_any_limit_of_the_standard_and_an_error_none(rule, rows, broken):
    contract = parse_contract(
        "apiVersion: v3.1.0\nkind: DataContract\nid: a\nversion: 1.0.0\nstatus: draft\n"
        f"schema: [{{name: t, properties: [{{name: x, logicalType: string, quality: [{rule}]}}]}}]\n"
    )
    checked = apply_contract(pd.DataFrame({"x": [None] * rows + ["other"] * (100 - rows)}).rename_axis("row_id"), contract)
    if not broken:
        check_contract_rules(checked, contract)
        return
    with pytest.raises(ContractError, match="violates? a rule of severity error"):
        check_contract_rules(checked, contract)


def test_nine_rows_of_a_thousand_fail_the_check_but_not_a_run():
    rows = pd.DataFrame({"price": np.arange(1000.0)}).rename_axis("row_id")
    contract = infer_contract(rows)
    checked = apply_contract(rows.assign(price=rows.price.where(rows.index >= 9)), contract)
    with pytest.raises(ContractError, match=r"9 of 1,000 rows \(0.9 %\).*'price' required \(Never missing; 9 rows"):
        check_contract_rules(checked, contract)
    check_contract_limits(checked, contract)


def test_a_missing_column_is_an_error_of_every_row():
    rows = pd.DataFrame({"price": np.arange(40.0), "size": ["S", "L"] * 20}).rename_axis("row_id")
    checked = apply_contract(rows[["size"]], infer_contract(rows))
    assert (len(checked.clean), checked.quarantined, checked.failures[0].rows) == (0, 40, 40)
    assert set(checked.quarantine.quarantine_reason) == {"price: column missing."}


def bad_orders(rows: int = 400) -> tuple[pd.DataFrame, pd.DataFrame]:
    "A good table, and one with known violations of its contract."
    rng, number = np.random.default_rng(0), np.arange(rows)
    good = pd.DataFrame(
        {"order_id": number + 1000, "price": rng.lognormal(3, 0.5, rows).round(2), "size": rng.choice(["S", "M", "L"], rows),
         "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(number // 24, unit="D"), "unit price": rng.random(rows).round(3),
         "placed": pd.Timestamp("2024-01-01") + pd.to_timedelta(number, unit="h"), "note": rng.choice(["x", "y", None], rows)}
    )  # fmt: skip
    bad = good.astype({"size": object})
    bad.loc[0:8, "price"] = np.nan
    bad.loc[20:24, "price"] = 9999.0
    bad.loc[30:33, "size"], bad.loc[40:42, "size"], bad.loc[50:51, "size"] = "XXL", "NA", None
    bad.loc[60, "order_id"] = bad.loc[61, "order_id"]
    bad.loc[70:72, "placed"] = bad.loc[70, "day"] = pd.Timestamp("2199-01-01")
    bad.loc[100:105, "unit price"], bad.loc[110:112, "note"] = 77, "z"
    return good, bad


def count_by_sql(file, column, rule) -> float:
    "What a tool that reads the file with DuckDB counts: the query of a rule, or its metric."
    name, given = f'"{column.name}"', rule.arguments
    if rule.type == "sql":
        return duckdb.sql(rule.query.format(object=f"'{file}'", property=name)).fetchall()[0][0]
    listed = ", ".join(f"'{one}'" for one in given.missingValues or given.validValues or [])
    where = {"missingValues": f"{name} IS NULL OR {name} IN ({listed})", "invalidValues": f"{name} NOT IN ({listed})"}[
        rule.metric
    ]
    return duckdb.sql(f"SELECT COUNT(*) FROM '{file}' WHERE {where}").fetchall()[0][0]


def test_the_counts_of_an_inferred_contract_are_those_of_its_queries(tmp_path):
    good, bad = bad_orders()
    bad.to_csv(tmp_path / "bad.csv", index=False)
    contract, rows = infer_contract(good.rename_axis("row_id"), "orders"), read_source(str(tmp_path / "bad.csv"))
    found = {(each.column, each.rule): len(each.positions) for each in check_rows_against_contract(rows, contract)[1]}
    assert found == {
        ("order_id", "unique"): 2, ("price", "required"): 9, ("price", "range"): 5, ("size", "required"): 5,
        ("size", "categories"): 4, ("day", "range"): 1, ("unit price", "range"): 6, ("placed", "range"): 3,
        ("note", "categories"): 3,
    }  # fmt: skip
    compared = set()
    for column in contract.columns.values():
        for rule in column.quality:
            name = as_library_rule(rule).rule_name
            expected = found.get((column.name, name), 0) if name != "missing values" else int(rows[column.name].isna().sum())
            counted = count_by_sql(tmp_path / "bad.csv", column, rule)
            assert counted == pytest.approx(100 * expected / len(rows) if rule.type == "sql" else expected), (column.name, name)
            compared.add((column.name, name))
    assert compared >= set(found) - {("price", "required")}  # `required: true` alone


def test_a_range_is_a_query_that_cannot_differ_from_its_bounds():
    text = contract_to_yaml(infer_contract(bad_orders()[0], "orders"))
    assert "type: sql" in text and "property: maximum" in text
    with pytest.raises(ContractFileError, match="unit price.quality.range.query' is another rule than its customProperties"):
        parse_contract(text.replace("{property} > 1.5 ", "{property} > 2.5 "))
    wider = parse_contract(text.replace("{property} > 1.5 ", "{property} > 2.5 ").replace("value: 1.5", "value: 2.5"))
    assert wider.columns["unit price"].rules["range"].arguments.maximum == 2.5


def test_the_command_lists_what_it_does_not_check_and_asks_for_a_table(tmp_path):
    (tmp_path / "contract.yaml").write_text(FULL)
    payments().to_csv(tmp_path / "rows.csv", index=False)
    done = cli("contract", "check", "rows.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert "--table" in done.stderr
    done = cli("contract", "check", "rows.csv", "--table", "payments", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Not checked: 15 rules of other kinds." in done.stdout
    assert "custom, soda" in done.stdout
