"""The contracts of SageMaker, Vertex AI, Azure ML and Cloud Run: a process with a platform's environment, and its protocol."""

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from toy_releases import toy_release, toy_rows

from mlcycle.deployment.sagemaker import csv_of_rows
from mlcycle.errors import InputError
from mlcycle.service.app import create_app
from mlcycle.service.bundle import open_release
from mlcycle.service.local import running_service
from mlcycle.service.rows import predict_rows, to_json_rows
from mlcycle.service.server import SERVICE_MAIN, read_arguments
from mlcycle.service.traffic import TrafficPlan, write_traffic_plan
from mlcycle.stores.tables.holdout import read_any_table

CSV, LINES = "text/csv", "application/jsonlines"


@pytest.fixture(scope="module")
def penguins(table_run):
    "Release, description, holdout rows and predictions of the pipeline: texts, dates, missing values, three classes."
    run = table_run("penguins")
    release = run.workspace.root / run.release.bundle
    bundle, model = open_release(release)
    holdout = read_any_table(run.workspace, run.dataset.tables["holdout"], reason="a test")
    rows = to_json_rows(holdout[run.plan.input_columns])
    return release, bundle, rows, predict_rows(bundle, model, rows)[0]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    "Release, description, rows and predictions of a regression."
    release = toy_release(tmp_path_factory.mktemp("platforms"), 1)
    bundle, model = open_release(release)
    rows = toy_rows(50, seed=2).to_dict("records")
    return release, bundle, rows, predict_rows(bundle, model, rows)[0].labels


def free_port() -> int:
    "A port that is free now."
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def post(service, path: str, content, kind: str, **headers: str) -> httpx.Response:
    "A successful response."
    body = content if isinstance(content, str | bytes) else json.dumps(content)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    response = service.client.post(path, content=body, headers={"Content-Type": kind} | names)
    assert response.status_code == 200, response.text
    return response


def test_sagemaker_endpoint(penguins, tmp_path):
    release, bundle, rows, expected = penguins
    port, events = free_port(), f"sqlite:///{tmp_path}/events.db"
    platform = {"SAGEMAKER_BIND_TO_PORT": str(port), "SAGEMAKER_SAFE_PORT_RANGE": f"{port}-{port}"}
    columns = list(bundle.columns)
    lines, header = "\n".join(json.dumps(row) for row in rows), ",".join(f'"{name}"' for name in columns)
    with running_service(release, events, platform=platform) as service:
        assert service.url.endswith(f":{port}")
        assert service.client.get("/ping").status_code == 200
        limits = service.client.get("/execution-parameters").json()
        assert limits == {"MaxConcurrentTransforms": 1, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 16}
        bodies = {
            f"{CSV}; header=absent": csv_of_rows(rows, columns),
            CSV: csv_of_rows(rows, columns),  # The first line is recognised as a row
            f"{CSV}; header=present; charset=utf-8": f"{header}\r\n{csv_of_rows(rows, columns)}",
            LINES: lines,
            "application/x-ndjson": "\n".join(json.dumps({"features": [row[name] for name in columns]}) for row in rows) + "\n",
        }
        for kind, body in bodies.items():
            response = post(service, "/invocations", body, kind, Accept=LINES)
            assert response.headers["content-type"] == LINES
            read = [json.loads(line) for line in response.text.splitlines()]
            assert [each["prediction"] for each in read] == expected.labels.tolist(), kind
            assert [each["score"] for each in read] == expected.scores.tolist(), kind
        response = post(service, "/invocations", bodies[LINES], LINES, Accept=CSV)
        assert response.headers["content-type"].startswith(CSV)
        assert response.text.splitlines() == [str(label) for label in expected.labels]
        assert post(service, "/invocations", bodies[CSV], CSV).json() == {"predictions": expected.labels.tolist()}
        ids = {"X_Amzn_SageMaker_Inference_Id": "order-7", "X_Amzn_SageMaker_Custom_Attributes": "trace=1;a b"}
        response = post(service, "/invocations", json.dumps(rows[0]), LINES, Accept=CSV, **ids)
        assert response.headers["x-amzn-sagemaker-custom-attributes"] == "trace=1;a b"
        post(service, "/invocations", lines, LINES, X_Amzn_SageMaker_Inference_Id="batch")
    with sa.create_engine(events).connect() as database:
        logged = set(database.execute(sa.text("select row_id from predictions")).scalars())
    assert {"order-7", "batch-1", f"batch-{len(rows)}"} <= logged


@pytest.mark.parametrize(
    ("body", "headers", "status", "text"),
    [
        ("a,b\n1,2\n", {"Content-Type": CSV}, 400, "missing"),
        ("1,2\n", {"Content-Type": f"{CSV}; header=absent"}, 400, "Row 1 is 2 values"),
        ("{}\n{", {"Content-Type": LINES}, 400, "Line 2 is not valid JSON"),
        ("[1]", {"Content-Type": LINES}, 400, "Line 1 has 1 values"),
        ("{}", {"Content-Type": LINES, "Accept": "application/x-npy"}, 406, "application/x-npy"),
        ("{}", {"Content-Type": "application/x-npy"}, 415, "application/x-npy"),
        ("1", {"Content-Type": f"{CSV}; header=maybe"}, 415, "header=maybe"),
        ("1", {"Content-Type": f"{CSV}; header=absent; charset=latin-1"}, 415, "latin-1"),
    ],
)
def test_bodies_that_cannot_be_used(toy_client, body, headers, status, text):
    response = toy_client.post("/invocations", content=body, headers=headers)
    assert response.status_code == status and text in response.json()["message"]


@pytest.fixture(scope="module")
def toy_client(toy):
    "A service of the regression in this process."
    from fastapi.testclient import TestClient

    with TestClient(create_app(toy[0])) as client:
        yield client


def test_a_bad_cell_in_lines_is_named(toy_client):
    response = toy_client.post("/invocations", content="1,2,3,4,5,6,7,8\n1,2,3,4,x,6,7,8\n", headers={"Content-Type": CSV})
    assert response.status_code == 400
    assert [(each["row"], each["column"]) for each in response.json()["errors"]] == [(1, "x4")]


def test_sagemaker_batch_transform(toy):
    "As the agent of batch transform: mini-batches of lines up to the payload's size, joined with their input."
    release, bundle, rows, expected = toy
    platform = {
        "SAGEMAKER_BATCH": "true",
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": "6",
        "SAGEMAKER_BATCH_STRATEGY": "MULTI_RECORD",
        "SAGEMAKER_INFERENCE_OUTPUT": "predicted_label",
        "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": CSV,
    }
    many = rows * 250  # 12,500 rows: more than another request may have
    body = csv_of_rows(many, list(bundle.columns))
    with running_service(release, platform=platform) as service:
        response = post(service, "/invocations", body, CSV)
        first = "1,,,,,,,\n"  # Alone it would be no clear row; batch transform has no header
        assert len(post(service, "/invocations", first, CSV).text.splitlines()) == 1
    joined = [float(line) for line in response.text.splitlines()]
    assert np.array_equal(joined, np.tile(expected, 250))


def test_fields_of_lines(penguins):
    release, bundle, rows, expected = penguins
    fields = "predicted_label, probability,probabilities,labels"
    with running_service(release, platform={"SAGEMAKER_INFERENCE_OUTPUT": fields}) as service:
        sent = "\n".join(map(json.dumps, rows))
        text = post(service, "/invocations", sent, LINES, Accept=CSV).text
        read = [json.loads(line) for line in post(service, "/invocations", sent, LINES, Accept=LINES).text.splitlines()]
    cells = list(csv.reader(io.StringIO(text)))
    assert [row[0] for row in cells] == expected.labels.tolist()
    assert [float(row[1]) for row in cells] == expected.scores.max(axis=1).tolist()
    assert [json.loads(row[2]) for row in cells] == expected.scores.tolist()
    assert all(json.loads(row[3]) == list(bundle.problem.classes) for row in cells)
    assert [list(each) for each in read] == [["predicted_label", "probability", "probabilities", "labels"]] * len(rows)
    assert [each["probabilities"] for each in read] == expected.scores.tolist()


def test_vertex_ai(penguins):
    release, bundle, rows, expected = penguins
    route = "/v1/endpoints/123/deployedModels/456"
    platform = {"AIP_HTTP_PORT": str(free_port()), "AIP_HEALTH_ROUTE": route, "AIP_PREDICT_ROUTE": f"{route}:predict"}
    platform |= {"AIP_STORAGE_URI": "gs://bucket/model"}
    with running_service(release, platform=platform) as service:
        assert service.url.endswith(f":{platform['AIP_HTTP_PORT']}")
        assert service.client.get(route).json() == {"status": "ready"}

        def predict(**parameters) -> list:
            body = {"instances": rows, "parameters": parameters}
            read = post(service, f"{route}:predict", body, "application/json").json()
            assert [*read] == ["predictions"]
            return read["predictions"]

        assert predict() == expected.labels.tolist()
        assert predict(probabilities=True) == expected.scores.tolist()
        detailed = predict(reasons=2)
        assert [each["prediction"] for each in detailed] == expected.labels.tolist()
        assert all(len(each["reasons"]) <= 2 and each["score"] for each in detailed)
        numeric = next(name for name, dtype in bundle.columns.items() if dtype == "float64")
        body = {"instances": [rows[0], rows[1] | {numeric: "x"}], "parameters": {"on_error": "skip"}}
        skipped = post(service, f"{route}:predict", body, "application/json").json()
        assert skipped["predictions"] == [expected.labels[0], None]
        assert [each["column"] for each in skipped["errors"]] == [numeric]
        wrong = service.client.post(f"{route}:predict", json={"instances": rows, "parameters": {"reason": 2}})
        assert wrong.status_code == 400 and "unknown parameter 'reason'" in wrong.json()["message"]
        assert service.client.post(route, json={}).status_code == 405


def test_azure_ml(penguins, tmp_path):
    release, _, rows, expected = penguins
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / release.name).symlink_to(release)
    platform = {"AZUREML_MODEL_DIR": str(tmp_path), "SM_MODEL_DIR": "/nowhere"}
    with serving(platform) as (_, url), httpx.Client(base_url=url, timeout=30) as client:
        assert [client.get(f"/health/{kind}").status_code for kind in ("live", "ready")] == [200, 200]
        body = client.post("/predict", json={"rows": rows}).json()
        assert (body["predictions"], body["scores"]) == (expected.labels.tolist(), expected.scores.tolist())
        assert client.post("/predict", json={"rows": [{}]}).status_code == 422


@contextmanager
def serving(platform: dict[str, str], *words: str) -> Generator[tuple[subprocess.Popen, str]]:
    "The process of a container, on a free port of the loopback interface, and its address."
    place = [] if "PORT" in platform else ["--port", "0"]
    command = [sys.executable, "-c", SERVICE_MAIN, "serve", "--host", "127.0.0.1", *place, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | platform) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, "it did not start"
            yield process, url
        finally:
            process.kill()


def test_a_container_follows_a_traffic_plan_that_is_written_later(toy, tmp_path):
    release, _, rows, _ = toy
    later = toy_release(tmp_path / "releases", 2)
    platform = {"MLCYCLE_RELEASE": str(release), "PORT": str(free_port()), "MLCYCLE_TRAFFIC": str(tmp_path / "traffic.json")}
    with serving(platform) as (_, url), httpx.Client(base_url=url, timeout=30) as client:
        assert client.get("/model").json()["model"]["version"] == 1
        write_traffic_plan(tmp_path / "traffic.json", TrafficPlan(champion=str(later.relative_to(tmp_path))))
        end = time.monotonic() + 20
        while client.get("/model").json()["model"]["version"] == 1 and time.monotonic() < end:
            time.sleep(0.1)
        assert client.post("/predict", json={"rows": rows[:1]}).json()["version"] == 2


def test_all_contracts_in_one_process_which_drains_after_sigterm(toy):
    release, bundle, rows, expected = toy
    port = free_port()
    platform = {"MLCYCLE_RELEASE": str(release), "PORT": str(port), "MLCYCLE_TRAFFIC": "/nowhere/traffic.json"}
    platform |= {"AIP_HEALTH_ROUTE": "/healthz", "AIP_PREDICT_ROUTE": "/vertex"}
    requests = [
        ("/invocations", csv_of_rows(rows, list(bundle.columns)), CSV),
        ("/vertex", json.dumps({"instances": rows}), "application/json"),
        ("/predict", json.dumps({"rows": rows}), "application/json"),
    ]
    with serving(platform, "--drain-seconds", "4") as (process, url), httpx.Client(base_url=url, timeout=30) as client:
        assert url == f"http://127.0.0.1:{port}"
        assert [client.get(path).status_code for path in ("/ping", "/healthz", "/health/live")] == [200, 200, 200]

        def send(number: int) -> None:
            path, content, kind = requests[number % 3]
            response = httpx.post(f"{url}{path}", content=content, headers={"Content-Type": kind}, timeout=30)
            assert response.status_code == 200 and response.json()["predictions"] == expected.tolist()

        with ThreadPoolExecutor(4) as threads:
            sent = [threads.submit(send, number) for number in range(30)]
            sent[0].result()
            process.send_signal(signal.SIGTERM)
            while [client.get(path).status_code for path in ("/ping", "/healthz")] != [503, 503]:  # Refused at the end
                time.sleep(0.01)
            for each in sent:
                each.result()
        start = time.monotonic()
        assert process.wait(30) == 0 and time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("platform", "text"),
    [
        ({"AIP_HTTP_PORT": "http"}, "The variable AIP_HTTP_PORT is 'http'"),
        ({"SAGEMAKER_BIND_TO_PORT": "8080", "AIP_HTTP_PORT": "8081"}, "different ports"),
        ({"AIP_PREDICT_ROUTE": "predict"}, "The variable AIP_PREDICT_ROUTE is 'predict'"),
        ({"AIP_PREDICT_ROUTE": "/x", "AIP_HEALTH_ROUTE": "/x"}, "both '/x'"),
        ({"SAGEMAKER_BATCH": "true", "SAGEMAKER_MAX_PAYLOAD_IN_MB": "0"}, "SAGEMAKER_MAX_PAYLOAD_IN_MB is '0'"),
    ],
)
def test_variables_that_cannot_be_used(monkeypatch, platform, text):
    for name, value in platform.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=text):
        read_arguments(["serve"])


@pytest.mark.parametrize(
    ("platform", "text"),
    [
        ({"AIP_PREDICT_ROUTE": "/predict"}, "The platform's route /predict is a route of the service"),
        ({"SAGEMAKER_INFERENCE_OUTPUT": "label"}, "The setting line_fields has 'label'"),
        ({"MLCYCLE_RELEASE": "/no/release"}, "There is no release bundle in /no/release"),
        ({"PORT": "x"}, "The variable PORT is 'x'"),
    ],
)
def test_what_cannot_be_served_is_one_line(toy, platform, text):
    environment = os.environ | {"MLCYCLE_RELEASE": str(toy[0]), "PORT": str(free_port())} | platform
    command = [sys.executable, "-c", SERVICE_MAIN, "serve", "--host", "127.0.0.1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and not done.stdout and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"Error: {text}"), done.stderr


def test_only_containers_read_the_environment_of_platforms(monkeypatch, tmp_path):
    for name, value in {"PORT": "81", "AIP_PREDICT_ROUTE": "/x", "SAGEMAKER_BATCH": "true", "MLCYCLE_RELEASE": "r"}.items():
        monkeypatch.setenv(name, value)
    options, _ = read_arguments(["serve", "--max-rows", "7"])
    assert (options.host, options.port, options.release, options.routes) == ("0.0.0.0", 81, "r", {"/x": "/invocations"})
    assert options.settings["max_rows"] == "7" and options.settings["request_timeout"] == 600
    options, _ = read_arguments(["./serve"])
    assert (options.host, options.port, options.release, options.routes, options.settings) == ("127.0.0.1", 0, "./serve", {}, {})
    (plan := tmp_path / "traffic.json").write_text("{}")
    monkeypatch.setenv("MLCYCLE_TRAFFIC", str(plan))
    assert (read_arguments(["serve"])[0].traffic, read_arguments(["serve"])[0].release) == (str(plan), "")
