"""What a client reads in the responses of a toy release: conversions, names, errors and texts."""

import unicodedata

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from mlcycle.ml.cleaning_plan import CleaningPlan, ColumnCleaningPlan
from mlcycle.outcomes import ModelRef, Problem
from mlcycle.service import sent_rows
from mlcycle.service.app import create_app
from mlcycle.service.bundle import Bundle, build_bundle
from mlcycle.service.input_schema import example_rows
from mlcycle.service.input_values import describe_training_values
from mlcycle.service.prediction_log import flush_prediction_log
from mlcycle.stores.events import open_event_database, read_events
from mlcycle.stores.models.model_files import save_model

RNG = np.random.default_rng(0)
ROWS = pd.DataFrame(
    {
        "at": pd.date_range("2024-01-01", periods=80),
        "Größe (cm)": RNG.normal(170, 10, 80),
        "premium": RNG.normal(100, 10, 80),
        "unused": RNG.normal(size=80),
        "owner": pd.array(["Ada Lovelace", "Alan Turing"] * 40, dtype="str"),
    }
)
ROW = {"at": "2024-04-14T00:00:00", "Größe (cm)": 180.5, "premium": 99.5, "unused": 0.5, "owner": "Alan Turing"}


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    "Address of the prediction log."
    return f"sqlite:///{tmp_path_factory.mktemp('events')}/events.db"


@pytest.fixture(scope="module")
def client(tmp_path_factory, events):
    "A service of the toy release in this process."
    folder = tmp_path_factory.mktemp("toy")
    steps = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["owner"]), ("passthrough", ["Größe (cm)", "premium"])
    )
    model = make_pipeline(steps, LogisticRegression()).fit(ROWS, np.where(ROWS.premium > 100, "yes", "no"))
    fields = dict.fromkeys(("decision", "question", "owner", "source", "source_sha256"), "-")
    task = {"task": "binary", "classes": ["no", "yes"], "positive": "yes", "metric": "roc_auc", "metrics": ["roc_auc"]}
    owners = ColumnCleaningPlan(known_values=("Ada Lovelace", "Alan Turing"), case_corrections={"ALAN TURING": "Alan Turing"})
    bundle = Bundle(
        problem=Problem(**fields, **task, target="y", criteria=[], rows=80),
        columns={name: str(values.dtype) for name, values in ROWS.items()},
        threshold=0.5,
        model=ModelRef(name="toy", version=1, run_id="-", sha256=save_model(model, folder / "m.skops")),
        cleaning=CleaningPlan(steps=("case",), columns={"owner": owners}),
        training_values={name: describe_training_values(values) for name, values in ROWS.items()},
        examples=example_rows(ROWS),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        release = build_bundle(folder / "releases", bundle, folder / "m.skops")
        with TestClient(create_app(release, events, "toy")) as client:
            yield client


def predict(client, *rows: dict, **fields) -> dict:
    "A successful response of `POST /predict`."
    response = client.post("/predict", json={"rows": rows, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def test_a_time_that_is_moved_to_utc_is_a_change(client):
    sent = ["2024-04-14T00:00:00+02:00", "2024-04-14T00:00:00Z", "14.04.2024", "14-04-2024", "2024-04-14 00:00 -0530"]
    body = predict(client, *(ROW | {"at": text} for text in sent))
    assert [(each["row"], each["column"], each["step"], each["before"], each["after"]) for each in body["changes"]] == [
        (0, "at", "notation", sent[0], "2024-04-13T22:00:00"),
        (4, "at", "notation", sent[4], "2024-04-14T05:30:00"),
    ]


def test_texts_of_the_training_rows_are_not_in_the_description_of_the_model(client):
    response = client.get("/model")
    assert response.json()["columns"]["owner"] == "str"
    assert response.json()["cleaning"] == {"steps": ["case"]}
    assert "training_values" not in response.json()
    assert "TURING" not in response.text


def test_a_name_in_another_unicode_form_is_the_same_name(client):
    decomposed = {unicodedata.normalize("NFD", name): value for name, value in ROW.items()}
    assert decomposed.keys() != ROW.keys()
    plain, body = predict(client, ROW), predict(client, decomposed)
    assert body["scores"] == plain["scores"]
    assert body["coercions"] == [{"column": "", "kind": "column name in another Unicode form", "count": 1}]
    split = {"dataframe_split": {"columns": [*decomposed], "data": [[*decomposed.values()]]}}
    assert client.post("/invocations", json=split).json()["predictions"] == plain["predictions"]


def test_a_missing_column_is_suggested_for_a_similar_one_and_extra_columns_are_named(client):
    renamed = {"PREMIUM" if name == "premium" else name: value for name, value in ROW.items()}
    response = client.post("/predict", json={"rows": [ROW, renamed]})
    assert response.status_code == 422
    assert "The column 'premium' is missing in row 2. Did you mean 'premium' by 'PREMIUM'?" in response.json()["detail"]
    extra = predict(client, ROW | {f"extra {place}": place for place in range(9)} | {"x" * 500: 1})["coercions"]
    assert extra == [{"column": "", "kind": "extra columns", "count": 10, "names": [f"extra {place}" for place in range(5)]}]


def test_the_search_for_similar_names_is_limited(client, monkeypatch):
    compared = []
    monkeypatch.setattr(sent_rows, "find_similar_name", lambda name, names: compared.append([*names]) or "")
    rows = [{f"{place} {number}": 1 for number in range(100)} | {"y" * 5000: 1} for place in range(500)]
    assert client.post("/predict", json={"rows": rows}).status_code == 422
    assert len(compared) == 10 * len(ROW)
    assert max(len(names) for names in compared) == 20
    assert max(len(name) for names in compared for name in names) <= 100


def test_errors_are_in_the_order_of_the_rows(client):
    rows = [ROW | {"unused": "bad"}, ROW, ROW | {"at": "in spring", "premium": "545,85"}]
    body = client.post("/predict", json={"rows": rows}).json()
    assert [(each["row"], each["column"]) for each in body["errors"]] == [(0, "unused"), (2, "at"), (2, "premium")]
    assert "in row 1" in body["detail"]
    assert body["errors"][2]["expected"] == "Expected is a number, such as 545.85."
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("CellError", "Change", "Warning"):
        assert "messages count from 1" in schemas[name]["properties"]["row"]["description"]


def test_long_texts_are_cut_off_in_the_response_and_complete_in_the_log(client, events):
    text = "x" * 200_000
    body = predict(client, ROW | {"owner": text}, ROW | {"owner": "ALAN TURING"}, row_ids=["long", "case"], reasons=5)
    assert body["warnings"][0]["value"] == "x" * 59 + "…"
    assert body["warnings"][0]["warning"].endswith("it is treated as an unseen one.")
    assert body["changes"][0]["before"] == "ALAN TURING"
    assert max(len(each["value"]) for row in body["reasons"] for each in row if each["column"] == "owner") <= 60
    assert flush_prediction_log(client.app.state.service.log)
    engine = open_event_database(events)
    logged, _ = read_events(engine, "toy")
    engine.dispose()
    assert logged.set_index("row_id").warnings["long"][0]["value"] == text


def test_row_ids_that_cannot_be_used_are_named_with_their_positions(client):
    predict(client, ROW, row_ids=["known"])
    for path, body in (
        ("/feedback", {"actuals": ["yes", "no"], "row_ids": ["known", "lost"]}),
        ("/feedback", {"actuals": ["yes", "no"], "row_ids": ["known", "known"]}),
        ("/predict", {"rows": [ROW, ROW], "row_ids": ["new", ""]}),
    ):
        response = client.post(path, json=body)
        assert response.status_code == 422
        errors = response.json()["errors"]
        assert [(each["row"], each["rule"], each["value"]) for each in errors] == [(1, "row_id", repr(body["row_ids"][1]))]


def test_reasons_change_the_score_and_have_a_limit_of_rows_that_is_described(client):
    (reasons,) = predict(client, ROW, reasons=5)["reasons"]
    assert {each["column"] for each in reasons} == {"Größe (cm)", "premium", "owner"}
    assert all(each["change"] for each in reasons)
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert "at most 4,000 rows" in schemas["PredictRequest"]["properties"]["reasons"]["description"]
    response = client.post("/predict", json={"rows": [ROW] * 4001, "reasons": 1})
    assert "at most 4,000 with reasons" in response.json()["detail"]


def test_a_path_with_a_trailing_slash_is_unknown(client):
    response = client.post("/predict/", json={"rows": [ROW]}, follow_redirects=False)
    assert response.status_code == 404
    assert response.json()["detail"].startswith("There is no /predict/.")
