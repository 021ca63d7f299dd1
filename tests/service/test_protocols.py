"""All protocols of the service, judged by their own clients and by schemathesis; the same rows get the same bits from each."""

from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import schemathesis
from conftest import stored_rows
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
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
        yield Served(client, service.url, bundle, rows, labels, scores)


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
    return schemathesis.openapi.from_asgi("/openapi.json", served.client.app)


@pytest.fixture(scope="module")
def protocol_schema(served):
    "A description of the Open Inference Protocol, for the model that is served."
    model = served.bundle.model
    schema = schemathesis.openapi.from_dict(open_inference_document(model.name, str(model.version)))
    schema.app = served.client.app
    return schema


def excluded_checks() -> list:
    "Checks that the document cannot satisfy."
    from schemathesis.specs.openapi import checks

    return [
        # A body that fits the schema may contradict itself: row ids for another number of rows, ids that were not predicted, tensors
        # of different lengths, a date that is none; JSON Schema cannot say these.
        checks.positive_data_acceptance,
        # The service understands more than the document promises: numbers as text, other notations of dates, classes in other case.
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
