"""The same row gets the same prediction, or the same message, through every door; no value breaks the service."""

import json
import sqlite3
from datetime import datetime

import numpy as np
import pandas as pd
import pytest
from conftest import orders
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlcycle.data.clean import add_source_formats, plan_cleaning
from mlcycle.data.error_injection import inject_errors
from mlcycle.errors import InputError
from mlcycle.ml.cleaning import apply_cleaning_plan
from mlcycle.ml.cleaning_plan import CleaningPlan
from mlcycle.outcomes import ModelRef, Problem
from mlcycle.service.app import create_app
from mlcycle.service.bundle import Bundle, open_release
from mlcycle.service.edge_rows import edge_rows
from mlcycle.service.input_values import UnreadableValueError, describe_training_values, is_infinite, read_value
from mlcycle.service.prediction_log import flush_prediction_log
from mlcycle.service.row_scorer import compile_row_scorer
from mlcycle.service.rows import plan_for_prediction, predict_rows, prepare_rows, to_json_rows
from mlcycle.service.sent_rows import RejectedRowsError
from mlcycle.stores.events import add_events, open_event_database, read_events
from mlcycle.stores.sources.ingest import normalise_dtypes, read_source_with_provenance

ROW = {"placed": "2024-03-05T10:00:00", "town": "Lima", "zip": 30219, "spend": 55.5, "vip": "False", "paid": 1}


@pytest.fixture(scope="module")
def doors(table_run, tmp_path_factory):
    "A run on orders, and a client of the service of its release with a prediction log."
    run = table_run("orders")
    url = f"sqlite:///{tmp_path_factory.mktemp('events')}/events.db"
    with TestClient(create_app(run.workspace.root / run.release.bundle, url, "test"), raise_server_exceptions=False) as client:
        yield run, client, url


def through_library(run, rows):
    "Scores or a message from `run.predict`."
    try:
        return run.predict(rows).score.tolist()
    except InputError as error:
        return str(error)


def through_http(client, rows):
    "Scores or a message from the service."
    response = client.post("/predict", content=json.dumps({"rows": rows}), headers={"content-type": "application/json"})
    assert response.status_code in (200, 422), response.text
    return response.json()["scores" if response.is_success else "detail"]


def through_all(run, client, rows):
    "Results of the library with mappings and with a data frame, and of the service."
    return [through_library(run, rows), through_library(run, pd.DataFrame(rows, dtype=object)), through_http(client, rows)]


@pytest.mark.filterwarnings("ignore:The column")
@pytest.mark.parametrize(
    ("change", "same_as"),
    [
        ({"spend": "-999"}, {"spend": -999}),
        ({"spend": -999}, {"spend": None}),
        ({"spend": "55.50"}, {}),
        ({"spend": " 55.5 "}, {}),
        ({"spend": "NA"}, {"spend": None}),
        ({"zip": "30219"}, {}),
        ({"zip": "04711"}, {"zip": 4711}),
        ({"zip": 30219.0}, {}),
        ({"vip": False}, {}),
        ({"vip": 0}, {}),
        ({"vip": "no"}, {}),
        ({"vip": "FALSE"}, {}),
        ({"vip": "yes"}, {"vip": "True"}),
        ({"vip": 1}, {"vip": True}),
        ({"paid": True}, {}),
        ({"paid": "yes"}, {}),
        ({"placed": "05.03.2024 10:00"}, {}),
        ({"placed": "5-Mar-2024 10:00 AM"}, {}),
        ({"placed": "2024-03-05T12:00:00+02:00"}, {}),
        ({"placed": "31/01/2023 07:15 PM"}, {"placed": "2023-01-31T19:15:00"}),
        ({"town": " Lima"}, {}),
        ({"town": "LIMA"}, {}),
        ({"more": [1, {"deep": None}]}, {}),
        ({"town": "Limo"}, {"town": "Ulan Bator"}),
    ],
)
def test_values_that_mean_the_same_get_the_same_score_everywhere(doors, change, same_as):
    run, client, _ = doors
    results = through_all(run, client, [ROW | change])
    assert results == [through_http(client, [ROW | same_as])] * 3
    assert isinstance(results[0], list)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"zip": 10**29}, ["'zip'", "1.00000e+29", "too large", "whole number between"]),
        ({"zip": 2.5}, ["'zip'", "2.5", "not a whole number"]),
        ({"spend": 1e308}, ["'spend'", "1e+308", "too large"]),
        ({"spend": "1e308"}, ["'spend'", "too large"]),
        ({"spend": "three"}, ["'spend'", "'three'", "not a number"]),
        ({"zip": "30.219"}, ["'zip'", "'30.219'", "decimal mark or separate thousands"]),
        ({"spend": "1,957"}, ["'spend'", "'1,957'", "decimal mark or separate thousands"]),
        ({"spend": True}, ["'spend'", "boolean"]),
        ({"town": 157713480001800014.0}, ["'town'", "a float beyond 2^53", "dtype=str"]),
        ({"spend": [1]}, ["'spend'", "a list"]),
        ({"town": {"a": 1}}, ["'town'", "a mapping", "a text"]),
        ({"town": "\ud800"}, ["'town'", "Unicode"]),
        ({"placed": "03/04/2024"}, ["'placed'", "2024-03-04 or 2024-04-03", "ISO 8601"]),
        ({"placed": "soon"}, ["'placed'", "'soon'", "ISO 8601"]),
        ({"placed": 5}, ["'placed'", "a number is not a date"]),
        ({"vip": "maybe"}, ["'vip'", "'maybe'", "neither 'False' nor 'True'"]),
        ({"placed": "0001-01-01T00:00:00+05:00"}, ["'placed'"]),
    ],
)
def test_values_that_cannot_be_used_get_the_same_message_everywhere(doors, change, words):
    run, client, _ = doors
    results = through_all(run, client, [ROW, ROW | change])
    assert len(set(results)) == 1, results
    assert all(word in results[0] for word in [*words, "in row 2", "Expected is"]), results[0]


@pytest.mark.filterwarnings("ignore:The column")
@pytest.mark.parametrize("value", [float("inf"), "-inf"])
def test_infinity_is_missing_in_the_library_and_rejected_by_the_service(doors, value):
    run, client, _ = doors
    rows, missing = [ROW, ROW | {"spend": value}], [ROW, ROW | {"spend": None}]
    assert through_library(run, rows) == through_library(run, pd.DataFrame(rows)) == through_library(run, missing)
    message = through_http(client, rows)
    assert "'spend'" in message and "in row 2: infinity is not a number" in message


@pytest.mark.parametrize("rows", ["orders.csv", [], [1], [[1, 2]], 5, None, [{"town": "Lima"}], {}, [ROW, {}]])
def test_rows_of_another_form_get_the_same_message_everywhere(doors, rows):
    run, client, _ = doors
    message = through_library(run, rows)
    assert isinstance(message, str)
    assert message == through_http(client, rows)
    assert "xpected" in message


def test_a_missing_column_and_no_rows_are_clear_in_a_data_frame_too(doors):
    run, client, _ = doors
    short = {name: value for name, value in ROW.items() if name != "town"}
    assert through_library(run, pd.DataFrame([short])) == through_http(client, [short])
    assert through_library(run, pd.DataFrame(columns=list(ROW))) == through_http(client, [])
    assert "two columns named 'zip'" in through_library(run, pd.DataFrame([[*ROW.values(), 1]], columns=[*ROW, "zip"]))


@pytest.mark.filterwarnings("ignore:The column")
def test_one_mapping_one_series_and_typed_frames_are_rows(doors):
    run, client, _ = doors
    table = orders().drop(columns="late").head(30)
    typed = table.assign(placed=pd.to_datetime(table.placed), vip=table.vip == "True")
    expected = through_http(client, to_json_rows(table))
    for frame in (table, typed, table.convert_dtypes(), table.astype(object), typed.assign(town=table.town.astype("category"))):
        assert through_library(run, frame.set_axis(range(100, 130))) == pytest.approx(expected, abs=1e-12)
    assert through_library(run, ROW) == through_library(run, pd.Series(ROW)) == through_http(client, ROW)
    assert run.predict(table.set_axis([*"aabb"] * 7 + ["a", "b"])).index[1] == "a"


def test_what_cleaning_changes_is_in_the_response_in_the_log_and_in_a_warning(doors):
    run, client, url = doors
    rows = [ROW, ROW | {"spend": -999}, ROW | {"town": "LIMA"}, ROW | {"town": "Limo"}]
    ids = ["as it is", "sentinel", "case", "unseen"]
    body = client.post("/predict", json={"rows": rows, "row_ids": ids}).json()
    assert [(each["row_id"], each["column"], each["before"], each["after"]) for each in body["changes"]] == [
        ("sentinel", "spend", "-999", None),
        ("case", "town", "LIMA", "Lima"),
    ]
    assert [(each["row_id"], each["column"], each["value"]) for each in body["warnings"]] == [("unseen", "town", "Limo")]
    with pytest.warns(UserWarning) as caught:
        notes = run.predict(rows).attrs["notes"]
    assert [str(each.message) for each in caught if "column" in str(each.message)] == notes
    assert len(notes) == 3
    assert flush_prediction_log(client.app.state.service.log)
    events, features = read_events(open_event_database(url), "test")
    logged = features.assign(changes=events.changes, warnings=events.warnings).set_index(events.row_id).loc[ids]
    assert logged.town.tolist() == ["Lima", "Lima", "Lima", "Limo"]
    assert [each[0]["step"] if isinstance(each, list) else None for each in logged.changes] == [None, "sentinels", "case", None]
    assert logged.warnings.iloc[3][0]["value"] == "Limo"


def test_a_sentinel_of_the_training_rows_is_reported_in_rows_of_any_form(doors):
    run, _, _ = doors
    row = ROW | {"spend": -999}
    for rows in (row, [row] * 30, pd.DataFrame([row]), pd.DataFrame([row] * 30).astype({"spend": float})):
        with pytest.warns(
            UserWarning, match="'spend' was changed in .* by the cleaning step 'sentinels', such as '-999' to missing"
        ):
            run.predict(rows)


def test_an_unseen_category_among_many_is_reported_and_an_id_is_not():
    codes = [f"{number:05}" for number in range(10_000, 10_400)]
    rows = pd.DataFrame({"zip": codes * 3, "number": [int(code) for code in codes] * 3, "id": [f"id {n}" for n in range(1200)]})
    about = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256", "target"], "-")
    bundle = Bundle(
        problem=Problem(**about, task="regression", metric="r2", metrics=["r2"], criteria=[], rows=1),
        columns={name: str(values.dtype) for name, values in rows.items()},
        threshold=None,
        model=ModelRef(name="m", version=1, run_id="", sha256=""),
        training_values={name: describe_training_values(values, categorical=True) for name, values in rows.items()},
    )
    seen = {"zip": "10007", "number": 10007, "id": "new"}
    assert prepare_rows(seen, bundle).warnings == []
    warnings = prepare_rows([seen, {"zip": "99999", "number": 99999, "id": "newer"}], bundle).warnings
    assert [(each["row"], each["column"], each["value"]) for each in warnings] == [(1, "zip", "99999"), (1, "number", 99999)]


def test_all_bad_cells_are_listed_and_the_other_rows_can_be_predicted(doors):
    run, _, _ = doors
    bundle, model = open_release(run.workspace.root / run.release.bundle)
    scorer, rows = compile_row_scorer(model, bundle), [ROW, ROW | {"zip": "x", "vip": "maybe"}, {}, ROW | {"spend": "-999"}]
    with pytest.raises(RejectedRowsError) as caught:
        predict_rows(bundle, scorer, rows)
    cells = [(each["row"], each["column"], each["rule"]) for each in caught.value.errors]
    assert cells[:2] == [(1, "zip", "type"), (1, "vip", "category")]
    assert {(each[0], each[2]) for each in cells[2:]} == {(2, "missing_column")}
    predictions, prepared = predict_rows(bundle, scorer, rows, skip_invalid=True)
    assert prepared.valid == [0, 3]
    assert predictions.scores.tolist() == predict_rows(bundle, scorer, [rows[0], rows[3]])[0].scores.tolist()
    assert [change["row"] for change in prepared.changes] == [3]


def test_feedback_is_read_as_classes_of_the_target(doors):
    _, client, url = doors
    spelt = ["Yes", "yes", "YES ", " no", True, 0]
    ids = [f"spelt {number}" for number in range(len(spelt))]
    assert client.post("/predict", json={"rows": [ROW] * len(spelt), "row_ids": ids}).is_success
    assert client.post("/feedback", json={"actuals": spelt, "row_ids": ids}).json() == {"received": len(spelt)}
    for actuals, row_ids, word in (
        (["maybe"], ids[:1], "'No', 'Yes'"),
        ([7], ids[:1], "not a class"),
        ([None], ids[:1], "not a class"),
        ([["Yes"]], ids[:1], "not a class"),
        (["Yes"], ["never predicted"], "never predicted"),
        (["Yes", "No"], ids[:1] * 2, "twice"),
        (["Yes", "No"], ids[:1], "1 row_ids for 2 actuals"),
        ("Yes", ids[:1], "list"),
        (["Yes"], [["a"]], "row id"),
    ):
        response = client.post("/feedback", json={"actuals": actuals, "row_ids": row_ids})
        assert response.status_code == 422
        assert word in response.json()["detail"], response.json()
    client.post("/feedback", json={"actuals": ["No"], "row_ids": ids[-1:]})
    assert flush_prediction_log(client.app.state.service.log)
    events, _ = read_events(open_event_database(url), "test")
    assert events.set_index("row_id").actual[ids].tolist() == ["Yes"] * 3 + ["No", "Yes", "No"]


def test_a_log_that_cannot_be_read_is_a_clear_status(doors, tmp_path):
    run, _, _ = doors
    file = tmp_path / "events.db"
    app = create_app(run.workspace.root / run.release.bundle, f"sqlite:///{file}", "test")
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/predict", json={"rows": [ROW], "row_ids": ["a"]}).is_success
        assert flush_prediction_log(app.state.service.log)
        with sqlite3.connect(file) as connection:
            connection.execute("DROP TABLE predictions")
        connection.close()
        assert client.post("/predict", json={"rows": [ROW], "row_ids": ["b"]}).is_success
        response = client.post("/feedback", json={"actuals": ["Yes"], "row_ids": ["c"]})  # The spool does not know its row
    assert response.status_code == 503
    assert "prediction log" in response.json()["detail"]


def test_row_ids_are_unique_within_a_request(doors):
    _, client, _ = doors
    for ids in (["a", "a"], ["a"], ["a", ""], ["a", "x" * 81], "ab", ["a", None]):
        response = client.post("/predict", json={"rows": [ROW, ROW], "row_ids": ids})
        assert response.status_code == 422
        assert "row" in response.json()["detail"]


def test_bodies_that_are_no_requests_are_explained(doors):
    _, client, _ = doors
    for path in ("/predict", "/feedback"):
        for body in ("{", "[]", "5", "", '{"row_ids": []}'):
            response = client.post(path, content=body, headers={"content-type": "application/json"})
            assert response.status_code == 422
            assert response.json()["detail"].startswith("The body")
    assert "10,000" in client.post("/predict", json={"rows": [ROW] * 10_001}).json()["detail"]


SCALARS = [
    st.none(),
    st.booleans(),
    st.integers(-(10**320), 10**320),
    st.floats(),
    st.text(st.characters(exclude_categories=[]), max_size=12),
    st.sampled_from(
        ["", "NA", "yes", "1e400", "-999", "9" * 400, "31/12/9999 11:59 PM", "0001-01-01", "9999-12-31T23:59:59-12:00"]
    ),
    st.datetimes().map(datetime.isoformat),
]
VALUES = st.recursive(
    st.one_of(SCALARS), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
QUIET = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def post(client, path, body):
    "Send any JSON value, NaN and half surrogate pairs included."
    return client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})


@pytest.mark.filterwarnings("ignore")
@QUIET
@given(st.sampled_from(list(ROW)), VALUES)
@example("placed", float("inf"))
def test_no_value_breaks_the_service_and_the_library_agrees(doors, name, value):
    run, client, _ = doors
    rows = [ROW, ROW | {name: value}]
    response = post(client, "/predict", {"rows": rows})
    assert response.status_code in (200, 422), (response.status_code, response.text)
    result = response.json()["scores"] if response.is_success else response.json()["detail"]
    found = through_library(run, rows)
    if "infinity is not a number" in result and not isinstance(found, str):  # Missing in a column of numbers
        assert np.isfinite(found).all() and is_infinite(value)
    else:
        assert result == found
    assert isinstance(result, str) or np.isfinite(result).all()


@pytest.mark.filterwarnings("ignore")
@QUIET
@given(VALUES, VALUES)
def test_no_body_breaks_the_service(doors, first, second):
    _, client, _ = doors
    for path, body in (
        ("/predict", first),
        ("/predict", {"rows": first, "row_ids": second}),
        ("/predict", {"rows": [ROW], "row_ids": [first]}),
        ("/feedback", {"actuals": first, "row_ids": second}),
        ("/feedback", {"actuals": [first], "row_ids": [second]}),
    ):
        response = post(client, path, body)
        assert response.status_code in (200, 422), (response.status_code, response.text)
        assert response.is_success or isinstance(response.json()["detail"], str)


def test_the_log_gets_from_arrays_what_a_data_frame_holds(doors):
    run, _, _ = doors
    bundle, _ = open_release(run.workspace.root / run.release.bundle)
    for row in edge_rows(bundle):
        prepared = prepare_rows([row], bundle)
        logged, held = to_json_rows(prepared.columns)[0], to_json_rows(prepared.frame)[0]
        assert logged == held
        assert [*map(type, logged.values())] == [*map(type, held.values())]


def test_the_bundle_describes_the_training_rows(doors):
    run, _, _ = doors
    bundle, _ = open_release(run.workspace.root / run.release.bundle)
    known = bundle.training_values
    assert known["town"].texts == ("Lima", "Oslo", "Rome")
    assert known["vip"].booleans == ("False", "True")
    assert known["paid"].booleans == (0, 1)
    assert known["zip"].largest > 90_000


def test_rows_are_cleaned_as_the_training_rows_are():
    from palmerpenguins import load_penguins_raw

    rows = normalise_dtypes(load_penguins_raw()).drop(columns=["Comments", "Sample Number"])
    dirty, _ = inject_errors(rows, ("whitespace", "case", "typos", "marks", "sentinels"), share=0.05, seed=7)
    plan = plan_cleaning(dirty)
    clean, _ = apply_cleaning_plan(dirty, plan_for_prediction(plan))
    about = dict.fromkeys(["decision", "question", "owner", "source", "source_sha256", "target"], "-")
    problem = Problem(**about, task="regression", metric="r2", metrics=["r2"], criteria=[], rows=1)
    columns = {name: str(kind) for name, kind in clean.dtypes.items()}
    bundle = Bundle(
        problem=problem,
        columns=columns,
        threshold=None,
        cleaning=plan,
        model=ModelRef(name="m", version=1, run_id="", sha256=""),
        training_values={name: describe_training_values(values) for name, values in clean.items()},
    )
    records = to_json_rows(dirty)
    whole = prepare_rows(records, bundle)
    assert len(whole.changes) > 50
    singles = pd.concat([prepare_rows(record, bundle).frame for record in records], ignore_index=True)
    for frame in (whole.frame, prepare_rows(dirty, bundle).frame, singles):
        pd.testing.assert_frame_equal(frame, clean.rename_axis(None).reset_index(drop=True), check_dtype=False)


def test_values_are_read_in_the_notation_of_the_source(tmp_path):
    "Currency, parentheses, thousands with points, bounds and the order of day and month hold for later rows too."
    days = pd.date_range("2024-01-01", periods=60)
    table = pd.DataFrame({
        "amount": [f"${n}.50" if n % 3 else f"(${n}.25)" for n in range(60)], "level": ["<0.5", *[f"{n}.5" for n in range(59)]],
        "price": [f"{n + 1}.{n * 10:03}" if n else "1.957.000" for n in range(60)], "day": days.strftime("%m/%d/%Y"),
    })  # fmt: skip
    table.to_csv(tmp_path / "table.csv", index=False)
    rows, _, readings = read_source_with_provenance(str(tmp_path / "table.csv"))
    plan = add_source_formats(CleaningPlan(), readings, rows)
    for name, text, value in (("amount", "($7.25)", -7.25), ("amount", "$3", 3), ("level", "<0.5", 0.5), ("price", "2.460", 2460),
                              ("day", "03/04/2024", datetime(2024, 3, 4)), ("amount", 3.5, 3.5)):  # fmt: skip
        known = describe_training_values(rows[name])
        assert read_value(text, str(rows[name].dtype), known, plan.columns[name]) == value, (name, text)
    with pytest.raises(UnreadableValueError):
        read_value("€3", "float64", describe_training_values(rows.amount), plan.columns["amount"])


def test_a_log_of_an_earlier_version_gets_the_new_columns(tmp_path):
    file, now = tmp_path / "events.db", pd.Timestamp("2020-01-01").to_pydatetime()
    with sqlite3.connect(file) as connection:
        connection.execute(
            "CREATE TABLE predictions (number INTEGER PRIMARY KEY, run VARCHAR(80) NOT NULL, row_id VARCHAR(80) NOT NULL, "
            "received DATETIME NOT NULL, latency_ms FLOAT NOT NULL, features JSON NOT NULL, prediction JSON NOT NULL, score JSON)"
        )
        connection.execute("INSERT INTO predictions VALUES (1, 'r', 'old', '2020-01-01', 1.0, '{\"x\": 1}', '2.5', NULL)")
    connection.close()
    for _ in range(2):
        engine = open_event_database(f"sqlite:///{file}")
    new = {
        "run": "r",
        "row_id": "new",
        "received": now,
        "latency_ms": 1.0,
        "features": {"x": 2},
        "prediction": 3.5,
        "score": None,
    }
    add_events(engine, "predictions", [new | {"changes": [{"column": "x"}], "warnings": None}])
    events, features = read_events(engine, "r")
    engine.dispose()
    assert features.x.tolist() == [1, 2]
    assert events.changes[1] == [{"column": "x"}]
    assert events.changes.isna().tolist() == [True, False]
