"""All protocols of the service, judged by their own clients and by schemathesis; the same rows get the same bits from each."""

import json
import re
import shlex
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pandas as pd
import pytest
import schemathesis
from conftest import stored_rows
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from open_inference import open_inference_document

from mlcycle.service.app import create_app
from mlcycle.service.bundle import open_release
from mlcycle.service.local import running_service
from mlcycle.service.rows import predict_rows, to_json_rows

JSON = {"Content-Type": "application/json"}
QUICK_EXAMPLES = settings(max_examples=30, deadline=None, suppress_health_check=[*HealthCheck])


@dataclass
class Served:
    "A release of the penguins that is served in this process and in one of its own."

    client: TestClient
    url: str
    bundle: Any
    rows: list[dict]
    labels: list
    scores: list
    release: Path

    def predict(self, **fields) -> dict:
        "A successful response of `POST /predict`."
        response = self.client.post("/predict", json=fields)
        assert response.status_code == 200, response.text
        return response.json()


@pytest.fixture(scope="module")
def served(table_run, tmp_path_factory):
    "The release of the penguins: texts, dates, numbers, missing values, three classes."
    run = table_run("penguins")
    release = run.workspace.root / run.release.bundle
    bundle, model = open_release(release)
    rows = to_json_rows(stored_rows(run, "holdout")[run.plan.input_columns])
    predictions, _ = predict_rows(bundle, model, rows)
    events = f"sqlite:///{tmp_path_factory.mktemp('events')}/events.db"
    app = create_app(release, events, "protocols")
    with TestClient(app, raise_server_exceptions=False) as client, running_service(release) as service:
        labels, scores = predictions.labels.tolist(), predictions.scores.tolist()
        yield Served(client, service.url, bundle, rows, labels, scores, release)


@pytest.fixture(scope="module")
def document(served):
    "The OpenAPI document of the service."
    return served.client.get("/openapi.json").json()


def as_tensors(bundle, rows: list[dict], datatypes: dict[str, str] | None = None) -> list[dict]:
    "Rows as JSON tensors."
    from mlcycle.service.tensors import column_datatype

    return [{"name": name, "datatype": (datatypes or {}).get(name, column_datatype(dtype)), "shape": [len(rows)],
             "data": [row[name] for row in rows]} for name, dtype in bundle.columns.items()]  # fmt: skip


def as_csv(rows: list[dict]) -> str:
    "Rows as CSV, missing values as empty cells."
    return pd.DataFrame(rows).astype(object).to_csv(index=False)


# The same rows by each protocol


def test_each_protocol_predicts_the_same_bits(served):
    rows, columns = served.rows, [*served.bundle.columns]
    table = [[row[name] for name in columns] for row in rows]
    params = {"params": {"probabilities": True}}
    forms = [
        {"dataframe_split": {"columns": columns, "data": table, "index": [*range(len(rows))]}},
        {"dataframe_split": {"columns": columns[::-1], "data": [line[::-1] for line in table]}},
        {"dataframe_records": rows},
        {"instances": rows},
        {"inputs": rows},
        {"inputs": {name: [row[name] for row in rows] for name in columns}},
    ]
    whole = served.predict(rows=rows)
    assert (whole["predictions"], whole["scores"]) == (served.labels, served.scores)
    for form in forms:
        assert served.client.post("/invocations", json=form).json() == {"predictions": served.labels}
        assert served.client.post("/invocations", json=form | params).json() == {"predictions": served.scores}
    body = {"inputs": as_tensors(served.bundle, rows)}
    outputs = served.client.post(f"/v2/models/{served.bundle.model.name}/infer", json=body).json()["outputs"]
    assert outputs[0]["data"] == served.labels
    assert outputs[1]["shape"] == [len(rows), len(served.bundle.problem.classes)]
    assert outputs[1]["data"] == [score for row in served.scores for score in row]
    csv = served.client.post("/invocations", content=as_csv(rows), headers={"Content-Type": "text/csv; charset=utf-8"})
    assert csv.json() == {"predictions": served.labels}


def test_vertex_ai_sends_parameters(served):
    body = {"instances": served.rows[:1], "parameters": {"probabilities": True}}
    scores = served.predict(rows=served.rows[:1])["scores"]
    assert served.client.post("/invocations", json=body).json()["predictions"] == scores


# Clients of others


def test_mlflow_client(served):
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    url = httpx.URL(served.url)
    client = ScoringServerClient(url.host, url.port)
    client.ping()
    assert client.get_version()
    frame = pd.DataFrame(served.rows, index=range(7, 7 + len(served.rows)))  # Sent as `dataframe_split` with an index
    assert client.invoke(frame).get_predictions()[0].tolist() == served.labels
    scores = client.invoke(frame, params={"probabilities": True}).get_predictions()
    assert scores.to_numpy().tolist() == served.scores
    with pytest.raises(Exception, match=r"error code 400.*INVALID_PARAMETER_VALUE.*Body Mass"):
        client.invoke(frame.assign(**{"Body Mass (g)": "heavy"}))


@pytest.mark.parametrize("binary_input", [False, True])
@pytest.mark.parametrize("binary_output", [False, True])
@pytest.mark.parametrize("shape", [1, 2])
def test_triton_client(served, binary_input, binary_output, shape):
    from tritonclient import http

    rows, name = served.rows, served.bundle.model.name
    client = http.InferenceServerClient(httpx.URL(served.url).netloc.decode())
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name, str(served.bundle.model.version))
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    inputs = []
    for tensor in client.get_model_metadata(name)["inputs"]:
        values = [row[tensor["name"]] for row in rows]
        sent = http.InferInput(tensor["name"], [len(rows), 1][:shape], tensor["datatype"])
        is_text = tensor["datatype"] == "BYTES"
        column = ["" if value is None else value for value in values] if is_text else [np.nan if v is None else v for v in values]
        array = np.array(
            column, dtype=object if is_text else {"FP64": float, "INT64": np.int64, "BOOL": bool}[tensor["datatype"]]
        )
        sent.set_data_from_numpy(array.reshape([len(rows), 1][:shape]), binary_data=binary_input)
        inputs.append(sent)
    outputs = [http.InferRequestedOutput(each, binary_data=binary_output) for each in ("predict", "predict_proba")]
    for wanted in (outputs, outputs[1:], None):  # None: the client wants all as binary data
        result = client.infer(name, inputs, outputs=wanted, request_id="42")
        assert result.get_response()["id"] == "42"
        assert result.as_numpy("predict_proba").tolist() == served.scores
        if wanted is not outputs[1:] and len(result.get_response()["outputs"]) == 2:
            labels = result.as_numpy("predict").tolist()
            assert [each.decode() if isinstance(each, bytes) else each for each in labels] == served.labels


def test_triton_client_gets_errors_of_the_protocol(served):
    from tritonclient import http
    from tritonclient.utils import InferenceServerException

    client = http.InferenceServerClient(httpx.URL(served.url).netloc.decode())
    assert not client.is_model_ready("other")
    sent = http.InferInput("Island", [1], "BYTES")
    sent.set_data_from_numpy(np.array(["Dream"], dtype=object))
    with pytest.raises(InferenceServerException, match="are missing"):
        client.infer(served.bundle.model.name, [sent])
    with pytest.raises(InferenceServerException, match="There is no version '9'"):
        client.infer(served.bundle.model.name, [sent], model_version="9")


# Schemathesis


@pytest.fixture(scope="module")
def own_schema(served):
    "The service's own OpenAPI document."
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(served.release))  # It is stopped after each request


@pytest.fixture(scope="module")
def protocol_schema(served):
    "A description of the Open Inference Protocol, for the model that is served."
    model = served.bundle.model
    schema = schemathesis.openapi.from_dict(open_inference_document(model.name, str(model.version)))
    schema.app = create_app(served.release)
    return schema


def excluded_checks() -> list:
    "Checks that the document cannot satisfy."
    from schemathesis.specs.openapi import checks

    return [
        # A body that fits the schema may contradict itself: row ids for another number of rows, ids that were not predicted,
        # tensors of different lengths, a date that is none; JSON Schema cannot say these.
        checks.positive_data_acceptance,
        # The service understands more than the document says: numbers as text, other notations of dates, other spellings.
        checks.negative_data_rejection,
    ]


def failed_operations(schema) -> dict[str, str]:
    "Send valid and invalid requests to each operation of a document; the first failure of each."
    failures = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in schemathesis.GenerationMode:

            @QUICK_EXAMPLES
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case):
                case.call_and_validate(excluded_checks=excluded_checks())

            try:
                check()
            except Unsatisfiable:  # Nothing to make invalid
                continue
            except BaseException as failure:
                failures[f"{operation.label}, {mode.value}"] = str(failure)
    return failures


def test_own_document(own_schema):
    assert failed_operations(own_schema) == {}


def test_open_inference_document(protocol_schema):
    assert failed_operations(protocol_schema) == {}


def test_responses_fit_the_description_of_the_protocol(served):
    paths = open_inference_document(served.bundle.model.name, str(served.bundle.model.version))["paths"]
    checked = set()
    for path, item in paths.items():
        url = path.format(model=served.bundle.model.name, version=served.bundle.model.version)
        body = {"inputs": as_tensors(served.bundle, served.rows), "id": "7"}
        response = served.client.get(url) if "get" in item else served.client.post(url, json=body)
        assert response.status_code == 200, path
        described = (item.get("get") or item["post"])["responses"]["200"]
        if "content" in described:
            jsonschema.validate(response.json(), described["content"]["application/json"]["schema"])
            checked.add(path)
    assert len(checked) == 5


def test_the_document_has_nothing_generic(document, served):
    schemas = document["components"]["schemas"]
    assert not {"HTTPValidationError", "ValidationError"} & set(schemas)
    assert list(schemas["Row"]["properties"]) == [*served.bundle.columns]
    assert schemas["PredictResponse"]["properties"]["predictions"]["items"]["anyOf"][0]["enum"] == served.bundle.problem.classes
    for row in served.bundle.examples:
        jsonschema.validate(row, schemas["Row"])
    assert len(served.predict(rows=served.bundle.examples)["predictions"]) == len(served.bundle.examples)


def test_documentation_without_a_network(served):
    page = served.client.get("/docs").text
    body = page[page.index("<body>") :]
    assert all(escape(name) in body for name in served.bundle.columns)
    command = shlex.split(unescape(re.search(r"<pre>(curl \S+/predict .*?)</pre>", body)[1]))
    sent = served.client.post("/predict", content=command[-1], headers=JSON)
    assert sent.status_code == 200
    assert served.client.get("/", follow_redirects=False).headers["location"] == "docs"


# `POST /predict`


def test_options(served):
    rows, classes = served.rows[:5], served.bundle.problem.classes
    plain, full = served.predict(rows=rows), served.predict(rows=rows, intervals=True, probabilities=True, reasons=3)
    assert [list(each) for each in full["probabilities"]] == [classes] * 5
    assert [[*each.values()] for each in full["probabilities"]] == plain["scores"] == full["scores"]
    assert all(set(each) <= set(classes) for each in full["prediction_set"])
    assert 0 < full["coverage"] < 1
    assert not {"probabilities", "reasons", "prediction_set", "errors"} & set(plain)
    for row, reasons in zip(rows, full["reasons"], strict=True):
        assert len(reasons) == 3
        assert [abs(each["change"]) for each in reasons] == sorted((abs(each["change"]) for each in reasons), reverse=True)
        first = reasons[0]
        changed = served.predict(rows=[row, row | {first["column"]: first["typical"]}], probabilities=True)
        own, other = ([*each.values()] for each in changed["probabilities"])
        assert first["change"] == pytest.approx(own[np.argmax(own)] - other[np.argmax(own)], abs=1e-12)


def test_all_bad_cells_are_named(served):
    rows = [dict(each) for each in served.rows[:4]]
    rows[1]["Body Mass (g)"] = "heavy"
    rows[1]["Date Egg"] = "in spring"
    rows[3]["Island"] = ["a", "list"]
    response = served.client.post("/predict", json={"rows": rows})
    assert response.status_code == 422
    body = response.json()
    cells = [(each["row"], each["column"]) for each in body["errors"]]
    assert sorted(cells) == [(1, "Body Mass (g)"), (1, "Date Egg"), (3, "Island")]
    assert body["detail"].startswith(body["errors"][0]["message"])
    assert all(each["rule"] and each["expected"] and each["value"] for each in body["errors"])


def test_the_other_rows_are_predicted_if_bad_ones_are_skipped(served):
    rows = [dict(each) for each in served.rows[:4]]
    good = [rows[0], rows[2]]
    rows[1], rows[3] = rows[1] | {"Body Mass (g)": "heavy"}, "no row"
    options = {"probabilities": True, "reasons": 1, "intervals": True}
    skipped, alone = served.predict(rows=rows, on_error="skip", **options), served.predict(rows=good, **options)
    assert [each["row"] for each in skipped["errors"]] == [1, 3]
    assert len(skipped["row_ids"]) == 4
    for name in ("predictions", "scores", "probabilities", "reasons", "prediction_set"):
        assert skipped[name] == [alone[name][0], None, alone[name][1], None], name
    assert served.predict(rows=good, on_error="skip")["errors"] == []


def test_other_notations_are_understood_and_counted(served):
    row = next(row for row in served.rows if None not in row.values())
    other = {name: row[name] for name in [*row][::-1]} | {"Body Mass (g)": str(row["Body Mass (g)"]), "more": [1]}
    plain, counted = served.predict(rows=[row]), served.predict(rows=[other])
    assert plain["scores"] == counted["scores"]
    assert "coercions" not in plain
    assert {"column": "Body Mass (g)", "kind": "text read as number", "count": 1} in counted["coercions"]


def test_nan_is_missing_and_infinity_is_rejected(served):
    row = served.rows[0] | {"Body Mass (g)": None}
    missing = served.predict(rows=[row])["scores"]
    sent = json.dumps({"rows": [row | {"Body Mass (g)": float("nan")}]})
    assert served.client.post("/predict", content=sent, headers=JSON).json()["scores"] == missing
    for value in ("Infinity", "-Infinity", "1e999"):
        text = json.dumps({"rows": [row | {"Body Mass (g)": "?"}]}).replace('"?"', value)
        response = served.client.post("/predict", content=text, headers=JSON)
        assert response.status_code == 422
        assert [(each["row"], each["column"]) for each in response.json()["errors"]] == [(0, "Body Mass (g)")]


@pytest.mark.parametrize("path", ["/predict", "/feedback", "/invocations", "/v2/models/{model}/infer"])
@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{}", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b"{}", JSON | {"Content-Encoding": "gzip"}, 415),
        (b"{}", {"Content-Type": "application/json; charset=latin-1"}, 415),
        (b"", JSON, 422),
        (b"{", JSON, 422),
        (b"[" * 100_000, JSON, 422),
        (b'{"rows": ' + b"9" * 100_000 + b"}", JSON, 422),
        (b'{"rows": "\\ud800"}', JSON, 422),
        (b"\xff\xfe{\x00}\x00", JSON, 422),
        (b"[]", JSON, 422),
        (b"null", JSON, 422),
        (b"{}", JSON, 422),
        (b'{"inputs": 1, "rows": 1, "actuals": 1, "row_ids": 1}', JSON, 422),
    ],
)
def test_bodies_that_cannot_be_used(served, path, content, headers, status):
    response = served.client.post(path.format(model=served.bundle.model.name), content=content, headers=headers)
    expected = 400 if status == 422 and path not in ("/predict", "/feedback") else status
    assert response.status_code == expected
    body = response.json()
    text = body["error"] if path.startswith("/v2") else body["message"] if path == "/invocations" else body["detail"]
    assert text.endswith((".", "?"))
    assert "Traceback" not in response.text


def test_the_last_of_two_equal_names_counts(served):
    row = json.dumps(served.rows[0])
    text = f'{{"rows": [{row[:-1]}, "Island": "{served.rows[0]["Island"]}"}}]}}'
    assert (
        served.client.post("/predict", content=text, headers=JSON).json()["scores"]
        == served.predict(rows=served.rows[:1])["scores"]
    )


EDITS = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(edits=EDITS, form=st.integers(0, 4))
def test_damaged_bodies_never_fail_the_service(served, edits, form):
    row, model = served.rows[:1], served.bundle.model.name
    tensors = as_tensors(served.bundle, row)
    path, content, headers = [
        ("/predict", json.dumps({"rows": row, "row_ids": ["a"], "reasons": 2, "on_error": "skip"}).encode(), JSON),
        ("/invocations", json.dumps({"dataframe_records": row, "params": {"probabilities": True}}).encode(), JSON),
        ("/invocations", as_csv(row).encode(), {"Content-Type": "text/csv"}),
        (f"/v2/models/{model}/infer", json.dumps({"inputs": tensors, "outputs": [{"name": "predict"}]}).encode(), JSON),
        (f"/v2/models/{model}/infer", *binary_body(served)),
    ][form]
    for place, length, new in edits:
        place %= len(content)
        content = content[:place] + new + content[place + length :]
    response = served.client.post(path, content=content, headers=headers)
    assert response.status_code in (200, 400, 415, 422), response.text
    assert response.status_code == 200 or response.json()


def binary_body(served) -> tuple[bytes, dict]:
    "A request for inference with binary tensors, and its headers."
    from mlcycle.service.tensors import write_binary_tensor

    inputs, parts = [], []
    for tensor in as_tensors(served.bundle, served.rows[:1]):
        is_text = tensor["datatype"] == "BYTES"
        values = [("" if is_text else np.nan) if value is None else value for value in tensor.pop("data")]
        parts.append(write_binary_tensor(values, tensor["datatype"]))
        inputs.append(tensor | {"parameters": {"binary_data_size": len(parts[-1])}})
    text = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    return text + b"".join(parts), headers


@pytest.mark.parametrize("length", ["", "-1", "0", "x", "9" * 30, "1e3", "\xb2"])
def test_a_wrong_length_of_the_json_part_is_an_error(served, length):
    content, headers = binary_body(served)
    path = f"/v2/models/{served.bundle.model.name}/infer"
    response = served.client.post(
        path, content=content, headers=headers | {"Inference-Header-Content-Length": length.encode("latin-1")}
    )
    assert response.status_code == 400
    assert "Inference-Header-Content-Length" in response.json()["error"]


# Feedback, status, other routes


def test_bad_actual_values_are_all_named(served):
    served.predict(rows=served.rows[:3], row_ids=["f1", "f2", "f3"])
    actuals = [served.bundle.problem.classes[0], "dodo", 7]
    response = served.client.post("/feedback", json={"actuals": actuals, "row_ids": ["f1", "f2", "f3"]})
    assert response.status_code == 422
    assert [(each["row"], each["column"]) for each in response.json()["errors"]] == [(1, "Species"), (2, "Species")]
    right = {"actuals": served.bundle.problem.classes[:1] * 3, "row_ids": ["f1", "f2", "f3"]}
    assert served.client.post("/feedback", json=right).json() == {"received": 3}


def test_live_and_ready_are_apart(served):
    service = served.client.app.state.service
    paths = ["/health/live", "/v2/health/live", "/health/ready", "/health", "/ping", "/v2/health/ready"]
    assert [served.client.get(path).status_code for path in paths] == [200] * 6
    service.draining = True
    try:
        assert [served.client.get(path).status_code for path in paths] == [200] * 2 + [503] * 4
    finally:
        service.draining = False


def test_the_model_is_described(served):
    model = served.client.get("/model").json()
    assert model["release"]["sha256"] and len(model["release"]["files"]) > 5
    assert model["release"]["signer"]
    assert model["lineage"]["run_id"] == served.bundle.model.run_id
    assert set(model["lineage"]["data_sha256"]) == {"train", "holdout"}
    card = served.client.get(model["card"])
    assert card.headers["content-type"].startswith("text/")
    assert served.bundle.problem.target in card.text


def test_unknown_routes_and_methods(served):
    assert served.client.get("/nothing").json()["detail"].startswith("There is no /nothing.")
    assert set(served.client.get("/v2/nothing").json()) == {"error"}
    assert served.client.get("/predict").status_code == 405
    assert served.client.get("/predict").headers["allow"] == "POST"
