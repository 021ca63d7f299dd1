"""The metrics: what Prometheus' own parser and linter make of them, and that they count what happened."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from toy_releases import toy_release, toy_rows

from mlcycle.service.app import create_app
from mlcycle.service.service_metrics import ServiceMetrics
from mlcycle.service.service_settings import ServiceSettings


@pytest.fixture(scope="module")
def scraped(tmp_path_factory):
    "Metrics of an application after some requests."
    folder = tmp_path_factory.mktemp("metrics")
    rows = toy_rows(20, seed=3).to_dict("records")
    app = create_app(toy_release(folder, 1), f"sqlite:///{folder}/events.db", "run", settings=ServiceSettings(max_rows=50))
    with TestClient(app, raise_server_exceptions=False) as client:
        for _ in range(3):
            assert client.post("/predict", json={"rows": rows}).status_code == 200
        bad = dict(rows[0]) | {next(iter(rows[0])): [1]}
        assert client.post("/predict", json={"rows": [bad]}).status_code == 422
        for path in ("/nowhere", "/nowhere/else", "/metrics"):
            client.get(path)
        client.request("BREW", "/predict")
        response = client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return response.text


def samples(text: str) -> dict[tuple, float]:
    "Values by name and labels."
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_and_predictions_are_counted(scraped):
    values = samples(scraped)

    def requests(route, method, status):
        return values["mlcycle_requests_total", ("method", method), ("route", route), ("status", status)]

    assert requests("/predict", "POST", "200") == 3
    assert requests("/predict", "POST", "422") == 1
    assert requests("unmatched", "GET", "404") == 2
    assert requests("/predict", "other", "405") == 1
    assert values["mlcycle_predictions_total", ("role", "champion"), ("version", "1")] == 60
    assert sum(value for key, value in values.items() if key[0] == "mlcycle_batch_rows_sum") >= 60
    assert values["mlcycle_queue_delay_seconds_count",] >= 3
    assert sum(value for key, value in values.items() if key[0] == "mlcycle_rejected_rows_total") == 1
    assert sum(value for key, value in values.items() if key[0] == "mlcycle_model_info") == 1
    assert values["mlcycle_requests_in_flight",] == 1, "the request for the metrics itself"


def test_names_follow_the_conventions(scraped):
    for family in text_string_to_metric_families(scraped):
        assert family.documentation.endswith(".")
        if family.name.startswith("mlcycle_"):
            assert not re.search(r"_(ms|milliseconds|kb|mb)(_|$)", family.name)
            assert all(len(sample.labels) <= 4 for sample in family.samples)


def test_promtool_has_no_complaint(scraped):
    if shutil.which("promtool") is None:
        if os.environ.get("CI"):
            pytest.fail("promtool is missing: make system installs it")
        pytest.skip("promtool is missing. As root on Debian, make system installs it.")
    done = subprocess.run(["promtool", "check", "metrics"], input=scraped, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    wrong = "# TYPE mlcycle_wait_ms counter\nmlcycle_wait_ms 1\n"
    assert subprocess.run(["promtool", "check", "metrics"], input=wrong, capture_output=True, text=True).returncode


def test_each_application_has_its_own_metrics(tmp_path):
    one, other = ServiceMetrics(), ServiceMetrics()
    one.count_predictions(1, 5)
    assert "mlcycle_predictions_total{" in one.text().decode()
    assert "mlcycle_predictions_total{" not in other.text().decode()


WORKER = """
import sys
from mlcycle.service.service_metrics import ServiceMetrics
metrics = ServiceMetrics()
metrics.count_predictions(1, int(sys.argv[1]))
metrics.show_model("toy", 1, "champion")
metrics.observe_request("/predict", "POST", 200, 0.5)
metrics.request.backlog.set(7)
print(metrics.text().decode())
"""


def test_workers_share_their_counts(tmp_path):
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    texts = [
        subprocess.run([sys.executable, "-c", WORKER, number], env=environment, capture_output=True, text=True, check=True).stdout
        for number in ("2", "3")
    ]
    values = samples(texts[-1])
    assert values["mlcycle_predictions_total", ("role", "champion"), ("version", "1")] == 5
    assert values["mlcycle_prediction_log_backlog_events",] == 7, "the first worker has ended"
    assert values["mlcycle_request_duration_seconds_sum", ("method", "POST"), ("route", "/predict")] == 1
    assert values["mlcycle_model_info", ("model", "toy"), ("role", "champion"), ("version", "1")] == 1


def test_prometheus_client_is_loaded_only_with_a_service():
    code = "import sys, json, mlcycle.service.service_metrics; print(json.dumps('prometheus_client' in sys.modules))"
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) is False
