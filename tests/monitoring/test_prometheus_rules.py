"""Rules for Prometheus: checked by its own tools, and driven through real servers of Prometheus and Alertmanager."""

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import yaml
from alerting import health, need_tools, wait_until, web_server

from mlcycle.monitoring.alert_rules import ALERT_RULES, AlertSettings, make_alarm
from mlcycle.monitoring.alert_sinks import render_health_metrics, send_to_alertmanager
from mlcycle.monitoring.alert_state import advance_alert
from mlcycle.monitoring.prometheus_rules import prometheus_rules, render_alertmanager_config, write_prometheus_files
from mlcycle.service.service_metrics import ServiceMetrics


def run(*words: str | Path) -> subprocess.CompletedProcess:
    "Run one of Prometheus' tools."
    return subprocess.run(words, capture_output=True, text=True)


@pytest.mark.parametrize(("model", "budget"), [("flights", 50.0), ('a "b" \\c', 2500.0)])
def test_promtool_and_amtool_accept_the_files(tmp_path, model, budget):
    need_tools("promtool", "amtool")
    rules, tests, alertmanager = write_prometheus_files(tmp_path / "new", model, budget)
    for words in (["promtool", "check", "rules", rules], ["promtool", "test", "rules", tests]):
        done = run(*words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS: 12 rules found" in run("promtool", "check", "rules", rules).stdout
    assert run("amtool", "check-config", alertmanager).returncode == 0
    for severity in ("critical", "warning", "info"):
        routed = run(
            "amtool", "config", "routes", "test", f"--config.file={alertmanager}", f"severity={severity}", "model=flights"
        )
        assert routed.stdout.strip() == f"mlcycle-{severity}"


WRONG = {  # What is replaced in a rule
    "MlcycleRequestErrorsCritical": ("> 0.05", "> 0.2"),  # It never fires
    "MlcyclePredictionLogBacklog": ("> 10000", "> 10"),  # It always fires
    "MlcycleNoPredictions": ("unless", "and"),  # It fires while all is well
    "MlcycleLatencyP99": ("10m", "1m"),  # Of its `for`: it fires too early
    "MlcycleMonitoringStale": ("> 2 * 24 * 3600", "> 24 * 3600"),
    "MlcycleLatencyP95": ("* 1000 > 50", "* 1000 > 5"),
    "MlcycleModelAlert": ('state="firing"', 'state!=""'),  # It calls about what is acknowledged
    "MlcycleCanaryErrors": ('role="canary"', 'role="champion"'),
    "MlcyclePredictionLogDropped": ("dropped", "written"),
}


def test_the_unit_tests_notice_each_wrong_rule(tmp_path):
    need_tools("promtool")
    rules, tests, _ = write_prometheus_files(tmp_path, "flights", 50)
    content = yaml.safe_load(rules.read_text())
    for rule in (rule for group in content["groups"] for rule in group["rules"] if rule["alert"] in WRONG):
        right, wrong = WRONG[rule["alert"]]
        part = "for" if rule["for"] == right else "expr"
        assert right in rule[part]
        rule[part] = rule[part].replace(right, wrong)
    rules.write_text(yaml.safe_dump(content))
    done = run("promtool", "test", "rules", tests)
    assert done.returncode == 1
    assert set(re.findall(r"alertname: ?(\w+)", done.stdout + done.stderr)) == set(WRONG)


def test_each_rule_has_a_runbook_and_is_tested_over_time(tmp_path):
    rules, tests, _ = write_prometheus_files(tmp_path, "flights", 50)
    written = [rule for group in yaml.safe_load(rules.read_text())["groups"] for rule in group["rules"]]
    assert {(rule["alert"], rule["labels"]["severity"]) for rule in written} == {
        (rule.alert, rule.severity) for rule in prometheus_rules("flights", 50)
    }
    assert all(len(rule["annotations"]["runbook"]) > 20 for rule in written)
    assert {rule["labels"].get("rule", "drift") for rule in written} - {"monitoring", "prediction log"} <= set(ALERT_RULES)
    for case in yaml.safe_load(tests.read_text())["tests"]:
        fires = [bool(each["exp_alerts"]) for each in case["alert_rule_test"]]
        assert fires in ([False, True, False], [False, False, True, False])


def test_the_metrics_that_rules_name_exist(tmp_path):
    "A renamed metric would silently be a rule that never fires."
    text = write_prometheus_files(tmp_path, "flights", 50)[0].read_text()
    metrics = ServiceMetrics()
    metrics.observe_request("/predict", "POST", 200, 0.01)
    metrics.show_model("flights", 1, "champion")
    metrics.count_predictions(1, 5)
    metrics.count_error(2, "canary")
    metrics.count_log_events("dropped")
    metrics.observe_batch(1, 1, 5, 0.01, 0.01)
    alert = advance_alert(None, make_alarm("drift", "It moved."), "flights", datetime(2024, 1, 1), settings=AlertSettings())[0]
    known = metrics.text().decode() + render_health_metrics(health(), [alert], datetime(2024, 1, 1))
    named = set(re.findall(r"mlcycle_\w+(?=[{\[ ])", text))
    assert len(named) >= 9
    assert not [name for name in named if not re.search(rf"^{name}[{{ ]", known, re.MULTILINE)]


def test_e_mail_and_webhook_are_receivers(tmp_path):
    text = render_alertmanager_config("https://hooks.example.org/x", ["a@example.org", "b@example.org"], "mail:587")
    config = yaml.safe_load(text)
    assert config["global"]["smtp_from"] == "a@example.org"
    (inhibition,) = config["inhibit_rules"]
    assert inhibition["source_matchers"] == ['rule="quality"', 'severity="critical"']
    hints = re.fullmatch('rule=~"(.+)"', *inhibition["target_matchers"])[1].split("|")
    assert set(hints) == {"estimated quality", "prior shift", "outliers"} < set(ALERT_RULES)
    for receiver in config["receivers"]:
        assert [each["url"] for each in receiver["webhook_configs"]] == ["https://hooks.example.org/x"]
        assert [each["to"] for each in receiver["email_configs"]] == ["a@example.org", "b@example.org"]
    need_tools("amtool")
    (tmp_path / "alertmanager.yml").write_text(text)
    assert run("amtool", "check-config", tmp_path / "alertmanager.yml").returncode == 0


# Real servers


def free_ports(n: int) -> list[int]:
    "Ports that nobody uses."
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in sockets]
    [each.close() for each in sockets]
    return ports


@contextmanager
def running(log: Path, *words: str | Path):
    "A server in a process of its own, which ends with the test."
    with open(log, "wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def is_ready(address: str) -> bool:
    "Whether a server responds."
    try:
        return httpx.get(address, timeout=1).status_code == 200
    except httpx.HTTPError:
        return False


class Service:
    "A service of which some requests fail, and the gauges of monitoring; it is scraped."

    def __init__(self):
        self.failing, self.alerts, self.metrics = False, [], ServiceMetrics()
        self.metrics.show_model("flights", 1, "champion")
        self.metrics.observe_request("/predict", "POST", 500, 0.01)
        self.ended = threading.Event()

    def serve_requests(self) -> None:
        while not self.ended.wait(0.01):
            self.metrics.observe_request("/predict", "POST", 500 if self.failing else 200, 0.01)
            self.metrics.count_predictions(1, 1)

    def text(self) -> bytes:
        now = datetime.now(UTC).replace(tzinfo=None)
        return self.metrics.text() + render_health_metrics(health(), self.alerts, now).encode()


@contextmanager
def scraped_service():
    "The service and its port."
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(service.text())

        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        threading.Thread(target=service.serve_requests, daemon=True).start()
        yield service, server.server_port
        service.ended.set()
        server.shutdown()


def write_short_files(folder: Path, webhook: int, target: int, alertmanager: int) -> None:
    "The generated files with seconds instead of minutes, and a configuration of Prometheus."
    rules, _, routes = write_prometheus_files(folder, "flights", 50, f"http://127.0.0.1:{webhook}/alerts")
    rules.write_text(re.sub(r"for: \d+m", "for: 1s", re.sub(r"\[\d+m\]", "[2s]", rules.read_text())))
    routes.write_text(
        routes.read_text().replace("group_wait: 30s", "group_wait: 200ms").replace("_interval: 5m", "_interval: 500ms")
    )
    config = {
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"},
        "rule_files": ["rules.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager}"]}]}]},
        "scrape_configs": [{"job_name": "mlcycle", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))


def states(received: list) -> dict[tuple, str]:
    "The last state of each alert that the webhook was sent, by model, name and rule."
    alerts = [alert for _, body in received for alert in body["alerts"]]
    return {tuple(alert["labels"].get(key, "") for key in ("model", "alertname", "rule")): alert["status"] for alert in alerts}


def test_an_alert_fires_arrives_and_resolves_through_real_servers(tmp_path):
    manager = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    need_tools("prometheus", *([] if manager else ["prometheus-alertmanager"]))
    ours, errors = ("flights", "MlcycleModelAlert", "drift"), ("flights", "MlcycleRequestErrorsCritical", "errors")
    with web_server(200) as (webhook, received), scraped_service() as (service, target):
        (
            prometheus,
            alertmanager,
        ) = free_ports(2)
        write_short_files(tmp_path, webhook, target, alertmanager)
        to_manager = [
            "--config.file",
            tmp_path / "alertmanager.yml",
            "--storage.path",
            tmp_path / "am",
            "--cluster.listen-address=",
        ]
        to_prometheus = ["--config.file", tmp_path / "prometheus.yml", "--storage.tsdb.path", tmp_path / "tsdb"]
        to_prometheus += ["--rules.alert.resend-delay=1s", f"--web.listen-address=127.0.0.1:{prometheus}"]
        manages = running(tmp_path / "am.log", manager, *to_manager, f"--web.listen-address=127.0.0.1:{alertmanager}")
        with manages, running(tmp_path / "prometheus.log", "prometheus", *to_prometheus):
            for port in (prometheus, alertmanager):
                wait_until(lambda port=port: is_ready(f"http://127.0.0.1:{port}/-/ready"), 10, "both servers are ready")
            rules = f"http://127.0.0.1:{prometheus}/api/v1/rules"
            groups = [group["rules"] for group in httpx.get(rules).json()["data"]["groups"]]
            assert sum(map(len, groups)) == 12
            time.sleep(2)
            assert states(received) == {}, "nothing fires while all is well"

            service.failing = True
            look = datetime.now(UTC).replace(tzinfo=None)
            drift = advance_alert(None, make_alarm("drift", "It moved.", "x"), "flights", look, settings=AlertSettings())[0]
            service.alerts = [drift.model_copy(update={"severity": "critical"})]
            wait_until(lambda: {ours, errors} <= set(states(received)), 10, "both alerts arrive")
            assert states(received)[ours] == states(received)[errors] == "firing"

            service.failing, service.alerts = False, []
            send_through_alertmanager(alertmanager, received)
            wait_until(lambda: states(received)[ours] == states(received)[errors] == "resolved", 10, "both are resolved")


def send_through_alertmanager(port: int, received: list) -> None:
    "Alertmanager takes what the sink sends; while quality has fallen, prior shift is not sent, and drift is."
    settings, look = AlertSettings(alertmanager=f"http://127.0.0.1:{port}"), datetime.now(UTC).replace(tzinfo=None)
    gone = advance_alert(None, make_alarm("quality", "It fell.", "y"), "hotels", look, settings=settings)[0]
    assert send_to_alertmanager(settings, [gone], look) == ""
    key, hint = (("hotels", "MlcycleModelAlert", rule) for rule in ("quality", "prior shift"))
    drift = ("hotels", "MlcycleModelAlert", "drift")
    wait_until(lambda: states(received).get(key) == "firing", 5, "the critical alert arrives")
    both = [make_alarm("prior shift", "It moved."), make_alarm("drift", "It moved.")]
    slow = [advance_alert(None, each, "hotels", look, settings=settings)[0] for each in both]
    assert send_to_alertmanager(settings, [gone, *slow], look) == ""
    wait_until(lambda: states(received).get(drift) == "firing", 5, "drift, which explains it, arrives")
    time.sleep(1)
    assert hint not in states(received)
    later = datetime.now(UTC).replace(tzinfo=None)
    resolved = advance_alert(gone, None, "hotels", later, settings=settings)[0]
    assert send_to_alertmanager(settings, [resolved, *slow], later) == ""
    wait_until(lambda: states(received).get(key) == "resolved", 5, "the critical alert is resolved")
    wait_until(lambda: states(received).get(hint) == "firing", 5, "the warning arrives")
